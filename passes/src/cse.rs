//! Common subexpressions: of two equal pure operations the later one goes, if the earlier one's results reach it.
//!
//! In the body of a gradient (a function with a reverse loop) that is done only to what depends on parameters alone, and to
//! reshapes, which cost nothing. There a second computation is meant: it spares keeping the first one's result until the
//! reverse direction comes to it, see [`Remat`](rdc_ir::training::Remat).
use crate::analysis;
use rdc_ir::{Attrs, Func, Module, Opcode, RegionId, ValueId};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

type Key = (Opcode, Vec<ValueId>, Attrs);

/// Removes common subexpressions from every function.
pub fn run(module: &mut Module) {
    for func in &mut module.funcs {
        let mut seen = HashMap::new();
        let mut replaced = HashMap::new();
        let again = computed_again(func);
        visit(func, func.body, &again, &mut seen, &mut replaced);
        func.replace_uses(&replaced);
    }
}

/// The operations that stay although an equal one is there, by their results.
fn computed_again(func: &Func) -> HashSet<ValueId> {
    let is_reverse = |op: &rdc_ir::Op| op.opcode == Opcode::Loop && op.flag("reverse");
    if !func.walk().iter().any(|&(_, op)| is_reverse(&func.ops[op])) {
        return HashSet::new();
    }
    let constants = analysis::constants(func);
    let ops = func.regions[func.body].ops.iter().map(|&op| &func.ops[op]);
    let results = ops.filter(|op| op.opcode != Opcode::Reshape).flat_map(|op| op.results.iter().copied());
    results.filter(|v| !constants.contains(v)).collect()
}

fn visit(
    func: &mut Func,
    region: RegionId,
    again: &HashSet<ValueId>,
    seen: &mut HashMap<Key, Vec<ValueId>>,
    replaced: &mut HashMap<ValueId, ValueId>,
) {
    let mut kept = Vec::new();
    let mut added = Vec::new();
    for op in func.regions[region].ops.clone() {
        for inner in func.ops[op].regions.clone() {
            visit(func, inner, again, seen, replaced);
        }
        if !analysis::is_pure(func, op) {
            kept.push(op);
            continue;
        }
        let data = &func.ops[op];
        let operands = data.operands.iter().map(|v| *replaced.get(v).unwrap_or(v)).collect();
        let key = (data.opcode, operands, data.attrs.clone());
        let stays = data.results.iter().any(|v| again.contains(v));
        if let Some(earlier) = seen.get(&key).filter(|_| !stays) {
            replaced.extend(data.results.iter().copied().zip(earlier.iter().copied()));
            for (&old, &new) in data.results.clone().iter().zip(&earlier.clone()) {
                func.inherit_name(old, new);
            }
        } else {
            kept.push(op);
            if let Entry::Vacant(entry) = seen.entry(key) {
                added.push(entry.key().clone());
                entry.insert(data.results.clone());
            }
        }
    }
    func.regions[region].ops = kept;
    // What a region defines does not reach beyond it.
    for key in added {
        seen.remove(&key);
    }
}
