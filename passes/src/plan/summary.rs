//! Numbers about a program, for `rdc inspect`.
use rdc_ir::program::{Entry, KvPolicy, Offset, Program, Step};
use std::collections::{BTreeMap, BTreeSet};

/// What some launches cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Launches.
    pub launches: usize,
    /// Barriers between threads.
    pub barriers: usize,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must be read or written.
    pub bytes: u64,
}

/// An entry in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Distinct kernels that it launches.
    pub kernels: usize,
    /// Bytes of its arena.
    pub arena: usize,
    /// The most bytes of it that live at one moment, a lower bound for any arena.
    pub live: usize,
    /// What runs once, outside of loops.
    pub once: Work,
    /// For each loop, in order (outer before inner): its most steps and the work of one iteration, without that of loops
    /// inside.
    pub iterations: Vec<(usize, Work)>,
}

impl Summary {
    /// Sums up an entry.
    pub fn of(program: &Program, entry: &Entry) -> Summary {
        let mut kernels = BTreeSet::new();
        let mut iterations = Vec::new();
        let once = work(program, &entry.steps, &mut kernels, &mut iterations);
        Summary { kernels: kernels.len(), arena: entry.arena, live: entry.live, once, iterations }
    }
    /// The work of a run in which every loop takes `steps` steps, loops not being nested.
    pub fn at(&self, steps: usize) -> Work {
        let mut total = self.once;
        for (_, each) in &self.iterations {
            total.launches += each.launches * steps;
            total.barriers += each.barriers * steps;
            total.flops = total.flops.saturating_add(each.flops.saturating_mul(steps as u64));
            total.bytes = total.bytes.saturating_add(each.bytes.saturating_mul(steps as u64));
        }
        total
    }
}

fn work(program: &Program, steps: &[Step], kernels: &mut BTreeSet<usize>, iterations: &mut Vec<(usize, Work)>) -> Work {
    let mut sum = Work::default();
    for step in steps {
        match step {
            Step::Launch(launch) => {
                let kernel = &program.kernels[launch.kernel];
                kernels.insert(launch.kernel);
                sum.launches += 1;
                sum.flops = sum.flops.saturating_add(kernel.flops);
                sum.bytes = sum.bytes.saturating_add(kernel.bytes);
            }
            Step::Barrier => sum.barriers += 1,
            Step::Copy { .. } | Step::Zero { .. } => {}
            Step::Loop(inner) => {
                let at = iterations.len();
                iterations.push((inner.max_steps, Work::default()));
                iterations[at].1 = work(program, &inner.body, kernels, iterations);
            }
        }
    }
    sum
}

/// Bytes of an entry's KV caches, if the loops' slots were shared by another policy (`None`: as planned).
pub fn kv_bytes(entry: &Entry, policy: Option<KvPolicy>) -> usize {
    // For each cache: the bytes of a slot, and for each loop that uses it steps, layers and the policy.
    let mut users = BTreeMap::new();
    slots(&entry.steps, None, &mut users);
    let caches = entry.inputs.iter().map(|i| i.buffer).filter(|&b| entry.buffers[b].ty.cache);
    let bytes = caches.map(|cache| {
        let mut bytes = entry.buffers[cache].ty.bytes();
        for (&(_, max_steps), &(planned, layers, stride)) in users.range((cache, 0)..=(cache, usize::MAX)) {
            let other = policy.unwrap_or(planned);
            bytes = bytes.saturating_sub(planned.slots(max_steps, layers) * stride);
            bytes += other.slots(max_steps, layers) * stride;
        }
        bytes
    });
    bytes.sum()
}

type Users = BTreeMap<(usize, usize), (KvPolicy, usize, usize)>;

fn slots(steps: &[Step], max_steps: Option<usize>, users: &mut Users) {
    for step in steps {
        match step {
            Step::Launch(launch) => {
                for arg in &launch.args {
                    if let (Offset::Slot { policy, layers, stride, .. }, Some(max_steps)) = (arg.offset, max_steps) {
                        users.insert((arg.buffer, max_steps), (policy, layers, stride));
                    }
                }
            }
            Step::Copy { .. } | Step::Zero { .. } | Step::Barrier => {}
            Step::Loop(inner) => slots(&inner.body, Some(inner.max_steps), users),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::build;
    use crate::plan::testing::{Sizes, function, module, options};

    #[test]
    fn counts_what_runs() -> Result<(), crate::Error> {
        let sizes = Sizes { s: 1, policy: ("modulo", 2), max_steps: 8, ..Sizes::default() };
        let program = build(&module(vec![function("decode", &sizes)]), &options())?;
        let summary = Summary::of(&program, &program.entries[0]);
        assert_eq!((summary.once.launches, summary.iterations[0].1.launches), (9, 12));
        assert_eq!(summary.at(3).launches, 9 + 3 * 12);
        // Per token and block 2 * (4 d^2 + 3 d inner), d = 16, inner = 24; the state's half of the adapter once.
        let linear = 2 * (2 * (4 * 16 * 16 + 3 * 16 * 24) + 16 * 16);
        let flops = summary.iterations[0].1.flops;
        assert!(flops > linear && flops < linear + linear / 2, "{flops}");
        Ok(())
    }

    #[test]
    fn caches_under_each_policy() -> Result<(), crate::Error> {
        let sizes = Sizes { policy: ("modulo", 2), max_steps: 8, ..Sizes::default() };
        let program = build(&module(vec![function("prefill", &sizes)]), &options())?;
        let entry = &program.entries[0];
        // Two caches, T = 12 positions of 4 heads of 4 floats; one slot for the prelude, two core blocks.
        let slot = 2 * 12 * 4 * 4 * 4;
        assert_eq!(kv_bytes(entry, None), 5 * slot);
        assert_eq!(kv_bytes(entry, Some(KvPolicy::Full)), 17 * slot);
        assert_eq!(kv_bytes(entry, Some(KvPolicy::Modulo(1))), 3 * slot);
        assert_eq!(kv_bytes(entry, Some(KvPolicy::Block(4))), 5 * slot);
        Ok(())
    }
}
