//! `rdc train` and `rdc eval`: a run is the same bits however it is cut, and whatever happens to it leaves a checkpoint.
use crate::support::*;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A model of 20 thousand parameters on parity, and 8 steps of it.
const CONFIG: &str = r#"
[model]
set = { vocab = 40, dim = 32, heads = 2, inner = 48, context = 64, layers_prelude = 1, layers_core = 1, layers_coda = 1, steps = 4 }
[data]
task = "parity"
restart = 0.1
[recurrence]
kind = "lognormal_poisson"
mean = 4
backprop = 2
max_steps = 12
[optimizer]
lr = 3e-3
[schedule]
warmup = 4
[train]
steps = 8
batch = 4
seq = 12
[validate]
every = 4
steps = [1, 3]
batches = 2
[checkpoint]
every = 3
keep = 3
"#;

fn configuration(folder: &Path, extra: &str) -> PathBuf {
    let path = folder.join("train.toml");
    std::fs::write(&path, CONFIG.replace("[validate]", &format!("{extra}\n[validate]"))).unwrap();
    path
}

/// An artifact that trains it; compiled once.
fn trainer() -> PathBuf {
    let sets = ["vocab=40", "dim=32", "heads=2", "inner=48", "context=64"];
    let layers = ["layers_prelude=1", "layers_core=1", "layers_coda=1", "steps=4"];
    let sets = sets.iter().chain(&layers).flat_map(|s| ["--set", s]);
    let shape = ["--train", "--batch", "4", "--seq", "12", "--max-steps", "12", "--max-grad-steps", "2"];
    artifact(&["examples/huginn.rdm"].into_iter().chain(shape).chain(sets).collect::<Vec<_>>())
}

fn arguments(file: &Path, config: &Path, out: &Path, args: &[&str]) -> Vec<String> {
    let path = |p: &Path| p.to_str().unwrap().to_string();
    let fixed = ["train".into(), path(file), "--config".into(), path(config), "--out".into(), path(out)];
    fixed.into_iter().chain(args.iter().map(|a| a.to_string())).collect()
}

#[track_caller]
fn train(config: &Path, out: &Path, args: &[&str]) {
    let all = arguments(&trainer(), config, out, args);
    ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
}

