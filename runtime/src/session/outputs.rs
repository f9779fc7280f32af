//! Puts the outputs of the calls of a run together.
use super::pieces::{Call, Function};
use crate::Error;
use crate::exec::States;
use crate::memory::Buffer;
use crate::tensor::{Tensor, TensorMap};
use rdc_ir::Type;
use rdc_ir::positions::{Place, Positions};
use rdc_ir::program::{Entry, Step};

/// The outputs of a run, as far as its calls have come.
pub(super) struct Assembly {
    length: usize,
    steps: usize,
    outputs: TensorMap,
    /// Names of stacked outputs.
    stacked: Vec<String>,
    /// The most steps that a call took.
    trips: usize,
}

impl Assembly {
    /// No outputs yet, for a sequence of `length` positions at `steps` steps.
    pub fn new(length: usize, steps: usize) -> Assembly {
        Assembly { length, steps, outputs: TensorMap::new(), stacked: Vec::new(), trips: 0 }
    }
    /// Adds the outputs of a call whose first row is row `at` of the run. Memory of `buffers` may be taken away.
    pub fn add(
        &mut self,
        (entry, function): (&Entry, &Function),
        call: &Call,
        at: usize,
        buffers: &mut [Buffer],
        trips: usize,
    ) -> Result<(), Error> {
        self.trips = self.trips.max(trips);
        for (output, buffer) in entry.outputs.iter().zip(buffers) {
            let buffer_ty = &entry.buffers[output.buffer].ty;
            let shape =
                function.shapes.get(&output.name).filter(|s| s.iter().product::<usize>() == buffer_ty.elements());
            let ty = &shape.map_or_else(|| buffer_ty.clone(), |shape| buffer_ty.with_shape(shape.clone()));
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
                let place = function.positions.outputs.get(&output.name).copied();
                self.put(&output.name, (ty, place), output.stacked.then_some((blocks, filled)), call, at, buffer)?;
            }
        }
        Ok(())
    }
    /// Adds the carried tensors of each step of a call.
    pub fn add_states(
        &mut self,
        (entry, positions): (&Entry, &Positions),
        call: &Call,
        at: usize,
        states: &States,
    ) -> Result<(), Error> {
        if call.rows != self.length && !positions.carried_second {
            let message = "the loop carries positions on another axis than the second";
            return Err(Error::Input(format!("{message}: its states can be given of a whole sequence only")));
        }
        let last_loop =
            entry.steps.iter().rev().find_map(|s| if let Step::Loop(inner) = s { Some(inner) } else { None });
        let carried =
            last_loop.into_iter().flat_map(|l| &l.carried).map(|&b| &entry.buffers[b].ty).filter(|t| !t.cache);
        let carried: Vec<&Type> = carried.collect();
        for (step, tensors) in states.iter().enumerate() {
            for (index, (ty, bytes)) in carried.iter().zip(tensors).enumerate() {
                let suffix = if index == 0 { String::new() } else { format!(".{index}") };
                let place = (ty.shape.get(1) == Some(&call.chunk)).then_some(Place::Axis { axis: 1, outer: 1 });
                self.put(&format!("state_{}{suffix}", step + 1), (ty, place), None, call, at, bytes)?;
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
    /// `place` is where positions are in the tensor of a call; `stacked`: leading entries of the run's tensor, and how many of them this
    /// call has filled.
    fn put(
        &mut self,
        name: &str,
        (ty, place): (&Type, Option<Place>),
        stacked: Option<(usize, usize)>,
        call: &Call,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let (blocks, filled) = stacked.unwrap_or((1, 1));
        let mut shape = ty.shape.clone();
        if stacked.is_some() {
            shape[0] = blocks;
        }
        // Stretches of positions in all, and bytes of a position in each.
        let mut stretches = None;
        if let Some(Place::Axis { axis, outer }) = place {
            let each = shape[axis] / (outer * call.chunk);
            let row = each * shape[axis + 1..].iter().product::<usize>() * ty.dtype.bytes();
            stretches = Some((shape[..axis].iter().product::<usize>() * outer / blocks.max(1) * filled, row));
            shape[axis] = outer * self.length * each;
        }
        let tensor = match self.outputs.get_mut(name) {
            Some(tensor) if tensor.shape == shape && tensor.dtype == ty.dtype => tensor,
            _ => self.outputs.entry(name.to_string()).insert_entry(Tensor::zeros(ty.dtype, &shape)?).into_mut(),
        };
        match stretches {
            None => {
                let kept = tensor.data.len().min(bytes.len()) / blocks.max(1) * filled;
                tensor.data.fill(0);
                tensor.data[..kept].copy_from_slice(&bytes[..kept]);
            }
            Some((stretches, row)) if row > 0 => {
                let targets = tensor.data.chunks_exact_mut(self.length * row);
                for (target, source) in targets.zip(bytes.chunks_exact(call.chunk * row)).take(stretches) {
                    target[at * row..][..call.rows * row].copy_from_slice(&source[..call.rows * row]);
                }
            }
            Some(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdc_ir::DType;

    const ROWS: Option<Place> = Some(Place::Axis { axis: 1, outer: 1 });

    fn call(start: usize, rows: usize, chunk: usize) -> Call {
        Call { entry: 0, start, rows, chunk }
    }

    /// A function that gives the last position only, and a function of one position: the run gives the last call's.
    #[test]
    fn outputs_of_the_last_position() {
        let mut assembly = Assembly::new(9, 1);
        let ty = Type::f32([1, 1, 4]);
        assembly.put("logits", (&ty, Some(Place::Last)), None, &call(0, 8, 8), 0, &[1; 16]).unwrap();
        assembly.put("logits", (&ty, Some(Place::Last)), None, &call(8, 1, 1), 8, &[2; 16]).unwrap();
        // A stacked one of two batch rows, of which the second call fills one step of two.
        let stacked = (&Type::f32([2, 2, 4, 1]), Some(Place::Axis { axis: 2, outer: 1 }));
        assembly.stacked.push("all".into());
        let bytes: Vec<u8> = (0..64).collect();
        assembly.put("all", stacked, Some((2, 2)), &call(0, 4, 4), 0, &bytes).unwrap();
        assembly.put("all", stacked, Some((2, 1)), &call(4, 3, 4), 4, &bytes).unwrap();
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

    /// Positions on other axes, and folded with others, come together in order.
    #[test]
    fn positions_on_any_axis() {
        let mut assembly = Assembly::new(3, 1);
        // Two rows of a batch, two numbers a position: [2, S, 2], [2, 2, S], [2 · S, 2], [2, S · 2].
        let rows = |from: usize, to: usize| {
            let numbers = (0..2).flat_map(move |b| (from..to).flat_map(move |s| (0..2).map(move |d| [b, s, d])));
            numbers.map(|[b, s, d]| (b * 100 + s * 10 + d) as f32).collect::<Vec<_>>()
        };
        let turned = |from: usize, to: usize| {
            let numbers = (0..2).flat_map(move |b| (0..2).flat_map(move |d| (from..to).map(move |s| [b, s, d])));
            numbers.map(|[b, s, d]| (b * 100 + s * 10 + d) as f32).collect::<Vec<_>>()
        };
        let place = |axis, outer| Some(Place::Axis { axis, outer });
        // A call of two positions, then one of a position and one of padding.
        for (at, given) in [(0, 2), (2, 1)] {
            let call = call(at, given, 2);
            let mut put = |name: &str, shape: &[usize], place, numbers: Vec<f32>| {
                assembly
                    .put(name, (&Type::f32(shape), place), None, &call, at, bytemuck::cast_slice(&numbers))
                    .unwrap();
            };
            put("plain", &[2, 2, 2], ROWS, rows(at, at + 2));
            put("turned", &[2, 2, 2], place(2, 1), turned(at, at + 2));
            put("flat", &[4, 2], place(0, 2), rows(at, at + 2));
            put("wide", &[2, 4], place(1, 1), rows(at, at + 2));
            put("none", &[2], None, vec![at as f32; 2]);
        }
        let outputs = assembly.finish();
        let expect = |name: &str, shape: &[usize], numbers: Vec<f32>| {
            assert_eq!((&outputs[name].shape[..], outputs[name].as_f32().unwrap()), (shape, &numbers[..]), "{name}");
        };
        expect("plain", &[2, 3, 2], rows(0, 3));
        expect("turned", &[2, 2, 3], turned(0, 3));
        expect("flat", &[6, 2], rows(0, 3));
        expect("wide", &[2, 6], rows(0, 3));
        expect("none", &[2], vec![2.0; 2]);
    }
}
