//! Runs sequences: from named inputs to named outputs, chunk by chunk through the KV cache.
mod inputs;
mod outputs;
mod pieces;

use crate::Error;
use crate::artifact::{Artifact, Verify};
use crate::exec::{Executor, States};
use crate::memory::Buffer;
use crate::model::Model;
use crate::profile::Profile;
use crate::tensor::{Tensor, TensorMap};
use crate::threads::default_threads;
pub(crate) use pieces::vocabulary;

use inputs::Inputs;
use outputs::Assembly;
use pieces::{Call, Function};
use rdc_ir::ArgRole;
use std::path::Path;
use std::sync::Arc;

/// How a session is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Threads; by default what [`default_threads`] says.
    pub threads: Option<usize>,
    /// Seed of the weights, if the artifact holds initialisers only.
    pub seed: u64,
    /// How much of the artifact is checked.
    pub verify: Verify,
}

/// What a run is asked for.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Steps of the loop; by default the model's.
    pub steps: Option<usize>,
    /// Seed of a drawn initial state.
    pub seed: u64,
    /// Lengths of the pieces that the sequence is fed in; by default as few as the compiled lengths allow.
    pub chunks: Option<Vec<usize>>,
    /// Read-out; by default the model's first.
    pub readout: Option<String>,
    /// Whether to return the carried tensors after every step, as `state_1`, `state_2`, ….
    pub states: bool,
    /// Whether no later call continues the sequence: then, if it runs in one piece, its loop may end early.
    pub last: bool,
}

/// What a run gives.
#[derive(Debug)]
pub struct RunOutput {
    /// Outputs by name. Those with a sequence axis are `[B, S, ..]` over the whole sequence; stacked ones have a leading axis of the
    /// steps taken (the most over all calls; where a call took fewer, zeros). Others are those of the last call.
    /// With [`RunOptions::states`], `state_i` is the carried tensor after step i, and `state_i.j` a further one.
    pub outputs: TensorMap,
    /// Steps that each call took.
    pub trips: Vec<usize>,
    /// Names of inputs that the model does not have.
    pub ignored: Vec<String>,
}

/// The KV caches of a sequence and how many positions they hold. Made by [`Session::new_state`], for that session only.
#[derive(Debug)]
pub struct KvState {
    /// Positions so far.
    pub position: usize,
    caches: Vec<Buffer>,
}

/// A model with threads and memory to run it.
pub struct Session {
    executor: Executor,
    functions: Vec<Function>,
    /// Names and bytes of the caches of all entries.
    caches: Vec<(String, usize)>,
    /// Memory for the inputs (less caches) and outputs of each entry, from its first use on.
    memory: Vec<Option<Memory>>,
}

struct Memory {
    inputs: Vec<Buffer>,
    outputs: Vec<Buffer>,
}

