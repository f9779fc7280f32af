//! Norms over the last axis, in operations that fuse into one pass over a row.
use super::Reverse;
use rdc_ir::{Op, Opcode, ValueId};

/// 1 / sqrt(mean + eps)
fn inverse_root(cx: &mut Reverse<'_, '_>, mean: ValueId, eps: f64) -> ValueId {
    let eps = cx.number(eps);
    let sum = cx.add(mean, eps);
    cx.map(Opcode::Rsqrt, &[sum])
}
/// x r w with r = (mean(x²) + eps)^(-1/2). With g = dy w: x gets r g - x r³ mean(g x), w the sum of dy x r over all rows.
pub(super) fn rms_norm(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (x, w) = (cx.primal(op.operands[0]), cx.primal(op.operands[1]));
    let square = cx.mul(x, x);
    let mean = cx.row_mean(square);
    let r = inverse_root(cx, mean, op.float("eps"));
    let normed = cx.mul(x, r);
    normalised(cx, op, dy, w, (normed, r), false);
}
/// What x and w get of n w, where n is x times r or, if `centred`, x less its mean times r. With g = dy w: x gets
/// r (g - n mean(g n)), centred r (g - mean(g) - n mean(g n)); w gets the sum of dy n.
fn normalised(
    cx: &mut Reverse<'_, '_>,
    op: &Op,
    dy: ValueId,
    w: ValueId,
    (normed, r): (ValueId, ValueId),
    centred: bool,
) {
    if cx.wants(op.operands[0]) {
        let g = cx.mul(dy, w);
        let product = cx.mul(g, normed);
        let g_mean = centred.then(|| cx.row_mean(g));
        let mean = cx.row_mean(product);
        let along = cx.mul(normed, mean);
        let rest = g_mean.map_or(g, |mean| cx.sub(g, mean));
        let rest = cx.sub(rest, along);
        let dx = cx.mul(rest, r);
        cx.give(op.operands[0], dx);
    }
    if cx.wants(op.operands[1]) {
        let dw = cx.mul(dy, normed);
        cx.give(op.operands[1], dw);
    }
}
/// n w + b with n = (x - mean(x)) r, r = (var(x) + eps)^(-1/2). With g = dy w: x gets r (g - mean(g) - n mean(g n)), w the
/// sum of dy n, b the sum of dy over all rows.
pub(super) fn layer_norm(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (x, w) = (cx.primal(op.operands[0]), cx.primal(op.operands[1]));
    let mean = cx.row_mean(x);
    let centred = cx.sub(x, mean);
    let square = cx.mul(centred, centred);
    let variance = cx.row_mean(square);
    let r = inverse_root(cx, variance, op.float("eps"));
    let normed = cx.mul(centred, r);
    normalised(cx, op, dy, w, (normed, r), true);
    cx.give(op.operands[2], dy);
}
/// y = softmax(x): y (dy - sum(dy y))
pub(super) fn softmax(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let y = cx.primal(op.results[0]);
    let product = cx.mul(dy, y);
    let axis = cx.shape(product).len() - 1;
    let sum = cx.row_sum(product, axis);
    let rest = cx.sub(dy, sum);
    let dx = cx.mul(y, rest);
    cx.give(op.operands[0], dx);
}
