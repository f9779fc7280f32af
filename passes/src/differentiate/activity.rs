//! Which values have a cotangent: those that depend on a parameter and that the loss depends on.
//!
//! Both are reachability along the differentiable edges of the function, from an operand to a result. A loop adds edges from
//! its operands and yields to its arguments and results, so a fixpoint over carried values is nothing but a path around.
use super::rules;
use rdc_ir::{DType, Func, OpId, Opcode, ValueId};
use std::collections::{HashMap, HashSet};

/// The values of a function that depend on a parameter with gradient, and those that the loss depends on.
pub(super) struct Activity {
    varied: HashSet<ValueId>,
    useful: HashSet<ValueId>,
}

impl Activity {
    /// Of a function, from the values whose gradient is wanted to the loss.
    pub(super) fn new(func: &Func, weights: &[ValueId], loss: ValueId) -> Activity {
        let (mut uses, mut sources): (Edges, Edges) = (HashMap::new(), HashMap::new());
        for (_, op) in func.walk() {
            for (from, to) in edges(func, op) {
                if func.ty(from).dtype == DType::F32 && func.ty(to).dtype == DType::F32 {
                    uses.entry(from).or_default().push(to);
                    sources.entry(to).or_default().push(from);
                }
            }
        }
        Activity { varied: reach(weights, &uses), useful: reach(&[loss], &sources) }
    }
    /// Whether the value has a cotangent.
    pub(super) fn active(&self, value: ValueId) -> bool {
        self.varied(value) && self.useful.contains(&value)
    }
    /// Whether the value depends on a parameter with gradient.
    pub(super) fn varied(&self, value: ValueId) -> bool {
        self.varied.contains(&value)
    }
}

type Edges = HashMap<ValueId, Vec<ValueId>>;

fn reach(from: &[ValueId], edges: &Edges) -> HashSet<ValueId> {
    let mut reached = HashSet::new();
    let mut work = from.to_vec();
    while let Some(value) = work.pop() {
        if reached.insert(value) {
            work.extend(edges.get(&value).into_iter().flatten());
        }
    }
    reached
}

/// The differentiable edges of an operation.
fn edges(func: &Func, id: OpId) -> Vec<(ValueId, ValueId)> {
    let op = &func.ops[id];
    if op.opcode != Opcode::Loop {
        // Every rule is about the first result, see `rules`; the check wants to know of one that has none.
        let results = match op.opcode {
            _ if rules::is_constant(op.opcode) => &[],
            Opcode::Attention => &op.results[..],
            _ => &op.results[..op.results.len().min(1)],
        };
        return results.iter().flat_map(|&r| op.operands.iter().map(move |&v| (v, r))).collect();
    }
    let (init, region) = (&op.operands[1..], &func.regions[op.regions[0]]);
    let mut edges = Vec::new();
    for (i, &init) in init.iter().enumerate() {
        for from in [init, region.yields[i]] {
            edges.extend([(from, region.args[i + 2]), (from, op.results[i])]);
        }
    }
    let stacked = op.results.len() - op.size("stacked")..;
    let yields = region.yields.len() - op.size("stacked")..;
    edges.extend(region.yields[yields].iter().copied().zip(op.results[stacked].iter().copied()));
    edges
}
