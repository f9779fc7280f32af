//! Where the time goes: times per kernel, and a trace for Perfetto.
use rdc_ir::Loc;
use rdc_ir::program::Program;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Launches recorded per thread; later ones are counted only. 24 MB per thread.
const LIMIT: usize = 1 << 20;

/// A launch of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchInfo {
    /// The entry it belongs to.
    pub entry: String,
    /// The kernel's index.
    pub kernel: usize,
    /// The lines of model text it comes from.
    pub locs: Vec<Loc>,
}

/// One thread's part in one execution of a launch, from and to where it waits; nanoseconds from the start of the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub launch: u32,
    /// Whether it goes on after a wait.
    pub resumed: bool,
    pub start: u64,
    pub end: u64,
}

/// Recorded times.
#[derive(Debug)]
pub struct Profile {
    origin: Instant,
    launches: Vec<LaunchInfo>,
    /// Per thread, in order; every thread takes part in every execution.
    events: Vec<Vec<Event>>,
    dropped: usize,
}

/// The times of one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The kernel's name.
    pub kernel: String,
    /// The lines of model text it comes from, ascending.
    pub lines: Vec<u32>,
    /// Executions.
    pub calls: usize,
    /// Elapsed seconds, over all executions: every moment is shared out among the kernels that threads are in.
    pub seconds: f64,
    /// Seconds that threads spent in it, over all threads.
    pub busy: f64,
    /// Floating-point operations per second of `seconds`.
    pub flops: f64,
    /// Bytes that must be moved per second of `seconds`.
    pub bytes: f64,
}

/// The executions of a launch; times in nanoseconds.
#[derive(Clone, Default)]
struct Sum {
    calls: usize,
    busy: u64,
    elapsed: f64,
}

impl Profile {
    pub(crate) fn new(launches: Vec<LaunchInfo>, threads: usize) -> Profile {
        Profile { origin: Instant::now(), launches, events: vec![Vec::new(); threads], dropped: 0 }
    }
    pub(crate) fn origin(&self) -> Instant {
        self.origin
    }
    pub(crate) fn add(&mut self, thread: usize, events: &mut Vec<Event>) {
        let room = LIMIT.saturating_sub(self.events[thread].len()).min(events.len());
        if thread == 0 {
            self.dropped += events[room..].iter().filter(|event| !event.resumed).count();
        }
        self.events[thread].extend(events.drain(..).take(room));
    }
    /// Executions that came after the recording was full.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
    /// Time from the first kernel's start to the last one's end.
    pub fn span(&self) -> Duration {
        let all = self.events.iter().flatten();
        let (start, end) = all.fold((u64::MAX, 0), |(s, e), event| (s.min(event.start), e.max(event.end)));
        Duration::from_nanos(end.saturating_sub(start))
    }
    /// Seconds per thread that were spent outside kernels within the span: barriers, waiting for tasks, the schedule, the runtime.
    pub fn outside(&self) -> Vec<f64> {
        let span = self.span().as_secs_f64();
        let busy = |events: &Vec<Event>| events.iter().map(|e| e.end - e.start).sum::<u64>() as f64 * 1e-9;
        self.events.iter().map(|events| span - busy(events)).collect()
    }
    /// Times by kernel, the most expensive first.
    pub fn kernels(&self, program: &Program) -> Vec<KernelTime> {
        let mut times: BTreeMap<usize, KernelTime> = BTreeMap::new();
        for (info, sum) in self.launches.iter().zip(self.sums()) {
            let Some(kernel) = program.kernels.get(info.kernel).filter(|_| sum.calls > 0) else { continue };
            let time = times.entry(info.kernel).or_insert_with(|| KernelTime {
                kernel: kernel.name.clone(),
                lines: Vec::new(),
                calls: 0,
                seconds: 0.0,
                busy: 0.0,
                flops: 0.0,
                bytes: 0.0,
            });
            time.calls += sum.calls;
            time.seconds += sum.elapsed * 1e-9;
            time.busy += sum.busy as f64 * 1e-9;
            time.flops += kernel.flops as f64 * sum.calls as f64;
            time.bytes += kernel.bytes as f64 * sum.calls as f64;
            time.lines.extend(info.locs.iter().map(|l| l.line).filter(|l| *l > 0));
        }
        let mut times: Vec<KernelTime> = times.into_values().collect();
        for time in &mut times {
            let per_second = 1.0 / time.seconds.max(1e-9);
            (time.flops, time.bytes) = (time.flops * per_second, time.bytes * per_second);
            time.lines.sort_unstable();
            time.lines.dedup();
        }
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
    /// What the executions of each launch come to.
    fn sums(&self) -> Vec<Sum> {
        let mut sums = vec![Sum::default(); self.launches.len()];
        for event in self.events.first().into_iter().flatten().filter(|event| !event.resumed) {
            sums[event.launch as usize].calls += 1;
        }
        let mut edges = Vec::new();
        for &Event { launch, start, end, .. } in self.events.iter().flatten() {
            sums[launch as usize].busy += end - start;
            if start < end {
                edges.extend([(start, true, launch), (end, false, launch)]);
            }
        }
        edges.sort_unstable();
        let (mut active, mut last) = (Vec::new(), 0);
        for (time, begins, launch) in edges {
            let each = (time - last) as f64 / active.len().max(1) as f64;
            active.iter().for_each(|&launch: &u32| sums[launch as usize].elapsed += each);
            last = time;
            if begins {
                active.push(launch);
            } else if let Some(at) = active.iter().position(|&a| a == launch) {
                active.swap_remove(at);
            }
        }
        sums
    }
    /// Writes the recording in the Chrome trace format, which Perfetto and chrome://tracing open.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_trace(&self, program: &Program, out: &mut dyn Write) -> io::Result<()> {
        #[derive(Serialize)]
        struct TraceEvent<'a> {
            name: &'a str,
            cat: &'a str,
            ph: &'a str,
            ts: f64,
            dur: f64,
            pid: u32,
            tid: usize,
            args: Args,
        }
        #[derive(Serialize)]
        struct Args {
            lines: Vec<u32>,
        }
        out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        let mut first = true;
        for (thread, events) in self.events.iter().enumerate() {
            for event in events {
                let info = &self.launches[event.launch as usize];
                let Some(kernel) = program.kernels.get(info.kernel) else { continue };
                out.write_all(if first { b"\n" } else { b",\n" })?;
                first = false;
                let event = TraceEvent {
                    name: &kernel.name,
                    cat: &info.entry,
                    ph: "X",
                    ts: event.start as f64 * 1e-3,
                    dur: (event.end - event.start) as f64 * 1e-3,
                    pid: 1,
                    tid: thread,
                    args: Args { lines: info.locs.iter().map(|l| l.line).collect() },
                };
                serde_json::to_writer(&mut *out, &event)?;
            }
        }
        out.write_all(b"\n]}\n")
    }
}
