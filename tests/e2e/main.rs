//! End to end: runs the `rdc` binary and compares with what the authors' code gave (tests/fixtures/README.md).
#![allow(clippy::unwrap_used)]
mod aarch64;
mod determinism;
mod errors;
mod gradients;
mod huginn;
mod instructions;
mod ouro;
mod pages;
mod positions;
mod runtime_only;
mod support;
mod training;
mod universal_transformer;
mod variants;
