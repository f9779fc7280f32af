//! One thread's walk through a schedule.
//!
//! `unsafe` here: kernels are called with addresses and memory is copied by address. The invariant, which [`Worker::walk`] asks of its
//! caller: each address of the table is of live memory as long as its buffer's type says, exclusive to this call (weights that
//! the entry does not update may be read elsewhere), and offsets stay within it (`validate::meta`). Two threads write the same bytes at the same time only if the schedule, whose
//! barriers order kernels, is wrong.
use super::States;
use super::claim::{Claim, Claimed, part};
use super::plan::{LaunchNode, LoopNode, Node, Plan};
use crate::Error;
use crate::barrier::{Barrier, spin_until};
use crate::memory::{Buffer, Shared};
use crate::profile::Event;
use rdc_ir::program::{Entry, Offset};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes between thread-private cells.
const CELL: usize = 8;

/// What the threads of a call share.
pub(super) struct Context<'a> {
    pub plan: &'a Plan,
    pub barrier: &'a Barrier,
    pub claims: &'a [Claim],
    /// Of each run of tasks that others may wait for, one more than the barriers that were met before it was last executed.
    pub stamps: &'a [AtomicU64],
    pub states: Option<&'a Mutex<&'a mut States>>,
    /// Whether loops may end early.
    pub exit: bool,
    /// The profile's time zero, if times are recorded.
    pub origin: Option<Instant>,
}

/// What a thread keeps for itself.
pub(super) struct Worker {
    thread: usize,
    addresses: Vec<Shared>,
    args: Vec<Shared>,
    scratch: Buffer,
    cells: Buffer,
    /// The barriers met so far, in all calls.
    epoch: u64,
    /// Where the next execution of each claim starts.
    bases: Vec<u64>,
    pub events: Vec<Event>,
    /// Iterations of the last loop.
    pub trips: usize,
}

