//! Planning: a module after layout and hoisting becomes a `Program`: weights, kernels, memory and a schedule.
//!
//! Each function is normalised, its regions are grouped into kernels (`crate::fuse`), and every value gets a place:
//! weights, constants in code, the caller's memory, or the arena. Values are written once, so a buffer of the arena lives
//! from its launch to its last reader; a value of outside that a loop uses lives through the loop. A carried value has two
//! buffers, exchanged after each iteration, or one if nothing reads it after the next one is written (`survey`). A result of
//! the function is made in the memory where it belongs, the caller's or the parameter's that it replaces, and so is what it
//! is made of element by element (`targets`). An entry of a stack at the loop's step is an address. Buffers that never live
//! at the same time share memory. Last, a launch gets a barrier, or the later one waits task by task, only where that reads or
//! writes memory that it touches.
mod arena;
mod barriers;
mod entry;
mod kernels;
mod loops;
mod pitch;
mod places;
mod share;
pub mod summary;
mod survey;
mod targets;
pub mod weights;

#[cfg(test)]
pub mod check;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod training_tests;

use crate::fuse::normalise::{normalise, remove_unused};
use crate::{Error, Options};
use rdc_ir::Module;
use rdc_ir::program::Program;

/// Builds the program of a module whose weights are packed for `options.machine`.
///
/// # Errors
/// If a cache slot is neither constant nor a `kv_slot` of the loop around, or if a cache is read by anything but attention.
pub fn build(module: &Module, options: &Options) -> Result<Program, Error> {
    let mut weights = weights::Weights::new(module);
    let mut kernels = kernels::Kernels::default();
    let (mut entries, mut lives) = (Vec::new(), Vec::new());
    for func in &module.funcs {
        let mut func = normalise(func, &*options.machine);
        places::own(&mut func, &weights);
        remove_unused(&mut func);
        let (entry, life) = entry::plan(&func, &*options.machine, &mut weights, &mut kernels)?;
        entries.push(entry);
        lives.push(life);
    }
    let mut kernels = kernels.finish();
    pitch::set(&mut entries, &mut kernels, &*options.machine);
    for (entry, lives) in entries.iter_mut().zip(&lives) {
        arena::allocate(entry, lives);
        barriers::place(entry, &kernels);
    }
    Ok(Program {
        name: module.name.clone(),
        target: options.target.clone(),
        weights: weights.finish(),
        kernels,
        entries,
    })
}
