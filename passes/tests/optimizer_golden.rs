//! Three steps of training, losses, gradients and updates in f64, against the authors' optimiser in f32 and a reference in
//! f64 (`g_optim.json`).
#![allow(clippy::unwrap_used)]
use rdc_frontend::{LossSelection, compile};
use rdc_ir::interp::{Inputs, Outputs, Tensor, run};
use rdc_ir::training::OptimizerKind;
use rdc_ir::{ArgRole, Func, Module, Type, verify::verify_text};
use rdc_passes::differentiate;
use rdc_passes::optimizer;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

const FOLDER: &str = "tests/fixtures/huginn-odd";
const BATCH: usize = 2;
const SEQ: usize = 12;

type Tensors = HashMap<String, Rc<Tensor<f64>>>;

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(file(FOLDER).join(name)).unwrap()).unwrap()
}

fn fixture(name: &str) -> Tensors {
    let bytes = std::fs::read(file(FOLDER).join(name)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |t: safetensors::tensor::TensorView<'_>| match t.dtype() {
        Dtype::F32 => {
            let values: Vec<f32> = t.data().chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
            Tensor::from_f32(t.shape(), &values)
        }
        _ => {
            let values: Vec<i64> = t.data().chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect();
            Tensor::from_i32(t.shape(), &values.into_iter().map(|v| v as i32).collect::<Vec<_>>())
        }
    };
    tensors.tensors().into_iter().map(|(name, tensor)| (name, Rc::new(read(tensor)))).collect()
}

/// The functions `grad` and `update`.
fn module(optimizer: OptimizerKind, decay_all: bool) -> Module {
    let options = rdc_frontend::Options {
        config: Some(json("config.json")),
        batch: BATCH,
        chunks: vec![],
        losses: LossSelection::All,
        train_seq: Some(SEQ),
        ..Default::default()
    };
    let text = std::fs::read_to_string(file("examples/huginn.rdm")).unwrap();
    let mut module = compile("huginn.rdm", &text, &options).unwrap().module;
    for id in module.params.keys() {
        module.params[id].decay |= decay_all;
    }
    let remat = rdc_ir::training::Remat::None;
    let options = differentiate::Options { max_grad_steps: 3, remat, ..Default::default() };
    differentiate::run(&mut module, &options).unwrap();
    optimizer::add(&mut module, &optimizer::Options { optimizer, ..Default::default() });
    assert_eq!(verify_text(&module), None);
    module
}

/// Runs a function and takes over what it updates.
fn call(module: &Module, func: &Func, args: Tensors, params: &mut Tensors) -> Outputs<f64> {
    let out = run(module, &func.name, &Inputs { params: params.clone(), args }, &mut Default::default()).unwrap();
    let updates = out.tensors.iter().zip(&func.outputs).filter(|(_, o)| o.updates);
    params.extend(updates.map(|((name, tensor), _)| (name.clone(), tensor.clone())));
    out
}

/// What `grad` takes: two iterations without gradient and three with, on the tokens of a batch.
fn grad_args(grad: &Func, batches: &Tensors, step: usize) -> Tensors {
    let tokens = &batches[&format!("batch{step}.tokens")];
    let columns = |from: usize| -> Tensor<f64> {
        let rows = tokens.ints().chunks(SEQ + 1).flat_map(|row| &row[from..from + SEQ]);
        Tensor::from_i32([BATCH, SEQ], &rows.copied().collect::<Vec<_>>())
    };
    let values = &grad.regions[grad.body].args;
    let given = grad.args.iter().zip(values).map(|(arg, &value)| {
        let tensor = match arg.role {
            ArgRole::Ids => columns(0),
            ArgRole::Labels => columns(1),
            ArgRole::NoGradSteps => Tensor::int(2),
            ArgRole::GradSteps => Tensor::int(3),
            ArgRole::State(_) => (*batches[&format!("batch{step}.s0")]).clone(),
            _ => Tensor::zeros(grad.ty(value)),
        };
        (arg.name.clone(), Rc::new(tensor))
    });
    given.collect()
}

struct Step {
    loss: f64,
    grad_norm: f64,
}

