//! Named tensors: what a run takes and gives, and their files.
use crate::Error;
use crate::memory::Buffer;
use rdc_ir::DType;
use safetensors::{Dtype, SafeTensors};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// A dense row-major tensor in page-aligned memory.
#[derive(Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// `elements * dtype.bytes()` bytes, little-endian.
    pub data: Buffer,
}

/// Tensors by name.
pub type TensorMap = BTreeMap<String, Tensor>;

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// If there is not that much memory.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let bytes = shape.iter().try_fold(dtype.bytes(), |b, &n| b.checked_mul(n));
        let bytes = bytes.ok_or_else(|| Error::Program(format!("a tensor of shape {shape:?} is too large")))?;
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Buffer::zeroed(bytes)? })
    }
    /// A tensor of f32 values.
    ///
    /// # Errors
    /// If the shape holds another number of elements, or there is no memory.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Tensor, Error> {
        Tensor::from_bytes(DType::F32, shape, bytemuck::cast_slice(values))
    }
    /// A tensor of i32 values; errors as [`Tensor::from_f32`].
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_i32(shape: &[usize], values: &[i32]) -> Result<Tensor, Error> {
        Tensor::from_bytes(DType::I32, shape, bytemuck::cast_slice(values))
    }
    fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, Error> {
        let mut tensor = Tensor::zeros(dtype, shape)?;
        if tensor.data.len() != bytes.len() {
            return Err(Error::Input(format!("{} bytes do not fill a tensor of shape {shape:?}", bytes.len())));
        }
        tensor.data.copy_from_slice(bytes);
        Ok(tensor)
    }
    /// The elements, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        (self.dtype == DType::F32).then(|| bytemuck::cast_slice(&self.data))
    }
    /// The elements, if they are i32.
    pub fn as_i32(&self) -> Option<&[i32]> {
        (self.dtype == DType::I32).then(|| bytemuck::cast_slice(&self.data))
    }
}

/// Reads a safetensors file. Floats of any width become f32, integers i32, truth values stay.
///
/// # Errors
/// If the file cannot be read, is corrupt, or holds an integer outside i32 or an element type that is not a number.
pub fn load(path: &Path) -> Result<TensorMap, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, format!("not a safetensors file: {e}")))?;
    let mut tensors = TensorMap::new();
    for (name, view) in file.iter() {
        let data = view.data();
        let dtype = match view.dtype() {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => DType::F32,
            Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 => DType::I32,
            Dtype::BOOL => DType::Bool,
            other => {
                return Err(Error::file(
                    path,
                    format!("tensor {name} has element type {other:?}, which is not supported"),
                ));
            }
        };
        let mut tensor = Tensor::zeros(dtype, view.shape())?;
        match view.dtype() {
            Dtype::F64 => convert(data, &mut tensor, |b: [u8; 8]| (f64::from_le_bytes(b) as f32).to_le_bytes()),
            Dtype::F32 => tensor.data.copy_from_slice(data),
            Dtype::F16 => convert(data, &mut tensor, |b| half::f16::from_le_bytes(b).to_f32().to_le_bytes()),
            Dtype::BF16 => convert(data, &mut tensor, |b| half::bf16::from_le_bytes(b).to_f32().to_le_bytes()),
            Dtype::I64 => {
                let fits = data.as_chunks::<8>().0.iter().all(|b| i32::try_from(i64::from_le_bytes(*b)).is_ok());
                if !fits {
                    return Err(Error::file(path, format!("tensor {name} holds a number that does not fit i32")));
                }
                convert(data, &mut tensor, |b: [u8; 8]| (i64::from_le_bytes(b) as i32).to_le_bytes());
            }
            Dtype::I16 => convert(data, &mut tensor, |b| i32::from(i16::from_le_bytes(b)).to_le_bytes()),
            Dtype::I8 => convert(data, &mut tensor, |b| i32::from(i8::from_le_bytes(b)).to_le_bytes()),
            Dtype::U8 => convert(data, &mut tensor, |[b]: [u8; 1]| i32::from(b).to_le_bytes()),
            Dtype::BOOL => convert(data, &mut tensor, |[b]: [u8; 1]| [u8::from(b != 0)]),
            _ => tensor.data.copy_from_slice(data),
        }
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

fn convert<const N: usize, const M: usize>(from: &[u8], to: &mut Tensor, f: impl Fn([u8; N]) -> [u8; M]) {
    let (from, to) = (from.as_chunks::<N>().0, to.data.as_chunks_mut::<M>().0);
    from.iter().zip(to).for_each(|(from, to)| *to = f(*from));
}

/// Writes a safetensors file under a temporary name, then renames it.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, tensors: &TensorMap) -> Result<(), Error> {
    struct View<'a>(&'a Tensor);
    impl safetensors::View for View<'_> {
        fn dtype(&self) -> Dtype {
            match self.0.dtype {
                DType::F32 => Dtype::F32,
                DType::BF16 => Dtype::BF16,
                DType::I8 => Dtype::I8,
                DType::I32 => Dtype::I32,
                DType::Bool => Dtype::BOOL,
            }
        }
        fn shape(&self) -> &[usize] {
            &self.0.shape
        }
        fn data(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(&self.0.data)
        }
        fn data_len(&self) -> usize {
            self.0.data.len()
        }
    }
    let temporary = crate::artifact::temporary_name(path).map_err(Error::io(path))?;
    let written = safetensors::serialize_to_file(tensors.iter().map(|(name, t)| (name, View(t))), None, &temporary);
    let result = match written {
        Err(safetensors::SafeTensorError::IoError(e)) => Err(Error::io(path)(e)),
        Err(e) => Err(Error::file(path, e.to_string())),
        Ok(()) => std::fs::rename(&temporary, path).map_err(Error::io(path)),
    };
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut tensors = TensorMap::new();
        tensors.insert("a".into(), Tensor::from_f32(&[2, 2], &[1.0, -2.0, f32::NAN, 4.0]).unwrap());
        tensors.insert("ids".into(), Tensor::from_i32(&[3], &[1, 2, -3]).unwrap());
        tensors.insert("empty".into(), Tensor::zeros(DType::F32, &[0, 4]).unwrap());
        save(&path, &tensors).unwrap();
        let back = load(&path).unwrap();
        assert_eq!(back.len(), 3);
        assert_eq!(back["a"].data[..], tensors["a"].data[..]);
        assert_eq!(back["ids"].as_i32().unwrap(), [1, 2, -3]);
        assert_eq!(back["empty"].shape, [0, 4]);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load(&path).is_err());
        }
        assert!(load(&dir.path().join("absent")).is_err());
        assert!(Tensor::from_i32(&[2], &[1]).is_err());
        assert!(Tensor::zeros(DType::F32, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn other_element_types_are_converted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let (ids, wide) = ([5i64, -6], [7i64, 1 << 40]);
        let bf: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        let view = |dtype, data| safetensors::tensor::TensorView::new(dtype, vec![2], data).unwrap();
        let tensors = [("ids", view(Dtype::I64, bytemuck::cast_slice(&ids))), ("x", view(Dtype::BF16, &bf))];
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let read = load(&path).unwrap();
        assert_eq!(read["ids"].as_i32().unwrap(), [5, -6]);
        assert_eq!(read["x"].as_f32().unwrap(), [1.5, -2.0]);
        safetensors::serialize_to_file([("wide", view(Dtype::I64, bytemuck::cast_slice(&wide)))], None, &path).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("wide"));
    }
}
