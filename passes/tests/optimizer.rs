//! The optimisers in the interpreter, against formulas written for one number at a time.
#![allow(clippy::unwrap_used)]
use rdc_ir::interp::{Inputs, Real, Tensor, run};
use rdc_ir::testing::Rng;
use rdc_ir::training::OptimizerKind;
use rdc_ir::{Module, OpId, Opcode, parse, verify::verify_text};
use rdc_passes::fuse::{self, GroupKind};
use rdc_passes::optimizer::{self, Options};
use rdc_passes::tile::Cpu;
use rdc_passes::uses::Uses;
use rdc_passes::{cse, dce};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Parameters of every rank and of awkward sizes, and one that is already training state.
const MODULE: &str = r#"module "m"
param "scalar": f32[] = normal(1.0) decay
param "one": f32[1] = normal(1.0)
param "norm": f32[5] = constant(1.0)
param "w": f32[3, 4] = normal(0.1) decay
param "bias": f32[2, 1, 2, 3] = normal(0.1)
param "column": f32[6, 1] = normal(0.1) decay
param "stopped": f32[2, 2] = normal(0.1) decay
param "grad.w": f32[3, 4] = constant(0.0) state
"#;

const TRAINED: [(&str, bool); 6] =
    [("scalar", true), ("one", false), ("norm", false), ("w", true), ("bias", false), ("column", true)];

fn module(optimizer: OptimizerKind, accumulate: bool) -> Module {
    let mut module = parse(MODULE).unwrap();
    optimizer::add(&mut module, &Options { optimizer, frozen: vec!["stopped".into()], accumulate });
    assert_eq!(verify_text(&module), None);
    module
}

#[derive(Clone, Copy)]
struct Hyper {
    lr: f64,
    /// What decayed parameters lose.
    decay: f64,
    betas: [f64; 2],
    eps: f64,
    clip: f64,
    grad_scale: f64,
}

/// Parameters and state by name.
type State = HashMap<String, Vec<f64>>;

fn random_state(module: &Module, rng: &mut Rng) -> State {
    let zero_or = |p: &rdc_ir::Param, rng: &mut Rng| {
        (0..p.ty.elements()).map(|_| if p.state { 0.0 } else { rng.unit() as f64 }).collect()
    };
    module.params.values().map(|p| (p.name.clone(), zero_or(p, rng))).collect()
}

/// Gradients of sizes from below eps to some hundreds.
fn random_grads(module: &Module, rng: &mut Rng) -> State {
    let mut draw = || 10f64.powi(rng.below(10) as i32 - 7) * rng.unit() as f64;
    TRAINED.iter().map(|(name, _)| (name.to_string(), (0..elements(module, name)).map(|_| draw()).collect())).collect()
}

fn elements(module: &Module, name: &str) -> usize {
    module.param(name).unwrap().ty.elements()
}

/// Runs a function and updates the state; returns the other results.
fn call<T: Real>(module: &Module, func: &str, scalars: &[(&str, f64)], state: &mut State) -> Vec<f64> {
    let tensor = |ty: &rdc_ir::Type, values: &[f64]| {
        Rc::new(Tensor::floats_of(ty.clone(), values.iter().map(|&v| T::from_f64(v)).collect()))
    };
    let params = module.params.values().map(|p| (p.name.clone(), tensor(&p.ty, &state[&p.name]))).collect();
    let args = scalars.iter().map(|(n, v)| (n.to_string(), tensor(&rdc_ir::Type::f32([]), &[*v]))).collect();
    let results = run(module, func, &Inputs { params, args }, &mut Default::default()).unwrap();
    let outputs = &module.func(func).unwrap().outputs;
    let mut rest = Vec::new();
    for ((name, tensor), output) in results.tensors.iter().zip(outputs) {
        if output.updates {
            state.insert(name.clone(), tensor.to_f64());
        } else {
            rest.extend(tensor.to_f64());
        }
    }
    rest
}

/// Step `t`, from 1, on the gradients in the state; returns the norm.
fn step<T: Real>(module: &Module, hyper: &Hyper, t: i32, state: &mut State) -> f64 {
    let [b1, b2] = hyper.betas;
    let scalars = [
        ("lr", hyper.lr),
        ("decay", hyper.decay),
        ("beta1", b1),
        ("beta2", b2),
        ("eps", hyper.eps),
        ("clip", hyper.clip),
        ("bias1", 1.0 - b1.powi(t)),
        ("bias2", 1.0 - b2.powi(t)),
        ("first", f64::from(t == 1)),
        ("grad_scale", hyper.grad_scale),
    ];
    call::<T>(module, "update", &scalars, state)[0]
}