impl Session {
    /// Opens an artifact and loads it.
    ///
    /// # Errors
    /// As [`Artifact::open`], [`Model::load`] and [`Session::new`].
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Session, Error> {
        let artifact = Artifact::open(path, options.verify)?;
        let model = Model::load(&artifact, options.seed)?;
        Session::new(Arc::new(model), options.threads.unwrap_or_else(default_threads))
    }
    /// A session with `threads` threads.
    ///
    /// # Errors
    /// If the system gives no threads or memory, or the program's functions disagree about a cache.
    pub fn new(model: Arc<Model>, threads: usize) -> Result<Session, Error> {
        let executor = Executor::new(model.clone(), threads)?;
        let program = model.program();
        let mut caches: Vec<(String, usize)> = Vec::new();
        for entry in &program.entries {
            for input in entry.inputs.iter().filter(|i| i.role == ArgRole::Cache) {
                let bytes = entry.buffers[input.buffer].ty.bytes();
                match caches.iter().find(|(name, _)| *name == input.name) {
                    Some((_, other)) if *other != bytes => {
                        return Err(Error::Program(format!("the cache {} has two sizes", input.name)));
                    }
                    Some(_) => {}
                    None => caches.push((input.name.clone(), bytes)),
                }
            }
        }
        let functions = pieces::functions(&model);
        let memory = program.entries.iter().map(|_| None).collect();
        Ok(Session { executor, functions, caches, memory })
    }
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.executor.model()
    }
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.executor.threads()
    }
    /// Empty caches, at position 0.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new_state(&self) -> Result<KvState, Error> {
        let caches = self.caches.iter().map(|(_, bytes)| Buffer::zeroed(*bytes)).collect::<Result<_, _>>()?;
        Ok(KvState { position: 0, caches })
    }
    /// Records the times of launches from now on.
    pub fn start_profile(&mut self) {
        self.executor.start_profile();
    }
    /// Ends the recording and returns it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.executor.take_profile()
    }
    /// Runs a sequence from position 0. See [`Session::run_from`].
    ///
    /// # Errors
    /// As [`Session::run_from`].
    pub fn run(&mut self, inputs: &TensorMap, options: &RunOptions) -> Result<RunOutput, Error> {
        let mut state = self.new_state()?;
        self.run_from(&mut state, inputs, &RunOptions { last: true, ..options.clone() })
    }
    /// Runs a sequence that continues the one in `state`, and moves `state` on. Inputs go by name: `input_ids` `i32[B, S]`, and the
    /// model's others. A state such as `initial_state` `f32[B, T, dim]` is drawn under the seed if it is not given; row i
    /// of it is for absolute position i, so it has at least as many rows as positions are reached.
    ///
    /// # Errors
    /// If an input is missing or does not fit (the message names the compile flag where one helps), an id is outside the
    /// vocabulary, the steps exceed R_max, the sequence goes past the context, or no function can run a piece.
    pub fn run_from(
        &mut self,
        state: &mut KvState,
        inputs: &TensorMap,
        options: &RunOptions,
    ) -> Result<RunOutput, Error> {
        let model = self.model().clone();
        let meta = model.meta();
        let steps = options.steps.unwrap_or(meta.default_steps);
        if steps > meta.max_steps {
            return Err(Error::Input(format!(
                "{steps} steps are more than the {} this model is compiled for: compile with --max-steps {steps}",
                meta.max_steps
            )));
        }
        if state.caches.len() != self.caches.len()
            || state.caches.iter().zip(&self.caches).any(|(buffer, (_, bytes))| buffer.len() != *bytes)
        {
            return Err(Error::Input("the KV state belongs to another model".into()));
        }
        let suffix = pieces::readout(meta, options.readout.as_deref())?;
        let functions: Vec<&Function> = self.functions.iter().filter(|f| f.readout == suffix).collect();
        let inputs = Inputs::new(&model, &functions, inputs, state.position, options.seed)?;
        let calls = pieces::plan(meta, &functions, state.position, inputs.length, options.chunks.as_deref())?;
        let ignored = inputs.ignored.clone();
        let (mut assembly, mut trips) = (Assembly::new(inputs.length, steps, &functions), Vec::new());
        let base = state.position;
        // A token that leaves early has no keys at deeper steps. Later pieces look for them, so then no one leaves: more
        // iterations change nothing in the results of who is done.
        let exit = options.last && calls.len() == 1 && base == 0;
        for call in &calls {
            let mut states = options.states.then(States::new);
            let taken = self.call(state, &inputs, call, (steps, exit), states.as_mut())?;
            let entry = &model.program().entries[call.entry];
            let memory = self.memory[call.entry].as_mut();
            let outputs = memory.map_or(&mut [][..], |m| &mut m.outputs);
            assembly.add(entry, call, call.start - base, outputs, taken)?;
            if let Some(states) = states {
                assembly.add_states(entry, call, call.start - base, &states)?;
            }
            trips.push(taken);
            state.position += call.rows;
        }
        Ok(RunOutput { outputs: assembly.finish(), trips, ignored })
    }
    /// Runs one piece; its outputs are then in the entry's memory. Returns the steps taken.
    fn call(
        &mut self,
        state: &mut KvState,
        inputs: &Inputs,
        call: &Call,
        (steps, exit): (usize, bool),
        states: Option<&mut States>,
    ) -> Result<usize, Error> {
        let model = self.model().clone();
        let entry = &model.program().entries[call.entry];
        let memory = match &mut self.memory[call.entry] {
            Some(memory) => memory,
            none => none.insert(Memory {
                inputs: entry
                    .inputs
                    .iter()
                    .filter(|i| i.role != ArgRole::Cache)
                    .map(|i| Buffer::zeroed(entry.buffers[i.buffer].ty.bytes()))
                    .collect::<Result<_, _>>()?,
                outputs: Vec::new(),
            }),
        };
        // The last run may have taken some away.
        let sizes = self.executor.output_bytes(call.entry);
        memory.outputs.resize_with(sizes.len(), Buffer::empty);
        for (buffer, bytes) in memory.outputs.iter_mut().zip(sizes) {
            if buffer.len() != bytes {
                *buffer = Buffer::zeroed(bytes)?;
            }
        }
        let (mut own, mut caches) = (memory.inputs.iter_mut(), state.caches.iter_mut().map(Some).collect::<Vec<_>>());
        let mut pointers: Vec<&mut Buffer> = Vec::with_capacity(entry.inputs.len());
        for input in &entry.inputs {
            let buffer = if input.role == ArgRole::Cache {
                let index = self.caches.iter().position(|(name, _)| *name == input.name);
                index.and_then(|i| caches[i].take())
            } else {
                own.next()
            };
            let buffer = buffer.ok_or_else(|| Error::Program(format!("the input {} occurs twice", input.name)))?;
            if input.role != ArgRole::Cache {
                inputs.fill(input, &entry.buffers[input.buffer].ty, call, steps, buffer)?;
            }
            pointers.push(buffer);
        }
        let outcome = self.executor.run(call.entry, &mut pointers, &mut memory.outputs, states, exit)?;
        Ok(outcome.trips)
    }
}

/// Sizes of a tensor, for messages.
fn describe(tensor: &Tensor) -> String {
    format!("{}{:?}", tensor.dtype.name(), tensor.shape)
}

#[cfg(test)]
mod tests;
