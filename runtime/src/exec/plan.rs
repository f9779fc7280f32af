//! Schedules with everything looked up that can be before a call.
use super::claim::{Claims, Share, part};
use super::order::{Order, Phased, Spaces};
use crate::code::KernelFn;
use crate::model::Model;
use crate::profile::LaunchInfo;
use rdc_ir::program::{Advance, Beyond, Dispatch, Entry, Launch, LoopStep, Offset, Place, Step};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A prepared entry.
pub(super) struct Plan {
    pub nodes: Vec<Node>,
    /// Number of cells.
    pub cells: usize,
    /// The cells that say whether loops may end early.
    pub may_exit: Vec<usize>,
    /// The cell with the trips of the last loop.
    pub trips: Option<usize>,
    /// Where the results are.
    pub outputs: Vec<Base>,
    /// Whether the entry writes weights.
    pub updates: bool,
}

/// Where a buffer begins.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// At the address of that buffer.
    Buffer(usize),
    /// In that cell of the thread's own.
    Cell(usize),
    /// At the address of one of two buffers, by the parity of a cell.
    Pair { even: usize, odd: usize, trips: usize },
}

pub(super) enum Node {
    Launch(LaunchNode),
    Copy { dst: Base, src: Base, bytes: usize },
    Zero { base: Base, bytes: usize, beyond: Option<Beyond> },
    Barrier,
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
    pub args: Box<[(Base, Offset)]>,
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
    pub steps: Base,
    pub max_steps: usize,
    pub reverse: bool,
    /// Cells.
    pub step: usize,
    pub is_last: usize,
    pub trips: usize,
    /// Where an iteration says that it is the last, and the cell that says whether it may be.
    pub exit: Option<(Base, usize)>,
    pub body: Vec<Node>,
    /// Carried tensors: where they are, and bytes.
    pub carried: Vec<(Base, usize)>,
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
    let cells: Vec<usize> = (0..entry.buffers.len()).filter(|&b| entry.buffers[b].place.is_cell()).collect();
    let mut planner = Planner { model, entry, threads, counts, spaces: Spaces::new(entry), cells };
    let nodes = planner.nodes(&entry.steps);
    let cells = planner.cells.iter().enumerate();
    let last = entry.steps.iter().rev().find_map(|step| if let Step::Loop(inner) = step { Some(inner) } else { None });
    Plan {
        nodes,
        cells: planner.cells.len(),
        may_exit: cells.filter(|(_, b)| entry.buffers[**b].place == Place::MayExit).map(|(cell, _)| cell).collect(),
        trips: last.map(|inner| planner.cell(inner.advance.trips)),
        outputs: entry.outputs.iter().map(|output| planner.base(output.buffer)).collect(),
        updates: !entry.updated(&model.program().kernels).is_empty(),
    }
}

struct Planner<'a> {
    model: &'a Model,
    entry: &'a Entry,
    threads: usize,
    counts: &'a mut Counts,
    spaces: Spaces<'a>,
    /// The buffers that are cells.
    cells: Vec<usize>,
}

impl Planner<'_> {
    fn base(&self, buffer: usize) -> Base {
        match self.entry.buffers[buffer].place {
            Place::Pair { even, odd, trips } => Base::Pair { even, odd, trips: self.cell(trips) },
            place if place.is_cell() => Base::Cell(self.cell(buffer)),
            _ => Base::Buffer(buffer),
        }
    }
    /// The number of a cell.
    fn cell(&self, buffer: usize) -> usize {
        self.cells.partition_point(|&cell| cell < buffer)
    }
    fn nodes(&mut self, steps: &[Step]) -> Vec<Node> {
        let node = |step: &Step| match step {
            Step::Launch(launch) => Node::Launch(self.launch(launch)),
            Step::Copy { dst, src } => {
                Node::Copy { dst: self.base(*dst), src: self.base(*src), bytes: self.bytes(*dst) }
            }
            Step::Zero { buffer, beyond } => {
                let beyond = beyond.map(|beyond| Beyond { trips: self.cell(beyond.trips), ..beyond });
                Node::Zero { base: self.base(*buffer), bytes: self.bytes(*buffer), beyond }
            }
            Step::Barrier => Node::Barrier,
            Step::Loop(inner) => Node::Loop(Box::new(self.loop_node(inner))),
        };
        let mut nodes: Vec<Node> = steps.iter().map(node).collect();
        self.order(steps, &mut nodes);
        nodes
    }
    /// Orders the runs of tasks of steps between barriers.
    fn order(&mut self, steps: &[Step], nodes: &mut [Node]) {
        let ends = |node: &Node| matches!(node, Node::Barrier | Node::Loop(_));
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
            args: launch.args.iter().map(|a| (self.base(a.buffer), a.offset)).collect(),
        }
    }
    fn loop_node(&mut self, inner: &LoopStep) -> LoopNode {
        let Advance { step, is_last, trips, exit } = inner.advance;
        LoopNode {
            steps: self.base(inner.steps),
            max_steps: inner.max_steps,
            reverse: inner.reverse,
            step: self.cell(step),
            is_last: self.cell(is_last),
            trips: self.cell(trips),
            exit: exit.map(|exit| (self.base(exit.done), self.cell(exit.allowed))),
            body: self.nodes(&inner.body),
            carried: inner.carried.iter().map(|&b| (self.base(b), self.bytes(b))).collect(),
        }
    }
}
