//! Elementwise operations, constants and tables.
use super::tensor::map_data;
use super::{Data, Real, Tensor};
use crate::infer::broadcast;
use crate::module::Op;
use crate::ops::Opcode;
use crate::tables;
use crate::types::{DType, Type};

/// For each element of the result, the place of the operand's element that is broadcast to it.
pub(super) fn places(from: &[usize], to: &[usize]) -> Vec<usize> {
    let mut places = vec![0];
    let missing = to.len() - from.len();
    let mut strides = vec![0; to.len()];
    let mut stride = 1;
    for axis in (0..from.len()).rev() {
        if from[axis] != 1 {
            strides[missing + axis] = stride;
        }
        stride *= from[axis];
    }
    for (&size, &stride) in to.iter().zip(&strides) {
        places = places.iter().flat_map(|&p| (0..size).map(move |i| p + i * stride)).collect();
    }
    places
}

/// The elements broadcast to a shape.
pub(super) fn spread<E: Copy>(values: &[E], from: &[usize], to: &[usize]) -> Vec<E> {
    if from == to {
        return values.to_vec();
    }
    places(from, to).into_iter().map(|p| values[p]).collect()
}

fn zip<T: Real, E: Copy, R>(
    op: &[&Tensor<T>],
    get: impl Fn(&Tensor<T>) -> &[E],
    f: impl Fn(E, E) -> R,
) -> (Vec<usize>, Vec<R>) {
    let (a, b) = (op[0], op[1]);
    // Types have been checked to broadcast.
    let shape = broadcast(&a.ty.shape, &b.ty.shape).unwrap_or_default();
    let (x, y) = (spread(get(a), &a.ty.shape, &shape), spread(get(b), &b.ty.shape, &shape));
    let values = x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect();
    (shape, values)
}

fn float2<T: Real>(op: &[&Tensor<T>], f: impl Fn(T, T) -> T) -> Tensor<T> {
    let (shape, values) = zip(op, Tensor::floats, f);
    Tensor::floats_of(Type::f32(shape), values)
}

fn number2<T: Real>(op: &[&Tensor<T>], f: impl Fn(T, T) -> T, i: impl Fn(i32, i32) -> i32) -> Tensor<T> {
    if op[0].ty.dtype != DType::I32 {
        return float2(op, f);
    }
    let (shape, values) = zip(op, Tensor::ints, i);
    Tensor { ty: Type::new(DType::I32, shape), data: Data::Int(values) }
}

fn compare<T: Real>(op: &[&Tensor<T>], f: impl Fn(T, T) -> bool, i: impl Fn(i32, i32) -> bool) -> Tensor<T> {
    let (shape, values) =
        if op[0].ty.dtype == DType::I32 { zip(op, Tensor::ints, i) } else { zip(op, Tensor::floats, f) };
    Tensor { ty: Type::new(DType::Bool, shape), data: Data::Bool(values) }
}

fn logic2<T: Real>(op: &[&Tensor<T>], f: impl Fn(bool, bool) -> bool) -> Tensor<T> {
    let (shape, values) = zip(op, Tensor::bools, f);
    Tensor { ty: Type::new(DType::Bool, shape), data: Data::Bool(values) }
}

fn float1<T: Real>(op: &[&Tensor<T>], f: impl Fn(T) -> T) -> Tensor<T> {
    Tensor::floats_of(op[0].ty.clone(), op[0].floats().iter().map(|&v| f(v)).collect())
}

fn sigmoid<T: Real>(a: T) -> T {
    T::from_f64(1.0) / (T::from_f64(1.0) + (-a).exp())
}

fn gelu<T: Real>(a: T) -> T {
    let c = T::from_f64;
    a * (c(1.0) + (a * c(std::f64::consts::FRAC_1_SQRT_2)).erf()) * c(0.5)
}

fn gelu_tanh<T: Real>(a: T) -> T {
    let c = T::from_f64;
    let inner = c((2.0 / std::f64::consts::PI).sqrt()) * (a + c(0.044715) * a * a * a);
    a * (c(1.0) + inner.tanh()) * c(0.5)
}

fn select<T: Real>(cond: &Tensor<T>, a: &Tensor<T>, b: &Tensor<T>, ty: &Type) -> Tensor<T> {
    let chosen = spread(cond.bools(), &cond.ty.shape, &ty.shape);
    fn pick<E: Copy>(chosen: &[bool], a: Vec<E>, b: Vec<E>) -> Vec<E> {
        chosen.iter().zip(a.into_iter().zip(b)).map(|(&c, (a, b))| if c { a } else { b }).collect()
    }
    let wide = |t: &Tensor<T>| map_data!(&t.data, v => spread(v, &t.ty.shape, &ty.shape));
    let data = match (wide(a), wide(b)) {
        (Data::Float(a), Data::Float(b)) => Data::Float(pick(&chosen, a, b)),
        (Data::Int(a), Data::Int(b)) => Data::Int(pick(&chosen, a, b)),
        (Data::Byte(a), Data::Byte(b)) => Data::Byte(pick(&chosen, a, b)),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(pick(&chosen, a, b)),
        // The two have one type in a verified module.
        (a, _) => a,
    };
    Tensor { ty: ty.clone(), data }
}

