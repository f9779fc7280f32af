//! The compiled functions of training, called with batches and numbers.
use super::flops::flops;
use super::{Batch, Depth, Hyper};
use crate::Error;
use crate::artifact::{LossInfo, Meta, TrainMeta};
use crate::checkpoint::Checkpoint;
use crate::exec::{AfterExit, Executor};
use crate::memory::Buffer;
use crate::model::Model;
use crate::random::{Stream, fold_step};
use crate::session::vocabulary;
use crate::weights::{DrawnSource, ParamSource};
use rdc_ir::program::{Input, OutputBuffer};
use rdc_ir::{ArgRole, DType, IGNORED_LABEL, Type};
use std::collections::{BTreeMap, HashMap};

/// A model in training: its parameters, gradients and moments, with the threads and memory to run its functions.
pub struct Trainer {
    executor: Executor,
    losses: Vec<Functions>,
    update: Option<usize>,
    accumulate: Option<usize>,
    /// The program's weight of each parameter and state, by name.
    weights: HashMap<String, usize>,
    /// Values of the parameters that no function uses, which checkpoints hold all the same.
    unused: BTreeMap<String, Vec<f32>>,
    memory: Pool,
}

/// The entries of a loss.
struct Functions {
    grad: Option<usize>,
    loss: Option<usize>,
    /// Ids and labels are below it.
    vocabulary: usize,
}

/// What states that a batch does not give are drawn under. A row's draws depend on these, on its number and on the position, and
/// not on how rows are cut into batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// The seed of the run.
    pub seed: u64,
    /// The step.
    pub step: u64,
    /// The number of the batch's first row among the rows of the step.
    pub row: usize,
}

/// What a loss gives.
#[derive(Debug)]
pub struct StepOutput<'a> {
    /// The loss of the batch.
    pub loss: f32,
    outputs: Vec<(&'a str, &'a Type, &'a [u8])>,
}

impl<'a> StepOutput<'a> {
    /// An output of type f32, by the name that the text gives it.
    pub fn get(&self, name: &str) -> Option<&'a [f32]> {
        let (_, ty, bytes) = self.outputs.iter().find(|(n, ..)| *n == name)?;
        (ty.dtype == DType::F32).then(|| bytemuck::cast_slice(bytes))
    }
    /// All outputs: name, type, bytes.
    pub fn all(&self) -> &[(&'a str, &'a Type, &'a [u8])] {
        &self.outputs
    }
}

/// Memory of inputs and outputs, shared between entries.
#[derive(Default)]
struct Pool(HashMap<(String, usize), Buffer>);

impl Pool {
    fn take(&mut self, name: &str, bytes: usize) -> Result<Buffer, Error> {
        let kept = self.0.get_mut(&(name.to_string(), bytes)).map(|b| std::mem::replace(b, Buffer::empty()));
        kept.filter(|b| b.len() == bytes).map_or_else(|| Buffer::zeroed(bytes), Ok)
    }
    fn put(&mut self, name: &str, buffer: Buffer) {
        self.0.insert((name.to_string(), buffer.len()), buffer);
    }
    fn get(&self, name: &str, bytes: usize) -> &[u8] {
        self.0.get(&(name.to_string(), bytes)).map_or(&[], |b| b)
    }
}

