//! One thread's walk through a schedule.
//!
//! `unsafe` here: kernels are called with addresses and memory is copied by address. The invariant, which [`Worker::walk`] asks of its
//! caller: each address of the table is of live memory as long as its buffer's type says, exclusive to this call (weights that
//! the entry does not update may be read elsewhere), and offsets stay within it (`validate::meta`). Cells are this thread's alone. Two threads touch the same bytes
//! at the same time, one writing, only if the schedule, whose barriers and waits order tasks, is wrong.
use super::claim::{Claim, Claimed, Run, part};
use super::plan::{Base, LaunchNode, LoopNode, Node, Plan};
use super::{AfterExit, States};
use crate::Error;
use crate::barrier::{Barrier, spin_until};
use crate::memory::{Buffer, Shared};
use crate::profile::Event;
use rdc_ir::program::{Beyond, Offset};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bytes between thread-private cells.
const CELL: usize = 8;

/// What the threads of a call share.
pub(super) struct Context<'a> {
    pub plan: &'a Plan,
    /// Of each buffer that is in memory.
    pub addresses: &'a [Shared],
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
    args: Vec<Shared>,
    scratch: Buffer,
    cells: Buffer,
    /// The barriers met so far, in all calls.
    epoch: u64,
    /// Where the next execution of each claim starts.
    bases: Vec<u64>,
    pub events: Vec<Event>,
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
            args: Vec::new(),
            scratch: Buffer::zeroed(scratch)?,
            cells: Buffer::zeroed(cells * CELL)?,
            epoch: 0,
            bases: vec![0; dynamic],
            events: Vec::new(),
        })
    }
    /// The address of a cell: an `i32`, or a `bool` in the first byte of one.
    fn cell(&mut self, cell: usize) -> *mut i32 {
        self.cells.shared().0.wrapping_add(cell * CELL).cast()
    }
    fn get(&mut self, cell: usize) -> i32 {
        // SAFETY: there are as many cells as any plan has, all this thread's, and each is aligned.
        unsafe { self.cell(cell).read() }
    }
    fn set(&mut self, cell: usize, value: i32) {
        // SAFETY: as above.
        unsafe { self.cell(cell).write(value) };
    }
    /// Iterations of the last loop of the walk.
    pub fn trips(&mut self, plan: &Plan) -> usize {
        plan.trips.map_or(0, |trips| self.get(trips) as usize)
    }
    /// Where a buffer begins now.
    #[inline]
    fn address(&mut self, context: &Context, base: Base) -> *mut u8 {
        match base {
            Base::Buffer(buffer) => context.addresses[buffer].0,
            Base::Cell(cell) => self.cell(cell).cast(),
            Base::Pair { even, odd, trips } => context.addresses[if self.get(trips) & 1 == 0 { even } else { odd }].0,
        }
    }
    /// Walks the schedule.
    ///
    /// # Safety
    /// See the top of this file; and all threads of the barrier walk the same plan.
    pub unsafe fn walk(&mut self, context: &Context) {
        let mut open = Open::new();
        self.cells.fill(0);
        let leave = i32::from(context.after_exit == AfterExit::Leave);
        context.plan.may_exit.iter().for_each(|&cell| self.set(cell, leave));
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
                        let (dst, src) = (self.address(context, *dst), self.address(context, *src));
                        std::ptr::copy(src.add(begin), dst.add(begin), end - begin);
                    }
                    Node::Zero { base, bytes, beyond } => {
                        let written = |beyond: &Beyond| (self.get(beyond.trips) as usize).saturating_mul(beyond.stride);
                        let from = beyond.as_ref().map_or(0, written).min(*bytes);
                        let (begin, end) = self.share(context, bytes - from, 64);
                        self.address(context, *base).add(from + begin).write_bytes(0, end - begin);
                    }
                    Node::Barrier => self.meet::<PROFILE>(context, open),
                    Node::Loop(inner) => {
                        self.settle::<PROFILE>(context, open);
                        self.repeat::<PROFILE>(context, inner, open);
                    }
                }
            }
        }
        // What is left must not see what comes: another step, other trips.
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
        for &(base, offset) in &node.args {
            let offset = match offset {
                Offset::Fixed(bytes) => bytes,
                Offset::Step { stride } => step * stride,
                Offset::Slot { policy, layer, layers, base, stride } => {
                    (base + policy.slot(step, layer, layers)) * stride
                }
            };
            // SAFETY: within the buffer: a step is below the loop's `max_steps`.
            let address = unsafe { self.address(context, base).add(offset) };
            self.args.push(Shared(address));
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
        // SAFETY: an i32 in memory that no kernel writes now, as its type says.
        let steps = unsafe { self.address(context, node.steps).cast::<i32>().read() };
        let steps = usize::try_from(steps).unwrap_or(0).min(node.max_steps);
        self.set(node.trips, 0);
        // The iterations up to the exit, and the carried tensors then, if more follow.
        let mut kept: Option<(usize, Vec<Vec<u8>>)> = None;
        for taken in 0..steps {
            let now = if node.reverse { steps - 1 - taken } else { taken };
            self.set(node.step, now as i32);
            self.set(node.is_last, i32::from(now + 1 == steps));
            // SAFETY: the caller's; `done` is a bool behind a barrier.
            unsafe {
                self.nodes::<PROFILE>(context, &node.body, now, open);
                let exit = node.exit.filter(|_| kept.is_none());
                let exit = exit.filter(|&(done, _)| self.address(context, done).read() != 0);
                self.set(node.trips, taken as i32 + 1);
                if let (Some(states), None) = (context.states, &kept) {
                    let carried = self.carried::<PROFILE>(context, node, open);
                    if self.thread == 0 {
                        states.lock().unwrap_or_else(PoisonError::into_inner).push(carried);
                    }
                }
                match exit {
                    Some((_, allowed)) if self.get(allowed) != 0 => break,
                    Some(_) if taken + 1 < steps => {
                        kept = Some((taken + 1, self.carried::<PROFILE>(context, node, open)));
                    }
                    _ => {}
                }
            }
        }
        let Some((trips, carried)) = kept else { return };
        // SAFETY: the caller's; each buffer has that many bytes, and no thread is in a kernel.
        unsafe {
            self.meet::<PROFILE>(context, open);
            // Of a pair, these trips say where the value of the exit belongs.
            self.set(node.trips, trips as i32);
            for (&(base, bytes), kept) in node.carried.iter().zip(carried) {
                std::ptr::copy_nonoverlapping(kept.as_ptr(), self.address(context, base), bytes);
            }
            self.meet::<PROFILE>(context, open);
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
        let first = self.thread == 0;
        // SAFETY: each buffer has that many bytes, and no thread is in a kernel.
        let copy = |&(base, bytes): &(Base, usize)| unsafe {
            std::slice::from_raw_parts(self.address(context, base), bytes).to_vec()
        };
        let copies = if first { node.carried.iter().map(copy).collect() } else { Vec::new() };
        // SAFETY: the caller's.
        unsafe { self.meet::<PROFILE>(context, open) };
        copies
    }
    /// Copies results that lie elsewhere (in one of a pair, or a result is an input) into the outputs.
    pub fn collect(&mut self, context: &Context, outputs: &mut [Buffer]) {
        let mut staged = Vec::new();
        for (index, base) in context.plan.outputs.iter().enumerate() {
            let address = self.address(context, *base);
            if address != outputs[index].shared().0 {
                // SAFETY: as in `walk`, and the call is over. Copied out first: it may lie in another output's memory.
                let bytes = unsafe { std::slice::from_raw_parts(address, outputs[index].len()) };
                staged.push((index, bytes.to_vec()));
            }
        }
        for (index, bytes) in staged {
            outputs[index].copy_from_slice(&bytes);
        }
    }
}
