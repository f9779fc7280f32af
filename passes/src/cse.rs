//! Common subexpressions: of two equal pure operations the later one goes, if the earlier one's results reach it.
use crate::analysis;
use rdc_ir::{Attrs, Func, Module, Opcode, RegionId, ValueId};
use std::collections::HashMap;

type Key = (Opcode, Vec<ValueId>, Attrs);

/// Removes common subexpressions from every function.
pub fn run(module: &mut Module) {
    for func in &mut module.funcs {
        let mut seen = HashMap::new();
        let mut replaced = HashMap::new();
        visit(func, func.body, &mut seen, &mut replaced);
        func.replace_uses(&replaced);
    }
}

fn visit(
    func: &mut Func,
    region: RegionId,
    seen: &mut HashMap<Key, Vec<ValueId>>,
    replaced: &mut HashMap<ValueId, ValueId>,
) {
    let mut kept = Vec::new();
    let mut added = Vec::new();
    for op in func.regions[region].ops.clone() {
        for inner in func.ops[op].regions.clone() {
            visit(func, inner, seen, replaced);
        }
        if !analysis::is_pure(func, op) {
            kept.push(op);
            continue;
        }
        let data = &func.ops[op];
        let operands = data.operands.iter().map(|v| *replaced.get(v).unwrap_or(v)).collect();
        let key = (data.opcode, operands, data.attrs.clone());
        if let Some(earlier) = seen.get(&key) {
            replaced.extend(data.results.iter().copied().zip(earlier.iter().copied()));
            for (&old, &new) in data.results.clone().iter().zip(&earlier.clone()) {
                if func.values[new].name.is_none() {
                    func.values[new].name = func.values[old].name.clone();
                }
            }
        } else {
            added.push(key.clone());
            seen.insert(key, data.results.clone());
            kept.push(op);
        }
    }
    func.regions[region].ops = kept;
    // What a region defines does not reach beyond it.
    for key in added {
        seen.remove(&key);
    }
}
