//! The cost model: floating-point operations, bytes, parameters.
//!
//! FLOPs are those of the op table (2 per multiply-add). Bytes are what an operation must read and write if nothing is
//! fused: operands and results once, except that shape changes without movement are free, an indexed table or stack counts
//! by the rows or entries taken, a table that rows are added to by the rows changed, and a cache by the rows written.
use crate::entity::{OpId, RegionId, ValueId};
use crate::module::{Func, Module};
use crate::ops::Opcode;
use crate::types::Type;
use std::collections::{BTreeSet, HashMap};
use std::ops::AddAssign;

/// Floating-point operations and bytes moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl Cost {
    /// The cost of `n` executions.
    pub fn times(self, n: u64) -> Cost {
        Cost { flops: self.flops.saturating_mul(n), bytes: self.bytes.saturating_mul(n) }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops = self.flops.saturating_add(other.flops);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The cost of one execution of an operation; that of a `loop` is zero, its body is counted on its own.
pub fn op_cost(func: &Func, id: OpId) -> Cost {
    let op = &func.ops[id];
    let operands: Vec<&Type> = op.operands.iter().map(|&v| func.ty(v)).collect();
    let results: Vec<&Type> = op.results.iter().map(|&v| func.ty(v)).collect();
    let flops = (op.opcode.info().flops)(op, &operands, &results);
    let size = |types: &[&Type]| types.iter().fold(0u64, |n, t| n.saturating_add(t.bytes() as u64));
    let bytes = match op.opcode {
        Opcode::Loop | Opcode::Param | Opcode::Constant | Opcode::Reshape | Opcode::KvSlot => 0,
        Opcode::Gather | Opcode::Index => size(&results).saturating_mul(2).saturating_add(size(&operands[1..])),
        Opcode::PackedGather => {
            let read = results[0].elements() * operands[0].dtype.bytes();
            (read as u64).saturating_add(size(&results)).saturating_add(size(&operands[1..]))
        }
        // Rows are read, and added in place.
        Opcode::ScatterAdd => size(&operands[2..]).saturating_mul(3).saturating_add(size(&operands[1..2])),
        Opcode::CacheUpdate => {
            let written = operands[1].elements().saturating_mul(operands[0].dtype.bytes());
            size(&operands[1..2]).saturating_add(written as u64)
        }
        _ => size(&operands).saturating_add(size(&results)),
    };
    Cost { flops, bytes }
}

/// The cost of a function, apart by depth of loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuncCost {
    /// Entry d: operations inside exactly d loops, executed once. Has at least two entries.
    pub by_depth: Vec<Cost>,
}

impl FuncCost {
    /// What runs once.
    pub fn outside(&self) -> Cost {
        self.by_depth[0]
    }
    /// What runs once for each iteration.
    pub fn per_iteration(&self) -> Cost {
        self.by_depth[1]
    }
    /// The cost if every loop runs `r` iterations.
    pub fn total(&self, r: u64) -> Cost {
        let mut total = Cost::default();
        let mut times = 1u64;
        for &cost in &self.by_depth {
            total += cost.times(times);
            times = times.saturating_mul(r);
        }
        total
    }
}

/// The cost of a function.
pub fn func_cost(func: &Func) -> FuncCost {
    let mut cost = FuncCost { by_depth: vec![Cost::default(); 2] };
    add_region(func, func.body, 0, &mut cost);
    cost
}

fn add_region(func: &Func, region: RegionId, depth: usize, cost: &mut FuncCost) {
    if cost.by_depth.len() <= depth {
        cost.by_depth.push(Cost::default());
    }
    for &op in &func.regions[region].ops {
        cost.by_depth[depth] += op_cost(func, op);
        for &inner in &func.ops[op].regions {
            add_region(func, inner, depth + 1, cost);
        }
    }
}

/// Operations of products alone, two per multiply-add: of matmuls, and of the two products of an attention. Outside of loops, and in
/// an iteration; `None` if a loop is within another.
pub fn product_flops(func: &Func) -> Option<[u64; 2]> {
    let mut total = [0u64; 2];
    let mut regions = vec![(func.body, 0)];
    while let Some((region, depth)) = regions.pop() {
        for &id in &func.regions[region].ops {
            let op = &func.ops[id];
            let flops = op_cost(func, id).flops;
            let products = match op.opcode {
                Opcode::Matmul => flops,
                // A score is two multiply-adds a column of a head, and two operations of the softmax.
                Opcode::Attention => {
                    let head = 2 * func.ty(op.operands[0]).last() as u64;
                    flops / (head + 2) * head
                }
                _ => 0,
            };
            let sum = total.get_mut(depth)?;
            *sum = sum.saturating_add(products);
            regions.extend(op.regions.iter().map(|&inner| (inner, depth + 1)));
        }
    }
    Some(total)
}

/// Numbers of parameters; training state is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParamCount {
    /// All.
    pub total: u64,
    /// Those of layer stacks that some loop uses.
    pub looped: u64,
}

impl ParamCount {
    /// Parameters of the model unrolled at `r`: looped layer stacks count r times.
    pub fn unrolled(&self, r: u64) -> u64 {
        (self.total - self.looped).saturating_add(self.looped.saturating_mul(r))
    }
}

