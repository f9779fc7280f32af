//! Schedules with everything looked up that can be before a call.
use super::claim::{Claims, Share, part};
use super::order::{Order, Phased, Spaces};
use crate::code::KernelFn;
use crate::model::Model;
use crate::profile::LaunchInfo;
use rdc_ir::program::{Dispatch, Entry, Launch, LoopStep, Offset, Place, Step};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// If there are tasks to claim, and threads to claim them from.
    pub claims: Option<Claims>,
    /// If a launch of the phase (the steps between two barriers) waits.
    pub order: Option<Order>,
    pub args: Box<[(usize, Offset)]>,
    pub barrier: bool,
}

impl LaunchNode {
    /// Whether what a run waits for is done, `stamp` being that of this execution.
    pub fn is_ready(&self, run: usize, stamps: &[AtomicU64], stamp: u64) -> bool {
        let is_set = |&at: &usize| stamps[at].load(Ordering::Acquire) == stamp;
        self.order.as_ref().is_none_or(|order| order.after[run].iter().all(is_set))
    }
    /// The tasks that threads take at once, by number of the run.
    fn runs(&self, threads: usize) -> Vec<Range<usize>> {
        match &self.claims {
            Some(claims) => claims.shares.iter().flat_map(Share::runs).collect(),
            None => (0..threads).map(|thread| part(thread, threads, self.tasks)).collect(),
        }
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

/// What the plans of a program's entries count on.
#[derive(Default)]
pub(super) struct Counts {
    pub launches: Vec<LaunchInfo>,
    /// Counters of claims.
    pub claims: usize,
    /// Stamps of runs.
    pub stamps: usize,
}

/// Prepares an entry of a validated program. What it numbers goes on from `counts`.
pub(super) fn plan(model: &Model, entry: &Entry, threads: usize, counts: &mut Counts) -> Plan {
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
    let mut planner = Planner { model, entry, threads, counts, spaces: Spaces::new(entry) };
    let nodes = planner.nodes(&entry.steps);
    Plan { nodes, private, cells, updates: !entry.updated(&model.program().kernels).is_empty() }
}

/// Whether all threads meet after a node.
fn meets(node: &Node) -> bool {
    match node {
        Node::Launch(launch) => launch.barrier,
        Node::Copy { .. } => true,
        Node::Zero { barrier, .. } => *barrier,
        // It may run no iteration.
        Node::Loop(_) => false,
    }
}

struct Planner<'a> {
    model: &'a Model,
    entry: &'a Entry,
    threads: usize,
    counts: &'a mut Counts,
    spaces: Spaces<'a>,
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
        let mut nodes: Vec<Node> = steps.iter().map(node).collect();
        self.order(steps, &mut nodes);
        nodes
    }
    /// Orders the runs of tasks of steps between barriers.
    fn order(&mut self, steps: &[Step], nodes: &mut [Node]) {
        let ends = |node: &Node| meets(node) || matches!(node, Node::Loop(_));
        let mut at = 0;
        for nodes in nodes.split_inclusive_mut(ends) {
            let steps = &steps[at..at + nodes.len()];
            at += nodes.len();
            fn launch(step: &Step) -> Option<&Launch> {
                match step {
                    Step::Launch(launch) => Some(launch),
                    _ => None,
                }
            }
            if self.threads == 1 || !steps.iter().filter_map(launch).any(|launch| launch.waits) {
                continue;
            }
            let mut nodes: Vec<&mut LaunchNode> = nodes
                .iter_mut()
                .filter_map(|node| match node {
                    Node::Launch(node) => Some(node),
                    _ => None,
                })
                .collect();
            let phase = steps.iter().filter_map(launch).zip(&nodes).map(|(launch, node)| Phased {
                launch,
                kernel: &self.model.program().kernels[launch.kernel],
                runs: node.runs(self.threads),
            });
            let phase: Vec<Phased> = phase.collect();
            let orders = self.spaces.order(&phase, &mut self.counts.stamps);
            nodes.iter_mut().zip(orders).for_each(|(node, order)| node.order = Some(order));
        }
    }
    fn bytes(&self, buffer: usize) -> usize {
        self.entry.buffers[buffer].bytes()
    }
    fn launch(&mut self, launch: &Launch) -> LaunchNode {
        let kernel = &self.model.program().kernels[launch.kernel];
        let id = self.counts.launches.len() as u32;
        self.counts.launches.push(LaunchInfo {
            entry: self.entry.name.clone(),
            kernel: launch.kernel,
            locs: launch.locs.clone(),
        });
        let claims = (kernel.dispatch == Dispatch::Dynamic && self.threads > 1).then(|| {
            let counter = self.counts.claims;
            self.counts.claims += self.threads;
            Claims::new(counter, kernel.tasks, self.threads)
        });
        LaunchNode {
            id,
            kernel: self.model.kernel(launch.kernel),
            tasks: kernel.tasks,
            claims,
            order: None,
            args: launch.args.iter().map(|a| (a.buffer, a.offset)).collect(),
            barrier: launch.barrier,
        }
    }
    fn loop_node(&mut self, inner: &LoopStep) -> LoopNode {
        let body = self.nodes(&inner.body);
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
            let kernel = &self.model.program().kernels[launch.kernel];
            for arg in kernel.results().map(|result| &launch.args[result]) {
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
