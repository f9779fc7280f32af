//! Runs a program's schedule on real memory, kernels by the reference interpreter, and checks the plan on the way:
//! - a launch reads bytes only if the last write to them was to the buffer that it reads;
//! - between two barriers no launch writes what another touches, unless the later one waits;
//! - a launch writes over its own arguments only where a result depends on the argument element by element: the kernel runs
//!   again with some elements changed.
//!
//! Memory starts as NaNs, but for outputs that are stacks, which callers cut.
#![allow(clippy::unwrap_used)]
use rdc_ir::interp::{self, Data, Inputs, Tensor};
use rdc_ir::packing::{Element, Packing, row_scale};
use rdc_ir::program::{
    Advance, Entry, Kernel, KernelKind, Launch, LoopStep, Offset, Piece, Place, Program, Step, Weight, WeightSource,
};
use rdc_ir::{DType, Module, Opcode, Type, tables};
use std::collections::HashMap;
use std::rc::Rc;

/// Tensors by name.
pub type Tensors = HashMap<String, Rc<Tensor<f32>>>;

/// What a run of an entry gives.
pub struct Outcome {
    /// Outputs by name; stacked ones are whole.
    pub outputs: HashMap<String, Tensor<f32>>,
    /// Caches by name.
    pub caches: HashMap<String, Tensor<f32>>,
    /// Carried tensors after each iteration.
    pub states: Vec<Vec<Tensor<f32>>>,
    /// Parameters that the entry has updated, by name.
    pub updated: HashMap<String, Tensor<f32>>,
}

/// Runs an entry.
pub fn run(program: &Program, entry: &str, params: &Tensors, args: &Tensors) -> Outcome {
    let entry = program.entries.iter().find(|e| e.name == entry).unwrap();
    let weights: Vec<Tensor<f32>> = program.weights.iter().map(|w| evaluate(w, params)).collect();
    let spaces = Spaces::new(entry);
    let mut machine = Machine {
        program,
        entry,
        weights,
        spaces,
        cells: HashMap::new(),
        open: vec![],
        launched: None,
        states: vec![],
    };
    for buffer in 0..entry.buffers.len() {
        if let Place::Weight(w) = entry.buffers[buffer].place
            && machine.spaces.memory.contains_key(&Space::Weight(w))
        {
            let tensor = machine.weights[w].clone();
            machine.store(buffer, 0, (&tensor.ty.clone(), None), &tensor);
        }
    }
    for (input, buffer) in entry.inputs.iter().map(|i| (i, &entry.buffers[i.buffer])) {
        let tensor = args.get(&input.name).unwrap();
        machine.store(input.buffer, 0, (&buffer.ty, None), tensor);
    }
    machine.steps(&entry.steps, 0);
    let outputs = entry.outputs.iter().map(|o| {
        let buffer = &entry.buffers[o.buffer];
        (o.name.clone(), machine.load(o.buffer, 0, (&buffer.ty, buffer.pitch), true))
    });
    let outputs = outputs.collect();
    let caches = entry.inputs.iter().filter(|i| entry.buffers[i.buffer].ty.cache);
    let caches = caches
        .map(|i| (i.name.clone(), machine.load(i.buffer, 0, (&entry.buffers[i.buffer].ty, None), false)))
        .collect();
    let weights = entry.buffers.iter().enumerate().filter_map(|(buffer, b)| match b.place {
        Place::Weight(w) => Some((buffer, w)),
        _ => None,
    });
    let updated = weights.filter_map(|(buffer, w)| {
        let weight = &program.weights[w];
        let name = match &weight.source {
            WeightSource::Param { name, .. } | WeightSource::State { name } => name,
            _ => return None,
        };
        Some((name.clone(), machine.load(buffer, 0, (&weight.ty, None), true)))
    });
    let updated = updated.collect();
    Outcome { outputs, caches, states: machine.states, updated }
}

