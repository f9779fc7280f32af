//! What a user gets wrong: a failing exit code and one clear message, never a panic.
use crate::support::*;
use std::path::Path;

const TEXT: &str = "examples/huginn.rdm";
const HF: &str = "tests/fixtures/huginn-tiny";

fn ids(shape: &[usize], id: f64) -> Tensor {
    Tensor::ids(shape, vec![id; shape.iter().product()])
}

/// `rdc run` that must fail; returns stderr.
#[track_caller]
fn run_fails(file: &Path, inputs: &Tensors, args: &[&str]) -> String {
    let folder = folder();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    write(&input, inputs);
    let file = file.to_str().unwrap();
    let paths = ["run", file, "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let errors = fails(&[&paths, args].concat());
    assert!(!output.exists(), "a failed run wrote an output");
    errors
}

fn small() -> std::path::PathBuf {
    artifact(&[TEXT, "--batch", "2", "--seq", "12", "--hf", HF])
}

#[track_caller]
fn says(errors: &str, words: &[&str]) {
    for word in words {
        assert!(errors.contains(word), "no `{word}` in:\n{errors}");
    }
}

#[test]
fn unknown_flags_and_values() {
    says(&fails(&["compile", TEXT, "--dtpe", "f32"]), &["--dtpe", "--dtype"]);
    says(&fails(&["compile", TEXT, "--dtype", "f64"]), &["f64", "bf16"]);
    says(&fails(&["compile", TEXT, "--batch", "0"]), &["--batch", "at least 1"]);
    says(&fails(&["compile", TEXT, "--kv", "modulo:0"]), &["modulo:0", "--kv"]);
    says(&fails(&["compile", TEXT, "--kv", "ring"]), &["ring", "anchor"]);
    says(&fails(&["compile", TEXT, "--kv-dtype", "i8"]), &["i8", "bf16"]);
    says(&fails(&["compile", TEXT, "--target", "z80"]), &["z80", "x86-64-v3"]);
    says(&fails(&["compile", TEXT, "--set", "dmi=64"]), &["dmi", "dim"]);
    says(&fails(&["compile", TEXT, "--emit", "ir", "--after", "hoits"]), &["hoits", "hoist"]);
}

#[test]
fn files_that_are_not_there_or_not_what_they_seem() {
    says(&fails(&["compile", "examples/nothing.rdm"]), &["examples/nothing.rdm"]);
    says(&fails(&["compile", TEXT, "--hf", "no/such/folder"]), &["no/such/folder"]);
    says(&fails(&["inspect", "no/such.rda"]), &["no/such.rda"]);
    let folder = folder();
    let path = folder.path().join("model.rda");
    std::fs::write(&path, b"not an artifact").unwrap();
    says(&fails(&["inspect", path.to_str().unwrap()]), &["model.rda"]);
    let input = folder.path().join("in.safetensors");
    std::fs::write(&input, b"xx").unwrap();
    let artifact = small();
    let args = ["run", artifact.to_str().unwrap(), "--input", input.to_str().unwrap(), "--output", "out.safetensors"];
    says(&fails(&args), &["in.safetensors"]);
}

#[test]
fn mistakes_in_the_text_are_all_reported_with_their_places() {
    let folder = folder();
    let path = folder.path().join("broken.rdm");
    let text = std::fs::read_to_string(repository(TEXT)).unwrap();
    let broken = text.replace("rms_norm(", "rms_nrm(");
    assert_ne!(text, broken);
    std::fs::write(&path, broken).unwrap();
    says(&fails(&["compile", path.to_str().unwrap()]), &["broken.rdm", "rms_nrm", "rms_norm"]);
}

#[test]
fn truncated_and_flipped_artifacts() {
    let artifact = small();
    let bytes = std::fs::read(&artifact).unwrap();
    let folder = folder();
    let path = folder.path().join("cut.rda");
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        says(&run_fails(&path, &inputs(&ids(&[2, 12], 1.0), None), &[]), &["cut.rda"]);
    }
    for place in [0, 9, 64, bytes.len() / 3, bytes.len() / 2, bytes.len() - 100] {
        let mut flipped = bytes.clone();
        flipped[place] ^= 0x10;
        std::fs::write(&path, &flipped).unwrap();
        says(&run_fails(&path, &inputs(&ids(&[2, 12], 1.0), None), &[]), &["cut.rda"]);
    }
}

#[test]
fn inputs_that_do_not_fit() {
    let artifact = small();
    let good = inputs(&ids(&[2, 12], 1.0), None);
    says(&run_fails(&artifact, &Tensors::new(), &[]), &["input_ids"]);
    says(&run_fails(&artifact, &inputs(&ids(&[2, 12], 256.0), None), &[]), &["256", "0 to 255"]);
    says(&run_fails(&artifact, &inputs(&ids(&[2, 12], -1.0), None), &[]), &["-1"]);
    says(&run_fails(&artifact, &inputs(&ids(&[3, 12], 1.0), None), &[]), &["--batch"]);
    says(&run_fails(&artifact, &inputs(&ids(&[2, 129], 1.0), None), &[]), &["128", "--context"]);
    says(
        &run_fails(&artifact, &inputs(&ids(&[2, 12], 1.0), Some(&Tensor::zeros(&[2, 12, 63]))), &[]),
        &["initial_state"],
    );
    says(&run_fails(&artifact, &good, &["--steps", "1000000"]), &["1000000", "--max-steps"]);
    says(&run_fails(&artifact, &good, &["--readout", "nothing"]), &["nothing"]);
    says(&run_fails(&artifact, &good, &["--chunks", "5,6"]), &["--chunks", "[5, 6]", "12"]);
}

#[test]
fn compile_flags_must_agree_with_the_artifact() {
    let artifact = small();
    let good = inputs(&ids(&[2, 12], 1.0), None);
    for (flag, value) in [
        ("--dtype", "bf16"),
        ("--kv", "anchor"),
        ("--kv-dtype", "bf16"),
        ("--max-steps", "5"),
        ("--batch", "3"),
        ("--context", "64"),
    ] {
        says(&run_fails(&artifact, &good, &[flag, value]), &[flag]);
    }
    run(&artifact, &good, &["--dtype", "f32", "--kv", "full", "--kv-dtype", "f32", "--batch", "2", "--seq", "12"]);
}

#[test]
fn checkpoints_that_do_not_fit_are_reported_at_once() {
    let folder = folder();
    let mut weights = read(&repository(HF).join("model.safetensors"));
    let moved = weights.remove("transformer.ln_f.weight").unwrap();
    weights.insert("transformer.ln_g.weight".into(), moved);
    weights.insert("transformer.adapter.weight".into(), Tensor::zeros(&[64, 64]));
    write(&folder.path().join("model.safetensors"), &weights);
    std::fs::copy(repository(HF).join("config.json"), folder.path().join("config.json")).unwrap();
    let errors = fails(&["compile", TEXT, "--hf", folder.path().to_str().unwrap(), "-o", "/dev/null"]);
    says(&errors, &["transformer.ln_f.weight", "transformer.ln_g.weight", "transformer.adapter.weight"]);
}
