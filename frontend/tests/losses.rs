//! The losses of the examples: their IR, their numbers through the reference interpreter, what is reported of wrong ones.
#![allow(clippy::unwrap_used)]
mod common;

use common::{Tensors, config, fixture, lower, root};
use rdc_frontend::{LossSelection, Lowered, Options};
use rdc_ir::interp::{self, Inputs, Outputs, Real, Tensor};
use rdc_ir::{ArgRole, IGNORED_LABEL};
use std::collections::HashMap;
use std::rc::Rc;

fn options(folder: &str, (batch, length): (usize, usize)) -> Options {
    let (losses, train_seq) = (LossSelection::All, Some(length));
    Options { config: Some(config(folder)), batch, chunks: Vec::new(), losses, train_seq, ..Options::default() }
}

/// Runs a loss function.
#[track_caller]
fn run<T: Real>(
    lowered: &Lowered,
    func: &str,
    weights: &Tensors,
    (ids, labels): (&[i32], &[i32]),
    steps: usize,
    state: Option<&[f32]>,
) -> Outputs<T> {
    let params = lowered.module.params.values().map(|p| {
        let found = std::iter::once(&p.name).chain(&p.aliases).find_map(|n| weights.get(n));
        let (shape, values) = found.unwrap_or_else(|| panic!("no {}", p.name));
        (p.name.clone(), Rc::new(Tensor::from_f32(shape.clone(), values)))
    });
    let mut inputs = Inputs::<T> { params: params.collect(), args: HashMap::new() };
    let f = lowered.module.func(func).unwrap();
    for (arg, &value) in f.args.iter().zip(&f.regions[f.body].args) {
        let shape = f.ty(value).shape.clone();
        let tensor = match arg.role {
            ArgRole::Ids => Tensor::from_i32(shape, ids),
            ArgRole::Labels => Tensor::from_i32(shape, labels),
            ArgRole::Position => Tensor::zeros(f.ty(value)),
            ArgRole::Steps => Tensor::int(steps as i32),
            ArgRole::State(_) => Tensor::from_f32(shape, state.expect("needs a state")),
            other => panic!("{other:?}"),
        };
        inputs.args.insert(arg.name.clone(), Rc::new(tensor));
    }
    interp::run(&lowered.module, func, &inputs, &mut interp::Options::default()).unwrap()
}

fn loss<T: Real>(out: &Outputs<T>) -> f64 {
    let values = out.get("loss").unwrap().to_f64();
    assert_eq!(values.len(), 1);
    values[0]
}

#[track_caller]
fn agree(what: &str, found: f64, want: f64) {
    assert!((found - want).abs() <= 1e-6 * want.abs(), "{what}: {found}, not {want}");
}

fn numbers(folder: &str, file: &str) -> serde_json::Value {
    let path = root().join("tests/fixtures").join(folder).join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ints(values: &[f32]) -> Vec<i32> {
    values.iter().map(|&v| v as i32).collect()
}

#[test]
fn huginn_losses() {
    for folder in ["huginn-tiny", "huginn-odd"] {
        let (weights, json) = (fixture(folder, "model.safetensors"), numbers(folder, "f_grads.json"));
        let lowered = lower("huginn.rdm", &options(folder, (3, 17)));
        // The inputs of all cases are the same.
        let file = fixture(folder, "f_grads_n0k1.safetensors");
        let (ids, state) = (ints(&file["input_ids"].1), &file["s0"].1);
        for case in ["n3k2", "n0k8", "n5k1_masked", "n0k1", "n4k0"] {
            let labels = ints(&file[if case.contains("masked") { "labels_masked" } else { "labels" }].1);
            let steps = ["n", "k"].iter().map(|f| json[case][f].as_u64().unwrap() as usize).sum();
            let want = json[case]["loss_f64"].as_f64().unwrap();
            let out = run::<f64>(&lowered, "loss", &weights, (&ids, &labels), steps, Some(state));
            agree(&format!("{folder} {case}"), loss(&out), want);
            let correct = out.get("correct").unwrap().to_f64();
            assert!(correct.iter().zip(&labels).all(|(c, l)| *c == 0.0 || *l != IGNORED_LABEL));
            let out = run::<f32>(&lowered, "loss", &weights, (&ids, &labels), steps, Some(state));
            agree(&format!("{folder} {case} in f32"), loss(&out), want);
        }
    }
}
