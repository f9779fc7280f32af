//! A run: steps, validation, checkpoints, metrics.
use super::metrics::Metrics;
use super::state::{self, Checkpoints, State};
use super::{Batch, Batches, Config, Depth, Draw, Recurrence, Trainer};
use crate::Error;
use crate::random::fold;
use rdc_ir::IGNORED_LABEL;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The file of a run's metrics: an [`Event`] a line, of steps and validations.
pub const METRICS: &str = "metrics.jsonl";

/// The share of a step's loss in the smoothed one.
const SMOOTHING: f32 = 0.02;

/// What a run is made of.
pub struct Parts<'a> {
    /// The model. For a new run its parameters are those that training starts from.
    pub trainer: Trainer,
    /// The configuration that it is compiled for.
    pub config: Config,
    /// What it is trained on.
    pub batches: Box<dyn Batches + 'a>,
    /// What it is validated on.
    pub validation: Vec<Batch>,
    /// Where checkpoints and metrics go.
    pub out: PathBuf,
    /// Files that go into every checkpoint, by name (a tokenizer.json). A config.json is made of the model's sizes if none is among
    /// them.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// What happens in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Its loss, mean over all targets.
        loss: f32,
        /// The exponential average of the losses so far.
        smoothed: f32,
        /// Tokens of the run so far.
        tokens: u64,
        /// What this step took.
        seconds: f64,
        /// Floating-point operations of this step.
        flops: u64,
        /// Iterations without gradient.
        n: usize,
        /// Iterations with gradient.
        k: usize,
        /// Learning rate.
        lr: f64,
        /// Norm of the gradient before clipping.
        grad_norm: f32,
    },
    /// A validation at one number of iterations is done.
    Validation {
        /// After which step.
        step: u64,
        /// Iterations.
        r: usize,
        /// Mean over all targets.
        loss: f64,
        /// Share of the targets that are predicted, if the loss tells by an output `correct`.
        accuracy: Option<f64>,
    },
    /// A checkpoint is written.
    Checkpoint {
        /// After which step.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps that are done in all.
    pub step: u64,
    /// Whether it was asked to stop before the last.
    pub stopped: bool,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// A training run.
pub struct Run<'a> {
    parts: Parts<'a>,
    /// With the clamp of the program.
    recurrence: Recurrence,
    checkpoints: Checkpoints,
    metrics: Metrics,
    state: State,
    batch: Batch,
    /// The newest checkpoint and its step.
    saved: Option<(u64, PathBuf)>,
}

