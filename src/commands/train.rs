//! `rdc train`: a run from a configuration.
use crate::cli::TrainArgs;
use crate::pipeline::load;
use crate::plot::{Chart, Curve};
use crate::progress::Progress;
use crate::table::{self, SI, short};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rdc_runtime::artifact::{Artifact, Verify};
use rdc_runtime::checkpoint::Checkpoint;
use rdc_runtime::data::Feed;
use rdc_runtime::model::Model;
use rdc_runtime::probe::fma_peak;
use rdc_runtime::threads::default_threads;
use rdc_runtime::train::{Batch, Batches, Config, Event, METRICS, Parts, Rows, Run, Trainer};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Runs the subcommand.
pub fn run(args: TrainArgs, quiet: bool) -> Result<()> {
    let config = config(&args)?;
    let progress = Progress::start(quiet || args.json, "reading data");
    let base = args.config.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let split = config.data.open(base, config.train.seq, config.train.seed)?;
    let about = split.train.describe();
    let rows = |data, feed| Rows { data, feed, batch: config.train.batch, seq: config.train.seq };
    let vocabulary = split.train.vocabulary().max(split.validation.vocabulary());
    let batches = rows(split.train, Feed::new(config.train.seed, config.data.in_order));
    let mut held_out = rows(split.validation, Feed::new(config.train.seed, true));
    let trainer = trainer(&args, &config, base, &progress)?;
    if let Some(sizes) = trainer.meta().sizes.get("vocab").and_then(|v| v.parse::<usize>().ok()) {
        ensure!(
            vocabulary <= sizes,
            "the data has {vocabulary} ids, but the model a vocabulary of {sizes}: set vocab in [model] or with --set"
        );
    }
    let validation = if config.validate.every > 0 { config.validate.batches as u64 } else { 0 };
    let validation = (0..validation)
        .map(|i| {
            let mut batch = Batch::default();
            held_out.fill(i, &mut batch).map(|()| batch)
        })
        .collect::<Result<Vec<_>, _>>()?;
    progress.stage("measuring the machine");
    let threads = config.train.threads.unwrap_or_else(default_threads);
    let peak = fma_peak(threads)?;
    let files = files(&config, base)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    crate::interrupt::watch(&args.out.join(METRICS));
    let planned = trainer.meta().program.memory(threads);
    let parts =
        Parts { trainer, config: config.clone(), batches: Box::new(batches), validation, out: args.out.clone(), files };
    let mut run = if args.resume { Run::resume(parts, false)? } else { Run::start(parts)? };
    drop(progress);
    let done = run.state().step;
    if !args.json {
        eprintln!("{about}; a step needs {} of memory", table::bytes(planned));
        if done > 0 {
            eprintln!("resumed after step {done}");
        }
    }
    crate::interrupt::defer();
    let mut view = View::new(&config, done, peak, quiet, args.json);
    let summary = run.run(&mut |event| {
        view.show(event);
        if crate::interrupt::pending() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(view);
    draw(&args.out)?;
    if !args.json {
        let state = if summary.stopped { "stopped" } else { "done" };
        let at = summary.checkpoint.map_or(String::new(), |p| format!(": {}", p.display()));
        eprintln!("{state} after step {}{at}", summary.step);
    }
    if summary.stopped {
        bail!("interrupted; `--resume` continues");
    }
    Ok(())
}

/// The configuration with what the flags set.
fn config(args: &TrainArgs) -> Result<Config> {
    let mut config = Config::load(&args.config)?;
    let train = &mut config.train;
    train.steps = args.steps.unwrap_or(train.steps);
    train.batch = args.batch.unwrap_or(train.batch);
    train.seq = args.seq.unwrap_or(train.seq);
    train.seed = args.seed.unwrap_or(train.seed);
    train.threads = args.threads.or(train.threads);
    train.accumulate = args.training.accumulate.unwrap_or(train.accumulate);
    train.memory = args.training.memory.or(train.memory);
    train.remat = args.training.remat.unwrap_or(train.remat);
    config.optimizer.lr = args.lr.unwrap_or(config.optimizer.lr);
    config.optimizer.kind = args.training.optimizer.unwrap_or(config.optimizer.kind);
    // A path on the command line is relative to where the command runs, one of the file to the file.
    let finetune = args.finetune.as_deref().map(std::path::absolute).transpose()?;
    let model = &mut config.model;
    model.loss = args.training.loss.clone().or(model.loss.take());
    model.freeze.extend(args.training.freeze.iter().cloned());
    model.finetune = finetune.or(model.finetune.take());
    for (name, value) in &args.set {
        let number = value.parse::<i64>().map(Into::into).or_else(|_| value.parse::<f64>().map(Into::into));
        let value = number.or_else(|_| value.parse::<bool>().map(Into::into)).unwrap_or(value.clone().into());
        model.set.insert(name.clone(), value);
    }
    config.check().map_err(|e| anyhow::anyhow!("{}: {e}", args.config.display()))?;
    Ok(config)
}

/// Files that go into every checkpoint.
fn files(config: &Config, base: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    if let Some(path) = config.data.tokenizer.as_deref().filter(|t| !["bytes", "chars"].contains(t)) {
        let path = base.join(path);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.insert("tokenizer.json".to_string(), bytes);
    }
    Ok(files)
}

fn trainer(args: &TrainArgs, config: &Config, base: &Path, progress: &Progress) -> Result<Trainer> {
    let threads = config.train.threads.unwrap_or_else(default_threads);
    let start = config.model.finetune.as_ref().map(|path| base.join(path));
    if load::is_text(&args.file) {
        return compiled(args, config, start, threads, progress);
    }
    let artifact = Artifact::open(&args.file, Verify::Auto)?;
    let mut trainer = Trainer::new(Model::load(&artifact, config.train.seed)?, threads, None)?;
    if let Some(path) = start {
        let checkpoint = Checkpoint::open(&path)?;
        let names: Vec<String> = trainer.params().map(|(name, ..)| name.to_string()).collect();
        for name in names {
            trainer.read_from(&name, &checkpoint)?;
        }
    }
    Ok(trainer)
}

/// Compiles the text for the configuration.
#[cfg(feature = "compiler")]
fn compiled(
    args: &TrainArgs,
    config: &Config,
    start: Option<PathBuf>,
    threads: usize,
    progress: &Progress,
) -> Result<Trainer> {
    use crate::cli::ModelArgs;
    use crate::pipeline::front::{Shapes, Text};
    let training = crate::training::Training::of_config(config)?;
    let validated = config.validate.steps.iter().copied().max().filter(|_| config.validate.every > 0);
    let deepest = config.recurrence.rarely_above().max(validated.unwrap_or(1));
    // The config.json beside a checkpoint says its sizes.
    let (hf, weights) = if start.as_deref().is_some_and(Path::is_dir) { (start, None) } else { (None, start) };
    let options = ModelArgs {
        hf,
        weights,
        target: args.target.clone(),
        set: config.model.set.iter().map(|(name, value)| (name.clone(), setting(value))).collect(),
        max_steps: Some(deepest),
        ..ModelArgs::default()
    };
    let shapes = Shapes { batch: Some(config.train.batch), training: Some(training), ..Shapes::default() };
    crate::pipeline::text::trainer(Text::read(&args.file)?, &options, &shapes, config.train.seed, threads, progress)
}

#[cfg(not(feature = "compiler"))]
fn compiled(args: &TrainArgs, _: &Config, _: Option<PathBuf>, _: usize, _: &Progress) -> Result<Trainer> {
    Err(load::no_compiler(&args.file))
}

/// A value of `[model] set` as `--set` takes it.
#[cfg(feature = "compiler")]
fn setting(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// What a person, or a script, sees of a run.
struct View {
    bar: ProgressBar,
    json: bool,
    /// FLOP/s of the machine.
    peak: f64,
    tokens: f64,
}

impl View {
    fn new(config: &Config, done: u64, peak: f64, quiet: bool, json: bool) -> View {
        let bar = if quiet || json || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let bar = ProgressBar::new(config.train.steps).with_position(done);
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} ({elapsed}, {eta} left)") {
                bar.set_style(style);
            }
            bar
        };
        let tokens = (config.train.batch * config.train.seq * config.train.accumulate) as f64;
        View { bar, json, peak, tokens }
    }
    fn line(&self, line: String) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }
    fn show(&mut self, event: &Event) {
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                println!("{line}");
            }
            return;
        }
        match event {
            Event::Step { step, loss, smoothed, seconds, flops, n, k, lr, .. } => {
                let rate = short(self.tokens / seconds, &SI);
                let share = 100.0 * *flops as f64 / seconds / self.peak;
                let message = format!(
                    "loss {loss:.4} ({smoothed:.4}), {} tokens/s, {share:.0} % of peak, r {n}+{k}, lr {lr:.1e}",
                    rate.trim_end()
                );
                self.bar.set_message(message.clone());
                self.bar.set_position(*step);
                if self.bar.is_hidden() && step.is_multiple_of(100) {
                    eprintln!("step {step}: {message}");
                }
            }
            Event::Validation { step, r, loss, accuracy } => {
                let accuracy = accuracy.map_or(String::new(), |a| format!(", accuracy {a:.3}"));
                self.line(format!("validation after step {step}, r {r}: loss {loss:.4}{accuracy}"));
            }
            Event::Checkpoint { .. } => {}
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Draws loss and validation over steps, from the metrics of the whole run.
fn draw(out: &Path) -> Result<()> {
    let path = out.join(METRICS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in text.lines() {
        let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let (Some(step), number) = (event["step"].as_f64(), |name: &str| event[name].as_f64()) else { continue };
        match event["event"].as_str() {
            Some("step") => {
                if let Some(loss) = number("smoothed") {
                    curves.entry("training, smoothed".into()).or_default().push((step, loss));
                }
            }
            Some("validation") => {
                if let (Some(r), Some(loss)) = (number("r"), number("loss")) {
                    curves.entry(format!("validation, r {r:2}")).or_default().push((step, loss));
                }
            }
            _ => {}
        }
    }
    let chart = Chart {
        title: "loss",
        x: "step",
        y: "nats",
        doubling: false,
        range: None,
        curves: curves.into_iter().map(|(name, points)| Curve { name, points }).collect(),
    };
    crate::files::write(&out.join("loss.svg"), chart.svg()?.as_bytes())
}
