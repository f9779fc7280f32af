//! Plain row-major tensors.
use super::Real;
use crate::types::{DType, Type};

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<T> {
    /// f32 and bf16, in the precision of the interpreter.
    Float(Vec<T>),
    /// i32.
    Int(Vec<i32>),
    /// i8.
    Byte(Vec<i8>),
    /// bool.
    Bool(Vec<bool>),
}

/// A tensor: row-major elements of a type.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Type.
    pub ty: Type,
    /// As many elements as the type says.
    pub data: Data<T>,
}

impl<T> Data<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Byte(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Real> Tensor<T> {
    /// A tensor of zeros (false, for bool).
    pub fn zeros(ty: &Type) -> Tensor<T> {
        let n = ty.elements();
        let data = match ty.dtype {
            DType::F32 | DType::BF16 => Data::Float(vec![T::default(); n]),
            DType::I32 => Data::Int(vec![0; n]),
            DType::I8 => Data::Byte(vec![0; n]),
            DType::Bool => Data::Bool(vec![false; n]),
        };
        Tensor { ty: ty.clone(), data }
    }
    /// An f32 tensor of that shape.
    ///
    /// # Panics
    /// If the number of elements is not the shape's.
    pub fn from_f32(shape: impl Into<Vec<usize>>, values: &[f32]) -> Tensor<T> {
        Tensor::floats_of(Type::f32(shape), values.iter().map(|&v| T::from_f32(v)).collect())
    }
    /// An i32 tensor of that shape.
    ///
    /// # Panics
    /// If the number of elements is not the shape's.
    pub fn from_i32(shape: impl Into<Vec<usize>>, values: &[i32]) -> Tensor<T> {
        let ty = Type::new(DType::I32, shape);
        assert_eq!(ty.elements(), values.len(), "a tensor of {ty}");
        Tensor { ty, data: Data::Int(values.to_vec()) }
    }
    /// A scalar i32.
    pub fn int(value: i32) -> Tensor<T> {
        Tensor { ty: Type::scalar(DType::I32), data: Data::Int(vec![value]) }
    }
    /// A scalar bool.
    pub fn bool(value: bool) -> Tensor<T> {
        Tensor { ty: Type::scalar(DType::Bool), data: Data::Bool(vec![value]) }
    }
    /// A tensor of a float type (f32, bf16, or a cache of them).
    ///
    /// # Panics
    /// If the number of elements is not the type's.
    pub fn floats_of(ty: Type, values: Vec<T>) -> Tensor<T> {
        assert_eq!(ty.elements(), values.len(), "a tensor of {ty}");
        Tensor { ty, data: Data::Float(values) }
    }
    /// The elements of a float tensor; none for others.
    pub fn floats(&self) -> &[T] {
        if let Data::Float(v) = &self.data { v } else { &[] }
    }
    /// The elements of an i32 tensor; none for others.
    pub fn ints(&self) -> &[i32] {
        if let Data::Int(v) = &self.data { v } else { &[] }
    }
    /// The elements of a bool tensor; none for others.
    pub fn bools(&self) -> &[bool] {
        if let Data::Bool(v) = &self.data { v } else { &[] }
    }
    /// Every element as an f64 (1 for true).
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::Float(v) => v.iter().map(|v| v.to_f64()).collect(),
            Data::Int(v) => v.iter().map(|&v| v as f64).collect(),
            Data::Byte(v) => v.iter().map(|&v| v as f64).collect(),
            Data::Bool(v) => v.iter().map(|&v| v as u8 as f64).collect(),
        }
    }
    /// The tensor in another precision.
    pub fn convert<U: Real>(&self) -> Tensor<U> {
        let data = match &self.data {
            Data::Float(v) => Data::Float(v.iter().map(|v| U::from_f64(v.to_f64())).collect()),
            Data::Int(v) => Data::Int(v.clone()),
            Data::Byte(v) => Data::Byte(v.clone()),
            Data::Bool(v) => Data::Bool(v.clone()),
        };
        Tensor { ty: self.ty.clone(), data }
    }
    /// Entry `i` of the leading axis.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn entry(&self, i: usize) -> Tensor<T> {
        let ty = self.ty.with_shape(&self.ty.shape[1..]);
        let n = ty.elements();
        let range = i * n..(i + 1) * n;
        let data = match &self.data {
            Data::Float(v) => Data::Float(v[range].to_vec()),
            Data::Int(v) => Data::Int(v[range].to_vec()),
            Data::Byte(v) => Data::Byte(v[range].to_vec()),
            Data::Bool(v) => Data::Bool(v[range].to_vec()),
        };
        Tensor { ty, data }
    }
    /// Overwrites entry `i` of the leading axis.
    pub(super) fn set_entry(&mut self, i: usize, entry: &Tensor<T>) {
        fn copy<E: Copy>(to: &mut [E], i: usize, from: &[E]) {
            to[i * from.len()..(i + 1) * from.len()].copy_from_slice(from);
        }
        match (&mut self.data, &entry.data) {
            (Data::Float(to), Data::Float(from)) => copy(to, i, from),
            (Data::Int(to), Data::Int(from)) => copy(to, i, from),
            (Data::Byte(to), Data::Byte(from)) => copy(to, i, from),
            (Data::Bool(to), Data::Bool(from)) => copy(to, i, from),
            // Types of stacked results are those of their yields in a verified module.
            _ => {}
        }
    }
}

/// Applies the same generic function to the elements, whatever their type.
macro_rules! map_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            Data::Float($v) => Data::Float($body),
            Data::Int($v) => Data::Int($body),
            Data::Byte($v) => Data::Byte($body),
            Data::Bool($v) => Data::Bool($body),
        }
    };
}
pub(super) use map_data;
