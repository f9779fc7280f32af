//! One thread's walk through a schedule.
//!
//! `unsafe` here: kernels are called with addresses and memory is copied by address. The invariant, which [`Worker::walk`] asks of its
//! caller: each address of the table is of live memory as long as its buffer's type says, exclusive to this call (weights that
//! the entry does not update may be read elsewhere), and offsets stay within it (`validate::meta`). Two threads touch the same bytes
//! at the same time, one writing, only if the schedule, whose barriers and waits order tasks, is wrong.
use super::claim::{Claim, Claimed, Run, part};
use super::plan::{LaunchNode, LoopNode, Node, Plan};
use super::{AfterExit, States};
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
    /// What loops do when an iteration says that it is the last.
    pub after_exit: AfterExit,
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

/// The launches since the last barrier, each with its step, of which others may have left tasks.
type Open<'p> = Vec<(&'p LaunchNode, usize)>;

/// What a thread may do next.
enum Todo<'p> {
    /// Tasks of its share.
    Own(Run),
    /// Tasks that others have left of a launch, at a step.
    Help(&'p LaunchNode, usize, Run),
    Wait,
    /// It has done its share.
    Nothing,
}

/// What others have left.
enum Left<'p> {
    /// These tasks of a launch at a step, now this thread's.
    Run(&'p LaunchNode, usize, Run),
    /// Tasks that must wait.
    Waiting,
    Nothing,
}

/// Nanoseconds since the profile's time zero.
fn now(context: &Context) -> u64 {
    context.origin.map_or(0, |origin| origin.elapsed().as_nanos() as u64)
}

