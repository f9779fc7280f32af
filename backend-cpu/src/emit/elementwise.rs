//! Elementwise operations of the op table on values in registers.
use super::{Cmp, Elem, Emitter, Ty, Val, math};
use rdc_ir::{DType, Opcode};

/// The result of an elementwise operation on operands of equal lanes; `from` and `to` are the element types of the first operand's
/// tensor and of the result's. `None` if the opcode is not elementwise.
pub fn apply(e: &mut Emitter, opcode: Opcode, (from, to): (DType, DType), a: &[Val]) -> Option<Val> {
    Some(match (opcode, a) {
        (Opcode::Add, &[x, y]) => e.add(x, y),
        (Opcode::Sub, &[x, y]) => e.sub(x, y),
        (Opcode::Mul, &[x, y]) => e.mul(x, y),
        (Opcode::Div, &[x, y]) => e.div(x, y),
        (Opcode::Max, &[x, y]) => e.max(x, y),
        (Opcode::Min, &[x, y]) => e.min(x, y),
        (Opcode::Lt, &[x, y]) => e.cmp(Cmp::Lt, x, y),
        (Opcode::Le, &[x, y]) => e.cmp(Cmp::Le, x, y),
        (Opcode::Eq, &[x, y]) => e.cmp(Cmp::Eq, x, y),
        (Opcode::And, &[x, y]) => e.and(x, y),
        (Opcode::Or, &[x, y]) => e.or(x, y),
        (Opcode::Not, &[x]) => {
            let one = e.int(1, x.ty);
            e.xor(x, one)
        }
        (Opcode::Select, &[c, x, y]) => e.select(c, x, y),
        (Opcode::Neg, &[x]) => e.neg(x),
        (Opcode::Abs, &[x]) => e.abs(x),
        (Opcode::Exp, &[x]) => math::exp(e, x),
        (Opcode::Log, &[x]) => math::log(e, x),
        (Opcode::Sqrt, &[x]) => e.sqrt(x),
        (Opcode::Rsqrt, &[x]) => math::rsqrt(e, x),
        (Opcode::Atan, &[x]) => math::atan(e, x),
        (Opcode::Tanh, &[x]) => math::tanh(e, x),
        (Opcode::Erf, &[x]) => math::erf(e, x),
        (Opcode::Sigmoid, &[x]) => math::sigmoid(e, x),
        (Opcode::Relu, &[x]) => {
            let zero = e.f32(0.0, x.lanes());
            e.max_fast(zero, x)
        }
        (Opcode::Silu, &[x]) => math::silu(e, x),
        (Opcode::Gelu, &[x]) => math::gelu(e, x),
        (Opcode::GeluTanh, &[x]) => math::gelu_tanh(e, x),
        (Opcode::StopGradient, &[x]) => x,
        (Opcode::Cast, &[x]) => cast(e, x, from, to),
        _ => return None,
    })
}

/// Converts between tensor element types as they live in registers (a bf16 is an f32 that bf16 can represent).
fn cast(e: &mut Emitter, x: Val, from: DType, to: DType) -> Val {
    let float = match (from, to) {
        (DType::Bool, DType::I32) => return e.extui(x, Elem::I32),
        (DType::I32, DType::Bool) => {
            let zero = e.int(0, x.ty);
            return e.cmp(Cmp::Ne, x, zero);
        }
        (DType::I32, DType::F32 | DType::BF16) => e.int_to_float(x),
        (DType::Bool, DType::F32 | DType::BF16) => {
            let wide = e.extui(x, Elem::I32);
            e.int_to_float(wide)
        }
        (DType::F32 | DType::BF16, DType::I32) => return math::to_int(e, x),
        (DType::F32 | DType::BF16, DType::Bool) => {
            let zero = e.f32(0.0, x.lanes());
            return e.cmp(Cmp::Ne, x, zero);
        }
        _ => x,
    };
    if to == DType::BF16 && from != DType::BF16 {
        let bits = e.f32_to_bf16(float);
        return e.bf16_to_f32(bits);
    }
    float
}

/// A constant of a tensor element type in every lane.
pub fn constant(e: &mut Emitter, value: f64, dtype: DType, lanes: usize) -> Val {
    match dtype {
        DType::F32 | DType::BF16 => e.f32(value as f32, lanes),
        DType::I32 | DType::I8 => e.int(value as i64, Ty::new(Elem::I32, lanes)),
        DType::Bool => e.int(i64::from(value != 0.0), Ty::new(Elem::I1, lanes)),
    }
}
