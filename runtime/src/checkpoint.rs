//! Checkpoints: safetensors, in one file or in shards with an index.
use crate::Error;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The index of a sharded checkpoint, and the file of one that is not.
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// An open checkpoint, memory-mapped. Its files must not be changed while it is open.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    shard: usize,
    start: usize,
    elements: usize,
}

impl Checkpoint {
    /// Opens a safetensors file; an index (`*.json`) with the shards beside it; or a folder: with an index the shards it names,
    /// else `model.safetensors`, else all its safetensors files.
    ///
    /// # Errors
    /// If a file cannot be read or is corrupt, the index names what is not there, or two files hold one name.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let mut checkpoint = Checkpoint { path: path.to_path_buf(), shards: Vec::new(), tensors: BTreeMap::new() };
        if !path.is_dir() && path.extension().is_some_and(|e| e == "json") {
            checkpoint.open_index(path)?;
        } else if !path.is_dir() {
            checkpoint.add(path)?;
        } else if path.join(INDEX).exists() {
            checkpoint.open_index(&path.join(INDEX))?;
        } else if path.join(SINGLE).exists() {
            checkpoint.add(&path.join(SINGLE))?;
        } else {
            let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
            let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
            files.sort();
            if files.is_empty() {
                return Err(Error::file(path, "no *.safetensors file in this folder"));
            }
            files.iter().try_for_each(|f| checkpoint.add(f))?;
        }
        Ok(checkpoint)
    }
    /// The shards that an index names, which lie beside it.
    fn open_index(&mut self, path: &Path) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let index: Index =
            serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not an index of shards: {e}")))?;
        let mut files: Vec<&String> = index.weight_map.values().collect();
        files.sort();
        files.dedup();
        for file in files {
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(Error::file(path, format!("shard `{file}` is not a plain file name")));
            }
            self.add(&path.with_file_name(file))?;
        }
        let absent = index.weight_map.iter().find(|(name, _)| !self.tensors.contains_key(*name));
        match absent {
            Some((name, file)) => Err(Error::file(path, format!("tensor {name} is not in `{file}` as the index says"))),
            None => Ok(()),
        }
    }
    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() < 8 {
            return Err(Error::file(path, "not a safetensors file: it has fewer than 8 bytes"));
        }
        // SAFETY: a read-only mapping; see the type's documentation for changes by others.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::file(path, format!("not a safetensors file, or a damaged one: {e}")))?;
        for (name, info) in metadata.tensors() {
            let tensor = TensorInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                shard: self.shards.len(),
                start: 8 + header + info.data_offsets.0,
                elements: info.shape.iter().product(),
            };
            if self.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::file(path, format!("tensor {name} is in another file of the checkpoint too")));
            }
        }
        self.shards.push((path.to_path_buf(), map));
        Ok(())
    }
    /// The tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }
    /// Reads elements from `start` on of a tensor, converted to f32; fills `out`.
    ///
    /// # Errors
    /// If there is no such tensor, it has fewer elements, or its elements are not f32, f16 or bf16.
    pub fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let info = self.tensor(name).ok_or_else(|| self.missing(name))?;
        let (path, map) = &self.shards[info.shard];
        if start.checked_add(out.len()).is_none_or(|end| end > info.elements) {
            return Err(Error::file(path, format!("tensor {name} has only {} elements", info.elements)));
        }
        let bytes = |size: usize| &map[info.start + start * size..][..out.len() * size];
        match info.dtype {
            Dtype::F32 => {
                let from = bytes(4).as_chunks::<4>().0;
                out.iter_mut().zip(from).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            }
            Dtype::F16 => {
                let from = bytes(2).as_chunks::<2>().0;
                out.iter_mut().zip(from).for_each(|(x, b)| *x = half::f16::from_le_bytes(*b).to_f32());
            }
            Dtype::BF16 => {
                let from = bytes(2).as_chunks::<2>().0;
                out.iter_mut().zip(from).for_each(|(x, b)| *x = half::bf16::from_le_bytes(*b).to_f32());
            }
            other => {
                return Err(Error::file(
                    path,
                    format!("tensor {name} is stored as {other:?}; f32, f16 and bf16 are supported"),
                ));
            }
        }
        Ok(())
    }
    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::file(&self.path, format!("no tensor named {name}"))
    }
}

/// A tensor to be written: name, shape, elements.
pub type Named<'a> = (&'a str, &'a [usize], &'a [f32]);

/// What a written file holds, to recognise it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Bytes of the file.
    pub bytes: u64,
    /// CRC-32 (IEEE) of them.
    pub crc: u32,
}

impl Digest {
    /// The digest of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(path: &Path) -> Result<Digest, Error> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let (mut crc, mut bytes, mut block) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut block).map_err(Error::io(path))? {
                0 => return Ok(Digest { bytes, crc: crc.finalize() }),
                n => {
                    crc.update(&block[..n]);
                    bytes += n as u64;
                }
            }
        }
    }
}

