//! Which runs of tasks wait for which, between two barriers.
//!
//! A run is what a thread takes at once of a launch. Where launches may wait ([`Launch::waits`]), a run waits for those runs of
//! earlier launches that touch the same memory, one of them writing, unless they are already behind something that it waits for.
use rdc_ir::program::{Entry, Kernel, Launch, LaunchArg, Pointer, Reach};
use std::ops::Range;

/// What an executed run of tasks leaves behind, and what one waits for.
pub(super) struct Order {
    /// The stamp of the first run; the others' follow.
    pub first: usize,
    /// For each run the stamps that must be set before it begins.
    pub after: Box<[Box<[usize]>]>,
}

/// Where the buffers of an entry are.
pub(super) struct Spaces<'a> {
    entry: &'a Entry,
}

/// A launch of a phase: what it touches by pointer, and how its tasks are cut into runs.
pub(super) struct Phased<'a> {
    pub launch: &'a Launch,
    pub kernel: &'a Kernel,
    pub runs: Vec<Range<usize>>,
}

/// A pointer of a launch.
struct Access<'a> {
    arg: &'a LaunchArg,
    pointer: &'a Pointer,
    reach: Reach,
}

impl<'a> Spaces<'a> {
    pub fn new(entry: &'a Entry) -> Spaces<'a> {
        Spaces { entry }
    }
    /// The stamps of the runs of launches between two barriers, in order, from `next` on.
    pub fn order(&self, phase: &[Phased], next: &mut usize) -> Vec<Order> {
        let accesses: Vec<Vec<Access>> = phase.iter().map(accesses).collect();
        let (mut orders, mut behind): (Vec<Order>, Vec<Stamps>) = (Vec::new(), Vec::new());
        let base = *next;
        for (index, Phased { launch, runs, .. }) in phase.iter().enumerate() {
            let clashes = |earlier: usize| self.clashes(&accesses[earlier], &accesses[index]);
            let earlier: Vec<(usize, Vec<(&Access, &Access)>)> = match launch.waits {
                true => (0..index).map(|e| (e, clashes(e))).filter(|e| !e.1.is_empty()).collect(),
                false => Vec::new(),
            };
            let first = *next;
            let after = runs.iter().map(|run| {
                let mut after = Vec::new();
                let mut all = Stamps::default();
                for (earlier, clashes) in earlier.iter().rev() {
                    for (at, other) in phase[*earlier].runs.iter().enumerate() {
                        let stamp = orders[*earlier].first - base + at;
                        if !all.contains(stamp) && clashes.iter().any(|(a, b)| self.meet((a, other), (b, run))) {
                            all.add(&behind[stamp]);
                            after.push(stamp + base);
                        }
                    }
                }
                (after.into(), all)
            });
            let (after, mut all): (Vec<Box<[usize]>>, Vec<Stamps>) = after.unzip();
            all.iter_mut().enumerate().for_each(|(at, all)| all.insert(first - base + at));
            *next += runs.len();
            behind.append(&mut all);
            orders.push(Order { first, after: after.into() });
        }
        orders
    }
    /// The pairs of pointers of two launches through which they may touch the same memory, one writing.
    fn clashes<'b>(&self, earlier: &'b [Access<'b>], later: &'b [Access<'b>]) -> Vec<(&'b Access<'b>, &'b Access<'b>)> {
        let pairs = earlier.iter().flat_map(|a| later.iter().map(move |b| (a, b)));
        let all = 0..usize::MAX;
        pairs
            .filter(|(a, b)| a.pointer.written || b.pointer.written)
            .filter(|(a, b)| self.meet((a, &all), (b, &all)))
            .collect()
    }
    /// Whether two runs of tasks, each through a pointer, may touch the same memory.
    fn meet(&self, (a, run): (&Access, &Range<usize>), (b, other): (&Access, &Range<usize>)) -> bool {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.start.max(b.start) < a.end.min(b.end);
        let (within, others) = (a.reach.of(run, a.pointer.bytes()), b.reach.of(other, b.pointer.bytes()));
        if a.arg == b.arg {
            return overlap(&within, &others);
        }
        let places = |arg: &LaunchArg, bytes: Range<usize>| self.entry.memory(arg, bytes);
        let (places, others) = (places(a.arg, within), places(b.arg, others));
        places.iter().any(|(space, a)| others.iter().any(|(other, b)| space == other && overlap(a, b)))
    }
}

fn accesses<'a>(phased: &Phased<'a>) -> Vec<Access<'a>> {
    let Phased { launch, kernel, .. } = *phased;
    let pointers = kernel.pointers.iter().zip(kernel.reaches());
    launch.args.iter().zip(pointers).map(|(arg, (pointer, reach))| Access { arg, pointer, reach }).collect()
}

/// A set of stamps.
#[derive(Clone, Default)]
struct Stamps(Vec<u64>);

impl Stamps {
    fn insert(&mut self, stamp: usize) {
        if self.0.len() <= stamp / 64 {
            self.0.resize(stamp / 64 + 1, 0);
        }
        self.0[stamp / 64] |= 1 << (stamp % 64);
    }
    fn contains(&self, stamp: usize) -> bool {
        self.0.get(stamp / 64).is_some_and(|word| word >> (stamp % 64) & 1 == 1)
    }
    fn add(&mut self, other: &Stamps) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }
}
