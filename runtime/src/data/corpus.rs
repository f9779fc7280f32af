//! One long sequence of tokens, cut into rows.
use super::tokenizer::{self, Tokenizer};
use super::{BadLines, Dataset};
use crate::Error;
use memmap2::Mmap;
use rdc_ir::IGNORED_LABEL;
use std::path::{Path, PathBuf};

/// Tokens one after the other. Row i is tokens `i * length ..`, and the label of each is the token after it.
pub struct Tokens {
    parts: Vec<Part>,
    /// Tokens before each part.
    starts: Vec<u64>,
    total: u64,
    length: usize,
    vocabulary: usize,
    note: String,
}

enum Part {
    Owned(Vec<i32>),
    Mapped { map: Mmap, offset: usize, width: usize },
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Part::Owned(ids) => ids.len() as u64,
            Part::Mapped { map, offset, width } => ((map.len() - offset) / width) as u64,
        }
    }
    fn at(&self, i: usize) -> i64 {
        match self {
            Part::Owned(ids) => i64::from(ids[i]),
            Part::Mapped { map, offset, width: 2 } => {
                i64::from(u16::from_le_bytes([map[offset + 2 * i], map[offset + 2 * i + 1]]))
            }
            Part::Mapped { map, offset, .. } => {
                let at = offset + 4 * i;
                i64::from(u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]))
            }
        }
    }
}

impl Tokens {
    /// The tokens of text files, with the tokenizer's end mark after each file, if it has one.
    ///
    /// # Errors
    /// If a file cannot be read, or a line of it cannot be encoded and such lines are refused.
    pub fn of_text(files: &[PathBuf], tokenizer: &Tokenizer, length: usize, bad: BadLines) -> Result<Tokens, Error> {
        let (mut parts, mut skipped) = (Vec::new(), 0);
        for path in files {
            let text = tokenizer::read(path)?;
            let mut ids = match tokenizer.encode(&text) {
                Ok(ids) => ids,
                // Line by line, to say where.
                Err(_) => {
                    let mut ids = Vec::new();
                    for (number, line) in text.split_inclusive('\n').enumerate() {
                        match tokenizer.encode(line) {
                            Ok(line) => ids.extend(line),
                            Err(_) if bad == BadLines::Skip => skipped += 1,
                            Err(e) => {
                                return Err(Error::Input(format!("{}:{}: {e}", path.display(), number + 1)));
                            }
                        }
                    }
                    ids
                }
            };
            ids.extend(tokenizer.end());
            parts.push(Part::Owned(ids));
        }
        let note = if skipped > 0 { format!(", {skipped} lines left out") } else { String::new() };
        Tokens::new(parts, length, tokenizer.vocabulary(), note, &files[0])
    }
    /// Files of ids.
    ///
    /// # Errors
    /// If a file cannot be read or mapped, is of another kind, or is too short.
    pub fn open(files: &[PathBuf], length: usize) -> Result<Tokens, Error> {
        let parts = files.iter().map(|p| map(p)).collect::<Result<Vec<_>, _>>()?;
        let mut tokens = Tokens::new(parts, length, 0, String::new(), &files[0])?;
        let largest = tokens.parts.iter().flat_map(|p| (0..p.len() as usize).map(|i| p.at(i))).max().unwrap_or(0);
        if largest >= i64::from(i32::MAX) {
            return Err(Error::Input(format!("{}: {largest} is no token id", files[0].display())));
        }
        tokens.vocabulary = largest as usize + 1;
        Ok(tokens)
    }
    fn new(parts: Vec<Part>, length: usize, vocabulary: usize, note: String, first: &Path) -> Result<Tokens, Error> {
        let (mut starts, mut total) = (Vec::new(), 0);
        for part in &parts {
            starts.push(total);
            total += part.len();
        }
        if length == 0 || total <= length as u64 {
            let name = first.display();
            return Err(Error::Input(format!("{name}: {total} tokens are too few for a row of {length} and the next")));
        }
        Ok(Tokens { parts, starts, total, length, vocabulary, note })
    }
    fn token(&self, at: u64) -> i32 {
        let part = self.starts.partition_point(|&s| s <= at) - 1;
        self.parts[part].at((at - self.starts[part]) as usize) as i32
    }
}

/// Maps a file of ids.
fn map(path: &Path) -> Result<Part, Error> {
    let fail = |e: &dyn std::fmt::Display| Error::Input(format!("{}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| fail(&e))?;
    // SAFETY: the mapping is only read, as bytes; a file that another process changes meanwhile gives other ids, which are
    // checked where they are used.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(&e))?;
    let (offset, width) = match path.extension().and_then(|e| e.to_str()) {
        Some("u16") => (0, 2),
        Some("u32") => (0, 4),
        Some("npy") => npy(&map).map_err(|e| fail(&e))?,
        _ => return Err(fail(&"token ids are in files .u16, .u32 or .npy")),
    };
    if !(map.len() - offset).is_multiple_of(width) {
        return Err(fail(&format!("{} bytes are not whole ids of {width}", map.len() - offset)));
    }
    Ok(Part::Mapped { map, offset, width })
}

/// Where the data of a .npy file begins and how wide its elements are (NumPy format versions 1 to 3).
fn npy(bytes: &[u8]) -> Result<(usize, usize), String> {
    let (Some(b"\x93NUMPY"), Some(&version)) = (bytes.get(..6), bytes.get(6)) else {
        return Err("not a .npy file".into());
    };
    let wide = usize::from(version > 1);
    let length = match bytes.get(8..10 + 2 * wide) {
        Some(&[a, b]) => usize::from(u16::from_le_bytes([a, b])),
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err("a .npy header that is cut off".into()),
    };
    let start = 10 + 2 * wide;
    let end = start.checked_add(length).filter(|&e| e <= bytes.len()).ok_or("a .npy header that is cut off")?;
    let header = String::from_utf8_lossy(&bytes[start..end]);
    let is = |what: &str| header.contains(&format!("'{what}'"));
    let width = if is("<u2") {
        2
    } else if is("<u4") || is("<i4") {
        4
    } else {
        return Err("a .npy of ids is u16, u32 or i32, little-endian".into());
    };
    if header.contains("'fortran_order': True") {
        return Err("a .npy in Fortran order".into());
    }
    Ok((end, width))
}

impl Dataset for Tokens {
    fn rows(&self) -> Option<u64> {
        Some((self.total - 1) / self.length as u64)
    }
    fn row(&self, index: u64, ids: &mut [i32], labels: &mut [i32]) -> Result<(), Error> {
        let first = index * self.length as u64;
        for (i, (id, label)) in ids.iter_mut().zip(labels).enumerate() {
            let at = first + i as u64;
            *id = self.token(at.min(self.total - 1));
            *label = if at + 1 < self.total { self.token(at + 1) } else { IGNORED_LABEL };
        }
        Ok(())
    }
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }
    fn describe(&self) -> String {
        format!("{} tokens in rows of {}{}", self.total, self.length, self.note)
    }
}
