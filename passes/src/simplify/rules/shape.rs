//! Reshapes, transposes, broadcasts, concatenations.
use super::Rule;
use crate::simplify::graph::{Graph, Node};
use egg::Id;
use rdc_ir::{Attr, Opcode};

pub const RULES: &[Rule] = &[
    Rule { name: "reshape", roots: |o| o == Opcode::Reshape, apply: reshape },
    Rule { name: "transpose", roots: |o| o == Opcode::Transpose, apply: transpose },
    Rule { name: "broadcast", roots: |o| o == Opcode::Broadcast, apply: broadcast },
    Rule { name: "implicit-broadcast", roots: |o| o.is_elementwise(), apply: implicit_broadcast },
    Rule { name: "concat", roots: |o| o == Opcode::Concat, apply: concat },
    Rule { name: "concat-slices", roots: |o| o == Opcode::Concat, apply: concat_slices },
    Rule { name: "raise-reshape", roots: |o| o.is_elementwise(), apply: raise_reshape },
];

/// reshape to its own shape = x; reshape(reshape(x)) = reshape(x).
fn reshape(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (x, shape) = (node.children[0], node.sizes(0));
    if g.shape(x) == shape {
        return vec![x];
    }
    let inner = g.nodes(x, Opcode::Reshape);
    inner.iter().filter_map(|n| g.reshape(n.children[0], &shape)).collect()
}

/// transpose by the identity = x; transpose(transpose(x, p), q) = transpose(x, p∘q); a transpose that keeps the order of all
/// axes longer than 1 is a reshape.
fn transpose(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (x, perm) = (node.children[0], node.sizes(0));
    if perm.is_sorted() {
        return vec![x];
    }
    let mut out = Vec::new();
    let shape = g.shape(x).to_vec();
    if perm.iter().filter(|&&p| shape[p] > 1).is_sorted() {
        let to: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        out.extend(g.reshape(x, &to));
    }
    for inner in g.nodes(x, Opcode::Transpose) {
        let first = inner.sizes(0);
        let both = perm.iter().map(|&p| first[p] as i64).collect();
        out.extend(g.add(Opcode::Transpose, vec![Attr::Ints(both)], &inner.children));
    }
    out
}

/// broadcast to its own shape = x; broadcast(broadcast(x)) = broadcast(x).
fn broadcast(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let x = node.children[0];
    if g.shape(x) == node.sizes(0) {
        return vec![x];
    }
    let inner = g.nodes(x, Opcode::Broadcast);
    inner.iter().filter_map(|n| g.add(opcode, node.attrs().to_vec(), &n.children)).collect()
}

/// f(x, broadcast(y)) = f(x, y) if the result keeps its shape: elementwise operations broadcast by themselves.
fn implicit_broadcast(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let shape = elementwise_shape(g, &node.children);
    let mut out = Vec::new();
    for (i, &child) in node.children.iter().enumerate() {
        for inner in g.nodes(child, Opcode::Broadcast) {
            let mut children = node.children.clone();
            children[i] = inner.children[0];
            if elementwise_shape(g, &children) == shape {
                out.extend(g.add(opcode, node.attrs().to_vec(), &children));
            }
        }
    }
    out
}

fn elementwise_shape(g: &Graph, children: &[Id]) -> Option<Vec<usize>> {
    children.iter().try_fold(vec![], |s, &c| rdc_ir::infer::broadcast(&s, g.shape(c)))
}

/// concat(x) = x; concat(.., concat(x, y), ..) = concat(.., x, y, ..) along the same axis.
fn concat(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let axis = node.size(0);
    if let [only] = node.children.as_slice() {
        return vec![*only];
    }
    let mut flat = Vec::new();
    for &child in &node.children {
        match g.nodes(child, Opcode::Concat).into_iter().find(|n| n.size(0) == axis) {
            Some(inner) => flat.extend(inner.children),
            None => flat.push(child),
        }
    }
    if flat.len() == node.children.len() { vec![] } else { g.concat(&flat, axis).into_iter().collect() }
}

/// concat(.., x[a..b], x[b..c], ..) = concat(.., x[a..c], ..).
fn concat_slices(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let axis = node.size(0);
    // Each part as slices (of what, from, to) of other classes along the axis.
    let sources = |g: &Graph, id: Id| -> Vec<(Id, usize, usize)> {
        let slices = g.nodes(id, Opcode::Slice).into_iter().filter(|n| n.size(0) == axis);
        slices.map(|n| (g.egraph.find(n.children[0]), n.size(1), n.size(2))).collect()
    };
    for (i, pair) in node.children.windows(2).enumerate() {
        let (left, right) = (sources(g, pair[0]), sources(g, pair[1]));
        let adjacent =
            left.iter().find_map(|l| right.iter().find(|r| r.0 == l.0 && r.1 == l.2).map(|r| (l.0, l.1, r.2)));
        if let Some((x, start, end)) = adjacent {
            let Some(joined) = g.slice(x, axis, start, end) else { continue };
            let mut parts = node.children.clone();
            parts.splice(i..i + 2, [joined]);
            return g.concat(&parts, axis).into_iter().collect();
        }
    }
    vec![]
}

/// f(reshape(x), reshape(y), c) = reshape(f(x, y, c)) where x and y have one shape of lower rank, and c is a scalar: the form
/// in which an activation follows its matmul row by row. A bias of heads stays where the heads are.
fn raise_reshape(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let Some(result) = elementwise_shape(g, &node.children) else { return vec![] };
    let mut out = Vec::new();
    for &child in &node.children {
        for inner in g.nodes(child, Opcode::Reshape) {
            let low = g.shape(inner.children[0]).to_vec();
            if low.len() >= result.len() || low.is_empty() || g.shape(child) != result {
                continue;
            }
            let operands: Option<Vec<Id>> = node.children.iter().map(|&c| lower(g, c, &low)).collect();
            let lowered = operands.and_then(|ops| g.add(opcode, node.attrs().to_vec(), &ops));
            out.extend(lowered.and_then(|x| g.reshape(x, &result)));
        }
    }
    out
}

/// What a class is a reshape of, if that has the shape `low`; a scalar itself.
fn lower(g: &Graph, operand: Id, low: &[usize]) -> Option<Id> {
    if g.shape(operand).is_empty() {
        return Some(operand);
    }
    g.nodes(operand, Opcode::Reshape).iter().map(|n| n.children[0]).find(|&x| g.shape(x) == low)
}
