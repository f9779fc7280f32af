//! Barriers where launches depend on each other, and nowhere else.
//!
//! Threads share the tasks of a launch, so two launches without a barrier between them may run at the same time. They may
//! do so if neither writes memory that the other touches; memory, not values, because buffers share the arena. If one does, but
//! threads have tasks to choose from, the tasks of the second wait one by one for what they need of the first (`Launch::waits`):
//! a thread that is held up then keeps others waiting only for its own rows. Before a loop and at the end of its body all launches
//! are settled, so the analysis needs no fixed point. Every thread reads the trip count when it comes to a loop: who writes it
//! again must wait for a barrier after that. (`done` is the runtime's care.)
use rdc_ir::program::{Buffer, Dispatch, Entry, Kernel, Launch, LaunchArg, Offset, Place, Step};
use rdc_ir::{DType, Type};

/// A stretch of shared memory that a step touches.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Access {
    space: Place,
    from: usize,
    to: usize,
    /// Whether it may be written.
    write: bool,
    /// The kernel, if tasks of a launch touch it.
    kernel: Option<usize>,
}

impl Access {
    /// Whether two accesses must not happen at the same time.
    fn conflicts(&self, other: &Access) -> bool {
        (self.write || other.write) && self.space == other.space && self.from < other.to && other.from < self.to
    }
}

/// Sets the barriers of an entry whose buffers have places.
pub fn place(entry: &mut Entry, kernels: &[Kernel]) {
    let pairs = entry.pairs();
    let steps = std::mem::take(&mut entry.steps);
    let mut placer = Placer { entry, pairs, kernels, open: Vec::new(), spacer: None };
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
    /// What is touched of a buffer from an offset on, by tasks of a kernel if one is given.
    fn touch(&self, arg: &LaunchArg, bytes: usize, write: bool, kernel: Option<usize>) -> Vec<Access> {
        let memory = self.entry.memory(&self.pairs, arg, 0..bytes);
        memory
            .into_iter()
            .map(|(space, range)| Access { space, from: range.start, to: range.end, write, kernel })
            .collect()
    }
    fn touch_all(&self, buffer: usize, write: bool) -> Vec<Access> {
        let arg = LaunchArg { buffer, offset: Offset::Fixed(0) };
        self.touch(&arg, self.entry.buffers[buffer].bytes(), write, None)
    }
    fn launch(&self, launch: &Launch) -> Vec<Access> {
        let pointers = launch.args.iter().zip(&self.kernels[launch.kernel].pointers);
        pointers
            .flat_map(|(arg, pointer)| self.touch(arg, pointer.bytes(), pointer.written, Some(launch.kernel)))
            .collect()
    }
    fn touched(&self, step: &Step) -> Vec<Access> {
        match step {
            Step::Launch(launch) => self.launch(launch),
            Step::Zero { buffer, .. } => self.touch_all(*buffer, true),
            Step::Copy { dst, src } => [self.touch_all(*dst, true), self.touch_all(*src, false)].concat(),
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
    /// What is open that must not be touched at the same time.
    fn clashing(&self, touched: &[Access]) -> impl Iterator<Item = &Access> {
        self.open.iter().filter(|b| touched.iter().any(|a| a.conflicts(b)))
    }
    fn clashes(&self, touched: &[Access]) -> bool {
        self.clashing(touched).next().is_some()
    }
    /// Whether the tasks of a launch had better wait for those that they clash with than all threads for each other: if one of the
    /// two launches has tasks to choose from.
    fn may_wait(&self, launch: &Launch, touched: &[Access]) -> bool {
        let is_dynamic = |kernel: usize| self.kernels[kernel].dispatch == Dispatch::Dynamic;
        self.clashing(touched)
            .all(|access| access.kernel.is_some_and(|kernel| is_dynamic(kernel) || is_dynamic(launch.kernel)))
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
                    let trip_count = self.touch_all(inner.steps, false);
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
