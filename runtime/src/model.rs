//! A program with its code and its weights, ready to run.
use crate::Error;
use crate::artifact::{Artifact, Isa, Meta, WeightLayout, is_stored, weight_layout};
use crate::code::{Code, KernelFn};
use crate::memory::{Buffer, Shared};
use crate::validate;
use crate::weights::{self, DrawnSource, ParamSource};
use memmap2::Mmap;
use rdc_ir::program::Program;
use std::sync::Arc;

/// A loaded model. Its weights are written by entries that update them, and by [`Model::weight_mut`].
#[derive(Debug)]
pub struct Model {
    meta: Meta,
    kernels: Vec<KernelFn>,
    weights: Weights,
    /// Keeps the functions of `kernels` mapped.
    _code: Code,
}

#[derive(Debug)]
enum Weights {
    /// In the mapping of an artifact, which is never written.
    Mapped { map: Arc<Mmap>, offsets: Vec<usize> },
    /// Drawn, packed or, since entries update them, copied at load.
    Owned { buffer: Buffer, offsets: Vec<usize> },
}

impl Model {
    /// Loads an artifact. If it holds no weights they are drawn from its initialisers, under `seed`.
    ///
    /// # Errors
    /// If this machine cannot run its code, a kernel is missing from the code, or there is not enough memory.
    pub fn load(artifact: &Artifact, seed: u64) -> Result<Model, Error> {
        let code = artifact.load_code()?;
        let program = &artifact.meta().program;
        let updates = program.entries.iter().any(|e| !e.updated(&program.kernels).is_empty());
        match artifact.weights() {
            Some((map, from)) if updates => {
                let (mut buffer, layout) = memory(program)?;
                for (index, weight) in program.weights.iter().enumerate().filter(|(_, w)| is_stored(w)) {
                    let bytes = weight.ty.bytes();
                    buffer[layout.offsets[index]..][..bytes].copy_from_slice(&map[from[index]..][..bytes]);
                }
                let weights = Weights::Owned { buffer, offsets: layout.offsets };
                Model::assemble(artifact.meta().clone(), code, weights)
            }
            Some((map, offsets)) => Model::assemble(artifact.meta().clone(), code, Weights::Mapped { map, offsets }),
            None => {
                let params = DrawnSource::new(&artifact.meta().params, seed);
                Model::from_parts(artifact.meta().clone(), code, &params)
            }
        }
    }
    /// A model that is in no file: weights are made in memory.
    ///
    /// # Errors
    /// If the program is malformed, the code lacks a kernel, or a weight cannot be made.
    pub fn from_parts(meta: Meta, code: Code, params: &dyn ParamSource) -> Result<Model, Error> {
        validate::meta(&meta).map_err(Error::Program)?;
        let (mut buffer, layout) = memory(&meta.program)?;
        for (weight, &offset) in meta.program.weights.iter().zip(&layout.offsets).filter(|(w, _)| is_stored(w)) {
            weights::fill(weight, params, &mut buffer[offset..offset + weight.ty.bytes()])?;
        }
        Model::assemble(meta, code, Weights::Owned { buffer, offsets: layout.offsets })
    }
    fn assemble(meta: Meta, code: Code, weights: Weights) -> Result<Model, Error> {
        let kernels = meta.program.kernels.iter().map(|k| {
            code.kernel(&k.name).ok_or_else(|| Error::Program(format!("the code lacks the kernel {}", k.name)))
        });
        let kernels = kernels.collect::<Result<_, _>>()?;
        Ok(Model { meta, kernels, weights, _code: code })
    }
    /// The metadata.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
    /// The program.
    pub fn program(&self) -> &Program {
        &self.meta.program
    }
    pub(crate) fn kernel(&self, index: usize) -> KernelFn {
        self.kernels[index]
    }
    /// The bytes of a weight.
    pub fn weight(&self, index: usize) -> &[u8] {
        let bytes = self.meta.program.weights[index].ty.bytes();
        match &self.weights {
            Weights::Mapped { map, offsets } => &map[offsets[index]..][..bytes],
            Weights::Owned { buffer, offsets } => &buffer[offsets[index]..][..bytes],
        }
    }
    /// The bytes of a weight, to be written.
    ///
    /// # Errors
    /// If the weights lie in the mapping of an artifact: then no entry updates them.
    pub fn weight_mut(&mut self, index: usize) -> Result<&mut [u8], Error> {
        let bytes = self.meta.program.weights[index].ty.bytes();
        match &mut self.weights {
            Weights::Mapped { .. } => Err(read_only()),
            Weights::Owned { buffer, offsets } => Ok(&mut buffer[offsets[index]..][..bytes]),
        }
    }
    /// The index of the weight that holds a parameter, or training state of that name, as it is.
    pub fn find_weight(&self, name: &str) -> Option<usize> {
        self.meta.program.weights.iter().position(|w| w.source.as_is() == Some(name))
    }
    /// The addresses of the weights, for kernels that only read them.
    pub(crate) fn weight_addresses(&self) -> Vec<Shared> {
        (0..self.meta.program.weights.len()).map(|i| Shared(self.weight(i).as_ptr().cast_mut())).collect()
    }
    /// The addresses of the weights, for kernels that write them.
    ///
    /// # Errors
    /// As [`Model::weight_mut`].
    pub(crate) fn weight_addresses_mut(&mut self) -> Result<Vec<Shared>, Error> {
        match &mut self.weights {
            Weights::Mapped { .. } => Err(read_only()),
            Weights::Owned { buffer, offsets } => {
                let base = buffer.shared();
                Ok(offsets.iter().map(|&offset| Shared(base.0.wrapping_add(offset))).collect())
            }
        }
    }
}

