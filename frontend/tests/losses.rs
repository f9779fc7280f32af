//! The losses of the examples: their IR, their numbers through the reference interpreter, what is reported of wrong ones.
#![allow(clippy::unwrap_used)]
mod common;

use common::{Tensors, config, fixture, lower, root};
use rdc_frontend::{LossSelection, Lowered, Options, compile, render};
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

/// Tokens `[3, 18]` as inputs of `length` positions and the labels of these; past the end there is none.
fn shifted(file: &Tensors, length: usize) -> (Vec<i32>, Vec<i32>) {
    let tokens = ints(&file["tokens"].1);
    let rows = || tokens.chunks_exact(18);
    let label = |row: &[i32], i: usize| row.get(i + 1).copied().unwrap_or(IGNORED_LABEL);
    (
        rows().flat_map(|row| row[..length].to_vec()).collect(),
        rows().flat_map(|row| (0..length).map(|i| label(row, i)).collect::<Vec<_>>()).collect(),
    )
}

/// Compares a loss with the number of a fixture, with and without a position that has no label.
#[track_caller]
fn check(folder: &str, text: &str, sets: &[(&str, &str)], func: &str, file: &str, want: f64) {
    let (weights, file) = (fixture(folder, "model.safetensors"), fixture(folder, file));
    for length in [17, 18] {
        let mut options = options(folder, (3, length));
        options.overrides.extend(sets.iter().map(|(n, v)| (n.to_string(), v.to_string())));
        let lowered = lower(text, &options);
        let (ids, labels) = shifted(&file, length);
        let steps = if func == "loss.act" { 6 } else { 4 };
        let out = run::<f64>(&lowered, func, &weights, (&ids, &labels), steps, None);
        agree(&format!("{text} {func} of {length}"), loss(&out), want);
        let out = run::<f32>(&lowered, func, &weights, (&ids, &labels), steps, None);
        agree(&format!("{text} {func} of {length} in f32"), loss(&out), want);
    }
}

#[test]
fn ouro_losses() {
    let json = numbers("ouro-tiny", "losses.json");
    let number = |key: &str, field: &str| json[key][field].as_f64().unwrap();
    let check = |sets: &[(&str, &str)], func: &str, file: &str, want: f64| {
        check("ouro-tiny", "ouro.rdm", sets, func, file, want);
    };
    let (stage1, hf) = ("f_grads_stage1_beta0.1.safetensors", "f_grads_hf_loss.safetensors");
    check(&[], "loss", stage1, number("stage1_beta0.1", "f64"));
    check(&[("beta", "0.05")], "loss", stage1, number("stage1_beta0.05", "f64"));
    check(&[], "loss.weighted", hf, number("hf_expected_logits_loss", "f64"));
    check(&[], "loss.stage2", stage1, number("stage2_gate_only", "loss_f64"));
}

/// Only the gate has a derivative, so that differences of the loss show it.
#[test]
fn ouro_stage2_by_differences() {
    let json = numbers("ouro-tiny", "losses.json");
    let mut weights = fixture("ouro-tiny", "model.safetensors");
    let (ids, labels) = shifted(&fixture("ouro-tiny", "f_grads_hf_loss.safetensors"), 17);
    let lowered = lower("ouro.rdm", &options("ouro-tiny", (3, 17)));
    let mut moved = |to: f32| {
        weights.get_mut("model.early_exit_gate.bias").unwrap().1[0] = to;
        loss(&run::<f64>(&lowered, "loss.stage2", &weights, (&ids, &labels), 4, None))
    };
    let bias = fixture("ouro-tiny", "model.safetensors")["model.early_exit_gate.bias"].1[0];
    let h = 1.0 / 256.0;
    let slope = (moved(bias + h) - moved(bias - h)) / f64::from((bias + h) - (bias - h));
    let want = json["stage2_gate_only"]["grad_gate_bias"][0].as_f64().unwrap();
    assert!((slope - want).abs() < 1e-5, "{slope}, not {want}");
}

