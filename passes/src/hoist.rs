//! Moves what does not change out of loops.
//!
//! A pure operation whose operands are all defined outside the loop is moved before it. This is right even if the loop runs
//! zero times, because every pure operation is total: it has a result for any operand (division by zero gives an infinity
//! or NaN, a gather's ids are checked when they enter the program and clamped in it), and an unused result is no effect. So
//! no guard is needed; the price of zero trips is the work itself.
//!
//! A carried value that every iteration yields unchanged is its initial value, also after zero trips. It becomes a captured
//! value first, so that what depends on it can leave as well.
use crate::analysis;
use rdc_ir::{Func, Module, OpId, RegionId, ValueId};
use std::collections::{HashMap, HashSet};

/// Hoists in every function, from the innermost loop outwards.
pub fn run(module: &mut Module) {
    for func in &mut module.funcs {
        for region in analysis::regions_inside_out(func) {
            hoist_from_loops_in(func, region);
        }
    }
}

fn hoist_from_loops_in(func: &mut Func, region: RegionId) {
    let mut out = Vec::new();
    for op in func.regions[region].ops.clone() {
        for inner in func.ops[op].regions.clone() {
            capture_unchanged(func, op, inner);
            out.extend(take_invariant(func, inner));
        }
        out.push(op);
    }
    func.regions[region].ops = out;
}

/// Replaces carried values that do not change by their initial values. Caches are linear and stay.
fn capture_unchanged(func: &mut Func, op: OpId, body: RegionId) {
    let carried = func.ops[op].operands.len().saturating_sub(1);
    let mut replaced = HashMap::new();
    for i in 0..carried {
        let (init, arg) = (func.ops[op].operands[i + 1], func.regions[body].args[i + 2]);
        let next = func.regions[body].yields[i];
        if (next == arg || next == init) && !func.ty(init).cache {
            replaced.insert(arg, init);
            replaced.insert(func.ops[op].results[i], init);
        }
    }
    func.replace_uses(&replaced);
}

/// Removes the invariant operations from a loop body and returns them in order.
fn take_invariant(func: &mut Func, body: RegionId) -> Vec<OpId> {
    let ops = std::mem::take(&mut func.regions[body].ops);
    let mut inside: HashSet<ValueId> = func.regions[body].args.iter().copied().collect();
    let (mut stay, mut leave) = (Vec::new(), Vec::new());
    for op in ops {
        let invariant = analysis::is_pure(func, op) && !func.ops[op].operands.iter().any(|v| inside.contains(v));
        if invariant {
            leave.push(op);
        } else {
            inside.extend(&func.ops[op].results);
            stay.push(op);
        }
    }
    func.regions[body].ops = stay;
    leave
}
