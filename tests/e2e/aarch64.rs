//! Artifacts for aarch64, compiled here and run whole by an rdc built for aarch64, under qemu-user.
use crate::support::*;
use std::process::Command;

/// The rdc for aarch64 without the compiler, if it was built.
fn emulated() -> Option<Command> {
    let Some(binary) = std::env::var_os("RDC_AARCH64").filter(|path| !path.is_empty()) else {
        println!("RDC_AARCH64 is not set: nothing is run on aarch64 (`make test` sets it)");
        return None;
    };
    let mut command = Command::new("qemu-aarch64");
    command.arg(binary);
    Some(command)
}

#[test]
fn prefill_of_many_iterations() {
    let Some(mut rdc) = emulated() else { return };
    let reference = fixture("huginn-tiny/a_logits.safetensors");
    let sizes = ["--batch", "2", "--seq", "12", "--target", "aarch64"];
    let artifact = artifact(&[&["examples/huginn.rdm", "--hf", "tests/fixtures/huginn-tiny"], &sizes[..]].concat());
    let inputs = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"]));
    let out = run_by(&mut rdc, &artifact, &inputs, &["--steps", "32", "--threads", "2"]);
    assert_close("logits", &out["logits"], &reference["b2s12.r32.logits"], TOLERANCE);
}

#[test]
fn decode_of_as_many_iterations_as_it_takes() {
    let Some(mut rdc) = emulated() else { return };
    let reference = fixture("ut-tiny/a_forward_decode.safetensors");
    let text = ["examples/universal_transformer.rdm", "--hf", "tests/fixtures/ut-tiny"];
    let artifact = artifact(&[&text[..], &["--batch", "2", "--seq", "8", "--target", "aarch64"]].concat());
    let inputs = inputs(&reference["b2s12.ids"], None);
    let pieces = chunks(8, 12);
    let out = run_by(&mut rdc, &artifact, &inputs, &["--readout", "act", "--chunks", &pieces, "--threads", "2"]);
    assert_eq!(out["steps_taken"].data, reference["b2s12.act.n"].data);
    assert_close("logits", &out["logits"], &reference["b2s12.act.logits"], TOLERANCE);
}