/// The same step, written down again.
fn expected(optimizer: OptimizerKind, hyper: &Hyper, t: i32, grads: &State, state: &mut State) -> f64 {
    let Hyper { lr, decay, betas: [b1, b2], eps, clip, grad_scale } = *hyper;
    let norm = grads.values().flatten().map(|g| (g * grad_scale).powi(2)).sum::<f64>().sqrt();
    let clip = (clip / (norm + 1e-6)).min(1.0);
    for (name, decays) in TRAINED {
        let grads: Vec<f64> = grads[name].iter().map(|g| g * grad_scale * clip).collect();
        let mut take = |prefix: &str| state.remove(&format!("{prefix}{name}")).unwrap();
        let (mut p, mut m, mut v) = (take(""), take("exp_avg."), take("exp_avg_sq."));
        let (c1, c2) = (1.0 - b1.powi(t), (1.0 - b2.powi(t)).sqrt());
        let mut lr = lr;
        for (i, g) in grads.iter().enumerate() {
            if optimizer == OptimizerKind::EllisAdam && t == 1 {
                (m[i], v[i]) = (*g, g * g);
            }
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            if optimizer == OptimizerKind::EllisAdam {
                v[i] = v[i].max(eps * eps);
            }
        }
        if optimizer == OptimizerKind::EllisAdam {
            let mean = grads.iter().zip(&v).map(|(g, v)| g * g / v).sum::<f64>() / grads.len() as f64;
            lr /= mean.sqrt().max(1.0);
        }
        for i in 0..grads.len() {
            if decays {
                p[i] *= 1.0 - decay;
            }
            p[i] -= match optimizer {
                OptimizerKind::AdamW => lr / c1 * m[i] / (v[i].sqrt() / c2 + eps),
                OptimizerKind::EllisAdam => lr / c1 * m[i].atan2(v[i].sqrt() / c2),
            };
        }
        for (prefix, values) in [("", p), ("exp_avg.", m), ("exp_avg_sq.", v)] {
            state.insert(format!("{prefix}{name}"), values);
        }
    }
    norm
}

/// The largest difference, as a fraction of the tensor's largest element.
fn difference(a: &State, b: &State) -> f64 {
    assert_eq!(a.len(), b.len());
    let of = |(name, x): (&String, &Vec<f64>)| {
        let largest = x.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
        let apart = x.iter().zip(&b[name]).map(|(p, q)| (p - q).abs() / largest);
        assert!(x.iter().all(|v| v.is_finite()), "{name}: {x:?}");
        apart.fold(0.0, f64::max)
    };
    a.iter().map(of).fold(0.0, f64::max)
}

const HYPER: Hyper = Hyper { lr: 0.02, decay: 0.003, betas: [0.9, 0.95], eps: 1e-6, clip: 1.0, grad_scale: 0.25 };

fn follows_the_formula<T: Real>(optimizer: OptimizerKind, tolerance: f64) {
    let module = module(optimizer, false);
    let mut rng = Rng::new(7);
    for clip in [1.0, f64::INFINITY] {
        let mut state = random_state(&module, &mut rng);
        let mut want = state.clone();
        for t in 1..=6 {
            // The schedule moves.
            let hyper = Hyper { lr: HYPER.lr * f64::from(t), decay: HYPER.decay / f64::from(t), clip, ..HYPER };
            let grads = random_grads(&module, &mut rng);
            for (name, grad) in &grads {
                state.insert(format!("grad.{name}"), grad.clone());
                want.insert(format!("grad.{name}"), grad.clone());
            }
            let (norm, right) =
                (step::<T>(&module, &hyper, t, &mut state), expected(optimizer, &hyper, t, &grads, &mut want));
            assert!((norm - right).abs() < tolerance * right, "{norm} {right}");
            let apart = difference(&want, &state);
            assert!(apart < tolerance, "{optimizer:?} differs by {apart} after step {t}");
        }
    }
}

#[test]
fn adamw_follows_the_formula() {
    follows_the_formula::<f64>(OptimizerKind::AdamW, 1e-12);
    follows_the_formula::<f32>(OptimizerKind::AdamW, 2e-5);
}

#[test]
fn ellis_adam_follows_the_formula() {
    follows_the_formula::<f64>(OptimizerKind::EllisAdam, 1e-12);
    follows_the_formula::<f32>(OptimizerKind::EllisAdam, 2e-5);
}

#[test]
fn first_steps_are_of_the_known_size() {
    for (optimizer, size) in [(OptimizerKind::AdamW, 1.0), (OptimizerKind::EllisAdam, 10.0 * 0.05f64.sqrt().atan())] {
        let module = module(optimizer, false);
        let mut state = random_state(&module, &mut Rng::new(1));
        let before = state.clone();
        for (name, _) in TRAINED {
            state.insert(format!("grad.{name}"), vec![-0.125; elements(&module, name)]);
        }
        step::<f64>(&module, &Hyper { decay: 0.0, eps: 1e-9, ..HYPER }, 1, &mut state);
        for (name, _) in TRAINED {
            for (new, old) in state[name].iter().zip(&before[name]) {
                assert!(((new - old) / HYPER.lr - size).abs() < 1e-6, "{optimizer:?}: {}", (new - old) / HYPER.lr);
            }
        }
        assert_eq!(state["stopped"], before["stopped"]);
    }
}

