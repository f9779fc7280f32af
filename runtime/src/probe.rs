//! Ceilings of this machine, measured: multiply-adds per second, and bytes read per second from each level of the memory
//! hierarchy. Each probe takes 50 to 100 ms and gives the median of its samples, since the machine may be shared.
//!
//! `unsafe` here: vector instructions, each behind a check at run time that the processor has them; loads stay within the slice.
use crate::Error;
use crate::barrier::Barrier;
use crate::memory::Buffer;
use crate::threads::Pool;
use serde::Serialize;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one sample runs, and how many are taken.
const SAMPLE: Duration = Duration::from_millis(8);
const SAMPLES: usize = 9;

/// The ceilings at some number of threads.
#[derive(Clone, Debug, Serialize)]
pub struct Ceilings {
    /// Threads.
    pub threads: usize,
    /// f32 operations per second; a multiply-add counts two.
    pub flops: f64,
    /// Reads, from the smallest footprint to the largest.
    pub reads: Vec<ReadRate>,
}

/// How fast a footprint is read over and over.
#[derive(Clone, Debug, Serialize)]
pub struct ReadRate {
    /// `L1`, `L2`, `L3` or `DRAM`.
    pub level: String,
    /// Bytes read, over all threads, each of which reads its own part.
    pub footprint: usize,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

impl Ceilings {
    /// Measures all of them.
    ///
    /// # Errors
    /// If the system gives no threads or memory.
    pub fn measure(threads: usize) -> Result<Ceilings, Error> {
        let flops = fma_peak(threads)?;
        let reads = levels(threads).into_iter().map(|(level, footprint)| {
            Ok(ReadRate { level, footprint, bytes_per_second: read_bandwidth(threads, footprint)? })
        });
        Ok(Ceilings { threads, flops, reads: reads.collect::<Result<_, Error>>()? })
    }
    /// The rate of the smallest measured footprint that holds `bytes`, or the largest one's.
    pub fn read_rate(&self, bytes: usize) -> f64 {
        let fits = self.reads.iter().find(|r| r.footprint >= bytes);
        fits.or(self.reads.last()).map_or(0.0, |r| r.bytes_per_second)
    }
}

/// f32 multiply-adds per second on all of `threads` threads, times two.
///
/// # Errors
/// If the system gives no threads.
pub fn fma_peak(threads: usize) -> Result<f64, Error> {
    let sample = |_thread: usize, iterations: usize| {
        black_box(fma(iterations));
    };
    let (seconds, iterations) = median(&mut new_pool(threads)?, 4096, &sample);
    Ok((2 * fma_lanes() * ACCUMULATORS * iterations * threads) as f64 / seconds)
}

/// Bytes per second at which `threads` threads read `footprint` bytes in all, each its own contiguous part, over and over.
///
/// # Errors
/// If the system gives no threads or memory.
pub fn read_bandwidth(threads: usize, footprint: usize) -> Result<f64, Error> {
    let part = (footprint / threads.max(1)).next_multiple_of(1024).max(1024);
    let parts = (0..threads).map(|_| Ok(Mutex::new(Buffer::zeroed(part)?))).collect::<Result<Vec<_>, Error>>()?;
    // Each thread touches its part first: pages that were never written are all one page of zeros.
    let mut pool = new_pool(threads)?;
    pool.run(&|t| parts[t].lock().unwrap_or_else(PoisonError::into_inner).fill(1));
    let sample = |thread: usize, iterations: usize| {
        let bytes = parts[thread].lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..iterations {
            black_box(read(black_box(&bytes)));
        }
    };
    let (seconds, iterations) = median(&mut pool, 1, &sample);
    Ok((part * iterations * threads) as f64 / seconds)
}

fn new_pool(threads: usize) -> Result<Pool, Error> {
    Pool::new(threads).map_err(|e| Error::Program(format!("cannot start {threads} threads: {e}")))
}

/// Doubles the iterations until a sample is long enough, then takes the median time of several samples.
fn median(pool: &mut Pool, least: usize, work: &(dyn Fn(usize, usize) + Sync)) -> (f64, usize) {
    let barrier = Barrier::new(pool.threads());
    let epochs: Vec<Mutex<u64>> = (0..pool.threads()).map(|_| Mutex::new(0)).collect();
    let mut time = |iterations: usize| {
        let span: Mutex<Option<(Instant, Instant)>> = Mutex::new(None);
        pool.run(&|thread| {
            barrier.wait(thread, &mut epochs[thread].lock().unwrap_or_else(PoisonError::into_inner));
            let start = Instant::now();
            work(thread, iterations);
            let end = Instant::now();
            let mut span = span.lock().unwrap_or_else(PoisonError::into_inner);
            *span = Some(span.map_or((start, end), |(s, e)| (s.min(start), e.max(end))));
        });
        let span = span.into_inner().unwrap_or_else(PoisonError::into_inner);
        span.map_or(0.0, |(start, end)| (end - start).as_secs_f64()).max(1e-9)
    };
    // The best of three: one disturbed try must not end the search with a sample that is all disturbance.
    let mut best_of_three = |iterations: usize| (0..3).map(|_| time(iterations)).fold(f64::MAX, f64::min);
    let mut iterations = least;
    while best_of_three(iterations) < SAMPLE.as_secs_f64() / 2.0 {
        iterations *= 2;
    }
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| time(iterations)).collect();
    samples.sort_by(f64::total_cmp);
    (samples[SAMPLES / 2], iterations)
}

