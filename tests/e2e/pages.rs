//! One page per example model with every stage from text to kernels, for review: what a change of the compiler does to it
//! shows as a diff of these pages.
use crate::support::*;
use std::fmt::Write;

/// Sizes at which a page stays readable.
const SMALL: &[&str] = &["--target", "x86-64-v3", "--context", "16", "--seq", "4", "--max-steps", "4"];

fn page(text: &str, settings: &[&str]) -> String {
    let settings: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
    let emit = |stage: &[&str]| ok(&[&["compile", text], SMALL, &settings, &["--emit"], stage].concat());
    let mut page = String::new();
    for (title, stage) in [
        ("IR as the text says it", &["ir", "--after", "lower"][..]),
        ("IR simplified", &["ir", "--after", "simplify"]),
        ("IR with the invariant part hoisted out of the loop", &["ir", "--after", "dce"]),
        ("IR with weights laid out", &["ir"]),
        ("Kernels", &["ir", "--after", "fuse"]),
        ("Program", &["program"]),
    ] {
        let _ = writeln!(page, "==== {title}\n{}", decode_only(&emit(stage)));
    }
    let mlir = emit(&["mlir"]);
    let kernel = mlir.split("\nmodule").find(|k| k.contains("matmul")).unwrap_or_default();
    let _ = writeln!(page, "==== MLIR of the first matmul kernel\nmodule{}", kernel.trim_start_matches("module"));
    page
}

/// Of several functions the one-token decode of the default read-out; other text stays. `prefill` is the same at another length.
fn decode_only(text: &str) -> String {
    let mut kept = String::new();
    let mut keep = true;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("func \"").or(line.strip_prefix("function ")) {
            keep = rest.starts_with("decode\"") || rest.starts_with("decode:");
        }
        if keep {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

#[test]
fn huginn() {
    let settings = ["dim=32", "heads=2", "inner=48", "vocab=40", "layers_prelude=1", "layers_core=1", "layers_coda=1"];
    insta::assert_snapshot!(page("examples/huginn.rdm", &settings));
}

#[test]
fn ouro() {
    let settings = ["dim=32", "heads=2", "inner=48", "vocab=40", "layers=1"];
    insta::assert_snapshot!(page("examples/ouro.rdm", &settings));
}

#[test]
fn universal_transformer() {
    let settings = ["dim=32", "heads=2", "inner=48", "vocab=40", "layers=1", "positions_learned=16"];
    insta::assert_snapshot!(page("examples/universal_transformer.rdm", &settings));
}
