//! Differentiation against finite differences in the f64 interpreter.
#![allow(clippy::unwrap_used)]
mod loops;
mod models;
mod policies;
mod random;
mod rules;
mod support;
