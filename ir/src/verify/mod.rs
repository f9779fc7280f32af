//! Checks that a module is well-formed: a module that verifies makes no pass and no back end panic.
//!
//! # Invariants
//! Module
//! - Parameter names and aliases are all different; function names too.
//! - A parameter is not a cache; its initialiser has finite numbers, `std` is not negative, `bound` is at least 0.01.
//!
//! Types
//! - Every size is in `1..=u32::MAX`, there are at most 8 axes, and a tensor has at most 2^48 bytes.
//!
//! Function
//! - The body has as many arguments as the function and as many yields as it has outputs; argument names are unique, and
//!   so are output names.
//! - `Ids` and `Labels` are `i32[B, S]`, `Position` and `Valid` are `i32[B]`, `Steps`, `NoGradSteps` and `GradSteps` are `i32[]`,
//!   `State` is f32; there is at most one each of `Valid`, `Steps`, `Labels`, `NoGradSteps` and `GradSteps`.
//! - Exactly the arguments of role `Cache` have a cache type, and each is the output of the same name and type; no other
//!   output is a cache. A stacked output has at least one axis.
//! - An output that updates has the name and the type of a parameter, and is not stacked.
//!
//! Structure
//! - Ids are valid, every value's definition points back to its place, each operation stands in one region, and each
//!   region belongs to one operation or is the body. Regions are nested at most [`MAX_DEPTH`](crate::parse::MAX_DEPTH) deep.
//! - Every use comes after the definition, in the same region or one nested in it.
//!
//! Operations
//! - The number of operands and the number and kinds of attributes are those of the op table; result types are those that
//!   the table infers. Only `loop` has a region, and it has exactly one.
//! - `param` names a parameter and has its type. A `constant` is a number of its type. Bases of tables are positive.
//! - `loop`: `max_steps` is in `1..=i32::MAX`; the trip count is `i32[]`; region arguments, yields and results have the
//!   types that the [crate documentation](crate) says; `done` is `bool[]`; stacked yields are not caches; `reverse` and
//!   `exit` are not both true.
//! - `kv_slot`: `0 <= layer < layers`, `base >= 0`.
//!
//! Caches
//! - A cache value has exactly one use, in the region that defines it.
//! - A slot for all rows of a `cache_update` is a `constant`, or a `kv_slot` of the step of a loop around it or of a constant; it
//!   is below the number of slots at every step below `max_steps`. Slots of a row each may be any values.
//! - The view of a `cache_update` is used only by operations (not `loop`) of the same region, before the next consumer of
//!   the cache; it is not yielded.
mod caches;
mod ops;
mod structure;

pub use caches::kv_policy;