/// A step that did not run has no part in a loss of all steps.
#[test]
fn steps_that_do_not_run_do_not_count() {
    let weights = fixture("ouro-tiny", "model.safetensors");
    let (ids, labels) = shifted(&fixture("ouro-tiny", "f_grads_hf_loss.safetensors"), 17);
    for func in ["loss", "loss.stage2"] {
        let of = |max_steps: usize| {
            let options = Options { max_steps: Some(max_steps), ..options("ouro-tiny", (3, 17)) };
            loss(&run::<f64>(&lower("ouro.rdm", &options), func, &weights, (&ids, &labels), 3, None))
        };
        let (few, many) = (of(3), of(6));
        assert!((few - many).abs() < 1e-12, "{func}: {few}, {many}");
    }
}

#[test]
fn universal_transformer_losses() {
    let json = numbers("ut-tiny", "losses.json");
    for (func, case) in [("loss", "fixed_n2k2_loss"), ("loss.act", "act_ponder_loss")] {
        let want = json[case]["f64"].as_f64().unwrap();
        check("ut-tiny", "universal_transformer.rdm", &[], func, &format!("f_grads_{case}.safetensors"), want);
    }
}

fn small(sets: &[(&str, &str)], losses: LossSelection) -> Options {
    let overrides = sets.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let (chunks, context, train_seq) = (Vec::new(), Some(16), Some(5));
    Options { overrides, chunks, context, batch: 2, losses, train_seq, ..Options::default() }
}

const SIZES: [(&str, &str); 4] = [("vocab", "32"), ("dim", "8"), ("heads", "2"), ("inner", "12")];

#[test]
fn huginn_ir() {
    let layers = [("layers_prelude", "0"), ("layers_core", "1"), ("layers_coda", "0"), ("steps", "2")];
    let options = small(&[&SIZES[..], &layers].concat(), LossSelection::All);
    insta::assert_snapshot!(lower("huginn.rdm", &options).module.to_string());
}

#[test]
fn ouro_ir() {
    let losses = LossSelection::Only(vec!["stage2".into(), "stage1".into()]);
    let lowered = lower("ouro.rdm", &small(&[&SIZES[..], &[("layers", "1")]].concat(), losses));
    insta::assert_snapshot!(lowered.module.to_string());
}

#[test]
fn universal_transformer_ir() {
    let losses = LossSelection::Only(vec!["act".into()]);
    insta::assert_snapshot!(lower("universal_transformer.rdm", &small(&SIZES, losses)).module.to_string());
}

#[test]
fn losses_are_known_and_selected() {
    let names = |lowered: &Lowered| lowered.module.funcs.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    let sets = [&SIZES[..], &[("layers", "1")]].concat();
    let all = lower("ouro.rdm", &small(&sets, LossSelection::All));
    assert_eq!(names(&all), ["loss", "loss.weighted", "loss.stage2"]);
    assert_eq!((all.chunks.len(), all.train_seq, all.context), (0, 5, 16));

    let one = Options { chunks: vec![4], ..small(&sets, LossSelection::Only(vec!["weighted".into()])) };
    let readouts = Some(vec!["last".into()]);
    let one = lower("ouro.rdm", &Options { readouts, ..one });
    assert_eq!(names(&one), ["prefill", "loss.weighted"]);
    let none = Options { chunks: vec![4], ..small(&sets, LossSelection::None) };
    let none = lower("ouro.rdm", &none);
    assert_eq!(names(&none), ["prefill", "prefill.weighted", "prefill.exit"]);
    assert_eq!((&one.losses, &none.losses), (&all.losses, &all.losses));
    // What is selected changes neither which weights there are nor their order.
    let params = |l: &Lowered| l.module.params.values().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!((params(&one), params(&all)), (params(&none), params(&none)));

    let info = |l: &Lowered| {
        let short =
            |i: &rdc_frontend::LossInfo| format!("{} {} {} {}", i.name, i.readout, i.outputs.join("+"), i.all_steps);
        l.losses.iter().map(short).collect::<Vec<_>>()
    };
    let ouro = ["stage1 last loss+correct true", "weighted weighted loss+correct false", "stage2 last loss true"];
    assert_eq!(info(&all), ouro);
    assert_eq!(all.default_loss.as_deref(), Some("stage1"));
    let act = lower("universal_transformer.rdm", &small(&SIZES, LossSelection::Only(vec!["fixed".into()])));
    assert_eq!(info(&act), ["fixed fixed loss+correct false", "act act loss+correct+steps_taken true"]);
    // A loss that does not use the halting unit leaves it in the model.
    assert!(act.module.param("halt.weight").is_some());
    let shallow = lower("ouro.rdm", &Options { max_steps: Some(1), ..small(&sets, LossSelection::All) });
    assert_eq!(shallow.losses.len(), 2);
}

