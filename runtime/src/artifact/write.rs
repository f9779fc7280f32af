//! Writing artifacts.
use super::{
    CODE, IR, META, Meta, SECTION_ALIGN, Section, WEIGHTS, encode_header, is_stored, temporary_name, weight_layout,
};
use crate::Error;
use crate::weights::{self, ParamSource};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// What goes into an artifact.
pub struct Contents<'a> {
    /// The metadata.
    pub meta: &'a Meta,
    /// The code image of the program's kernels.
    pub code: &'a [u8],
    /// The text of the IR, if it is to be kept.
    pub ir: Option<&'a str>,
    /// The parameters; without them the artifact holds initialisers only, and weights are drawn when it is loaded.
    pub params: Option<&'a dyn ParamSource>,
}

/// Writes an artifact: under a temporary name in the same folder, synced, then renamed, so that `path` is never a half-written
/// file and a process that has the old one mapped keeps it. Equal contents give equal bytes. `progress` hears bytes of
/// weights written and in all.
///
/// # Errors
/// If the file cannot be written, or a weight cannot be made.
pub fn write(path: &Path, contents: &Contents, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Error> {
    let temporary = temporary_name(path).map_err(Error::io(path))?;
    let result = write_to(&temporary, path, contents, progress).and_then(|()| {
        std::fs::rename(&temporary, path).map_err(Error::io(path))?;
        // The rename is durable once the folder is; some file systems cannot sync a folder.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(folder).and_then(|f| f.sync_all());
        Ok(())
    });
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn write_to(
    temporary: &Path,
    path: &Path,
    contents: &Contents,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error> {
    let meta = serde_json::to_vec(contents.meta).map_err(|e| Error::file(path, format!("metadata: {e}")))?;
    let names = [Some(META), Some(CODE), contents.ir.map(|_| IR), contents.params.map(|_| WEIGHTS)];
    let names: Vec<&str> = names.into_iter().flatten().collect();
    let file = File::create(temporary).map_err(Error::io(path))?;
    let mut out = Output { file: BufWriter::with_capacity(1 << 20, file), at: 0, crc: crc32fast::Hasher::new() };
    let header = encode_header(&vec![Section { name: String::new(), offset: 0, size: 0, crc: 0 }; names.len()], 0);
    out.write(&header).map_err(Error::io(path))?;
    let mut sections = Vec::new();
    for name in names {
        let offset = out.at.next_multiple_of(SECTION_ALIGN);
        out.pad_to(offset).map_err(Error::io(path))?;
        out.crc = crc32fast::Hasher::new();
        match name {
            META => out.write(&meta).map_err(Error::io(path))?,
            CODE => out.write(contents.code).map_err(Error::io(path))?,
            IR => out.write(contents.ir.unwrap_or_default().as_bytes()).map_err(Error::io(path))?,
            _ => write_weights(&mut out, offset, path, contents, progress)?,
        }
        let crc = out.crc.clone().finalize();
        sections.push(Section { name: name.into(), offset, size: out.at - offset, crc });
    }
    let header = encode_header(&sections, out.at);
    let mut file = out.file.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header)).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))
}

struct Output {
    file: BufWriter<File>,
    at: u64,
    crc: crc32fast::Hasher,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.crc.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let zeros = [0; 4096];
        while self.at < offset {
            let n = (offset - self.at).min(zeros.len() as u64) as usize;
            self.write(&zeros[..n])?;
        }
        Ok(())
    }
}

fn write_weights(
    out: &mut Output,
    base: u64,
    path: &Path,
    contents: &Contents,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error> {
    let Some(params) = contents.params else { return Ok(()) };
    let program = &contents.meta.program;
    let layout =
        weight_layout(program).ok_or_else(|| Error::Program("the weights are larger than the address space".into()))?;
    let total = layout.stored;
    for (weight, offset) in program.weights.iter().zip(layout.offsets).filter(|(w, _)| is_stored(w)) {
        out.pad_to(base + offset as u64).map_err(Error::io(path))?;
        weights::produce(weight, params, &mut |bytes| {
            out.write(bytes).map_err(Error::io(path))?;
            progress(out.at - base, total as u64);
            Ok(())
        })?;
    }
    Ok(())
}
