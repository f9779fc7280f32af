//! Reading artifacts. Nothing in a file is believed before it is checked: lengths are compared with the file's before anything of
//! that length is read or allocated.
use super::{CODE, HEADER, IR, MAGIC, META, Meta, SECTION_ALIGN, Section, TABLE_ENTRY, VERSION, WEIGHT_ALIGN, WEIGHTS};
use crate::Error;
use crate::code::Code;
use crate::validate;
use memmap2::Mmap;
use rdc_ir::program::{Program, Weight, WeightSource};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much of an artifact is checked against its checksums on opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// Header, table, metadata, code and padding always; weights if the file has at most 256 MiB.
    #[default]
    Auto,
    /// Every byte.
    All,
    /// All but the weights.
    Fast,
}

/// Files up to this size are verified whole by [`Verify::Auto`]: at least 5 GB/s, so at most some 50 ms.
const AUTO_LIMIT: u64 = 256 << 20;

/// An open artifact: mapped, checked, its metadata parsed. The file must not be changed in place while it is open; [`super::write`]
/// never does.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    file: File,
    map: Arc<Mmap>,
    sections: Vec<Section>,
    meta: Meta,
    weights: Option<Vec<usize>>,
}

impl Artifact {
    /// Opens and checks an artifact. Code is neither mapped executable nor run, and any machine can open any artifact.
    ///
    /// # Errors
    /// If it cannot be read, is no artifact, of another format, truncated or damaged.
    pub fn open(path: &Path, verify: Verify) -> Result<Artifact, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length < HEADER as u64 {
            return Err(Error::file(path, format!("not an artifact: it has only {length} bytes")));
        }
        // SAFETY: a read-only mapping; see the type's documentation for changes by others.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let sections = parse_header(&map).map_err(|m| Error::file(path, m))?;
        check_padding(&map, &sections).map_err(|m| Error::file(path, m))?;
        let all = match verify {
            Verify::Auto => length <= AUTO_LIMIT,
            Verify::All => true,
            Verify::Fast => false,
        };
        for section in sections.iter().filter(|s| all || s.name != WEIGHTS) {
            check_section(&map, section).map_err(|m| Error::file(path, m))?;
        }
        let find = |name| sections.iter().find(|s| s.name == name);
        let meta = find(META).ok_or_else(|| Error::file(path, "it has no section `meta`"))?;
        find(CODE).ok_or_else(|| Error::file(path, "it has no section `code`"))?;
        let meta: Meta = serde_json::from_slice(bytes_of(&map, meta))
            .map_err(|e| Error::file(path, format!("section `meta` is not readable metadata: {e}")))?;
        validate::meta(&meta).map_err(|m| Error::file(path, format!("section `meta`: {m}")))?;
        let mut weights = None;
        if let Some(section) = find(WEIGHTS) {
            let layout = weight_layout(&meta.program).filter(|layout| layout.stored as u64 == section.size);
            let layout = layout.ok_or_else(|| {
                Error::file(path, "section `weights` does not have the size of the program's weights")
            })?;
            weights = Some(layout.offsets);
        }
        Ok(Artifact { path: path.to_path_buf(), file, map: Arc::new(map), sections, meta, weights })
    }
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The metadata.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
    /// The table of sections.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }
    /// The bytes of a section.
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        self.sections.iter().find(|s| s.name == name).map(|s| bytes_of(&self.map, s))
    }
    /// The text of the IR, if it was kept.
    pub fn ir(&self) -> Option<&str> {
        self.section(IR).and_then(|b| std::str::from_utf8(b).ok())
    }
    /// Checks every byte against the checksums, the weights with them.
    ///
    /// # Errors
    /// If a byte has changed.
    pub fn verify(&self) -> Result<(), Error> {
        self.sections.iter().try_for_each(|s| check_section(&self.map, s)).map_err(|m| Error::file(&self.path, m))
    }
    /// Whether it holds weights (and not only how to draw them).
    pub fn has_weights(&self) -> bool {
        self.weights.is_some()
    }
    /// The mapping, and where each of the program's weights starts in it, if it holds weights. (Training state is not in it,
    /// and starts beyond its end.)
    pub fn weights(&self) -> Option<(Arc<Mmap>, Vec<usize>)> {
        let section = self.sections.iter().find(|s| s.name == WEIGHTS)?;
        let offsets = self.weights.as_ref()?;
        Some((self.map.clone(), offsets.iter().map(|o| section.offset as usize + o).collect()))
    }
    /// Maps the code executable, after checking that this machine can run it.
    ///
    /// # Errors
    /// If it is for another architecture, or needs a CPU feature that this machine lacks, or the system forbids executable memory.
    pub fn load_code(&self) -> Result<Code, Error> {
        crate::model::check_isa(&self.meta.isa, &self.meta.program.target).map_err(|m| Error::file(&self.path, m))?;
        let section = self.sections.iter().find(|s| s.name == CODE);
        let section = section.ok_or_else(|| Error::file(&self.path, "it has no section `code`"))?;
        Code::from_file(&self.file, section.offset, bytes_of(&self.map, section), self.meta.symbols.clone())
    }
}

