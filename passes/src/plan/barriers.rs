//! Barriers where launches depend on each other, and nowhere else.
//!
//! Threads share the tasks of a launch, so two launches without a barrier between them may run at the same time. They may
//! do so if neither writes memory that the other touches; memory, not values, because buffers share the arena. If one does, but
//! threads have tasks to choose from, the tasks of the second wait one by one for what they need of the first (`Launch::waits`):
//! a thread that is held up then keeps others waiting only for its own rows. Before a loop and at the end of its body all launches
//! are settled, so the analysis needs no fixed point. Every thread reads the trip count when it comes to a loop: who writes it
//! again must wait for a barrier after that. (`done` is the runtime's care.)
use super::entry::Life;
use rdc_ir::program::{Buffer, Dispatch, Entry, Kernel, Launch, Offset, Place, Step};
use rdc_ir::{DType, Type};
use std::collections::BTreeSet;

/// A stretch of shared memory that a step touches.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Access {
    space: Space,
    from: usize,
    to: usize,
    /// Whether it may be written.
    write: bool,
    /// The kernel, if tasks of a launch touch it.
    kernel: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Space {
    Arena,
    Input(usize),
    Output(usize),
    /// A weight that is written.
    Weight(usize),
}

impl Access {
    /// Whether two accesses must not happen at the same time.
    fn conflicts(&self, other: &Access) -> bool {
        (self.write || other.write) && self.space == other.space && self.from < other.to && other.from < self.to
    }
}

/// Sets the barriers of an entry whose buffers have places.
pub fn place(entry: &mut Entry, lives: &[Life], kernels: &[Kernel]) {
    let pairs = lives.iter().map(|life| life.pair).collect();
    let updated = entry.updated(kernels);
    let steps = std::mem::take(&mut entry.steps);
    let mut placer = Placer { entry, pairs, kernels, updated, open: Vec::new(), spacer: None };
    let mut steps = placer.steps(steps);
    // Results are complete when the schedule ends.
    if let Some(barrier) = barrier_of(steps.last_mut()) {
        *barrier = true;
    }
    entry.steps = steps;
}

struct Placer<'a> {
    entry: &'a mut Entry,
    pairs: Vec<Option<usize>>,
    kernels: &'a [Kernel],
    /// The weights that the entry writes.
    updated: BTreeSet<usize>,
    /// What was touched since the last barrier.
    open: Vec<Access>,
    spacer: Option<(usize, usize)>,
}

/// The flag of a step that may have a barrier after it.
fn barrier_of(step: Option<&mut Step>) -> Option<&mut bool> {
    match step {
        Some(Step::Launch(Launch { barrier, .. }) | Step::Zero { barrier, .. }) => Some(barrier),
        _ => None,
    }
}

