//! How threads come by the tasks of a launch.
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// How the tasks of a launch are claimed. Each thread has a share, the same part of every launch, so that the rows that it wrote
/// in one kernel are in its own caches when it reads them in the next. Only while its own next run, or the barrier, must wait, a thread
/// helps with the others' shares.
pub(super) struct Claims {
    /// Index of the first thread's counter; the others' follow.
    pub counter: usize,
    /// Each thread's share.
    pub shares: Box<[Share]>,
}

/// The runs that are claimed of a thread's share of a dynamic launch, over all its executions: each adds as many as there are, so
/// threads know where the next one starts and nothing is ever reset. Executions of one launch have a barrier between them.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Claim(AtomicU64);

/// Tasks that a thread takes at once.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// The number of the run in the launch.
    pub index: usize,
    pub begin: usize,
    pub end: usize,
}

/// What there is to do of a share.
pub(super) enum Claimed {
    /// This run, now of the thread that asked.
    Run(Run),
    /// Nothing yet: what is left must wait.
    Blocked,
    /// Nothing any more.
    Nothing,
}

/// A thread's share of the tasks, in runs. Long runs come first: neighbouring tasks share work (the prologue of a row block), and
/// short runs at the end are what others can take from a thread that was held up.
pub(super) struct Share {
    /// The number of its first run in the launch.
    pub first: usize,
    /// Where each run of tasks begins, and the end of the last.
    pub cuts: Box<[usize]>,
}

impl Share {
    /// Of runs that shrink by half.
    fn halving(first: usize, tasks: Range<usize>) -> Share {
        let mut at = tasks.start;
        let mut cuts = vec![at];
        while at < tasks.end {
            at += ((tasks.end - at) / 2).max(1);
            cuts.push(at);
        }
        Share { first, cuts: cuts.into() }
    }
    /// The runs of tasks.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        self.cuts.windows(2).map(|cut| cut[0]..cut[1])
    }
}

/// A thread's contiguous part of `n` things.
pub(super) fn part(thread: usize, threads: usize, n: usize) -> Range<usize> {
    thread * n / threads..(thread + 1) * n / threads
}

impl Claims {
    /// Of so many tasks among so many threads.
    pub fn new(counter: usize, tasks: usize, threads: usize) -> Claims {
        let mut first = 0;
        let share = |thread: usize| {
            let share = Share::halving(first, part(thread, threads, tasks));
            first += share.cuts.len() - 1;
            share
        };
        Claims { counter, shares: (0..threads).map(share).collect() }
    }
    /// Claims the next run of a share, if it is `ready`. `bases` are where the counters started.
    pub fn take(&self, share: usize, counters: &[Claim], bases: &[u64], ready: &dyn Fn(usize) -> bool) -> Claimed {
        let (Claim(counter), base) = (&counters[self.counter + share], bases[self.counter + share]);
        let Share { first, cuts } = &self.shares[share];
        loop {
            let count = counter.load(Ordering::Relaxed);
            let at = (count - base) as usize;
            let (Some(&begin), Some(&end)) = (cuts.get(at), cuts.get(at + 1)) else { return Claimed::Nothing };
            if !ready(first + at) {
                return Claimed::Blocked;
            }
            if counter.compare_exchange(count, count + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Claimed::Run(Run { index: first + at, begin, end });
            }
        }
    }
    /// Moves a thread's `bases` to where the counters are after this execution.
    pub fn advance(&self, bases: &mut [u64]) {
        let bases = bases[self.counter..].iter_mut();
        bases.zip(&self.shares).for_each(|(base, share)| *base += share.runs().count() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_task_once_and_shrink() {
        for (tasks, threads) in [(0, 2), (1, 2), (16, 2), (17, 3), (1000, 8)] {
            let mut next = 0;
            let mut runs = 0;
            for share in Claims::new(0, tasks, threads).shares {
                assert_eq!((share.first, share.cuts[0]), (runs, next));
                next = share.cuts[share.cuts.len() - 1];
                let sizes: Vec<usize> = share.runs().map(|run| run.len()).collect();
                assert!(sizes.windows(2).all(|s| s[0] >= s[1] && s[1] > 0), "{sizes:?}");
                runs += sizes.len();
            }
            assert_eq!(next, tasks);
        }
    }
}
