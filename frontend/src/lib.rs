//! The `.rdm` language: text to [`rdc_ir::Module`].
//!
//! [`compile`] reads a model text in four stages, each a module of its own: [`parser`] (never bails), [`settings`] (named
//! sizes, flags and strings get their numbers from `--set`, config.json or the text), [`scope`] (every name in every branch
//! is known), [`lower`] (evaluates the text for the chosen settings; shapes are checked by their names while operations are
//! appended). Nothing here knows a model.
pub mod ast;
pub mod checkpoint;
mod compile;
pub mod diagnostic;
mod lexer;
mod lower;
mod names;
pub mod parser;
mod render;
mod scope;
mod settings;
mod value;

pub use compile::{LossInfo, LossSelection, Lowered, Options, compile};
pub use diagnostic::{Diagnostic, Label, Severity, Span};
pub use lower::functions;
pub use render::{render, render_with};
