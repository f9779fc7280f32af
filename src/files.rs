//! Reading and writing whole files, with errors that name the path.
use anyhow::{Context, Result};
use std::path::Path;

/// Writes a whole file through a temporary name.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let temporary = rdc_runtime::artifact::temporary_name(path).with_context(failed)?;
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(failed)
}

/// Reads a whole text file.
#[cfg(feature = "compiler")]
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
