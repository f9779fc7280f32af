//! Small questions that several passes ask.
use rdc_ir::{Func, OpId, Opcode, RegionId, ValueId};
use std::collections::HashSet;

/// Whether an operation only computes its results from its operands: no region, no cache.
pub fn is_pure(func: &Func, op: OpId) -> bool {
    let op = &func.ops[op];
    op.opcode != Opcode::Loop && op.opcode != Opcode::CacheUpdate && op.regions.is_empty()
}

/// The regions of a function, inner before outer.
pub fn regions_inside_out(func: &Func) -> Vec<RegionId> {
    let inner = func.walk().into_iter().flat_map(|(_, op)| func.ops[op].regions.clone());
    let mut regions: Vec<RegionId> = std::iter::once(func.body).chain(inner).collect();
    regions.reverse();
    regions
}

/// The values that an operation's regions use and do not define, in order of first use.
pub fn captured(func: &Func, op: OpId) -> Vec<ValueId> {
    let mut defined = HashSet::new();
    let mut captured = Vec::new();
    for &region in &func.ops[op].regions {
        visit_captured(func, region, &mut defined, &mut captured);
    }
    captured
}

fn visit_captured(func: &Func, region: RegionId, defined: &mut HashSet<ValueId>, captured: &mut Vec<ValueId>) {
    defined.extend(&func.regions[region].args);
    let mut note = |values: &[ValueId], defined: &HashSet<ValueId>| {
        for &value in values {
            if !defined.contains(&value) && !captured.contains(&value) {
                captured.push(value);
            }
        }
    };
    for &op in &func.regions[region].ops {
        note(&func.ops[op].operands, defined);
        defined.extend(&func.ops[op].results);
    }
    note(&func.regions[region].yields, defined);
    for &op in &func.regions[region].ops {
        for &inner in &func.ops[op].regions {
            visit_captured(func, inner, defined, captured);
        }
    }
}

/// The values that depend on parameters and constants only.
pub fn constants(func: &Func) -> HashSet<ValueId> {
    let mut constants = HashSet::new();
    for (_, op) in func.walk() {
        let data = &func.ops[op];
        if is_pure(func, op) && data.operands.iter().all(|v| constants.contains(v)) {
            constants.extend(&data.results);
        }
    }
    constants
}
