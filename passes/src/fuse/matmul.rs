//! What a matmul takes with it: elementwise work on its result and, if its weight is packed, row operations before its left
//! operand.
use super::graph::{GroupId, GroupKind, UseGraph};
use super::rows;
use crate::tile::Machine;
use crate::uses::User;
use rdc_ir::{Func, OpId, Opcode, ValueId};
use std::collections::BTreeSet;

/// Makes a group of every packed matmul and every matmul of two matrices, with its epilogue. Epilogues go first, so that a
/// residual addition belongs to the matmul that feeds it and not to the prologue of the next.
pub fn epilogues(graph: &mut UseGraph) {
    let func = graph.func;
    let kind = |op: OpId| match func.ops[op].opcode {
        Opcode::PackedMatmul => Some(GroupKind::Matmul(op)),
        Opcode::Matmul if is_product(func, op) => Some(GroupKind::Product(op)),
        _ => None,
    };
    for op in graph.ops() {
        if let (Some(kind), Some(group)) = (kind(op), graph.group(op)) {
            graph.set_kind(group, kind);
        }
    }
    for step in [epilogue, give_back, take_operands] {
        for op in graph.ops() {
            if let (Some(kind), Some(group)) = (kind(op), graph.group(op))
                && graph.kind(group) == kind
            {
                step(graph, group, op);
            }
        }
    }
}

/// Whether a matmul is of two matrices, or of as many left ones as right ones.
fn is_product(func: &Func, op: OpId) -> bool {
    let shapes = func.ops[op].operands.iter().map(|&v| &func.ty(v).shape);
    let batches: Option<Vec<usize>> = shapes
        .map(|shape| match shape[..] {
            [_, _] => Some(1),
            [batch, _, _] => Some(batch),
            _ => None,
        })
        .collect();
    batches.is_some_and(|b| b[0] == b[1])
}

/// Gives row operations that follow the end of an epilogue its last operations back, if what these take is in memory anyway, or if
/// they are several and take the same: the row operations then read that, and there is a result less.
fn give_back(graph: &mut UseGraph, group: GroupId, anchor: OpId) {
    let func = graph.func;
    let is_within = |graph: &UseGraph, op: OpId| graph.group(op) == Some(group);
    let for_rows = |graph: &UseGraph, user: &User| match *user {
        User::Op(user) => graph.open(user).is_some() && rows::natural_rows(func, user).is_some(),
        User::Yield(_) => false,
    };
    let is_end = |graph: &UseGraph, op: OpId| {
        let mut users = func.ops[op].results.iter().flat_map(|&v| graph.uses.of(v)).peekable();
        let ends = op != anchor && func.ops[op].opcode.is_elementwise() && users.peek().is_some();
        ends && users.all(|user| for_rows(graph, user))
    };
    let mut left = graph.members(group).to_vec();
    // One that leaves may make ends of others.
    while let Some(op) = left.pop() {
        let in_memory = |v: &ValueId| {
            let made_here = func.def_op(*v).is_some_and(|op| is_within(graph, op));
            let users = graph.uses.of(*v);
            let elsewhere = |user: &User| match *user {
                User::Op(other) => !is_within(graph, other),
                User::Yield(_) => true,
            };
            let at_an_end = |user: &User| matches!(*user, User::Op(other) if is_end(graph, other));
            !made_here || users.iter().any(elsewhere) || users.len() > 1 && users.iter().all(at_an_end)
        };
        if is_end(graph, op) && func.ops[op].operands.iter().all(in_memory) {
            graph.leave(op, GroupKind::Open);
            left = graph.members(group).to_vec();
        }
    }
}

