//! Elementary functions as polynomials in plain vector arithmetic: the image has no external symbols, so no libm.
//!
//! Each function works on any number of lanes, passes NaN on, and is exact at 0 and ±infinity. Errors are those
//! measured by the tests against f64: 2 ulp or less (arc tangent 2.1; sigmoid and silu, which round three times, 4), or
//! as a comment says. None needs a float-to-integer conversion of an unbounded value, which LLVM leaves undefined.
use super::{Cmp, Elem, Emitter, Val};

/// Horner's rule, highest coefficient first.
fn poly(e: &mut Emitter, x: Val, coefficients: &[f32]) -> Val {
    let n = x.lanes();
    let mut acc = e.f32(coefficients[0], n);
    for &c in &coefficients[1..] {
        let c = e.f32(c, n);
        acc = e.fma(acc, x, c);
    }
    acc
}

/// 1.5 * 2^23: a float of this size has its last bit at 1, so adding it rounds to an integer, kept in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// `(p, bits)` with `e^(sign x) = p * 2^n`, where the low bits of `bits` hold `n + bias`: `sign x = n ln 2 + sign r` in two parts
/// (Cody and Waite), |r| <= ln 2 / 2, and the minimax polynomial of degree 6 for e^(sign r). A sign costs nothing here.
fn exp_parts(e: &mut Emitter, x: Val, sign: f32, bias: u8) -> (Val, Val) {
    let lanes = x.lanes();
    let magic = e.f32(MAGIC + f32::from(bias), lanes);
    let log2e = e.f32(sign * std::f32::consts::LOG2_E, lanes);
    let shifted = e.fma(x, log2e, magic);
    let n = e.sub(shifted, magic);
    let (high, low) = (e.f32(sign * -0.693_359_4, lanes), e.f32(sign * 2.121_944_4e-4, lanes));
    let r = e.fma(n, high, x);
    let r = e.fma(n, low, r);
    let [a, b, c] = [8.368_842e-3, 1.666_652e-1, 1.0].map(|odd| sign * odd);
    let p = poly(e, r, &[1.381_428_6e-3, a, 4.166_84e-2, b, 0.499_999_94, c, 1.0]);
    (p, e.bitcast(shifted, Elem::I32))
}

/// `(p, scale)` with `e^(sign x) = p * scale` for -88 <= sign x <= 89; at the ends the scale is 0 and infinity.
fn exp_factors(e: &mut Emitter, x: Val, sign: f32) -> (Val, Val) {
    let (p, biased) = exp_parts(e, x, sign, 127);
    let bits = e.shl(biased, 23);
    (p, e.bitcast(bits, Elem::F32))
}

/// `2^n` for -126 <= n <= 127.
fn power_of_two(e: &mut Emitter, n: Val) -> Val {
    let bias = e.int(127, n.ty);
    let biased = e.add(n, bias);
    let bits = e.shl(biased, 23);
    e.bitcast(bits, Elem::F32)
}

/// e^x. Subnormal results are exact to their spacing.
pub fn exp(e: &mut Emitter, x: Val) -> Val {
    // Beyond these bounds the result is infinity or zero; the scale is applied in halves so that both ends work.
    let (low, high) = (e.f32(-104.0, x.lanes()), e.f32(89.0, x.lanes()));
    let x = e.max_fast(low, x);
    let x = e.min_fast(high, x);
    let (p, bits) = exp_parts(e, x, 1.0, 0);
    let magic = e.int(MAGIC.to_bits().into(), bits.ty);
    let n = e.sub(bits, magic);
    let half = e.sar(n, 1);
    let rest = e.sub(n, half);
    let (a, b) = (power_of_two(e, half), power_of_two(e, rest));
    let y = e.mul(p, a);
    e.mul(y, b)
}