/// Counts the parameters of a module. A loop uses a parameter if an operation in it takes the parameter, or something
/// computed from parameters alone, the parameter among them.
pub fn param_count(module: &Module) -> ParamCount {
    let mut looped = BTreeSet::new();
    for func in &module.funcs {
        Uses { func, weights: HashMap::new(), looped: &mut looped }.region(func.body, false);
    }
    let mut count = ParamCount::default();
    for param in module.params.values().filter(|p| !p.state) {
        let n = param.ty.elements() as u64;
        count.total = count.total.saturating_add(n);
        if param.in_stack && looped.contains(&param.name) {
            count.looped = count.looped.saturating_add(n);
        }
    }
    count
}

struct Uses<'f, 'l> {
    func: &'f Func,
    /// For each value that depends on parameters and constants only, the parameters.
    weights: HashMap<ValueId, BTreeSet<String>>,
    looped: &'l mut BTreeSet<String>,
}

impl Uses<'_, '_> {
    fn region(&mut self, region: RegionId, in_loop: bool) {
        let func = self.func;
        for &id in &func.regions[region].ops {
            let op = &func.ops[id];
            if in_loop {
                let used = op.operands.iter().filter_map(|v| self.weights.get(v)).flatten();
                self.looped.extend(used.cloned());
            }
            let from: Option<Vec<_>> = op.operands.iter().map(|v| self.weights.get(v)).collect();
            if let (Some(from), true) = (from, op.regions.is_empty()) {
                let mut names: BTreeSet<String> = from.into_iter().flatten().cloned().collect();
                if op.opcode == Opcode::Param {
                    names.insert(op.text("name").to_string());
                }
                for &result in &op.results {
                    self.weights.insert(result, names.clone());
                }
            }
            for &inner in &op.regions {
                self.region(inner, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::parse::parse;

    #[test]
    fn counts_by_depth() {
        let module = parse(
            r#"module "m"
param "w": f32[4, 4] = normal(0.1) in_stack
param "v": f32[4, 4] = normal(0.1) in_stack
param "adapter": f32[4, 4] = normal(0.1)
param "grad.w": f32[4, 4] = constant(0.0) in_stack state
func "f"("steps" steps = %steps: i32[], "x" input = %x: f32[2, 4]) {
  %w = param {name = "w"} : f32[4, 4]
  %t = transpose %w {perm = [1, 0]} : f32[4, 4]
  %v = param {name = "v"} : f32[4, 4]
  %a = param {name = "adapter"} : f32[4, 4]
  %h = matmul %x, %v {trans_a = false, trans_b = true} : f32[2, 4]
  %y, %trips = loop %steps, %h {max_steps = 4, exit = false, stacked = 0, reverse = false} : f32[2, 4], i32[] {
    (%step: i32[], %last: bool[], %s: f32[2, 4])
    %1 = matmul %s, %t {trans_a = false, trans_b = false} : f32[2, 4]
    %2 = matmul %1, %a {trans_a = false, trans_b = false} : f32[2, 4]
    %3 = add %2, %h : f32[2, 4]
    yield %3
  }
  yield "y" = %y
}"#,
        )
        .unwrap();
        let cost = func_cost(&module.funcs[0]);
        assert_eq!(cost.outside().flops, 64);
        assert_eq!(cost.per_iteration(), Cost { flops: 136, bytes: 2 * (32 + 64 + 32) + 96 });
        assert_eq!(cost.total(3).flops, 64 + 3 * 136);
        assert_eq!(cost.total(0), cost.outside());
        let count = param_count(&module);
        assert_eq!(count, ParamCount { total: 48, looped: 16 });
        assert_eq!((count.unrolled(1), count.unrolled(3)), (48, 80));
    }

    #[test]
    fn products_count_two_per_multiply_add() {
        let module = parse(
            r#"module "m"
func "f"("steps" steps = %steps: i32[], "q" input = %q: f32[2, 3, 4, 8], "w" input = %w: f32[8, 8], "pos" position = %pos: i32[2]) {
  %y, %trips = loop %steps, %q {max_steps = 4, exit = false, stacked = 0, reverse = false} : f32[2, 3, 4, 8], i32[] {
    (%step: i32[], %last: bool[], %s: f32[2, 3, 4, 8])
    %a = attention %s, %s, %s, %pos {causal = true, scale = 0.5} : f32[2, 3, 4, 8]
    %e = exp %a : f32[2, 3, 4, 8]
    yield %e
  }
  %m = matmul %y, %w {trans_a = false, trans_b = false} : f32[2, 3, 4, 8]
  yield "m" = %m
}"#,
        )
        .unwrap();
        // Of three queries the first sees one key, the last three: six in all, each a product with a key and one with a value.
        assert_eq!(product_flops(&module.funcs[0]), Some([2 * 24 * 8 * 8, 2 * 4 * 6 * (2 * 8 + 2 * 8)]));
    }

    #[test]
    fn indexed_tensors_count_by_what_is_touched() {
        let module = parse(
            r#"module "m"
func "f"("ids" input = %ids: i32[3], "i" input = %i: i32[], "t" input = %t: f32[100, 4], "r" input = %r: f32[3, 4]) {
  %e = index %t, %i : f32[4]
  %s = scatter_add %t, %ids, %r : f32[100, 4]
  yield "e" = %e, "s" = %s
}"#,
        )
        .unwrap();
        let costs: Vec<Cost> = module.funcs[0].walk().iter().map(|&(_, op)| op_cost(&module.funcs[0], op)).collect();
        assert_eq!(costs[0], Cost { flops: 0, bytes: 2 * 16 + 4 });
        assert_eq!(costs[1], Cost { flops: 12, bytes: 3 * 48 + 12 });
    }
}
