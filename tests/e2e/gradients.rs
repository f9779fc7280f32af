//! `rdc grad` against the gradients of the authors' code, and rematerialisation, batches and threads against each other.
use crate::support::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Per tensor: 1e-4 of its largest gradient, and 1e-6 of the model's largest.
const TENSOR: f64 = 1e-4;
const MODEL: f64 = 1e-6;

/// `rdc grad` of an example on a checkpoint folder.
#[track_caller]
fn grad(text: &str, folder: &str, inputs: &Tensors, steps: (usize, usize), args: &[&str]) -> Tensors {
    let files = crate::support::folder();
    let (input, output) = (files.path().join("in.safetensors"), files.path().join("out.safetensors"));
    write(&input, inputs);
    let (text, weights) = (repository(text), repository("tests/fixtures").join(folder));
    let path = |p: &Path| p.to_str().unwrap().to_string();
    let (n, k) = (steps.0.to_string(), steps.1.to_string());
    let (text, weights, input, out) = (path(&text), path(&weights), path(&input), path(&output));
    let mut all = vec!["grad", &text, "--hf", &weights, "--input", &input, "--output", &out];
    all.extend(["--no-grad-steps", &n, "--grad-steps", &k]);
    all.extend(args);
    ok(&all);
    read(&output)
}

/// Every gradient of the fixture, and no other parameter than those named in its report.
#[track_caller]
fn compare(what: &str, actual: &Tensors, expected: &Tensors) -> usize {
    let grads: BTreeMap<&String, &Tensor> = expected.iter().filter(|(n, _)| n.starts_with("grad.")).collect();
    let largest = |t: &Tensor| t.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let model = grads.values().map(|t| largest(t)).fold(0.0, f64::max);
    for (name, expected) in &grads {
        let actual = actual.get(*name).unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_eq!(actual.shape, expected.shape, "{what}: {name}");
        let allowed = TENSOR * largest(expected) + MODEL * model;
        let worst = actual.data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= allowed, "{what}: {name} differs by {worst:e}, allowed {allowed:e}");
        assert!(actual.data.iter().all(|x| x.is_finite()), "{what}: {name}");
    }
    grads.len()
}

fn scalar(tensors: &Tensors, name: &str) -> f64 {
    tensors[name].data[0]
}

fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(repository("tests/fixtures").join(path)).unwrap()).unwrap()
}

fn huginn_inputs(case: &Tensors, masked: bool) -> Tensors {
    let labels = if masked { "labels_masked" } else { "labels" };
    [("input_ids", "input_ids"), ("labels", labels), ("initial_state", "s0")]
        .map(|(to, from)| (to.to_string(), case[from].clone()))
        .into()
}

const CASES: [(&str, usize, usize); 5] =
    [("n3k2", 3, 2), ("n0k8", 0, 8), ("n5k1_masked", 5, 1), ("n0k1", 0, 1), ("n4k0", 4, 0)];

#[track_caller]
fn huginn(folder: &str) {
    let report = json(&format!("{folder}/f_grads.json"));
    let mut seen = 0;
    for (case, n, k) in CASES {
        let path = repository("tests/fixtures").join(folder).join(format!("f_grads_{case}.safetensors"));
        // The large file of one case is shipped for one model only; its norms are in the report of both.
        let inputs_of = if path.exists() { case } else { "n0k8" };
        let fixture = fixture(&format!("{folder}/f_grads_{inputs_of}.safetensors"));
        let inputs = huginn_inputs(&fixture, case.ends_with("masked"));
        let actual = grad("examples/huginn.rdm", folder, &inputs, (n, k), &[]);
        if path.exists() {
            seen += compare(&format!("{folder} {case}"), &actual, &fixture);
        }
        let expected = &report[case];
        let loss = expected["loss_f64"].as_f64().unwrap();
        assert!((scalar(&actual, "loss") - loss).abs() < 2e-6 * loss, "{case}: {} {loss}", scalar(&actual, "loss"));
        let norms = expected["grad_norms"].as_object().unwrap();
        let total = expected["grad_norm_f64"].as_f64().unwrap();
        for (name, norm) in norms {
            let norm = norm.as_f64().unwrap();
            let actual = &actual[&format!("grad.{name}")];
            let own = actual.data.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(
                (own - norm).abs() <= 1e-4 * norm + 1e-6 * total,
                "{case}: the norm of {name} is {own}, not {norm}"
            );
        }
        for name in expected["zero_grad_params"].as_array().unwrap() {
            let actual = &actual[&format!("grad.{}", name.as_str().unwrap())];
            assert!(actual.data.iter().all(|&x| x == 0.0), "{case}: {name} has a gradient");
        }
    }
    assert!(seen > 30, "only {seen} tensors compared");
}

#[test]
fn huginn_tiny() {
    huginn("huginn-tiny");
}

#[test]
fn huginn_odd() {
    huginn("huginn-odd");
}

/// Labels as the reference has them: the next token, and none at the end.
fn shifted(ids: &Tensor) -> Tensor {
    let seq = ids.shape[1];
    let label = |i: usize| if i % seq + 1 < seq { ids.data[i + 1] } else { -100.0 };
    Tensor::ids(&ids.shape, (0..ids.data.len()).map(label).collect())
}

fn next_token_inputs(fixture: &Tensors) -> Tensors {
    let ids = &fixture["tokens"];
    let labels = shifted(ids);
    [("input_ids".to_string(), ids.clone()), ("labels".to_string(), labels)].into()
}

