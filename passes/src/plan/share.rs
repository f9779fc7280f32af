//! Whether a kernel may write a result over an argument: the condition in `rdc_ir::program`, "Calling convention".
use rdc_ir::program::body::{Epilogue, Rows};
use rdc_ir::program::rows::{Class, NodeId, NodeKind, RowGraph};
use rdc_ir::program::{Kernel, KernelKind};

/// Whether the result of that pointer may have the memory of the arguments, all of which are the same memory, seen whole.
pub fn may_share(kernel: &Kernel, args: &[usize], result: usize) -> bool {
    let ty = |pointer: usize| &kernel.pointers[pointer].ty;
    let alike = |&arg: &usize| ty(arg).dtype == ty(result).dtype && ty(arg).bytes() == ty(result).bytes();
    if args.is_empty() || !args.iter().all(alike) {
        return false;
    }
    let untouched = |pointers: &[usize]| !pointers.iter().any(|pointer| args.contains(pointer));
    match &kernel.kind {
        KernelKind::ScatterAdd(body) => args == [body.base] && untouched(&[body.ids, body.terms]),
        // One row or scalar that every task computes is no result, but if it were, tasks would meet.
        KernelKind::Rows(rows) => {
            ty(result).elements() >= rows.graph.rows
                && (by_elements(rows, args, result, true) || by_rows(rows, args, result))
        }
        KernelKind::Matmul(body) => {
            let (Epilogue::Elements(after) | Epilogue::Rows(after)) = &body.epilogue;
            !reads(&body.before, args) && untouched(&[body.weight]) && by_elements(after, args, result, false)
        }
        KernelKind::Product(body) => {
            untouched(&[body.left.pointer, body.right.pointer]) && by_elements(&body.epilogue, args, result, false)
        }
        KernelKind::Columns(body) => !reads(&body.terms, args) && by_elements(&body.epilogue, args, result, false),
        KernelKind::Generic(body) => args.iter().all(|arg| body.in_place.contains(arg)),
        _ => false,
    }
}

/// Whether row operations read one of the arguments.
fn reads(graph: &RowGraph, args: &[usize]) -> bool {
    graph.nodes.iter().any(|node| matches!(&node.kind, NodeKind::Arg(pointer) if args.contains(pointer)))
}

/// The nodes that depend on the arguments, if `leads` holds for all that have such operands, given with these operands.
fn dependents(graph: &RowGraph, args: &[usize], leads: impl Fn(NodeId, &[NodeId]) -> bool) -> Option<Vec<bool>> {
    let mut depends: Vec<bool> = Vec::new();
    for (id, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<NodeId> = node.kind.operands().into_iter().filter(|&operand| depends[operand]).collect();
        if !operands.is_empty() && !leads(id, &operands) {
            return None;
        }
        let table = match &node.kind {
            NodeKind::Gather { table, .. } | NodeKind::PackedGather { table, .. } => Some(table),
            NodeKind::Rope { rope, .. } => Some(&rope.table),
            NodeKind::Positions { pos, .. } => Some(pos),
            _ => None,
        };
        if table.is_some_and(|table| args.contains(table)) {
            return None;
        }
        depends.push(!operands.is_empty() || matches!(&node.kind, NodeKind::Arg(pointer) if args.contains(pointer)));
    }
    Some(depends)
}

/// Whether a node makes each element of those in its place, or is another node's elements.
fn same_places(kind: &NodeKind) -> bool {
    matches!(kind, NodeKind::Elementwise { .. } | NodeKind::Alias(_))
}

/// The node that is written to a pointer, if it fills it.
fn whole(rows: &Rows, pointer: usize) -> Option<NodeId> {
    let mut stored = rows.results.iter().filter(|stored| stored.pointer == pointer);
    match (stored.next(), stored.next()) {
        (Some(stored), None) if stored.block.is_none() => Some(stored.node),
        _ => None,
    }
}

/// Whether only elementwise operations, all over the full shape, lead from the arguments to the result, and no other result depends on
/// the arguments or, where an element is read for those in its place only (`alone`: the kernel is nothing but `rows`), all are
/// elementwise.
fn by_elements(rows: &Rows, args: &[usize], result: usize, alone: bool) -> bool {
    let nodes = &rows.graph.nodes;
    let leads = |id: NodeId, operands: &[NodeId]| {
        same_places(&nodes[id].kind) && operands.iter().all(|&operand| nodes[operand].class == nodes[id].class)
    };
    let only_elements = |kind: &NodeKind| same_places(kind) || matches!(kind, NodeKind::Arg(_) | NodeKind::Constant(_));
    let (Some(depends), Some(node)) = (dependents(&rows.graph, args, leads), whole(rows, result)) else { return false };
    let dependent = rows.results.iter().filter(|stored| depends[stored.node]).count();
    depends[node] && (dependent == 1 || alone && nodes.iter().all(|node| only_elements(&node.kind)))
}

