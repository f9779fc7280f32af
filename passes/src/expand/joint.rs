//! The loss of a linear head together with its derivative.
//!
//! Both need the logits, which are not kept: alone each of them computes the product. Where the weight of each token's loss
//! does not depend on the losses (in a mean it is one over the number of labels), the derivative can be taken as soon as
//! the logits are there. So the pair becomes one loop over chunks at the place of the loss, with one product for the logits.
use super::loss;
use crate::analysis;
use crate::tile::Machine;
use rdc_ir::{Builder, Func, OpId, Opcode, RegionId, ValueId};
use std::collections::{HashMap, HashSet};

/// A loss and its derivative, and what comes between them that the derivative needs.
struct Pair {
    loss: OpId,
    grad: OpId,
    between: HashSet<OpId>,
}

/// Expands the losses of linear heads that can be computed together with their derivatives.
pub fn run(func: &mut Func, machine: &dyn Machine) {
    for region in analysis::regions_inside_out(func) {
        while let Some(pair) = pair(func, region) {
            expand(func, region, &pair, machine);
        }
    }
}

fn pair(func: &Func, region: RegionId) -> Option<Pair> {
    let ops = &func.regions[region].ops;
    let of = |opcode| move |op: &&OpId| func.ops[**op].opcode == opcode;
    let grads: Vec<OpId> = ops.iter().filter(of(Opcode::LinearCrossEntropyGrad)).copied().collect();
    let losses = ops.iter().enumerate().filter(|(_, op)| of(Opcode::LinearCrossEntropy)(op));
    losses.flat_map(|(at, &loss)| grads.iter().map(move |&grad| (at, loss, grad))).find_map(|(at, loss, grad)| {
        let between = between(func, &ops[at..], loss, grad)?;
        is_derivative(func, loss, grad).then_some(Pair { loss, grad, between })
    })
}

/// Whether an operation is the derivative of another: of the same values, perhaps computed a second time.
fn is_derivative(func: &Func, loss: OpId, grad: OpId) -> bool {
    let (loss, grad) = (&func.ops[loss], &func.ops[grad]);
    let own = [&grad.operands[..3], &grad.operands[4..]].concat();
    let mut known = HashMap::new();
    loss.attrs == grad.attrs
        && loss.operands.len() == own.len()
        && loss.operands.iter().zip(own).all(|(&a, b)| same(func, a, b, &mut known))
}

/// Whether two values are the same computation; `known` is what was found so far.
fn same(func: &Func, a: ValueId, b: ValueId, known: &mut HashMap<(ValueId, ValueId), bool>) -> bool {
    if a == b {
        return true;
    }
    if let Some(&found) = known.get(&(a, b)) {
        return found;
    }
    let (Some(one), Some(other)) = (func.def_op(a), func.def_op(b)) else { return false };
    let result = |op: OpId, value| func.ops[op].results.iter().position(|&r| r == value);
    let (x, y) = (&func.ops[one], &func.ops[other]);
    let alike = x.opcode == y.opcode && x.attrs == y.attrs && x.operands.len() == y.operands.len();
    let found = alike
        && result(one, a) == result(other, b)
        && analysis::is_pure(func, one)
        && x.operands.iter().zip(&y.operands).all(|(&a, &b)| same(func, a, b, known));
    known.insert((a, b), found);
    found
}

/// The operations among those from the loss on that the weights of the tokens depend on, if that is neither the loss nor anything
/// that must stay where it is.
fn between(func: &Func, ops: &[OpId], loss: OpId, grad: OpId) -> Option<HashSet<OpId>> {
    let later: HashSet<OpId> = ops.iter().copied().collect();
    let (mut found, mut open) = (HashSet::new(), vec![func.ops[grad].operands[3]]);
    while let Some(value) = open.pop() {
        let Some(op) = func.def_op(value).filter(|op| later.contains(op)) else { continue };
        if op == loss || !analysis::is_pure(func, op) {
            return None;
        }
        if found.insert(op) {
            open.extend(&func.ops[op].operands);
        }
    }
    later.contains(&grad).then_some(found)
}

fn expand(func: &mut Func, region: RegionId, pair: &Pair, machine: &dyn Machine) {
    let ops = std::mem::take(&mut func.regions[region].ops);
    let needed: Vec<OpId> = ops.iter().copied().filter(|op| pair.between.contains(op)).collect();
    let mut replaced = HashMap::new();
    for op in ops {
        if op == pair.loss {
            func.regions[region].ops.extend(&needed);
            let mut b = Builder::at(func, region);
            b.loc = b.func.ops[op].loc;
            let (columns, grads) = loss::linear_cross_entropy_with_grad(&mut b, pair.loss, pair.grad, machine);
            let old = [pair.loss, pair.grad].map(|op| func.ops[op].results.clone()).concat();
            for (old, new) in old.into_iter().zip(columns.into_iter().chain(grads)) {
                func.inherit_name(old, new);
                replaced.insert(old, new);
            }
        } else if op != pair.grad && !pair.between.contains(&op) {
            func.regions[region].ops.push(op);
        }
    }
    func.replace_uses(&replaced);
}
