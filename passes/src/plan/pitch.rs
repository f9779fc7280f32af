//! Rows that lie further apart than they are long.
//!
//! A contraction reads many rows side by side. Where those would keep each other out of a cache (on a CPU if a row is a multiple of
//! 4 KiB, since they all fall into one set of the first level), a kernel would have to copy them first; what it writes collides in the
//! same way. Such activations get the pitch that the machine asks for ([`Machine::pitch`]), if every kernel that touches them can
//! address such rows. Memory of the caller keeps its rows, and so does what a loop carries, since it may be recorded.
use crate::tile::Machine;
use petgraph::unionfind::UnionFind;
use rdc_ir::program::{Buffer, Entry, Kernel, KernelKind, LaunchArg, LoopStep, Offset, Place, Pointer, Step};
use rdc_ir::{DType, Type};
use std::collections::{HashMap, HashSet};

/// Sets the pitch of the buffers of entries that are not yet in the arena, and of the pointers that they are passed for.
pub fn set(entries: &mut [Entry], kernels: &mut [Kernel], machine: &dyn Machine) {
    let classes = Classes::new(entries, kernels, machine);
    let (mut spread, sets) = (classes.spread, classes.sets.into_labeling());
    // What one kernel cannot address, no kernel sees.
    for (node, &set) in sets.iter().enumerate() {
        spread[set] &= spread[node];
    }
    let wanted: HashSet<usize> = (0..kernels.len())
        .filter(|&k| matches!(kernels[k].kind, KernelKind::Matmul(_) | KernelKind::Product(_)))
        .flat_map(|k| (0..kernels[k].pointers.len()).map(move |pointer| (k, pointer)))
        .map(|(k, pointer)| sets[classes.pointers[k] + pointer])
        .filter(|&set| spread[set])
        .collect();
    // The rows of one set are equally long, in as many buffers as it has.
    let mut pitches = HashMap::new();
    for (entry, first) in entries.iter().zip(&classes.buffers) {
        let sets = sets[*first..].iter().zip(&entry.buffers).filter(|(set, _)| wanted.contains(set));
        pitches.extend(sets.filter_map(|(&set, buffer)| Some((set, pitch(buffer, machine)?))));
    }
    let chosen = |node: usize| pitches.get(&sets[node]).copied();
    for (k, kernel) in kernels.iter_mut().enumerate() {
        for (index, pointer) in kernel.pointers.iter_mut().enumerate() {
            pointer.pitch = chosen(classes.pointers[k] + index);
        }
    }
    for (entry, first) in entries.iter_mut().zip(classes.buffers) {
        for (index, buffer) in entry.buffers.iter_mut().enumerate() {
            buffer.pitch = chosen(first + index);
        }
        move_args(&mut entry.steps, &entry.buffers);
    }
}

/// Buffers and pointers that stand for the same memory.
struct Classes {
    sets: UnionFind<usize>,
    /// Of each buffer and pointer, whether its rows may lie apart.
    spread: Vec<bool>,
    /// The number of each entry's first buffer, and of each kernel's first pointer.
    buffers: Vec<usize>,
    pointers: Vec<usize>,
}

impl Classes {
    fn new(entries: &[Entry], kernels: &[Kernel], machine: &dyn Machine) -> Classes {
        let mut spread = Vec::new();
        let mut buffers = Vec::new();
        for entry in entries {
            buffers.push(spread.len());
            spread.extend(entry.buffers.iter().map(|buffer| pitch(buffer, machine).is_some()));
            let first = spread.len() - entry.buffers.len();
            entry.outputs.iter().for_each(|output| spread[first + output.buffer] = false);
        }
        let mut pointers = Vec::new();
        for kernel in kernels {
            pointers.push(spread.len());
            spread.extend(kernel.pointers.iter().map(Pointer::may_have_pitch));
        }
        let mut classes = Classes { sets: UnionFind::new(spread.len()), spread, buffers, pointers };
        for (index, entry) in entries.iter().enumerate() {
            let first = classes.buffers[index];
            for buffer in 0..entry.buffers.len() {
                entry.behind(buffer).for_each(|behind| _ = classes.sets.union(first + buffer, first + behind));
            }
            classes.steps(&entry.steps, (first, &entry.buffers), kernels);
        }
        classes
    }
    fn steps(&mut self, steps: &[Step], (first, buffers): (usize, &[Buffer]), kernels: &[Kernel]) {
        for step in steps {
            match step {
                Step::Launch(launch) => {
                    let pointers = self.pointers[launch.kernel];
                    for (index, (arg, pointer)) in launch.args.iter().zip(&kernels[launch.kernel].pointers).enumerate()
                    {
                        self.sets.union(first + arg.buffer, pointers + index);
                        self.spread[pointers + index] &= is_rows_of(&pointer.ty, arg, &buffers[arg.buffer]);
                    }
                }
                Step::Copy { dst, src } => {
                    self.sets.union(first + dst, first + src);
                    self.spread[first + dst] &= buffers[*dst].ty.last() == buffers[*src].ty.last();
                }
                Step::Zero { .. } | Step::Barrier => {}
                Step::Loop(LoopStep { body, carried, .. }) => {
                    carried.iter().for_each(|carried| self.spread[first + carried] = false);
                    self.steps(body, (first, buffers), kernels);
                }
            }
        }
    }
}

/// How far apart the rows of a buffer of the schedule had better lie.
fn pitch(buffer: &Buffer, machine: &dyn Machine) -> Option<usize> {
    let ty = &buffer.ty;
    let own = matches!(buffer.place, Place::Arena(_) | Place::Pair { .. });
    let rows = own && ty.dtype == DType::F32 && !ty.cache;
    rows.then(|| machine.pitch(ty.rows(), ty.last())).flatten()
}

/// Whether an argument of that type is whole rows of a buffer.
fn is_rows_of(ty: &Type, arg: &LaunchArg, buffer: &Buffer) -> bool {
    let whole = |bytes: usize| bytes.is_multiple_of(ty.row_bytes());
    ty.last() == buffer.ty.last()
        && match arg.offset {
            Offset::Fixed(bytes) | Offset::Step { stride: bytes } => whole(bytes),
            Offset::Slot { .. } => false,
        }
}

/// Moves arguments that begin with a later row, or move by rows, as the pitches of their buffers ask.
fn move_args(steps: &mut [Step], buffers: &[Buffer]) {
    for step in steps {
        match step {
            Step::Launch(launch) => {
                for arg in &mut launch.args {
                    let buffer = &buffers[arg.buffer];
                    if let (Some(pitch), Offset::Fixed(bytes) | Offset::Step { stride: bytes }) =
                        (buffer.pitch, &mut arg.offset)
                    {
                        *bytes = *bytes / buffer.ty.row_bytes() * pitch;
                    }
                }
            }
            Step::Loop(inner) => move_args(&mut inner.body, buffers),
            Step::Copy { .. } | Step::Zero { .. } | Step::Barrier => {}
        }
    }
}
