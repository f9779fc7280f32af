//! Barriers where launches depend on each other, and nowhere else.
//!
//! Threads share the tasks of a launch, so two launches without a barrier between them may run at the same time. They may
//! do so if neither writes memory that the other touches; memory, not values, because buffers share the arena. If one does, but
//! threads have tasks to choose from, the tasks of the second wait one by one for what they need of the first (`Launch::waits`):
//! a thread that is held up then keeps others waiting only for its own rows. Before a loop and at the end of its body all launches
//! are settled, so the analysis needs no fixed point. Every thread reads the trip count when it comes to a loop, and after each
//! iteration whether it was the last: who writes those again must wait for a barrier after that.
use rdc_ir::program::{Dispatch, Entry, Kernel, Launch, LaunchArg, LoopStep, Offset, Place, Step};

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
    let steps = std::mem::take(&mut entry.steps);
    let mut placer = Placer { entry, kernels, open: Vec::new() };
    let mut steps = placer.steps(steps);
    // Results are complete when the schedule ends.
    if !matches!(steps.last(), Some(Step::Barrier | Step::Loop(_)) | None) {
        steps.push(Step::Barrier);
    }
    entry.steps = steps;
}

struct Placer<'a> {
    entry: &'a Entry,
    kernels: &'a [Kernel],
    /// What was touched since the last barrier.
    open: Vec<Access>,
}

impl Placer<'_> {
    /// What is touched of a buffer from an offset on, by tasks of a kernel if one is given.
    fn touch(&self, arg: &LaunchArg, bytes: usize, write: bool, kernel: Option<usize>) -> Vec<Access> {
        let memory = self.entry.memory(arg, 0..bytes);
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
            Step::Barrier | Step::Loop(_) => Vec::new(),
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
        steps.push(Step::Barrier);
        self.open.clear();
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
            self.open.extend(touched);
            if let Step::Loop(inner) = &mut step {
                if !matches!(out.last(), Some(Step::Barrier | Step::Loop(_)) | None) {
                    self.settle(&mut out);
                }
                self.repeat(inner);
            }
            out.push(step);
        }
        out
    }
    fn repeat(&mut self, inner: &mut LoopStep) {
        let done = inner.advance.exit.map(|exit| exit.done);
        let read = std::iter::once(inner.steps).chain(done).flat_map(|buffer| self.touch_all(buffer, false));
        let read: Vec<Access> = read.collect();
        self.open.extend(read);
        let settled = self.open.clone();
        let mut body = self.steps(std::mem::take(&mut inner.body));
        let ends = match body.last() {
            Some(Step::Barrier) | None => false,
            // A loop at the end of the body may have run no iteration. Between two iterations there is always a barrier.
            Some(Step::Loop(_)) => done.is_some() || !body.contains(&Step::Barrier) || self.any_clashes(&body),
            Some(_) => true,
        };
        if ends {
            body.push(Step::Barrier);
        }
        inner.body = body;
        self.open = settled;
    }
}
