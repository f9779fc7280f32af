//! The derivatives of an attention, with what follows them: the rotation back, and their heads side by side in rows of one
//! tensor, as the projection's derivative takes them.
use super::graph::{GroupKind, UseGraph};
use crate::uses::{User, Uses};
use rdc_ir::{Builder, Func, OpId, Opcode, ValueId};
use std::collections::HashSet;

/// The derivative of queries, keys or values, on its way into the joined rows.
struct Part {
    /// `[B, S, H, D]`, turned back if they were rotated.
    heads: ValueId,
    /// `[B, S, H * D]`, an operand of the `concat`.
    rows: ValueId,
}

/// Derivatives whose rows are joined.
struct Joined {
    parts: Vec<Part>,
    /// The operations from the derivatives to the rows, the `concat` last.
    ops: Vec<OpId>,
    /// The joined rows.
    result: ValueId,
}

/// The `rope_grad` that is a derivative's only user.
fn rotation(func: &Func, uses: &Uses, derivative: ValueId) -> Option<OpId> {
    let &[User::Op(op)] = uses.of(derivative) else { return None };
    let turns = func.ops[op].opcode == Opcode::RopeGrad && func.ops[op].operands[0] == derivative;
    (turns && uses.region(op) == uses.home(func, derivative)).then_some(op)
}

/// The joined rows of all derivatives of an attention.
fn joined(func: &Func, uses: &Uses, grad: OpId) -> Option<Joined> {
    let region = uses.region(grad);
    let user = |value: ValueId, opcode: Opcode| {
        uses.of(value).iter().find_map(|user| match *user {
            User::Op(op) => (func.ops[op].opcode == opcode && uses.region(op) == region).then_some(op),
            User::Yield(_) => None,
        })
    };
    let (mut parts, mut ops, mut join) = (Vec::new(), Vec::new(), None);
    for &derivative in &func.ops[grad].results {
        let turn = rotation(func, uses, derivative);
        ops.extend(turn);
        let heads = turn.map_or(derivative, |op| func.ops[op].results[0]);
        let found = uses.of(heads).iter().find_map(|other| {
            let User::Op(reshape) = *other else { return None };
            if func.ops[reshape].opcode != Opcode::Reshape || uses.region(reshape) != region {
                return None;
            }
            let rows = func.ops[reshape].results[0];
            let (from, to) = (&func.ty(heads).shape, &func.ty(rows).shape);
            let joins = to.len() == 3 && from[..2] == to[..2];
            let concat = user(rows, Opcode::Concat).filter(|&op| joins && func.ops[op].size("axis") == 2)?;
            Some((reshape, rows, concat))
        });
        let (reshape, rows, concat) = found?;
        ops.push(reshape);
        parts.push(Part { heads, rows });
        if *join.get_or_insert(concat) != concat {
            return None;
        }
    }
    let concat = join?;
    let (data, wanted) = (&func.ops[concat], parts.iter().map(|p| p.rows).collect::<HashSet<_>>());
    ops.push(concat);
    let exact = data.operands.len() == parts.len() && data.operands.iter().copied().collect::<HashSet<_>>() == wanted;
    exact.then_some(Joined { parts, ops, result: data.results[0] })
}

/// What else needs a derivative whose rows are joined (the sum that is a bias's derivative) takes it from the joined rows, so that
/// they alone need memory.
pub fn share_rows(func: &mut Func) {
    for (region, grad) in func.walk() {
        if func.ops[grad].opcode != Opcode::AttentionGrad {
            continue;
        }
        let uses = Uses::new(func);
        let Some(joined) = joined(func, &uses, grad) else { continue };
        let others = |part: &Part| {
            let all = uses.of(part.heads).iter().chain(uses.of(part.rows));
            all.copied().filter(|user| !matches!(user, User::Op(op) if joined.ops.contains(op))).collect::<Vec<_>>()
        };
        let here = |user: &User| match *user {
            User::Op(op) => func.ops[op].opcode == Opcode::Reshape && uses.region(op) == region,
            User::Yield(_) => false,
        };
        let order = &func.regions[region].ops;
        let place = |op: OpId| order.iter().position(|&o| o == op);
        let is_early = |&v: &ValueId| {
            let op = func.def_op(v).filter(|op| !joined.ops.contains(op));
            op.is_none_or(|op| uses.region(op) != region || place(op) <= place(grad))
        };
        let shared: Vec<Vec<User>> = joined.parts.iter().map(others).collect();
        let movable = joined.ops.iter().flat_map(|&op| &func.ops[op].operands).all(is_early);
        if !movable || !shared.iter().flatten().all(here) {
            continue;
        }
        // Before the first other user: right after the derivatives.
        let order = &mut func.regions[region].ops;
        order.retain(|op| !joined.ops.contains(op));
        let at = order.iter().position(|&op| op == grad).map_or(order.len(), |at| at + 1);
        order.splice(at..at, joined.ops.iter().copied());
        let next = order.get(at + joined.ops.len()).copied();
        let Some(next) = next else { continue };
        let mut start = 0;
        let operands = joined.ops.last().map(|&op| func.ops[op].operands.clone()).unwrap_or_default();
        for rows in operands {
            let end = start + func.ty(rows).last();
            let users = joined.parts.iter().zip(&shared).find(|(part, _)| part.rows == rows).map(|(_, users)| users);
            if let Some(users) = users.filter(|users| !users.is_empty()) {
                let slice = Builder::before(func, region, next).slice(joined.result, 2, (start, end));
                for user in users {
                    if let User::Op(op) = *user {
                        func.ops[op].operands = vec![slice];
                    }
                }
            }
            start = end;
        }
    }
}

/// Takes the rotations back into the kernels of derivatives, and the joined rows where nothing else needs their parts.
pub fn group(graph: &mut UseGraph) {
    let (func, uses) = (graph.func, graph.uses);
    for grad in graph.ops() {
        let Some(group) = graph.group(grad).filter(|&g| graph.kind(g) == GroupKind::AttentionGrad(grad)) else {
            continue;
        };
        for &derivative in &func.ops[grad].results {
            if let Some(other) = rotation(func, uses, derivative).and_then(|op| graph.open(op)) {
                graph.try_join(group, other);
            }
        }
        let Some(joined) = joined(func, uses, grad) else { continue };
        let alone = |part: &Part| uses.of(part.heads).len() == 1 && uses.of(part.rows).len() == 1;
        let mut set: Vec<_> = joined.ops.iter().filter_map(|&op| graph.group(op)).collect();
        set.retain(|&other| other != group);
        let open = |&other: &usize| matches!(graph.kind(other), GroupKind::Open | GroupKind::Alias);
        let whole = [&set[..], &[group]].concat();
        if joined.parts.iter().all(alone) && set.iter().all(open) && graph.can_join(&whole) {
            set.into_iter().for_each(|other| graph.join(group, other));
        }
    }
}
