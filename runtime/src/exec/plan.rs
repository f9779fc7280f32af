//! Schedules with everything looked up that can be before a call.
use crate::code::KernelFn;
use crate::model::Model;
use crate::profile::LaunchInfo;
use rdc_ir::program::{Dispatch, Entry, Launch, LoopStep, Offset, Place, Step};

/// A prepared entry.
pub(super) struct Plan {
    pub nodes: Vec<Node>,
    /// Thread-private buffers and their cells.
    pub private: Vec<(usize, usize)>,
    /// Number of those cells.
    pub cells: usize,
    /// Whether the entry writes weights.
    pub updates: bool,
}

pub(super) enum Node {
    Launch(LaunchNode),
    Copy { dst: usize, src: usize, bytes: usize },
    Zero { buffer: usize, bytes: usize, barrier: bool },
    Loop(Box<LoopNode>),
}

pub(super) struct LaunchNode {
    /// Index over all entries, for the profile.
    pub id: u32,
    pub kernel: KernelFn,
    pub tasks: usize,
    /// If tasks are claimed.
    pub claim: Option<Claims>,
    pub args: Box<[(usize, Offset)]>,
    pub barrier: bool,
}

/// How the tasks of a launch are claimed. Each thread has a share, the same part of every launch, so that the rows that it wrote
/// in one kernel are in its own caches when it reads them in the next. Only a thread that has run out goes on with the others'
/// shares.
pub(super) struct Claims {
    /// Index of the first thread's counter; the others' follow.
    pub counter: usize,
    /// The runs of each thread's share.
    pub shares: Box<[Runs]>,
}

/// Where each run of tasks of a share begins, and the end of the last. Long runs come first: neighbouring tasks share work (the
/// prologue of a row block), and short runs at the end are what others can take from a thread that was held up.
pub(super) type Runs = Box<[usize]>;

impl Claims {
    fn new(counter: usize, tasks: usize, threads: usize) -> Claims {
        let runs = |thread: usize| {
            let end = (thread + 1) * tasks / threads;
            let mut at = thread * tasks / threads;
            let mut runs = vec![at];
            while at < end {
                at += ((end - at) / 2).max(1);
                runs.push(at);
            }
            runs.into()
        };
        Claims { counter, shares: (0..threads).map(runs).collect() }
    }
}

pub(super) struct LoopNode {
    pub steps: usize,
    pub max_steps: usize,
    pub reverse: bool,
    pub step: usize,
    pub is_last: usize,
    pub trips: usize,
    pub body: Vec<Node>,
    /// A barrier after the body, where it does not end with one and something relies on it.
    pub barrier: bool,
    pub swaps: Vec<(usize, usize)>,
    pub done: Option<Done>,
    /// Carried tensors that are not caches: buffer and bytes.
    pub carried: Vec<(usize, usize)>,
    /// Stacked results whose entries beyond the trips must be zero: buffer, bytes per step, bytes.
    pub stacked: Vec<(usize, usize, usize)>,
}

pub(super) struct Done {
    pub buffer: usize,
    /// Whether the threads must meet after they have read it, since the next iteration would write it first thing.
    pub barrier: bool,
}

/// Prepares an entry of a validated program. Launches are numbered on from `launches`, claim counters from `dynamic`.
pub(super) fn plan(
    model: &Model,
    entry: &Entry,
    threads: usize,
    launches: &mut Vec<LaunchInfo>,
    dynamic: &mut usize,
) -> Plan {
    let private = |place| matches!(place, Place::Step | Place::IsLast | Place::Trips);
    let private: Vec<(usize, usize)> = entry
        .buffers
        .iter()
        .enumerate()
        .filter(|(_, b)| private(b.place))
        .enumerate()
        .map(|(cell, (b, _))| (b, cell))
        .collect();
    let cells = private.len();
    let mut planner = Planner { model, entry, threads, launches, dynamic };
    let nodes = planner.nodes(&entry.steps);
    Plan { nodes, private, cells, updates: !entry.updated(&model.program().kernels).is_empty() }
}

struct Planner<'a> {
    model: &'a Model,
    entry: &'a Entry,
    threads: usize,
    launches: &'a mut Vec<LaunchInfo>,
    dynamic: &'a mut usize,
}

