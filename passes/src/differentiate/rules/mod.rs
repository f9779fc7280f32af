//! VJP rules: for each operation, a function that turns the cotangent `dy` of its result into contributions to the cotangents
//! of its operands.
//!
//! A rule is about the first result. Of the operations with more than one, `cross_entropy` and `linear_cross_entropy` are
//! differentiable, and their second result, `correct`, is constant between the jumps. A rule need not ask whether an operand
//! is wanted, since `Reverse::give` does, unless the contribution costs something that later passes would not remove.
//!
//! `y` stands for the result, `a`, `b`, `x`, … for operands of those names in the op table.
mod attention;
mod elementwise;
pub(super) mod linear;
mod loss;
mod norm;
mod reduce;
mod shape;

use super::reverse::Reverse;
use rdc_ir::{Op, Opcode, ValueId};

/// Gives the operands what follows from the cotangent of the first result.
pub(super) type Rule = fn(&mut Reverse<'_, '_>, &Op, ValueId);

/// What is known about the derivative of an operation.
enum Derivative {
    /// Its rule.
    Rule(Rule),
    /// It is zero: the result is an integer, a truth value, a constant, or made a constant.
    Zero,
    /// There is no rule, for this reason.
    Missing(&'static str),
}

/// The derivative of every operation.
fn derivative(opcode: Opcode) -> Derivative {
    use Derivative::{Missing, Rule, Zero};
    let first_order = "a derivative is not differentiated again";
    let laid_out = "differentiation comes before the layout of weights";
    let fused = "differentiation comes before fusion";
    match opcode {
        Opcode::Param
        | Opcode::Constant
        | Opcode::RopeTable
        | Opcode::SinusoidTable
        | Opcode::Lt
        | Opcode::Le
        | Opcode::Eq
        | Opcode::And
        | Opcode::Or
        | Opcode::Not
        | Opcode::OneHot
        | Opcode::All
        | Opcode::Positions
        | Opcode::KvSlot
        | Opcode::StopGradient => Zero,

        Opcode::Add => Rule(elementwise::add),
        Opcode::Sub => Rule(elementwise::sub),
        Opcode::Mul => Rule(elementwise::mul),
        Opcode::Div => Rule(elementwise::div),
        Opcode::Max => Rule(elementwise::max),
        Opcode::Min => Rule(elementwise::min),
        Opcode::Select => Rule(elementwise::select),
        Opcode::Neg => Rule(elementwise::neg),
        Opcode::Abs => Rule(elementwise::abs),
        Opcode::Exp => Rule(elementwise::exp),
        Opcode::Log => Rule(elementwise::log),
        Opcode::Sqrt => Rule(elementwise::sqrt),
        Opcode::Rsqrt => Rule(elementwise::rsqrt),
        Opcode::Atan => Rule(elementwise::atan),
        Opcode::Tanh => Rule(elementwise::tanh),
        Opcode::Erf => Rule(elementwise::erf),
        Opcode::Sigmoid => Rule(elementwise::sigmoid),
        Opcode::Relu => Rule(elementwise::relu),
        Opcode::Silu => Rule(elementwise::silu),
        Opcode::Gelu => Rule(elementwise::gelu),
        Opcode::GeluTanh => Rule(elementwise::gelu_tanh),
        Opcode::Cast => Rule(elementwise::cast),

        Opcode::Reshape => Rule(shape::reshape),
        Opcode::Transpose => Rule(shape::transpose),
        Opcode::Slice => Rule(shape::slice),
        Opcode::Concat => Rule(shape::concat),
        Opcode::Broadcast => Rule(shape::broadcast),
        Opcode::Pad => Rule(shape::pad),
        Opcode::Index => Rule(shape::index),
        Opcode::Gather => Rule(shape::gather),
        Opcode::ScatterAdd => Rule(shape::scatter_add),

        Opcode::ReduceSum => Rule(reduce::reduce_sum),
        Opcode::ReduceMax => Rule(reduce::reduce_max),
        Opcode::SumTo => Rule(reduce::sum_to),

        Opcode::Matmul => Rule(linear::matmul),

        Opcode::RmsNorm => Rule(norm::rms_norm),
        Opcode::LayerNorm => Rule(norm::layer_norm),
        Opcode::Softmax => Rule(norm::softmax),

        Opcode::CrossEntropy => Rule(loss::cross_entropy),
        Opcode::LinearCrossEntropy => Rule(loss::linear_cross_entropy),

        Opcode::Rope => Rule(attention::rope),
        Opcode::Attention => Rule(attention::attention),

        Opcode::CrossEntropyGrad | Opcode::LinearCrossEntropyGrad | Opcode::RopeGrad | Opcode::AttentionGrad => {
            Missing(first_order)
        }
        Opcode::CacheUpdate => Missing("a loss has no caches"),
        Opcode::Quantize | Opcode::Pack | Opcode::PackedMatmul | Opcode::PackedGather => Missing(laid_out),
        Opcode::SumBlocks => Missing(fused),
        Opcode::Loop => Missing("a loop is differentiated as a whole, by `reverse_loop`"),
    }
}

/// The rule of an operation, if it has one.
pub(super) fn rule(opcode: Opcode) -> Option<Rule> {
    if let Derivative::Rule(rule) = derivative(opcode) { Some(rule) } else { None }
}

/// Whether the derivative of an operation is zero.
pub(super) fn is_constant(opcode: Opcode) -> bool {
    matches!(derivative(opcode), Derivative::Zero)
}

/// Why an operation has no derivative by an operand, if it has none and it is not zero.
pub(super) fn missing(opcode: Opcode, operand: usize) -> Option<&'static str> {
    match derivative(opcode) {
        Derivative::Rule(_) if opcode == Opcode::Rope && operand == 1 => Some("a rotary table cannot be learned"),
        Derivative::Missing(why) if opcode != Opcode::Loop => Some(why),
        _ => None,
    }
}

/// Whether an operation has a rule, for tests that want to cover all of them; otherwise why not.
///
/// # Errors
/// The reason.
pub fn has_rule(opcode: Opcode) -> Result<(), &'static str> {
    match derivative(opcode) {
        Derivative::Rule(_) => Ok(()),
        Derivative::Zero => Err("its derivative is zero"),
        Derivative::Missing(why) => Err(why),
    }
}
