//! Standard normals of many blocks of Philox at a time: straight-line arithmetic over lanes, which the compiler turns into vector
//! instructions.
//!
//! Every step is that of `libm::log` and `libm::sincos` (FreeBSD's e_log.c, e_rem_pio2.c, k_sin.c and k_cos.c), whose branches
//! are chosen between instead of taken, so that the numbers are theirs to the last bit. Double precision without fused
//! operations gives the same on every machine.
//!
//! `unsafe` here: a function compiled for AVX2 is called behind a check at run time that the processor has it.
use super::philox4x32;

/// Blocks at a time.
pub const BLOCKS: usize = 16;
/// Normals at a time.
pub const NORMALS: usize = 4 * BLOCKS;

/// The normals of the blocks `first..first + BLOCKS` of a counter whose other words are `rest`.
pub fn normals(first: u32, rest: [u32; 3], key: [u32; 2]) -> [f64; NORMALS] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { normals_avx2(first, rest, key) };
    }
    normals_of(first, rest, key)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn normals_avx2(first: u32, rest: [u32; 3], key: [u32; 2]) -> [f64; NORMALS] {
    normals_of(first, rest, key)
}

/// In the open interval (0, 1), so the logarithm is finite.
#[inline(always)]
pub fn uniform(word: u32) -> f64 {
    (float(u64::from(word)) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// A whole number below 2^52 as a float: there are vector instructions for these steps, unlike for a conversion.
#[inline(always)]
fn float(n: u64) -> f64 {
    const TWO_52: f64 = 4_503_599_627_370_496.0;
    f64::from_bits(TWO_52.to_bits() | n) - TWO_52
}

#[inline(always)]
fn normals_of(first: u32, [row, batch, attempt]: [u32; 3], key: [u32; 2]) -> [f64; NORMALS] {
    let mut words = [[0; BLOCKS]; 4];
    for lane in 0..BLOCKS {
        let block = philox4x32([first.wrapping_add(lane as u32), row, batch, attempt], key);
        for (lanes, word) in words.iter_mut().zip(block) {
            lanes[lane] = word;
        }
    }
    let mut out = [0.0; NORMALS];
    for pair in [0, 2] {
        // A loop for each step: longer ones are not made vectors of.
        let [mut radii, mut angles, mut sines, mut cosines] = [[0.0; BLOCKS]; 4];
        for lane in 0..BLOCKS {
            radii[lane] = (-2.0 * log(uniform(words[pair][lane]))).sqrt();
        }
        for lane in 0..BLOCKS {
            angles[lane] = 2.0 * std::f64::consts::PI * uniform(words[pair + 1][lane]);
        }
        for lane in 0..BLOCKS {
            (sines[lane], cosines[lane]) = sincos(angles[lane]);
        }
        for lane in 0..BLOCKS {
            (out[4 * lane + pair], out[4 * lane + pair + 1]) = (radii[lane] * cosines[lane], radii[lane] * sines[lane]);
        }
        if angles.iter().fold(false, |any, &angle| any | is_near_axis(angle)) {
            for lane in 0..BLOCKS {
                let [a, b] = super::box_muller(words[pair][lane], words[pair + 1][lane]);
                (out[4 * lane + pair], out[4 * lane + pair + 1]) = (a, b);
            }
        }
    }
    out
}

const LN2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
const LG: [f64; 7] = [
    0.666_666_666_666_673_5,
    0.399_999_999_994_094_2,
    0.285_714_287_436_623_9,
    0.222_221_984_321_497_84,
    0.181_835_721_616_180_5,
    0.153_138_376_992_093_73,
    0.147_981_986_051_165_86,
];

/// The natural logarithm of a positive normal number.
#[inline(always)]
fn log(x: f64) -> f64 {
    // x = 2^k m with m between sqrt(1/2) and sqrt(2).
    let moved = x.to_bits() + ((0x3ff0_0000 - 0x3fe6_a09e) << 32);
    let k = float(moved >> 52) - 1023.0;
    let m = f64::from_bits((moved & 0x000f_ffff_ffff_ffff) + (0x3fe6_a09e << 32));
    let f = m - 1.0;
    let half = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (LG[1] + w * (LG[3] + w * LG[5]));
    let odd = z * (LG[0] + w * (LG[2] + w * (LG[4] + w * LG[6])));
    s * (half + (odd + even)) + k * LN2[1] - half + f + k * LN2[0]
}

/// The first 33 bits of π/2, and the rest.
const HALF_PI: [f64; 2] = [1.570_796_326_734_125_6, 6.077_100_506_506_192e-11];
const SIN: [f64; 6] = [
    -0.166_666_666_666_666_32,
    0.008_333_333_333_322_49,
    -0.000_198_412_698_298_579_5,
    2.755_731_370_707_006_8e-6,
    -2.505_076_025_340_686_3e-8,
    1.589_690_995_211_55e-10,
];
const COS: [f64; 6] = [
    0.041_666_666_666_666_6,
    -0.001_388_888_888_887_411,
    2.480_158_728_947_673e-5,
    -2.755_731_435_139_066_3e-7,
    2.087_572_321_298_175e-9,
    -1.135_964_755_778_819_5e-11,
];

/// The upper half of a number's bits.
#[inline(always)]
fn high(x: f64) -> i64 {
    (x.to_bits() >> 32) as i64
}

/// Whether an angle between 0 and 2π is so near a multiple of π/2 above 0 that [`sincos`] loses digits.
#[inline(always)]
fn is_near_axis(x: f64) -> bool {
    let high = high(x);
    (high == 0x3ff9_21fb) | (high == 0x4009_21fb) | (high == 0x4012_d97c) | (high == 0x4019_21fb)
}

/// Sine and cosine of an angle between 0 and 2π that is not near an axis.
#[inline(always)]
fn sincos(x: f64) -> (f64, f64) {
    let high = high(x);
    // How many multiples of π/2 are taken off: those nearest.
    let above = |bound: i64| if high > bound { 1.0 } else { 0.0 };
    let (one, two, three, four) = (above(0x3fe9_21fb), above(0x4002_d97c), above(0x400f_6a7a), above(0x4015_fdbc));
    let n = one + two + three + four;
    let z = x - n * HALF_PI[0];
    let y0 = z - n * HALF_PI[1];
    let y1 = (z - y0) - n * HALF_PI[1];
    let (z, v) = (y0 * y0, y0 * y0 * y0);
    let w = z * z;
    let r = SIN[1] + z * (SIN[2] + z * SIN[3]) + z * w * (SIN[4] + z * SIN[5]);
    let first = y0 + v * (SIN[0] + z * r);
    let reduced = y0 - ((z * (0.5 * y1 - v * r) - y1) - v * SIN[0]);
    let sin = if n == 0.0 { first } else { reduced };
    let r = z * (COS[0] + z * (COS[1] + z * COS[2])) + w * w * (COS[3] + z * (COS[4] + z * COS[5]));
    let half = 0.5 * z;
    let w = 1.0 - half;
    let cos = w + (((1.0 - w) - half) + (z * r - y0 * y1));
    // Each quarter turn takes (sin, cos) to (cos, -sin).
    let odd = (n == 1.0) | (n == 3.0);
    let (s, c) = (if odd { cos } else { sin }, if odd { sin } else { cos });
    (if (n == 2.0) | (n == 3.0) { -s } else { s }, if (n == 1.0) | (n == 2.0) { -c } else { c })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that look random, and some at the ends and near the axes.
    fn words() -> impl Iterator<Item = u32> {
        let special = (0..=8u32).flat_map(|i| (-3..=3).map(move |d| (i << 29).wrapping_add_signed(d)));
        (0..200_000u32).map(|i| i.wrapping_mul(0x9E37_79B9)).chain(special)
    }

    #[test]
    fn logarithm_sine_and_cosine_are_libms() {
        for word in words() {
            let u = uniform(word);
            assert_eq!(log(u).to_bits(), libm::log(u).to_bits(), "log of {u}");
            let angle = 2.0 * std::f64::consts::PI * u;
            let (sin, cos) = libm::sincos(angle);
            let found = sincos(angle);
            if !is_near_axis(angle) {
                assert_eq!((found.0.to_bits(), found.1.to_bits()), (sin.to_bits(), cos.to_bits()), "at {angle}");
            }
        }
        assert!(words().any(|w| is_near_axis(2.0 * std::f64::consts::PI * uniform(w))));
    }

    #[test]
    fn lanes_are_single_blocks() {
        for (first, rest) in [(0, [0, 0, 0]), (7, [5, 3, 1]), (u32::MAX - 4, [1, 2, 3])] {
            let key = [0x1234_5678, first];
            for lanes in [normals(first, rest, key), normals_of(first, rest, key)] {
                for (i, lane) in lanes.chunks(4).enumerate() {
                    let words = philox4x32([first.wrapping_add(i as u32), rest[0], rest[1], rest[2]], key);
                    let [a, b] = super::super::box_muller(words[0], words[1]);
                    let [c, d] = super::super::box_muller(words[2], words[3]);
                    assert_eq!(lane, [a, b, c, d]);
                }
            }
        }
    }
}
