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

/// Gives every arena buffer its offset, and the entry its arena size.
pub fn allocate(entry: &mut Entry, lives: &[Life]) {
    let ranges = ranges(entry, lives);
    let size = |buffer: usize| entry.buffers[buffer].ty.bytes().next_multiple_of(ALIGN);
    let mut order: Vec<usize> = (0..lives.len()).filter(|&b| lives[b].arena && ranges[b].is_some()).collect();
    // Large ones first: small ones fit into the gaps.
    order.sort_by_key(|&b| (std::cmp::Reverse(size(b)), ranges[b].map(|r| r.from), b));
    let mut placed: Vec<(usize, usize, Range)> = Vec::new();
    let mut offsets = Vec::new();
    for &buffer in &order {
        let Some(range) = ranges[buffer] else { continue };
        let need = size(buffer);
        let mut taken: Vec<(usize, usize)> = placed.iter().filter(|p| p.2.meets(range)).map(|p| (p.0, p.1)).collect();
        taken.sort();
        let (mut end, mut best) = (0, None);
        for (from, to) in taken {
            let gap = from.saturating_sub(end);
            if gap >= need && best.is_none_or(|(_, smallest)| gap < smallest) {
                best = Some((end, gap));
            }
            end = end.max(to);
        }
        let offset = best.map_or(end, |(offset, _)| offset);
        placed.push((offset, offset + need, range));
        offsets.push((buffer, offset));
    }
    entry.arena = placed.iter().map(|p| p.1).max().unwrap_or(0);
    for (buffer, offset) in offsets {
        entry.buffers[buffer].place = Place::Arena(offset);
    }
}

/// The live range of each buffer that is used.
fn ranges(entry: &Entry, lives: &[Life]) -> Vec<Option<Range>> {
    let mut walk = Walk::default();
    walk.steps(&entry.steps);
    let mut ranges: Vec<Option<Range>> = vec![None; lives.len()];
    for (buffer, at, path) in &walk.uses {
        // Used in a loop that it does not come from: live through the whole loop.
        let inner = path.get(lives[*buffer].home.len()).map(|&number| walk.spans[number]);
        let range = inner.unwrap_or(Range { from: *at, to: *at });
        ranges[*buffer] = Some(ranges[*buffer].map_or(range, |r| r.cover(range)));
    }
    for (buffer, life) in lives.iter().enumerate() {
        if let (true, Some(range)) = (life.to_the_end, &mut ranges[buffer]) {
            range.to = walk.clock;
        }
    }
    // Which of the two a carried value is in depends on the trips.
    for (buffer, life) in lives.iter().enumerate() {
        if let (Some(a), Some(b)) = (ranges[buffer], life.pair.and_then(|pair| ranges[pair])) {
            ranges[buffer] = Some(a.cover(b));
        }
    }
    ranges
}

#[derive(Default)]
struct Walk {
    clock: usize,
    path: Vec<usize>,
    spans: Vec<Range>,
    uses: Vec<(usize, usize, Vec<usize>)>,
}

impl Walk {
    fn touch(&mut self, buffer: usize) {
        self.uses.push((buffer, self.clock, self.path.clone()));
    }
    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.clock += 1;
            match step {
                Step::Launch(launch) => launch.args.iter().for_each(|arg| self.touch(arg.buffer)),
                Step::Zero { buffer, .. } => self.touch(*buffer),
                Step::Copy { dst, src } => [*dst, *src].into_iter().for_each(|b| self.touch(b)),
                Step::Loop(inner) => {
                    let number = self.spans.len();
                    self.spans.push(Range { from: self.clock, to: self.clock });
                    self.path.push(number);
                    let pairs = inner.swaps.iter().flat_map(|&(a, b)| [a, b]);
                    for buffer in pairs.chain(inner.done).chain([inner.steps]) {
                        self.touch(buffer);
                    }
                    self.steps(&inner.body);
                    self.path.pop();
                    self.clock += 1;
                    self.spans[number].to = self.clock;
                }
            }
        }
    }
}
