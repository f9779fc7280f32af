//! From text to token ids.
use crate::Error;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A way to cut text into tokens.
#[derive(Clone)]
pub enum Tokenizer {
    /// The bytes of UTF-8.
    Bytes,
    /// Characters, by their place in this sorted list.
    Characters(Vec<char>),
    /// A tokenizer.json of Hugging Face's library.
    Library(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer.
    pub fn open(path: &Path) -> Result<Tokenizer, Error> {
        let inner = tokenizers::Tokenizer::from_file(path)
            .map_err(|e| Error::Input(format!("{} is not a tokenizer: {e}", path.display())))?;
        Ok(Tokenizer::Library(Box::new(inner)))
    }
    /// The characters that occur in files.
    ///
    /// # Errors
    /// If a file cannot be read or is not UTF-8.
    pub fn characters(files: &[&PathBuf]) -> Result<Tokenizer, Error> {
        let mut all = BTreeSet::new();
        for path in files {
            all.extend(read(path)?.chars());
        }
        Ok(Tokenizer::Characters(all.into_iter().collect()))
    }
    /// The ids of a text, without special tokens.
    ///
    /// # Errors
    /// If a character has no id.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, String> {
        match self {
            Tokenizer::Bytes => Ok(text.bytes().map(i32::from).collect()),
            Tokenizer::Characters(known) => text
                .chars()
                .map(|c| {
                    known.binary_search(&c).map(|i| i as i32).map_err(|_| format!("the character {c:?} has no id"))
                })
                .collect(),
            Tokenizer::Library(inner) => {
                let encoding = inner.encode_fast(text, false).map_err(|e| e.to_string())?;
                encoding
                    .get_ids()
                    .iter()
                    .map(|&i| i32::try_from(i).map_err(|_| format!("id {i} is too large")))
                    .collect()
            }
        }
    }
    /// Ids are below this number.
    pub fn vocabulary(&self) -> usize {
        match self {
            Tokenizer::Bytes => 256,
            Tokenizer::Characters(known) => known.len(),
            Tokenizer::Library(inner) => inner.get_vocab_size(true),
        }
    }
    /// The id that ends a document, if there is one by a usual name.
    pub fn end(&self) -> Option<i32> {
        let Tokenizer::Library(inner) = self else { return None };
        let names = ["<|endoftext|>", "<|end_text|>", "</s>", "<|im_end|>", "<eos>"];
        names.iter().find_map(|n| inner.token_to_id(n)).and_then(|i| i32::try_from(i).ok())
    }
}

/// Reads a text file.
///
/// # Errors
/// If it cannot be read, or where it stops being UTF-8.
pub fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::Input(format!("{}:{line}: not UTF-8 (byte {at})", path.display()))
    })
}