#[test]
fn only_trained_parameters_have_state() {
    for accumulate in [false, true] {
        let module = module(OptimizerKind::AdamW, accumulate);
        let names: Vec<&str> = module.params.values().skip(7).map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), 6 * if accumulate { 4 } else { 3 });
        assert!(names.iter().all(|n| !n.contains("stopped") && !n.contains("grad.grad")), "{names:?}");
        assert!(module.params.values().skip(7).all(|p| p.state && !p.decay && !p.in_stack));
        assert_eq!(module.func("accumulate").is_some(), accumulate);
    }
}

#[test]
fn sums_of_gradients_are_what_is_used() {
    let (summed, plain) = (module(OptimizerKind::AdamW, true), module(OptimizerKind::AdamW, false));
    let mut rng = Rng::new(3);
    let mut state = random_state(&summed, &mut rng);
    let mut want = random_state(&plain, &mut Rng::new(3));
    // What is left of a failed step must not matter.
    state.get_mut("sum.w").unwrap()[0] = f64::NAN;
    state.get_mut("sum.norm").unwrap()[1] = f64::INFINITY;
    let mut total: State = HashMap::new();
    for keep in [0.0, 1.0, 0.75] {
        for (name, grad) in random_grads(&summed, &mut rng) {
            let sum = total.entry(format!("grad.{name}")).or_insert_with(|| vec![0.0; grad.len()]);
            sum.iter_mut().zip(&grad).for_each(|(sum, g)| *sum = keep * *sum + g);
            state.insert(format!("grad.{name}"), grad);
        }
        assert_eq!(call::<f64>(&summed, "accumulate", &[("keep", keep)], &mut state), []);
    }
    want.extend(total.clone());
    let norms = (step::<f64>(&summed, &HYPER, 1, &mut state), step::<f64>(&plain, &HYPER, 1, &mut want));
    assert!((norms.0 - norms.1).abs() < 1e-12 * norms.1, "{norms:?}");
    for (name, _) in TRAINED {
        state.insert(format!("grad.{name}"), total[&format!("grad.{name}")].clone());
        let sum = state.remove(&format!("sum.{name}")).unwrap();
        assert!(sum.iter().zip(&state[&format!("grad.{name}")]).all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs()));
    }
    assert!(difference(&want, &state) < 1e-12);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for optimizer in [OptimizerKind::AdamW, OptimizerKind::EllisAdam] {
        let module = module(optimizer, false);
        let mut rng = Rng::new(5);
        let mut state = random_state(&module, &mut rng);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for (name, grad) in random_grads(&module, &mut rng) {
                state.insert(format!("grad.{name}"), grad);
            }
            state.get_mut("grad.bias").unwrap()[3] = bad;
            let mut before = state.clone();
            assert!(!step::<f64>(&module, &HYPER, 1, &mut state).is_finite());
            // NaN is not equal to itself.
            before.remove("grad.bias");
            state.remove("grad.bias");
            assert_eq!(state, before);
            state.insert("grad.bias".into(), vec![0.0; 12]);
        }
    }
}

#[test]
fn a_tensor_takes_few_kernels() {
    const CPU: Cpu = Cpu { lanes: 8, mr: 6, nr: 16, l1: 32 << 10, l2: 512 << 10 };
    for (optimizer, kernels) in [(OptimizerKind::AdamW, 2), (OptimizerKind::EllisAdam, 3)] {
        let mut module = module(optimizer, false);
        cse::run(&mut module);
        dce::run(&mut module);
        let func = fuse::normalise::normalise(module.func("update").unwrap(), &CPU);
        let is_leaf = |&op: &OpId| matches!(func.ops[op].opcode, Opcode::Param | Opcode::Constant);
        let leaves: HashSet<OpId> = func.walk().into_iter().map(|(_, op)| op).filter(is_leaf).collect();
        let groups = fuse::groups(&func, &Uses::new(&func), &leaves, func.body, &CPU);
        // Only "w" has three rows, and "bias" is the only one of four.
        for rows in [3, 4] {
            assert_eq!(groups.iter().filter(|g| g.kind == GroupKind::Rows(rows)).count(), kernels, "{optimizer:?}");
        }
        let scalars = |op: &OpId| func.ops[*op].results.iter().all(|&v| func.ty(v).rank() == 0);
        assert!(groups.iter().filter(|g| g.kind == GroupKind::Generic).all(|g| g.ops.iter().all(scalars)));
    }
}

#[test]
fn a_module_without_trained_parameters_has_an_update_of_nothing() {
    let mut module = parse("module \"m\"\nparam \"w\": f32[2] = normal(1.0)").unwrap();
    optimizer::add(&mut module, &Options { frozen: vec!["w".into()], accumulate: true, ..Options::default() });
    assert_eq!(verify_text(&module), None);
    let mut state = random_state(&module, &mut Rng::new(1));
    assert_eq!(step::<f64>(&module, &HYPER, 1, &mut state), 0.0);
}
