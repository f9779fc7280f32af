//! Worker threads, and how many of them by default.
//!
//! `unsafe` here: the job is a borrowed closure whose lifetime the threads cannot name. It is handed over with an epoch
//! counter, and [`Pool::run`] returns only after every worker has said that it is done with it.
use crate::barrier::spin_until;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker yields before it sleeps: between the calls of a decode loop it stays awake.
const LINGER: Duration = Duration::from_micros(50);

/// Threads of a pool at most.
const MAX_THREADS: usize = 1024;

type Job = &'static (dyn Fn(usize) + Sync);

struct Control {
    job: Mutex<Option<Job>>,
    epoch: AtomicU32,
    finished: AtomicUsize,
    stop: AtomicBool,
}

/// A fixed set of threads that run one closure together; between runs they sleep.
pub struct Pool {
    control: Arc<Control>,
    workers: Vec<(JoinHandle<()>, Thread)>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// If they are more than a thousand or so, or the system gives no more.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        if threads > MAX_THREADS {
            return Err(std::io::Error::other(format!("more than {MAX_THREADS} are no help on any machine")));
        }
        let control = Arc::new(Control {
            job: Mutex::new(None),
            epoch: AtomicU32::new(0),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { control, workers: Vec::new() };
        for index in 1..threads.max(1) {
            let control = pool.control.clone();
            let handle =
                std::thread::Builder::new().name(format!("rdc-{index}")).spawn(move || worker(&control, index))?;
            let thread = handle.thread().clone();
            pool.workers.push((handle, thread));
        }
        Ok(pool)
    }
    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }
    /// Runs `job(t)` on every thread t (0 is the caller's) and returns when all have returned. A job that panics aborts the
    /// process: the others would wait for it at a barrier for ever.
    pub fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        let guard = AbortOnPanic;
        if !self.workers.is_empty() {
            // SAFETY: only the lifetime changes. Workers use the reference between the change of `epoch` and their addition
            // to `finished`, and this function does not return (the guard aborts on unwinding) before all have added.
            let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
            self.control.finished.store(0, Ordering::Relaxed);
            *self.control.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
            self.control.epoch.fetch_add(1, Ordering::Release);
            self.workers.iter().for_each(|(_, thread)| thread.unpark());
        }
        job(0);
        spin_until(|| self.control.finished.load(Ordering::Acquire) == self.workers.len());
        if !self.workers.is_empty() {
            *self.control.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        std::mem::forget(guard);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        self.control.epoch.fetch_add(1, Ordering::Release);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            // A worker that panicked has aborted the process.
            let _ = handle.join();
        }
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn worker(control: &Control, index: usize) {
    let mut seen = 0;
    loop {
        let idle_since = Instant::now();
        while control.epoch.load(Ordering::Acquire) == seen {
            if idle_since.elapsed() < LINGER {
                std::thread::yield_now();
            } else {
                std::thread::park();
            }
        }
        seen = seen.wrapping_add(1);
        if control.stop.load(Ordering::Relaxed) {
            return;
        }
        let job = *control.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = job {
            let guard = AbortOnPanic;
            job(index);
            std::mem::forget(guard);
        }
        control.finished.fetch_add(1, Ordering::Release);
    }
}

/// The threads that this process may keep busy: the smaller of its affinity mask and its control group's processor quota
/// (version 2 or 1, its own group and those above), rounded up.
pub fn default_threads() -> usize {
    let affinity = affinity().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    quota().map_or(affinity, |quota| affinity.min(quota)).max(1)
}

#[cfg(target_os = "linux")]
fn affinity() -> Option<usize> {
    // SAFETY: a zeroed cpu_set_t is an empty set, and the call fills at most its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let rc = libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set);
        (rc == 0).then(|| libc::CPU_COUNT(&set) as usize)
    }
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<usize> {
    None
}

fn quota() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    quota_of(&groups, &|path| std::fs::read_to_string(path).ok())
}

/// The smallest quota over the control groups that the text of /proc/self/cgroup names and the groups above them.
fn quota_of(groups: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
    let mut least: Option<usize> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let roots: &[&str] = match controllers {
            "" => &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
            c if c.split(',').any(|c| c == "cpu") => &["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"],
            _ => continue,
        };
        let ancestors = std::iter::successors(Some(path.trim_end_matches('/')), |p| p.rfind('/').map(|i| &p[..i]));
        for (group, root) in ancestors.flat_map(|p| roots.iter().map(move |r| (p, r))) {
            let (quota, period) = if controllers.is_empty() {
                let Some(text) = read(&format!("{root}{group}/cpu.max")) else { continue };
                let mut words = text.split_whitespace().map(str::parse::<u64>);
                let (Some(Ok(quota)), Some(Ok(period))) = (words.next(), words.next()) else { continue };
                (quota, period)
            } else {
                let number = |file: &str| read(&format!("{root}{group}/{file}"))?.trim().parse::<u64>().ok();
                let (Some(quota), Some(period)) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) else {
                    continue;
                };
                (quota, period)
            };
            if period > 0 && quota > 0 {
                let threads = quota.div_ceil(period) as usize;
                least = Some(least.map_or(threads, |l| l.min(threads)));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_job_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for round in 0..200 {
                let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|t| {
                    counts[t].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "round {round}");
                if round == 100 {
                    // Long enough for the workers to sleep.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn quotas_of_both_versions() {
        let v2 = |path: &str| match path {
            "/sys/fs/cgroup/a/b/cpu.max" => Some("max 100000\n".to_string()),
            "/sys/fs/cgroup/a/cpu.max" => Some("250000 100000\n".to_string()),
            _ => None,
        };
        assert_eq!(quota_of("0::/a/b\n", &v2), Some(3));
        assert_eq!(quota_of("0::/c\n", &v2), None);
        let v1 = |path: &str| match path {
            "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us" => Some("150000\n".to_string()),
            "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us" => Some("100000\n".to_string()),
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us" => Some("-1\n".to_string()),
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us" => Some("100000\n".to_string()),
            _ => None,
        };
        assert_eq!(quota_of("3:cpuset:/\n1:cpu,cpuacct:/x\n0::/\n", &v1), Some(2));
        assert_eq!(quota_of("1:cpu:/\n", &v1), None);
        assert_eq!(quota_of("garbage\n::::\n", &v1), None);
        assert!(default_threads() >= 1);
    }
}