/// Writes a safetensors file of f32 tensors, in one pass and without a copy of them, and syncs it. Other programs read it as one
/// that PyTorch wrote.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, tensors: &[Named]) -> Result<Digest, Error> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut at = 0;
    for (name, shape, data) in tensors {
        let end = at + std::mem::size_of_val(*data);
        header.insert((*name).into(), serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // So that the data begin at a multiple of their size.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).map_err(Error::io(path))?;
    let (mut crc, mut bytes) = (crc32fast::Hasher::new(), 0);
    let size = (header.len() as u64).to_le_bytes();
    let data = tensors.iter().map(|(_, _, data)| bytemuck::cast_slice::<f32, u8>(data));
    for part in [&size[..], &header].into_iter().chain(data) {
        // In blocks that the second reading, for the checksum, finds in the cache.
        for block in part.chunks(1 << 20) {
            file.write_all(block).map_err(Error::io(path))?;
            crc.update(block);
        }
        bytes += part.len() as u64;
    }
    file.sync_all().map_err(Error::io(path))?;
    Ok(Digest { bytes, crc: crc.finalize() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
        let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    #[test]
    fn shards_with_an_index_and_stored_types() {
        let dir = tempfile::tempdir().unwrap();
        let values = [1.0f32, 2.5, -3.0, 0.5];
        let bf: Vec<u8> = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        let f16: Vec<u8> = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        let (one, two) = (dir.path().join("m-1.safetensors"), dir.path().join("m-2.safetensors"));
        write(&one, &[("a", Dtype::F32, &[2, 2], bytemuck::cast_slice(&values)), ("b", Dtype::BF16, &[4], &bf)]);
        write(&two, &[("c", Dtype::F16, &[4, 1], &f16), ("n", Dtype::I32, &[1], &[0; 4])]);
        let index = |text: &str| std::fs::write(dir.path().join(INDEX), text).unwrap();
        index(r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}"#);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.tensors().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b", "c", "n"]);
        // The index by itself, under any name.
        let renamed = dir.path().join("other.index.json");
        for path in [&dir.path().join(INDEX), &renamed] {
            std::fs::copy(dir.path().join(INDEX), &renamed).unwrap();
            assert_eq!(Checkpoint::open(path).unwrap().tensors, checkpoint.tensors);
        }
        for name in ["a", "b", "c"] {
            let mut out = [0.0; 3];
            checkpoint.read(name, 1, &mut out).unwrap();
            assert_eq!(out, values[1..]);
            assert!(checkpoint.read(name, 2, &mut out).unwrap_err().to_string().contains("only 4 elements"));
        }
        assert!(checkpoint.read("n", 0, &mut [0.0]).unwrap_err().to_string().contains("I32"));
        assert!(checkpoint.read("z", 0, &mut [0.0]).is_err());
        for bad in [
            r#"{"weight_map": {"z": "m-1.safetensors"}}"#,
            r#"{"weight_map": {"a": "../m-1.safetensors"}}"#,
            r#"{"weight_map": {"a": "absent.safetensors"}}"#,
            r#"{"weight_map": 3}"#,
            "",
        ] {
            index(bad);
            assert!(Checkpoint::open(dir.path()).is_err(), "{bad}");
        }
        std::fs::remove_file(dir.path().join(INDEX)).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().count(), 4);
        write(&two, &[("a", Dtype::I32, &[1], &[0; 4])]);
        assert!(Checkpoint::open(dir.path()).unwrap_err().to_string().contains("another file"));
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let (a, b) = ([1.0f32, -2.0, f32::NAN, 4.0, 5.0, 6.0], [0.5f32]);
        let digest =
            super::write(&path, &[("z.weight", &[2, 3], &a), ("a \"quoted\"", &[], &b), ("none", &[0], &[])]).unwrap();
        assert_eq!(digest, Digest::of(&path).unwrap());
        assert_eq!(digest.bytes, std::fs::metadata(&path).unwrap().len());
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut out = [0.0; 6];
        checkpoint.read("z.weight", 0, &mut out).unwrap();
        assert_eq!(out.map(f32::to_bits), a.map(f32::to_bits));
        assert_eq!(checkpoint.tensor("z.weight").unwrap().shape, [2, 3]);
        checkpoint.read("a \"quoted\"", 0, &mut out[..1]).unwrap();
        assert_eq!((out[0], checkpoint.tensors().count()), (0.5, 3));
        let bytes = std::fs::read(&path).unwrap();
        let (size, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert!(size % 8 == 0 && metadata.metadata().as_ref().unwrap()["format"] == "pt");
        assert!(super::write(dir.path(), &[]).is_err() && Digest::of(dir.path()).is_err());
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        write(&path, &[("a", Dtype::F32, &[2], &[0; 8])]);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Checkpoint::open(&path).is_err());
        }
        for at in 0..bytes.len() - 8 {
            let mut changed = bytes.clone();
            changed[at] ^= 0x11;
            std::fs::write(&path, &changed).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(&path) {
                // Another name, or an element type of the same size; reading must not fail in any other way.
                let names: Vec<String> = checkpoint.tensors().map(|(n, _)| n.to_string()).collect();
                names.iter().for_each(|n| drop(checkpoint.read(n, 0, &mut [0.0; 2])));
            }
        }
    }
}