#[test]
fn wrong_selections_are_reported() {
    let text = common::example("huginn.rdm");
    let pages = [
        (text.clone(), small(&SIZES, LossSelection::Only(vec!["next_tokn".into()]))),
        (text.clone(), Options { train_seq: Some(20), ..small(&SIZES, LossSelection::All) }),
        (text[..text.find("  # The mean over").unwrap()].to_string() + "}", small(&SIZES, LossSelection::All)),
    ]
    .map(|(text, options)| {
        render(&compile("huginn.rdm", &text, &options).map(|l| l.sizes).unwrap_err(), "huginn.rdm", &text)
    });
    insta::assert_snapshot!(pages.join("\n"));
}

/// Every way to write a loss wrongly, as it is reported.
#[test]
fn wrong_losses_are_reported() {
    let model = |losses: &str| {
        format!(
            "model M {{\n  size vocab = 32, dim = 8, context = 16\n  weight w: [vocab, dim] = 0\n  readout last, mean\n  \
             prelude (input_ids) -> h {{ let h = gather(w, input_ids) }}\n  \
             core (h = h) -> h loop default 2 {{ let h = tanh(h) collect states = h }}\n  \
             coda (h) -> logits {{ let logits = linear(h, w) }}\n{losses}\n}}\n"
        )
    };
    let pages = [
        "  loss a (logits, labels) -> loss {\n    let loss = cross_entropy(logits, labels)\n  }",
        "  loss a (logits, labels) -> loss {\n    let nll, correct = cross_entropy(logits, labels)\n    let loss = nll\n  }",
        "  loss a (logits, labels) -> nll {\n    let nll, correct = cross_entropy(logits, labels)\n  }",
        "  loss a (logit, labels) for lats -> loss {\n    let loss = mean(logit)\n  }",
        "  loss a (logit, labels) for last -> loss {\n    let loss = mean(logit)\n  }",
        "  loss a (logits, labels) -> loss {\n    let loss = mean(logits)\n  }",
        "  loss a (states, labels) -> loss {\n    let nll, correct = cross_entropy(states, slice(labels, 1, 0, 3))\n    let loss = mean(nll)\n  }",
        "  loss a (logits, labels) -> loss {\n    let nll, c = cross_entropy(logits, labels, z_loss = -1)\n    let loss = mean(nll)\n  }",
        "  loss a (logits, labels) -> loss {\n    weight v: [dim] = 0\n    collect x = logits\n    let loss = mean(logits)\n  }",
        "  loss a (logits = 0, labels) -> loss {\n    let loss = mean(logits)\n  }",
        "  state labels: [B, S] = 0\n  loss a (logits, labels) -> loss {\n    let loss = mean(logits)\n  }",
    ]
    .map(|losses| {
        let text = model(losses);
        // They are reported whether or not losses are compiled.
        let found = compile("m.rdm", &text, &Options::default()).map(|l| l.sizes).unwrap_err();
        render(&found, "m.rdm", &text)
    });
    insta::assert_snapshot!(pages.join("\n"));
}
