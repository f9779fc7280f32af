//! Random inputs for a function, and the comparison of results.
use super::Rng;
use crate::interp::{Data, Inputs, Outputs, Real, Tensor};
use crate::module::{ArgRole, Func, IGNORED_LABEL, Init, Module};
use crate::ops::Opcode;
use crate::types::{DType, Type};
use std::collections::HashMap;
use std::rc::Rc;

/// What the integers of a function's inputs may be.
struct Limits {
    /// Ids are below this.
    rows: usize,
    /// Labels are below this, or ignored.
    labels: usize,
    /// Positions of all tokens are below this.
    context: usize,
    /// Largest number of steps.
    steps: usize,
}

fn limits(func: &Func) -> Limits {
    let mut limits = Limits { rows: 1 << 20, labels: 1 << 20, context: 1 << 20, steps: 1 << 20 };
    let steps: Vec<_> = func.args.iter().zip(&func.regions[func.body].args).collect();
    let steps = steps.iter().find(|(a, _)| a.role == ArgRole::Steps).map(|(_, v)| **v);
    for (_, id) in func.walk() {
        let op = &func.ops[id];
        match op.opcode {
            Opcode::Gather | Opcode::ScatterAdd => {
                let rows = func.ty(op.operands[0]).shape[0];
                let by_position = func.defined_by(op.operands[1], Opcode::Positions).is_some();
                let limit = if by_position { &mut limits.context } else { &mut limits.rows };
                *limit = (*limit).min(rows);
            }
            Opcode::PackedGather => limits.rows = limits.rows.min(op.size("n")),
            Opcode::CrossEntropy | Opcode::CrossEntropyGrad => {
                limits.labels = limits.labels.min(func.ty(op.operands[0]).last());
            }
            Opcode::LinearCrossEntropy | Opcode::LinearCrossEntropyGrad => {
                limits.labels = limits.labels.min(func.ty(op.operands[1]).shape[0]);
            }
            Opcode::Rope | Opcode::RopeGrad => limits.context = limits.context.min(func.ty(op.operands[1]).shape[0]),
            Opcode::CacheUpdate => limits.context = limits.context.min(func.ty(op.operands[0]).shape[2]),
            Opcode::Loop if Some(op.operands[0]) == steps => limits.steps = limits.steps.min(op.size("max_steps")),
            _ => {}
        }
    }
    limits
}

fn draw(rng: &mut Rng, ty: &Type, init: Init) -> Tensor<f64> {
    let mut one = || match init {
        // Not quite constant: a norm's weights of exactly 1 would hide mistakes.
        Init::Constant(v) => v as f32 + 0.1 * rng.unit(),
        Init::Normal { std } | Init::TruncNormal { std, .. } => std as f32 * 1.7 * rng.unit(),
    };
    let mut in_type = || if ty.dtype == DType::BF16 { Real::to_bf16(f64::from(one())) } else { f64::from(one()) };
    let values: Vec<f64> = (0..ty.elements()).map(|_| in_type()).collect();
    Tensor { ty: ty.clone(), data: Data::Float(values) }
}

/// Random inputs for a function, all f32 numbers: parameters about as large as their initialisers say, ids and positions
/// in range, labels in range or ignored, any number of steps up to `max_steps`.
///
/// # Panics
/// If the module has no such function.
pub fn random_inputs(module: &Module, func: &str, seed: u64) -> Inputs<f64> {
    let Some(func) = module.func(func) else { panic!("no function {func:?}") };
    let mut rng = Rng::new(seed);
    let limits = limits(func);
    let params = module.params.values().map(|p| (p.name.clone(), Rc::new(draw(&mut rng, &p.ty, p.init)))).collect();
    let body = &func.regions[func.body].args;
    let ids = func.args.iter().zip(body).find(|(a, _)| a.role == ArgRole::Ids);
    let seq = ids.map_or(1, |(_, &v)| func.ty(v).shape[1]);
    let mut args = HashMap::new();
    for (arg, &value) in func.args.iter().zip(body) {
        let ty = func.ty(value);
        let mut ints = |below: usize| {
            let values: Vec<i32> = (0..ty.elements()).map(|_| rng.below(below) as i32).collect();
            Tensor { ty: ty.clone(), data: Data::Int(values) }
        };
        let tensor = match arg.role {
            ArgRole::Ids => ints(limits.rows),
            ArgRole::Labels => {
                let drawn = ints(limits.labels + 1);
                let ignore = |&label: &i32| if label as usize == limits.labels { IGNORED_LABEL } else { label };
                Tensor { ty: ty.clone(), data: Data::Int(drawn.ints().iter().map(ignore).collect()) }
            }
            ArgRole::Position => ints((limits.context + 1).saturating_sub(seq)),
            ArgRole::Valid => ints(seq + 1),
            ArgRole::Steps | ArgRole::NoGradSteps | ArgRole::GradSteps => ints(limits.steps + 1),
            ArgRole::State(init) => draw(&mut rng, ty, init),
            ArgRole::Cache | ArgRole::Input => match ty.dtype {
                DType::F32 | DType::BF16 => draw(&mut rng, ty, Init::Normal { std: 0.6 }),
                DType::I32 => ints(2),
                _ => Tensor::zeros(ty),
            },
        };
        args.insert(arg.name.clone(), Rc::new(tensor));
    }
    Inputs { params, args }
}

/// The inputs in another precision.
pub fn convert<T: Real, U: Real>(inputs: &Inputs<T>) -> Inputs<U> {
    let all = |map: &HashMap<String, Rc<Tensor<T>>>| {
        map.iter().map(|(name, tensor)| (name.clone(), Rc::new(tensor.convert()))).collect()
    };
    Inputs { params: all(&inputs.params), args: all(&inputs.args) }
}

/// The largest |difference| between two results of one function, as a fraction of the larger of 1 and the tensor's largest
/// |element|, with the name of the output. Infinite if names, types or places of NaN differ.
pub fn max_difference<T: Real, U: Real>(a: &Outputs<T>, b: &Outputs<U>) -> (f64, String) {
    let mut worst = (0.0, String::new());
    if a.tensors.len() != b.tensors.len() {
        return (f64::INFINITY, "the number of outputs".into());
    }
    for ((name, x), (other, y)) in a.tensors.iter().zip(&b.tensors) {
        let (x_values, y_values) = (x.to_f64(), y.to_f64());
        let size = x_values.iter().filter(|v| v.is_finite()).fold(1.0, |m: f64, v| m.max(v.abs()));
        let apart = |(p, q): (&f64, &f64)| match (p.is_nan(), q.is_nan()) {
            (true, true) => 0.0,
            (false, false) if p == q => 0.0,
            (false, false) => (p - q).abs() / size,
            _ => f64::INFINITY,
        };
        let same = name == other && x.ty == y.ty;
        let difference =
            if same { x_values.iter().zip(&y_values).map(apart).fold(0.0, f64::max) } else { f64::INFINITY };
        if difference > worst.0 {
            worst = (difference, name.clone());
        }
    }
    worst
}