fn begin<const PROFILE: bool>(context: &Context, node: &LaunchNode, resumed: bool) -> Event {
    Event { launch: node.id, resumed, start: if PROFILE { now(context) } else { 0 }, end: 0 }
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
        let mut open = Open::new();
        // SAFETY: the caller's.
        unsafe {
            match context.origin {
                None => self.nodes::<false>(context, &context.plan.nodes, 0, &mut open),
                Some(_) => self.nodes::<true>(context, &context.plan.nodes, 0, &mut open),
            }
        }
    }
    unsafe fn nodes<'p, const PROFILE: bool>(
        &mut self,
        context: &Context<'p>,
        nodes: &'p [Node],
        step: usize,
        open: &mut Open<'p>,
    ) {
        for node in nodes {
            // SAFETY: the caller's, for each.
            unsafe {
                match node {
                    Node::Launch(launch) => self.launch::<PROFILE>(context, launch, step, open),
                    Node::Copy { dst, src, bytes } => {
                        let (begin, end) = self.share(context, *bytes, 64);
                        let (dst, src) = (self.addresses[*dst].0, self.addresses[*src].0);
                        std::ptr::copy(src.add(begin), dst.add(begin), end - begin);
                        self.meet::<PROFILE>(context, open);
                    }
                    Node::Zero { buffer, bytes, barrier } => {
                        let (begin, end) = self.share(context, *bytes, 64);
                        self.addresses[*buffer].0.add(begin).write_bytes(0, end - begin);
                        if *barrier {
                            self.meet::<PROFILE>(context, open);
                        }
                    }
                    Node::Loop(inner) => {
                        self.settle::<PROFILE>(context, open);
                        self.repeat::<PROFILE>(context, inner, open);
                    }
                }
            }
        }
        // What is left must not see what comes: another step, exchanged addresses.
        // SAFETY: the caller's.
        unsafe { self.settle::<PROFILE>(context, open) };
    }
    /// Settles, and waits for all threads.
    unsafe fn meet<'p, const PROFILE: bool>(&mut self, context: &Context<'p>, open: &mut Open<'p>) {
        // SAFETY: the caller's.
        unsafe { self.settle::<PROFILE>(context, open) };
        context.barrier.wait(self.thread, &mut self.epoch);
    }
    /// Helps with what others have left of the open launches, until someone has begun all of it.
    #[inline]
    unsafe fn settle<'p, const PROFILE: bool>(&mut self, context: &Context<'p>, open: &mut Open<'p>) {
        if !open.is_empty() {
            // SAFETY: the caller's.
            unsafe { self.settle_open::<PROFILE>(context, open) };
        }
    }
    unsafe fn settle_open<'p, const PROFILE: bool>(&mut self, context: &Context<'p>, open: &mut Open<'p>) {
        loop {
            let mut left = Left::Waiting;
            spin_until(|| {
                left = self.left(context, open);
                !matches!(left, Left::Waiting)
            });
            let Left::Run(node, step, run) = left else { break };
            // SAFETY: the caller's.
            unsafe { self.help::<PROFILE>(context, node, step, run) };
        }
        for (node, _) in open.drain(..) {
            if let Some(claims) = &node.claims {
                claims.advance(&mut self.bases);
            }
        }
    }
    /// This thread's contiguous share of `n` things, cut at multiples of `grain`.
    fn share(&self, context: &Context, n: usize, grain: usize) -> (usize, usize) {
        let grains = part(self.thread, context.barrier.threads(), n.div_ceil(grain));
        ((grains.start * grain).min(n), (grains.end * grain).min(n))
    }
    /// Does this thread's share of a launch and, while that must wait, the first that others have left.
    unsafe fn launch<'p, const PROFILE: bool>(
        &mut self,
        context: &Context<'p>,
        node: &'p LaunchNode,
        step: usize,
        open: &mut Open<'p>,
    ) {
        let mut event = begin::<PROFILE>(context, node, false);
        let part = part(self.thread, context.barrier.threads(), node.tasks);
        let whole = Run { index: self.thread, begin: part.start, end: part.end };
        let alone = node.claims.is_none();
        // Without anything to wait for, the shortest way.
        let mut pending = !alone || !part.is_empty();
        if alone && node.order.is_none() && pending {
            // SAFETY: the caller's.
            unsafe { self.run(context, node, step, whole) };
            pending = false;
        }
        if !alone {
            open.push((node, step));
        }
        while pending {
            let mut todo = self.todo(context, node, whole, open);
            if matches!(todo, Todo::Wait) {
                self.end::<PROFILE>(context, event);
                spin_until(|| {
                    todo = self.todo(context, node, whole, open);
                    !matches!(todo, Todo::Wait)
                });
                event = begin::<PROFILE>(context, node, true);
            }
            // SAFETY: the caller's.
            unsafe {
                match todo {
                    Todo::Own(run) => {
                        self.run(context, node, step, run);
                        pending = !alone;
                    }
                    Todo::Help(other, step, run) => {
                        self.end::<PROFILE>(context, event);
                        self.help::<PROFILE>(context, other, step, run);
                        event = begin::<PROFILE>(context, node, true);
                    }
                    Todo::Wait | Todo::Nothing => break,
                }
            }
        }
        self.end::<PROFILE>(context, event);
        if node.barrier {
            // SAFETY: the caller's.
            unsafe { self.meet::<PROFILE>(context, open) };
        }
    }
    /// What this thread may do next of a launch that it has not done its share of, `whole` if that is one run.
    fn todo<'p>(&self, context: &Context, node: &LaunchNode, whole: Run, open: &Open<'p>) -> Todo<'p> {
        let ready = |run: usize| node.is_ready(run, context.stamps, self.epoch + 1);
        let own = match &node.claims {
            Some(claims) => claims.take(self.thread, context.claims, &self.bases, &ready),
            None if ready(whole.index) => Claimed::Run(whole),
            None => Claimed::Blocked,
        };
        match own {
            Claimed::Nothing => Todo::Nothing,
            Claimed::Run(run) => Todo::Own(run),
            Claimed::Blocked => match self.left(context, open) {
                Left::Run(node, step, run) => Todo::Help(node, step, run),
                Left::Waiting | Left::Nothing => Todo::Wait,
            },
        }
    }
    /// Claims the first that is left of the open launches.
    fn left<'p>(&self, context: &Context, open: &Open<'p>) -> Left<'p> {
        let mut left = Left::Nothing;
        for &(node, step) in open {
            let Some(claims) = &node.claims else { continue };
            let ready = |run: usize| node.is_ready(run, context.stamps, self.epoch + 1);
            for share in 0..claims.shares.len() {
                let share = (self.thread + share) % claims.shares.len();
                match claims.take(share, context.claims, &self.bases, &ready) {
                    Claimed::Run(run) => return Left::Run(node, step, run),
                    Claimed::Blocked => left = Left::Waiting,
                    Claimed::Nothing => {}
                }
            }
        }
        left
    }
    unsafe fn help<const PROFILE: bool>(&mut self, context: &Context, node: &LaunchNode, step: usize, run: Run) {
        let event = begin::<PROFILE>(context, node, true);
        // SAFETY: the caller's.
        unsafe { self.run(context, node, step, run) };
        self.end::<PROFILE>(context, event);
    }
    /// Does tasks of a launch.
    #[inline]
    unsafe fn run(&mut self, context: &Context, node: &LaunchNode, step: usize, run: Run) {
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
        unsafe { (node.kernel)(args, run.begin as i64, run.end as i64, scratch) };
        if let Some(order) = &node.order {
            context.stamps[order.first + run.index].store(self.epoch + 1, Ordering::Release);
        }
    }
    fn end<const PROFILE: bool>(&mut self, context: &Context, event: Event) {
        if PROFILE {
            self.events.push(Event { end: now(context), ..event });
        }
    }
    unsafe fn repeat<'p, const PROFILE: bool>(
        &mut self,
        context: &Context<'p>,
        node: &'p LoopNode,
        open: &mut Open<'p>,
    ) {
        // SAFETY: an i32 in memory that no kernel writes now, and the cells of this thread, as their types say; the rest is the
        // caller's.
        unsafe {
            let steps = self.addresses[node.steps].0.cast::<i32>().read();
            let steps = usize::try_from(steps).unwrap_or(0).min(node.max_steps);
            let mut trips = 0;
            // The iterations up to the exit, and the carried tensors then, if more follow.
            let mut exit: Option<(usize, Vec<Vec<u8>>)> = None;
            while trips < steps {
                let step = if node.reverse { steps - 1 - trips } else { trips };
                self.addresses[node.step].0.cast::<i32>().write(step as i32);
                self.addresses[node.is_last].0.write(u8::from(step + 1 == steps));
                self.nodes::<PROFILE>(context, &node.body, step, open);
                trips += 1;
                if node.barrier {
                    self.meet::<PROFILE>(context, open);
                }
                // Read before the exchange: the body wrote the buffer under the name it has now.
                let done =
                    exit.is_none() && node.done.as_ref().is_some_and(|done| self.addresses[done.buffer].0.read() != 0);
                for &(carried, next) in &node.swaps {
                    self.addresses.swap(carried, next);
                }
                if let (Some(states), None) = (context.states, &exit) {
                    let carried = self.carried::<PROFILE>(context, node, open);
                    if self.thread == 0 {
                        states.lock().unwrap_or_else(PoisonError::into_inner).push(carried);
                    }
                } else if node.done.as_ref().is_some_and(|done| done.barrier) {
                    self.meet::<PROFILE>(context, open);
                }
                match context.after_exit {
                    AfterExit::Leave if done => break,
                    AfterExit::FillCaches if done && trips < steps => {
                        exit = Some((trips, self.carried::<PROFILE>(context, node, open)));
                    }
                    _ => {}
                }
            }
            if let Some((at, carried)) = exit {
                trips = at;
                self.meet::<PROFILE>(context, open);
                for (&(buffer, bytes), kept) in node.carried.iter().zip(carried) {
                    std::ptr::copy_nonoverlapping(kept.as_ptr(), self.addresses[buffer].0, bytes);
                }
                self.meet::<PROFILE>(context, open);
            }
            self.addresses[node.trips].0.cast::<i32>().write(trips as i32);
            self.trips = trips;
            for &(buffer, stride, bytes) in &node.stacked {
                let from = (trips * stride).min(bytes);
                let (begin, end) = self.share(context, bytes - from, 64);
                self.addresses[buffer].0.add(from + begin).write_bytes(0, end - begin);
            }
            if !node.stacked.is_empty() {
                self.meet::<PROFILE>(context, open);
            }
        }
    }
    /// The first thread's copies of the carried tensors, made while all threads wait; no others.
    unsafe fn carried<'p, const PROFILE: bool>(
        &mut self,
        context: &Context<'p>,
        node: &LoopNode,
        open: &mut Open<'p>,
    ) -> Vec<Vec<u8>> {
        // SAFETY: the caller's.
        unsafe { self.meet::<PROFILE>(context, open) };
        // SAFETY: each buffer has that many bytes, and no thread is in a kernel.
        let copy = |&(buffer, bytes): &(usize, usize)| unsafe {
            std::slice::from_raw_parts(self.addresses[buffer].0, bytes).to_vec()
        };
        let copies = if self.thread == 0 { node.carried.iter().map(copy).collect() } else { Vec::new() };
        // SAFETY: the caller's.
        unsafe { self.meet::<PROFILE>(context, open) };
        copies
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
