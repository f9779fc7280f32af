//! Numbers that only the compiler knows, kept in an artifact's metadata for `rdc inspect`.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `report` of an artifact's metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Parameters of layer stacks that the loop runs: what "unrolled" multiplies by r.
    pub looped_stack_parameters: u64,
    /// Work by function name.
    pub functions: BTreeMap<String, Work>,
}

/// Operations of one call, as the text says them and as they are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Outside the loop, as written.
    pub once_written: u64,
    /// Per iteration, as written.
    pub iteration_written: u64,
    /// Outside the loop, as run.
    pub once: u64,
    /// Per iteration, as run.
    pub iteration: u64,
}

impl Report {
    /// Reads it from metadata; an artifact without one gives zeros.
    pub fn of(meta: &rdc_runtime::artifact::Meta) -> Report {
        Report::deserialize(&meta.report).unwrap_or_default()
    }
}
