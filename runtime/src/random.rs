//! Counter-based draws.
//!
//! A number depends on its key and its coordinates only, never on how many were drawn before it, so draws survive packing,
//! chunking, resuming, threads and a change of device. The generator is Philox4x32-10 (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011). The key is a hash of the seed and the tensor's name; the counter is
//! (element / 4, row, batch row, attempt), and the four words of a block are four elements' uniforms, two and two for
//! Box–Muller. Logarithm, sine and cosine are those of the `libm` crate, whose results do not depend on the system.
mod lanes;

use rdc_ir::Init;

/// One block of Philox4x32-10: four words from a counter and a key.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(a) * 0xD251_1F53;
        let p1 = u64::from(c) * 0xCD9E_8D57;
        (a, b, c, d) = ((p1 >> 32) as u32 ^ b ^ k0, p1 as u32, (p0 >> 32) as u32 ^ d ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [a, b, c, d]
}

/// The draws of one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    init: Init,
}

impl Stream {
    /// The draws of the tensor `name` under a seed.
    pub fn new(seed: u64, name: &str, init: Init) -> Stream {
        let key = fold(seed, name);
        Stream { key: [key as u32, (key >> 32) as u32], init }
    }
    /// Elements `start..start + out.len()` of a row. A parameter of rank 2 or more is rows by its last axis, batch 0; a
    /// parameter of rank 1 is row 0; the row of a state is the token's absolute position.
    pub fn fill(&self, batch: u32, row: u32, start: usize, out: &mut [f32]) {
        if let Init::Constant(value) = self.init {
            out.fill(value as f32);
            return;
        }
        // Whole lanes of blocks, then what is left one by one.
        let mut done = 0;
        while start.is_multiple_of(4) && out.len() - done >= lanes::NORMALS {
            let block = ((start + done) / 4) as u32;
            let normals = lanes::normals(block, [row, batch, 0], self.key);
            for (i, (x, normal)) in out[done..].iter_mut().zip(normals).enumerate() {
                *x = self.finish([block.wrapping_add((i / 4) as u32), row, batch, 0], i % 4, normal) as f32;
            }
            done += lanes::NORMALS;
        }
        let (mut block, mut normals) = (u32::MAX, [0.0; 4]);
        for (i, x) in out.iter_mut().enumerate().skip(done) {
            let element = start + i;
            let index = (element / 4) as u32;
            if i == 0 || index != block {
                block = index;
                normals = self.normals([block, row, batch, 0]);
            }
            *x = self.finish([block, row, batch, 0], element % 4, normals[element % 4]) as f32;
        }
    }
    /// Four standard normals.
    fn normals(&self, counter: [u32; 4]) -> [f64; 4] {
        let words = philox4x32(counter, self.key);
        let ([a, b], [c, d]) = (box_muller(words[0], words[1]), box_muller(words[2], words[3]));
        [a, b, c, d]
    }
    fn finish(&self, mut counter: [u32; 4], lane: usize, mut normal: f64) -> f64 {
        match self.init {
            Init::Constant(value) => value,
            Init::Normal { std } => std * normal,
            Init::TruncNormal { std, bound } => {
                // A bound that no draw meets (zero or less, or not a number) leaves the mean.
                while normal.abs() > bound || bound.is_nan() {
                    if counter[3] == 10_000 {
                        return 0.0;
                    }
                    counter[3] += 1;
                    normal = self.normals(counter)[lane];
                }
                std * normal
            }
        }
    }
}

/// Two independent standard normals from two words (Box and Muller).
fn box_muller(a: u32, b: u32) -> [f64; 2] {
    let radius = (-2.0 * libm::log(lanes::uniform(a))).sqrt();
    let (sin, cos) = libm::sincos(2.0 * std::f64::consts::PI * lanes::uniform(b));
    [radius * cos, radius * sin]
}

/// Uniform numbers of one purpose at one step of training, one after another. They depend on the seed, the purpose's name and the
/// step only.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    step: u64,
    drawn: u32,
}

