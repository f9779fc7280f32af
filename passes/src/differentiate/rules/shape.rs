//! Operations that move or copy elements: cotangents go the way back.
use super::super::cotangent::{Contribution, Range};
use super::Reverse;
use rdc_ir::{Attr, DType, Op, Opcode, ValueId};

/// The same elements in another shape: back.
pub(super) fn reshape(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let shape = cx.old_ty(op.operands[0]).shape.clone();
    let d = cx.reshape(dy, &shape);
    cx.give(op.operands[0], d);
}
/// A permutation of axes: its inverse.
pub(super) fn transpose(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let perm = op.ints("perm");
    let mut inverse = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        inverse[p as usize] = i as i64;
    }
    let d = cx.op(Opcode::Transpose, &[dy], vec![Attr::Ints(inverse)]);
    cx.give(op.operands[0], d);
}
/// A range: dy there, zeros elsewhere.
pub(super) fn slice(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let range = Range { axis: op.size("axis"), start: op.size("start"), end: op.size("end") };
    cx.give_part(op.operands[0], range, dy);
}
/// Joined operands: each its range of dy.
pub(super) fn concat(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let axis = op.size("axis");
    let mut start = 0;
    for &part in &op.operands {
        let end = start + cx.old_ty(part).shape[axis];
        if cx.wants(part) {
            let d = cx.op(Opcode::Slice, &[dy], Range { axis, start, end }.attrs());
            cx.give(part, d);
        }
        start = end;
    }
}
/// Repeated elements: sums over the repetitions.
pub(super) fn broadcast(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    cx.give(op.operands[0], dy);
}
/// Zeros around: the range of dy.
pub(super) fn pad(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (axis, start) = (op.size("axis"), op.size("start"));
    let end = start + cx.old_ty(op.operands[0]).shape[axis];
    let d = cx.op(Opcode::Slice, &[dy], Range { axis, start, end }.attrs());
    cx.give(op.operands[0], d);
}
/// Entry i of a stack: dy at i, zeros elsewhere.
pub(super) fn index(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let stack = cx.old_ty(op.operands[0]).shape.clone();
    let i = cx.primal(op.operands[1]);
    let mut whole =
        |value: usize| cx.op(Opcode::Constant, &[], vec![Attr::float(value as f64), Attr::DType(DType::I32)]);
    let (first, last) = (whole(0), whole(stack[0] - 1));
    let i = cx.map(Opcode::Max, &[i, first]);
    let i = cx.map(Opcode::Min, &[i, last]);
    let here = cx.op(Opcode::OneHot, &[i], vec![Attr::Int(stack[0] as i64)]);
    let mut column = vec![1; stack.len()];
    column[0] = stack[0];
    let here = cx.reshape(here, &column);
    let d = cx.mul(here, dy);
    let d = cx.broadcast(d, &stack);
    cx.give(op.operands[0], d);
}
/// Rows of a table: each is added to its row of the cotangent.
pub(super) fn gather(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    if cx.wants(op.operands[0]) {
        let ids = cx.primal(op.operands[1]);
        cx.contribute(op.operands[0], Contribution::Rows { ids, rows: dy });
    }
}
/// base, with rows added: dy, and its rows of those numbers.
pub(super) fn scatter_add(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    cx.give(op.operands[0], dy);
    if cx.wants(op.operands[2]) {
        let ids = cx.primal(op.operands[1]);
        let d = cx.map(Opcode::Gather, &[dy, ids]);
        cx.give(op.operands[2], d);
    }
}

/// dy repeated to the shape of the operand (of a reduction).
pub(super) fn repeat(cx: &mut Reverse<'_, '_>, operand: ValueId, dy: ValueId) {
    let shape = cx.old_ty(operand).shape.clone();
    let d = if cx.shape(dy) == shape { dy } else { cx.op(Opcode::Broadcast, &[dy], vec![Attr::shape(&shape)]) };
    cx.give(operand, d);
}
