//! `rdc bench`: speed as ratios to ceilings measured in the same run.
#[cfg(feature = "compiler")]
mod gemm;
mod kernel;
mod measure;
#[cfg(feature = "compiler")]
mod model;
#[cfg(feature = "compiler")]
mod sizes;
mod train;

use crate::cli::{BenchArgs, Work};
use crate::progress::Progress;
use crate::table::{self, SI, Table, percent, short};
use anyhow::Result;
#[cfg(feature = "compiler")]
use anyhow::ensure;
use kernel::Kernels;
use measure::{Label, Line, measure};
use rdc_runtime::artifact::{Artifact, Verify};
use rdc_runtime::threads::default_threads;

/// Collects lines: a table at the end, or JSON as they come.
struct Output {
    json: bool,
    lines: Vec<Line>,
}

impl Output {
    fn add(&mut self, line: Line) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(&line)?);
        }
        self.lines.push(line);
        Ok(())
    }
    fn finish(self) {
        if self.json {
            return;
        }
        let mut table = Table::new(&[
            "work",
            "size",
            "dtype",
            "r",
            "threads",
            "median",
            "best",
            "FLOP/s",
            "bytes/s",
            "peak FLOP/s",
            "peak bytes/s",
            "share of ceiling",
            "memory",
            "planned",
        ]);
        for l in self.lines {
            let memory =
                |of: fn(&measure::Memory) -> usize| l.memory.as_ref().map_or("-".into(), |m| table::bytes(of(m)));
            let (peak, planned) = (memory(|m| m.peak), memory(|m| m.planned));
            let rate = |n: f64| if n > 0.0 { short(n, &SI).trim_end().to_string() } else { "-".into() };
            table.row(vec![
                l.work,
                l.size,
                l.dtype,
                l.steps.to_string(),
                l.threads.to_string(),
                table::seconds(l.seconds),
                table::seconds(l.best),
                rate(l.flops / l.seconds),
                rate(l.bytes / l.seconds),
                rate(l.peak_flops),
                rate(l.peak_bytes),
                percent(l.share),
                peak,
                planned,
            ]);
        }
        print!("{table}");
    }
}

/// Runs the subcommand.
pub fn run(args: &BenchArgs, quiet: bool) -> Result<()> {
    let progress = Progress::start(quiet, "measuring");
    let mut output = Output { json: args.json, lines: Vec::new() };
    if args.artifacts.is_empty() {
        standard(args, &progress, &mut output)?;
    }
    for path in &args.artifacts {
        if args.work == [Work::Train] {
            for threads in threads(args, &[default_threads()]) {
                train::measure_artifact(args, path, threads, &progress, &mut |line| output.add(line))?;
            }
        } else {
            kernels(args, path, &progress, &mut output)?;
        }
    }
    drop(progress);
    output.finish();
    Ok(())
}

/// The matmul and the sizes of the standard model.
#[cfg(feature = "compiler")]
fn standard(args: &BenchArgs, progress: &Progress, output: &mut Output) -> Result<()> {
    ensure!(args.kernel.is_none(), "--kernel needs an artifact");
    if args.work.contains(&Work::Gemm) {
        progress.stage("matmul");
        let model = gemm::model()?;
        for threads in threads(args, &[1, default_threads()]) {
            let mut gemm = gemm::Gemm::new(&model, threads)?;
            let label = Label { work: "gemm", size: "512", dtype: "f32", steps: 0, threads };
            output.add(measure(&label, args.seconds, &gemm::need(), || gemm.run())?)?;
        }
    }
    for name in &args.sizes {
        let size = sizes::Size::named(name);
        let size = size.ok_or_else(|| anyhow::anyhow!("there is no size `{name}`; there are tiny, small, medium"))?;
        for &dtype in &args.dtype {
            let work = |w: Work| args.work.contains(&w);
            if work(Work::Prefill) || work(Work::Decode) {
                let threads = threads(args, &[default_threads()]);
                model::measure_size(args, &size, dtype, &threads, progress, &mut |line| output.add(line))?;
            }
        }
        if args.work.contains(&Work::Train) {
            for threads in threads(args, &[default_threads()]) {
                model::measure_training(args, &size, threads, progress, &mut |line| output.add(line))?;
            }
        }
    }
    Ok(())
}

#[cfg(not(feature = "compiler"))]
fn standard(_: &BenchArgs, _: &Progress, _: &mut Output) -> Result<()> {
    anyhow::bail!("this rdc only runs artifacts: name one to measure its kernels")
}

fn threads(args: &BenchArgs, default: &[usize]) -> Vec<usize> {
    let mut threads = if args.threads.is_empty() { default.to_vec() } else { args.threads.clone() };
    threads.dedup();
    threads
}

/// The kernels of an artifact, one at a time.
fn kernels(args: &BenchArgs, path: &std::path::Path, progress: &Progress, output: &mut Output) -> Result<()> {
    let artifact = Artifact::open(path, Verify::Fast)?;
    let dtype = artifact.meta().dtype.clone();
    for threads in threads(args, &[default_threads()]) {
        let mut kernels = Kernels::new(&artifact, args.kernel.as_deref().unwrap_or(""), threads)?;
        for index in 0..kernels.count() {
            kernels.prepare(index)?;
            if let Some(repeat) = args.repeat {
                (0..repeat).try_for_each(|_| kernels.launch(index))?;
                continue;
            }
            let name = kernels.name(index).to_string();
            progress.stage(&name);
            let label = Label { work: &name, size: &artifact.meta().program.name, dtype: &dtype, steps: 0, threads };
            let need = kernels.need(index);
            output.add(measure(&label, args.seconds, &need, || kernels.launch(index))?)?;
        }
    }
    Ok(())
}