impl Worker {
    pub fn new(thread: usize, scratch: usize, cells: usize, dynamic: usize) -> Result<Worker, Error> {
        Ok(Worker {
            thread,
            addresses: Vec::new(),
            args: Vec::new(),
            scratch: Buffer::zeroed(scratch)?,
            cells: Buffer::zeroed(cells * CELL)?,
            epoch: 0,
            bases: vec![0; dynamic],
            events: Vec::new(),
            trips: 0,
        })
    }
    /// Takes the addresses of a call, with its own cells for thread-private buffers.
    pub fn enter(&mut self, addresses: &[Shared], plan: &Plan) {
        self.addresses.clear();
        self.addresses.extend_from_slice(addresses);
        self.cells.fill(0);
        let cells = self.cells.shared();
        for &(buffer, cell) in &plan.private {
            self.addresses[buffer] = Shared(cells.0.wrapping_add(cell * CELL));
        }
        self.trips = 0;
    }
    /// Walks the schedule.
    ///
    /// # Safety
    /// See the top of this file; and all threads of the barrier walk the same plan.
    pub unsafe fn walk(&mut self, context: &Context) {
        // SAFETY: the caller's.
        unsafe {
            match context.origin {
                None => self.nodes::<false>(context, &context.plan.nodes, 0),
                Some(_) => self.nodes::<true>(context, &context.plan.nodes, 0),
            }
        }
    }
    unsafe fn nodes<const PROFILE: bool>(&mut self, context: &Context, nodes: &[Node], step: usize) {
        for node in nodes {
            // SAFETY: the caller's, for each.
            unsafe {
                match node {
                    Node::Launch(launch) => self.launch::<PROFILE>(context, launch, step),
                    Node::Copy { dst, src, bytes } => {
                        let (begin, end) = self.share(context, *bytes, 64);
                        let (dst, src) = (self.addresses[*dst].0, self.addresses[*src].0);
                        std::ptr::copy(src.add(begin), dst.add(begin), end - begin);
                        self.meet(context);
                    }
                    Node::Zero { buffer, bytes, barrier } => {
                        let (begin, end) = self.share(context, *bytes, 64);
                        self.addresses[*buffer].0.add(begin).write_bytes(0, end - begin);
                        if *barrier {
                            self.meet(context);
                        }
                    }
                    Node::Loop(inner) => self.repeat::<PROFILE>(context, inner),
                }
            }
        }
    }
    fn meet(&mut self, context: &Context) {
        context.barrier.wait(self.thread, &mut self.epoch);
    }
    /// This thread's contiguous share of `n` things, cut at multiples of `grain`.
    fn share(&self, context: &Context, n: usize, grain: usize) -> (usize, usize) {
        let (threads, grains) = (context.barrier.threads(), n.div_ceil(grain));
        let cut = |t: usize| (t * grains / threads * grain).min(n);
        (cut(self.thread), cut(self.thread + 1))
    }
    unsafe fn launch<const PROFILE: bool>(&mut self, context: &Context, node: &LaunchNode, step: usize) {
        let now = || if PROFILE { context.origin.map_or(0, |origin| origin.elapsed().as_nanos() as u64) } else { 0 };
        let mut event = Event { launch: node.id, resumed: false, start: now(), end: 0 };
        self.args.clear();
        for &(buffer, offset) in &node.args {
            let offset = match offset {
                Offset::Fixed(bytes) => bytes,
                Offset::Step { stride } => step * stride,
                Offset::Slot { policy, layer, layers, base, stride } => {
                    (base + policy.slot(step, layer, layers)) * stride
                }
            };
            // SAFETY: within the buffer: a step is below the loop's `max_steps`.
            self.args.push(Shared(unsafe { self.addresses[buffer].0.add(offset) }));
        }
        let (args, scratch) = (self.args.as_ptr().cast::<*mut u8>(), self.scratch.shared().0);
        // SAFETY: a kernel of this launch, with the pointers of its calling convention; tasks are within its number.
        let call = |begin: usize, end: usize| unsafe { (node.kernel)(args, begin as i64, end as i64, scratch) };
        let (stamp, events) = (self.epoch + 1, &mut self.events);
        let is_set = |&at: &usize| context.stamps[at].load(Ordering::Acquire) == stamp;
        let ready = |run: usize| node.order.as_ref().is_none_or(|order| order.after[run].iter().all(is_set));
        let run_tasks = |run: usize, begin: usize, end: usize| {
            call(begin, end);
            if let Some(order) = &node.order {
                context.stamps[order.first + run].store(stamp, Ordering::Release);
            }
        };
        let mut wait = |until: &mut dyn FnMut() -> bool| {
            if until() {
                return;
            }
            if PROFILE {
                events.push(Event { end: now(), ..event });
            }
            spin_until(until);
            event = Event { resumed: true, start: now(), ..event };
        };
        match &node.claim {
            Some(claims) if claims.shares.len() > 1 => loop {
                let mut claimed = Claimed::Blocked;
                wait(&mut || {
                    claimed = claims.next(context.claims, &self.bases, self.thread, &ready);
                    !matches!(claimed, Claimed::Blocked)
                });
                match claimed {
                    Claimed::Run { run, begin, end } => run_tasks(run, begin, end),
                    Claimed::Blocked | Claimed::Nothing => break,
                }
            },
            _ => {
                let (begin, end) = part(self.thread, context.barrier.threads(), node.tasks);
                if begin < end {
                    wait(&mut || ready(self.thread));
                    run_tasks(self.thread, begin, end);
                }
            }
        }
        if let Some(claims) = &node.claim {
            claims.advance(&mut self.bases);
        }
        if PROFILE {
            events.push(Event { end: now(), ..event });
        }
        if node.barrier {
            self.meet(context);
        }
    }
    unsafe fn repeat<const PROFILE: bool>(&mut self, context: &Context, node: &LoopNode) {
        // SAFETY: an i32 in memory that no kernel writes now, and the cells of this thread, as their types say; the rest is the
        // caller's.
        unsafe {
            let steps = self.addresses[node.steps].0.cast::<i32>().read();
            let steps = usize::try_from(steps).unwrap_or(0).min(node.max_steps);
            let mut trips = 0;
            while trips < steps {
                let step = if node.reverse { steps - 1 - trips } else { trips };
                self.addresses[node.step].0.cast::<i32>().write(step as i32);
                self.addresses[node.is_last].0.write(u8::from(step + 1 == steps));
                self.nodes::<PROFILE>(context, &node.body, step);
                trips += 1;
                if node.barrier {
                    self.meet(context);
                }
                // Read before the exchange: the body wrote the buffer under the name it has now.
                let done =
                    context.exit && node.done.as_ref().is_some_and(|done| self.addresses[done.buffer].0.read() != 0);
                for &(carried, next) in &node.swaps {
                    self.addresses.swap(carried, next);
                }
                if context.states.is_some() {
                    self.record(context, node);
                } else if node.done.as_ref().is_some_and(|done| done.barrier) {
                    self.meet(context);
                }
                if done {
                    break;
                }
            }
            self.addresses[node.trips].0.cast::<i32>().write(trips as i32);
            self.trips = trips;
            for &(buffer, stride, bytes) in &node.stacked {
                let from = (trips * stride).min(bytes);
                let (begin, end) = self.share(context, bytes - from, 64);
                self.addresses[buffer].0.add(from + begin).write_bytes(0, end - begin);
            }
            if !node.stacked.is_empty() {
                self.meet(context);
            }
        }
    }
    /// Copies the carried tensors while all threads wait.
    unsafe fn record(&mut self, context: &Context, node: &LoopNode) {
        self.meet(context);
        if self.thread == 0
            && let Some(states) = context.states
        {
            // SAFETY: each buffer has that many bytes, and no thread is in a kernel.
            let copy = |&(buffer, bytes): &(usize, usize)| unsafe {
                std::slice::from_raw_parts(self.addresses[buffer].0, bytes).to_vec()
            };
            let copies = node.carried.iter().map(copy).collect();
            states.lock().unwrap_or_else(PoisonError::into_inner).push(copies);
        }
        self.meet(context);
    }
    /// Copies results that lie elsewhere (a loop has exchanged their memory, or a result is an input) into the outputs.
    pub fn collect(&mut self, entry: &Entry, outputs: &mut [Buffer]) {
        let mut staged = Vec::new();
        for (index, output) in entry.outputs.iter().enumerate() {
            let address = self.addresses[output.buffer];
            if address != outputs[index].shared() {
                // SAFETY: as in `walk`, and the call is over. Copied out first: it may lie in another output's memory.
                let bytes = unsafe { std::slice::from_raw_parts(address.0, outputs[index].len()) };
                staged.push((index, bytes.to_vec()));
            }
        }
        for (index, bytes) in staged {
            outputs[index].copy_from_slice(&bytes);
        }
    }
}
