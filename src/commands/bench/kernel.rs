//! One kernel alone, from an artifact: its arguments are zeros, its positions the end of the context.
use super::measure::Need;
use anyhow::{Result, ensure};
use rdc_ir::program::{Buffer, Entry, Input, Launch, LaunchArg, Offset, Place, Step};
use rdc_ir::{ArgRole, DType};
use rdc_runtime::artifact::{Artifact, Meta};
use rdc_runtime::exec::{AfterExit, Executor};
use rdc_runtime::memory;
use rdc_runtime::model::Model;
use rdc_runtime::weights::DrawnSource;
use std::sync::Arc;

/// Kernels that can be launched one at a time.
pub struct Kernels {
    executor: Executor,
    inputs: Vec<memory::Buffer>,
}

impl Kernels {
    /// The kernels whose name contains `name`, in an executor of their own.
    pub fn new(artifact: &Artifact, name: &str, threads: usize) -> Result<Kernels> {
        let mut meta: Meta = artifact.meta().clone();
        let chosen: Vec<usize> =
            (0..meta.program.kernels.len()).filter(|&i| meta.program.kernels[i].name.contains(name)).collect();
        ensure!(!chosen.is_empty(), "{} has no kernel whose name contains `{name}`", artifact.path().display());
        meta.program.entries = chosen.into_iter().map(|index| entry(&meta, index)).collect();
        meta.program.weights.clear();
        let code = artifact.load_code()?;
        let model = Model::from_parts(meta, code, &DrawnSource::new([], 0))?;
        Ok(Kernels { executor: Executor::new(Arc::new(model), threads)?, inputs: Vec::new() })
    }
    /// How many kernels there are.
    pub fn count(&self) -> usize {
        self.executor.model().program().entries.len()
    }
    /// The name of one.
    pub fn name(&self, index: usize) -> &str {
        &self.executor.model().program().entries[index].name
    }
    /// The work of one, all of whose data is read over and over.
    pub fn need(&self, index: usize) -> Need {
        let program = self.executor.model().program();
        let kernel = program.kernels.iter().find(|k| k.name == program.entries[index].name);
        kernel.map_or_else(Need::default, |k| Need {
            flops: k.flops as f64,
            reads: vec![(k.bytes as f64, k.bytes as usize)],
        })
    }
    /// Makes the memory of one; then it can be launched.
    pub fn prepare(&mut self, index: usize) -> Result<()> {
        let model = self.executor.model().clone();
        let entry = &model.program().entries[index];
        self.inputs.clear();
        for input in &entry.inputs {
            let ty = &entry.buffers[input.buffer].ty;
            let mut buffer = memory::Buffer::zeroed(ty.bytes())?;
            if ty.dtype == DType::I32 {
                let last = model.meta().context.saturating_sub(1) as i32;
                let position = if ty.rank() == 1 { last } else { 0 };
                buffer.as_chunks_mut::<4>().0.iter_mut().for_each(|p| *p = position.to_le_bytes());
            }
            self.inputs.push(buffer);
        }
        Ok(())
    }
    /// Launches the one that was prepared.
    pub fn launch(&mut self, index: usize) -> Result<()> {
        let mut inputs: Vec<&mut memory::Buffer> = self.inputs.iter_mut().collect();
        self.executor.run(index, &mut inputs, &mut [], None, AfterExit::Leave)?;
        Ok(())
    }
}

/// A schedule of one launch: the kernel's arguments are inputs of the entry; its results lie in the arena, and so do arguments whose
/// rows are apart.
fn entry(meta: &Meta, index: usize) -> Entry {
    let kernel = &meta.program.kernels[index];
    let (mut buffers, mut inputs, mut arena) = (Vec::<Buffer>::new(), Vec::new(), 0);
    for (index, pointer) in kernel.pointers.iter().enumerate() {
        let is_result = pointer.written && !pointer.ty.cache;
        let given = !is_result && pointer.pitch.is_none();
        let place = if given { Place::Input(inputs.len()) } else { Place::Arena(arena) };
        let name = format!("p{index}");
        if given {
            // Slots of a cache are written in place, which only an input of that role may be; views are read.
            let role = if pointer.written { ArgRole::Cache } else { ArgRole::Input };
            inputs.push(Input { name: name.clone(), role, buffer: index, vocabulary: None });
        } else {
            arena = (arena + pointer.bytes()).next_multiple_of(64);
        }
        buffers.push(Buffer { name, ty: pointer.ty.clone(), pitch: pointer.pitch, place });
    }
    let args = (0..buffers.len()).map(|buffer| LaunchArg { buffer, offset: Offset::Fixed(0) }).collect();
    let launch = Launch { kernel: index, args, waits: false, locs: Vec::new() };
    Entry {
        name: kernel.name.clone(),
        buffers,
        inputs,
        outputs: Vec::new(),
        steps: vec![Step::Launch(launch), Step::Barrier],
        arena,
        live: arena,
    }
}
