//! Live ranges and their colouring into one arena.
use super::entry::Life;
use rdc_ir::program::{Entry, Place, Step};

/// Alignment of buffers: a cache line, and the widest vector.
const ALIGN: usize = 64;

/// Live from one moment of the schedule to another, both included.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    from: usize,
    to: usize,
}

impl Range {
    fn cover(self, other: Range) -> Range {
        Range { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
    fn meets(self, other: Range) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// Gives every arena buffer its offset, and the entry its arena size and the bytes that live at most.
pub fn allocate(entry: &mut Entry, lives: &[Life]) {
    let (ranges, moments) = ranges(entry, lives);
    let size = |buffer: usize| entry.buffers[buffer].bytes().next_multiple_of(ALIGN);
    let mut order: Vec<(usize, Range)> =
        (0..lives.len()).filter(|&b| lives[b].arena).filter_map(|b| Some((b, ranges[b]?))).collect();
    entry.live = most_alive(order.iter().map(|&(b, range)| (size(b), range)), moments);
    // Large ones first: small ones fit into the gaps.
    order.sort_by_key(|&(b, range)| (std::cmp::Reverse(size(b)), range.from, b));
    let mut offsets = Vec::with_capacity(order.len());
    // What is placed: by offset.
    let mut placed: Vec<(usize, usize, Range)> = Vec::with_capacity(order.len());
    for &(buffer, range) in &order {
        let need = size(buffer);
        let (mut end, mut best) = (0, None);
        for (from, to, _) in placed.iter().filter(|p| p.2.meets(range)) {
            let gap = from.saturating_sub(end);
            if gap >= need && best.is_none_or(|(_, smallest)| gap < smallest) {
                best = Some((end, gap));
            }
            end = end.max(*to);
        }
        let offset = best.map_or(end, |(offset, _)| offset);
        let at = placed.partition_point(|p| p.0 <= offset);
        placed.insert(at, (offset, offset + need, range));
        offsets.push((buffer, offset));
    }
    entry.arena = placed.iter().map(|p| p.1).max().unwrap_or(0);
    for (buffer, offset) in offsets {
        entry.buffers[buffer].place = Place::Arena(offset);
    }
}

/// The largest sum of sizes that live at one moment.
fn most_alive(sizes: impl Iterator<Item = (usize, Range)>, moments: usize) -> usize {
    let (mut born, mut gone) = (vec![0usize; moments + 1], vec![0usize; moments + 1]);
    for (size, range) in sizes {
        born[range.from] += size;
        gone[range.to] += size;
    }
    let (mut alive, mut most) = (0, 0);
    for (born, gone) in born.into_iter().zip(gone) {
        alive += born;
        most = most.max(alive);
        alive -= gone;
    }
    most
}

/// The live range of each buffer that is used, and the number of the last moment.
fn ranges(entry: &Entry, lives: &[Life]) -> (Vec<Option<Range>>, usize) {
    let mut walk = Walk { entry, lives, clock: 0, path: Vec::new(), spans: Vec::new(), uses: Vec::new() };
    walk.steps(&entry.steps);
    let mut ranges: Vec<Option<Range>> = vec![None; entry.buffers.len()];
    for &(buffer, at, inner) in &walk.uses {
        // Used in a loop that it does not come from: live through the whole loop.
        let range = inner.map_or(Range { from: at, to: at }, |number| walk.spans[number]);
        ranges[buffer] = Some(ranges[buffer].map_or(range, |r| r.cover(range)));
    }
    for (buffer, _) in lives.iter().enumerate().filter(|(_, life)| life.to_the_end) {
        for behind in entry.behind(buffer) {
            if let Some(range) = &mut ranges[behind] {
                range.to = walk.clock;
            }
        }
    }
    (ranges, walk.clock)
}

struct Walk<'a> {
    entry: &'a Entry,
    lives: &'a [Life],
    clock: usize,
    path: Vec<usize>,
    spans: Vec<Range>,
    /// Buffer, moment, and the outermost loop around that the buffer does not come from.
    uses: Vec<(usize, usize, Option<usize>)>,
}

impl Walk<'_> {
    fn touch(&mut self, buffer: usize) {
        // Which of a pair it is depends on the trips.
        for buffer in self.entry.behind(buffer) {
            let inner = self.lives.get(buffer).and_then(|life| self.path.get(life.home.len())).copied();
            self.uses.push((buffer, self.clock, inner));
        }
    }
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.clock += 1;
            match step {
                Step::Launch(launch) => launch.args.iter().for_each(|arg| self.touch(arg.buffer)),
                Step::Zero { buffer, .. } => self.touch(*buffer),
                Step::Copy { dst, src } => [*dst, *src].into_iter().for_each(|b| self.touch(b)),
                Step::Barrier => {}
                Step::Loop(inner) => {
                    let number = self.spans.len();
                    self.spans.push(Range { from: self.clock, to: self.clock });
                    self.path.push(number);
                    let done = inner.advance.exit.map(|exit| exit.done);
                    done.into_iter().chain([inner.steps]).for_each(|buffer| self.touch(buffer));
                    self.steps(&inner.body);
                    self.path.pop();
                    self.clock += 1;
                    self.spans[number].to = self.clock;
                }
            }
        }
    }
}
