//! Rewrites after differentiation what is one operation for the sake of its derivative into what kernels compute.
//!
//! - `linear_cross_entropy` and its derivative become a loop over chunks of tokens around products and row operations, so that
//!   the logits of all tokens never exist, one loop for both where that can be ([`joint`]); `cross_entropy` and its derivative
//!   become row operations ([`loss`]).
//! - `sum_to` becomes a sum over the last axis, over the leading axes, or both ([`sums`]).
//! - `stop_gradient` goes.
//!
//! [`fuse_loss`] runs before differentiation.
mod fuse_loss;
mod joint;
mod loss;
mod sums;

pub use fuse_loss::fuse_loss;

use crate::rewrite::rewrite;
use crate::tile::Machine;
use rdc_ir::{Module, Opcode};

/// Expands every function.
pub fn run(module: &mut Module, machine: &dyn Machine) {
    for func in &mut module.funcs {
        joint::run(func, machine);
        rewrite(func, |b, op| match b.func.ops[op].opcode {
            Opcode::CrossEntropy => Some(loss::cross_entropy(b, op)),
            Opcode::CrossEntropyGrad => Some(loss::cross_entropy_grad(b, op)),
            Opcode::LinearCrossEntropy => Some(loss::linear_cross_entropy(b, op, machine)),
            Opcode::LinearCrossEntropyGrad => Some(loss::linear_cross_entropy_grad(b, op, machine)),
            Opcode::SumTo => sums::sum_to(b, op),
            Opcode::ReduceSum => sums::reduce_sum(b, op),
            Opcode::StopGradient => Some(vec![b.func.ops[op].operands[0]]),
            _ => None,
        });
    }
}
