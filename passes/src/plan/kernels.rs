//! The program's kernels, each once: launches of equal layers share one.
use rdc_ir::program::Kernel;
use std::collections::HashMap;

/// Kernels by what they compute and how they are tiled.
#[derive(Default)]
pub struct Kernels {
    list: Vec<Kernel>,
    known: HashMap<String, usize>,
}

impl Kernels {
    /// The index of a kernel, added and given its number if it is new.
    pub fn index(&mut self, mut kernel: Kernel) -> usize {
        let key = format!("{:?}{:?}{:?}", kernel.kind, kernel.tiling, kernel.func);
        *self.known.entry(key).or_insert_with(|| {
            kernel.name = format!("k{}_{}", self.list.len(), kernel.name);
            kernel.func.name.clone_from(&kernel.name);
            self.list.push(kernel);
            self.list.len() - 1
        })
    }
    /// All of them.
    pub fn finish(self) -> Vec<Kernel> {
        self.list
    }
}
