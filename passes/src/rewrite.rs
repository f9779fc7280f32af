//! Rewriting operation by operation.
use crate::analysis;
use rdc_ir::{Builder, Func, OpId, ValueId};
use std::collections::HashMap;

/// Offers every operation, with operands already replaced, to `new`: what it returns takes the place of the results.
pub fn rewrite(func: &mut Func, mut new: impl FnMut(&mut Builder<'_>, OpId) -> Option<Vec<ValueId>>) {
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
