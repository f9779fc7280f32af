//! What the reverse direction takes from the forward direction: the policies of [`Remat`].
//!
//! A policy is a set of values that may be taken; whether one is depends on the rules. What is in no set and is needed is
//! computed again from what was taken, in the end from arguments, parameters and the carried values of loops, which can always be
//! taken.
use super::Kept;
use super::problem::Problem;
use super::reverse::{Record, reverse};
use rdc_ir::training::Remat;
use rdc_ir::{Func, OpId, Opcode, ValueId, cost};
use std::collections::{HashMap, HashSet};

/// Differentiates under the policy that the options choose.
pub(super) fn differentiate(problem: &Problem<'_>) -> (Func, Kept) {
    let (func, record) = match problem.options.remat {
        Remat::None => reverse(problem, &all(problem)),
        Remat::Iteration => reverse(problem, &products_outside(problem)),
        Remat::Auto => within(problem, problem.options.budget),
    };
    (func, record.kept)
}

/// `None`: what costs, and what operations other than elementwise ones take.
fn all(problem: &Problem<'_>) -> HashSet<ValueId> {
    let func = &problem.func;
    let mut uses: HashMap<ValueId, Vec<OpId>> = HashMap::new();
    for (_, id) in func.walk() {
        for &operand in &func.ops[id].operands {
            uses.entry(operand).or_default().push(id);
        }
    }
    // A product that only falls into parts is kept as the parts, which a gated activation makes without it.
    let is_cut = |v: ValueId| {
        let slices = |op: &OpId| func.ops[*op].opcode == Opcode::Slice;
        uses.get(&v).is_some_and(|users| users.iter().all(slices))
    };
    let mut keep = HashSet::new();
    for (_, id) in func.walk() {
        let op = &func.ops[id];
        let is_part = |v: ValueId| {
            let whole = problem.def(v).map(|op| func.ops[op].opcode);
            whole.is_some_and(|opcode| !is_light(opcode) && opcode != Opcode::Loop) && is_cut(v)
        };
        let worth = |v: &&ValueId| match op.opcode {
            Opcode::Loop => false,
            Opcode::Slice if is_part(op.operands[0]) => true,
            opcode => !is_light(opcode) && !is_cut(**v) || feeds_heavy(func, &uses, **v),
        };
        keep.extend(op.results.iter().filter(worth));
    }
    keep
}

/// Whether an operation fuses into the one that uses its result: elementwise ones, and those that only move elements.
fn is_light(opcode: Opcode) -> bool {
    use Opcode::*;
    let moves = matches!(opcode, Reshape | Transpose | Slice | Concat | Broadcast | Pad | Index | OneHot | Positions);
    moves || opcode.is_elementwise()
}

/// Whether an operation that is not light takes the value, perhaps in another shape.
fn feeds_heavy(func: &Func, uses: &HashMap<ValueId, Vec<OpId>>, value: ValueId) -> bool {
    uses.get(&value).into_iter().flatten().any(|&user| match func.ops[user].opcode {
        Opcode::Reshape => feeds_heavy(func, uses, func.ops[user].results[0]),
        Opcode::Loop => false,
        opcode => !is_light(opcode),
    })
}

/// `Iteration`: nothing of loops; outside, results of products and attention.
fn products_outside(problem: &Problem<'_>) -> HashSet<ValueId> {
    let func = &problem.func;
    let is_product = |op| matches!(op, Opcode::Matmul | Opcode::Attention | Opcode::LinearCrossEntropy);
    let ops = func.regions[func.body].ops.iter().map(|&id| &func.ops[id]).filter(|op| is_product(op.opcode));
    ops.flat_map(|op| op.results.iter().copied()).collect()
}

/// `Auto`: drops value after value from what `None` takes, as long as that costs less than keeping it or the budget demands it.
/// What the budget demanded comes back, the most expensive first, where a larger value that went later left room for it.
fn within(problem: &Problem<'_>, bytes: usize) -> (Func, Record) {
    let (mut func, mut record) = reverse(problem, &all(problem));
    // From now on only what was taken: dropping a value must not bring in its operands.
    let mut keep: HashSet<ValueId> = record.taken.iter().copied().collect();
    let mut demanded = Vec::new();
    loop {
        let candidates = record.taken.iter().copied().filter(|v| is_repeatable(problem, *v));
        let ratio = |&v: &ValueId| repeat_cost(problem, &keep, &record, v) as f64 / stored(problem, v) as f64;
        let cheapest = candidates.map(|v| (ratio(&v), v)).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let Some((ratio, cheapest)) = cheapest else { break };
        if ratio > problem.options.backward.flops_per_byte_kept as f64 {
            if record.kept.bytes() <= bytes {
                break;
            }
            demanded.push(cheapest);
        }
        keep.remove(&cheapest);
        (func, record) = reverse(problem, &keep);
    }
    if record.kept.bytes() > bytes {
        let iteration = reverse(problem, &products_outside(problem));
        return if iteration.1.kept.bytes() < record.kept.bytes() { iteration } else { (func, record) };
    }
    for value in demanded.into_iter().rev() {
        keep.insert(value);
        let with_it = reverse(problem, &keep);
        if with_it.1.kept.bytes() <= bytes {
            (func, record) = with_it;
        } else {
            keep.remove(&value);
        }
    }
    (func, record)
}

/// Whether a value can be computed again.
fn is_repeatable(problem: &Problem<'_>, value: ValueId) -> bool {
    problem.def(value).is_some_and(|op| problem.func.ops[op].opcode != Opcode::Loop)
}

/// The bytes that keeping a value takes: in a loop, for all iterations.
fn stored(problem: &Problem<'_>, value: ValueId) -> usize {
    let bytes = problem.func.ty(value).bytes();
    let in_loop = problem.home(value) != problem.func.body;
    if in_loop { bytes.saturating_mul(problem.options.max_grad_steps.max(1)) } else { bytes }.max(1)
}

/// What it costs, each time, to compute a value that is taken now: the operations from those values that stay, without what
/// is repeated already.
fn repeat_cost(problem: &Problem<'_>, keep: &HashSet<ValueId>, record: &Record, value: ValueId) -> u64 {
    let times = stored(problem, value) / problem.func.ty(value).bytes().max(1);
    let mut seen = HashSet::new();
    let mut work = vec![value];
    let mut total = 0u64;
    while let Some(v) = work.pop() {
        let Some(op) = problem.def(v).filter(|_| v == value || !keep.contains(&v)) else { continue };
        let is_there = record.repeated.contains(&op) || !problem.is_variant(v) || !is_repeatable(problem, v);
        if !is_there && seen.insert(op) {
            let cost = cost::op_cost(&problem.func, op);
            let moving = cost.bytes.saturating_mul(problem.options.backward.flops_per_byte);
            total = total.saturating_add(cost.flops).saturating_add(moving);
            work.extend(&problem.func.ops[op].operands);
        }
    }
    total.saturating_mul(times.max(1) as u64)
}
