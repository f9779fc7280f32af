//! What callers must know of an entry's inputs and outputs beyond their types: which ids there are, and which axis is the sequence's.
use super::entry::Planner;
use crate::uses::User;
use rdc_ir::{Opcode, Type, ValueId, positions};

impl Planner<'_> {
    /// The rows of the smallest table that a value's elements are looked up in, moved about or not.
    pub(super) fn vocabulary(&self, ids: ValueId) -> Option<usize> {
        let (mut least, mut moved, mut next) = (None, vec![ids], 0);
        while let Some(&value) = moved.get(next) {
            next += 1;
            for user in self.uses.of(value) {
                let User::Op(id) = *user else { continue };
                let op = &self.func.ops[id];
                let rows = match op.opcode {
                    Opcode::Gather if op.operands[1] == value => self.func.ty(op.operands[0]).shape.first().copied(),
                    Opcode::PackedGather if op.operands[1] == value => Some(op.size("n")),
                    Opcode::Reshape | Opcode::Slice | Opcode::Transpose | Opcode::Broadcast => {
                        moved.extend(&op.results);
                        None
                    }
                    _ => None,
                };
                least = least.into_iter().chain(rows).min();
            }
        }
        least
    }
    /// The axis of the sequence of a result: `[B, S, ..]`, behind the axis of steps if it is stacked.
    pub(super) fn sequence_of(&self, ty: &Type, stacked: bool) -> Option<usize> {
        let (axis, length) = (usize::from(stacked) + 1, positions::length(self.func)?);
        (ty.shape.get(axis) == Some(&length)).then_some(axis)
    }
}
