//! Which memory a step of a schedule may touch.
use super::{Entry, LaunchArg, Offset, Place, Step};
use std::ops::Range;

impl Entry {
    /// For each buffer the one that a loop exchanges it with.
    pub fn pairs(&self) -> Vec<Option<usize>> {
        let mut pairs = vec![None; self.buffers.len()];
        note_pairs(&self.steps, &mut pairs);
        pairs
    }
    /// Where bytes of an argument may be: a space (arenas count as `Arena(0)`) and a range of it. That is anywhere in the buffer, or in
    /// the one that it is exchanged with, if a step decides. What each thread has for itself is nowhere.
    pub fn memory(&self, pairs: &[Option<usize>], arg: &LaunchArg, bytes: Range<usize>) -> Vec<(Place, Range<usize>)> {
        let place = |buffer: usize| {
            let buffer = &self.buffers[buffer];
            let (space, start) = match buffer.place {
                Place::Arena(start) => (Place::Arena(0), start),
                Place::Step | Place::IsLast | Place::Trips => return None,
                place => (place, 0),
            };
            Some((space, start..start.saturating_add(buffer.bytes())))
        };
        match (arg.offset, pairs[arg.buffer]) {
            _ if bytes.is_empty() => Vec::new(),
            (Offset::Fixed(at), None) => {
                let within = |(space, whole): (Place, Range<usize>)| {
                    let start = whole.start + at;
                    (space, start + bytes.start..start + bytes.end)
                };
                place(arg.buffer).map(within).into_iter().collect()
            }
            (_, pair) => std::iter::once(arg.buffer).chain(pair).filter_map(place).collect(),
        }
    }
}

fn note_pairs(steps: &[Step], pairs: &mut [Option<usize>]) {
    for step in steps {
        if let Step::Loop(inner) = step {
            for &(a, b) in &inner.swaps {
                (pairs[a], pairs[b]) = (Some(b), Some(a));
            }
            note_pairs(&inner.body, pairs);
        }
    }
}
