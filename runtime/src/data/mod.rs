//! Training data: where rows of token ids and labels come from.
//!
//! A [`Dataset`] is rows by index; a row is a pure function of its index, and the order of rows ([`Feed`]) a pure function of
//! (seed, step). So a run resumes exactly at any step, and nothing of the data needs to be saved with it.
mod corpus;
mod examples;
mod generated;
mod shuffle;
pub mod tasks;
mod tokenizer;

pub use corpus::Tokens;
pub use examples::Examples;
pub use generated::Generated;
pub use shuffle::Permutation;
pub use tokenizer::Tokenizer;

use crate::Error;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Rows of training data.
pub trait Dataset: Send + Sync {
    /// Rows of an epoch; `None` if rows are made without end.
    fn rows(&self) -> Option<u64>;
    /// Fills row `index`: `ids` and `labels` have the row's length, and `labels[i]` is what position i is to predict, or
    /// [`rdc_ir::IGNORED_LABEL`].
    ///
    /// # Errors
    /// If a file cannot be read.
    fn row(&self, index: u64, ids: &mut [i32], labels: &mut [i32]) -> Result<(), Error>;
    /// Ids are below this number.
    fn vocabulary(&self) -> usize;
    /// What it is, in a line, with what was left out.
    fn describe(&self) -> String;
}

/// What to do with a line that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    /// Stop, and name file and line.
    #[default]
    Refuse,
    /// Leave it out, and count.
    Skip,
}

/// How files hold their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Plain text in UTF-8; every token predicts the next.
    Text,
    /// A JSON object per line: `prompt` and `answer` (loss on the answer), `text` (loss on all), or `input` and `labels`
    /// (the label of each character of the input; `.` for none).
    Jsonl,
    /// Token ids: `.u16` and `.u32` raw little-endian, or a `.npy` vector of u16, u32 or i32.
    Tokens,
}

/// The section `[data]` of a training configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// A built-in task; excludes `files`.
    pub task: Option<String>,
    /// Size of the task's problems, in its own unit.
    pub size: Option<usize>,
    /// For the aligned tasks: each position begins a new problem with this probability, so that a row holds several. Other
    /// tasks fill a row with problems one after the other.
    pub restart: f64,
    /// Files, read in this order. A relative path is relative to the configuration.
    pub files: Vec<PathBuf>,
    /// How files hold their data (default: by their suffix).
    pub format: Option<Format>,
    /// `bytes`, `chars` (the characters that occur in the files) or the path of a tokenizer.json.
    pub tokenizer: Option<String>,
    /// Files for validation; without them the last `validation_fraction` of the rows is.
    pub validation: Vec<PathBuf>,
    /// Share of the rows that is kept for validation, at the end.
    pub validation_fraction: Option<f64>,
    /// What to do with a line that cannot be used.
    pub bad_lines: BadLines,
    /// Rows in their order instead of shuffled.
    pub in_order: bool,
}

/// The two parts of the data.
pub struct Split {
    /// What is trained on.
    pub train: Box<dyn Dataset>,
    /// What is not.
    pub validation: Box<dyn Dataset>,
}