impl Placer<'_> {
    /// The memory that a buffer may be: of either buffer of a pair.
    fn touch(&self, buffer: usize, write: bool) -> Vec<Access> {
        let one = |buffer: usize| {
            let buffer = &self.entry.buffers[buffer];
            let (space, from) = match buffer.place {
                Place::Arena(at) => (Space::Arena, at),
                Place::Input(i) => (Space::Input(i), 0),
                Place::Output(i) => (Space::Output(i), 0),
                Place::Weight(i) if self.updated.contains(&i) => (Space::Weight(i), 0),
                Place::Weight(_) | Place::Step | Place::IsLast | Place::Trips => return None,
            };
            Some(Access { space, from, to: from + buffer.bytes(), write, kernel: None })
        };
        std::iter::once(buffer).chain(self.pairs[buffer]).filter_map(one).collect()
    }
    fn launch(&self, launch: &Launch) -> Vec<Access> {
        let pointers = self.kernels[launch.kernel].pointers();
        let touched = launch.args.iter().zip(pointers).flat_map(|(arg, pointer)| {
            let mut touched = self.touch(arg.buffer, pointer.written);
            if let (Offset::Fixed(at), [one]) = (arg.offset, &mut touched[..]) {
                one.from += at;
                one.to = one.from + pointer.bytes();
            }
            touched.iter_mut().for_each(|access| access.kernel = Some(launch.kernel));
            touched
        });
        touched.collect()
    }
    fn touched(&self, step: &Step) -> Vec<Access> {
        match step {
            Step::Launch(launch) => self.launch(launch),
            Step::Zero { buffer, .. } => self.touch(*buffer, true),
            Step::Copy { dst, src } => [self.touch(*dst, true), self.touch(*src, false)].concat(),
            Step::Loop(_) => Vec::new(),
        }
    }
    /// Whether any step, of loops inside too, may not happen at the same time as what is open.
    fn any_clashes(&self, steps: &[Step]) -> bool {
        !self.open.is_empty()
            && steps.iter().any(|step| match step {
                Step::Loop(inner) => self.any_clashes(&inner.body),
                step => self.clashes(&self.touched(step)),
            })
    }
    fn clashes(&self, touched: &[Access]) -> bool {
        touched.iter().any(|a| self.open.iter().any(|b| a.conflicts(b)))
    }
    /// Whether the tasks of a launch had better wait for those that they clash with than all threads for each other: if one of the
    /// two launches has tasks to choose from.
    fn may_wait(&self, launch: &Launch, touched: &[Access]) -> bool {
        let is_dynamic = |kernel: usize| self.kernels[kernel].dispatch == Dispatch::Dynamic;
        let mut clashing = self.open.iter().filter(|b| touched.iter().any(|a| a.conflicts(b)));
        clashing.all(|access| access.kernel.is_some_and(|kernel| is_dynamic(kernel) || is_dynamic(launch.kernel)))
    }
    /// A barrier before what comes next.
    fn settle(&mut self, steps: &mut Vec<Step>) {
        if let Some(barrier) = barrier_of(steps.last_mut()) {
            *barrier = true;
        } else if !matches!(steps.last(), Some(Step::Copy { .. })) {
            // Nothing here carries a barrier: at the beginning of a body, or after a loop. A copy does.
            let (dst, src) = self.spacer();
            steps.push(Step::Copy { dst, src });
        }
        self.open.clear();
    }
    /// Two buffers that nothing else uses.
    fn spacer(&mut self) -> (usize, usize) {
        let spacer = self.spacer.unwrap_or_else(|| {
            let first = self.entry.buffers.len();
            for _ in 0..2 {
                let place = Place::Arena(self.entry.arena);
                self.entry.arena += 64;
                self.entry.live += 64;
                let (name, ty) = ("spacer".into(), Type::scalar(DType::Bool));
                self.entry.buffers.push(Buffer { name, ty, pitch: None, place });
                self.pairs.push(None);
            }
            (first, first + 1)
        });
        self.spacer = Some(spacer);
        spacer
    }
    fn steps(&mut self, steps: Vec<Step>) -> Vec<Step> {
        let mut out = Vec::with_capacity(steps.len());
        for mut step in steps {
            let touched = self.touched(&step);
            if self.clashes(&touched) {
                match &mut step {
                    Step::Launch(launch) if self.may_wait(launch, &touched) => launch.waits = true,
                    _ => self.settle(&mut out),
                }
            }
            match &mut step {
                Step::Launch(_) | Step::Zero { .. } => self.open.extend(touched),
                Step::Copy { .. } => self.open.clear(),
                Step::Loop(inner) => {
                    if let Some(barrier) = barrier_of(out.last_mut()) {
                        *barrier = true;
                        self.open.clear();
                    }
                    let trip_count = self.touch(inner.steps, false);
                    self.open.extend(trip_count);
                    let settled = self.open.clone();
                    inner.body = self.steps(std::mem::take(&mut inner.body));
                    if let Some(barrier) = barrier_of(inner.body.last_mut()) {
                        *barrier = true;
                    } else if self.any_clashes(&inner.body) {
                        // A loop at the end of the body may have run no iteration.
                        let mut body = std::mem::take(&mut inner.body);
                        self.settle(&mut body);
                        inner.body = body;
                    }
                    self.open = settled;
                }
            }
            out.push(step);
        }
        out
    }
}
