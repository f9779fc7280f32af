//! Operations along an axis of one element, which kernels of rows do not have, as elementwise ones. Such axes come with functions of
//! one position, as `softmax(x · xᵀ)` of one token is.
use super::normalise::before;
use rdc_ir::{Attr, DType, Func, Opcode, Type};
use std::collections::HashMap;

/// A sum or a maximum of one element is the element: `reduce_sum %x {axis = 1, keep = false} : f32[4]` of `f32[4, 1]` becomes a reshape.
/// A softmax of one is `exp(x - x)`, which is 1 unless x is not finite; `rms_norm` is `x · (x² + eps)^(-1/2) · w`, and `layer_norm` the
/// same of x - x, plus the bias.
pub fn elementwise(func: &mut Func) {
    for (region, id) in func.walk() {
        let op = func.ops[id].clone();
        let Some(x) = op.operands.first().copied() else { continue };
        let (from, ty) = (func.ty(x).clone(), func.ty(op.results[0]).clone());
        let one = |axis: usize| from.shape.get(axis) == Some(&1);
        let last = from.rank().wrapping_sub(1);
        let mut at = before(func, region, id);
        let value = match op.opcode {
            Opcode::ReduceSum | Opcode::ReduceMax if one(op.size("axis")) => at.reshape(x, ty.shape),
            Opcode::SumTo if from.elements() == ty.elements() => at.reshape(x, ty.shape),
            Opcode::Softmax | Opcode::RmsNorm | Opcode::LayerNorm if one(last) => {
                let mut each = |opcode, operands| at.op(opcode, operands, Vec::new(), vec![ty.clone()])[0];
                let x = if op.opcode == Opcode::RmsNorm { x } else { each(Opcode::Sub, vec![x, x]) };
                if op.opcode == Opcode::Softmax {
                    each(Opcode::Exp, vec![x])
                } else {
                    let square = each(Opcode::Mul, vec![x, x]);
                    let attrs = vec![Attr::Float(op.float("eps")), Attr::DType(DType::F32)];
                    let eps = at.op(Opcode::Constant, Vec::new(), attrs, vec![Type::scalar(DType::F32)])[0];
                    let mut each = |opcode, operands| at.op(opcode, operands, Vec::new(), vec![ty.clone()])[0];
                    let sum = each(Opcode::Add, vec![square, eps]);
                    let scale = each(Opcode::Rsqrt, vec![sum]);
                    let scaled = each(Opcode::Mul, vec![x, scale]);
                    let weighted = each(Opcode::Mul, vec![scaled, op.operands[1]]);
                    op.operands.get(2).map_or(weighted, |&bias| each(Opcode::Add, vec![weighted, bias]))
                }
            }
            _ => continue,
        };
        func.replace_uses(&HashMap::from([(op.results[0], value)]));
    }
}