/// A call's inputs.
enum Call<'a> {
    Grad(&'a Batch, Depth, Draw),
    Loss(&'a Batch, usize, Draw),
    Update(&'a Hyper),
    Accumulate(f32),
}

impl Trainer {
    /// A trainer with `threads` threads; results do not depend on their number. Parameters that no function uses are read from
    /// `params`, and without it drawn (seed 0), to be in checkpoints.
    ///
    /// # Errors
    /// If the model is not compiled for training, the system gives no threads or memory, or `params` lacks a parameter.
    pub fn new(model: Model, threads: usize, params: Option<&dyn ParamSource>) -> Result<Trainer, Error> {
        let meta = model.meta();
        let Some(train) = &meta.train else {
            return Err(Error::Input("the model is not compiled for training: compile it with --train".into()));
        };
        let program = model.program();
        let find = |name: &str| program.entries.iter().position(|e| e.name == name);
        let functions = |loss: &LossInfo| {
            let (grad, value) = (find(&format!("grad{}", loss.suffix)), find(&format!("loss{}", loss.suffix)));
            let entry = grad.or(value).map(|e| &program.entries[e]);
            let least = entry.and_then(vocabulary).unwrap_or(i32::MAX as usize);
            Functions { grad, loss: value, vocabulary: least }
        };
        let losses = train.losses.iter().map(functions).collect();
        let stored = meta.params.iter().filter_map(|p| Some((p.name.clone(), model.find_weight(&p.name)?)));
        let weights: HashMap<String, usize> = stored.collect();
        let drawn = DrawnSource::new(&meta.params, 0);
        let mut unused = BTreeMap::new();
        for param in meta.params.iter().filter(|p| !p.state && !weights.contains_key(&p.name)) {
            let mut values = vec![0.0; param.ty.elements()];
            params.unwrap_or(&drawn).read(&param.name, 0, &mut values)?;
            unused.insert(param.name.clone(), values);
        }
        let (update, accumulate) = (find("update"), find("accumulate"));
        let executor = Executor::new(model, threads)?;
        Ok(Trainer { executor, losses, update, accumulate, weights, unused, memory: Pool::default() })
    }
    /// The model's metadata.
    pub fn meta(&self) -> &Meta {
        self.executor.model().meta()
    }
    /// What is particular to training in it.
    pub fn train_meta(&self) -> &TrainMeta {
        // `new` has checked that it is there.
        self.meta().train.as_ref().unwrap_or_else(|| unreachable!("a trainer's model has training metadata"))
    }
    /// The executor, to record a profile.
    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }
    /// Computes a loss (by default the first) and the gradients of all trained parameters, which replace those before.
    ///
    /// # Errors
    /// If the batch does not fit the program, an id or a label is outside the vocabulary, the depth is more than the program is
    /// compiled for, or the loss needs the gradient of every iteration and some go without.
    pub fn grad(
        &mut self,
        batch: &Batch,
        depth: Depth,
        loss: Option<&str>,
        draw: Draw,
    ) -> Result<StepOutput<'_>, Error> {
        let index = self.find_loss(loss)?;
        let (train, max_steps) = (self.train_meta(), self.meta().max_steps);
        let info = &train.losses[index];
        if depth.grad > train.max_grad_steps {
            return Err(Error::Input(format!(
                "{} iterations with gradient are more than the {} this model is compiled for: compile with --max-grad-steps {}",
                depth.grad, train.max_grad_steps, depth.grad
            )));
        }
        check_steps(depth.no_grad.saturating_add(depth.grad), max_steps)?;
        if info.all_steps && depth.no_grad > 0 {
            return Err(Error::Input(format!(
                "the loss `{}` is about every iteration, so none can go without gradient, and {} would",
                info.name, depth.no_grad
            )));
        }
        let entry = self.losses[index].grad;
        let entry = entry.ok_or_else(|| Error::Program(format!("the program has no function grad{}", info.suffix)))?;
        self.check_batch(batch, index)?;
        self.call(entry, &Call::Grad(batch, depth, draw))?;
        self.output(entry)
    }
    /// Computes a loss over `steps` iterations, without gradients.
    ///
    /// # Errors
    /// As [`Trainer::grad`].
    pub fn loss(
        &mut self,
        batch: &Batch,
        steps: usize,
        loss: Option<&str>,
        draw: Draw,
    ) -> Result<StepOutput<'_>, Error> {
        let index = self.find_loss(loss)?;
        check_steps(steps, self.meta().max_steps)?;
        let suffix = &self.train_meta().losses[index].suffix;
        let entry = self.losses[index].loss;
        let entry = entry.ok_or_else(|| Error::Program(format!("the program has no function loss{suffix}")))?;
        self.check_batch(batch, index)?;
        self.call(entry, &Call::Loss(batch, steps, draw))?;
        self.output(entry)
    }
    /// Adds the gradients to `keep` times their sums; with `keep` 0 the sums are begun anew.
    ///
    /// # Errors
    /// If the program does not accumulate.
    pub fn accumulate(&mut self, keep: f32) -> Result<(), Error> {
        let entry = self.accumulate.ok_or_else(|| {
            Error::Input("the model is not compiled to accumulate gradients: compile with --accumulate".into())
        })?;
        self.call(entry, &Call::Accumulate(keep))
    }
    /// Updates the parameters and the moments. Returns the norm of the scaled gradients before clipping; if that is not finite,
    /// nothing has changed.
    ///
    /// # Errors
    /// If the program has no optimiser.
    pub fn update(&mut self, hyper: &Hyper) -> Result<f32, Error> {
        let entry = self.update.ok_or_else(|| Error::Input("the model is compiled without an optimiser".into()))?;
        self.call(entry, &Call::Update(hyper))?;
        let outputs = self.outputs(entry);
        let norm = outputs.iter().find(|(name, ..)| *name == "grad_norm").and_then(|(.., bytes)| scalar(bytes));
        norm.ok_or_else(|| Error::Program("update has no output grad_norm".into()))
    }
    /// Floating-point operations of [`Trainer::grad`] at a depth, of `update`, and of [`Trainer::loss`] at `depth.grad` steps. They
    /// are the text's products, three times where there are gradients: what a framework computes that neither hoists nor computes
    /// again. Where these are not known, or some parameters have no gradient, they are those of the schedule.
    pub fn flops(&self, depth: Depth, loss: Option<&str>) -> Result<[u64; 3], Error> {
        let index = self.find_loss(loss)?;
        let functions = &self.losses[index];
        let train = self.train_meta();
        let products = train.losses.get(index).and_then(|l| l.products).filter(|_| train.frozen.is_empty());
        let program = self.executor.model().program();
        let count = |entry: Option<usize>| {
            let trips = |role| match role {
                ArgRole::NoGradSteps => depth.no_grad,
                _ => depth.grad,
            };
            entry.map_or(0, |e| flops(program, &program.entries[e], &trips))
        };
        let of_text = products.map(|[once, each]| {
            let times = |steps: usize| each.saturating_mul(steps as u64);
            let forward = once.saturating_add(times(depth.grad));
            (times(depth.no_grad).saturating_add(forward.saturating_mul(3)), forward)
        });
        let (grad, loss) = of_text.unwrap_or_else(|| (count(functions.grad), count(functions.loss)));
        Ok([grad, count(self.update), loss])
    }
    /// Names, shapes and values of the parameters, in the text's order.
    pub fn params(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let params = self.meta().params.iter().filter(|p| !p.state);
        params.filter_map(|p| Some((p.name.as_str(), &p.ty.shape[..], self.param(&p.name)?)))
    }
    /// Names, shapes and values of the state that outlives a step: the moments.
    pub fn moments(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let moments = self.meta().params.iter().filter(|p| p.state && p.name.starts_with("exp_avg"));
        moments.filter_map(|p| Some((p.name.as_str(), &p.ty.shape[..], self.value(&p.name)?)))
    }
    /// A parameter, row-major.
    pub fn param(&self, name: &str) -> Option<&[f32]> {
        self.value(name)
    }
    /// The gradient of a parameter as [`Trainer::grad`] left it; `None` for a frozen one.
    pub fn grad_of(&self, name: &str) -> Option<&[f32]> {
        self.value(&format!("grad.{name}"))
    }
    /// A parameter, or a state by its whole name (`exp_avg.NAME`).
    pub fn value(&self, name: &str) -> Option<&[f32]> {
        match self.weights.get(name) {
            Some(&index) => Some(bytemuck::cast_slice(self.executor.model().weight(index))),
            None => self.unused.get(name).map(Vec::as_slice),
        }
    }
    /// The same, to be written.
    ///
    /// # Errors
    /// If there is no such parameter or state.
    pub fn value_mut(&mut self, name: &str) -> Result<&mut [f32], Error> {
        match (self.weights.get(name), self.unused.get_mut(name)) {
            (Some(&index), _) => Ok(bytemuck::cast_slice_mut(self.executor.model_mut()?.weight_mut(index)?)),
            (None, Some(values)) => Ok(values),
            (None, None) => Err(Error::Input(format!("the model has no parameter {name}"))),
        }
    }
    /// Sets a parameter or a state.
    ///
    /// # Errors
    /// If there is none of that name, or it has another number of elements.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        let to = self.value_mut(name)?;
        if to.len() != values.len() {
            return Err(Error::Input(format!("{name} has {} elements, not {}", to.len(), values.len())));
        }
        to.copy_from_slice(values);
        Ok(())
    }
    /// Sets a parameter or a state to what a checkpoint holds under its name; of a parameter, an alias will do.
    ///
    /// # Errors
    /// If there is none of that name here or there, or its shape is another there.
    pub fn read_from(&mut self, name: &str, checkpoint: &Checkpoint) -> Result<(), Error> {
        let param = self.meta().params.iter().find(|p| p.name == name);
        let param = param.ok_or_else(|| Error::Input(format!("the model has no parameter {name}")))?;
        let names = std::iter::once(&param.name).chain(&param.aliases);
        let found = names.filter_map(|n| Some((n.clone(), checkpoint.tensor(n)?))).next();
        let (stored, info) = found.ok_or_else(|| checkpoint.missing(name))?;
        if info.shape != param.ty.shape {
            return Err(Error::Input(format!(
                "{stored} is {:?} in the checkpoint; the model has {:?}",
                info.shape, param.ty.shape
            )));
        }
        checkpoint.read(&stored, 0, self.value_mut(name)?)
    }
    /// The index of a loss, the first by default.
    fn find_loss(&self, name: Option<&str>) -> Result<usize, Error> {
        let losses = &self.train_meta().losses;
        let index = match name {
            None => (!losses.is_empty()).then_some(0),
            Some(name) => losses.iter().position(|l| l.name == name),
        };
        index.ok_or_else(|| {
            let names: Vec<&str> = losses.iter().map(|l| l.name.as_str()).collect();
            Error::Input(format!("there is no loss `{}`; compiled are: {}", name.unwrap_or("any"), names.join(", ")))
        })
    }
    fn check_batch(&self, batch: &Batch, loss: usize) -> Result<(), Error> {
        let TrainMeta { batch: rows, seq, .. } = *self.train_meta();
        for (name, values) in [("ids", &batch.ids), ("labels", &batch.labels)] {
            if values.len() != rows * seq {
                return Err(Error::Input(format!(
                    "the batch has {} {name}, but the model is compiled for {rows} rows of {seq}",
                    values.len()
                )));
            }
        }
        let vocabulary = self.losses[loss].vocabulary;
        let outside = |id: i32| usize::try_from(id).map_or(true, |id| id >= vocabulary);
        let place = |i: usize| format!("in row {}, position {}", i / seq.max(1), i % seq.max(1));
        if let Some(i) = batch.ids.iter().position(|&id| outside(id)) {
            let id = batch.ids[i];
            return Err(Error::Input(format!("id {id} {} is outside the vocabulary of {vocabulary}", place(i))));
        }
        if let Some(i) = batch.labels.iter().position(|&label| label != IGNORED_LABEL && outside(label)) {
            let label = batch.labels[i];
            return Err(Error::Input(format!(
                "label {label} {} is neither {IGNORED_LABEL} nor in the vocabulary of {vocabulary}",
                place(i)
            )));
        }
        Ok(())
    }
    /// Runs an entry; its outputs are then in the pool.
    fn call(&mut self, entry: usize, call: &Call) -> Result<(), Error> {
        let model = self.executor.model().clone();
        let described = &model.program().entries[entry];
        let mut inputs = Vec::with_capacity(described.inputs.len());
        for input in &described.inputs {
            let ty = &described.buffers[input.buffer].ty;
            let mut buffer = self.memory.take(&input.name, ty.bytes())?;
            fill(input, ty, call, &mut buffer, &mut self.executor)?;
            inputs.push(buffer);
        }
        let mut outputs = Vec::with_capacity(described.outputs.len());
        for output in &described.outputs {
            outputs.push(self.memory.take(&output.name, described.buffers[output.buffer].ty.bytes())?);
        }
        // An entry that updates weights must be their only owner.
        drop(model);
        let mut pointers: Vec<&mut Buffer> = inputs.iter_mut().collect();
        self.executor.run(entry, &mut pointers, &mut outputs, None, AfterExit::Leave)?;
        let described = &self.executor.model().program().entries[entry];
        for (input, buffer) in described.inputs.iter().zip(inputs) {
            self.memory.put(&input.name, buffer);
        }
        for (output, buffer) in described.outputs.iter().zip(outputs) {
            self.memory.put(&output.name, buffer);
        }
        Ok(())
    }
    fn outputs<'a>(&'a self, entry: usize) -> Vec<(&'a str, &'a Type, &'a [u8])> {
        let entry = &self.executor.model().program().entries[entry];
        let output = |o: &'a OutputBuffer| {
            let ty = &entry.buffers[o.buffer].ty;
            (o.name.as_str(), ty, self.memory.get(&o.name, ty.bytes()))
        };
        entry.outputs.iter().map(output).collect()
    }
    fn output(&self, entry: usize) -> Result<StepOutput<'_>, Error> {
        let outputs = self.outputs(entry);
        let loss = outputs.iter().find(|(name, ..)| *name == "loss").and_then(|(.., bytes)| scalar(bytes));
        let loss = loss.ok_or_else(|| Error::Program("a loss has no output of that name".into()))?;
        Ok(StepOutput { loss, outputs })
    }
}

