//! The artifact file, `.rda`: a header with a table of sections, then the sections, each at a multiple of 64 KiB.
//! docs/artifact.md is its reference.
mod meta;
mod read;
mod write;

pub use meta::{Isa, LossInfo, Meta, ParamInfo, Readout, TrainMeta};
pub(crate) use read::is_stored;
pub use read::{Artifact, Verify, WeightLayout, weight_layout};
pub use write::{Contents, write};

use std::path::{Path, PathBuf};

/// The first bytes of every artifact. As in PNG, a byte that is not ASCII and both line ends betray a transfer as text.
pub const MAGIC: [u8; 8] = *b"\x89RDA\r\n\x1a\n";
/// The format that this crate writes, and the only one that it reads.
pub const VERSION: u32 = 2;
/// Alignment of sections: the largest page size of the machines in question.
pub const SECTION_ALIGN: u64 = 64 << 10;
/// Alignment of each weight within its section.
pub const WEIGHT_ALIGN: usize = 64;

/// Bytes of the header before the table.
const HEADER: usize = 32;
/// Bytes of an entry of the table.
const TABLE_ENTRY: usize = 40;

/// Section with the metadata: JSON.
pub const META: &str = "meta";
/// Section with the machine code.
pub const CODE: &str = "code";
/// Section with the weights.
pub const WEIGHTS: &str = "weights";
/// Section with the text of the optimised IR, for readers.
pub const IR: &str = "ir";

/// A line of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, at most 16 bytes.
    pub name: String,
    /// Where it starts in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// CRC-32 (IEEE) of the bytes.
    pub crc: u32,
}

/// A name in the same folder that no other process uses, for a file that is then renamed to `path`.
///
/// # Errors
/// If `path` is a folder, a device or another thing that a rename would destroy rather than replace.
pub fn temporary_name(path: &Path) -> std::io::Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(std::io::Error::other("it exists and is not a file"));
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{}.{count}.tmp", std::process::id())))
}

/// The header and the table. The checksum in bytes 28..32 covers both, itself taken as zero.
fn encode_header(sections: &[Section], file_size: u64) -> Vec<u8> {
    let size = HEADER + sections.len() * TABLE_ENTRY;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((size as u32).to_le_bytes());
    bytes.extend(file_size.to_le_bytes());
    bytes.extend((sections.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for section in sections {
        let mut name = [0; 16];
        name[..section.name.len()].copy_from_slice(section.name.as_bytes());
        bytes.extend(name);
        bytes.extend(section.offset.to_le_bytes());
        bytes.extend(section.size.to_le_bytes());
        bytes.extend(section.crc.to_le_bytes());
        bytes.extend([0; 4]);
    }
    let crc = crc32fast::hash(&bytes);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
