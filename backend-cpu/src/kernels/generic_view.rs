//! Tensors as the generic family sees them: one element at an index, in plain loops.
use crate::emit::{Emitter, Val, elementwise};
use rdc_ir::{DType, Type};

/// A tensor in memory, or a constant: how to address an element.
pub struct View {
    /// Its address, or the constant.
    pub base: Result<Val, f64>,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements from one index of an axis to the next.
    pub strides: Vec<usize>,
}

impl View {
    /// A tensor of that type.
    pub fn new(base: Result<Val, f64>, ty: &Type) -> View {
        let mut strides = vec![1; ty.rank()];
        for axis in (1..ty.rank()).rev() {
            strides[axis - 1] = strides[axis] * ty.shape[axis];
        }
        // Caches are stored head-major.
        if let (true, [.., t, h, d]) = (ty.cache, &ty.shape[..]) {
            let rank = ty.rank();
            (strides[rank - 3], strides[rank - 2]) = (*d, t * d);
            if rank > 3 {
                strides[rank - 4] = t * h * d;
            }
        }
        View { base, dtype: ty.dtype, shape: ty.shape.clone(), strides }
    }
    /// The address of an element.
    pub fn place(&self, e: &mut Emitter, base: Val, index: &[Val]) -> Val {
        let mut place = base;
        for (&i, &stride) in index.iter().zip(&self.strides) {
            place = e.at(place, i, stride * self.dtype.bytes());
        }
        place
    }
    /// An element.
    pub fn load(&self, e: &mut Emitter, index: &[Val]) -> Val {
        match self.base {
            Ok(base) => {
                let place = self.place(e, base, index);
                e.load(place, self.dtype, 1)
            }
            Err(value) => elementwise::constant(e, value, self.dtype, 1),
        }
    }
    /// Writes an element.
    pub fn store(&self, e: &mut Emitter, index: &[Val], value: Val) {
        if let Ok(base) = self.base {
            let place = self.place(e, base, index);
            e.store(place, self.dtype, value);
        }
    }
    /// The index of the element that a broadcast to a result with this index reads.
    pub fn own(&self, e: &mut Emitter, index: &[Val]) -> Vec<Val> {
        let zero = e.i64(0);
        let own = &index[index.len() - self.shape.len()..];
        own.iter().zip(&self.shape).map(|(&i, &n)| if n == 1 { zero } else { i }).collect()
    }
    /// That element.
    pub fn broadcast(&self, e: &mut Emitter, index: &[Val]) -> Val {
        let own = self.own(e, index);
        self.load(e, &own)
    }
}

/// Loops over all indices of a shape.
pub fn nest(e: &mut Emitter, shape: &[usize], body: &mut dyn FnMut(&mut Emitter, &[Val])) {
    fn inner(e: &mut Emitter, shape: &[usize], at: &mut Vec<Val>, body: &mut dyn FnMut(&mut Emitter, &[Val])) {
        match shape.split_first() {
            None => body(e, at),
            Some((&n, rest)) => e.repeat(n, |e, i| {
                at.push(i);
                inner(e, rest, at, body);
                at.pop();
            }),
        }
    }
    inner(e, shape, &mut Vec::new(), body);
}

/// The index with one axis replaced.
pub fn with(index: &[Val], axis: usize, value: Val) -> Vec<Val> {
    let mut index = index.to_vec();
    index[axis] = value;
    index
}

/// `init` folded over `0..n` with one carried value.
pub fn fold(e: &mut Emitter, n: usize, init: Val, body: impl FnOnce(&mut Emitter, Val, Val) -> Val) -> Val {
    let (lo, hi) = (e.i64(0), e.i64(n));
    e.for_range(lo, hi, 1, &[init], |e, i, carried| vec![body(e, i, carried[0])])[0]
}