/// A footprint well inside each level of cache, and one well outside the last: names and bytes over all threads.
fn levels(threads: usize) -> Vec<(String, usize)> {
    let size = |index: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        let (number, unit) = text.trim().split_at_checked(text.trim().len().checked_sub(1)?)?;
        let unit = if unit == "M" { 1 << 20 } else { 1 << 10 };
        number.parse::<usize>().ok().map(|n| n * unit)
    };
    // Index 1 is the instruction cache.
    let (l1, l2) = (size(0).unwrap_or(32 << 10), size(2).unwrap_or(512 << 10));
    let l3 = size(3).unwrap_or(8 << 20);
    // The last level is shared, also with other tenants of the machine.
    let shared = (l3 / 2).max(2 * threads * l2);
    let memory = (4 * l3).clamp(256 << 20, 1 << 30);
    [("L1", threads * l1 / 2), ("L2", threads * l2 / 2), ("L3", shared), ("DRAM", memory)]
        .map(|(n, b)| (n.into(), b))
        .into()
}

/// Independent chains of multiply-adds: enough for latency 5 at two per cycle, and few enough for 16 registers.
const ACCUMULATORS: usize = 12;

fn fma_lanes() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return 8;
        }
    }
    if cfg!(target_arch = "aarch64") { 4 } else { 1 }
}

/// `iterations` multiply-adds on each lane of each accumulator.
fn fma(iterations: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            return unsafe { x86::fma512(iterations) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { x86::fma256(iterations) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::aarch64::{vaddvq_f32, vdupq_n_f32, vfmaq_f32};
        // SAFETY: every aarch64 has NEON.
        unsafe {
            let (x, y) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001)));
            let mut sums = [y; ACCUMULATORS];
            for _ in 0..iterations {
                sums.iter_mut().for_each(|s| *s = vfmaq_f32(y, *s, x));
            }
            return sums.into_iter().map(|s| vaddvq_f32(s)).sum();
        }
    }
    #[cfg(not(target_arch = "aarch64"))]
    {
        let (x, y) = (black_box(0.999f32), black_box(0.001f32));
        let mut sums = [y; ACCUMULATORS];
        for _ in 0..iterations {
            sums.iter_mut().for_each(|s| *s = *s * x + y);
        }
        sums.into_iter().sum()
    }
}

/// Reads every byte of a slice whose length is a multiple of 1024.
fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { x86::read256(bytes) };
    }
    let words = bytes.as_chunks::<64>().0;
    let mut sums = [0u64; 8];
    for block in words {
        for (sum, word) in sums.iter_mut().zip(block.as_chunks::<8>().0) {
            *sum ^= u64::from_ne_bytes(*word);
        }
    }
    sums.into_iter().fold(0, |a, b| a ^ b)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ACCUMULATORS, black_box};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn fma512(iterations: usize) -> f32 {
        let (x, y) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [y; ACCUMULATORS];
        for _ in 0..iterations {
            sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, x, y));
        }
        sums.into_iter().map(|s| _mm512_reduce_add_ps(s)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma256(iterations: usize) -> f32 {
        let (x, y) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [y; ACCUMULATORS];
        for _ in 0..iterations {
            sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, x, y));
        }
        sums.into_iter().map(|s| _mm256_cvtss_f32(s)).sum()
    }

    #[target_feature(enable = "avx2")]
    pub fn read256(bytes: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        for block in bytes.as_chunks::<256>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 32 bytes at 32 i of the block's 256; unaligned loads are allowed.
                let loaded = unsafe { _mm256_loadu_si256(block.as_ptr().add(32 * i).cast()) };
                *sum = _mm256_xor_si256(*sum, loaded);
            }
        }
        let all = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_xor_si256(a, b));
        _mm256_extract_epi64::<0>(all) as u64 ^ _mm256_extract_epi64::<3>(all) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_plausible() {
        let flops = fma_peak(1).unwrap();
        assert!((1e7..1e13).contains(&flops), "{flops}");
        let rate = read_bandwidth(2, 64 << 10).unwrap();
        assert!((1e7..1e14).contains(&rate), "{rate}");
        let levels = levels(2);
        assert!(levels.windows(2).all(|w| w[0].1 < w[1].1), "{levels:?}");
        let reads = [("L1", 10, 3.0), ("DRAM", 20, 1.0)];
        let reads =
            reads.map(|(l, footprint, bytes_per_second)| ReadRate { level: l.into(), footprint, bytes_per_second });
        let ceilings = Ceilings { threads: 1, flops, reads: reads.into() };
        assert_eq!([5, 15, 25].map(|b| ceilings.read_rate(b)), [3.0, 1.0, 1.0]);
    }

    /// Each lane follows s = 0.999 s + 0.001 from s = 0.001; all lanes and accumulators alike.
    #[test]
    fn vector_work_is_done() {
        let expected = (0..100).fold(0.001f64, |s, _| 0.999 * s + 0.001) * ACCUMULATORS as f64;
        let factor = f64::from(fma(100)) / expected;
        // Some variants add up their lanes, some take one.
        assert!((factor - 1.0).abs() < 1e-3 || (factor - fma_lanes() as f64).abs() < 1e-2, "{factor}");
        let bytes: Vec<u8> = (0..2048u32).map(|i| (i * 31 % 251) as u8).collect();
        let words = bytes.as_chunks::<8>().0.iter().enumerate();
        // Words 0 and 3 of every four, as the vector variant adds them; the plain one adds all.
        let xor = |keep: fn(usize) -> bool| {
            words.clone().filter(|(i, _)| keep(i % 4)).fold(0, |a, (_, w)| a ^ u64::from_ne_bytes(*w))
        };
        assert!([xor(|i| i == 0 || i == 3), xor(|_| true)].contains(&read(&bytes)));
    }
}
