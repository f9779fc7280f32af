//! Batches, and where they come from.
use crate::Error;

/// The label of a position that nothing is predicted at.
pub const IGNORED: i32 = -100;

/// Rows of tokens with what is to be predicted. Filled anew for each call; a source of batches keeps its memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[rows, tokens]` row-major.
    pub ids: Vec<i32>,
    /// For each position the id that it is to predict (already shifted), or [`IGNORED`].
    pub labels: Vec<i32>,
    /// States given by name, `[rows, tokens, dim]` row-major, instead of drawn ones: for tests against known numbers.
    pub states: Vec<(String, Vec<f32>)>,
}

impl Batch {
    /// Positions that something is predicted at.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|l| **l != IGNORED).count()
    }
}

/// A source of batches. What it gives is a function of the index, or, after [`Batches::seek`], of the position saved: a run
/// that is resumed must see the rows that an unbroken one sees.
pub trait Batches {
    /// Fills the batch of that index: they count from 0, without gaps. With gradient accumulation over A batches, step t (from 1)
    /// takes those from `(t - 1) * A` on.
    ///
    /// # Errors
    /// If a file cannot be read or holds what cannot be trained on; the message names file and line.
    fn next(&mut self, index: u64, batch: &mut Batch) -> Result<(), Error>;
    /// What a checkpoint must hold for [`Batches::seek`]; nothing, where the index is enough.
    fn position(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    /// Goes to a position that [`Batches::position`] gave; the next call is for the batch after it.
    ///
    /// # Errors
    /// If the position does not fit the data.
    fn seek(&mut self, position: &serde_json::Value) -> Result<(), Error> {
        let _ = position;
        Ok(())
    }
}