/// Takes the elementwise operations, and slices of the last axis, that make operands of the epilogue and that nothing else
/// needs.
fn take_operands(graph: &mut UseGraph, group: GroupId, anchor: OpId) {
    let func = graph.func;
    let epilogue = graph.members(group).iter().filter(|&&op| op != anchor);
    let mut work: Vec<ValueId> = epilogue.flat_map(|&op| func.ops[op].operands.clone()).collect();
    let result = func.ty(func.ops[anchor].results[0]);
    while let Some(value) = work.pop() {
        let (Some(op), Some(other)) = (func.def_op(value), graph.group_of_value(value)) else { continue };
        let ty = func.ty(value);
        let is_slice = func.ops[op].opcode == Opcode::Slice && func.ops[op].size("axis") + 1 == ty.rank();
        let fits = (is_slice || rows::is_elementwise(func, op)) && ty.rows() == result.rows() && ty.last() > 1;
        if fits
            && graph.kind(other) == GroupKind::Open
            && graph.feeds_only(other, group)
            && graph.try_join(group, other)
        {
            work.extend(if is_slice { &[] } else { func.ops[op].operands.as_slice() });
        }
    }
}

/// Not beyond a loop: results would be kept across it, beside the value that they are made of, perhaps although the way back
/// computes them again so that they need not be.
fn epilogue(graph: &mut UseGraph, group: GroupId, anchor: OpId) {
    let func = graph.func;
    let result = func.ops[anchor].results[0];
    let mut work = vec![result];
    let packed = func.ops[anchor].opcode == Opcode::PackedMatmul;
    let parts = if packed { func.ops[anchor].size("parts") } else { 1 };
    if parts > 1 {
        let users = graph.users_here(result);
        if !users.iter().all(|&op| is_part(func, op, result, parts)) {
            return;
        }
        work.clear();
        for slice in users {
            if let Some(other) = graph.group(slice).filter(|_| !graph.loop_between(anchor, slice))
                && graph.try_join(group, other)
            {
                work.push(func.ops[slice].results[0]);
            }
        }
    }
    while let Some(value) = work.pop() {
        for op in graph.users_here(value) {
            let Some(other) = graph.group(op).filter(|_| !graph.loop_between(anchor, op)) else { continue };
            let (from, to) = (func.ty(value), func.ops[op].results.first().map(|&v| func.ty(v)));
            let fits = match graph.kind(other) {
                GroupKind::Open => rows::is_elementwise(func, op) && to.is_some_and(|to| to.shape == from.shape),
                // The same matrix under another shape.
                GroupKind::Alias => {
                    func.ops[op].opcode == Opcode::Reshape
                        && to.is_some_and(|to| to.rank() > 0 && to.last() == from.last() && graph.feeds_elementwise(op))
                }
                _ => false,
            };
            if fits && graph.try_join(group, other) {
                work.push(func.ops[op].results[0]);
            }
        }
    }
    // Results side by side in one.
    let users = graph.members(group).iter().flat_map(|&op| graph.users_here(func.ops[op].results[0]));
    for op in users.collect::<Vec<_>>() {
        let joined = &func.ops[op];
        let width = func.ty(result).last() / parts;
        let is_made_here = |&v: &ValueId| graph.group_of_value(v) == Some(group) && func.ty(v).last() == width;
        if joined.opcode == Opcode::Concat
            && joined.size("axis") + 1 == func.ty(joined.results[0]).rank()
            && joined.operands.iter().all(is_made_here)
            && let Some(other) = graph.open(op)
        {
            graph.try_join(group, other);
        }
    }
}

/// Whether an operation cuts exactly one of `parts` parts out of the last axis.
fn is_part(func: &Func, op: OpId, whole: ValueId, parts: usize) -> bool {
    let (op, ty) = (&func.ops[op], func.ty(whole));
    let each = ty.last() / parts;
    op.opcode == Opcode::Slice
        && op.size("axis") + 1 == ty.rank()
        && op.size("start") % each == 0
        && op.size("end") == op.size("start") + each
}