fn read_only() -> Error {
    Error::Program("the weights lie in a file, which is not written".into())
}

/// Memory for the weights of a program, zero-filled.
fn memory(program: &Program) -> Result<(Buffer, WeightLayout), Error> {
    let layout = weight_layout(program).ok_or_else(|| Error::Program("the weights are too large".into()))?;
    Ok((Buffer::zeroed(layout.total)?, layout))
}

/// Whether this machine can run code of an instruction set, made for the target of that name.
///
/// # Errors
/// Says which architecture or CPU features are missing.
pub fn check_isa(isa: &Isa, target: &str) -> Result<(), String> {
    let architecture = &isa.architecture;
    if architecture != std::env::consts::ARCH {
        return Err(format!(
            "compiled for {architecture} (target {target}), but this machine is {}",
            std::env::consts::ARCH
        ));
    }
    let missing: Vec<&str> = isa.requires.iter().map(String::as_str).filter(|f| !has_feature(f)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "compiled for target {target}, which needs CPU features that this machine lacks: {}; compile for another --target",
        missing.join(", ")
    ))
}

/// A feature that this list does not know counts as missing.
#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    macro_rules! detect {
        ($($feature:tt)*) => {
            match name {
                $($feature => std::arch::is_x86_feature_detected!($feature),)*
                // Not in std's list under these names; every CPU with SSE4.2 has them in practice.
                "cx16" | "sahf" => std::arch::is_x86_feature_detected!("sse4.2"),
                _ => false,
            }
        };
    }
    detect!("sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "popcnt" "lzcnt" "abm" "bmi1" "bmi2" "movbe" "avx" "avx2" "fma" "f16c"
        "avx512f" "avx512cd" "avx512dq" "avx512bw" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
        "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16" "avxvnni" "vaes" "vpclmulqdq" "pclmulqdq" "aes" "sha" "gfni"
        "adx" "rdrand" "rdseed" "fxsr" "xsave" "xsavec" "xsaveopt" "xsaves")
}

#[cfg(target_arch = "aarch64")]
fn has_feature(name: &str) -> bool {
    match name {
        "neon" | "asimd" => true,
        "fp16" => std::arch::is_aarch64_feature_detected!("fp16"),
        "dotprod" => std::arch::is_aarch64_feature_detected!("dotprod"),
        "bf16" => std::arch::is_aarch64_feature_detected!("bf16"),
        "i8mm" => std::arch::is_aarch64_feature_detected!("i8mm"),
        "sve" => std::arch::is_aarch64_feature_detected!("sve"),
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_feature(_: &str) -> bool {
    false
}