impl Draws {
    /// The draws of a purpose at a step.
    pub fn new(seed: u64, purpose: &str, step: u64) -> Draws {
        let key = fold(seed, purpose);
        Draws { key: [key as u32, (key >> 32) as u32], step, drawn: 0 }
    }
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let words = philox4x32([self.drawn / 2, 0, self.step as u32, (self.step >> 32) as u32], self.key);
        let pair = 2 * (self.drawn % 2) as usize;
        self.drawn = self.drawn.wrapping_add(1);
        u64::from(words[pair]) | u64::from(words[pair + 1]) << 32
    }
    /// Uniform in the open interval (0, 1), a multiple of 2^-53 shifted by half of it.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    /// Uniform in `0..n`; 0 if n is 0. The bias, n / 2^64, is far below what can be measured.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }
    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * libm::log(a)).sqrt() * libm::cos(2.0 * std::f64::consts::PI * b)
    }
    /// Poisson with this mean, by inversion of the distribution function, in parts of mean 16 at most: a sum of independent
    /// Poisson numbers is one, and no part's `exp(-mean)` underflows. A mean that is not above 0 gives 0.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        let (mut left, mut total) = (mean, 0);
        while left > 0.0 {
            let part = left.min(16.0);
            left -= part;
            let (target, mut count) = (self.uniform(), 0u64);
            let mut mass = libm::exp(-part);
            let mut below = mass;
            // The sum of the masses may round to less than the largest uniform; 1000 is beyond all mass of mean 16.
            while below < target && count < 1000 {
                count += 1;
                mass *= part / count as f64;
                below += mass;
            }
            total += count;
        }
        total
    }
}

/// A seed for one purpose: FNV-1a over the name, then the finaliser of splitmix64 over it and the seed.
pub fn fold(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    mix(hash ^ mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)))
}

