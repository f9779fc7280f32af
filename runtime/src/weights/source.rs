//! Where parameters come from.
use crate::Error;
use crate::artifact::ParamInfo;
use crate::checkpoint::Checkpoint;
use crate::random::Stream;
use rdc_ir::Type;
use std::collections::{BTreeMap, HashMap};

/// Parameters by checkpoint name, as f32.
pub trait ParamSource: Sync {
    /// Size of the last axis (1 for a scalar).
    ///
    /// # Errors
    /// If there is no such parameter.
    fn columns(&self, name: &str) -> Result<usize, Error>;
    /// Elements from `start` on of the row-major parameter; fills `out`.
    ///
    /// # Errors
    /// If there is no such parameter, or it has fewer elements.
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Error>;
}

/// Parameters of a checkpoint, through a map from parameters' names to tensors' names (aliases, a tied head).
pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    names: BTreeMap<String, String>,
}

impl<'a> CheckpointSource<'a> {
    /// A source; parameters that the map does not name go by their own name.
    pub fn new(checkpoint: &'a Checkpoint, names: BTreeMap<String, String>) -> CheckpointSource<'a> {
        CheckpointSource { checkpoint, names }
    }
    fn tensor<'n>(&'n self, name: &'n str) -> &'n str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

impl ParamSource for CheckpointSource<'_> {
    fn columns(&self, name: &str) -> Result<usize, Error> {
        let name = self.tensor(name);
        let info = self.checkpoint.tensor(name).ok_or_else(|| self.checkpoint.missing(name))?;
        Ok(info.shape.last().copied().unwrap_or(1))
    }
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Error> {
        self.checkpoint.read(self.tensor(name), start, out)
    }
}

/// Parameters drawn by their initialisers.
pub struct DrawnSource {
    params: HashMap<String, (Type, Stream)>,
}

impl DrawnSource {
    /// The parameters as a seed gives them.
    pub fn new<'a>(params: impl IntoIterator<Item = &'a ParamInfo>, seed: u64) -> DrawnSource {
        let params = params.into_iter().map(|p| (p.name.clone(), (p.ty.clone(), Stream::new(seed, &p.name, p.init))));
        DrawnSource { params: params.collect() }
    }
    fn param(&self, name: &str) -> Result<&(Type, Stream), Error> {
        self.params.get(name).ok_or_else(|| Error::Program(format!("the program has no parameter {name}")))
    }
}

impl ParamSource for DrawnSource {
    fn columns(&self, name: &str) -> Result<usize, Error> {
        Ok(self.param(name)?.0.last())
    }
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), Error> {
        let (ty, stream) = self.param(name)?;
        if start.checked_add(out.len()).is_none_or(|end| end > ty.elements()) {
            return Err(Error::Program(format!("parameter {name} has only {} elements", ty.elements())));
        }
        let (columns, mut at, mut rest) = (ty.last(), start, out);
        while !rest.is_empty() {
            let (row, column) = (at / columns, at % columns);
            let (part, more) = rest.split_at_mut((columns - column).min(rest.len()));
            // Parameters have fewer than 2^32 rows.
            stream.fill(0, row as u32, column, part);
            at += part.len();
            rest = more;
        }
        Ok(())
    }
}
