//! Runs compiled kernels, in this process or, those for another machine, under an emulator: for tests and benchmarks only.
mod emulated;
mod loader;

use crate::{Error, Options, Target, compile, scratch_bytes};
use rdc_ir::program::{Dispatch, Kernel, Program, Tiling};
use rdc_ir::{DType, Func};
use rdc_passes::fuse::body::{Family, take_apart};
use rdc_passes::fuse::kernel::pointers;
use std::ops::Range;

use emulated::Emulated;
pub use loader::{Aligned, Entry, Loaded};

/// A kernel of a function, its family and tiling given, less what only schedules need.
///
/// # Panics
/// If the family does not compute the function.
pub fn kernel(name: &str, (family, tiling): (Family, Tiling), func: Func, tasks: usize) -> Kernel {
    let kind = take_apart(&func, family).unwrap_or_else(|what| panic!("{name}: {what}"));
    let (name, pointers, dispatch) = (name.into(), pointers(&func, &kind), Dispatch::Static);
    Kernel { name, kind, tiling, func, pointers, tasks, dispatch, scratch: 0, flops: 0, bytes: 0 }
}

/// A program of kernels only.
pub fn program(kernels: Vec<Kernel>) -> Program {
    Program { name: "test".into(), target: "test".into(), weights: vec![], kernels, entries: vec![] }
}

/// The target whose kernels tests run: what `RDC_TEST_TARGET` names, else `otherwise`, if this machine is of its architecture.
///
/// # Panics
/// If there is no target of that name.
#[cfg(test)]
pub fn target(otherwise: &str) -> Target {
    let here = if cfg!(target_arch = "aarch64") && otherwise != "native" { "aarch64" } else { otherwise };
    let name = std::env::var("RDC_TEST_TARGET").unwrap_or_else(|_| here.into());
    crate::target(&name).unwrap_or_else(|e| panic!("{e}"))
}

/// Where a kernel runs.
enum Place {
    /// In this process.
    Here { code: Loaded, offset: usize, scratch: Aligned },
    /// Under an emulator.
    There(Emulated),
}

/// A compiled kernel with its buffers.
pub struct Runner {
    place: Place,
    /// Arguments, then results that are not linear.
    pub args: Vec<Aligned>,
    /// Pairs of places in `args`: the first uses the memory of the second.
    pub shared: Vec<(usize, usize)>,
}

impl Runner {
    /// Compiles a kernel; arguments are zeros until set.
    ///
    /// # Errors
    /// As [`compile`].
    ///
    /// # Panics
    /// If the system refuses to map code, or lacks the emulator that the target needs.
    pub fn new(target: &Target, kernel: &Kernel) -> Result<Runner, Error> {
        let image = compile(&mut program(vec![kernel.clone()]), target, &Options::default())?;
        let offset = image.symbols[0].offset;
        let args: Vec<Aligned> = kernel.pointers.iter().map(|pointer| Aligned::new(pointer.bytes())).collect();
        let mut scratch = Aligned::new(scratch_bytes(kernel, &target.machine));
        // A thread's scratch holds what the last kernel left there: a kernel that trusts it computes NaN.
        scratch.bytes_mut().fill(0xff);
        let place = if target.isa.architecture() == std::env::consts::ARCH {
            Loaded::load(&image).map(|code| Place::Here { code, offset, scratch })
        } else {
            Emulated::load(&image, offset, &args, &scratch).map(Place::There)
        };
        match place {
            Ok(place) => Ok(Runner { place, args, shared: vec![] }),
            Err(e) => panic!("loading a kernel for {}: {e}", target.name),
        }
    }

    /// Runs tasks of the kernel.
    ///
    /// # Panics
    /// If it faults under an emulator.
    pub fn run(&mut self, tasks: Range<usize>) {
        match &mut self.place {
            // SAFETY: the buffers were made from the kernel's types.
            Place::Here { code, offset, scratch } => unsafe {
                code.run_shared(*offset, &mut self.args, &self.shared, tasks, scratch);
            },
            Place::There(emulated) => {
                let run = emulated.run(&mut self.args, &self.shared, tasks);
                run.unwrap_or_else(|e| panic!("the emulated process: {e}"));
            }
        }
    }
}

/// Packs rows of a weight as the `pack` op says (f32, bf16 or i8 as [`quantise`] gives it).
pub fn pack(rows: &[f32], (n, k): (usize, usize), dtype: DType, nr: usize, parts: usize) -> Vec<u8> {
    let pair = if dtype == DType::BF16 { 2 } else { 1 };
    let (panels, inner, width) = (n.div_ceil(nr), k.div_ceil(pair), nr / parts);
    let mut out = Vec::with_capacity(panels * inner * nr * pair * dtype.bytes());
    for panel in 0..panels {
        for i in 0..inner {
            for c in 0..nr {
                let row = (c / width) * (n / parts) + panel * width + c % width;
                for p in 0..pair {
                    let column = i * pair + p;
                    let value = if row < n && column < k { rows[row * k + column] } else { 0.0 };
                    match dtype {
                        DType::BF16 => out.extend_from_slice(&bf16_bits(value).to_le_bytes()),
                        DType::I8 => out.push((value as i8).cast_unsigned()),
                        _ => out.extend_from_slice(&value.to_le_bytes()),
                    }
                }
            }
        }
    }
    out
}

/// The upper half of the nearest bf16, ties to even.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// What remains of a float in bf16.
pub fn via_bf16(value: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(value)) << 16)
}

/// Whole numbers -127..=127 and the scale of each row, as the `quantize` op.
pub fn quantise(rows: &[f32], k: usize) -> (Vec<f32>, Vec<f32>) {
    let scales: Vec<f32> = rows
        .chunks_exact(k)
        .map(|row| row.iter().fold(0f32, |m, v| m.max(v.abs())))
        .map(|max| if max == 0.0 { 1.0 } else { max / 127.0 })
        .collect();
    let values = rows.iter().enumerate().map(|(i, v)| (v / scales[i / k]).round_ties_even()).collect();
    (values, scales)
}

/// Pseudo-random numbers in -1..1.
pub fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