impl Planner<'_> {
    fn nodes(&mut self, steps: &[Step]) -> Vec<Node> {
        let node = |step: &Step| match step {
            Step::Launch(launch) => Node::Launch(self.launch(launch)),
            Step::Copy { dst, src } => Node::Copy { dst: *dst, src: *src, bytes: self.bytes(*dst) },
            Step::Zero { buffer, barrier } => {
                Node::Zero { buffer: *buffer, bytes: self.bytes(*buffer), barrier: *barrier }
            }
            Step::Loop(inner) => Node::Loop(Box::new(self.loop_node(inner))),
        };
        steps.iter().map(node).collect()
    }
    fn bytes(&self, buffer: usize) -> usize {
        self.entry.buffers[buffer].bytes()
    }
    fn launch(&mut self, launch: &Launch) -> LaunchNode {
        let kernel = &self.model.program().kernels[launch.kernel];
        let id = self.launches.len() as u32;
        self.launches.push(LaunchInfo {
            entry: self.entry.name.clone(),
            kernel: launch.kernel,
            locs: launch.locs.clone(),
        });
        let claim = (kernel.dispatch == Dispatch::Dynamic).then(|| {
            let counter = *self.dynamic;
            *self.dynamic += self.threads;
            Claims::new(counter, kernel.tasks, self.threads)
        });
        LaunchNode {
            id,
            kernel: self.model.kernel(launch.kernel),
            tasks: kernel.tasks,
            claim,
            args: launch.args.iter().map(|a| (a.buffer, a.offset)).collect(),
            barrier: launch.barrier,
        }
    }
    fn loop_node(&mut self, inner: &LoopStep) -> LoopNode {
        let body = self.nodes(&inner.body);
        let meets = |node: &Node| match node {
            Node::Launch(launch) => launch.barrier,
            Node::Copy { .. } => true,
            Node::Zero { barrier, .. } => *barrier,
            // It may run no iteration.
            Node::Loop(_) => false,
        };
        // The counters of claimed tasks need one barrier between two executions of a launch, an exit one before it is read.
        let ends_met = body.last().is_some_and(meets);
        let barrier = !ends_met && (inner.done.is_some() || !body.iter().any(meets));
        let done = inner.done.map(|buffer| {
            let writer = |node: &Node| match node {
                Node::Launch(launch) => launch.args.iter().any(|a| a.0 == buffer),
                Node::Copy { dst, .. } => *dst == buffer,
                Node::Zero { buffer: dst, .. } => *dst == buffer,
                Node::Loop(_) => true,
            };
            let before = body.iter().position(writer).unwrap_or(0);
            Done { buffer, barrier: !body[..before].iter().any(meets) }
        });
        let carried = inner.carried.iter().filter(|&&b| !self.entry.buffers[b].ty.cache).map(|&b| (b, self.bytes(b)));
        LoopNode {
            steps: inner.steps,
            max_steps: inner.max_steps,
            reverse: inner.reverse,
            step: inner.step,
            is_last: inner.is_last,
            trips: inner.trips,
            barrier,
            swaps: inner.swaps.clone(),
            done,
            carried: carried.collect(),
            stacked: self.stacked(inner),
            body,
        }
    }
    /// Stacked results of a loop of which the schedule may read entries that no iteration wrote: those are to be zeros. A result
    /// that only the caller sees is cut instead.
    fn stacked(&self, inner: &LoopStep) -> Vec<(usize, usize, usize)> {
        let mut stacked: Vec<(usize, usize, usize)> = Vec::new();
        for step in &inner.body {
            let Step::Launch(launch) = step else { continue };
            let func = &self.model.program().kernels[launch.kernel].func;
            for arg in launch.args.iter().skip(func.regions[func.body].args.len()) {
                if let Offset::Step { stride } = arg.offset
                    && reads_beyond(&self.entry.steps, inner, arg.buffer, None)
                    && !stacked.iter().any(|s| s.0 == arg.buffer)
                {
                    stacked.push((arg.buffer, stride, self.bytes(arg.buffer)));
                }
            }
        }
        stacked
    }
}

/// Whether steps may read entries of a stack that a loop did not write: as a whole, or step by step in a loop (`around`) that
/// may take more steps.
fn reads_beyond(steps: &[Step], of: &LoopStep, stack: usize, around: Option<&LoopStep>) -> bool {
    let as_many = |other: &LoopStep| {
        std::ptr::eq(other, of) || other.steps == of.trips || other.steps == of.steps && of.done.is_none()
    };
    steps.iter().any(|step| match step {
        Step::Launch(launch) => launch.args.iter().filter(|a| a.buffer == stack).any(|a| match a.offset {
            Offset::Fixed(_) => true,
            Offset::Step { .. } => !around.is_some_and(as_many),
            Offset::Slot { .. } => false,
        }),
        Step::Copy { src, .. } => *src == stack,
        Step::Zero { .. } => false,
        Step::Loop(inner) => reads_beyond(&inner.body, of, stack, Some(inner)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_task_once_and_shrink() {
        for (tasks, threads) in [(0, 2), (1, 2), (16, 2), (17, 3), (1000, 8)] {
            let mut next = 0;
            for runs in Claims::new(0, tasks, threads).shares {
                assert_eq!(runs[0], next);
                next = runs[runs.len() - 1];
                let sizes: Vec<usize> = runs.windows(2).map(|r| r[1] - r[0]).collect();
                assert!(sizes.windows(2).all(|s| s[0] >= s[1] && s[1] > 0), "{sizes:?}");
            }
            assert_eq!(next, tasks);
        }
    }
}