/// Where weights are in memory, and in the section of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightLayout {
    /// Where each weight starts.
    pub offsets: Vec<usize>,
    /// Bytes that a file has: all but training state, which comes last and is zero at first.
    pub stored: usize,
    /// Bytes in memory.
    pub total: usize,
}

/// Where each weight of a program goes; `None` if that overflows.
pub fn weight_layout(program: &Program) -> Option<WeightLayout> {
    let mut layout = WeightLayout { offsets: vec![0; program.weights.len()], stored: 0, total: 0 };
    for in_file in [true, false] {
        for (weight, offset) in program.weights.iter().zip(&mut layout.offsets) {
            if is_stored(weight) == in_file {
                *offset = layout.total.checked_next_multiple_of(WEIGHT_ALIGN)?;
                layout.total = offset.checked_add(validate::bytes(&weight.ty)?)?;
            }
        }
        if in_file {
            layout.stored = layout.total;
        }
    }
    Some(layout)
}

/// Whether a file holds the bytes of a weight.
pub(crate) fn is_stored(weight: &Weight) -> bool {
    !matches!(weight.source, WeightSource::State { .. })
}

/// A section's bytes; `parse_header` has checked that they lie in the file.
fn bytes_of<'a>(map: &'a Mmap, section: &Section) -> &'a [u8] {
    &map[section.offset as usize..][..section.size as usize]
}

fn check_section(map: &Mmap, section: &Section) -> Result<(), String> {
    let bytes = bytes_of(map, section);
    // Halves on two threads where it pays.
    let crc = if bytes.len() < 8 << 20 {
        crc32fast::hash(bytes)
    } else {
        let (left, right) = bytes.split_at(bytes.len() / 2);
        std::thread::scope(|scope| {
            let hash = |bytes| {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(bytes);
                hasher
            };
            let left = scope.spawn(move || hash(left));
            let right = hash(right);
            left.join().map(|mut left| {
                left.combine(&right);
                left.finalize()
            })
        })
        .map_err(|_| "checksum thread failed".to_string())?
    };
    if crc == section.crc {
        Ok(())
    } else {
        Err(format!(
            "section `{}` is damaged: its checksum is {crc:08x}, not {:08x}; copy or compile the file again",
            section.name, section.crc
        ))
    }
}

fn check_padding(map: &Mmap, sections: &[Section]) -> Result<(), String> {
    let mut end = HEADER + sections.len() * TABLE_ENTRY;
    for section in sections {
        if map[end..section.offset as usize].iter().any(|&b| b != 0) {
            return Err(format!("the padding before section `{}` is damaged", section.name));
        }
        end = (section.offset + section.size) as usize;
    }
    Ok(())
}

/// Reads the table. After it, sections are known to lie in the file, in order, aligned and apart, and to end with it.
fn parse_header(bytes: &[u8]) -> Result<Vec<Section>, String> {
    let u32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let u64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    if !bytes.starts_with(&MAGIC) {
        return Err("not an artifact: it does not start as one".into());
    }
    let version = u32_at(8);
    if version > VERSION {
        return Err(format!(
            "its format is version {version}, newer than this rdc, which reads version {VERSION}: update rdc, or compile the model with this one"
        ));
    }
    if version == 0 {
        return Err("the header is damaged: its format version is 0".into());
    }
    if version < VERSION {
        return Err(format!(
            "its format is version {version}, older than this rdc, which reads version {VERSION}: compile the model again"
        ));
    }
    let (header_size, file_size, count) = (u32_at(12) as usize, u64_at(16), u32_at(24) as usize);
    if header_size > bytes.len() {
        return Err(format!("truncated: the header needs {header_size} bytes, the file has {}", bytes.len()));
    }
    if count.checked_mul(TABLE_ENTRY).and_then(|n| n.checked_add(HEADER)) != Some(header_size) {
        return Err("the header is damaged: its size does not fit its table".into());
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..28]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[32..header_size]);
    if hasher.finalize() != u32_at(28) {
        return Err("the header is damaged: its checksum does not fit".into());
    }
    if file_size > bytes.len() as u64 {
        return Err(format!("truncated: it should have {file_size} bytes and has {}", bytes.len()));
    }
    if file_size < bytes.len() as u64 {
        return Err(format!("it should have {file_size} bytes and has {}", bytes.len()));
    }
    let (mut sections, mut end): (Vec<Section>, u64) = (Vec::with_capacity(count), header_size as u64);
    for at in (HEADER..header_size).step_by(TABLE_ENTRY) {
        let name = &bytes[at..at + 16];
        let length = name.iter().position(|&b| b == 0).unwrap_or(16);
        let name = String::from_utf8_lossy(&name[..length]).into_owned();
        let (offset, size, crc) = (u64_at(at + 16), u64_at(at + 24), u32_at(at + 32));
        let fits = offset % SECTION_ALIGN == 0
            && offset >= end
            && offset.checked_add(size).is_some_and(|e| e <= file_size)
            && u32_at(at + 36) == 0
            && !sections.iter().any(|s| s.name == name);
        if !fits {
            return Err(format!("the header is damaged: section `{name}` is out of place"));
        }
        end = offset + size;
        sections.push(Section { name, offset, size, crc });
    }
    if end != file_size {
        return Err("the header is damaged: the last section does not end with the file".into());
    }
    Ok(sections)
}
