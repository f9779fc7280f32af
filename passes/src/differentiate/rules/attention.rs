//! Attention and rotary positions; the op table has their derivatives.
use super::Reverse;
use rdc_ir::{Op, Opcode, ValueId};

/// A rotation: the rotation back.
pub(super) fn rope(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (table, pos) = (cx.primal(op.operands[1]), cx.primal(op.operands[2]));
    let d = cx.op(Opcode::RopeGrad, &[dy, table, pos], op.attrs.clone());
    cx.give(op.operands[0], d);
}
/// By q, k and v, of which the operation computes all.
pub(super) fn attention(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let mut operands: Vec<ValueId> = op.operands.iter().map(|&v| cx.primal(v)).collect();
    operands.push(dy);
    operands.extend(op.results.get(1).map(|&lse| cx.primal(lse)));
    let attrs = ["causal", "scale"].map(|name| op.attr(name).clone());
    let results = cx.results(Opcode::AttentionGrad, &operands, attrs.to_vec());
    for (&operand, d) in op.operands.iter().zip(results) {
        cx.give(operand, d);
    }
}
