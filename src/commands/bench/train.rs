//! A training step: gradient and update.
use super::measure::{Label, Line, Memory, Need, measure};
use crate::cli::{BenchArgs, GRAD_STEPS};
use crate::progress::Progress;
use anyhow::{Result, bail};
use rdc_runtime::artifact::{Artifact, Verify};
use rdc_runtime::model::Model;
use rdc_runtime::train::{Batch, Depth, Draw, Optimizer, Trainer};

/// r iterations as the benchmark trains them: the last 8 with gradient.
fn depth(steps: usize, most: usize) -> Depth {
    let grad = steps.min(GRAD_STEPS).min(most);
    Depth { no_grad: steps - grad, grad }
}

/// Measures steps of a trainer at each r.
pub fn measure_trainer(
    args: &BenchArgs,
    trainer: &mut Trainer,
    size: &str,
    threads: usize,
    progress: &Progress,
    add: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let train = trainer.train_meta().clone();
    let vocabulary: usize = trainer.meta().sizes.get("vocab").and_then(|v| v.parse().ok()).unwrap_or(2);
    let ids = |add: usize| (0..train.batch * train.seq).map(|i| ((i * 7919 + add) % vocabulary) as i32).collect();
    let batch = Batch { ids: ids(13), labels: ids(7932), states: Vec::new() };
    let optimizer = Optimizer { lr: 1e-4, ..Optimizer::default() };
    let planned = trainer.meta().program.memory(threads);
    for &steps in &args.steps {
        let depth = depth(steps, train.max_grad_steps);
        progress.stage(&format!("train {size} n={} k={}", depth.no_grad, depth.grad));
        let flops = trainer.flops(depth, None)?[0] as f64;
        let label = Label { work: "train", size, dtype: "f32", steps, threads };
        let mut step = 0;
        let mut once = || {
            step += 1;
            trainer.grad(&batch, depth, None, Draw { seed: args.seed, step, row: 0 })?;
            trainer.update(&optimizer.hyper(step, 1e-4))?;
            Ok(())
        };
        let mut line = measure(&label, args.seconds, &Need { flops, reads: Vec::new() }, &mut once)?;
        line.memory = Some(Memory { planned, peak: peak() });
        add(line)?;
        if args.profile {
            let trainer = &mut *trainer;
            trainer.executor().start_profile();
            trainer.grad(&batch, depth, None, Draw { seed: args.seed, step, row: 0 })?;
            trainer.update(&optimizer.hyper(step.max(1), 1e-4))?;
            if let Some(profile) = trainer.executor().take_profile() {
                crate::commands::run::report(&profile, &trainer.meta().program, threads, args.json)?;
            }
        }
    }
    Ok(())
}

/// Measures the steps of an artifact of `rdc compile --train`.
pub fn measure_artifact(
    args: &BenchArgs,
    path: &std::path::Path,
    threads: usize,
    progress: &Progress,
    add: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let artifact = Artifact::open(path, Verify::Fast)?;
    if artifact.meta().train.is_none() {
        bail!("{} is not compiled for training: compile it with --train", path.display());
    }
    let name = artifact.meta().program.name.clone();
    let mut trainer = Trainer::new(Model::load(&artifact, args.seed)?, threads, None)?;
    measure_trainer(args, &mut trainer, &name, threads, progress, add)
}

/// The most memory that this process has had resident, in bytes, where the system tells (0 elsewhere).
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}
