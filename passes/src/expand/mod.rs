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

use crate::analysis;
use crate::tile::Machine;
use rdc_ir::{Attr, Builder, Func, Module, OpId, Opcode, ValueId};
use std::collections::HashMap;

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

/// Offers every operation, with operands already replaced, to `new`: what it returns takes the place of the results.
fn rewrite(func: &mut Func, mut new: impl FnMut(&mut Builder<'_>, OpId) -> Option<Vec<ValueId>>) {
    let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
    for region in analysis::regions_inside_out(func) {
        for op in std::mem::take(&mut func.regions[region].ops) {
            for operand in &mut func.ops[op].operands {
                *operand = *replaced.get(operand).unwrap_or(operand);
            }
            let mut b = Builder::at(func, region);
            b.loc = b.func.ops[op].loc;
            match new(&mut b, op) {
                Some(values) => {
                    for (old, value) in b.func.ops[op].results.clone().into_iter().zip(values) {
                        b.func.inherit_name(old, value);
                        replaced.insert(old, value);
                    }
                }
                None => func.regions[region].ops.push(op),
            }
        }
    }
    func.replace_uses(&replaced);
}

/// The value under another shape; itself if it has that shape.
fn reshape(b: &mut Builder, value: ValueId, shape: &[usize]) -> ValueId {
    if b.func.ty(value).shape == shape {
        return value;
    }
    b.op(Opcode::Reshape, &[value], vec![Attr::shape(shape)])
}
