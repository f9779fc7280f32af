//! Losses; the op table has their derivatives.
use super::Reverse;
use rdc_ir::{Op, Opcode, ValueId};

/// By the logits.
pub(super) fn cross_entropy(cx: &mut Reverse<'_, '_>, op: &Op, dnll: ValueId) {
    let (logits, labels) = (cx.primal(op.operands[0]), cx.primal(op.operands[1]));
    let d = cx.op(Opcode::CrossEntropyGrad, &[logits, labels, dnll], op.attrs.clone());
    cx.give(op.operands[0], d);
}
/// By x, w and bias, of which the operation computes all.
pub(super) fn linear_cross_entropy(cx: &mut Reverse<'_, '_>, op: &Op, dnll: ValueId) {
    let mut operands: Vec<ValueId> = op.operands.iter().map(|&v| cx.primal(v)).collect();
    operands.insert(3, dnll);
    let results = cx.results(Opcode::LinearCrossEntropyGrad, &operands, op.attrs.clone());
    let by = [op.operands[0], op.operands[1]].into_iter().chain(op.operands.get(3).copied());
    for (operand, d) in by.zip(results) {
        cx.give(operand, d);
    }
}