/// The bytes of the arena, inputs and outputs, and for each byte of the arena the buffer last written there.
struct Spaces {
    memory: HashMap<Space, Vec<u8>>,
    owner: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Space {
    Arena,
    Input(usize),
    Output(usize),
    Weight(usize),
}

impl Spaces {
    fn new(entry: &Entry) -> Spaces {
        let mut memory = HashMap::from([(Space::Arena, vec![0xff; entry.arena])]);
        for (index, buffer) in entry.buffers.iter().enumerate() {
            let is_cut = |&index: &usize| entry.outputs.iter().any(|o| o.stacked && o.buffer == index);
            let fill = if is_cut(&index) { 0 } else { 0xff };
            let bytes = vec![fill; buffer.bytes()];
            match buffer.place {
                Place::Input(i) => memory.insert(Space::Input(i), bytes),
                Place::Weight(i) if buffer.ty.dtype == DType::F32 => memory.insert(Space::Weight(i), bytes),
                Place::Output(i) => memory.insert(Space::Output(i), bytes),
                Place::Arena(at) => {
                    assert!(at % 64 == 0 && at + buffer.bytes() <= entry.arena, "{} leaves the arena", buffer.name);
                    None
                }
                _ => None,
            };
        }
        Spaces { memory, owner: vec![usize::MAX; entry.arena] }
    }
}

/// Memory touched since the last barrier, and whether it was written.
#[derive(Clone, Copy, Debug)]
struct Touch {
    space: Space,
    from: usize,
    to: usize,
    write: bool,
    /// Whether a launch touches it.
    launch: bool,
}

struct Machine<'p> {
    program: &'p Program,
    entry: &'p Entry,
    weights: Vec<Tensor<f32>>,
    spaces: Spaces,
    /// Thread-private scalars.
    cells: HashMap<usize, Tensor<f32>>,
    open: Vec<Touch>,
    /// While a launch runs, whether it waits for others.
    launched: Option<bool>,
    states: Vec<Vec<Tensor<f32>>>,
}

