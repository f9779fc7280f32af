//! The functions of the optimiser: `update`, and `accumulate` for gradients of several batches.
//!
//! Gradients, moments and sums are state parameters of the module, one for each parameter that is trained: `grad.NAME`,
//! `exp_avg.NAME`, `exp_avg_sq.NAME`, `sum.NAME`. Hyperparameters are scalar inputs, since they follow a schedule; the
//! caller computes them in f64.
//!
//! # `update`
//! Inputs, all `f32[]`: `lr`; `decay`, what a parameter with weight decay loses (`lr * wd` for AdamW, `lr / initial lr * wd`
//! for EllisAdam); `beta1`, `beta2`, `eps`; `clip`, the largest norm (infinity for none); `bias1` = 1 - beta1^t and
//! `bias2` = 1 - beta2^t at step t = 1, 2 ..; `first`, 1 at the first step, else 0; `grad_scale`, which the gradient is
//! multiplied by first.
//! Outputs: `grad_norm: f32[]`, the norm of the scaled gradient of all parameters before clipping, and the new parameters and
//! moments. If `grad_norm` is not finite, these are the old ones.
//!
//! The gradient g is multiplied by `min(1, clip / (grad_norm + 1e-6))`. Then, element by element, with θ the parameter times
//! `1 - decay` (if it decays), m = `exp_avg` and v = `exp_avg_sq`:
//!
//! **AdamW** (Loshchilov and Hutter, arXiv:1711.05101, as `torch.optim.AdamW`):
//! m ← m + (1 - β1)(g - m); v ← β2 v + (1 - β2) g²; θ ← θ - lr / bias1 · m / (√v / √bias2 + eps).
//!
//! **EllisAdam** (the optimiser of arXiv:2502.05171; update clipping of arXiv:2304.13013 and the arc tangent of
//! arXiv:2407.05872 instead of a division): at the first step m ← g and v ← g² come before all else; then m and v as above, and
//! v ← max(v, eps²) for good. With ρ the root of the mean of g²/v over the tensor,
//! θ ← θ - lr / max(1, ρ) / bias1 · atan2(m, √v / √bias2).
//!
//! # `accumulate`
//! Input: `keep: f32[]`. Each `sum.NAME` becomes `grad.NAME` plus `keep` times what it was; if `keep` is 0, nothing of what it
//! was remains, NaN neither. A factor other than 1 weighs batches with different numbers of targets.
//!
//! # Form
//! Tensors are seen as rows and columns, so that fusion makes of each one row kernel for its share of the norm and one for its
//! update (with EllisAdam: one up to ρ, and one after it).
mod rows;
mod update;

use rdc_ir::training::OptimizerKind;
use rdc_ir::{Builder, DType, Func, Module, Opcode, Param, Type};
use rows::{scalar_input, view};

/// The prefix of a gradient's name.
pub const GRAD: &str = "grad.";
/// The prefix of the name of a gradient summed over batches.
pub const SUM: &str = "sum.";
/// The prefix of a first moment's name.
pub const EXP_AVG: &str = "exp_avg.";
/// The prefix of a second moment's name.
pub const EXP_AVG_SQ: &str = "exp_avg_sq.";

/// What the functions do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The formula, see the [module documentation](self).
    pub optimizer: OptimizerKind,
    /// Names of the parameters that are not updated.
    pub frozen: Vec<String>,
    /// Whether gradients are summed over batches: `update` reads `sum.NAME`, and there is `accumulate`.
    pub accumulate: bool,
}

/// A parameter that is trained.
struct Trained {
    name: String,
    ty: Type,
    decay: bool,
}

/// Adds the state and the functions of the optimiser to a module.
pub fn add(module: &mut Module, options: &Options) {
    let trained = module.params.values().filter(|p| !p.state && !options.frozen.contains(&p.name));
    let trained: Vec<Trained> =
        trained.map(|p| Trained { name: p.name.clone(), ty: p.ty.clone(), decay: p.decay }).collect();
    let sums: &[&str] = if options.accumulate { &[SUM] } else { &[] };
    for prefix in [&[GRAD], sums, &[EXP_AVG, EXP_AVG_SQ]].concat() {
        trained.iter().for_each(|param| add_state(module, prefix, param));
    }
    if options.accumulate {
        module.funcs.push(accumulate(&trained));
    }
    module.funcs.push(update::function(&trained, options));
}

/// Adds a state parameter like `param`, unless there is one.
fn add_state(module: &mut Module, prefix: &str, param: &Trained) {
    let name = format!("{prefix}{}", param.name);
    if module.param(&name).is_some() {
        return;
    }
    module.params.push(Param::training_state(name, param.ty.clone()));
}

fn accumulate(trained: &[Trained]) -> Func {
    let mut func = Func::new("accumulate");
    let b = &mut Builder::new(&mut func);
    let keep = scalar_input(b, "keep");
    let zero = b.constant(0.0, DType::F32);
    let keeps = b.map(Opcode::Lt, &[zero, keep]);
    for param in trained {
        let (sum, grad) = (view(b, SUM, param), view(b, GRAD, param));
        let kept = b.map(Opcode::Mul, &[sum, keep]);
        let kept = b.map(Opcode::Select, &[keeps, kept, zero]);
        let sum = b.map(Opcode::Add, &[kept, grad]);
        rows::update(b, SUM, param, sum);
    }
    func
}
