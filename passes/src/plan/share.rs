//! Whether a kernel may write a result over an argument: the condition in `rdc_ir::program`, "Calling convention".
use rdc_ir::program::{Kernel, KernelKind};
use rdc_ir::{Func, Op, OpId, Opcode, ValueId};
use std::collections::{HashMap, HashSet};

/// Whether the result may have the memory of the arguments, all of which are the same memory, seen whole.
pub fn may_share(kernel: &Kernel, args: &[usize], result: usize) -> bool {
    let func = &kernel.func;
    let body = &func.regions[func.body];
    let linear = |v: &&ValueId| !func.ty(**v).cache;
    let results: Vec<ValueId> = body.yields.iter().filter(linear).copied().collect();
    let Some(&result) = results.get(result) else { return false };
    let args: Vec<ValueId> = args.iter().filter_map(|&i| body.args.get(i).copied()).collect();
    let alike =
        |&v: &ValueId| func.ty(v).dtype == func.ty(result).dtype && func.ty(v).bytes() == func.ty(result).bytes();
    if args.is_empty() || !args.iter().all(alike) {
        return false;
    }
    match kernel.kind {
        KernelKind::ScatterAdd { .. } => args.len() == 1 && is_base(func, args[0], result),
        // One row or scalar that every task computes is no result, but if it were, tasks would meet.
        KernelKind::Rows { rows } if func.ty(result).elements() < rows => false,
        KernelKind::Rows { rows } => {
            element_by_element(func, &args, result, &results) || row_by_row(func, &args, result, &results, rows)
        }
        KernelKind::Matmul { .. } | KernelKind::Product { .. } | KernelKind::Columns { .. } | KernelKind::Generic => {
            element_by_element(func, &args, result, &results)
        }
        _ => false,
    }
}

/// Whether `scatter_add` makes the result, with that base, and nothing else reads it.
fn is_base(func: &Func, base: ValueId, result: ValueId) -> bool {
    let users: Vec<OpId> = func.regions[func.body].ops.iter().copied().filter(|&op| uses(func, op, base)).collect();
    let [op] = users[..] else { return false };
    let op = &func.ops[op];
    op.opcode == Opcode::ScatterAdd
        && op.results == [result]
        && op.operands[0] == base
        && !op.operands[1..].contains(&base)
}

fn uses(func: &Func, op: OpId, value: ValueId) -> bool {
    func.ops[op].operands.contains(&value)
}

/// What depends on the arguments, if `leads` holds for all operations with an operand that does, given with these operands.
fn dependents(func: &Func, args: &[ValueId], leads: impl Fn(&Op, &[ValueId]) -> bool) -> Option<HashSet<ValueId>> {
    let mut depends: HashSet<ValueId> = args.iter().copied().collect();
    for &id in &func.regions[func.body].ops {
        let op = &func.ops[id];
        let operands: Vec<ValueId> = op.operands.iter().copied().filter(|v| depends.contains(v)).collect();
        if !operands.is_empty() {
            if !leads(op, &operands) {
                return None;
            }
            depends.extend(&op.results);
        }
    }
    Some(depends)
}

/// Whether elementwise operations, norms, and reductions of rows are all that leads from the arguments to results, of which all but
/// one have one element a row. A row program has read a row for the last time when it writes that one, if nothing is reduced after.
fn row_by_row(func: &Func, args: &[ValueId], result: ValueId, results: &[ValueId], rows: usize) -> bool {
    let whole = func.ty(result).elements();
    let is_column = |v: ValueId| func.ty(v).elements() == rows;
    let fits = |&v: &ValueId| func.ty(v).elements() == whole || is_column(v);
    let leads = |op: &Op, _: &[ValueId]| (same_places(op) || sweeps(op) > 0) && op.results.iter().all(fits);
    dependents(func, args, leads).is_some_and(|depends| {
        let others = results.iter().filter(|&&v| v != result && depends.contains(&v)).all(|&v| is_column(v));
        let levels = levels(func);
        let of = |v: &ValueId| levels.get(v).copied().unwrap_or(0);
        let last_read = func.regions[func.body]
            .ops
            .iter()
            .map(|&op| &func.ops[op])
            .filter(|op| sweeps(op) > 0 && depends.contains(&op.operands[0]));
        let read_before = last_read.map(|op| of(&op.operands[0]) + sweeps(op) - 1).all(|level| level <= of(&result));
        depends.contains(&result) && others && read_before
    })
}

/// How many sweeps over a row an operation needs before its result can be computed.
fn sweeps(op: &Op) -> usize {
    match op.opcode {
        Opcode::ReduceSum | Opcode::ReduceMax | Opcode::RmsNorm => 1,
        Opcode::LayerNorm => 2,
        _ => 0,
    }
}

/// The sweeps that come before the one in which a value of a row program is computed.
fn levels(func: &Func) -> HashMap<ValueId, usize> {
    let mut levels = HashMap::new();
    for &op in &func.regions[func.body].ops {
        let op = &func.ops[op];
        let before = op.operands.iter().filter_map(|v| levels.get(v)).max().copied().unwrap_or(0);
        levels.extend(op.results.iter().map(|&v| (v, before + sweeps(op))));
    }
    levels
}

/// Whether an operation makes each element of those in its place, or is a reshape.
fn same_places(op: &Op) -> bool {
    op.opcode.is_elementwise() || op.opcode == Opcode::Reshape
}

