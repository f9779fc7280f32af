//! Elementwise operations: dy times the derivative at the same place. Broadcast operands get sums, see [`Reverse::give`].
use super::Reverse;
use rdc_ir::{Op, Opcode, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

/// a + b: dy, dy
pub(super) fn add(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    cx.give(op.operands[0], dy);
    cx.give(op.operands[1], dy);
}
/// a - b: dy, -dy
pub(super) fn sub(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    cx.give(op.operands[0], dy);
    if cx.wants(op.operands[1]) {
        let db = cx.neg(dy);
        cx.give(op.operands[1], db);
    }
}
/// a b: dy b, dy a
pub(super) fn mul(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    for (this, other) in [(op.operands[0], op.operands[1]), (op.operands[1], op.operands[0])] {
        if cx.wants(this) {
            let other = cx.primal(other);
            let d = cx.mul(dy, other);
            cx.give(this, d);
        }
    }
}
/// a / b: dy / b, -(dy / b) y
pub(super) fn div(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let b = cx.primal(op.operands[1]);
    let da = cx.map(Opcode::Div, &[dy, b]);
    cx.give(op.operands[0], da);
    if cx.wants(op.operands[1]) {
        let y = cx.primal(op.results[0]);
        let db = cx.mul(da, y);
        let db = cx.neg(db);
        cx.give(op.operands[1], db);
    }
}
/// max(a, b): dy to the larger, half to each if they are equal (as PyTorch's `maximum`).
pub(super) fn max(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, b) = (cx.primal(op.operands[0]), cx.primal(op.operands[1]));
    chosen(cx, op, dy, [(b, a), (a, b)]);
}
/// min(a, b): dy to the smaller, half to each if they are equal.
pub(super) fn min(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, b) = (cx.primal(op.operands[0]), cx.primal(op.operands[1]));
    chosen(cx, op, dy, [(a, b), (b, a)]);
}
/// dy to the operand whose pair is in order (first < second), half to each if neither's is.
fn chosen(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId, pairs: [(ValueId, ValueId); 2]) {
    for (&operand, (less, more)) in op.operands.iter().zip(pairs) {
        if !cx.wants(operand) {
            continue;
        }
        let (zero, half) = (cx.number(0.0), cx.scale(dy, 0.5));
        let wins = cx.map(Opcode::Lt, &[less, more]);
        let loses = cx.map(Opcode::Lt, &[more, less]);
        let otherwise = cx.map(Opcode::Select, &[loses, zero, half]);
        let d = cx.map(Opcode::Select, &[wins, dy, otherwise]);
        cx.give(operand, d);
    }
}
/// select(cond, a, b): dy where cond, dy elsewhere; cond is a constant.
pub(super) fn select(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (cond, zero) = (cx.primal(op.operands[0]), cx.number(0.0));
    for (operand, branches) in [(op.operands[1], [dy, zero]), (op.operands[2], [zero, dy])] {
        if cx.wants(operand) {
            let d = cx.map(Opcode::Select, &[cond, branches[0], branches[1]]);
            cx.give(operand, d);
        }
    }
}
/// -a: -dy
pub(super) fn neg(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let d = cx.neg(dy);
    cx.give(op.operands[0], d);
}
/// |a|: dy sign(a), 0 at 0 (as PyTorch).
pub(super) fn abs(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, zero) = (cx.primal(op.operands[0]), cx.number(0.0));
    let (negative, positive) = (cx.map(Opcode::Lt, &[a, zero]), cx.map(Opcode::Lt, &[zero, a]));
    let minus = cx.neg(dy);
    let otherwise = cx.map(Opcode::Select, &[positive, dy, zero]);
    let d = cx.map(Opcode::Select, &[negative, minus, otherwise]);
    cx.give(op.operands[0], d);
}
/// e^a: dy y
pub(super) fn exp(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let y = cx.primal(op.results[0]);
    let d = cx.mul(dy, y);
    cx.give(op.operands[0], d);
}
/// log a: dy / a
pub(super) fn log(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let a = cx.primal(op.operands[0]);
    let d = cx.map(Opcode::Div, &[dy, a]);
    cx.give(op.operands[0], d);
}
/// √a: dy / (2 y)
pub(super) fn sqrt(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let y = cx.primal(op.results[0]);
    let half = cx.scale(dy, 0.5);
    let d = cx.map(Opcode::Div, &[half, y]);
    cx.give(op.operands[0], d);
}
/// 1/√a: -dy y³ / 2
pub(super) fn rsqrt(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let y = cx.primal(op.results[0]);
    let square = cx.mul(y, y);
    let cube = cx.mul(square, y);
    let d = cx.mul(dy, cube);
    let d = cx.scale(d, -0.5);
    cx.give(op.operands[0], d);
}
/// atan a: dy / (1 + a²)
pub(super) fn atan(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, one) = (cx.primal(op.operands[0]), cx.number(1.0));
    let square = cx.mul(a, a);
    let below = cx.add(one, square);
    let d = cx.map(Opcode::Div, &[dy, below]);
    cx.give(op.operands[0], d);
}
/// tanh a: dy (1 - y²)
pub(super) fn tanh(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (y, one) = (cx.primal(op.results[0]), cx.number(1.0));
    let square = cx.mul(y, y);
    let slope = cx.sub(one, square);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// erf a: dy 2/√π e^(-a²)
pub(super) fn erf(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let a = cx.primal(op.operands[0]);
    let bell = bell(cx, a, -1.0);
    let slope = cx.scale(bell, FRAC_2_SQRT_PI);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// e^(factor a²)
fn bell(cx: &mut Reverse<'_, '_>, a: ValueId, factor: f64) -> ValueId {
    let square = cx.mul(a, a);
    let exponent = cx.scale(square, factor);
    cx.map(Opcode::Exp, &[exponent])
}
/// σ(a): dy y (1 - y)
pub(super) fn sigmoid(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (y, one) = (cx.primal(op.results[0]), cx.number(1.0));
    let other = cx.sub(one, y);
    let slope = cx.mul(y, other);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// max(a, 0): dy where a > 0, 0 elsewhere (as PyTorch).
pub(super) fn relu(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, zero) = (cx.primal(op.operands[0]), cx.number(0.0));
    let positive = cx.map(Opcode::Lt, &[zero, a]);
    let d = cx.map(Opcode::Select, &[positive, dy, zero]);
    cx.give(op.operands[0], d);
}
/// a s with s = σ(a): dy s (1 + a (1 - s))
pub(super) fn silu(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, one) = (cx.primal(op.operands[0]), cx.number(1.0));
    let s = cx.map(Opcode::Sigmoid, &[a]);
    let rest = cx.sub(one, s);
    let inner = cx.mul(a, rest);
    let inner = cx.add(one, inner);
    let slope = cx.mul(s, inner);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// a Φ(a): dy (Φ(a) + a φ(a)), with Φ the normal distribution and φ its density.
pub(super) fn gelu(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (a, one) = (cx.primal(op.operands[0]), cx.number(1.0));
    let z = cx.scale(a, FRAC_1_SQRT_2);
    let erf = cx.map(Opcode::Erf, &[z]);
    let twice = cx.add(one, erf);
    let below = cx.scale(twice, 0.5);
    let bell = bell(cx, a, -0.5);
    let density = cx.scale(bell, 1.0 / (2.0 * PI).sqrt());
    let spread = cx.mul(a, density);
    let slope = cx.add(below, spread);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// a (1 + t) / 2 with t = tanh u, u = c (a + q a³): dy ((1 + t) / 2 + a (1 - t²) u' / 2), u' = c (1 + 3 q a²).
pub(super) fn gelu_tanh(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    let (c, q) = ((2.0 / PI).sqrt(), 0.044715);
    let (a, one) = (cx.primal(op.operands[0]), cx.number(1.0));
    let square = cx.mul(a, a);
    let part = cx.scale(square, q);
    let part = cx.add(one, part);
    let u = cx.mul(a, part);
    let u = cx.scale(u, c);
    let t = cx.map(Opcode::Tanh, &[u]);
    let t_square = cx.mul(t, t);
    let t_slope = cx.sub(one, t_square);
    let u_slope = cx.scale(square, 3.0 * q);
    let u_slope = cx.add(one, u_slope);
    let u_slope = cx.scale(u_slope, c);
    let second = cx.mul(t_slope, u_slope);
    let second = cx.mul(a, second);
    let first = cx.add(one, t);
    let slope = cx.add(first, second);
    let slope = cx.scale(slope, 0.5);
    let d = cx.mul(dy, slope);
    cx.give(op.operands[0], d);
}
/// A cast from f32 to f32: dy. Others have no cotangent.
pub(super) fn cast(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    cx.give(op.operands[0], dy);
}