/// Three steps from the checkpoint with what `hyper` says of each; returns the parameters and state after them.
fn train(module: &Module, hyper: impl Fn(i32) -> Vec<(&'static str, f64)>) -> (Tensors, Vec<Step>) {
    let (checkpoint, batches) = (fixture("model.safetensors"), fixture("g_ellisadam.safetensors"));
    let start = module.params.values().map(|p| {
        let tensor = if p.state { Rc::new(Tensor::zeros(&p.ty)) } else { checkpoint[&p.name].clone() };
        (p.name.clone(), tensor)
    });
    let mut params: Tensors = start.collect();
    let (grad, update) = (module.func("grad").unwrap(), module.func("update").unwrap());
    let mut steps = Vec::new();
    for step in 0..3 {
        let out = call(module, grad, grad_args(grad, &batches, step), &mut params);
        let loss = out.get("loss").unwrap().to_f64()[0];
        let scalars = hyper(step as i32 + 1).into_iter();
        let scalars = scalars.map(|(n, v)| (n.to_string(), Rc::new(Tensor::floats_of(Type::f32([]), vec![v]))));
        let out = call(module, update, scalars.collect(), &mut params);
        steps.push(Step { loss, grad_norm: out.get("grad_norm").unwrap().to_f64()[0] });
    }
    (params, steps)
}

#[track_caller]
fn near(what: &str, value: f64, want: f64, relative: f64) {
    assert!((value - want).abs() <= relative * want.abs(), "{what} is {value}, not {want}");
}

/// The largest difference of two tensors.
fn apart(a: &Tensor<f64>, b: &Tensor<f64>) -> f64 {
    assert_eq!(a.ty, b.ty);
    a.floats().iter().zip(b.floats()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn ellis_adam_takes_the_authors_steps() {
    let report = json("g_optim.json");
    let module = module(OptimizerKind::EllisAdam, false);
    let (params, steps) = train(&module, |t| {
        let lr = report["lrs"][t as usize - 1].as_f64().unwrap();
        let decay = lr / report["init_lr"].as_f64().unwrap() * report["weight_decay"].as_f64().unwrap();
        // The reference multiplies the loss by 8, so that clipping has something to do.
        let (clip, grad_scale) = (report["grad_clip"].as_f64().unwrap(), 8.0);
        let (bias1, bias2, first) = (1.0 - 0.9f64.powi(t), 1.0 - 0.95f64.powi(t), f64::from(t == 1));
        vec![
            ("lr", lr),
            ("decay", decay),
            ("beta1", 0.9),
            ("beta2", 0.95),
            ("eps", report["eps"].as_f64().unwrap()),
            ("clip", clip),
            ("bias1", bias1),
            ("bias2", bias2),
            ("first", first),
            ("grad_scale", grad_scale),
        ]
    });
    for (step, report) in steps.iter().zip(report["steps"].as_array().unwrap()) {
        near("the loss", step.loss * 8.0, report["loss_x8_f64"].as_f64().unwrap(), 1e-7);
        near("the norm", step.grad_norm, report["grad_norm_before_clip_f64"].as_f64().unwrap(), 1e-7);
    }
    // `step1` and `step2` of the file hold what `step3` does: the state after all steps.
    let last = fixture("g_ellisadam.safetensors");
    let last: Vec<_> = last.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("step3.")?, tensor))).collect();
    assert_eq!(last.len(), 12);
    for (name, want) in last {
        let largest = want.floats().iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let allowed = if name.starts_with("exp_avg") { 1e-5 * largest } else { 1e-5 };
        let worst = apart(&params[name], want);
        assert!(worst < allowed, "{name} differs by {worst:e}");
    }
}

#[test]
fn adamw_takes_the_steps_of_torch() {
    let report = &json("g_optim.json")["torch_adamw"];
    let module = module(OptimizerKind::AdamW, true);
    let (params, steps) = train(&module, |t| {
        let (lr, decay) = (report["lr"].as_f64().unwrap(), report["weight_decay"].as_f64().unwrap());
        vec![
            ("lr", lr),
            ("decay", lr * decay),
            ("beta1", 0.9),
            ("beta2", 0.95),
            ("eps", report["eps"].as_f64().unwrap()),
            ("clip", f64::INFINITY),
            ("bias1", 1.0 - 0.9f64.powi(t)),
            ("bias2", 1.0 - 0.95f64.powi(t)),
            ("first", f64::from(t == 1)),
            ("grad_scale", 1.0),
        ]
    });
    near("the last loss", steps[2].loss, report["last_loss"].as_f64().unwrap(), 1e-6);
    let mut seen = 0;
    for (name, want) in fixture("g_torch_adamw.safetensors") {
        let name = name.strip_prefix("final.").unwrap();
        // Some gradients of these biases are of the size of eps and of the reference's rounding, and lr is 1e-3.
        let allowed = if name.ends_with("qk_bias") { 1e-4 } else { 1e-5 };
        let worst = apart(&params[name], &want);
        assert!(worst < allowed, "{name} differs by {worst:e}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}
