//! Planning: a module whose operations are fused becomes a `Program`: weights, kernels, memory and a schedule.
//!
//! Every value gets a place: weights, constants in code, the caller's memory, or the arena. Values are written once, so a buffer of the arena lives
//! from its launch to its last reader; a value of outside that a loop uses lives through the loop. A carried value has two
//! buffers, which change places with each iteration, or one if nothing reads it after the next one is written (`survey`). A result of
//! the function is made in the memory where it belongs, the caller's or the parameter's that it replaces, and so is what it
//! is made of element by element (`targets`). An entry of a stack at the loop's step is an address. Buffers that never live
//! at the same time share memory. Entries of stacks that a step may read but no iteration write are set to zero (`tails`). Last, there is
//! a barrier between two launches, or the later one waits task by task, only where that reads or writes memory that the other touches.
mod arena;
mod barriers;
mod entry;
mod interface;
mod kernels;
mod loops;
mod pitch;
mod share;
pub mod summary;
mod survey;
mod tails;
mod targets;

#[cfg(test)]
pub mod check;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod training_tests;

use crate::fuse::FusedModule;
use crate::{Error, Options};
use rdc_ir::program::Program;

/// Builds the program of a module whose operations are fused for `options.machine`.
///
/// # Errors
/// If a cache slot is neither constant nor a `kv_slot` of the loop around, or if a cache is read by anything but attention.
pub fn build(fused: FusedModule, options: &Options) -> Result<Program, Error> {
    let FusedModule { head, funcs, mut weights } = fused;
    let mut kernels = kernels::Kernels::default();
    let (mut entries, mut lives) = (Vec::new(), Vec::new());
    for func in funcs {
        let (entry, life) = entry::plan(func, &mut weights, &mut kernels)?;
        entries.push(entry);
        lives.push(life);
    }
    let mut kernels = kernels.finish();
    pitch::set(&mut entries, &mut kernels, &*options.machine);
    for (entry, lives) in entries.iter_mut().zip(&lives) {
        arena::allocate(entry, lives);
        tails::clear(entry, &kernels);
        barriers::place(entry, &kernels);
    }
    Ok(Program { name: head.name, target: options.target.clone(), weights: weights.finish(), kernels, entries })
}
