//! The rdc without the compiler runs artifacts, in little more memory than they plan for.
use crate::support::*;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the process may take beyond weights, caches, arenas, inputs and outputs.
const REST: u64 = 40 << 20;

/// The highest resident size that /proc showed while the command ran, in bytes.
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let high = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.trim().strip_suffix(" kB"));
        peak = peak.max(high.map_or(0, |kb| kb.parse::<u64>().unwrap() << 10));
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    assert!(child.wait().unwrap().success());
    peak
}

/// The rdc without the compiler, if it was built.
fn runtime_only() -> Option<PathBuf> {
    let binary = std::env::var_os("RDC_RUNTIME_ONLY");
    if binary.is_none() {
        println!("RDC_RUNTIME_ONLY is not set: nothing is checked (`make test` sets it)");
    }
    binary.map(PathBuf::from)
}

#[test]
fn trains_within_a_tenth_of_the_planned_memory() {
    let Some(binary) = runtime_only() else { return };
    let fixed = ["examples/huginn.rdm", "--train", "--batch", "32", "--seq", "128", "--set", "context=128"];
    let artifact = artifact(&[&fixed[..], &tiny()].concat());
    let measured = ["--work", "train", "--steps", "8", "--seconds", "0.1", "--threads", "2", "--json"];
    let shown = rdc_of(&binary, &[&["bench", artifact.to_str().unwrap()], &measured[..]].concat());
    let line: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let [planned, peak] = ["planned", "peak"].map(|which| line["memory"][which].as_f64().unwrap());
    assert!(peak > 0.9 * planned && peak < 1.1 * planned, "{peak} bytes resident, {planned} planned");
}

#[test]
fn runs_a_fixture_within_the_planned_memory() {
    let Some(binary) = runtime_only() else { return };
    let reference = fixture("huginn-tiny/a_logits.safetensors");
    let hf = "tests/fixtures/huginn-tiny";
    // No larger caches than the run fills: pages that are never touched are not resident.
    let sizes = ["--batch", "2", "--seq", "12", "--context", "12", "--max-steps", "32"];
    let artifact = artifact(&[&["examples/huginn.rdm", "--hf", hf], &sizes[..]].concat());
    let artifact = artifact.to_str().unwrap();
    let folder = folder();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    write(&input, &inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"])));
    let paths = ["--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let peak = peak(Command::new(&binary).args(["run", artifact, "--steps", "32", "--threads", "2"]).args(paths));
    assert_close("logits", &read(&output)["logits"], &reference["b2s12.r32.logits"], TOLERANCE);

    let shown = rdc_of(&binary, &["inspect", artifact, "--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let functions = plan["functions"].as_array().unwrap().iter();
    let arena = functions.map(|f| f["arena_bytes"].as_u64().unwrap() + f["input_output_bytes"].as_u64().unwrap()).max();
    let planned = plan["weight_bytes"].as_u64().unwrap() + plan["kv"]["bytes"].as_u64().unwrap() + arena.unwrap();
    assert!(peak > 0, "no sample of the memory was taken");
    assert!(peak <= planned + REST, "{peak} bytes resident, {planned} planned");
    println!("{peak} bytes resident, {planned} planned");
}
