//! Which memory a step of a schedule may touch.
use super::{Entry, LaunchArg, Offset, Place};
use std::ops::Range;

impl Entry {
    /// The buffers that a buffer may stand for: those of a pair, or itself.
    pub fn behind(&self, buffer: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, second) = match self.buffers[buffer].place {
            Place::Pair { even, odd, .. } => (even, Some(odd)),
            _ => (buffer, None),
        };
        std::iter::once(first).chain(second)
    }
    /// Where bytes of an argument may be: a space (arenas count as `Arena(0)`) and a range of it. That is anywhere in the buffer if the
    /// step decides, and in either buffer of a pair. What each thread may have for itself is nowhere.
    pub fn memory(&self, arg: &LaunchArg, bytes: Range<usize>) -> Vec<(Place, Range<usize>)> {
        let place = |buffer: usize| {
            let buffer = &self.buffers[buffer];
            let (space, start) = match buffer.place {
                Place::Arena(start) => (Place::Arena(0), start),
                place if place.is_cell() => return None,
                place => (place, 0),
            };
            let within = match arg.offset {
                Offset::Fixed(at) => start + at + bytes.start..start + at + bytes.end,
                _ => start..start.saturating_add(buffer.bytes()),
            };
            Some((space, within))
        };
        if bytes.is_empty() { Vec::new() } else { self.behind(arg.buffer).filter_map(place).collect() }
    }
}