use crate::entity::OpId;
use crate::module::{ArgRole, Func, Init, Loc, Module};
use crate::print::print_op;
use crate::types::{DType, Type};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// The largest number of axes of a type.
pub const MAX_RANK: usize = 8;
/// The largest size of a tensor in bytes.
pub const MAX_BYTES: usize = 1 << 48;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The function, if the mistake is in one.
    pub func: Option<String>,
    /// The text of the operation, if the mistake is in one.
    pub op: Option<String>,
    /// The place in the model text, if known.
    pub loc: Loc,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(func) = &self.func {
            write!(f, "in {func}: ")?;
        }
        if let Some(op) = &self.op {
            write!(f, "`{op}`")?;
            if self.loc != Loc::default() {
                write!(f, " at {}", self.loc)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for VerifyError {}

/// Checks every invariant; the error lists all that are broken, as far as they could be checked.
pub fn verify(module: &Module) -> Result<(), Vec<VerifyError>> {
    let mut errors = Vec::new();
    module_rules(module, &mut errors);
    for func in &module.funcs {
        let mut checker = Checker { module, func, errors: &mut errors };
        // The other rules index by ids, which only a sound structure makes safe.
        if checker.structure() {
            checker.interface();
            // The rules of caches read attributes that only sound operations have.
            if checker.ops() {
                checker.caches();
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The broken invariants as one text, a line each, or `None` if the module verifies.
pub fn verify_text(module: &Module) -> Option<String> {
    let errors = verify(module).err()?;
    Some(errors.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("\n"))
}

/// Why a type is not allowed, if it is not.
fn type_problem(ty: &Type) -> Option<String> {
    if ty.rank() > MAX_RANK {
        return Some(format!("{ty} has more than {MAX_RANK} axes"));
    }
    if ty.shape.iter().any(|&n| n == 0 || n > u32::MAX as usize) {
        return Some(format!("{ty} has a size outside 1..=u32::MAX"));
    }
    let bytes = ty.shape.iter().try_fold(ty.dtype.bytes(), |n, &s| n.checked_mul(s));
    if bytes.is_none_or(|b| b > MAX_BYTES) {
        return Some(format!("{ty} is too large"));
    }
    None
}

fn init_problem(init: Init) -> Option<String> {
    let (numbers, ok) = match init {
        Init::Constant(v) => ([v, 0.0], true),
        Init::Normal { std } => ([std, 0.0], std >= 0.0),
        Init::TruncNormal { std, bound } => ([std, bound], std >= 0.0 && bound >= 0.01),
    };
    if ok && numbers.iter().all(|v| v.is_finite()) { None } else { Some(format!("cannot draw from {init}")) }
}

fn module_rules(module: &Module, errors: &mut Vec<VerifyError>) {
    let mut names = HashSet::new();
    let mut fail = |message: String, loc| errors.push(VerifyError { func: None, op: None, loc, message });
    for param in module.params.values() {
        for name in std::iter::once(&param.name).chain(&param.aliases) {
            if !names.insert(name) {
                fail(format!("two parameters are named {name:?}"), param.loc);
            }
        }
        let cache = param.ty.cache.then(|| format!("a parameter cannot be a {}", param.ty));
        for problem in [cache, type_problem(&param.ty), init_problem(param.init)].into_iter().flatten() {
            fail(format!("parameter {:?}: {problem}", param.name), param.loc);
        }
    }
    let mut names = HashSet::new();
    for func in &module.funcs {
        if !names.insert(&func.name) {
            fail(format!("two functions are named {:?}", func.name), Loc::default());
        }
    }
}

struct Checker<'m> {
    module: &'m Module,
    func: &'m Func,
    errors: &'m mut Vec<VerifyError>,
}

impl Checker<'_> {
    fn fail(&mut self, message: impl Into<String>) {
        let func = Some(self.func.name.clone());
        self.errors.push(VerifyError { func, op: None, loc: Loc::default(), message: message.into() });
    }
    fn fail_op(&mut self, op: OpId, message: impl Into<String>) {
        let (func, text) = (Some(self.func.name.clone()), Some(print_op(self.func, op)));
        self.errors.push(VerifyError { func, op: text, loc: self.func.ops[op].loc, message: message.into() });
    }
    /// Arguments and outputs; the numbers of both have been checked.
    fn interface(&mut self) {
        let func = self.func;
        let body = &func.regions[func.body];
        let mut names = HashSet::new();
        let mut caches: HashMap<&str, &Type> = HashMap::new();
        for (arg, &value) in func.args.iter().zip(&body.args) {
            let (name, ty) = (&arg.name, func.ty(value));
            if !names.insert(name) {
                self.fail(format!("two arguments are named {name:?}"));
            }
            let ok = match arg.role {
                ArgRole::Ids | ArgRole::Labels => *ty == Type::new(DType::I32, ty.shape.clone()) && ty.rank() == 2,
                ArgRole::Position | ArgRole::Valid => *ty == Type::new(DType::I32, ty.shape.clone()) && ty.rank() == 1,
                ArgRole::Steps | ArgRole::NoGradSteps | ArgRole::GradSteps => *ty == Type::scalar(DType::I32),
                ArgRole::State(_) => *ty == Type::f32(ty.shape.clone()),
                ArgRole::Cache => ty.cache,
                ArgRole::Input => !ty.cache,
            };
            if !ok {
                self.fail(format!("argument {name:?} is {}: it cannot be {ty}", arg.role));
            }
            if let ArgRole::State(init) = arg.role
                && let Some(problem) = init_problem(init)
            {
                self.fail(format!("argument {name:?}: {problem}"));
            }
            if ty.cache {
                caches.insert(name, ty);
            }
        }
        for role in [ArgRole::Valid, ArgRole::Steps, ArgRole::Labels, ArgRole::NoGradSteps, ArgRole::GradSteps] {
            if func.args.iter().filter(|a| a.role == role).count() > 1 {
                self.fail(format!("there is more than one argument of role {role}"));
            }
        }
        let mut names = HashSet::new();
        for (output, &value) in func.outputs.iter().zip(&body.yields) {
            let (name, ty) = (&output.name, func.ty(value));
            if !names.insert(name) {
                self.fail(format!("two outputs are named {name:?}"));
            }
            if output.stacked && (ty.rank() == 0 || ty.cache) {
                self.fail(format!("output {name:?} of type {ty} cannot be stacked"));
            }
            if output.updates {
                match self.module.param(name) {
                    _ if output.stacked => {
                        self.fail(format!("output {name:?} updates a parameter: it cannot be stacked"))
                    }
                    None => self.fail(format!("output {name:?} updates a parameter, but there is none of that name")),
                    Some(p) if p.ty != *ty => self.fail(format!("output {name:?} is {ty}, the parameter {}", p.ty)),
                    _ => {}
                }
            }
            match (caches.remove(name.as_str()), ty.cache) {
                (Some(arg), _) if arg != ty => self.fail(format!("output {name:?} is {ty}, the cache argument {arg}")),
                (None, true) => self.fail(format!("output {name:?} is a cache, but no argument of that name is")),
                _ => {}
            }
        }
        let mut lost: Vec<&str> = caches.into_keys().collect();
        lost.sort_unstable();
        for name in lost {
            self.fail(format!("the cache argument {name:?} is not handed back as an output"));
        }
    }
}

#[cfg(test)]
mod tests;
