//! Reverse-mode differentiation: from a function `loss` makes a function `grad`.
//!
//! # Straight-line code
//! The *cotangent* of a value v is the derivative of the loss by v, a tensor of v's type; that of the loss itself is one. Going
//! through the operations backwards, each one turns the cotangent of its result into contributions to the cotangents of its
//! operands: its *VJP rule* (vector-Jacobian product, one small function per operation in [`rules`]). When all users of a
//! value have been visited, its contributions add up to its cotangent (`cotangent`). What arrives at a parameter is the
//! gradient. Values that do not depend on a parameter, or that the loss does not depend on, have no cotangent, and nothing
//! is computed for them (`activity`).
//!
//! A rule may need *primal* values: operands or results as the forward direction had them. Each is either kept from there or
//! computed again (`primal`); which, is the policy's choice (`remat`).
//!
//! # The loop
//! ```text
//! loss:  s₀ ── body ── body ── body ── body ── s₄          r = 4 iterations
//! grad:  s₀ ── N ─── N ──┬─── F ─── F ── s₄                n = 2 and k = 2: loops N and F, the same body (`forward`)
//!                        │    │stack  │stack
//!               stop     └─ ← R ─── ← R ── ds₄             loop R, from the last step to the first (`reverse_loop`)
//! ```
//! A loop becomes three. *N* runs the n iterations without gradient and keeps nothing. *F* goes on from N's result, and for
//! every value that is to be kept has a stacked result: entry i is the value at iteration i. *R* runs backwards over the
//! iterations that F ran (`loop {reverse = true}`, as many trips as F took). Its body is the reverse of the loop's body: it
//! reads primal values with `index(stack, step)`, and what is not stacked it computes again from what is.
//!
//! What R carries:
//! - for each carried value of the loop, its cotangent. It begins as the cotangent of the loop's result; an iteration takes
//!   it as the cotangent of what it yielded, and hands on the cotangent of its argument. After R it is the cotangent of the initial
//!   value, if n = 0; with n > 0 the initial value is a constant like everything that N does.
//! - for each *captured* value (defined before the loop, used in it: the injected embedding, weights) the sum of the
//!   contributions of all iterations, from zero. For a weight of a matmul that is `acc + dyᵀ x` (`weights`).
//!
//! A stacked result of the loss's own loop (the losses of all steps) needs no new idea: the cotangent of iteration i's entry is
//! `index(cotangent of the stack, i)`. With n > 0 such a result holds the k iterations with gradient, and `trips` is their number.
//!
//! Step numbers: iteration i of F and R is iteration n + i of the model, and `is_last` is true at n + k - 1, also if an exit
//! ends F earlier. Exits work if n = 0 only, since what happens after an exit is not to run.
//!
//! # What is differentiated otherwise
//! A loop whose trip count is not the function's number of steps, or which stands in another loop, has no N: all of its
//! iterations have gradients. The state in which the loop begins is a constant if it is an argument, as all arguments are.
mod activity;
mod cotangent;
mod emit;
mod forward;
mod primal;
mod problem;
mod remat;
mod reverse;
mod reverse_loop;
pub mod rules;
mod weights;

use crate::Error;
use crate::tile::Backward;
use problem::Problem;
use rdc_ir::training::Remat;
use rdc_ir::{ArgRole, Func, Loc, Module, Param};

/// Options of differentiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The largest number of iterations with gradient, K: the size of the stacks. At least 1.
    pub max_grad_steps: usize,
    /// What is kept.
    pub remat: Remat,
    /// The most bytes that the stacks and what the two directions share may take with [`Remat::Auto`].
    pub budget: usize,
    /// Parameters that get no gradient.
    pub frozen: Vec<String>,
    /// The bytes that may be used for stacking activations and their cotangents, so that a weight's gradient is one product
    /// after the loop where that is cheaper than a sum in it. If `None`, always a sum.
    pub stack_weight_grads: Option<usize>,
    /// What the machine's backward pass weighs.
    pub backward: Backward,
}

impl Default for Options {
    /// Eight iterations with gradient, everything kept, nothing frozen, sums.
    fn default() -> Options {
        Options {
            max_grad_steps: 8,
            remat: Remat::None,
            budget: usize::MAX,
            frozen: Vec::new(),
            stack_weight_grads: None,
            backward: Backward::default(),
        }
    }
}

/// What a function's gradient keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of the stacks that the forward loop writes for the reverse loop.
    pub stacks: usize,
    /// Bytes of values outside loops that the reverse direction reads.
    pub outside: usize,
}

impl Kept {
    /// All bytes.
    pub fn bytes(&self) -> usize {
        self.stacks.saturating_add(self.outside)
    }
}

/// For every function `loss` or `loss.X`, adds `grad` or `grad.X`, and for every parameter NAME that is neither frozen nor
/// state the state parameter `grad.NAME`, if missing.
///
/// The new function takes the same arguments, but instead of the trip count (role `steps`) the numbers `no_grad_steps` and
/// `grad_steps`, both `i32[]`. It returns the loss and what else the loss function returns, without stacked results, then
/// for every such parameter an output that updates `grad.NAME` (zeros where the loss does not depend on the parameter).
///
/// # Errors
/// If a loss function has no output `loss` of type `f32[]`, or the gradient passes through what has no derivative.
pub fn run(module: &mut Module, options: &Options) -> Result<(), Error> {
    for index in 0..module.funcs.len() {
        if let Some(suffix) = loss_suffix(&module.funcs[index].name) {
            let name = format!("grad{suffix}");
            let func = gradient(module, &module.funcs[index], &name, options)?.0;
            module.funcs.push(func);
        }
    }
    let weights: Vec<Param> = weights(module, options).cloned().collect();
    for weight in weights {
        let name = gradient_name(&weight.name);
        if module.param(&name).is_none() {
            module.params.push(Param { loc: weight.loc, ..Param::training_state(name, weight.ty) });
        }
    }
    Ok(())
}

/// What the gradient of a loss function keeps under these options.
///
/// # Errors
/// As [`run`].
pub fn kept(module: &Module, loss: &Func, options: &Options) -> Result<Kept, Error> {
    Ok(gradient(module, loss, "grad", options)?.1)
}

fn gradient(module: &Module, loss: &Func, name: &str, options: &Options) -> Result<(Func, Kept), Error> {
    let problem = Problem::new(loss, name, weights(module, options), options)?;
    Ok(remat::differentiate(&problem))
}

/// What follows `loss` in the name of a loss function; `None` for other functions.
pub fn loss_suffix(name: &str) -> Option<&str> {
    name.strip_prefix("loss").filter(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The parameters that get a gradient.
fn weights<'m>(module: &'m Module, options: &Options) -> impl Iterator<Item = &'m Param> {
    module.params.values().filter(|p| !p.state && !options.frozen.contains(&p.name))
}

/// The name of the state parameter that holds a parameter's gradient.
pub fn gradient_name(param: &str) -> String {
    format!("{}{param}", crate::optimizer::GRAD)
}

fn unsupported(message: impl Into<String>, loc: Loc) -> Error {
    Error::Unsupported { message: message.into(), loc }
}

/// Whether an argument is the number of steps.
fn is_steps(role: ArgRole) -> bool {
    role == ArgRole::Steps
}