fn cast<T: Real>(a: &Tensor<T>, to: DType) -> Tensor<T> {
    let ty = Type::new(to, a.ty.shape.clone());
    let data = match (&a.data, to) {
        (Data::Float(v), DType::F32) => Data::Float(v.clone()),
        (Data::Float(v), DType::BF16) => Data::Float(v.iter().map(|v| v.to_bf16()).collect()),
        // Truncates, and saturates outside the range; NaN becomes 0.
        (Data::Float(v), DType::I32) => Data::Int(v.iter().map(|v| v.to_f64() as i32).collect()),
        (Data::Int(v), DType::I32) => Data::Int(v.clone()),
        (_, DType::Bool) => Data::Bool(a.to_f64().into_iter().map(|v| v != 0.0).collect()),
        (_, DType::I32) => Data::Int(a.to_f64().into_iter().map(|v| v as i32).collect()),
        (_, DType::BF16) => Data::Float(a.to_f64().into_iter().map(|v| T::from_f64(v).to_bf16()).collect()),
        _ => Data::Float(a.to_f64().into_iter().map(T::from_f64).collect()),
    };
    Tensor { ty, data }
}

fn table<T: Real>(ty: &Type, values: Vec<f32>) -> Tensor<T> {
    Tensor::floats_of(ty.clone(), values.into_iter().map(T::from_f32).collect())
}

/// Evaluates an elementwise operation, a constant or a table; `None` for other operations. `ty` is the result's type.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Option<Tensor<T>> {
    let zero = T::default();
    let one = T::from_f64(1.0);
    Some(match op.opcode {
        Opcode::Constant => {
            let value = op.float("value");
            let data = match ty.dtype {
                DType::I32 => Data::Int(vec![value as i32]),
                DType::Bool => Data::Bool(vec![value != 0.0]),
                _ => Data::Float(vec![T::from_f64(value)]),
            };
            Tensor { ty: ty.clone(), data }
        }
        Opcode::RopeTable => table(ty, tables::rope_table(op.size("len"), op.size("dim"), op.float("base"))),
        Opcode::SinusoidTable => table(ty, tables::sinusoid_table(op.size("len"), op.size("dim"), op.float("base"))),
        Opcode::Add => number2(o, |a, b| a + b, i32::wrapping_add),
        Opcode::Sub => number2(o, |a, b| a - b, i32::wrapping_sub),
        Opcode::Mul => number2(o, |a, b| a * b, i32::wrapping_mul),
        Opcode::Div => float2(o, |a, b| a / b),
        Opcode::Max => number2(o, T::maximum, i32::max),
        Opcode::Min => number2(o, T::minimum, i32::min),
        Opcode::Lt => compare(o, |a, b| a < b, |a, b| a < b),
        Opcode::Le => compare(o, |a, b| a <= b, |a, b| a <= b),
        Opcode::Eq => compare(o, |a, b| a == b, |a, b| a == b),
        Opcode::And => logic2(o, |a, b| a && b),
        Opcode::Or => logic2(o, |a, b| a || b),
        Opcode::Not => Tensor { ty: ty.clone(), data: Data::Bool(o[0].bools().iter().map(|v| !v).collect()) },
        Opcode::Select => select(o[0], o[1], o[2], ty),
        Opcode::Neg => float1(o, |a| -a),
        Opcode::Abs => float1(o, T::abs),
        Opcode::Exp => float1(o, T::exp),
        Opcode::Log => float1(o, T::ln),
        Opcode::Sqrt => float1(o, T::sqrt),
        Opcode::Rsqrt => float1(o, |a| one / a.sqrt()),
        Opcode::Atan => float1(o, T::atan),
        Opcode::Tanh => float1(o, T::tanh),
        Opcode::Erf => float1(o, T::erf),
        Opcode::Sigmoid => float1(o, sigmoid),
        Opcode::Relu => float1(o, |a| a.maximum(zero)),
        Opcode::Silu => float1(o, |a| a * sigmoid(a)),
        Opcode::Gelu => float1(o, gelu),
        Opcode::GeluTanh => float1(o, gelu_tanh),
        Opcode::StopGradient => float1(o, |a| a),
        Opcode::Cast => cast(o[0], ty.dtype),
        _ => return None,
    })
}