fn element_by_element(func: &Func, args: &[ValueId], result: ValueId, results: &[ValueId]) -> bool {
    let leads = |op: &Op, operands: &[ValueId]| {
        let count = op.results.first().map_or(0, |&v| func.ty(v).elements());
        same_places(op) && operands.iter().all(|&v| func.ty(v).elements() == count)
    };
    let mut ops = func.regions[func.body].ops.iter().map(|&id| &func.ops[id]);
    let all_elementwise = ops.all(|op| same_places(op) || op.opcode == Opcode::Constant);
    dependents(func, args, leads).is_some_and(|depends| {
        let dependent = results.iter().filter(|v| depends.contains(v)).count();
        depends.contains(&result) && (all_elementwise || dependent == 1)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rdc_ir::program::{Dispatch, Tiling};

    fn shares(kind: KernelKind, body: &str, args: &[usize], result: usize) -> bool {
        let text = format!("module \"m\"\nfunc \"k\"{body}");
        let func = rdc_ir::parse(&text).unwrap().funcs.remove(0);
        let (tasks, dispatch) = (1, Dispatch::Static);
        let kernel = Kernel {
            name: "k".into(),
            kind,
            tiling: Tiling::Whole,
            func,
            pitches: Default::default(),
            tasks,
            dispatch,
            scratch: 0,
            flops: 0,
            bytes: 0,
        };
        may_share(&kernel, args, result)
    }

    #[test]
    fn elementwise_kernels_share() {
        let rows = KernelKind::Rows { rows: 4 };
        let sum = "(\"a\" input = %a: f32[4, 8], \"b\" input = %b: f32[4, 8], \"c\" input = %c: f32[4, 1]) {
            %s = add %a, %b : f32[4, 8]
            %n = mul %s, %c : f32[4, 8]
            %m = mul %b, %b : f32[4, 8]
            yield \"n\" = %n, \"m\" = %m
        }";
        assert!(shares(rows.clone(), sum, &[0], 0) && shares(rows.clone(), sum, &[1], 0));
        assert!(shares(rows.clone(), sum, &[1], 1) && shares(rows.clone(), sum, &[0, 1], 0));
        assert!(!shares(rows.clone(), sum, &[0], 1), "it is not computed from it");
        assert!(!shares(rows.clone(), sum, &[2], 0), "another shape");
        assert!(!shares(rows, sum, &[], 0));
    }

    #[test]
    fn reductions_allow_one_dependent_result() {
        let rows = KernelKind::Rows { rows: 4 };
        let one = |also: &str| {
            format!(
                "(\"a\" input = %a: f32[4, 8], \"b\" input = %b: f32[4, 8]) {{
                    %r = reduce_sum %b {{axis = 1, keep = true}} : f32[4, 1]
                    %s = mul %a, %r : f32[4, 8]
                    %t = mul {also}, {also} : f32[4, 8]
                    yield \"s\" = %s, \"t\" = %t
                }}"
            )
        };
        assert!(shares(rows.clone(), &one("%b"), &[0], 0));
        assert!(!shares(rows.clone(), &one("%a"), &[0], 1), "another sweep reads it again");
        assert!(!shares(rows, &one("%b"), &[1], 1), "it is reduced");
    }

    #[test]
    fn rows_that_are_reduced_share_with_the_only_result() {
        let rows = KernelKind::Rows { rows: 4 };
        let one = |op: &str, yields: &str| {
            format!(
                "(\"a\" input = %a: f32[4, 8], \"b\" input = %b: f32[4, 8]) {{
                    %m = reduce_max %a {{axis = 1, keep = true}} : f32[4, 1]
                    %l = sub %a, %m : f32[4, 8]
                    %e = exp %l : f32[4, 8]
                    %s = reduce_sum %e {{axis = 1, keep = true}} : f32[4, 1]
                    %n = {op} : f32[4, 8]
                    %c = mul %b, %b : f32[4, 8]
                    yield {yields}
                }}"
            )
        };
        let only = "\"n\" = %n, \"c\" = %c";
        assert!(shares(rows.clone(), &one("div %e, %s", only), &[0], 0));
        assert!(
            shares(rows.clone(), &one("div %e, %s", "\"n\" = %n, \"m\" = %m, \"s\" = %s"), &[0], 0),
            "columns beside it"
        );
        let early = one("add %a, %b", "\"n\" = %n, \"s\" = %s");
        assert!(!shares(rows.clone(), &early, &[0], 0), "it is written before the sweep that sums");
        let early = one("sub %a, %m", "\"n\" = %n, \"s\" = %s");
        assert!(shares(rows.clone(), &early, &[0], 0), "it is written in the sweep that sums");
        assert!(!shares(rows.clone(), &one("div %e, %s", "\"n\" = %n, \"e\" = %e"), &[0], 1), "another result");
        assert!(!shares(rows.clone(), &one("softmax %l", only), &[0], 0), "it is written before its last sweep");
        let matmul = KernelKind::Matmul { m: 4, n: 8, k: 8 };
        assert!(!shares(matmul, &one("div %e, %s", only), &[0], 0));
    }

    #[test]
    fn a_base_is_shared_and_its_ids_are_not() {
        let kind = KernelKind::ScatterAdd { rows: 4 };
        let add = "(\"a\" input = %a: f32[4, 8], \"i\" input = %i: i32[4], \"r\" input = %r: f32[4, 8]) {
            %n = scatter_add %a, %i, %r : f32[4, 8]
            yield \"n\" = %n
        }";
        assert!(shares(kind.clone(), add, &[0], 0) && !shares(kind.clone(), add, &[2], 0));
        let own = add.replace("%a, %i, %r", "%a, %i, %a");
        assert!(!shares(kind, &own, &[0], 0));
    }
}