fn spawn(config: &Path, out: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rdc"))
        .args(arguments(&trainer(), config, out, args))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a checkpoint holds of the model and of the optimiser.
fn tensors(out: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = out.join(format!("step-{step:06}"));
    ["model.safetensors", "optimizer.safetensors"].map(|f| std::fs::read(folder.join(f)).unwrap())
}

fn metrics(out: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The losses of the steps, which are numbers of the model and not of the machine.
fn losses(out: &Path) -> Vec<(u64, f64)> {
    let steps = metrics(out).into_iter().filter(|e| e["event"] == "step");
    steps.map(|e| (e["step"].as_u64().unwrap(), e["loss"].as_f64().unwrap())).collect()
}

#[test]
fn resumed_and_with_other_threads_a_run_is_the_same_bits() {
    let folder = folder();
    let config = configuration(folder.path(), "");
    let out = |name: &str| folder.path().join(name);
    train(&config, &out("whole"), &["--threads", "1"]);
    train(&config, &out("two"), &["--threads", "2"]);
    train(&config, &out("cut"), &["--steps", "5"]);
    train(&config, &out("cut"), &["--resume", "--threads", "3"]);
    let whole = tensors(&out("whole"), 8);
    assert!(whole == tensors(&out("two"), 8), "two threads give other bits");
    assert!(whole == tensors(&out("cut"), 8), "a resumed run gives other bits");
    assert_eq!(losses(&out("whole")), losses(&out("cut")));
    assert_eq!(losses(&out("whole")).len(), 8);
    let validations: Vec<_> =
        metrics(&out("whole")).into_iter().filter(|e| e["event"] == "validation").map(|e| e["r"].clone()).collect();
    assert_eq!(validations, [1, 3, 1, 3]);
    let plot = std::fs::read_to_string(out("whole").join("loss.svg")).unwrap();
    assert!(plot.contains("<svg") && plot.contains("validation, r  3"), "{}", &plot[..200]);
    // Another seed is another run.
    train(&config, &out("other"), &["--seed", "5"]);
    assert!(whole[0] != tensors(&out("other"), 8)[0]);
}

#[test]
fn the_text_trains_as_its_artifact_and_its_checkpoint_runs() {
    let folder = folder();
    let config = configuration(folder.path(), "");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    train(&config, &a, &["--steps", "3"]);
    let text = repository("examples/huginn.rdm");
    let all = arguments(&text, &config, &b, &["--steps", "3"]);
    ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(tensors(&a, 3) == tensors(&b, 3), "the text and its artifact train differently");
    let checkpoint = b.join("step-000003");
    let checkpoint = checkpoint.to_str().unwrap();
    let svg = folder.path().join("curve.svg");
    let eval = ["eval", "examples/huginn.rdm", "--hf", checkpoint, "--task", "parity", "--size", "6,9"];
    let measure = ["--steps", "1,4", "--rows", "20", "--json", "--svg", svg.to_str().unwrap()];
    let result: serde_json::Value = serde_json::from_str(&ok(&[&eval[..], &measure].concat())).unwrap();
    let lines = result["results"].as_array().unwrap();
    assert_eq!(lines.len(), 4);
    for line in lines {
        let number = |name: &str| line[name].as_f64().unwrap();
        assert!((number("perplexity") - number("loss").exp()).abs() < 1e-9);
        assert!((0.0..=1.0).contains(&number("accuracy")) && number("exact") <= number("last"), "{line}");
        assert_eq!(line["change"].is_null(), line["steps"] == 1);
    }
    assert!(std::fs::read_to_string(svg).unwrap().contains("size 9"));
    // Fine-tuning starts from it, and what is frozen stays.
    let tuned = folder.path().join("tuned");
    let args = ["--finetune", checkpoint, "--steps", "2", "--freeze", "transformer.wte.*"];
    let all = arguments(&text, &config, &tuned, &args);
    ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let (before, after) =
        (read(&Path::new(checkpoint).join("model.safetensors")), read(&tuned.join("step-000002/model.safetensors")));
    assert_eq!(before["transformer.wte.weight"], after["transformer.wte.weight"]);
    assert_ne!(before["transformer.adapter.weight"], after["transformer.adapter.weight"]);
}

#[test]
fn gradients_add_up_over_batches() {
    let folder = folder();
    let config = configuration(folder.path(), "accumulate = 3");
    let out = folder.path().join("out");
    let all = arguments(&repository("examples/huginn.rdm"), &config, &out, &["--steps", "2"]);
    ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let steps: Vec<_> = metrics(&out).into_iter().filter(|e| e["event"] == "step").collect();
    assert_eq!(steps[1]["tokens"], 2 * 3 * 4 * 12);
    // One batch of the same rows gives the same step, but for rounding.
    let whole = configuration(folder.path(), "");
    let one = folder.path().join("one");
    let all = arguments(&repository("examples/huginn.rdm"), &whole, &one, &["--steps", "2", "--batch", "12"]);
    ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
    for ((_, a), (_, b)) in losses(&out).into_iter().zip(losses(&one)) {
        assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    }
}

/// Waits until a file holds a step's line.
fn wait_for_step(out: &Path, step: u64) {
    let started = Instant::now();
    let there = || {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        text.lines().any(|l| l.contains(&format!("\"step\":{step},")))
    };
    while !there() {
        assert!(started.elapsed() < Duration::from_secs(120), "no step {step} in two minutes");
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn kill_at_any_moment_leaves_a_run_that_goes_on() {
    let folder = folder();
    let config = configuration(folder.path(), "");
    std::fs::write(&config, CONFIG.replace("every = 3", "every = 1").replace("steps = 8", "steps = 60")).unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("killed"));
    train(&config, &whole, &[]);
    let mut at = 0;
    for delay in [0, 2, 5, 9, 14, 1, 7] {
        let resume: &[&str] = if out.join("metrics.jsonl").exists() && at > 0 { &["--resume"] } else { &[] };
        let mut child = spawn(&config, &out, resume);
        at += 6;
        wait_for_step(&out, at);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    train(&config, &out, &["--resume"]);
    assert!(tensors(&whole, 60) == tensors(&out, 60), "killed and resumed, the run gives other bits");
    assert_eq!(losses(&whole), losses(&out));
}

#[test]
fn an_interrupt_writes_a_checkpoint() {
    let folder = folder();
    let config = configuration(folder.path(), "");
    std::fs::write(&config, CONFIG.replace("steps = 8", "steps = 100000").replace("every = 3", "every = 0")).unwrap();
    let out = folder.path().join("out");
    let child = spawn(&config, &out, &[]);
    wait_for_step(&out, 5);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait_with_output().unwrap().status;
    assert_eq!(status.code(), Some(1), "an interrupted run does not succeed");
    let last = losses(&out).last().unwrap().0;
    assert!(out.join(format!("step-{last:06}/model.safetensors")).exists(), "no checkpoint of step {last}");
}

#[test]
fn mistakes_are_one_error() {
    let folder = folder();
    let config = configuration(folder.path(), "");
    let out = folder.path().join("out");
    let model = trainer();
    let run = |config: &Path, args: &[&str]| {
        let all = arguments(&model, config, &out, args);
        fails(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert!(run(&config, &["--resume"]).contains("no checkpoint to resume from"));
    assert!(run(&config, &["--batch", "5"]).contains("--batch"));
    let blown = run(&config, &["--lr", "1e30", "--steps", "50"]);
    assert!(blown.contains("checkpoint") && (blown.contains("loss is") || blown.contains("norm")), "{blown}");
    let write = |text: &str| {
        let path = folder.path().join("bad.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    assert!(run(&write("[train]\nsteps = 3"), &[]).contains("bad.toml"));
    assert!(run(&write(&CONFIG.replace("lr = 3e-3", "lrate = 1")), &[]).contains("lrate"));
    assert!(run(&write(&CONFIG.replace("\"parity\"", "\"sudoku\"")), &[]).contains("there is no task"));
    let other = fails(&["eval", model.to_str().unwrap(), "--task", "parity"]);
    assert!(other.contains("compiled for training"), "{other}");
}