/// Takes the row operations that make the left operand into each matmul. What others need of them becomes a result. What
/// the epilogue needs must come from memory, so it stays outside.
pub fn prologues(graph: &mut UseGraph, machine: &dyn Machine) {
    for anchor in graph.ops() {
        let Some(group) = graph.group(anchor) else { continue };
        if graph.kind(group) != GroupKind::Matmul(anchor) {
            continue;
        }
        let func = graph.func;
        let after: Vec<OpId> = graph.members(group).to_vec();
        let x = func.ops[anchor].operands[0];
        if func.ty(x).last() > machine.widest_prologue() {
            continue;
        }
        let rows = func.ty(x).rows();
        let mut work = vec![x];
        while let Some(value) = work.pop() {
            let Some(op) = func.def_op(value) else { continue };
            let Some(other) = graph.group(op) else { continue };
            let users: Vec<OpId> = func.ops[op].results.iter().flat_map(|&v| graph.users_here(v)).collect();
            if graph.kind(other) != GroupKind::Open || users.iter().any(|&user| user != anchor && after.contains(&user))
            {
                continue;
            }
            let own = rows::fits(func, op, rows) && !rows::is_lookup(func, op);
            let shared = rows::is_shared(func, op) && graph.feeds_only(other, group);
            if (own || shared) && graph.try_join(group, other) {
                work.extend(&func.ops[op].operands);
            }
        }
    }
}

/// An elementwise operation on the left operand, or on what makes it, that no row kernel needs (a copy of it, the addition of it
/// to a sum) is one more result.
pub fn tails(graph: &mut UseGraph) {
    let func = graph.func;
    for anchor in all(graph, Opcode::PackedMatmul) {
        let Some(group) = graph.group(anchor) else { continue };
        let x = func.ops[anchor].operands[0];
        let mut before = made_before(graph, group, anchor);
        before.insert(x);
        let users: Vec<OpId> = before.iter().flat_map(|&v| graph.users_here(v)).collect();
        for op in users {
            let Some(other) = graph.open(op) else { continue };
            let shape = func.ops[op].results.first().map(|&v| &func.ty(v).shape);
            if rows::is_elementwise(func, op) && shape == Some(&func.ty(x).shape) && !feeds_rows(graph, op) {
                graph.try_join(group, other);
            }
        }
    }
}

/// The row kernels that alone take a packed matmul's result, cut it up and rotate it, say, join the matmul, which applies them to
/// its rows as they are complete: the result itself then needs no memory.
pub fn row_epilogues(graph: &mut UseGraph, machine: &dyn Machine) {
    let func = graph.func;
    for anchor in all(graph, Opcode::PackedMatmul) {
        let Some(group) = graph.group(anchor) else { continue };
        let result = func.ops[anchor].results[0];
        let (rows, width) = (func.ty(result).rows(), func.ty(result).last());
        let plain = func.ops[anchor].size("parts") <= 1 && func.ops[anchor].operands.len() == 2;
        let whole = plain && width <= machine.widest_row_epilogue(rows);
        let made = graph.members(group).iter().flat_map(|&op| func.ops[op].results.clone()).collect::<Vec<_>>();
        let mut set = vec![group];
        let taken = graph.uses.of(result).iter().all(|user| {
            let User::Op(op) = *user else { return false };
            let Some(other) = graph.group(op).filter(|&g| graph.kind(g) == GroupKind::Rows(rows)) else { return false };
            set.extend((!set.contains(&other)).then_some(other));
            !graph.loop_between(anchor, op)
        });
        let from_memory = |op: &OpId| func.ops[*op].operands.iter().all(|&v| v == result || !made.contains(&v));
        let reads = |graph: &UseGraph| set[1..].iter().all(|&g| graph.members(g).iter().all(from_memory));
        if whole && taken && set.len() > 1 && reads(graph) && graph.can_join(&set) {
            set[1..].iter().for_each(|&other| graph.join(group, other));
        }
    }
}

/// The operations of an opcode.
fn all(graph: &UseGraph, opcode: Opcode) -> Vec<OpId> {
    graph.ops().into_iter().filter(|&op| graph.func.ops[op].opcode == opcode).collect()
}

/// The values that a group makes for the left operand of its matmul, that one included.
fn made_before(graph: &UseGraph, group: GroupId, anchor: OpId) -> BTreeSet<ValueId> {
    let (mut before, mut work) = (BTreeSet::new(), vec![graph.func.ops[anchor].operands[0]]);
    while let Some(value) = work.pop() {
        if graph.group_of_value(value) == Some(group)
            && before.insert(value)
            && let Some(op) = graph.func.def_op(value)
        {
            work.extend(&graph.func.ops[op].operands);
        }
    }
    before
}