impl<'a> Run<'a> {
    /// A run from its first step.
    ///
    /// # Errors
    /// If the configuration does not fit the program, or the folder cannot be used or holds a run already.
    pub fn start(parts: Parts<'a>) -> Result<Run<'a>, Error> {
        let checkpoints = Checkpoints::open(&parts.out)?;
        if let Some(found) = state::latest(&parts.out)? {
            return Err(Error::file(
                &parts.out,
                format!("it holds a run already ({}): resume it, or choose another folder", file_name(&found)),
            ));
        }
        let state = State::new(&parts.trainer, &parts.config, parts.batches.describe());
        Run::new(parts, checkpoints, state, None)
    }
    /// A run from the newest checkpoint of its folder. It continues bit for bit as if it had not stopped. `changed` allows a
    /// configuration, or data, that differ such that it does not.
    ///
    /// # Errors
    /// As [`Run::start`]; if there is no checkpoint, it is damaged or of another model, or something differs and may not.
    pub fn resume(mut parts: Parts<'a>, changed: bool) -> Result<Run<'a>, Error> {
        let checkpoints = Checkpoints::open(&parts.out)?;
        let Some(path) = state::latest(&parts.out)? else {
            return Err(Error::file(&parts.out, "it holds no checkpoint to resume from"));
        };
        let mut state = state::read(&path)?;
        let data = parts.batches.describe();
        let mut differences = parts.config.differences(&state.config);
        if data != state.data {
            differences.push(format!("the data was {}, now {data}", state.data));
        }
        if !changed && !differences.is_empty() {
            let differences = differences.join("; ");
            return Err(Error::file(&path, format!("the run would not continue as it was: {differences}")));
        }
        state::load(&path, &state, &mut parts.trainer)?;
        (state.config, state.data) = (parts.config.clone(), data);
        let saved = Some((state.step, path));
        Run::new(parts, checkpoints, state, saved)
    }
    fn new(
        parts: Parts<'a>,
        checkpoints: Checkpoints,
        state: State,
        saved: Option<(u64, PathBuf)>,
    ) -> Result<Run<'a>, Error> {
        check(&parts).map_err(Error::Input)?;
        let limit = parts.trainer.meta().max_steps;
        let recurrence = Recurrence {
            max_steps: Some(parts.config.recurrence.max_steps.map_or(limit, |m| m.min(limit))),
            ..parts.config.recurrence.clone()
        };
        let metrics = Metrics::open(&parts.out.join(METRICS), state.step)?;
        Ok(Run { parts, recurrence, checkpoints, metrics, state, batch: Batch::default(), saved })
    }
    /// The state after the last step.
    pub fn state(&self) -> &State {
        &self.state
    }
    /// The model.
    pub fn trainer(&mut self) -> &mut Trainer {
        &mut self.parts.trainer
    }
    /// The depth of a step.
    pub fn depth(&self, step: u64) -> Depth {
        self.recurrence.draw(self.parts.config.train.seed, step)
    }
    /// Runs the steps that are left. `hear` is told what happens, and may ask to stop: then the step is brought to its end, a
    /// checkpoint written, and the run returns.
    ///
    /// # Errors
    /// If a batch cannot be had, a file not be written, or a loss or a gradient is not finite: then the message names the last
    /// good checkpoint.
    pub fn run(&mut self, hear: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Summary, Error> {
        let config = self.parts.config.clone();
        let every = |interval: u64, step: u64| interval > 0 && step.is_multiple_of(interval);
        let mut stopped = false;
        while self.state.step < config.train.steps && !stopped {
            let event = self.step()?;
            let (step, is_last) = (self.state.step, self.state.step == config.train.steps);
            self.metrics.add(&event)?;
            stopped |= hear(&event).is_break();
            if every(config.validate.every, step) || (is_last && config.validate.every > 0) {
                for r in config.validate.steps.clone() {
                    let event = self.validate(r)?;
                    self.metrics.add(&event)?;
                    stopped |= hear(&event).is_break();
                }
            }
            if every(config.checkpoint.every, step) || is_last || stopped {
                let path = self.save()?;
                stopped |= hear(&Event::Checkpoint { step, path }).is_break();
            }
        }
        let stopped = self.state.step < config.train.steps;
        Ok(Summary { step: self.state.step, stopped, checkpoint: self.saved.clone().map(|(_, path)| path) })
    }
    /// Writes a checkpoint and drops old ones.
    fn save(&mut self) -> Result<PathBuf, Error> {
        let keep = &self.parts.config.checkpoint;
        self.metrics.sync()?;
        let path = self.checkpoints.save(&self.parts.trainer, &self.state, &self.parts.files);
        let path = path.map_err(|e| self.with_last_good(e))?;
        self.saved = Some((self.state.step, path.clone()));
        self.checkpoints.prune(keep.keep, keep.keep_every)?;
        Ok(path)
    }
    /// One step of the optimiser. Gradients of several batches add up with the numbers of their targets as weights, so that a step
    /// is the same however its rows are cut into batches, but for rounding.
    fn step(&mut self) -> Result<Event, Error> {
        let started = Instant::now();
        let Parts { trainer, config, batches, .. } = &mut self.parts;
        let (step, count) = (self.state.step + 1, config.train.accumulate);
        let depth = self.recurrence.draw(config.train.seed, step);
        let loss_name = config.model.loss.as_deref();
        let sums = trainer.train_meta().accumulate;
        let (mut loss_sum, mut targets, mut last) = (0.0, 0, 0);
        for micro in 0..count {
            batches.fill((step - 1) * count as u64 + micro as u64, &mut self.batch)?;
            let draw = Draw { seed: config.train.seed, step, row: micro * config.train.batch };
            let loss = trainer.grad(&self.batch, depth, loss_name, draw)?.loss;
            if !loss.is_finite() {
                let error = not_finite(step, depth, "loss", loss);
                return Err(self.with_last_good(error));
            }
            // The sum is kept as that over the targets divided by the last batch's number of them; a batch without targets adds
            // nothing.
            let weight = self.batch.targets();
            if sums && (weight > 0 || micro == 0) {
                trainer.accumulate(if targets == 0 { 0.0 } else { last as f32 / weight as f32 })?;
                last = weight;
            }
            targets += weight;
            loss_sum += f64::from(loss) * weight as f64;
        }
        let mut hyper = config.optimizer.hyper(self.state.updates + 1, config.lr(step));
        if sums && targets > 0 {
            hyper.grad_scale = (last as f64 / targets as f64) as f32;
        }
        let grad_norm = trainer.update(&hyper)?;
        if !grad_norm.is_finite() {
            let error = not_finite(step, depth, "norm of the gradient", grad_norm);
            return Err(self.with_last_good(error));
        }
        let [grad_flops, update_flops, _] = trainer.flops(depth, loss_name)?;
        let loss = (loss_sum / targets.max(1) as f64) as f32;
        let state = &mut self.state;
        let smoothed = state.smoothed.map_or(loss, |before| before + SMOOTHING * (loss - before));
        let seconds = started.elapsed().as_secs_f64();
        (state.step, state.updates, state.smoothed) = (step, state.updates + 1, Some(smoothed));
        state.tokens += (count * config.train.batch * config.train.seq) as u64;
        state.seconds += seconds;
        Ok(Event::Step {
            step,
            loss,
            smoothed,
            tokens: state.tokens,
            seconds,
            flops: grad_flops.saturating_mul(count as u64).saturating_add(update_flops),
            n: depth.no_grad,
            k: depth.grad,
            lr: config.lr(step),
            grad_norm,
        })
    }
    /// Measures the loss over the validation batches, whose states are drawn alike each time.
    fn validate(&mut self, r: usize) -> Result<Event, Error> {
        let Parts { trainer, config, validation, .. } = &mut self.parts;
        let seed = fold(config.train.seed, "validation");
        let (mut loss, mut targets, mut correct) = (0.0, 0, Some(0.0));
        for (index, batch) in validation.iter().enumerate() {
            let draw = Draw { seed, step: index as u64, row: 0 };
            let output = trainer.loss(batch, r, config.model.loss.as_deref(), draw)?;
            loss += f64::from(output.loss) * batch.targets() as f64;
            targets += batch.targets();
            let right = output.get("correct").filter(|c| c.len() == batch.labels.len()).map(|c| {
                let marked = batch.labels.iter().zip(c).filter(|(label, _)| **label != IGNORED_LABEL);
                marked.map(|(_, correct)| f64::from(*correct)).sum::<f64>()
            });
            correct = correct.zip(right).map(|(sum, right)| sum + right);
        }
        let targets = targets.max(1) as f64;
        Ok(Event::Validation { step: self.state.step, r, loss: loss / targets, accuracy: correct.map(|c| c / targets) })
    }
    fn with_last_good(&self, error: Error) -> Error {
        let rest = match &self.saved {
            Some((_, path)) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".to_string(),
        };
        Error::Program(format!("{error}; {rest}"))
    }
}

fn not_finite(step: u64, depth: Depth, what: &str, value: f32) -> Error {
    let Depth { no_grad, grad } = depth;
    Error::Program(format!("step {step} ({no_grad} + {grad} iterations): the {what} is {value}"))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Checks that a configuration fits the program.
fn check(parts: &Parts) -> Result<(), String> {
    let Parts { trainer, config, validation, .. } = parts;
    config.check()?;
    let (meta, train) = (trainer.meta(), trainer.train_meta());
    let fits = |name: &str, compiled: usize, configured: usize| {
        if compiled == configured {
            return Ok(());
        }
        Err(format!("train.{name} = {configured}, but the model is compiled for {compiled}: compile with --{name}"))
    };
    fits("batch", train.batch, config.train.batch)?;
    fits("seq", train.seq, config.train.seq)?;
    if config.train.accumulate > 1 && !train.accumulate {
        let n = config.train.accumulate;
        return Err(format!(
            "train.accumulate = {n}, but the model is compiled without: compile with --accumulate {n}"
        ));
    }
    if train.optimizer != config.optimizer.kind.name() {
        let wanted = config.optimizer.kind.name();
        return Err(format!("the model is compiled with the optimiser {}, not {wanted}", train.optimizer));
    }
    let loss = match &config.model.loss {
        None => train.losses.first(),
        Some(name) => train.losses.iter().find(|l| l.name == *name),
    };
    let loss = loss.ok_or("the model is not compiled with the loss that is to be trained")?;
    let (most, rarely) = (config.recurrence.max_grad(), config.recurrence.rarely_above());
    if most > train.max_grad_steps {
        return Err(format!(
            "[recurrence] asks for up to {most} iterations with gradient, but the model is compiled for {}: compile with --max-grad-steps {most}",
            train.max_grad_steps
        ));
    }
    if most > meta.max_steps {
        return Err(format!(
            "[recurrence] asks for {most} iterations or more, but the model is compiled for {}: compile with --max-steps {rarely}",
            meta.max_steps
        ));
    }
    if loss.all_steps && rarely > most {
        return Err(format!(
            "the loss `{}` is about every iteration, so [recurrence] must give them all a gradient: up to {rarely}, not {most}",
            loss.name
        ));
    }
    let validate = &config.validate;
    if let Some(r) = validate.steps.iter().find(|r| validate.every > 0 && **r > meta.max_steps) {
        return Err(format!("validate.steps has {r}, but the model is compiled for {} iterations", meta.max_steps));
    }
    if validate.every > 0 && validation.is_empty() {
        return Err("validate.every is set, but there is no data to validate on".into());
    }
    Ok(())
}
