//! Batches, and where they come from.
use crate::Error;
use crate::data::{Dataset, Feed};
use rdc_ir::IGNORED_LABEL;

/// Rows of tokens with what is to be predicted. Filled anew for each call; a source of batches keeps its memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[rows, tokens]` row-major.
    pub ids: Vec<i32>,
    /// For each position the id that it is to predict (already shifted), or [`IGNORED_LABEL`].
    pub labels: Vec<i32>,
    /// States given by name, `[rows, tokens, dim]` row-major, instead of drawn ones: for tests against known numbers.
    pub states: Vec<(String, Vec<f32>)>,
}

impl Batch {
    /// Positions that something is predicted at.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|l| **l != IGNORED_LABEL).count()
    }
}

/// A source of batches. What it gives is a function of the index, so that a run that is resumed sees the rows that an unbroken one
/// sees.
pub trait Batches {
    /// Fills the batch of that index: they count from 0, without gaps. With gradient accumulation over A batches, step t (from 1)
    /// takes those from `(t - 1) * A` on.
    ///
    /// # Errors
    /// If a file cannot be read or holds what cannot be trained on; the message names file and line.
    fn fill(&mut self, index: u64, batch: &mut Batch) -> Result<(), Error>;
    /// What it is, in a line. A run is only resumed on data of the same description.
    fn describe(&self) -> String;
}

/// Batches of a dataset's rows, in an order.
pub struct Rows {
    /// The rows.
    pub data: Box<dyn Dataset>,
    /// Their order.
    pub feed: Feed,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a row.
    pub seq: usize,
}

impl Batches for Rows {
    fn fill(&mut self, index: u64, batch: &mut Batch) -> Result<(), Error> {
        batch.ids.resize(self.batch * self.seq, 0);
        batch.labels.resize(self.batch * self.seq, IGNORED_LABEL);
        self.feed.batch(&*self.data, index, self.seq, &mut batch.ids, &mut batch.labels)
    }
    fn describe(&self) -> String {
        self.data.describe()
    }
}
