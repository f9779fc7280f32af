//! Who uses a value, and which operations move no data.
use rdc_ir::{Func, OpId, Opcode, RegionId, ValueDef, ValueId};
use std::collections::HashMap;

/// A use of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// An operand of an operation.
    Op(OpId),
    /// A yield of a region.
    Yield(RegionId),
}

/// All uses in a function, and the region of each operation.
pub struct Uses {
    users: HashMap<ValueId, Vec<User>>,
    region: HashMap<OpId, RegionId>,
    owner: HashMap<RegionId, OpId>,
}

impl Uses {
    /// Collects the uses of a function.
    pub fn new(func: &Func) -> Uses {
        let mut uses = Uses { users: HashMap::new(), region: HashMap::new(), owner: HashMap::new() };
        let mut regions = vec![func.body];
        for (region, op) in func.walk() {
            uses.region.insert(op, region);
            for &operand in &func.ops[op].operands {
                uses.users.entry(operand).or_default().push(User::Op(op));
            }
            for &inner in &func.ops[op].regions {
                uses.owner.insert(inner, op);
                regions.push(inner);
            }
        }
        for region in regions {
            for &value in &func.regions[region].yields {
                uses.users.entry(value).or_default().push(User::Yield(region));
            }
        }
        uses
    }
    /// The uses of a value.
    pub fn of(&self, value: ValueId) -> &[User] {
        self.users.get(&value).map_or(&[], Vec::as_slice)
    }
    /// The region that an operation stands in.
    pub fn region(&self, op: OpId) -> RegionId {
        self.region[&op]
    }
    /// The operation that a region belongs to; `None` for the body.
    pub fn owner(&self, region: RegionId) -> Option<OpId> {
        self.owner.get(&region).copied()
    }
    /// The operation of `region` that is `op` or contains it, if any.
    pub fn within(&self, region: RegionId, mut op: OpId) -> Option<OpId> {
        while let Some(&at) = self.region.get(&op) {
            if at == region {
                return Some(op);
            }
            op = *self.owner.get(&at)?;
        }
        None
    }
    /// The region that a value is defined in.
    pub fn home(&self, func: &Func, value: ValueId) -> RegionId {
        match func.values[value].def {
            ValueDef::Result(op, _) => self.region[&op],
            ValueDef::Arg(region, _) => region,
        }
    }
}

/// If an operation's result is a contiguous part of its operand: that operand and the offset in bytes.
pub fn alias(func: &Func, op: OpId) -> Option<(ValueId, usize)> {
    let op = &func.ops[op];
    match op.opcode {
        Opcode::Reshape | Opcode::StopGradient => Some((op.operands[0], 0)),
        Opcode::Index => {
            let entry = constant(func, op.operands[1])?;
            let (ty, last) = (func.ty(op.results[0]), func.ty(op.operands[0]).shape[0] - 1);
            Some((op.operands[0], (entry.max(0.0) as usize).min(last) * ty.bytes()))
        }
        Opcode::Slice => {
            let (ty, axis) = (func.ty(op.operands[0]), op.size("axis"));
            if ty.shape[..axis].iter().any(|&n| n != 1) {
                return None;
            }
            let each: usize = ty.shape[axis + 1..].iter().product();
            Some((op.operands[0], op.size("start") * each * ty.dtype.bytes()))
        }
        _ => None,
    }
}

/// Follows aliases to the value that owns the memory; the offset is in bytes.
pub fn root(func: &Func, mut value: ValueId) -> (ValueId, usize) {
    let mut offset = 0;
    while let Some((source, at)) = func.def_op(value).and_then(|op| alias(func, op)) {
        offset += at;
        value = source;
    }
    (value, offset)
}

/// If an operation's result is the entry of a stack at the step of the loop around it: the stack. The entry lies at an
/// address that moves with the step.
pub fn moving(func: &Func, uses: &Uses, op: OpId) -> Option<ValueId> {
    let data = &func.ops[op];
    let region = uses.region(op);
    let around = &func.ops[uses.owner(region)?];
    if data.opcode != Opcode::Index || func.values[root(func, data.operands[1]).0].def != ValueDef::Arg(region, 0) {
        return None;
    }
    let (stack, offset) = root(func, data.operands[0]);
    // Nothing is clamped; the stack does not move itself.
    let plain = offset == 0 && func.defined_by(stack, Opcode::Index).is_none();
    let all = func.ty(data.operands[0]).shape[0] >= around.size("max_steps");
    (plain && all).then_some(data.operands[0])
}

/// The value of a scalar constant.
pub fn constant(func: &Func, value: ValueId) -> Option<f64> {
    func.defined_by(value, Opcode::Constant).map(|op| op.float("value"))
}

/// Whether every byte of a value is zero, as far as can be seen.
pub fn is_zero(func: &Func, value: ValueId) -> bool {
    let (value, _) = root(func, value);
    let number = func.defined_by(value, Opcode::Broadcast).map_or(value, |op| op.operands[0]);
    constant(func, number).is_some_and(|number| number.to_bits() == 0)
}

/// Whether a value is a scalar constant, which kernels hold in their code.
pub fn is_constant(func: &Func, value: ValueId) -> bool {
    func.defined_by(value, Opcode::Constant).is_some()
}
