//! Matrix products.
use super::Rule;
use crate::simplify::graph::{Graph, Node};
use egg::Id;
use rdc_ir::{Attr, Opcode};

pub const RULES: &[Rule] = &[
    Rule { name: "split-matmul", roots: |o| o == Opcode::Matmul, apply: split },
    Rule { name: "transposed-operand", roots: |o| o == Opcode::Matmul, apply: transposed },
];

/// [a, b] · [u; v] = a · u + b · v, where a changes in the loop and b does not, or the other way round: then one of the
/// products leaves the loop. Neighbours that depend on the same things stay together.
fn split(g: &mut Graph, _: Opcode, node: &Node) -> Vec<Id> {
    let (x, w) = (node.children[0], node.children[1]);
    let (trans_x, trans_w) = (node.flag(0), node.flag(1));
    let (rank_x, rank_w) = (g.ty(x).rank(), g.ty(w).rank());
    let (inner_x, inner_w) =
        (if trans_x { rank_x - 2 } else { rank_x - 1 }, if trans_w { rank_w - 1 } else { rank_w - 2 });
    let mut out = Vec::new();
    for parts in g.nodes(x, Opcode::Concat) {
        if parts.size(0) != inner_x {
            continue;
        }
        let mut groups: Vec<Vec<Id>> = Vec::new();
        for &part in &parts.children {
            match groups.last_mut() {
                Some(group) if g.level(group[0]) == g.level(part) => group.push(part),
                _ => groups.push(vec![part]),
            }
        }
        if groups.len() < 2 {
            continue;
        }
        let mut start = 0;
        let products: Option<Vec<Id>> = groups
            .iter()
            .map(|group| {
                let width: usize = group.iter().map(|&p| g.shape(p)[inner_x]).sum();
                let part = g.concat(group, inner_x)?;
                let rows = g.slice(w, inner_w, start, start + width)?;
                start += width;
                g.add(Opcode::Matmul, node.attrs().to_vec(), &[part, rows])
            })
            .collect();
        let sum = products.and_then(|products| {
            let (&first, rest) = products.split_first()?;
            rest.iter().try_fold(first, |sum, &product| g.add(Opcode::Add, vec![], &[sum, product]))
        });
        out.extend(sum);
    }
    out
}

/// a · transpose(b) is a flag of the product: aᵀᵀ = a. Only the last two axes may be exchanged.
fn transposed(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let mut out = Vec::new();
    for side in 0..2 {
        for inner in g.nodes(node.children[side], Opcode::Transpose) {
            let perm = inner.sizes(0);
            let rank = perm.len();
            let swaps = rank >= 2
                && perm[..rank - 2].iter().enumerate().all(|(i, &p)| i == p)
                && (perm[rank - 2], perm[rank - 1]) == (rank - 1, rank - 2);
            if swaps {
                let mut children = node.children.clone();
                children[side] = inner.children[0];
                let mut attrs = node.attrs().to_vec();
                attrs[side] = Attr::Bool(!node.flag(side));
                out.extend(g.add(opcode, attrs, &children));
            }
        }
    }
    out
}
