//! Runs the schedules of a program.
//!
//! All threads walk the same list of steps. A launch is cut into tasks, of which each thread takes a share; the cut does not
//! depend on the number of threads, so results do not either. State that may differ between threads (the cells: step and trips; a
//! thread's count of barriers) is each thread's own and needs no synchronisation.
mod claim;
mod order;
mod plan;
mod walk;

use crate::Error;
use crate::barrier::Barrier;
use crate::memory::{Buffer, Shared};
use crate::model::Model;
use crate::profile::{LaunchInfo, Profile};
use crate::threads::Pool;
use claim::Claim;
use plan::{Counts, Plan, plan};
use rdc_ir::program::Place;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use walk::{Context, Worker};

/// Executes entries of one model, one call at a time, with its own threads and memory.
pub struct Executor {
    model: Arc<Model>,
    pool: Pool,
    barrier: Barrier,
    plans: Vec<Plan>,
    claims: Vec<Claim>,
    stamps: Vec<AtomicU64>,
    launches: Vec<LaunchInfo>,
    workers: Vec<Mutex<Worker>>,
    arena: Buffer,
    profile: Option<Profile>,
}

/// What a loop does after the iteration whose exit says that it is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterExit {
    /// It ends.
    Leave,
    /// It runs to the last step all the same, so that caches have the entries of every step; what it gives is that of the exit.
    FillCaches,
}

/// What a call reports beside its outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Iterations of the last loop of the schedule (0 if it has none).
    pub trips: usize,
}

/// Copies of a loop's carried tensors: for each iteration the bytes of each carried tensor that is not a cache.
pub type States = Vec<Vec<Vec<u8>>>;