/// e^x for x <= 0, as softmax needs it: cheaper, and 0 for x < -87.7 (from x = -87.33 on the result is subnormal).
pub fn exp_nonpositive(e: &mut Emitter, x: Val) -> Val {
    let low = e.f32(-88.0, x.lanes());
    let bounded = e.max_fast(low, x);
    let (p, scale) = exp_factors(e, bounded, 1.0);
    e.mul(p, scale)
}

/// Natural logarithm; NaN for x < 0, -infinity for 0.
pub fn log(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let zero = e.f32(0.0, lanes);
    // Subnormals are scaled up first.
    let smallest = e.f32(f32::MIN_POSITIVE, lanes);
    let subnormal = e.cmp(Cmp::Lt, x, smallest);
    let two23 = e.f32(8_388_608.0, lanes);
    let scaled = e.mul(x, two23);
    let y = e.select(subnormal, scaled, x);
    let shift = e.f32(-23.0, lanes);
    let shift = e.select(subnormal, shift, zero);
    // x = m * 2^n with sqrt(1/2) <= m < sqrt 2: subtract the bits of sqrt(1/2) so that the exponent field carries n.
    let bits = e.bitcast(y, Elem::I32);
    let root = e.int(std::f32::consts::FRAC_1_SQRT_2.to_bits().into(), bits.ty);
    let offset = e.sub(bits, root);
    let n = e.sar(offset, 23);
    let exponent = e.shl(n, 23);
    let mantissa = e.sub(bits, exponent);
    let m = e.bitcast(mantissa, Elem::F32);
    let n = e.int_to_float(n);
    let n = e.add(n, shift);
    let one = e.f32(1.0, lanes);
    let f = e.sub(m, one);
    let f2 = e.mul(f, f);
    let q = poly(
        e,
        f,
        &[
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let q = e.mul(q, f);
    let q = e.mul(q, f2);
    let (low, high, minus_half) = (e.f32(-2.121_944_4e-4, lanes), e.f32(0.693_359_4, lanes), e.f32(-0.5, lanes));
    let q = e.fma(n, low, q);
    let q = e.fma(f2, minus_half, q);
    let q = e.add(f, q);
    let y = e.fma(n, high, q);
    // Zero, negative, infinite and NaN operands.
    let (inf, minus_inf, nan) = (e.f32(f32::INFINITY, lanes), e.f32(f32::NEG_INFINITY, lanes), e.f32(f32::NAN, lanes));
    let finite = e.cmp(Cmp::Lt, x, inf);
    let y = e.select(finite, y, x);
    let is_zero = e.cmp(Cmp::Eq, x, zero);
    let y = e.select(is_zero, minus_inf, y);
    let negative = e.cmp(Cmp::Lt, x, zero);
    e.select(negative, nan, y)
}

/// Gives a magnitude the sign of x.
fn copy_sign(e: &mut Emitter, magnitude: Val, x: Val) -> Val {
    let bits = e.bitcast(x, Elem::I32);
    let sign = e.int(i64::from(i32::MIN), bits.ty);
    let sign = e.and(bits, sign);
    let magnitude = e.bitcast(magnitude, Elem::I32);
    let bits = e.or(magnitude, sign);
    e.bitcast(bits, Elem::F32)
}

/// Arc tangent: brought to |t| <= tan(pi/8) by `atan x = pi/4 + atan((x-1) / (x+1))` or `pi/2 - atan(1/x)`, then an odd
/// polynomial (ranges and coefficients of S. Moshier's `atanf`, Cephes).
pub fn atan(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let a = e.abs(x);
    let (one, zero) = (e.f32(1.0, lanes), e.f32(0.0, lanes));
    let (low, high) = (e.f32(0.414_213_57, lanes), e.f32(2.414_213_7, lanes));
    let (middle, large) = (e.cmp(Cmp::Gt, a, low), e.cmp(Cmp::Gt, a, high));
    let (less, more) = (e.sub(a, one), e.add(a, one));
    let minus_one = e.f32(-1.0, lanes);
    let numerator = e.select(middle, less, a);
    let numerator = e.select(large, minus_one, numerator);
    let denominator = e.select(middle, more, one);
    let denominator = e.select(large, a, denominator);
    let t = e.div(numerator, denominator);
    // The angles in two parts.
    let (quarter, half) = (std::f64::consts::FRAC_PI_4, std::f64::consts::FRAC_PI_2);
    let mut parts = |angle: fn(f64) -> f32| {
        let (quarter, half) = (e.f32(angle(quarter), lanes), e.f32(angle(half), lanes));
        let offset = e.select(middle, quarter, zero);
        e.select(large, half, offset)
    };
    let (upper, lower) = (parts(|v| v as f32), parts(|v| (v - f64::from(v as f32)) as f32));
    let t2 = e.mul(t, t);
    let q = poly(e, t2, &[8.053_744_5e-2, -1.387_768_6e-1, 1.997_771_1e-1, -3.333_295e-1]);
    let t3 = e.mul(t2, t);
    let small = e.fma(q, t3, lower);
    let sum = e.add(t, small);
    let y = e.add(upper, sum);
    copy_sign(e, y, x)
}

/// Hyperbolic tangent: an odd polynomial near 0, `1 - 2 / (e^2|x| + 1)` beyond.
pub fn tanh(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let a = e.abs(x);
    let x2 = e.mul(x, x);
    let q = poly(e, x2, &[-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let x3 = e.mul(x2, x);
    let small = e.fma(q, x3, x);
    // 1 - 2 / (e^20 + 1) rounds to 1; the bound keeps the exponential finite.
    let ten = e.f32(10.0, lanes);
    let bounded = e.min_fast(ten, a);
    let twice = e.add(bounded, bounded);
    let power = exp(e, twice);
    let one = e.f32(1.0, lanes);
    let denominator = e.add(power, one);
    let two = e.f32(2.0, lanes);
    let quotient = e.div(two, denominator);
    let large = e.sub(one, quotient);
    let large = copy_sign(e, large, x);
    let limit = e.f32(0.625, lanes);
    let is_large = e.cmp(Cmp::Gt, a, limit);
    e.select(is_large, large, small)
}

/// Gauss error function: an odd polynomial near 0, `1 - e^P(|x|)` beyond (coefficients of N. Juffa's `erff`).
pub fn erf(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let a = e.abs(x);
    let x2 = e.mul(x, x);
    let q = poly(
        e,
        x2,
        &[-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let small = e.fma(q, x, x);
    // erf(4) rounds to 1; the bound keeps the polynomial in its range.
    let four = e.f32(4.0, lanes);
    let t = e.min_fast(four, a);
    let q = poly(
        e,
        t,
        &[
            -1.728_534_7e-5,
            3.831_971_3e-4,
            -3.883_964_4e-3,
            2.425_462_2e-2,
            -1.067_778_8e-1,
            -6.348_467e-1,
            -1.287_175_1e-1,
        ],
    );
    let minus_t = e.neg(t);
    let exponent = e.fma(q, t, minus_t);
    let power = exp_nonpositive(e, exponent);
    let one = e.f32(1.0, lanes);
    let large = e.sub(one, power);
    let large = copy_sign(e, large, x);
    let limit = e.f32(0.927_734_4, lanes);
    let is_large = e.cmp(Cmp::Gt, a, limit);
    e.select(is_large, large, small)
}

/// 1 / d for 1 <= d <= 2, which on wide vectors takes a third of a division's time: the minimax polynomial of degree 3 (relative error
/// 1 / 577) and one step of third order, `y (1 + e + e^2)` with `e = 1 - d y`.
fn reciprocal_of_1_to_2(e: &mut Emitter, d: Val) -> Val {
    let y = poly(e, d, &[-0.221_837_09, 1.331_022_5, -2.939_341_5, 2.828_423]);
    let one = e.f32(1.0, d.lanes());
    let minus_d = e.neg(d);
    let error = e.fma(minus_d, y, one);
    let correction = e.fma(error, error, error);
    e.fma(y, correction, y)
}

/// Lanes from which a division takes longer than a polynomial: on up to 8 the divider works beside the multipliers.
const DIVIDES_SLOWLY: usize = 16;

/// 1 / (1 + e^-x); 0 for x < -88.4.
pub fn sigmoid(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    if lanes >= DIVIDES_SLOWLY {
        return sigmoid_without_division(e, x);
    }
    let (low, high) = (e.f32(-89.0, lanes), e.f32(88.0, lanes));
    let x = e.max_fast(low, x);
    let x = e.min_fast(high, x);
    let (p, scale) = exp_factors(e, x, -1.0);
    let one = e.f32(1.0, lanes);
    let denominator = e.fma(p, scale, one);
    e.div(one, denominator)
}

/// 1 / (1 + e^-x), from t = e^-|x|, so that the denominator is at most 2: 1 / (1 + t), times t where x < 0; 0 for x < -87.7.
fn sigmoid_without_division(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let (zero, one) = (e.f32(0.0, lanes), e.f32(1.0, lanes));
    let a = e.abs(x);
    let minus_a = e.neg(a);
    let t = exp_nonpositive(e, minus_a);
    let denominator = e.add(one, t);
    let y = reciprocal_of_1_to_2(e, denominator);
    let negative = e.cmp(Cmp::Lt, x, zero);
    let small = e.mul(y, t);
    e.select(negative, small, y)
}

/// x * sigmoid(x), which shares the sigmoid with the derivative.
pub fn silu(e: &mut Emitter, x: Val) -> Val {
    let slope = sigmoid(e, x);
    e.mul(x, slope)
}

/// x * (1 + erf(x / sqrt 2)) / 2. The sum cancels for x < 0: the error there is 1e-7 of |x|, not of the result.
pub fn gelu(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let scale = e.f32(std::f32::consts::FRAC_1_SQRT_2, lanes);
    let scaled = e.mul(x, scale);
    let y = erf(e, scaled);
    let (half, one) = (e.f32(0.5, lanes), e.f32(1.0, lanes));
    let sum = e.add(y, one);
    let half_x = e.mul(x, half);
    e.mul(half_x, sum)
}

/// x * (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3), computed as x * sigmoid(2u); an error of u grows by |2u|
/// in the result.
pub fn gelu_tanh(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let x2 = e.mul(x, x);
    let twice = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let (cubic, linear) = (e.f32((twice * 0.044715) as f32, lanes), e.f32(twice as f32, lanes));
    let factor = e.fma(x2, cubic, linear);
    let u2 = e.mul(factor, x);
    let slope = sigmoid(e, u2);
    e.mul(x, slope)
}

/// 1 / sqrt(x), each operation correctly rounded
pub fn rsqrt(e: &mut Emitter, x: Val) -> Val {
    let root = e.sqrt(x);
    let one = e.f32(1.0, x.lanes());
    e.div(one, root)
}

/// Truncates to `i32`; beyond its range the nearest `i32`, and 0 for NaN.
pub fn to_int(e: &mut Emitter, x: Val) -> Val {
    let lanes = x.lanes();
    let zero = e.f32(0.0, lanes);
    let ordered = e.cmp(Cmp::Eq, x, x);
    let y = e.select(ordered, x, zero);
    let (low, high) = (e.f32(-2_147_483_648.0, lanes), e.f32(2_147_483_520.0, lanes));
    let y = e.max_fast(y, low);
    let y = e.min_fast(y, high);
    let converted = e.float_to_int(y);
    let most = e.int(i32::MAX.into(), converted.ty);
    let above = e.cmp(Cmp::Gt, x, high);
    e.select(above, most, converted)
}