/// Whether elementwise operations, norms, and reductions of rows are all that leads from the arguments to results, of which all but
/// one have one element a row. A row program has read a row for the last time when it writes that one, if nothing is reduced after.
fn by_rows(rows: &Rows, args: &[usize], result: usize) -> bool {
    let nodes = &rows.graph.nodes;
    let Some(node) = whole(rows, result) else { return false };
    let fits = |id: NodeId| nodes[id].class == Class::Column || nodes[id].class == nodes[node].class;
    let sweeps = |id: NodeId| match nodes[id].kind {
        NodeKind::Softmax { .. } => 0,
        ref kind => kind.sweeps(),
    };
    let leads = |id: NodeId, _: &[NodeId]| (same_places(&nodes[id].kind) || sweeps(id) > 0) && fits(id);
    let Some(depends) = dependents(&rows.graph, args, leads) else { return false };
    let others = rows.results.iter().filter(|stored| stored.node != node && depends[stored.node]);
    let reduced = |id: NodeId| nodes[id].kind.operands()[0];
    let mut read = (0..nodes.len()).filter(|&id| sweeps(id) > 0 && depends[reduced(id)]);
    depends[node]
        && others.into_iter().all(|stored| stored.block.is_none() && nodes[stored.node].class == Class::Column)
        && read.all(|id| nodes[reduced(id)].level + sweeps(id) - 1 <= nodes[node].level)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fuse::body::{Family, take_apart};
    use crate::fuse::kernel::pointers;
    use rdc_ir::program::{Dispatch, Tiling};

    fn shares(family: Family, body: &str, args: &[usize], result: usize) -> bool {
        let text = format!("module \"m\"\nfunc \"k\"{body}");
        let func = rdc_ir::parse(&text).unwrap().funcs.remove(0);
        let kind = take_apart(&func, family).unwrap();
        let (pointers, result) = (pointers(&func, &kind), func.args.len() + result);
        let (tasks, dispatch) = (1, Dispatch::Static);
        let kernel = Kernel {
            name: "k".into(),
            kind,
            tiling: Tiling::Whole,
            func,
            pointers,
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
        let rows = Family::Rows(4);
        let sum = "(\"a\" input = %a: f32[4, 8], \"b\" input = %b: f32[4, 8], \"c\" input = %c: f32[4, 1]) {
            %s = add %a, %b : f32[4, 8]
            %n = mul %s, %c : f32[4, 8]
            %m = mul %b, %b : f32[4, 8]
            yield \"n\" = %n, \"m\" = %m
        }";
        assert!(shares(rows, sum, &[0], 0) && shares(rows, sum, &[1], 0));
        assert!(shares(rows, sum, &[1], 1) && shares(rows, sum, &[0, 1], 0));
        assert!(!shares(rows, sum, &[0], 1), "it is not computed from it");
        assert!(!shares(rows, sum, &[2], 0), "another shape");
        assert!(!shares(rows, sum, &[], 0));
    }

    #[test]
    fn reductions_allow_one_dependent_result() {
        let rows = Family::Rows(4);
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
        assert!(shares(rows, &one("%b"), &[0], 0));
        assert!(!shares(rows, &one("%a"), &[0], 1), "another sweep reads it again");
        assert!(!shares(rows, &one("%b"), &[1], 1), "it is reduced");
    }

    #[test]
    fn rows_that_are_reduced_share_with_the_only_result() {
        let rows = Family::Rows(4);
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
        assert!(shares(rows, &one("div %e, %s", only), &[0], 0));
        assert!(shares(rows, &one("div %e, %s", "\"n\" = %n, \"m\" = %m, \"s\" = %s"), &[0], 0), "columns beside it");
        let early = one("add %a, %b", "\"n\" = %n, \"s\" = %s");
        assert!(!shares(rows, &early, &[0], 0), "it is written before the sweep that sums");
        let early = one("sub %a, %m", "\"n\" = %n, \"s\" = %s");
        assert!(shares(rows, &early, &[0], 0), "it is written in the sweep that sums");
        assert!(!shares(rows, &one("div %e, %s", "\"n\" = %n, \"e\" = %e"), &[0], 1), "another result");
        assert!(!shares(rows, &one("softmax %l", only), &[0], 0), "it is written before its last sweep");
    }

    #[test]
    fn a_base_is_shared_and_its_ids_are_not() {
        let kind = Family::ScatterAdd;
        let add = "(\"a\" input = %a: f32[4, 8], \"i\" input = %i: i32[4], \"r\" input = %r: f32[4, 8]) {
            %n = scatter_add %a, %i, %r : f32[4, 8]
            yield \"n\" = %n
        }";
        assert!(shares(kind, add, &[0], 0) && !shares(kind, add, &[2], 0));
        let own = add.replace("%a, %i, %r", "%a, %i, %a");
        assert!(!shares(kind, &own, &[0], 0));
    }
}
