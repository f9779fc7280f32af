//! Appending operations to the reverse direction, at the innermost level or at a given one.
use super::reverse::Reverse;
use rdc_ir::{Attr, Builder, DType, Opcode, Type, ValueId};

impl Reverse<'_, '_> {
    /// Appends operations at a level.
    pub(super) fn builder_at(&mut self, level: usize) -> Builder<'_> {
        let mut builder = Builder::at(&mut self.new, self.levels[level].into);
        builder.loc = self.loc;
        builder
    }
    /// Appends an operation with one result.
    #[track_caller]
    pub(super) fn op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        self.builder_at(self.innermost()).op(opcode, operands, attrs)
    }
    /// Appends an operation with several results.
    ///
    /// # Panics
    /// As [`Builder::op`].
    #[track_caller]
    pub(super) fn results(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> Vec<ValueId> {
        self.builder_at(self.innermost()).results(opcode, operands, attrs)
    }
    /// An elementwise operation without attributes.
    #[track_caller]
    pub(super) fn map(&mut self, opcode: Opcode, operands: &[ValueId]) -> ValueId {
        self.op(opcode, operands, Vec::new())
    }
    pub(super) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Opcode::Add, &[a, b])
    }
    pub(super) fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Opcode::Sub, &[a, b])
    }
    pub(super) fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Opcode::Mul, &[a, b])
    }
    pub(super) fn neg(&mut self, a: ValueId) -> ValueId {
        self.map(Opcode::Neg, &[a])
    }
    /// A scalar f32.
    pub(super) fn number(&mut self, value: f64) -> ValueId {
        self.number_at(self.innermost(), value)
    }
    fn number_at(&mut self, level: usize, value: f64) -> ValueId {
        if let Some(&number) = self.levels[level].numbers.get(&value.to_bits()) {
            return number;
        }
        let number = self.builder_at(level).constant(value, DType::F32);
        self.levels[level].numbers.insert(value.to_bits(), number);
        number
    }
    /// The value times a number.
    pub(super) fn scale(&mut self, a: ValueId, by: f64) -> ValueId {
        let by = self.number(by);
        self.mul(a, by)
    }
    /// Zeros of that type.
    pub(super) fn zeros(&mut self, ty: &Type) -> ValueId {
        self.zeros_at(self.innermost(), ty)
    }
    /// Zeros at a level.
    pub(super) fn zeros_at(&mut self, level: usize, ty: &Type) -> ValueId {
        let zero = self.number_at(level, 0.0);
        self.builder_at(level).broadcast(zero, &ty.shape)
    }
    /// The elements in that shape.
    pub(super) fn reshape(&mut self, a: ValueId, shape: &[usize]) -> ValueId {
        self.builder_at(self.innermost()).reshape(a, shape)
    }
    /// Repeated to that shape.
    pub(super) fn broadcast(&mut self, a: ValueId, shape: &[usize]) -> ValueId {
        self.builder_at(self.innermost()).broadcast(a, shape)
    }
    /// Summed over the axes along which that shape repeats.
    pub(super) fn sum_to(&mut self, a: ValueId, shape: &[usize]) -> ValueId {
        if self.new.ty(a).shape == shape {
            return a;
        }
        self.op(Opcode::SumTo, &[a], vec![Attr::shape(shape)])
    }
    /// The sum over an axis, which stays with size 1.
    pub(super) fn row_sum(&mut self, a: ValueId, axis: usize) -> ValueId {
        self.op(Opcode::ReduceSum, &[a], vec![Attr::Int(axis as i64), Attr::Bool(true)])
    }
    /// The mean over the last axis, which stays with size 1.
    pub(super) fn row_mean(&mut self, a: ValueId) -> ValueId {
        let ty = self.new.ty(a).clone();
        let sum = self.row_sum(a, ty.rank() - 1);
        self.scale(sum, 1.0 / ty.last() as f64)
    }
    /// The shape of a value of the gradient.
    pub(super) fn shape(&self, value: ValueId) -> Vec<usize> {
        self.new.ty(value).shape.clone()
    }
}
