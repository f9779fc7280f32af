//! The inputs of a run: checked once, then cut for each call.
use super::describe;
use super::pieces::{Call, Function};
use crate::Error;
use crate::memory::Buffer;
use crate::model::Model;
use crate::random::Stream;
use crate::tensor::{Tensor, TensorMap};
use rdc_ir::program::Input;
use rdc_ir::{ArgRole, DType, Type};

/// Checked inputs.
pub(super) struct Inputs<'a> {
    tensors: &'a TensorMap,
    /// Positions of the sequence.
    pub length: usize,
    /// Position of the first.
    base: usize,
    seed: u64,
    /// Names that no function knows.
    pub ignored: Vec<String>,
}

impl<'a> Inputs<'a> {
    /// Checks the inputs against the functions that may be called.
    pub fn new(
        model: &Model,
        functions: &[&Function],
        tensors: &'a TensorMap,
        base: usize,
        seed: u64,
    ) -> Result<Inputs<'a>, Error> {
        let program = model.program();
        let known =
            |name: &str| functions.iter().flat_map(|f| &program.entries[f.entry].inputs).find(|i| i.name == name);
        let Some(function) = functions.first() else {
            return Err(Error::Input("the model has no function for this read-out".into()));
        };
        let entry = &program.entries[function.entry];
        let sequence = entry.inputs.iter().find(|i| i.role == ArgRole::Ids);
        let sequence = sequence.or_else(|| entry.inputs.iter().find(|i| matches!(i.role, ArgRole::State(_))));
        let name = sequence.map_or("input_ids", |s| s.name.as_str());
        let ids = tensors.get(name).ok_or_else(|| Error::Input(format!("there is no input `{name}`")))?;
        if ids.shape.len() < 2 {
            return Err(Error::Input(format!("`{name}` is {}; it must have axes batch and sequence", describe(ids))));
        }
        let (batch, length) = (ids.shape[0], ids.shape[1]);
        if length == 0 {
            return Err(Error::Input(format!("`{name}` is an empty sequence")));
        }
        let inputs = Inputs {
            tensors,
            length,
            base,
            seed,
            ignored: tensors.keys().filter(|n| known(n).is_none()).cloned().collect(),
        };
        for (name, tensor) in tensors {
            if let Some(input) = known(name) {
                inputs.check(name, input.role, tensor, batch, function)?;
            }
        }
        if batch != function.batch {
            return Err(Error::Input(format!(
                "the input has batch {batch}, but the model is compiled for batch {}: compile with --batch {batch}",
                function.batch
            )));
        }
        Ok(inputs)
    }
    fn check(
        &self,
        name: &str,
        role: ArgRole,
        tensor: &Tensor,
        batch: usize,
        function: &Function,
    ) -> Result<(), Error> {
        let got = describe(tensor);
        match role {
            ArgRole::Ids => {
                let Some(ids) = tensor.as_i32().filter(|_| tensor.shape == [batch, self.length]) else {
                    return Err(Error::Input(format!("`{name}` is {got}, not i32[{batch}, {}]", self.length)));
                };
                let limit = function.vocabulary.map_or(i32::MAX as usize, |v| v);
                match ids.iter().position(|&id| usize::try_from(id).map_or(true, |id| id >= limit)) {
                    Some(at) => Err(Error::Input(format!(
                        "`{name}` holds id {} at row {}, position {}; ids are 0 to {}",
                        ids[at],
                        at / self.length,
                        at % self.length,
                        limit.saturating_sub(1)
                    ))),
                    None => Ok(()),
                }
            }
            ArgRole::State(_) => {
                let rows = self.base + self.length;
                let fits = tensor.dtype == DType::F32
                    && tensor.shape.len() == 3
                    && tensor.shape[0] == batch
                    && tensor.shape[1] >= rows;
                if fits {
                    return Ok(());
                }
                Err(Error::Input(format!(
                    "`{name}` is {got}, not f32[{batch}, {rows} or more, dim]: row i is for position i"
                )))
            }
            ArgRole::Input => Ok(()),
            ArgRole::Labels
            | ArgRole::NoGradSteps
            | ArgRole::GradSteps
            | ArgRole::Position
            | ArgRole::Valid
            | ArgRole::Steps
            | ArgRole::Cache => Err(Error::Input(format!("`{name}` is set by the run itself and cannot be given"))),
        }
    }
    /// Fills the memory of an input for a call. Rows of padding get zeros.
    pub fn fill(&self, input: &Input, ty: &Type, call: &Call, steps: usize, out: &mut Buffer) -> Result<(), Error> {
        match input.role {
            // Both below 2^31: steps by the check against R_max, positions by that against the context.
            ArgRole::Steps => out.copy_from_slice(&(steps as i32).to_le_bytes()),
            ArgRole::Position => {
                out.as_chunks_mut::<4>().0.iter_mut().for_each(|p| *p = (call.start as i32).to_le_bytes());
            }
            ArgRole::Valid => {
                out.as_chunks_mut::<4>().0.iter_mut().for_each(|n| *n = (call.rows as i32).to_le_bytes());
            }
            // Functions of the trainer, which no session calls, have the roles of training.
            ArgRole::Cache | ArgRole::Labels | ArgRole::NoGradSteps | ArgRole::GradSteps => {}
            ArgRole::State(init) => match self.tensors.get(&input.name) {
                Some(tensor) if tensor.shape.get(2) == Some(&ty.last()) => copy_rows(tensor, call.start, call, ty, out),
                Some(tensor) => {
                    return Err(Error::Input(format!(
                        "`{}` is {}; its last axis must be {}",
                        input.name,
                        describe(tensor),
                        ty.last()
                    )));
                }
                None => {
                    let stream = Stream::new(self.seed, &input.name, init);
                    let rows = bytemuck::cast_slice_mut::<u8, f32>(out).chunks_exact_mut(ty.last().max(1));
                    for (index, row) in rows.enumerate() {
                        let (batch, at) = (index / call.chunk, index % call.chunk);
                        stream.fill(batch as u32, (call.start + at) as u32, 0, row);
                    }
                }
            },
            ArgRole::Ids | ArgRole::Input => {
                let tensor = self.tensors.get(&input.name);
                let tensor = tensor.ok_or_else(|| Error::Input(format!("there is no input `{}`", input.name)))?;
                let cut = ty.rank() >= 2
                    && ty.rank() == tensor.shape.len()
                    && ty.shape[1] == call.chunk
                    && tensor.shape[1] == self.length
                    && tensor.shape[0] == ty.shape[0]
                    && tensor.shape[2..] == ty.shape[2..];
                if tensor.dtype == ty.dtype && cut {
                    copy_rows(tensor, call.start - self.base, call, ty, out);
                } else if tensor.dtype == ty.dtype && tensor.shape == ty.shape {
                    out.copy_from_slice(&tensor.data);
                } else {
                    return Err(Error::Input(format!(
                        "`{}` is {}, but the model takes {ty} per call",
                        input.name,
                        describe(tensor)
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Copies rows `from..from + call.rows` of the second axis; `out` has `call.chunk` rows, zeros beyond.
fn copy_rows(tensor: &Tensor, from: usize, call: &Call, ty: &Type, out: &mut Buffer) {
    let row = ty.shape[2..].iter().product::<usize>() * ty.dtype.bytes();
    if row == 0 {
        return;
    }
    let batches = tensor.data.chunks_exact(tensor.shape[1] * row).zip(out.chunks_exact_mut(call.chunk * row));
    for (source, target) in batches {
        let (kept, padding) = target.split_at_mut(call.rows * row);
        kept.copy_from_slice(&source[from * row..][..call.rows * row]);
        padding.fill(0);
    }
}
