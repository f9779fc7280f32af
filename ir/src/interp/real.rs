//! The precision that f32 values are computed in.
use half::bf16;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialEq
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// The nearest number.
    fn from_f64(v: f64) -> Self;
    /// The same number.
    fn to_f64(self) -> f64;
    /// The number rounded to bf16 (to nearest even).
    fn to_bf16(self) -> Self;
    /// e^x
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Arc tangent.
    fn atan(self) -> Self;
    /// Gauss error function.
    fn erf(self) -> Self;
    /// |x|
    fn abs(self) -> Self;

    /// The same number.
    fn from_f32(v: f32) -> Self {
        Self::from_f64(v as f64)
    }
    /// The nearest f32.
    fn to_f32(self) -> f32 {
        self.to_f64() as f32
    }
    /// The larger number; NaN if either is NaN.
    fn maximum(self, other: Self) -> Self {
        if self.is_nan() || self > other { self } else { other }
    }
    /// The smaller number; NaN if either is NaN.
    fn minimum(self, other: Self) -> Self {
        if self.is_nan() || self < other { self } else { other }
    }
    /// Whether it is not a number.
    fn is_nan(self) -> bool {
        self.to_f64().is_nan()
    }
}

/// Rounds to bf16. The step through f32 rounds to odd, which keeps the second rounding from erring at ties.
fn round_bf16(v: f64) -> f64 {
    let mut near = v as f32;
    if near as f64 != v && !v.is_nan() {
        let beyond = (near as f64).abs() > v.abs();
        near = f32::from_bits((near.to_bits() - u32::from(beyond)) | 1);
    }
    bf16::from_f32(near).to_f64()
}

macro_rules! real {
    ($t:ty, $erf:path) => {
        impl Real for $t {
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn to_bf16(self) -> Self {
                round_bf16(self as f64) as $t
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn atan(self) -> Self {
                self.atan()
            }
            fn erf(self) -> Self {
                $erf(self)
            }
            fn abs(self) -> Self {
                self.abs()
            }
        }
    };
}

real!(f32, libm::erff);
real!(f64, libm::erf);
