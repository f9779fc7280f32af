//! Puts the outputs of the calls of a run together.
use super::pieces::{Call, Function};
use crate::Error;
use crate::exec::States;
use crate::memory::Buffer;
use crate::tensor::{Tensor, TensorMap};
use rdc_ir::Type;
use rdc_ir::program::{Entry, Step};

/// The outputs of a run, as far as its calls have come.
pub(super) struct Assembly {
    length: usize,
    steps: usize,
    /// Names of outputs without a sequence axis.
    whole: Vec<String>,
    outputs: TensorMap,
    /// Names of stacked outputs.
    stacked: Vec<String>,
    /// The most steps that a call took.
    trips: usize,
}

/// How a tensor of a call lies in the tensor of the run: `outer` blocks of `rows` rows of `bytes` bytes, or (no sequence axis) whole.
enum Layout {
    Rows { outer: usize, bytes: usize },
    Whole,
}

impl Assembly {
    /// No outputs yet, for a sequence of `length` positions at `steps` steps.
    pub fn new(length: usize, steps: usize, functions: &[&Function]) -> Assembly {
        // A function of one position has an axis of 1 where another, which gives the last position only, has none.
        let whole = functions.iter().flat_map(|f| f.whole.clone()).collect();
        Assembly { length, steps, whole, outputs: TensorMap::new(), stacked: Vec::new(), trips: 0 }
    }
    /// Adds the outputs of a call whose first row is row `at` of the run. Memory of `buffers` may be taken away.
    pub fn add(
        &mut self,
        entry: &Entry,
        call: &Call,
        at: usize,
        buffers: &mut [Buffer],
        trips: usize,
    ) -> Result<(), Error> {
        self.trips = self.trips.max(trips);
        for (output, buffer) in entry.outputs.iter().zip(buffers) {
            let ty = &entry.buffers[output.buffer].ty;
            let blocks = if output.stacked { ty.shape.first().copied().unwrap_or(1).min(self.steps) } else { 1 };
            let filled = if output.stacked { trips.min(blocks) } else { 1 };
            if output.stacked && !self.stacked.contains(&output.name) {
                self.stacked.push(output.name.clone());
            }
            if call.rows == self.length && call.chunk == self.length {
                // The whole run in one call: no copy.
                let mut shape = ty.shape.clone();
                let mut data = std::mem::replace(buffer, Buffer::empty());
                if output.stacked && !shape.is_empty() {
                    data.truncate(data.len() / shape[0].max(1) * filled);
                    shape[0] = filled;
                }
                self.outputs.insert(output.name.clone(), Tensor { dtype: ty.dtype, shape, data });
            } else {
                self.put(&output.name, ty, output.stacked.then_some((blocks, filled)), call, at, buffer)?;
            }
        }
        Ok(())
    }
    /// Adds the carried tensors of each step of a call.
    pub fn add_states(&mut self, entry: &Entry, call: &Call, at: usize, states: &States) -> Result<(), Error> {
        let last_loop =
            entry.steps.iter().rev().find_map(|s| if let Step::Loop(inner) = s { Some(inner) } else { None });
        let carried =
            last_loop.into_iter().flat_map(|l| &l.carried).map(|&b| &entry.buffers[b].ty).filter(|t| !t.cache);
        let carried: Vec<&Type> = carried.collect();
        for (step, tensors) in states.iter().enumerate() {
            for (index, (ty, bytes)) in carried.iter().zip(tensors).enumerate() {
                let suffix = if index == 0 { String::new() } else { format!(".{index}") };
                self.put(&format!("state_{}{suffix}", step + 1), ty, None, call, at, bytes)?;
            }
        }
        Ok(())
    }
    /// The outputs, stacked ones cut to the steps taken.
    pub fn finish(mut self) -> TensorMap {
        for name in &self.stacked {
            if let Some(tensor) = self.outputs.get_mut(name)
                && let Some(leading) = tensor.shape.first_mut()
                && *leading > self.trips
            {
                tensor.data.truncate(tensor.data.len() / *leading * self.trips);
                *leading = self.trips;
            }
        }
        self.outputs
    }
    /// `stacked`: leading entries of the run's tensor, and how many of them this call has filled.
    fn put(
        &mut self,
        name: &str,
        ty: &Type,
        stacked: Option<(usize, usize)>,
        call: &Call,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let lead = usize::from(stacked.is_some());
        let (blocks, filled) = stacked.unwrap_or((1, 1));
        let layout = if ty.shape.get(lead + 1) == Some(&call.chunk) && !self.whole.iter().any(|w| w == name) {
            let row = ty.shape[lead + 2..].iter().product::<usize>() * ty.dtype.bytes();
            Layout::Rows { outer: filled * ty.shape[lead], bytes: row }
        } else {
            Layout::Whole
        };
        let mut shape = ty.shape.clone();
        if stacked.is_some() {
            shape[0] = blocks;
        }
        if matches!(layout, Layout::Rows { .. }) {
            shape[lead + 1] = self.length;
        }
        let tensor = match self.outputs.get_mut(name) {
            Some(tensor) if tensor.shape == shape && tensor.dtype == ty.dtype => tensor,
            _ => self.outputs.entry(name.to_string()).insert_entry(Tensor::zeros(ty.dtype, &shape)?).into_mut(),
        };
        match layout {
            Layout::Whole => {
                let kept = tensor.data.len().min(bytes.len()) / blocks.max(1) * filled;
                tensor.data.fill(0);
                tensor.data[..kept].copy_from_slice(&bytes[..kept]);
            }
            Layout::Rows { outer, bytes: row } if row > 0 => {
                let targets = tensor.data.chunks_exact_mut(self.length * row);
                for (target, source) in targets.zip(bytes.chunks_exact(call.chunk * row)).take(outer) {
                    target[at * row..][..call.rows * row].copy_from_slice(&source[..call.rows * row]);
                }
            }
            Layout::Rows { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdc_ir::DType;

    /// A function that gives the last position only, and a function of one position: the run gives the last call's.
    #[test]
    fn outputs_of_the_last_position() {
        let mut assembly = Assembly::new(9, 1, &[]);
        assembly.whole = vec!["logits".into()];
        let ty = Type::f32([1, 1, 4]);
        let call = |start, rows, chunk| Call { entry: 0, start, rows, chunk };
        assembly.put("logits", &ty, None, &call(0, 8, 8), 0, &[1; 16]).unwrap();
        assembly.put("logits", &ty, None, &call(8, 1, 1), 8, &[2; 16]).unwrap();
        // A stacked one of two batch rows, of which the second call fills one step of two.
        let stacked = Type::f32([2, 2, 4, 1]);
        assembly.stacked.push("all".into());
        let bytes: Vec<u8> = (0..64).collect();
        assembly.put("all", &stacked, Some((2, 2)), &call(0, 4, 4), 0, &bytes).unwrap();
        assembly.put("all", &stacked, Some((2, 1)), &call(4, 3, 4), 4, &bytes).unwrap();
        assembly.trips = 2;
        let outputs = assembly.finish();
        assert_eq!((&outputs["logits"].shape[..], &outputs["logits"].data[..]), (&[1, 1, 4][..], &[2; 16][..]));
        let all = &outputs["all"];
        assert_eq!((&all.shape[..], all.dtype), (&[2, 2, 9, 1][..], DType::F32));
        let row = |step: usize, batch: usize, at: usize| &all.data[((step * 2 + batch) * 9 + at) * 4..][..4];
        assert_eq!(row(1, 1, 3), &bytes[60..64]);
        assert_eq!(row(0, 1, 6), &bytes[24..28]);
        assert_eq!(row(0, 1, 7), [0; 4]);
        assert_eq!(row(1, 0, 4), [0; 4]);
    }
}
