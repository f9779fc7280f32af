//! Slices move towards the leaves, so that only what is used is computed: of a prefill that reads out the last token, the
//! last layer computes its queries and everything after them for one row.
use super::Rule;
use crate::simplify::graph::{Graph, Node};
use egg::Id;
use rdc_ir::{Attr, DType, Opcode};

pub const RULES: &[Rule] = &[
    Rule { name: "slice-of-all", roots: is_slice, apply: whole },
    Rule { name: "slice-of-slice", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Slice, of_slice) },
    Rule { name: "slice-of-concat", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Concat, of_concat) },
    Rule { name: "slice-of-reshape", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Reshape, of_reshape) },
    Rule { name: "slice-of-transpose", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Transpose, of_transpose) },
    Rule { name: "slice-of-elementwise", roots: is_slice, apply: of_elementwise },
    Rule { name: "slice-of-rows", roots: is_slice, apply: of_rows },
    Rule { name: "slice-of-matmul", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Matmul, of_matmul) },
    Rule { name: "slice-of-gather", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Gather, of_gather) },
    Rule { name: "slice-of-positions", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Positions, of_positions) },
    Rule { name: "slice-of-rope", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Rope, of_rope) },
    Rule { name: "slice-of-attention", roots: is_slice, apply: |g, _, n| push(g, n, Opcode::Attention, of_attention) },
];

fn is_slice(opcode: Opcode) -> bool {
    opcode == Opcode::Slice
}

/// The range of a slice.
#[derive(Clone, Copy)]
struct Cut {
    axis: usize,
    start: usize,
    end: usize,
}

impl Cut {
    fn of(node: &Node) -> Cut {
        Cut { axis: node.size(0), start: node.size(1), end: node.size(2) }
    }
    fn at(self, axis: usize) -> Cut {
        Cut { axis, ..self }
    }
    fn apply(self, g: &mut Graph, x: Id) -> Option<Id> {
        g.slice(x, self.axis, self.start, self.end)
    }
}

/// Tries a rule on every node of an opcode that the sliced class holds.
fn push(g: &mut Graph, node: &Node, opcode: Opcode, rule: fn(&mut Graph, Cut, &Node) -> Option<Id>) -> Vec<Id> {
    let cut = Cut::of(node);
    let inner = g.nodes(node.children[0], opcode);
    inner.iter().filter_map(|n| rule(g, cut, n)).collect()
}

/// x[all] = x.
fn whole(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (x, cut) = (node.children[0], Cut::of(node));
    if g.shape(x)[cut.axis] == cut.end - cut.start { vec![x] } else { vec![] }
}

/// x[a..b][c..d] = x[a+c..a+d] along one axis.
fn of_slice(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let first = Cut::of(inner);
    if first.axis != cut.axis {
        return None;
    }
    g.slice(inner.children[0], cut.axis, first.start + cut.start, first.start + cut.end)
}

/// Along the joined axis, concat(x, y)[range] = concat of what the range takes of each; along another, concat(x[r], y[r]).
fn of_concat(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let axis = inner.size(0);
    let mut parts = Vec::new();
    let mut offset = 0;
    for &part in &inner.children {
        let size = g.shape(part)[axis];
        if axis != cut.axis {
            parts.push(cut.apply(g, part)?);
        } else if cut.start < offset + size && cut.end > offset {
            let (start, end) = (cut.start.saturating_sub(offset), (cut.end - offset).min(size));
            parts.push(g.slice(part, axis, start, end)?);
        }
        offset += size;
    }
    g.concat(&parts, axis)
}

/// reshape(x)[range] = reshape(x[range']) where the sliced axis, with all axes after it, ends where an axis of x ends: it is
/// that axis, or the outermost of those which the reshape makes of it.
fn of_reshape(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let x = inner.children[0];
    let (from, to) = (g.shape(x).to_vec(), inner.sizes(0));
    let inside: usize = to[cut.axis + 1..].iter().product();
    let span = inside * to[cut.axis];
    let axis = (0..from.len()).rev().find(|&i| from[i] > 1 && from[i..].iter().product::<usize>() == span)?;
    let unit: usize = from[axis + 1..].iter().product();
    if !inside.is_multiple_of(unit) {
        return None;
    }
    let scale = inside / unit;
    let part = g.slice(x, axis, cut.start * scale, cut.end * scale)?;
    let mut shape = to;
    shape[cut.axis] = cut.end - cut.start;
    g.reshape(part, &shape)
}

/// transpose(x, p)[range on axis i] = transpose(x[range on axis p(i)], p).
fn of_transpose(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let part = cut.at(inner.sizes(0)[cut.axis]).apply(g, inner.children[0])?;
    g.add(Opcode::Transpose, inner.attrs().to_vec(), &[part])
}

