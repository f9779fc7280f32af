//! Reductions.
use super::{Reverse, shape};
use rdc_ir::{Attr, DType, Op, Opcode, ValueId};

/// A result without the reduced axis, with it.
fn kept(cx: &mut Reverse<'_, '_>, op: &Op, value: ValueId) -> ValueId {
    let mut shape = cx.old_ty(op.operands[0]).shape.clone();
    shape[op.size("axis")] = 1;
    cx.reshape(value, &shape)
}
/// The sum over an axis: dy for each of its elements.
pub(super) fn reduce_sum(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let dy = kept(cx, op, dy);
    shape::repeat(cx, op.operands[0], dy);
}
/// The maximum over an axis: dy for the element that is it; several share dy equally (as PyTorch's `amax`).
pub(super) fn reduce_max(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, y) = (cx.primal(op.operands[0]), cx.primal(op.results[0]));
    let (dy, y) = (kept(cx, op, dy), kept(cx, op, y));
    let is_max = cx.map(Opcode::Eq, &[a, y]);
    let ones = cx.op(Opcode::Cast, &[is_max], vec![Attr::DType(DType::F32)]);
    let count = cx.row_sum(ones, op.size("axis"));
    let share = cx.map(Opcode::Div, &[dy, count]);
    let d = cx.mul(ones, share);
    cx.give(op.operands[0], d);
}
/// The sum over repeated axes: dy repeated.
pub(super) fn sum_to(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    shape::repeat(cx, op.operands[0], dy);
}
