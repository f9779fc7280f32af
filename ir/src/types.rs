//! Element types and tensor types.
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE single precision; the interpreter can also compute it in double precision.
    F32,
    /// The upper half of an f32; storage only, arithmetic is in f32.
    BF16,
    /// Signed byte; storage only.
    I8,
    /// Signed 32-bit integer: token ids, positions, steps.
    I32,
    /// A truth value; one byte (0 or 1) in memory.
    Bool,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 5] = [DType::F32, DType::BF16, DType::I8, DType::I32, DType::Bool];

    /// Size of an element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 => 2,
            DType::I8 | DType::Bool => 1,
        }
    }
    /// Its name in IR text.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }
    /// The element type of a name in IR text.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

/// A tensor type: element type and static shape, row-major; `cache` marks a linear value.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Whether the value is linear (used exactly once).
    pub cache: bool,
}

impl Type {
    /// An ordinary tensor.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into(), cache: false }
    }
    /// A linear cache tensor, `[slots, B, T, H, D]`.
    pub fn cache(dtype: DType, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into(), cache: true }
    }
    /// An f32 tensor.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Type {
        Type::new(DType::F32, shape)
    }
    /// A rank-0 type.
    pub fn scalar(dtype: DType) -> Type {
        Type::new(dtype, [])
    }
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements (at most `usize::MAX`, which no type that verifies comes near).
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |n, &s| n.saturating_mul(s))
    }
    /// Size in bytes of the row-major tensor.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.bytes())
    }
    /// Size in bytes if the rows of the last axis begin `pitch` bytes apart, of the row-major tensor if that is not said.
    pub fn bytes_at(&self, pitch: Option<usize>) -> usize {
        pitch.map_or_else(|| self.bytes(), |pitch| self.rows().saturating_mul(pitch))
    }
    /// Size in bytes of a row of the last axis.
    pub fn row_bytes(&self) -> usize {
        self.last().saturating_mul(self.dtype.bytes())
    }
    /// Size of the last axis (1 for a scalar).
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).fold(1, |n, &s| n.saturating_mul(s))
    }
    /// The same type with another shape.
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype: self.dtype, shape: shape.into(), cache: self.cache }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cache {
            f.write_str("cache ")?;
        }
        write!(f, "{}[", self.dtype.name())?;
        for (i, n) in self.shape.iter().enumerate() {
            write!(f, "{}{n}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}
