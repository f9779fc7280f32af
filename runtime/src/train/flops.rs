//! The work of a call, from the schedule.
use rdc_ir::ArgRole;
use rdc_ir::program::{Entry, LoopStep, Place, Program, Step};
use std::collections::HashMap;

/// Floating-point operations of a call of an entry. `trips` says how often a loop over an input of that role runs.
pub(super) fn flops(program: &Program, entry: &Entry, trips: &dyn Fn(ArgRole) -> usize) -> u64 {
    let mut counter = Counter { program, entry, trips, taken: HashMap::new() };
    counter.steps(&entry.steps)
}

struct Counter<'a> {
    program: &'a Program,
    entry: &'a Entry,
    trips: &'a dyn Fn(ArgRole) -> usize,
    /// Trips of the loops so far, by the buffer that receives them.
    taken: HashMap<usize, usize>,
}

impl Counter<'_> {
    fn steps(&mut self, steps: &[Step]) -> u64 {
        let mut total = 0u64;
        for step in steps {
            total = total.saturating_add(match step {
                Step::Launch(launch) => self.program.kernels[launch.kernel].flops,
                Step::Loop(inner) => {
                    let trips = self.trips_of(inner);
                    self.taken.insert(inner.advance.trips, trips);
                    self.steps(&inner.body).saturating_mul(trips as u64)
                }
                _ => 0,
            });
        }
        total
    }
    fn trips_of(&self, inner: &LoopStep) -> usize {
        let given = match self.entry.buffers[inner.steps].place {
            Place::Input(index) => (self.trips)(self.entry.inputs[index].role),
            // The trips of an earlier loop, or else a constant, which is the loop's bound.
            _ => self.taken.get(&inner.steps).copied().unwrap_or(inner.max_steps),
        };
        given.min(inner.max_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::testing;

    #[test]
    fn loops_count_as_often_as_they_run() {
        let program = testing::program();
        // Two launches around a loop of two; each kernel claims 1000.
        for (steps, expected) in [(0, 2000), (3, 8000), (100, 2000 + 2000 * testing::MAX_STEPS as u64)] {
            let trips = |role| if role == ArgRole::Steps { steps } else { 0 };
            assert_eq!(flops(&program, &program.entries[0], &trips), expected);
        }
    }
}
