//! The intermediate representation of rdc.
//!
//! # What a program is
//! A [`Module`] holds named [`Param`]s (the weights, by checkpoint name) and [`Func`]s, each specialised for a batch, a
//! chunk length and a context length. A parameter may be training state (a gradient, a moment of the optimiser). An output
//! of a function may update a parameter: it replaces it when the function has ended, and until then the function sees the
//! old value. A function is one [`Region`] of operations in static single assignment form: every
//! [`Value`] is defined once, by an operation or as a region argument, and every use comes after its definition, in the
//! same region or in one nested in it.
//!
//! # Control flow
//! There is one control operation, `loop` ([`Opcode::Loop`]). Its operands are the run-time trip count `r` (`i32[]`) and
//! the initial carried values; its single region takes `(step: i32[], is_last: bool[], carried…)`, may use any value of
//! the enclosing regions (a *captured* value), and yields, in this order,
//! `carried…`, then `done: bool[]` if the attribute `exit` is true, then `stacked` further values.
//! Its results are `carried…`, then `trips: i32[]` (iterations that ran), then one stacked result for each stacked
//! yield with a new leading axis of `max_steps` (entries at and beyond `trips` are zero).
//! The loop runs `min(r, first step after which done is true)` iterations; `r = 0` yields the initial values. `is_last` is
//! `step + 1 == r`. `step` counts from 0. `r > max_steps` is an error of the caller. No pass unrolls a loop. Where the rows of a
//! batch stand at different depths, the trip count is still one number, and a row's own step a value `i32[B]` that `kv_slot`,
//! `index` and `gather` take.
//!
//! With the attribute `reverse`, `step` goes from `r - 1` down to 0 and the yields stacked at a step go to the entry of that
//! step, so that a loop in reverse reads with `index` what a loop forward has stacked. Such a loop has no `exit`.
//!
//! # Types
//! A [`Type`] is an element type and a static shape (`f32[2, 12, 64]`); scalars have rank 0. A *cache* type
//! (`cache f32[slots, B, T, H, D]`) is linear: each cache value has exactly one use, which the verifier checks, so a
//! `cache_update` is in place by construction. Elementwise operations broadcast as NumPy does (trailing axes align, a
//! size-1 or missing axis repeats).
//!
//! # One table
//! [`ops`] declares every operation once: mnemonic, operands, attributes, documentation, result types and FLOPs. The
//! enum, the builder, the printer, the parser and the verifier read that table. The meaning of an operation is the
//! reference interpreter's.
//!
//! # Working with it
//! [`Builder`] makes functions; [`parse()`] and `Display` go from text to module and back; [`verify()`] checks what makes a
//! module well-formed, and passes verify after each step; [`interp`] runs functions and says what they mean; [`cost`] counts
//! FLOPs, bytes and parameters; [`positions`] says what makes positions depend on each other; `testing` (feature of that name) makes random modules that verify.

pub mod builder;
pub mod cost;
pub mod entity;
pub mod float;
pub mod infer;
pub mod interp;
pub mod module;
pub mod ops;
pub mod packing;
pub mod parse;
pub mod positions;
pub mod print;
pub mod program;
pub mod reference;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod training;
pub mod types;
pub mod verify;

pub use builder::Builder;
pub use entity::{EntityMap, OpId, ParamId, RegionId, ValueId};
pub use float::Float;
pub use module::{
    Arg, ArgRole, Attrs, Func, IGNORED_LABEL, Init, Loc, Module, Op, Output, Param, Region, Value, ValueDef,
};
pub use ops::{Attr, AttrKind, AttrSpec, OpInfo, Opcode};
pub use parse::{ParseError, parse, parse_func};
pub use print::print_func;
pub use reference::op_reference;
pub use types::{DType, Type};
pub use verify::{VerifyError, verify};
