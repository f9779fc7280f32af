//! Operations along an axis of one element, which kernels of rows do not have, as elementwise ones. Such axes come with functions of
//! one position, as `softmax(x · xᵀ)` of one token is.
use rdc_ir::{Builder, DType, Func, Opcode};
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
        let mut at = Builder::before(func, region, id);
        let value = match op.opcode {
            Opcode::ReduceSum | Opcode::ReduceMax if one(op.size("axis")) => at.reshape(x, &ty.shape),
            Opcode::SumTo if from.elements() == ty.elements() => at.reshape(x, &ty.shape),
            Opcode::Softmax | Opcode::RmsNorm | Opcode::LayerNorm if one(last) => {
                let x = if op.opcode == Opcode::RmsNorm { x } else { at.map(Opcode::Sub, &[x, x]) };
                if op.opcode == Opcode::Softmax {
                    at.map(Opcode::Exp, &[x])
                } else {
                    let square = at.map(Opcode::Mul, &[x, x]);
                    let eps = at.constant(op.float("eps"), DType::F32);
                    let sum = at.map(Opcode::Add, &[square, eps]);
                    let scale = at.map(Opcode::Rsqrt, &[sum]);
                    let scaled = at.map(Opcode::Mul, &[x, scale]);
                    let weighted = at.map(Opcode::Mul, &[scaled, op.operands[1]]);
                    op.operands.get(2).map_or(weighted, |&bias| at.map(Opcode::Add, &[weighted, bias]))
                }
            }
            _ => continue,
        };
        func.replace_uses(&HashMap::from([(op.results[0], value)]));
    }
}
