//! The last stage: a model in memory, of an artifact or, through all the stages before, of a text.
use crate::cli::ModelArgs;
use crate::kv;
use anyhow::{Context, Result, bail, ensure};
use rdc_runtime::artifact::{Artifact, Meta, Verify};
use rdc_runtime::checkpoint::Checkpoint;
use std::path::Path;

/// Whether a file is a model text by its name.
pub fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "rdm")
}

/// Why a text cannot be loaded by an rdc that only runs artifacts.
#[cfg(not(feature = "compiler"))]
pub fn no_compiler(path: &Path) -> anyhow::Error {
    anyhow::anyhow!("{} is a model text, and this rdc only runs artifacts: compile it with a full rdc", path.display())
}

/// Opens an artifact that agrees with the compile flags that are given.
pub fn artifact(path: &Path, args: &ModelArgs, verify: Verify) -> Result<Artifact> {
    let artifact = Artifact::open(path, verify)?;
    check_agreement(args, artifact.meta())?;
    Ok(artifact)
}

/// Fails if a compile flag that is given does not agree with an artifact.
fn check_agreement(args: &ModelArgs, meta: &Meta) -> Result<()> {
    let number = |n: Option<usize>| n.map(|n| n.to_string());
    let given = [
        ("target", args.target.clone()),
        ("batch", number(args.batch)),
        ("context", number(args.context)),
        ("max-steps", number(args.max_steps)),
        ("kv", args.kv.map(kv::name)),
        ("dtype", args.dtype.map(|d| d.name().to_string())),
        ("last-only", args.last_only.then(|| true.to_string())),
    ];
    for (flag, value) in given {
        let (Some(value), Some(compiled)) = (value, meta.options.get(flag)) else { continue };
        ensure!(value == *compiled, "--{flag} {value}, but the artifact was compiled with --{flag} {compiled}");
    }
    if let Some(seq) = args.seq {
        ensure!(
            meta.chunks.contains(&seq),
            "--seq {seq}, but the artifact was compiled for chunks of {:?}",
            meta.chunks
        );
    }
    for (name, value) in &args.set {
        let compiled = meta.sizes.get(name).with_context(|| format!("--set {name}: the model has no such setting"))?;
        ensure!(
            same_setting(value, compiled),
            "--set {name}={value}, but the artifact was compiled with {name}={compiled}"
        );
    }
    let Some(weights) = args.hf.as_deref().or(args.weights.as_deref()) else { return Ok(()) };
    let Some(compiled) = meta.options.get("weights") else {
        bail!("{} is given, but the artifact was compiled without weights", weights.display());
    };
    let fingerprint = crate::fingerprint::of(&Checkpoint::open(weights)?);
    ensure!(
        fingerprint == *compiled,
        "{} is not the checkpoint that the artifact was compiled with",
        weights.display()
    );
    Ok(())
}

/// Whether two words of a setting mean the same: `1e-6` and `0.000001`, `zero` and `"zero"`.
fn same_setting(a: &str, b: &str) -> bool {
    let number = |word: &str| word.parse::<f64>().ok();
    a.trim_matches('"') == b.trim_matches('"') || number(a).is_some_and(|a| Some(a) == number(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_agree_by_value() {
        assert!(same_setting("1e-6", "0.000001") && same_setting("zero", "\"zero\"") && same_setting("5e4", "50000"));
        assert!(!same_setting("1e-6", "1e-5") && !same_setting("zero", "unit") && !same_setting("true", "1"));
    }
}