/// Row operations whose result only products of two activations take, which need it in memory, become results of a matmul that
/// reads what they are made of: what the way back computes again, beside the derivative of it. So do sums of blocks of rows.
pub fn companions(graph: &mut UseGraph) {
    let func = graph.func;
    let (products, anchors) = (all(graph, Opcode::Matmul), all(graph, Opcode::PackedMatmul));
    let operands = products.iter().flat_map(|&op| func.ops[op].operands[..2].to_vec());
    let operands: Vec<ValueId> = operands.map(|v| func.through_reshapes(v)).collect();
    let sums = all(graph, Opcode::SumBlocks).into_iter().map(|op| func.ops[op].results[0]);
    for value in operands.into_iter().chain(sums) {
        for &anchor in &anchors {
            let Some(group) = graph.group(anchor) else { continue };
            let Some(set) = recomputed(graph, group, anchor, value) else { continue };
            let groups: Vec<GroupId> =
                [group].into_iter().chain(set.iter().filter_map(|&op| graph.group(op))).collect();
            if graph.can_join(&groups) {
                groups.into_iter().for_each(|other| graph.join(group, other));
                break;
            }
        }
    }
}

/// The operations in no group yet that make a value of what a group reads or makes, if products, the group and
/// these operations are all that take what they make.
fn recomputed(graph: &UseGraph, group: GroupId, anchor: OpId, value: ValueId) -> Option<Vec<OpId>> {
    let func = graph.func;
    let members = graph.members(group);
    let rows = func.ty(func.ops[anchor].operands[0]).rows();
    let before = made_before(graph, group, anchor);
    let is_there = |v: ValueId| {
        let made_here = graph.group_of_value(v) == Some(group);
        before.contains(&v) || !made_here && members.iter().any(|&op| func.ops[op].operands.contains(&v))
    };
    let (mut set, mut work, mut shares) = (Vec::new(), vec![value], false);
    while let Some(value) = work.pop() {
        let def = func.def_op(value).filter(|&op| graph.group(op).is_some());
        if def.is_some_and(|op| set.contains(&op)) {
            continue;
        }
        let own = def.filter(|&op| {
            let sums = func.ops[op].opcode == Opcode::SumBlocks;
            let repeatable = sums || rows::is_elementwise(func, op) || func.ops[op].opcode == Opcode::RmsNorm;
            let used_here = |user: &User| match *user {
                User::Op(user) => set.contains(&user) || members.contains(&user) || feeds_products(graph, user),
                User::Yield(_) => false,
            };
            graph.open(op).is_some()
                && repeatable
                && rows::fits(func, op, rows)
                && (sums || func.ops[op].results.iter().all(|&v| graph.uses.of(v).iter().all(used_here)))
        });
        if let Some(op) = own {
            set.push(op);
            work.extend(&func.ops[op].operands);
        } else if is_there(value) {
            shares |= func.ty(value).elements() > func.ty(value).last();
        } else if def.is_some() || func.ty(value).elements() > func.ty(value).last() {
            return None;
        }
    }
    // What the epilogue takes is computed in it, element by element.
    let for_members = |op: &OpId| {
        let mut users = func.ops[*op].results.iter().flat_map(|&v| graph.users_here(v));
        users.any(|user| members.contains(&user))
    };
    let elementwise = set.iter().all(|&op| func.ops[op].opcode.is_elementwise());
    (shares && !set.is_empty() && (elementwise || !set.iter().any(for_members))).then_some(set)
}

/// Whether an operation is a product of two activations, or the reshape of an operand of products only.
fn feeds_products(graph: &UseGraph, op: OpId) -> bool {
    match graph.func.ops[op].opcode {
        Opcode::Matmul => true,
        Opcode::Reshape => {
            let result = graph.func.ops[op].results[0];
            let users = graph.uses.of(result);
            users.iter().all(|u| matches!(*u, User::Op(user) if feeds_products(graph, user)))
        }
        _ => false,
    }
}

/// Whether an operation of this region that may become part of a row kernel uses a result.
fn feeds_rows(graph: &UseGraph, op: OpId) -> bool {
    let func = graph.func;
    let mut users = func.ops[op].results.iter().flat_map(|&v| graph.users_here(v));
    users.any(|user| graph.open(user).is_some() && rows::natural_rows(func, user).is_some())
}
