//! `rdc run`: tensors in, tensors out.
use crate::cli::RunArgs;
use crate::pipeline::load;
use crate::progress::Progress;
use crate::table::{self, SI, Table, percent, short};
use anyhow::Result;
#[cfg(feature = "compiler")]
use anyhow::{Context, ensure};
use rdc_ir::program::Program;
use rdc_runtime::artifact::Verify;
use rdc_runtime::model::Model;
use rdc_runtime::probe::Ceilings;
use rdc_runtime::profile::{KernelTime, Profile};
use rdc_runtime::threads::default_threads;
use rdc_runtime::{RunOptions, Session, TensorMap, tensor};
use std::path::Path;
use std::sync::Arc;

/// Runs the subcommand.
pub fn run(args: &RunArgs, quiet: bool) -> Result<()> {
    let progress = Progress::start(quiet, "loading");
    let inputs = tensor::load(&args.input)?;
    let model = model(args, &inputs, &progress)?;
    let mut session = Session::new(Arc::new(model), args.threads.unwrap_or_else(default_threads))?;
    progress.stage("running");
    let options = RunOptions {
        steps: args.steps,
        seed: args.seed.unwrap_or(0),
        chunks: (!args.chunks.is_empty()).then(|| args.chunks.clone()),
        readout: args.readout.clone(),
        states: args.states,
        last: true,
    };
    let mut state = session.new_state();
    let mut result = session.run_from(&mut state, &inputs, &options)?;
    if args.profile || args.trace.is_some() {
        // The first run touched every page of weights and memory; the second shows the kernels alone.
        state.position = 0;
        session.start_profile();
        result = session.run_from(&mut state, &inputs, &options)?;
    }
    crate::interrupt::watch(&args.output);
    tensor::save(&args.output, &result.outputs)?;
    drop(progress);
    if !result.ignored.is_empty() {
        eprintln!("note: {}: the model has no input {}", args.input.display(), result.ignored.join(", "));
    }
    if result.trips.iter().any(|&n| n != result.trips[0]) {
        let steps = result.trips.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        eprintln!("note: each call ended its loop by its own exit: the pieces of the sequence took {steps} steps");
    }
    if let Some(profile) = session.take_profile() {
        if let Some(path) = &args.trace {
            write_trace(&profile, session.model(), path)?;
        }
        if args.profile {
            report(&profile, session.model().program(), session.threads(), args.json)?;
        }
    }
    Ok(())
}

fn model(args: &RunArgs, inputs: &TensorMap, progress: &Progress) -> Result<Model> {
    let seed = args.seed.unwrap_or(0);
    if load::is_text(&args.file) {
        return text(args, inputs, progress);
    }
    Ok(Model::load(&load::artifact(&args.file, &args.options, verify(args))?, seed)?)
}

fn verify(args: &RunArgs) -> Verify {
    if args.verify { Verify::All } else { Verify::Auto }
}

/// Compiles the text for the shapes of the inputs.
#[cfg(feature = "compiler")]
fn text(args: &RunArgs, inputs: &TensorMap, progress: &Progress) -> Result<Model> {
    use crate::pipeline::front::{Shapes, Text};
    use crate::pipeline::text;
    let ids =
        inputs.get("input_ids").with_context(|| format!("{}: there is no input `input_ids`", args.input.display()))?;
    ensure!(ids.shape.len() == 2, "`input_ids` has shape {:?}; expected [batch, sequence]", ids.shape);
    let chunks = if args.chunks.is_empty() { vec![ids.shape[1]] } else { args.chunks.clone() };
    let shapes = Shapes {
        batch: args.options.batch.is_none().then_some(ids.shape[0]),
        chunks: Some(chunks),
        readout: Some(args.readout.clone()),
        training: None,
    };
    let seed = args.seed.unwrap_or(0);
    if args.no_cache {
        return text::model(Text::read(&args.file)?, &args.options, &shapes, seed, progress);
    }
    text::cached(&args.file, &args.options, &shapes, seed, verify(args), progress)
}

#[cfg(not(feature = "compiler"))]
fn text(args: &RunArgs, _: &TensorMap, _: &Progress) -> Result<Model> {
    Err(load::no_compiler(&args.file))
}

fn write_trace(profile: &Profile, model: &Model, path: &Path) -> Result<()> {
    let mut trace = Vec::new();
    profile.write_trace(model.program(), &mut trace)?;
    crate::interrupt::watch(path);
    crate::files::write(path, &trace)
}

/// A kernel's line of the profile.
#[derive(serde::Serialize)]
struct Line {
    #[serde(flatten)]
    time: KernelTime,
    /// Share of the whole time.
    time_share: f64,
    /// Share of the ceiling that bounds it: seconds at the measured ceilings / seconds taken.
    ceiling_share: f64,
    /// `compute` or `memory`.
    bound: &'static str,
}

/// Prints time, FLOP/s and bytes/s per kernel, against the ceilings of the same threads measured now.
pub fn report(profile: &Profile, program: &Program, threads: usize, json: bool) -> Result<()> {
    let ceilings = Ceilings::measure(threads)?;
    let span = profile.span().as_secs_f64().max(1e-9);
    let line = |time: KernelTime| {
        let kernel = program.kernels.iter().find(|k| k.name == time.kernel);
        let (flops, bytes) = kernel.map_or((0.0, 0.0), |k| (k.flops as f64, k.bytes as f64));
        let (compute, memory) = (flops / ceilings.flops, bytes / ceilings.read_rate(bytes as usize));
        Line {
            time_share: time.seconds / span,
            ceiling_share: compute.max(memory) * time.calls as f64 / time.seconds.max(1e-12),
            bound: if compute > memory { "compute" } else { "memory" },
            time,
        }
    };
    let lines: Vec<Line> = profile.kernels(program).into_iter().map(line).collect();
    let outside = profile.outside().into_iter().sum::<f64>() / threads as f64;
    if json {
        let value = serde_json::json!({
            "kernels": lines, "seconds": span, "outside_kernels": outside, "ceilings": ceilings, "dropped": profile.dropped(),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let mut table =
        Table::new(&["kernel", "calls", "time", "of all", "FLOP/s", "bytes/s", "of ceiling", "bound", "lines"]);
    for l in &lines {
        table.row(vec![
            l.time.kernel.clone(),
            l.time.calls.to_string(),
            table::seconds(l.time.seconds),
            percent(l.time_share),
            short(l.time.flops, &SI).trim_end().to_string(),
            short(l.time.bytes, &SI).trim_end().to_string(),
            percent(l.ceiling_share),
            l.bound.to_string(),
            super::line_ranges(&l.time.lines),
        ]);
    }
    print!("{table}");
    println!("{} in all, {} of it outside kernels", table::seconds(span), table::seconds(outside));
    let reads = ceilings.reads.iter().map(|r| format!("{} {}B/s", r.level, short(r.bytes_per_second, &SI)));
    println!(
        "ceilings of {} threads: {}FLOP/s, reads {}",
        ceilings.threads,
        short(ceilings.flops, &SI),
        reads.collect::<Vec<_>>().join(", ")
    );
    if profile.dropped() > 0 {
        println!("the recording was full: {} launches are missing", profile.dropped());
    }
    Ok(())
}
