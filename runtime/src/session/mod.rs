//! Runs sequences: from named inputs to named outputs, chunk by chunk through the KV cache.
mod inputs;
mod outputs;
mod pieces;

use crate::Error;
use crate::artifact::{Artifact, Verify};
use crate::exec::{AfterExit, Executor, States};
use crate::memory::Buffer;
use crate::model::Model;
use crate::profile::Profile;
use crate::tensor::{Tensor, TensorMap};
use crate::threads::default_threads;
pub(crate) use pieces::vocabulary;

use inputs::Inputs;
use outputs::Assembly;
use pieces::{Call, Function};
use rdc_ir::{ArgRole, Type};
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
    /// Whether no later call continues the sequence: then the caches need no entries of the steps after an exit.
    pub last: bool,
}

/// What a run gives.
#[derive(Debug)]
pub struct RunOutput {
    /// Outputs by name. Those with positions, on whichever axis, are of the whole sequence; stacked ones have a leading axis of the
    /// steps taken (the most over all calls; where a call took fewer, zeros). Others are those of the last call.
    /// With [`RunOptions::states`], `state_i` is the carried tensor after step i, and `state_i.j` a further one.
    pub outputs: TensorMap,
    /// Steps that each call took. A call ends its loop for itself, when the positions that it was given agree.
    pub trips: Vec<usize>,
    /// Names of inputs that the model does not have.
    pub ignored: Vec<String>,
}

/// The KV caches of a sequence and how many positions they hold. Made by [`Session::new_state`], for that session only. Entries of
/// positions beyond are zero.
#[derive(Debug)]
pub struct KvState {
    /// Positions so far.
    pub position: usize,
    /// The caches, and which of the session's lists they are of, from the first call on.
    caches: Option<(usize, Vec<Buffer>)>,
}

impl KvState {
    /// The caches for functions with a list of them, of these types.
    fn caches(&mut self, list: usize, types: &[(String, Type)]) -> Result<&mut [Buffer], Error> {
        match &mut self.caches {
            Some((of, buffers)) if *of == list => {
                if buffers.len() != types.len() || buffers.iter().zip(types).any(|(b, (_, ty))| b.len() != ty.bytes()) {
                    return Err(Error::Input("the KV state belongs to another model".into()));
                }
            }
            Some(_) if self.position > 0 => {
                return Err(Error::Input("the KV state was begun by a read-out with other caches".into()));
            }
            _ => {
                let buffers = types.iter().map(|(_, ty)| Buffer::zeroed(ty.bytes())).collect::<Result<_, _>>()?;
                self.caches = Some((list, buffers));
            }
        }
        Ok(self.caches.as_mut().map_or(&mut [], |(_, buffers)| buffers))
    }
}

/// A model with threads and memory to run it.
pub struct Session {
    executor: Executor,
    functions: Arc<[Function]>,
    /// The lists of caches that functions have, by name. Read-outs of different depth have different ones.
    caches: Vec<Vec<(String, Type)>>,
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
        let (mut caches, mut lists) = (Vec::new(), Vec::new());
        for entry in &program.entries {
            let of_role = entry.inputs.iter().filter(|i| i.role == ArgRole::Cache);
            let mut list: Vec<(String, Type)> =
                of_role.map(|i| (i.name.clone(), entry.buffers[i.buffer].ty.clone())).collect();
            list.sort_by(|a, b| a.0.cmp(&b.0));
            lists.push(caches.iter().position(|l| *l == list).unwrap_or(caches.len()));
            if lists.last() == Some(&caches.len()) {
                caches.push(list);
            }
        }
        let functions: Arc<[Function]> = pieces::functions(&model, &lists).into();
        for f in functions.iter() {
            if functions.iter().any(|g| g.readout == f.readout && g.caches != f.caches) {
                return Err(Error::Program("functions of one read-out have different caches".into()));
            }
        }
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
    /// Empty caches, at position 0. They take memory from the first call on.
    pub fn new_state(&self) -> KvState {
        KvState { position: 0, caches: None }
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
        let mut state = self.new_state();
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
        let suffix = pieces::readout(meta, options.readout.as_deref())?;
        let all = self.functions.clone();
        let functions: Vec<&Function> = all.iter().filter(|f| f.readout == suffix).collect();
        let inputs = Inputs::new(&model, &functions, inputs, state.position, options.seed)?;
        let calls = pieces::plan(meta, &functions, state.position, inputs.length, options.chunks.as_deref())?;
        let ignored = inputs.ignored.clone();
        let (mut assembly, mut trips) = (Assembly::new(inputs.length, steps), Vec::new());
        let base = state.position;
        for (index, call) in calls.iter().enumerate() {
            let Some(function) = functions.iter().copied().find(|f| f.entry == call.entry) else { continue };
            let last = options.last && index + 1 == calls.len();
            // Later calls look up the keys and values of every step.
            let after_exit = if last || !function.caches_steps { AfterExit::Leave } else { AfterExit::FillCaches };
            let mut states = options.states.then(States::new);
            let taken = self.call(state, &inputs, (call, function.caches), (steps, after_exit), states.as_mut())?;
            let entry = &model.program().entries[call.entry];
            let memory = self.memory[call.entry].as_mut();
            let outputs = memory.map_or(&mut [][..], |m| &mut m.outputs);
            assembly.add((entry, function), call, call.start - base, outputs, taken)?;
            if let Some(states) = states {
                assembly.add_states((entry, &function.positions), call, call.start - base, &states)?;
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
        (call, list): (&Call, usize),
        (steps, after_exit): (usize, AfterExit),
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
        let buffers = state.caches(list, &self.caches[list])?;
        let (mut own, mut caches) = (memory.inputs.iter_mut(), buffers.iter_mut().map(Some).collect::<Vec<_>>());
        let mut pointers: Vec<&mut Buffer> = Vec::with_capacity(entry.inputs.len());
        for input in &entry.inputs {
            let buffer = if input.role == ArgRole::Cache {
                let index = self.caches[list].iter().position(|(name, _)| *name == input.name);
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
        let outcome = self.executor.run(call.entry, &mut pointers, &mut memory.outputs, states, after_exit)?;
        if call.rows < call.chunk {
            let padding = call.start + call.rows..call.start + call.chunk;
            let caches = state.caches(list, &self.caches[list])?.iter_mut();
            caches.zip(&self.caches[list]).for_each(|(cache, (_, ty))| forget(cache, ty, padding.clone()));
        }
        Ok(outcome.trips)
    }
}

/// Zeroes the entries of some positions in a cache `[slots, B, T, H, D]`, which lies head-major: `[slots, B, H, T, D]`.
fn forget(cache: &mut Buffer, ty: &Type, positions: std::ops::Range<usize>) {
    let (row, length) = (ty.row_bytes(), ty.shape[2]);
    for head in cache.chunks_exact_mut(length * row) {
        head[positions.start * row..positions.end.min(length) * row].fill(0);
    }
}

/// Sizes of a tensor, for messages.
fn describe(tensor: &Tensor) -> String {
    format!("{}{:?}", tensor.dtype.name(), tensor.shape)
}

#[cfg(test)]
mod tests;
