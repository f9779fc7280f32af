//! The barrier of the worker threads.
//!
//! Each thread has one flag, on cache lines of its own, that only it writes: the number of barriers it has reached. To meet,
//! a thread raises its flag and waits until every other flag is as high. With two threads that is one cache line each way,
//! the least a barrier can cost; there is no counter to reset, so no reset can race.
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a waiting thread looks before it yields: 2 to 5 µs (a pause is 15 to 45 ns on current x86).
const SPINS: u32 = 128;

/// 128 bytes: adjacent lines are fetched in pairs on x86.
#[repr(align(128))]
#[derive(Default)]
struct Flag(AtomicU64);

/// A meeting point for a fixed number of threads.
pub struct Barrier {
    flags: Box<[Flag]>,
}

impl Barrier {
    /// A barrier for `threads` threads.
    pub fn new(threads: usize) -> Barrier {
        Barrier { flags: (0..threads).map(|_| Flag::default()).collect() }
    }
    /// How many threads meet.
    pub fn threads(&self) -> usize {
        self.flags.len()
    }
    /// Waits until all threads have called this as often as this thread. `epoch` is the thread's own count of its calls on
    /// this barrier, kept by the caller from 0 on. What any thread wrote before is visible to all after.
    pub fn wait(&self, thread: usize, epoch: &mut u64) {
        *epoch += 1;
        let target = *epoch;
        self.flags[thread].0.store(target, Ordering::Release);
        for (other, flag) in self.flags.iter().enumerate() {
            if other != thread {
                spin_until(|| flag.0.load(Ordering::Acquire) >= target);
            }
        }
    }
}

/// Returns once `ready` does. Spins briefly, then yields the processor at every look, so that on a shared machine the thread
/// waited for gets to run.
pub fn spin_until(mut ready: impl FnMut() -> bool) {
    for _ in 0..SPINS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    while !ready() {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every thread adds to a shared sum between two barriers; after each pair all must see all additions of the round.
    #[test]
    fn meets_under_stress() {
        for threads in [1usize, 2, 3, 7] {
            let (barrier, sum) = (Barrier::new(threads), AtomicU64::new(0));
            let rounds = if threads > 2 { 300u64 } else { 5_000 };
            std::thread::scope(|scope| {
                for t in 0..threads {
                    let (barrier, sum) = (&barrier, &sum);
                    scope.spawn(move || {
                        let mut epoch = 0;
                        for round in 1..=rounds {
                            sum.fetch_add(t as u64 + 1, Ordering::Relaxed);
                            barrier.wait(t, &mut epoch);
                            let expected = round * (threads * (threads + 1) / 2) as u64;
                            assert_eq!(sum.load(Ordering::Relaxed), expected);
                            barrier.wait(t, &mut epoch);
                        }
                    });
                }
            });
        }
    }
}