impl Machine<'_> {
    fn steps(&mut self, steps: &[Step], step: usize) {
        for node in steps {
            match node {
                Step::Launch(launch) => {
                    self.launched = Some(launch.waits);
                    self.launch(launch, step);
                    self.launched = None;
                }
                Step::Copy { dst, src } => {
                    let (from, to) = (&self.entry.buffers[*src], &self.entry.buffers[*dst]);
                    let ty = (&from.ty, from.pitch);
                    let tensor = self.load(*src, 0, ty, true);
                    assert_eq!((from.bytes(), from.pitch), (to.bytes(), to.pitch));
                    self.touch(*src, 0, from.bytes(), false);
                    self.touch(*dst, 0, to.bytes(), true);
                    self.store(*dst, 0, ty, &tensor);
                }
                Step::Zero { buffer, beyond } => {
                    let from = beyond.map_or(0, |beyond| self.number(beyond.trips) * beyond.stride);
                    let ty = Type::new(DType::Bool, [self.entry.buffers[*buffer].bytes() - from]);
                    self.touch(*buffer, from, ty.bytes(), true);
                    self.store(*buffer, from, (&ty, None), &Tensor::zeros(&ty));
                }
                Step::Barrier => self.open.clear(),
                Step::Loop(inner) => self.repeat(inner),
            }
        }
    }
    fn repeat(&mut self, inner: &LoopStep) {
        let Advance { step, is_last, trips, exit } = inner.advance;
        self.touch(inner.steps, 0, 4, false);
        let steps = self.number(inner.steps);
        assert!(steps <= inner.max_steps);
        let mut taken = 0;
        self.cells.insert(trips, Tensor::int(0));
        while taken < steps {
            let now = if inner.reverse { steps - 1 - taken } else { taken };
            self.cells.insert(step, Tensor::int(now as i32));
            self.cells.insert(is_last, Tensor::bool(now + 1 == steps));
            self.steps(&inner.body, now);
            taken += 1;
            let done = exit.is_some_and(|exit| {
                self.touch(exit.done, 0, 1, false);
                assert_eq!(self.entry.buffers[exit.allowed].place, Place::MayExit);
                self.load(exit.done, 0, (&Type::scalar(DType::Bool), None), true).bools()[0]
            });
            self.cells.insert(trips, Tensor::int(taken as i32));
            let carried = inner.carried.iter().map(|&b| self.load(b, 0, (&self.entry.buffers[b].ty, None), true));
            self.states.push(carried.collect());
            if done {
                break;
            }
        }
    }
    /// A number in a buffer.
    fn number(&self, buffer: usize) -> usize {
        self.load(buffer, 0, (&Type::scalar(DType::I32), None), true).ints()[0] as usize
    }
    /// The buffer that one stands for.
    fn behind(&self, buffer: usize) -> usize {
        match self.entry.buffers[buffer].place {
            Place::Pair { even, odd, trips } => [even, odd][self.number(trips) % 2],
            _ => buffer,
        }
    }
    fn launch(&mut self, launch: &Launch, step: usize) {
        let kernel = &self.program.kernels[launch.kernel];
        let (func, body) = (&kernel.func, &kernel.func.regions[kernel.func.body]);
        let offset = |offset: Offset| match offset {
            Offset::Fixed(bytes) => bytes,
            Offset::Step { stride } => step * stride,
            Offset::Slot { policy, layer, layers, base, stride } => (base + policy.slot(step, layer, layers)) * stride,
        };
        let updated =
            |v| body.ops.iter().any(|&op| func.ops[op].opcode == Opcode::CacheUpdate && func.ops[op].operands[0] == v);
        let mut inputs = Inputs::default();
        let mut places = Vec::new();
        // What the launch itself reads is another matter.
        let before = self.open.len();
        let pointers = &kernel.pointers;
        for (pointer, at) in pointers.iter().zip(&launch.args) {
            assert_eq!(self.entry.buffers[at.buffer].pitch, pointer.pitch, "{}", kernel.name);
        }
        for ((arg, &value), (pointer, at)) in func.args.iter().zip(&body.args).zip(pointers.iter().zip(&launch.args)) {
            let (bytes, write) = (pointer.bytes(), updated(value));
            self.touch(at.buffer, offset(at.offset), bytes, write);
            let tensor = self.load(at.buffer, offset(at.offset), (&pointer.ty, pointer.pitch), !write);
            inputs.args.insert(arg.name.clone(), Rc::new(tensor));
            if !write && let Some((space, from)) = self.place(at.buffer, offset(at.offset), bytes) {
                places.push((arg.name.clone(), space, from, from + bytes));
            }
        }
        let module = Module { funcs: vec![func.clone()], ..Module::default() };
        let results = interp::run(&module, &func.name, &inputs, &mut interp::Options::default())
            .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let mut pointers = pointers.iter().zip(&launch.args).skip(body.args.len());
        let mut own: Vec<Touch> = Vec::new();
        for (&value, (result, tensor)) in body.yields.iter().zip(&results.tensors) {
            let ty = func.ty(value);
            let (at, pitch) = if ty.cache {
                let update = &func.ops[func.def_op(value).unwrap()];
                let index = body.args.iter().position(|&v| v == update.operands[0]).unwrap();
                (&launch.args[index], None)
            } else {
                let (pointer, at) = pointers.next().unwrap();
                let bytes = pointer.bytes();
                if let Some((space, from)) = self.place(at.buffer, offset(at.offset), bytes) {
                    let to = from + bytes;
                    assert!(!own.iter().any(|o| o.space == space && o.from < to && from < o.to), "results overlap");
                    own.push(Touch { space, from, to, write: true, launch: true });
                    let over: Vec<&String> = places
                        .iter()
                        .filter(|p| p.1 == space && p.2 < to && from < p.3)
                        .map(|p| {
                            assert_eq!((p.2, p.3), (from, to), "{} writes over a part of an argument", kernel.name);
                            &p.0
                        })
                        .collect();
                    if !over.is_empty() {
                        assert_element_by_element(kernel, &module, &inputs, &over, result, &results);
                    }
                }
                self.touch_apart(before, at.buffer, offset(at.offset), bytes);
                (at, pointer.pitch)
            };
            self.store(at.buffer, offset(at.offset), (ty, pitch), tensor);
        }
        assert!(pointers.next().is_none());
    }

    fn place(&self, buffer: usize, offset: usize, bytes: usize) -> Option<(Space, usize)> {
        let at = &self.entry.buffers[self.behind(buffer)];
        assert!(offset + bytes <= at.bytes(), "{offset} + {bytes} is outside of {} ({})", at.name, at.ty);
        match at.place {
            Place::Arena(start) => Some((Space::Arena, start + offset)),
            Place::Input(i) => Some((Space::Input(i), offset)),
            Place::Output(i) => Some((Space::Output(i), offset)),
            Place::Weight(i) if at.ty.dtype == DType::F32 => Some((Space::Weight(i), offset)),
            _ => None,
        }
    }
    fn touch(&mut self, buffer: usize, offset: usize, bytes: usize, write: bool) {
        let Some((space, from)) = self.place(buffer, offset, bytes) else {
            assert!(!write, "a weight or cell is written");
            return;
        };
        self.note(self.open.len(), Touch { space, from, to: from + bytes, write, launch: self.launched.is_some() });
    }
    /// A writing by a launch whose own readings are `open[own..]`.
    fn touch_apart(&mut self, own: usize, buffer: usize, offset: usize, bytes: usize) {
        let place = self.place(buffer, offset, bytes);
        let (space, from) = place.unwrap_or_else(|| panic!("a weight or cell is written"));
        self.note(own, Touch { space, from, to: from + bytes, write: true, launch: true });
    }
    fn note(&mut self, before: usize, new: Touch) {
        let Touch { space, write, .. } = new;
        for old in &self.open[..before] {
            let meets = old.space == space && old.from < new.to && new.from < old.to && (write || old.write);
            let waits = old.launch && self.launched == Some(true);
            assert!(!meets || waits, "race: {old:?} and {new:?}");
        }
        self.open.push(new);
    }
    /// A tensor of that type and pitch from a buffer. `checked`: it must have been written there.
    fn load(&self, buffer: usize, offset: usize, (ty, pitch): (&Type, Option<usize>), checked: bool) -> Tensor<f32> {
        let behind = self.behind(buffer);
        let at = &self.entry.buffers[behind];
        match at.place {
            Place::Weight(w) if at.ty.dtype != DType::F32 => return part(&self.weights[w], offset, ty),
            place if place.is_cell() => return self.cells[&buffer].clone(),
            _ => {}
        }
        let size = ty.bytes_at(pitch);
        let (space, from) = self.place(buffer, offset, size).unwrap();
        if space == Space::Arena && checked {
            let owners = &self.spaces.owner[from..from + size];
            let wrong = owners.iter().find(|&&o| o != behind);
            assert!(wrong.is_none(), "{} is overwritten or unwritten: {wrong:?}", at.name);
        }
        let rows = self.spaces.memory[&space][from..from + size].chunks_exact(pitch.unwrap_or(ty.row_bytes()).max(1));
        let bytes: Vec<u8> = rows.flat_map(|row| &row[..ty.row_bytes()]).copied().collect();
        let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let data = match ty.dtype {
            DType::F32 => Data::Float(words().map(f32::from_le_bytes).collect()),
            DType::I32 => Data::Int(words().map(i32::from_le_bytes).collect()),
            DType::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
            DType::BF16 => Data::Float(bytes.chunks_exact(2).map(from_bf16).collect()),
            DType::I8 => Data::Byte(bytes.iter().map(|&b| b as i8).collect()),
        };
        swap_heads(Tensor { ty: ty.clone(), data }, false)
    }
    fn store(&mut self, buffer: usize, offset: usize, (ty, pitch): (&Type, Option<usize>), tensor: &Tensor<f32>) {
        let size = ty.bytes_at(pitch);
        let (space, from) = self.place(buffer, offset, size).unwrap();
        let tensor = swap_heads(Tensor { ty: ty.clone(), data: tensor.data.clone() }, true);
        let bytes: Vec<u8> = match &tensor.data {
            Data::Float(v) if ty.dtype == DType::BF16 => {
                v.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
            }
            Data::Float(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::Int(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Data::Bool(v) => v.iter().map(|&v| v as u8).collect(),
            Data::Byte(v) => v.iter().map(|&v| v as u8).collect(),
        };
        let memory = &mut self.spaces.memory.get_mut(&space).unwrap()[from..from + size];
        let row = ty.row_bytes().max(1);
        for (to, row) in memory.chunks_exact_mut(pitch.unwrap_or(row)).zip(bytes.chunks_exact(row)) {
            to[..row.len()].copy_from_slice(row);
        }
        if space == Space::Arena {
            let behind = self.behind(buffer);
            self.spaces.owner[from..from + size].fill(behind);
        }
    }
}

/// The kernel again, with some elements of an argument changed (as all the arguments that share its memory): in the result
/// they change at most that place, or of a row kernel that row; and other results do not depend on it at all, unless every
/// operation is elementwise, or of a row kernel they have one element for that row.
fn assert_element_by_element(
    kernel: &Kernel,
    module: &Module,
    inputs: &Inputs<f32>,
    over: &[&String],
    result: &str,
    results: &interp::Outputs<f32>,
) {
    let is_base = matches!(kernel.kind, KernelKind::ScatterAdd(_));
    let elements = inputs.args[over[0]].ty.elements();
    let rows = match &kernel.kind {
        KernelKind::Rows(body) => body.graph.rows,
        _ => elements,
    };
    let width = elements / rows;
    for index in [0, elements / 2, elements - 1] {
        let mut changed = inputs.clone();
        for name in over {
            let mut tensor = (*changed.args[*name]).clone();
            if let Data::Float(values) = &mut tensor.data {
                values[index] += 1.5;
            }
            changed.args.insert((*name).clone(), Rc::new(tensor));
        }
        let again = interp::run(module, &kernel.func.name, &changed, &mut interp::Options::default()).unwrap();
        for ((name, old), (_, new)) in results.tensors.iter().zip(&again.tensors) {
            let (old, new) = (old.to_f64(), new.to_f64());
            let places: Vec<usize> = (0..old.len()).filter(|&i| old[i].to_bits() != new[i].to_bits()).collect();
            let is_column = width > 1 && new.len() == rows;
            let alike = |&i: &usize| match is_column {
                true => i == index / width,
                false => i == index || name == result && i / width == index / width,
            };
            assert!(places.iter().all(alike), "{}: {name} changes at {places:?}, not {index}", kernel.name);
            assert!(name == result || !is_base || places.is_empty(), "{}", kernel.name);
        }
    }
}

fn from_bf16(bytes: &[u8]) -> f32 {
    f32::from_bits((u16::from_le_bytes([bytes[0], bytes[1]]) as u32) << 16)
}

/// Between logical `[.., T, H, D]` and physical `[.., H, T, D]` of a cache.
fn swap_heads(tensor: Tensor<f32>, to_physical: bool) -> Tensor<f32> {
    if !tensor.ty.cache {
        return tensor;
    }
    let &[ref lead @ .., t, h, d] = &tensor.ty.shape[..] else { panic!("{}", tensor.ty) };
    let mut out = vec![0.0; tensor.ty.elements()];
    for block in 0..lead.iter().product::<usize>() {
        for (i, j) in (0..t).flat_map(|i| (0..h).map(move |j| (i, j))) {
            let (logical, physical) = ((block * t + i) * h + j, (block * h + j) * t + i);
            let (to, from) = if to_physical { (physical, logical) } else { (logical, physical) };
            out[to * d..][..d].copy_from_slice(&tensor.floats()[from * d..][..d]);
        }
    }
    Tensor { data: Data::Float(out), ty: tensor.ty }
}

fn part(weight: &Tensor<f32>, offset: usize, ty: &Type) -> Tensor<f32> {
    let first = offset / weight.ty.dtype.bytes();
    let data = match &weight.data {
        Data::Float(v) => Data::Float(v[first..first + ty.elements()].to_vec()),
        Data::Byte(v) => Data::Byte(v[first..first + ty.elements()].to_vec()),
        _ => panic!("{ty}"),
    };
    Tensor { ty: ty.clone(), data }
}

/// Evaluates a recipe.
pub fn evaluate(weight: &Weight, params: &Tensors) -> Tensor<f32> {
    let whole = |values: Vec<f32>| Tensor::floats_of(weight.ty.clone(), values);
    let row = |pieces: &[Piece], mut n: usize| -> Vec<f32> {
        let piece = pieces.iter().find(|p| {
            let len = p.rows.1 - p.rows.0;
            let here = n < len;
            n -= if here { 0 } else { len };
            here
        });
        let piece = piece.unwrap();
        let param = &params[&piece.param];
        let width = param.ty.last();
        param.floats()[(piece.rows.0 + n) * width..][..width].to_vec()
    };
    let scales = |pieces: &[Piece]| -> Vec<f32> {
        let n = pieces.iter().map(|p| p.rows.1 - p.rows.0).sum();
        (0..n).map(|i| row_scale(&row(pieces, i))).collect()
    };
    match &weight.source {
        WeightSource::Param { name, via_bf16: false } => whole(params[name].floats().to_vec()),
        WeightSource::Param { name, via_bf16: true } => {
            whole(params[name].floats().iter().map(|&v| interp::Real::to_bf16(v)).collect())
        }
        WeightSource::State { name } => whole(params[name].floats().to_vec()),
        WeightSource::RopeTable { len, dim, base } => whole(tables::rope_table(*len, *dim, *base)),
        WeightSource::SinusoidTable { len, dim, base } => whole(tables::sinusoid_table(*len, *dim, *base)),
        WeightSource::Scales { pieces } => whole(scales(pieces)),
        WeightSource::Packed { pieces, n, k, nr, parts } => {
            let (packing, all) = (Packing::new(weight.ty.dtype, *n, *k, *nr, *parts), scales(pieces));
            let element = match weight.ty.dtype {
                DType::F32 => Element::F32,
                DType::BF16 => Element::BF16,
                _ => Element::I8(&all),
            };
            let cut = |i: usize, out: &mut [f32]| {
                let mut first = i;
                let piece = pieces.iter().find(|p| {
                    let len = p.rows.1 - p.rows.0;
                    let here = first < len;
                    first -= if here { 0 } else { len };
                    here
                });
                let cols = piece.unwrap().cols;
                out.copy_from_slice(&row(pieces, i)[cols.0..cols.1]);
            };
            let mut bytes = vec![0; weight.ty.bytes()];
            packing.pack_panels(element, 0..packing.panels(), cut, &mut bytes);
            let data = match weight.ty.dtype {
                DType::F32 => {
                    Data::Float(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
                }
                DType::BF16 => Data::Float(bytes.chunks_exact(2).map(from_bf16).collect()),
                _ => Data::Byte(bytes.iter().map(|&b| b as i8).collect()),
            };
            Tensor { ty: weight.ty.clone(), data }
        }
    }
}
