//! Timing work and ceilings in turn, so that a ratio compares neighbours in time.
use anyhow::Result;
use rdc_runtime::probe;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Rounds of (ceiling, work).
const ROUNDS: usize = 5;
/// A larger footprint is read no slower.
const LARGEST: usize = 256 << 20;

/// One line of results.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// `gemm`, `prefill`, `decode`, or a kernel's name.
    pub work: String,
    /// Size of the standard model, or the artifact.
    pub size: String,
    /// Weight type.
    pub dtype: String,
    /// Iterations.
    pub steps: usize,
    /// Threads.
    pub threads: usize,
    /// Median seconds of one execution.
    pub seconds: f64,
    /// Fewest seconds of one execution.
    pub best: f64,
    /// Executions timed.
    pub repetitions: usize,
    /// Operations of one execution.
    pub flops: f64,
    /// Bytes that one execution must read.
    pub bytes: f64,
    /// Median over rounds of (seconds at the ceilings measured in the round) / (median seconds in the round).
    pub share: f64,
    /// Median operations per second of the ceiling.
    pub peak_flops: f64,
    /// Median bytes per second of the ceiling at the footprint that dominates.
    pub peak_bytes: f64,
    /// Memory of a training step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// Memory of a process that trains.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Bytes of weights, gradients, moments, the largest arena, inputs, outputs and scratch, as planned.
    pub planned: usize,
    /// The most bytes that were resident, the process's code and this benchmark's own buffers included.
    pub peak: usize,
}

/// What an execution needs at least: operations, and bytes by the footprint that they are read over and over from.
#[derive(Clone, Debug, Default)]
pub struct Need {
    /// Operations.
    pub flops: f64,
    /// (bytes, footprint); times add up.
    pub reads: Vec<(f64, usize)>,
}

/// The ceilings of one round.
struct Ceilings {
    flops: f64,
    /// Bytes per second for each of the need's reads.
    reads: Vec<f64>,
}

impl Need {
    fn ceilings(&self, threads: usize) -> Result<Ceilings> {
        let reads = self.reads.iter().map(|r| Ok(probe::read_bandwidth(threads, r.1.min(LARGEST))?));
        Ok(Ceilings { flops: probe::fma_peak(threads)?, reads: reads.collect::<Result<_>>()? })
    }
    fn floor(&self, ceilings: &Ceilings) -> f64 {
        let reads = self.reads.iter().zip(&ceilings.reads).map(|((bytes, _), rate)| bytes / rate).sum();
        (self.flops / ceilings.flops).max(reads)
    }
    fn bytes(&self) -> f64 {
        self.reads.iter().map(|r| r.0).sum()
    }
}

/// What is measured.
pub struct Label<'a> {
    /// See [`Line`].
    pub work: &'a str,
    /// See [`Line`].
    pub size: &'a str,
    /// See [`Line`].
    pub dtype: &'a str,
    /// See [`Line`].
    pub steps: usize,
    /// See [`Line`].
    pub threads: usize,
}

/// The middle number (0 of none).
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

/// Times `once` for about `seconds` in all, not counting the ceilings' 0.1 s each.
pub fn measure(label: &Label, seconds: f64, need: &Need, mut once: impl FnMut() -> Result<()>) -> Result<Line> {
    once()?;
    let (mut ratios, mut times, mut flops, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let heaviest = (0..need.reads.len()).max_by(|&a, &b| need.reads[a].0.total_cmp(&need.reads[b].0));
    for _ in 0..ROUNDS {
        let ceilings = need.ceilings(label.threads)?;
        let (start, deadline) = (Instant::now(), Duration::from_secs_f64(seconds / ROUNDS as f64));
        let mut round = Vec::new();
        while round.is_empty() || start.elapsed() < deadline {
            let begin = Instant::now();
            once()?;
            round.push(begin.elapsed().as_secs_f64());
        }
        ratios.push(need.floor(&ceilings) / median(round.clone()));
        flops.push(ceilings.flops);
        bytes.push(heaviest.map_or(0.0, |i| ceilings.reads[i]));
        times.extend(round);
    }
    Ok(Line {
        work: label.work.into(),
        size: label.size.into(),
        dtype: label.dtype.into(),
        steps: label.steps,
        threads: label.threads,
        best: times.iter().copied().fold(f64::INFINITY, f64::min),
        repetitions: times.len(),
        seconds: median(times),
        flops: need.flops,
        bytes: need.bytes(),
        share: median(ratios),
        peak_flops: median(flops),
        peak_bytes: median(bytes),
        memory: None,
    })
}