impl Executor {
    /// An executor with `threads` threads.
    ///
    /// # Errors
    /// If the system gives no threads or memory.
    pub fn new(model: impl Into<Arc<Model>>, threads: usize) -> Result<Executor, Error> {
        let (model, threads) = (model.into(), threads.max(1));
        let program = model.program();
        let mut counts = Counts::default();
        let plans: Vec<Plan> = program.entries.iter().map(|entry| plan(&model, entry, threads, &mut counts)).collect();
        let (arena, scratch) = (program.arena(), program.scratch());
        let cells = plans.iter().map(|p| p.cells).max().unwrap_or(0);
        let workers = (0..threads)
            .map(|thread| Ok(Mutex::new(Worker::new(thread, scratch, cells, counts.claims)?)))
            .collect::<Result<_, Error>>()?;
        let pool = Pool::new(threads).map_err(|e| Error::Program(format!("cannot start {threads} threads: {e}")))?;
        Ok(Executor {
            pool,
            barrier: Barrier::new(threads),
            plans,
            claims: (0..counts.claims).map(|_| Claim::default()).collect(),
            stamps: (0..counts.stamps).map(|_| AtomicU64::new(0)).collect(),
            launches: counts.launches,
            workers,
            arena: Buffer::zeroed(arena)?,
            profile: None,
            model,
        })
    }
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
    /// The model, to write its weights between runs.
    ///
    /// # Errors
    /// If someone else holds it too.
    pub fn model_mut(&mut self) -> Result<&mut Model, Error> {
        Arc::get_mut(&mut self.model).ok_or_else(|| Error::Program("the model's weights are in use elsewhere".into()))
    }
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
    /// Bytes of each output of an entry.
    pub fn output_bytes(&self, entry: usize) -> Vec<usize> {
        let entry = &self.model.program().entries[entry];
        entry.outputs.iter().map(|o| entry.buffers[o.buffer].ty.bytes()).collect()
    }
    /// Runs `each` with the number and the elements of every row of `width` elements, the rows shared out among the threads.
    pub fn for_rows(&mut self, elements: &mut [f32], width: usize, each: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let width = width.max(1);
        let rows = (elements.len() / width).div_ceil(self.threads()).max(1);
        let parts: Vec<Mutex<&mut [f32]>> = elements.chunks_mut(rows * width).map(Mutex::new).collect();
        self.pool.run(&|thread| {
            let Some(part) = parts.get(thread) else { return };
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            for (row, elements) in part.chunks_exact_mut(width).enumerate() {
                each(thread * rows + row, elements);
            }
        });
    }
    /// Records times from now on.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::new(self.launches.clone(), self.threads()));
    }
    /// Ends the recording and returns it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }
    /// Runs an entry. `inputs` are its inputs in order, each as long as its type; KV caches are updated in place, and other
    /// inputs may be overwritten (a loop may use the memory of its initial state). `outputs` receive the results, each as long as
    /// [`Executor::output_bytes`] says. With `states` every iteration's carried tensors are appended to it. An entry that updates
    /// weights writes those of the model.
    ///
    /// # Errors
    /// If the number or the lengths of inputs or outputs are wrong, or the entry updates weights and the model is held elsewhere
    /// too.
    pub fn run(
        &mut self,
        entry: usize,
        inputs: &mut [&mut Buffer],
        outputs: &mut [Buffer],
        states: Option<&mut States>,
        after_exit: AfterExit,
    ) -> Result<Outcome, Error> {
        let program = self.model.program();
        let Some(described) = program.entries.get(entry) else {
            return Err(Error::Program(format!("there is no entry {entry}")));
        };
        let length = |buffer: usize| described.buffers[buffer].ty.bytes();
        let fits = inputs.len() == described.inputs.len()
            && outputs.len() == described.outputs.len()
            && described.inputs.iter().zip(inputs.iter()).all(|(d, b)| length(d.buffer) == b.len())
            && described.outputs.iter().zip(outputs.iter()).all(|(d, b)| length(d.buffer) == b.len());
        if !fits {
            return Err(Error::Program(format!(
                "memory for entry {} does not fit its inputs and outputs",
                described.name
            )));
        }
        let arena = self.arena.shared();
        // Weights that are written must be this call's alone.
        let weights: Vec<Shared> = match (self.plans[entry].updates, Arc::get_mut(&mut self.model)) {
            (false, _) => self.model.weight_addresses(),
            (true, Some(model)) => model.weight_addresses_mut()?,
            (true, None) => return Err(Error::Program("the model's weights are in use elsewhere".into())),
        };
        let described = &self.model.program().entries[entry];
        let addresses: Vec<Shared> = described
            .buffers
            .iter()
            .map(|buffer| match buffer.place {
                Place::Arena(offset) => Shared(arena.0.wrapping_add(offset)),
                Place::Weight(index) => weights[index],
                Place::Input(index) => inputs[index].shared(),
                Place::Output(index) => outputs[index].shared(),
                // Each thread's own, or one of two others.
                _ => Shared(std::ptr::null_mut()),
            })
            .collect();
        let plan = &self.plans[entry];
        let states = states.map(Mutex::new);
        let context = Context {
            plan,
            addresses: &addresses,
            barrier: &self.barrier,
            claims: &self.claims,
            stamps: &self.stamps,
            states: states.as_ref(),
            after_exit,
            origin: self.profile.as_ref().map(|p| p.origin()),
        };
        let workers = &self.workers;
        self.pool.run(&|thread| {
            let mut worker = workers[thread].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: every address is of memory as long as its buffer's type says: the arena, a weight and the callers' buffers,
            // which the lengths above and `validate::meta` make sure of, and which this function holds borrowed exclusively (of
            // the model it is the only owner if the entry writes weights, and they are only read if not). All threads of the
            // barrier are in this call.
            unsafe { worker.walk(&context) };
        });
        let mut worker = self.workers[0].lock().unwrap_or_else(PoisonError::into_inner);
        worker.collect(&context, outputs);
        let trips = worker.trips(plan);
        drop(worker);
        if let Some(profile) = &mut self.profile {
            for (thread, worker) in self.workers.iter().enumerate() {
                let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
                profile.add(thread, &mut worker.events);
            }
        }
        Ok(Outcome { trips })
    }
}

#[cfg(test)]
mod order_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod update_tests;