#[track_caller]
fn other(text: &str, folder: &str, file: &str, loss: &str, steps: (usize, usize)) {
    let fixture = fixture(&format!("{folder}/{file}.safetensors"));
    let actual = grad(text, folder, &next_token_inputs(&fixture), steps, &["--loss", loss]);
    let key = file.strip_prefix("f_grads_").unwrap().replace("hf_loss", "hf_expected_logits_loss");
    let expected = json(&format!("{folder}/losses.json"))[&key]["f64"].as_f64().unwrap();
    let own = scalar(&actual, "loss");
    assert!((own - expected).abs() < 2e-6 * expected, "{file}: the loss is {own}, not {expected}");
    assert!(compare(file, &actual, &fixture) > 15);
}

#[test]
fn ouro_expected_logits() {
    other("examples/ouro.rdm", "ouro-tiny", "f_grads_hf_loss", "weighted", (0, 4));
}

#[test]
fn ouro_expected_loss() {
    other("examples/ouro.rdm", "ouro-tiny", "f_grads_stage1_beta0.1", "stage1", (0, 4));
}

#[test]
fn ouro_gate() {
    let fixture = fixture("ouro-tiny/f_grads_stage1_beta0.1.safetensors");
    let actual = grad("examples/ouro.rdm", "ouro-tiny", &next_token_inputs(&fixture), (0, 4), &["--loss", "stage2"]);
    let report = &json("ouro-tiny/losses.json")["stage2_gate_only"];
    let loss = report["loss_f64"].as_f64().unwrap();
    assert!((scalar(&actual, "loss") - loss).abs() < 1e-4 * loss, "{}", scalar(&actual, "loss"));
    for (name, key) in [("weight", "grad_gate_weight"), ("bias", "grad_gate_bias")] {
        let actual = &actual[&format!("grad.model.early_exit_gate.{name}")].data;
        let expected: Vec<f64> = report[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        // The slope of the target is 50: it carries the rounding of the per-step losses into the gradient.
        for (a, b) in actual.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-3 * 0.17, "{name}: {a} instead of {b}");
        }
    }
}

#[test]
fn universal_transformer_fixed() {
    other("examples/universal_transformer.rdm", "ut-tiny", "f_grads_fixed_n2k2_loss", "fixed", (2, 2));
}

#[test]
fn universal_transformer_halting() {
    other("examples/universal_transformer.rdm", "ut-tiny", "f_grads_act_ponder_loss", "act", (0, 6));
}

#[test]
fn what_is_kept_changes_no_gradient() {
    let case = fixture("huginn-odd/f_grads_n3k2.safetensors");
    let inputs = huginn_inputs(&case, false);
    let with = |args: &[&str]| grad("examples/huginn.rdm", "huginn-odd", &inputs, (3, 2), args);
    let kept = with(&["--remat", "none"]);
    for args in [&["--remat", "iteration"][..], &["--remat", "auto"], &["--remat", "auto", "--memory", "40MB"]] {
        let actual = with(args);
        for (name, expected) in &kept {
            let largest = expected.data.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
            let worst = actual[name].data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5 * largest, "{args:?}: {name} differs by {worst:e} of {largest:e}");
        }
    }
    let tight = ["--remat", "auto", "--memory", "100KB"];
    let folder = folder();
    let input = folder.path().join("in.safetensors");
    write(&input, &inputs);
    let paths =
        ["grad", "examples/huginn.rdm", "--hf", "tests/fixtures/huginn-odd", "--grad-steps", "2", "--output", "x"];
    let error = fails(&[&paths[..], &["--input", input.to_str().unwrap()], &tight].concat());
    assert!(error.contains("at least") && error.contains("100000 allowed"), "{error}");
}

#[test]
fn threads_change_no_bit() {
    let case = fixture("huginn-tiny/f_grads_n0k8.safetensors");
    let inputs = huginn_inputs(&case, false);
    let with = |threads: &str| grad("examples/huginn.rdm", "huginn-tiny", &inputs, (2, 4), &["--threads", threads]);
    let one = with("1");
    for threads in ["2", "3"] {
        assert!(with(threads) == one, "{threads} threads give other bits");
    }
}

#[test]
fn bad_input_is_one_error() {
    let case = fixture("huginn-tiny/f_grads_n0k8.safetensors");
    let files = folder();
    let input = files.path().join("in.safetensors");
    let paths = ["grad", "examples/huginn.rdm", "--hf", "tests/fixtures/huginn-tiny", "--output", "x"];
    let run = |inputs: &Tensors, args: &[&str]| {
        write(&input, inputs);
        fails(&[&paths[..], &["--input", input.to_str().unwrap()], args].concat())
    };
    let good = huginn_inputs(&case, false);
    let mut bad = good.clone();
    bad.get_mut("labels").unwrap().data[5] = 256.0;
    assert!(run(&bad, &["--grad-steps", "1"]).contains("256"));
    bad = good.clone();
    bad.remove("labels");
    assert!(run(&bad, &["--grad-steps", "1"]).contains("labels"));
    bad = good.clone();
    bad.insert("labels".into(), Tensor::ids(&[1, 3], vec![0.0; 3]));
    assert!(run(&bad, &["--grad-steps", "1"]).contains("labels"));
    assert!(run(&good, &["--grad-steps", "1", "--loss", "none"]).contains("none"));
    assert!(run(&good, &["--grad-steps", "1", "--freeze", "no.such.*"]).contains("no.such"));
    assert!(!Path::new("x").exists());
}