fn check_steps(steps: usize, max_steps: usize) -> Result<(), Error> {
    if steps > max_steps {
        return Err(Error::Input(format!(
            "{steps} iterations are more than the {max_steps} this model is compiled for: compile with --max-steps {steps}"
        )));
    }
    Ok(())
}

fn scalar(bytes: &[u8]) -> Option<f32> {
    Some(f32::from_le_bytes(*bytes.first_chunk::<4>()?))
}

/// Fills the memory of an input.
fn fill(input: &Input, ty: &Type, call: &Call, out: &mut Buffer, executor: &mut Executor) -> Result<(), Error> {
    let misplaced = || Error::Program(format!("the input {} has no value in this function", input.name));
    let ints = |out: &mut Buffer, value: usize| {
        let value = i32::try_from(value).map_err(|_| misplaced())?;
        out.as_chunks_mut::<4>().0.iter_mut().for_each(|x| *x = value.to_le_bytes());
        Ok(())
    };
    let tokens = |out: &mut Buffer, values: &[i32]| {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.len() != out.len() {
            return Err(Error::Program(format!("the input {} is {ty}, not the batch's size", input.name)));
        }
        out.copy_from_slice(bytes);
        Ok(())
    };
    match (input.role, call) {
        (ArgRole::Ids, Call::Grad(batch, ..) | Call::Loss(batch, ..)) => tokens(out, &batch.ids),
        (ArgRole::Labels, Call::Grad(batch, ..) | Call::Loss(batch, ..)) => tokens(out, &batch.labels),
        // Every row is a sequence from its start.
        (ArgRole::Position, _) => ints(out, 0),
        (ArgRole::NoGradSteps, Call::Grad(_, depth, _)) => ints(out, depth.no_grad),
        (ArgRole::GradSteps, Call::Grad(_, depth, _)) => ints(out, depth.grad),
        (ArgRole::Steps, Call::Loss(_, steps, _)) => ints(out, *steps),
        (ArgRole::State(init), Call::Grad(batch, _, draw) | Call::Loss(batch, _, draw)) => {
            if let Some((name, values)) = batch.states.iter().find(|(name, _)| *name == input.name) {
                let bytes: &[u8] = bytemuck::cast_slice(values);
                if bytes.len() != out.len() {
                    return Err(Error::Input(format!("`{name}` has {} elements; the model takes {ty}", values.len())));
                }
                out.copy_from_slice(bytes);
                return Ok(());
            }
            let stream = Stream::new(fold_step(draw.seed, "state", draw.step), &input.name, init);
            let (seq, dim) = (ty.shape.get(1).copied().unwrap_or(1).max(1), ty.last().max(1));
            executor.for_rows(bytemuck::cast_slice_mut::<u8, f32>(out), dim, &|i, row| {
                stream.fill((draw.row + i / seq) as u32, (i % seq) as u32, 0, row);
            });
            Ok(())
        }
        (ArgRole::Input, Call::Update(_) | Call::Accumulate(_)) => {
            let value = match call {
                Call::Update(hyper) => hyper.scalar(&input.name),
                Call::Accumulate(keep) => (input.name == "keep").then_some(*keep),
                _ => None,
            };
            match value {
                Some(value) if *ty == Type::scalar(DType::F32) => {
                    out.copy_from_slice(&value.to_le_bytes());
                    Ok(())
                }
                _ => Err(misplaced()),
            }
        }
        _ => Err(misplaced()),
    }
}