/// f(x, y)[range] = f(x[range], y[range]); an operand that broadcasts along the axis stays as it is. So for `broadcast`.
fn of_elementwise(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (child, cut) = (node.children[0], Cut::of(node));
    let rank = g.ty(child).rank();
    let mut out = Vec::new();
    for inner in g.egraph[child].nodes.clone() {
        let Some(opcode) = inner.opcode().filter(|o| o.is_elementwise() || *o == Opcode::Broadcast) else { continue };
        let operands: Option<Vec<Id>> = inner
            .children
            .iter()
            .map(|&c| {
                let missing = rank - g.ty(c).rank();
                let broadcasts = cut.axis < missing || g.shape(c)[cut.axis - missing] == 1;
                if broadcasts { Some(c) } else { cut.at(cut.axis - missing).apply(g, c) }
            })
            .collect();
        let mut attrs = inner.attrs().to_vec();
        if opcode == Opcode::Broadcast {
            let mut shape = inner.sizes(0);
            shape[cut.axis] = cut.end - cut.start;
            attrs = vec![Attr::shape(&shape)];
        }
        // An elementwise operation all of whose operands broadcast along the axis has size 1 there: the slice is whole.
        let part = operands.and_then(|operands| g.add(opcode, attrs, &operands));
        out.extend(part.filter(|&p| g.shape(p).get(cut.axis) == Some(&(cut.end - cut.start))));
    }
    out
}

/// f(x, w..)[range] = f(x[range], w..) for operations that treat each row of the last axis by itself, along another axis.
fn of_rows(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (child, cut) = (node.children[0], Cut::of(node));
    if cut.axis + 1 >= g.ty(child).rank() {
        return vec![];
    }
    let mut out = Vec::new();
    for opcode in [Opcode::RmsNorm, Opcode::LayerNorm, Opcode::Softmax] {
        for inner in g.nodes(child, opcode) {
            let mut children = inner.children.clone();
            let Some(part) = cut.apply(g, children[0]) else { continue };
            children[0] = part;
            out.extend(g.add(opcode, inner.attrs().to_vec(), &children));
        }
    }
    out
}

/// (a · b)[rows] = a[rows] · b; along a batch axis, a[i] · b[i]. Columns are left alone: one product is better than several.
fn of_matmul(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let (a, b) = (inner.children[0], inner.children[1]);
    let rank = g.ty(a).rank();
    let (new_a, new_b) = if cut.axis + 2 == rank {
        let axis = if inner.flag(0) { rank - 1 } else { rank - 2 };
        (cut.at(axis).apply(g, a)?, b)
    } else if cut.axis + 2 < rank {
        (cut.apply(g, a)?, if g.ty(b).rank() > 2 { cut.apply(g, b)? } else { b })
    } else {
        return None;
    };
    g.add(Opcode::Matmul, inner.attrs().to_vec(), &[new_a, new_b])
}

/// gather(table, ids)[range] = gather(table, ids[range]), except along the table's columns.
fn of_gather(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let (table, ids) = (inner.children[0], inner.children[1]);
    if cut.axis >= g.ty(ids).rank() {
        return None;
    }
    let part = cut.apply(g, ids)?;
    g.add(Opcode::Gather, vec![], &[table, part])
}

/// `pos + start`, the position of the first token that a slice keeps.
fn later(g: &mut Graph, pos: Id, start: usize) -> Option<Id> {
    if start == 0 {
        return Some(pos);
    }
    let start = g.constant(start as f64, DType::I32)?;
    g.add(Opcode::Add, vec![], &[pos, start])
}

/// positions(pos)[:, a..b] = positions(pos + a) of length b - a; along the batch, positions(pos[range]).
fn of_positions(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let (pos, len) = match cut.axis {
        0 => (cut.apply(g, inner.children[0])?, inner.size(0)),
        _ => (later(g, inner.children[0], cut.start)?, cut.end - cut.start),
    };
    g.add(Opcode::Positions, vec![Attr::Int(len as i64)], &[pos])
}

/// rope(x, table, pos)[:, a..b] = rope(x[:, a..b], table, pos + a); along heads and batch, of x (and pos) sliced.
fn of_rope(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let &[x, table, pos] = inner.children.as_slice() else { return None };
    let pos = match cut.axis {
        0 => cut.apply(g, pos)?,
        1 => later(g, pos, cut.start)?,
        2 => pos,
        _ => return None,
    };
    let part = cut.apply(g, x)?;
    g.add(Opcode::Rope, inner.attrs().to_vec(), &[part, table, pos])
}

/// attention(q, k, v, pos)[:, a..b] = attention(q[:, a..b], k, v, pos + a): queries do not see each other.
fn of_attention(g: &mut Graph, cut: Cut, inner: &Node) -> Option<Id> {
    let &[q, k, v, pos] = inner.children.as_slice() else { return None };
    if cut.axis != 1 {
        return None;
    }
    let (part, pos) = (cut.apply(g, q)?, later(g, pos, cut.start)?);
    g.add(Opcode::Attention, inner.attrs().to_vec(), &[part, k, v, pos])
}
