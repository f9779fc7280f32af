//! Barriers where launches depend on each other, and nowhere else.
//!
//! Threads share the tasks of a launch, so two launches without a barrier between them may run at the same time. They may
//! do so if neither writes memory that the other touches; memory, not values, because buffers share the arena. Before a
//! loop and at the end of its body all launches are settled, so the analysis needs no fixed point. Every thread reads the
//! trip count when it comes to a loop: who writes it again must wait for a barrier after that. (`done` is the runtime's
//! care.)
use super::entry::Life;
use super::kernels::Kernels;
use rdc_ir::program::{Buffer, Entry, Launch, Offset, Place, Step};
use rdc_ir::{DType, Type};

/// A stretch of shared memory that a step touches.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Access {
    space: Space,
    from: usize,
    to: usize,
    /// Whether it may be written.
    write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Space {
    Arena,
    Input(usize),
    Output(usize),
}

impl Access {
    /// Whether two accesses must not happen at the same time.
    fn conflicts(&self, other: &Access) -> bool {
        (self.write || other.write) && self.space == other.space && self.from < other.to && other.from < self.to
    }
}

/// Sets the barriers of an entry whose buffers have places.
pub fn place(entry: &mut Entry, lives: &[Life], kernels: &Kernels) {
    let pairs = lives.iter().map(|life| life.pair).collect();
    let steps = std::mem::take(&mut entry.steps);
    let mut placer = Placer { entry, pairs, kernels, open: Vec::new(), spacer: None };
    let mut steps = placer.steps(steps);
    if let Some(Step::Launch(last)) = steps.last_mut() {
        // Results are complete when the schedule ends.
        last.barrier = true;
    }
    entry.steps = steps;
}

struct Placer<'a> {
    entry: &'a mut Entry,
    pairs: Vec<Option<usize>>,
    kernels: &'a Kernels,
    /// What was touched since the last barrier.
    open: Vec<Access>,
    spacer: Option<(usize, usize)>,
}

/// The memory that a range of a buffer may be: of either buffer of a pair, all of it if the offset moves.
fn accesses(buffers: &[Buffer], pair: Option<usize>, buffer: usize, size: Option<usize>, write: bool) -> Vec<Access> {
    let one = |buffer: usize| {
        let Buffer { ty, place, .. } = &buffers[buffer];
        let to = size.unwrap_or(ty.bytes());
        match *place {
            Place::Arena(at) => Some(Access { space: Space::Arena, from: at, to: at + to, write }),
            Place::Input(i) => Some(Access { space: Space::Input(i), from: 0, to, write }),
            Place::Output(i) => Some(Access { space: Space::Output(i), from: 0, to, write }),
            Place::Weight(_) | Place::Step | Place::IsLast | Place::Trips => None,
        }
    };
    std::iter::once(buffer).chain(pair).filter_map(one).collect()
}

impl Placer<'_> {
    fn touch(&self, buffer: usize, write: bool) -> Vec<Access> {
        accesses(&self.entry.buffers, self.pairs[buffer], buffer, None, write)
    }
    fn launch(&self, launch: &Launch) -> Vec<Access> {
        let func = &self.kernels.get(launch.kernel).func;
        let args = &func.regions[func.body].args;
        let touched = launch.args.iter().enumerate().flat_map(|(index, arg)| {
            // A single slot `[1, B, T, H, D]` is written in place.
            let in_place = args.get(index).map(|&v| func.ty(v)).is_none_or(|ty| ty.cache && ty.rank() == 5);
            let mut touched = self.touch(arg.buffer, in_place);
            if let (Offset::Fixed(at), Some(ty), [one]) =
                (arg.offset, args.get(index).map(|&v| func.ty(v)), &mut touched[..])
            {
                one.from += at;
                one.to = one.from + ty.bytes();
            }
            touched
        });
        touched.collect()
    }
    fn clashes(&self, touched: &[Access]) -> bool {
        touched.iter().any(|a| self.open.iter().any(|b| a.conflicts(b)))
    }
    /// A barrier before what comes next.
    fn settle(&mut self, steps: &mut Vec<Step>) {
        match steps.last_mut() {
            Some(Step::Launch(Launch { barrier, .. }) | Step::Zero { barrier, .. }) => *barrier = true,
            // Nothing here carries a barrier: at the beginning of a body, or after a loop. A copy does.
            Some(Step::Loop(_)) | None => {
                let (dst, src) = self.spacer();
                steps.push(Step::Copy { dst, src });
            }
            Some(Step::Copy { .. }) => {}
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
                self.entry.buffers.push(Buffer { name: "spacer".into(), ty: Type::scalar(DType::Bool), place });
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
            let touched = match &step {
                Step::Launch(launch) => self.launch(launch),
                Step::Zero { buffer, .. } => self.touch(*buffer, true),
                Step::Copy { dst, src } => [self.touch(*dst, true), self.touch(*src, false)].concat(),
                Step::Loop(_) => Vec::new(),
            };
            if self.clashes(&touched) {
                self.settle(&mut out);
            }
            match &mut step {
                Step::Launch(_) | Step::Zero { .. } => self.open.extend(touched),
                Step::Copy { .. } => self.open.clear(),
                Step::Loop(inner) => {
                    if let Some(Step::Launch(last)) = out.last_mut() {
                        last.barrier = true;
                        self.open.clear();
                    }
                    let trip_count = self.touch(inner.steps, false);
                    self.open.extend(trip_count);
                    let settled = self.open.clone();
                    inner.body = self.steps(std::mem::take(&mut inner.body));
                    if let Some(Step::Launch(last)) = inner.body.last_mut() {
                        last.barrier = true;
                    }
                    self.open = settled;
                }
            }
            out.push(step);
        }
        out
    }
}
