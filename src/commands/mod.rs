//! The subcommands, one file each, and what they share.
mod bench;
#[cfg(feature = "compiler")]
mod compile;
mod eval;
#[cfg(feature = "compiler")]
mod grad;
mod inspect;
mod run;
mod train;

use crate::cli::{Cli, Command, ModelArgs};
use crate::kv;
use anyhow::{Context, Result, bail, ensure};
use clap::CommandFactory;
use rdc_runtime::artifact::Meta;
use rdc_runtime::checkpoint::Checkpoint;
use std::path::Path;

/// Runs what the command line says.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(&args, cli.quiet),
        Command::Run(args) => run::run(&args, cli.quiet),
        #[cfg(feature = "compiler")]
        Command::Grad(args) => grad::run(&args, cli.quiet),
        Command::Train(args) => train::run(args, cli.quiet),
        Command::Eval(args) => eval::run(&args, cli.quiet),
        Command::Inspect(args) => inspect::run(&args, cli.quiet),
        Command::Bench(args) => bench::run(&args, cli.quiet),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rdc", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Whether a file is a model text by its name.
fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "rdm")
}

#[cfg(not(feature = "compiler"))]
fn no_compiler(path: &Path) -> anyhow::Error {
    anyhow::anyhow!("{} is a model text, and this rdc only runs artifacts: compile it with a full rdc", path.display())
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
        ("kv-dtype", args.kv_dtype.map(|d| d.name().to_string())),
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

/// Ascending line numbers for people: `12, 14-17`.
fn line_ranges(lines: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &line in lines {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == line => *end = line,
            _ => ranges.push((line, line)),
        }
    }
    let show = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    ranges.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_agree_by_value() {
        assert!(same_setting("1e-6", "0.000001") && same_setting("zero", "\"zero\"") && same_setting("5e4", "50000"));
        assert!(!same_setting("1e-6", "1e-5") && !same_setting("zero", "unit") && !same_setting("true", "1"));
    }

    #[test]
    fn lines_join_into_ranges() {
        assert_eq!(line_ranges(&[3, 4, 5, 9, 11, 12]), "3-5, 9, 11-12");
        assert_eq!(line_ranges(&[]), "");
    }
}
