//! What expressions evaluate to: compile-time values, weights, layers, tensors.
use rdc_ir::{Init, ValueId};
use std::rc::Rc;

/// The largest size: large enough for every vocabulary and context, small enough that products fit into 64 bits.
pub const MAX_SIZE: i64 = 1 << 24;
/// The largest number of layers in a stack.
pub const MAX_COUNT: i64 = 4096;
/// The most elements of a tensor that is not a cache.
pub const MAX_ELEMENTS: usize = 1 << 36;

/// A size of an axis and what the text calls it.
#[derive(Clone, Debug)]
pub struct Dim {
    /// The number.
    pub n: usize,
    /// The expression in the text (`3 * dim`), if it is more than a number.
    pub text: Option<Rc<str>>,
}

impl Dim {
    /// A size without a name.
    pub fn number(n: usize) -> Dim {
        Dim { n, text: None }
    }
    /// A size with a name.
    pub fn named(n: usize, text: &str) -> Dim {
        Dim { n, text: Some(text.into()) }
    }
    /// The name, or the number.
    pub fn show(&self) -> String {
        self.text.as_ref().map_or_else(|| self.n.to_string(), |t| t.to_string())
    }
    /// The name and the number, if they differ: `dim = 64`.
    pub fn explain(&self) -> String {
        self.text.as_ref().map_or_else(|| self.n.to_string(), |t| format!("{t} = {}", self.n))
    }
}

/// The numbers of a shape.
pub fn sizes(dims: &[Dim]) -> Vec<usize> {
    dims.iter().map(|d| d.n).collect()
}

/// `[B, S, dim]`
pub fn show_shape(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(Dim::show).collect::<Vec<_>>().join(", "))
}

/// `[B, S, dim] = [1, 64, 256]`
pub fn explain_shape(dims: &[Dim]) -> String {
    match dims.iter().any(|d| d.text.is_some()) {
        true => format!("{} = {:?}", show_shape(dims), sizes(dims)),
        false => format!("{:?}", sizes(dims)),
    }
}

/// A tensor of the function being built.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The value.
    pub id: ValueId,
    /// Its shape by name.
    pub dims: Vec<Dim>,
}

/// An instance of a layer, or a stack of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// Index into the table of layers.
    pub layer: usize,
    /// Values of the layer's compile-time parameters.
    pub args: Rc<Vec<Val>>,
    /// How many, for a stack.
    pub count: Option<usize>,
    /// Prefix of its weights' checkpoint names, with the final dot.
    pub prefix: Rc<str>,
    /// Whether it is a stack or within one.
    pub in_stack: bool,
}

/// The value of an expression.
#[derive(Clone, Debug)]
pub enum Val {
    /// A whole number known at compile time, and its expression.
    Int(i64, Option<Rc<str>>),
    /// A real number known at compile time.
    Float(f64),
    /// A truth value known at compile time.
    Bool(bool),
    /// A string.
    Str(Rc<str>),
    /// A list of values.
    List(Rc<Vec<Val>>),
    /// How a weight or state is drawn.
    Init(Init),
    /// A weight: index into the table of weights.
    Weight(usize),
    /// An instance of a layer.
    Part(Part),
    /// A tensor.
    Tensor(Tensor),
    /// Several values, as a call with several results yields.
    Many(Rc<Vec<Val>>),
    /// Something wrong that is already reported.
    Error,
}

impl Val {
    /// A whole number without an expression.
    pub fn int(n: i64) -> Val {
        Val::Int(n, None)
    }
    /// A string.
    pub fn str(s: &str) -> Val {
        Val::Str(s.into())
    }
    /// What kind of value it is, with an article, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Val::Int(..) => "a whole number",
            Val::Float(_) => "a number",
            Val::Bool(_) => "a flag",
            Val::Str(_) => "a string",
            Val::List(_) => "a list",
            Val::Init(_) => "an initialiser",
            Val::Weight(_) => "a weight",
            Val::Part(p) if p.count.is_some() => "a stack of layers",
            Val::Part(_) => "a layer",
            Val::Tensor(_) => "a tensor",
            Val::Many(_) => "several values",
            Val::Error => "a mistake",
        }
    }
    /// The number, if it is one known at compile time.
    pub fn number(&self) -> Option<f64> {
        match self {
            Val::Int(n, _) => Some(*n as f64),
            Val::Float(x) => Some(*x),
            _ => None,
        }
    }
    /// Whether it is known at compile time.
    pub fn is_static(&self) -> bool {
        matches!(self, Val::Int(..) | Val::Float(_) | Val::Bool(_) | Val::Str(_))
    }
    /// As messages and `inspect` show it.
    pub fn show(&self) -> String {
        match self {
            Val::Int(n, _) => n.to_string(),
            Val::Float(x) => x.to_string(),
            Val::Bool(b) => b.to_string(),
            Val::Str(s) => format!("{s:?}"),
            other => other.kind().to_string(),
        }
    }
}