/// A seed for one step of a purpose: what [`fold`] gives, and the step.
pub fn fold_step(seed: u64, purpose: &str, step: u64) -> u64 {
    mix(fold(seed, purpose) ^ mix(step.wrapping_add(0x9E37_79B9_7F4A_7C15)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 library (kat_vectors).
    #[test]
    fn philox_known_vectors() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox4x32(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    fn moments(x: &[f32]) -> (f64, f64, f64) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let central = |p: i32| x.iter().map(|&v| (f64::from(v) - mean).powi(p)).sum::<f64>() / n;
        (mean, central(2).sqrt(), central(4) / central(2).powi(2))
    }

    #[test]
    fn normal_moments() {
        let mut x = vec![0.0; 400_000];
        Stream::new(7, "w", Init::Normal { std: 2.0 }).fill(0, 0, 0, &mut x);
        let (mean, std, kurtosis) = moments(&x);
        // Five standard errors of each estimate.
        assert!(mean.abs() < 5.0 * 2.0 / 632.0, "{mean}");
        assert!((std - 2.0).abs() < 5.0 * 2.0 / 894.0, "{std}");
        assert!((kurtosis - 3.0).abs() < 5.0 * (24.0f64 / 4e5).sqrt(), "{kurtosis}");
    }

    /// Truncation at 3 standard deviations leaves 0.98658 of the deviation (spec, section 3.3).
    #[test]
    fn truncated_normal_moments() {
        let mut x = vec![0.0; 400_000];
        Stream::new(1, "initial_state", Init::TruncNormal { std: 0.4f64.sqrt(), bound: 3.0 }).fill(0, 5, 0, &mut x);
        let (mean, std, _) = moments(&x);
        assert!(mean.abs() < 0.006, "{mean}");
        assert!((std - 0.62397).abs() < 0.004, "{std}");
        assert!(x.iter().all(|v| f64::from(v.abs()) <= 3.0 * 0.4f64.sqrt() + 1e-6));
        Stream::new(1, "x", Init::TruncNormal { std: 1.0, bound: 0.0 }).fill(0, 0, 0, &mut x[..3]);
        assert_eq!(x[..3], [0.0; 3]);
    }

    #[test]
    fn a_draw_depends_on_its_coordinates_only() {
        let stream = Stream::new(3, "initial_state", Init::TruncNormal { std: 1.0, bound: 2.0 });
        let mut whole = vec![0.0; 37];
        stream.fill(1, 9, 0, &mut whole);
        for start in 0..37 {
            let mut part = vec![0.0; 37 - start];
            stream.fill(1, 9, start, &mut part);
            assert_eq!(part, whole[start..]);
        }
        let other = |seed, name, batch, row| {
            let mut x = vec![0.0; 37];
            Stream::new(seed, name, Init::TruncNormal { std: 1.0, bound: 2.0 }).fill(batch, row, 0, &mut x);
            x
        };
        assert_eq!(other(3, "initial_state", 1, 9), whole);
        for changed in [
            other(4, "initial_state", 1, 9),
            other(3, "state", 1, 9),
            other(3, "initial_state", 0, 9),
            other(3, "initial_state", 1, 8),
        ] {
            assert!(changed.iter().zip(&whole).filter(|(a, b)| a == b).count() < 3);
        }
    }

    #[test]
    fn draws_of_a_step() {
        let mut all: Vec<u64> = Vec::new();
        for (seed, purpose, step) in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 1 << 32)] {
            let mut draws = Draws::new(seed, purpose, step);
            let mut again = draws.clone();
            all.extend((0..100).map(|_| draws.bits()));
            assert_eq!(again.bits(), all[all.len() - 100]);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        let mut draws = Draws::new(4, "moments", 9);
        let n = 200_000;
        let (mut normal, mut uniform, mut below) = (vec![0.0; n], 0.0, [0u32; 5]);
        for x in &mut normal {
            *x = draws.normal() as f32;
            uniform += draws.uniform() / n as f64;
            below[draws.below(5) as usize] += 1;
        }
        let (mean, std, kurtosis) = moments(&normal);
        assert!(mean.abs() < 5.0 / 447.0 && (std - 1.0).abs() < 5.0 / 632.0 && (kurtosis - 3.0).abs() < 0.06);
        assert!((uniform - 0.5).abs() < 5.0 * 0.2887 / 447.0, "{uniform}");
        // Five standard deviations of a binomial.
        assert!(below.iter().all(|&c| (f64::from(c) - n as f64 / 5.0).abs() < 5.0 * 179.0), "{below:?}");
    }

    /// Mean and variance of a Poisson number are equal; below, at and beyond one part of the sum.
    #[test]
    fn poisson_moments() {
        for mean in [0.3, 4.0, 16.0, 100.5] {
            let mut draws = Draws::new(2, "poisson", mean as u64);
            let x: Vec<f32> = (0..100_000).map(|_| draws.poisson(mean) as f32).collect();
            let (m, std, _) = moments(&x);
            assert!((m - mean).abs() < 5.0 * (mean / 1e5).sqrt(), "{mean}: {m}");
            // The variance of the sample variance: (mu_4 - var^2) / n, with mu_4 = mean + 3 mean^2.
            let error = ((mean + 2.0 * mean * mean) / 1e5).sqrt();
            assert!((std * std - mean).abs() < 5.0 * error, "{mean}: {}", std * std);
            let zeros = x.iter().filter(|v| **v == 0.0).count() as f64;
            let expected = 1e5 * (-mean).exp();
            assert!((zeros - expected).abs() <= 5.0 * expected.sqrt() + 1e-9, "{mean}: {zeros} zeros");
        }
        let mut draws = Draws::new(0, "poisson", 0);
        assert_eq!((draws.poisson(0.0), draws.poisson(-1.0), draws.poisson(f64::NAN)), (0, 0, 0));
    }

    #[test]
    fn neighbours_are_uncorrelated() {
        let mut rows = vec![vec![0.0; 4096]; 3];
        for (r, row) in rows.iter_mut().enumerate() {
            Stream::new(0, "w", Init::Normal { std: 1.0 }).fill(0, r as u32, 0, row);
        }
        let correlation =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / a.len() as f64;
        for lag in 1..5 {
            assert!(correlation(&rows[0][lag..], &rows[0]).abs() < 5.0 / 64.0);
        }
        assert!(correlation(&rows[0], &rows[1]).abs() < 5.0 / 64.0);
        assert!(correlation(&rows[1], &rows[2]).abs() < 5.0 / 64.0);
    }
}