impl DataConfig {
    /// Opens the data for rows of `length` tokens. Relative paths are relative to `base`.
    ///
    /// # Errors
    /// If the section contradicts itself, a file cannot be read or holds a bad line, or there is not one row.
    pub fn open(&self, base: &Path, length: usize, seed: u64) -> Result<Split, Error> {
        let resolve = |p: &PathBuf| if p.is_absolute() { p.clone() } else { base.join(p) };
        if let Some(name) = &self.task {
            if !self.files.is_empty() {
                return Err(Error::Input("[data] has both `task` and `files`: choose one".into()));
            }
            let task = tasks::Task::parse(name)?;
            let size = self.size.unwrap_or(length.saturating_sub(1)).max(1);
            if size > task.largest() {
                return Err(Error::Input(format!("size {size}: problems of {name} go to {}", task.largest())));
            }
            if !(0.0..1.0).contains(&self.restart) {
                return Err(Error::Input(format!("restart is a probability below 1, not {}", self.restart)));
            }
            let rows = |stream: u64| Generated::new(task, size, self.restart, seed ^ stream);
            // Validation problems come from another stream of draws.
            return Ok(Split { train: Box::new(rows(0)), validation: Box::new(rows(0x5641_4c49_4441_5445)) });
        }
        let files: Vec<PathBuf> = self.files.iter().map(resolve).collect();
        let Some(first) = files.first() else {
            return Err(Error::Input("[data] names neither a `task` nor `files`".into()));
        };
        let format = match self.format {
            Some(format) => format,
            None => format_of(first)?,
        };
        let held_out: Vec<PathBuf> = self.validation.iter().map(resolve).collect();
        let tokenizer = match (format, self.tokenizer.as_deref()) {
            (Format::Tokens, None) => None,
            (Format::Tokens, Some(_)) => {
                return Err(Error::Input("files of token ids need no `tokenizer`".into()));
            }
            (_, None | Some("bytes")) => Some(Tokenizer::Bytes),
            (_, Some("chars")) => Some(Tokenizer::characters(&files.iter().chain(&held_out).collect::<Vec<_>>())?),
            (_, Some(path)) => Some(Tokenizer::open(&resolve(&PathBuf::from(path)))?),
        };
        let open = |files: &[PathBuf]| -> Result<Box<dyn Dataset>, Error> {
            Ok(match (format, &tokenizer) {
                (Format::Jsonl, Some(tokenizer)) => Box::new(Examples::read(files, tokenizer, length, self.bad_lines)?),
                (Format::Text, Some(tokenizer)) => Box::new(Tokens::of_text(files, tokenizer, length, self.bad_lines)?),
                _ => Box::new(Tokens::open(files, length)?),
            })
        };
        let all = open(&files)?;
        if !held_out.is_empty() {
            return Ok(Split { train: all, validation: open(&held_out)? });
        }
        let fraction = self.validation_fraction.unwrap_or(0.05);
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::Input(format!("validation_fraction is a share below 1, not {fraction}")));
        }
        let rows = all.rows().unwrap_or(0);
        if rows < 2 {
            return Err(Error::Input(format!(
                "{} holds {rows} rows of {length} tokens: two are the least, one to train on and one for validation",
                first.display()
            )));
        }
        let kept = ((rows as f64 * (1.0 - fraction)) as u64).clamp(1, rows - 1);
        let all: std::sync::Arc<dyn Dataset> = all.into();
        let part = |start, end| Box::new(Part { all: all.clone(), start, end });
        Ok(Split { train: part(0, kept), validation: part(kept, rows) })
    }
}

fn format_of(path: &Path) -> Result<Format, Error> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("txt" | "md") => Ok(Format::Text),
        Some("jsonl") => Ok(Format::Jsonl),
        Some("u16" | "u32" | "npy") => Ok(Format::Tokens),
        _ => Err(Error::Input(format!(
            "{}: what it holds does not show in its name: say `format = \"text\"`, \"jsonl\" or \"tokens\"",
            path.display()
        ))),
    }
}

/// Rows `start..end` of another dataset.
struct Part {
    all: std::sync::Arc<dyn Dataset>,
    start: u64,
    end: u64,
}

impl Dataset for Part {
    fn rows(&self) -> Option<u64> {
        Some(self.end - self.start)
    }
    fn row(&self, index: u64, ids: &mut [i32], labels: &mut [i32]) -> Result<(), Error> {
        self.all.row(self.start + index, ids, labels)
    }
    fn vocabulary(&self) -> usize {
        self.all.vocabulary()
    }
    fn describe(&self) -> String {
        format!("{}, rows {} to {}", self.all.describe(), self.start, self.end)
    }
}

/// The order in which rows are taken: shuffled anew in each epoch, or as they are.
#[derive(Clone, Copy, Debug)]
pub struct Feed {
    seed: u64,
    in_order: bool,
}

impl Feed {
    /// An order of rows.
    pub fn new(seed: u64, in_order: bool) -> Feed {
        Feed { seed, in_order }
    }
    /// The row at a place in the endless sequence of rows: place `n` of a run is row `n % batch` of batch `n / batch`.
    pub fn row_at(&self, data: &dyn Dataset, place: u64) -> u64 {
        let Some(rows) = data.rows().filter(|&n| n > 0) else { return place };
        let (epoch, at) = (place / rows, place % rows);
        if self.in_order { at } else { Permutation::new(rows, self.seed, epoch).at(at) }
    }
    /// Fills batch `number`: `ids` and `labels` are `[batch, length]`.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn batch(
        &self,
        data: &dyn Dataset,
        number: u64,
        length: usize,
        ids: &mut [i32],
        labels: &mut [i32],
    ) -> Result<(), Error> {
        let batch = (ids.len() / length.max(1)) as u64;
        let rows = ids.chunks_exact_mut(length.max(1)).zip(labels.chunks_exact_mut(length.max(1)));
        for (i, (ids, labels)) in rows.enumerate() {
            data.row(self.row_at(data, number * batch + i as u64), ids, labels)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
