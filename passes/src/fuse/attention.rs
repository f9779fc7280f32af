//! Attentions and cache updates, with the chains that make their operands: slice, heads, bias, rotation.
use super::graph::{GroupId, GroupKind, UseGraph};
use crate::weights::stored;
use rdc_ir::{Func, OpId, Opcode, ValueId};

/// Makes groups of all attentions and cache updates.
pub fn group(graph: &mut UseGraph) {
    for op in graph.ops() {
        if graph.func.ops[op].opcode != Opcode::Attention {
            continue;
        }
        let Some(group) = graph.group(op) else { continue };
        let updates = [1, 2].map(|i| update_of(graph, graph.func.ops[op].operands[i]));
        if let [Some(k), Some(v)] = updates {
            if is_decode(graph, op, k, v) {
                graph.set_kind(group, GroupKind::DecodeAttention(op));
                for update in [k, v] {
                    join_update(graph, group, update);
                }
            } else {
                join_pair(graph, k, v);
            }
        }
        if graph.kind(group) == GroupKind::Open {
            graph.set_kind(group, GroupKind::Attention(op));
        }
        chain(graph, group, graph.func.ops[op].operands[0]);
    }
    for op in graph.ops() {
        if let Some(group) = graph.group(op)
            && graph.func.ops[op].opcode == Opcode::CacheUpdate
            && graph.kind(group) == GroupKind::Open
        {
            graph.set_kind(group, GroupKind::KvWrite);
            chain(graph, group, graph.func.ops[op].operands[1]);
        }
    }
}

/// The update in this region whose view a value is.
fn update_of(graph: &UseGraph, value: ValueId) -> Option<OpId> {
    let op = graph.func.def_op(value)?;
    let is_view = graph.func.ops[op].opcode == Opcode::CacheUpdate && graph.func.ops[op].results[1] == value;
    (is_view && graph.group(op).is_some()).then_some(op)
}

/// One causal query per row over two caches that this attention alone reads.
fn is_decode(graph: &UseGraph, attention: OpId, k: OpId, v: OpId) -> bool {
    let (func, op) = (graph.func, &graph.func.ops[attention]);
    let open = |update: OpId| graph.open(update).is_some();
    let own = |update: OpId| {
        let op = &func.ops[update];
        open(update) && graph.uses.of(op.results[1]).len() == 1 && func.ty(op.operands[1]).shape[1] == 1
    };
    let groups: Vec<GroupId> = [attention, k, v].iter().filter_map(|&op| graph.group(op)).collect();
    op.flag("causal")
        && func.ty(op.operands[0]).shape[1] == 1
        && k != v
        && own(k)
        && own(v)
        && [k, v].iter().all(|&u| func.ops[u].operands[2] == op.operands[3])
        && graph.can_join(&groups)
}

fn join_update(graph: &mut UseGraph, group: GroupId, update: OpId) {
    if let Some(other) = graph.group(update) {
        graph.join(group, other);
        chain(graph, group, graph.func.ops[update].operands[1]);
    }
}

/// One kernel writes keys and values where shapes and positions agree.
fn join_pair(graph: &mut UseGraph, k: OpId, v: OpId) {
    let func = graph.func;
    let (Some(a), Some(b)) = (graph.group(k), graph.group(v)) else { return };
    if graph.kind(a) != GroupKind::Open || graph.kind(b) != GroupKind::Open {
        return;
    }
    let same = |i: usize| func.ops[k].operands[i] == func.ops[v].operands[i];
    let shapes = func.ty(func.ops[k].operands[1]) == func.ty(func.ops[v].operands[1]);
    graph.set_kind(a, GroupKind::KvWrite);
    chain(graph, a, func.ops[k].operands[1]);
    if k != v && shapes && same(2) && graph.can_join(&[a, b]) {
        join_update(graph, a, v);
    }
}

/// Takes the operations that make a head-shaped operand, back to front, as long as nothing else uses them.
fn chain(graph: &mut UseGraph, group: GroupId, mut value: ValueId) {
    let func = graph.func;
    for stage in [Opcode::Rope, Opcode::Add, Opcode::Reshape, Opcode::Slice] {
        let Some(id) = func.def_op(value) else { return };
        let op = &func.ops[id];
        if op.opcode != stage {
            continue;
        }
        let Some(other) = graph.group(id) else { return };
        let Some(source) = source_of(graph, id) else { return };
        let open = matches!(graph.kind(other), GroupKind::Open | GroupKind::Alias);
        if !open || graph.uses.of(value).len() != 1 || !graph.try_join(group, other) {
            return;
        }
        value = source;
    }
}

/// The operand that a chain continues with, if the operation is of the chain's form.
fn source_of(graph: &UseGraph, id: OpId) -> Option<ValueId> {
    let (func, op) = (graph.func, &graph.func.ops[id]);
    let result = func.ty(op.results[0]);
    match op.opcode {
        Opcode::Rope => Some(op.operands[0]),
        Opcode::Add => bias_of(func, id).map(|(x, _)| x),
        // [B, S, H * D] to heads.
        Opcode::Reshape => {
            let from = func.ty(op.operands[0]);
            let heads = from.rank() == 3 && result.rank() == 4 && from.shape[..2] == result.shape[..2];
            heads.then_some(op.operands[0])
        }
        Opcode::Slice => (op.size("axis") + 1 == result.rank()).then_some(op.operands[0]),
        _ => None,
    }
}

/// The head-shaped operand and the bias of an addition, if one operand is a bias `[H, D]` (with leading axes of 1).
pub fn bias_of(func: &Func, id: OpId) -> Option<(ValueId, ValueId)> {
    let op = &func.ops[id];
    let full = &func.ty(op.results[0]).shape;
    let [a, b] = op.operands[..] else { return None };
    let is_full = |v: ValueId| func.ty(v).shape == *full;
    let is_bias = |v: ValueId| {
        let shape = &func.ty(v).shape;
        let lead = shape.len().saturating_sub(2);
        full.len() == 4 && shape.len() >= 2 && shape[lead..] == full[2..] && shape[..lead].iter().all(|&n| n == 1)
    };
    // For one token both operands look like a bias: then a parameter is one.
    let swap = !is_bias(b) || is_bias(a) && stored(func, a).is_some();
    let (x, bias) = if swap { (b, a) } else { (a, b) };
    (op.opcode == Opcode::Add && is_full(x) && is_bias(bias)).then_some((x, bias))
}
