//! A program with its code and its weights, ready to run.
use crate::Error;
use crate::artifact::{Artifact, Meta, weight_offsets};
use crate::code::{Code, KernelFn};
use crate::memory::{Buffer, Shared};
use crate::validate;
use crate::weights::{self, DrawnSource, ParamSource};
use memmap2::Mmap;
use rdc_ir::program::{Program, Target};
use std::sync::Arc;

/// A loaded model. Its weights are never written.
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
    /// In the mapping of an artifact.
    Mapped { map: Arc<Mmap>, offsets: Vec<usize> },
    /// Drawn or packed at load.
    Owned { buffer: Buffer, offsets: Vec<usize> },
}

impl Model {
    /// Loads an artifact. If it holds no weights they are drawn from its initialisers, under `seed`.
    ///
    /// # Errors
    /// If this machine cannot run its code, a kernel is missing from the code, or there is not enough memory.
    pub fn load(artifact: &Artifact, seed: u64) -> Result<Model, Error> {
        let code = artifact.load_code()?;
        match artifact.weights() {
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
        let (offsets, total) =
            weight_offsets(&meta.program).ok_or_else(|| Error::Program("the weights are too large".into()))?;
        let mut buffer = Buffer::zeroed(total)?;
        for (weight, &offset) in meta.program.weights.iter().zip(&offsets) {
            weights::fill(weight, params, &mut buffer[offset..offset + weight.ty.bytes()])?;
        }
        Model::assemble(meta, code, Weights::Owned { buffer, offsets })
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
    /// The address of a weight, for kernels, which only read it.
    pub(crate) fn weight_address(&self, index: usize) -> Shared {
        Shared(self.weight(index).as_ptr().cast_mut())
    }
}

/// Whether this machine can run code for a target.
///
/// # Errors
/// Says which architecture or CPU features are missing.
pub fn check_target(target: &Target) -> Result<(), String> {
    let architecture = target.triple.split('-').next().unwrap_or_default();
    let architecture = if architecture == "arm64" { "aarch64" } else { architecture };
    if architecture != std::env::consts::ARCH {
        return Err(format!(
            "compiled for {architecture} (target {}), but this machine is {}",
            target.name,
            std::env::consts::ARCH
        ));
    }
    let missing: Vec<&str> = target.requires.iter().map(String::as_str).filter(|f| !has_feature(f)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "compiled for target {}, which needs CPU features that this machine lacks: {}; compile for another --target",
        target.name,
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
