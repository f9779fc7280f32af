//! The `.rdm` language: text to [`rdc_ir::Module`].
//!
//! [`compile`] reads a model text in three stages, each a module of its own: [`parser`] (never bails), [`scope`] (every
//! name in every branch is known), [`lower`] (gives named sizes, flags and strings their values from `--set`, config.json or the
//! text and evaluates it for them; shapes are checked by their names while operations are appended). Nothing here knows a model.
pub mod ast;
pub mod checkpoint;
mod compile;
pub mod diagnostic;
mod lexer;
mod lower;
mod names;
mod options;
pub mod parser;
mod render;
mod scope;
mod value;

pub use compile::compile;
pub use diagnostic::{Diagnostic, Label, Severity, Span};
pub use lower::functions;
pub use options::{LossInfo, LossSelection, Lowered, Options};
pub use render::{render, render_with};
