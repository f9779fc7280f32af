//! The third stage: machine code for a program's kernels, and the artifact file that holds both.
use super::build::Built;
use crate::progress::Progress;
use anyhow::Result;
use rdc_backend_cpu::CodeImage;
use rdc_runtime::artifact::{self, Contents};
use rdc_runtime::weights::ParamSource;
use std::path::Path;

/// Generates the code of all kernels.
pub fn code(built: &mut Built, progress: &Progress) -> Result<CodeImage> {
    let report = |p: rdc_backend_cpu::Progress| {
        progress.stage(&format!("compiling kernels: {} of {}, {}", p.done, p.total, p.kernel));
    };
    let options = rdc_backend_cpu::Options { progress: Some(&report) };
    let image = rdc_backend_cpu::compile(&mut built.meta.program, &built.target, &options)?;
    built.meta.symbols = image.symbols.iter().map(|s| (s.name.clone(), s.offset as u64)).collect();
    Ok(image)
}

/// Writes the artifact. The IR stays in it for readers.
pub fn write(built: &Built, image: &CodeImage, path: &Path, progress: &Progress) -> Result<()> {
    crate::interrupt::watch(path);
    let ir = built.module.to_string();
    let checkpoint = built.checkpoint();
    let contents = Contents {
        meta: &built.meta,
        code: &image.bytes,
        ir: Some(&ir),
        params: checkpoint.as_ref().map(|c| c as &dyn ParamSource),
    };
    artifact::write(path, &contents, &mut |done, total| {
        let percent = done * 100 / total.max(1);
        progress.stage(&format!("writing weights: {percent} % of {}", crate::table::bytes(total as usize)));
    })?;
    Ok(())
}
