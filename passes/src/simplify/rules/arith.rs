//! Scalars, neutral elements, and moving invariant terms together.
use super::Rule;
use crate::simplify::graph::{Graph, Node};
use egg::Id;
use rdc_ir::{Attr, DType, Opcode};

pub const RULES: &[Rule] = &[
    Rule { name: "fold-scalars", roots: |o| o.is_elementwise(), apply: fold },
    Rule {
        name: "neutral",
        roots: |o| matches!(o, Opcode::Add | Opcode::Sub | Opcode::Mul | Opcode::Div),
        apply: neutral,
    },
    Rule {
        name: "negation",
        roots: |o| matches!(o, Opcode::Add | Opcode::Sub | Opcode::Mul | Opcode::Neg),
        apply: negation,
    },
    Rule {
        name: "logic",
        roots: |o| matches!(o, Opcode::And | Opcode::Or | Opcode::Not | Opcode::Select),
        apply: logic,
    },
    Rule { name: "idempotent", roots: |o| matches!(o, Opcode::Max | Opcode::Min | Opcode::Cast), apply: idempotent },
    Rule { name: "gather-invariants", roots: |o| matches!(o, Opcode::Add | Opcode::Mul), apply: gather_invariants },
];

/// op(c1, c2) = c for scalars. Comparisons are folded for integers only: in f32 they may see rounded numbers.
fn fold(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let Some(args) = node.children.iter().map(|&c| g.known(c)).collect::<Option<Vec<f64>>>() else { return vec![] };
    let Some(&first) = node.children.first() else { return vec![] };
    let from = g.ty(first).dtype;
    let float = from == DType::F32;
    let (value, dtype) = match (opcode, args.as_slice()) {
        (Opcode::Add, [a, b]) => (a + b, from),
        (Opcode::Sub, [a, b]) => (a - b, from),
        (Opcode::Mul, [a, b]) => (a * b, from),
        (Opcode::Div, [a, b]) => (a / b, from),
        (Opcode::Neg, [a]) => (-a, from),
        (Opcode::Sqrt, [a]) => (a.sqrt(), from),
        (Opcode::Rsqrt, [a]) => (1.0 / a.sqrt(), from),
        (Opcode::Lt, [a, b]) if !float => ((a < b) as u8 as f64, DType::Bool),
        (Opcode::Le, [a, b]) if !float => ((a <= b) as u8 as f64, DType::Bool),
        (Opcode::Eq, [a, b]) if !float => ((a == b) as u8 as f64, DType::Bool),
        (Opcode::Cast, [a]) => match node.attrs() {
            [Attr::DType(DType::F32)] if from != DType::BF16 => (*a, DType::F32),
            [Attr::DType(DType::I32)] if from == DType::F32 => (a.trunc(), DType::I32),
            _ => return vec![],
        },
        _ => return vec![],
    };
    // Integers that leave i32 wrap when the program runs; they are left to it. So are infinities and NaN.
    let fits = if dtype == DType::I32 { value.abs() <= i32::MAX as f64 } else { (value as f32).is_finite() };
    if fits { g.constant(value, dtype).into_iter().collect() } else { vec![] }
}

/// x + 0 = 0 + x = x - 0 = x · 1 = 1 · x = x / 1 = x, if x alone has the result's shape.
fn neutral(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let &[a, b] = node.children.as_slice() else { return vec![] };
    let Some(shape) = rdc_ir::infer::broadcast(g.shape(a), g.shape(b)) else { return vec![] };
    let unit = if matches!(opcode, Opcode::Mul | Opcode::Div) { 1.0 } else { 0.0 };
    let either_side = matches!(opcode, Opcode::Add | Opcode::Mul);
    let mut out = Vec::new();
    if g.known(b) == Some(unit) && g.shape(a) == shape {
        out.push(a);
    }
    if either_side && g.known(a) == Some(unit) && g.shape(b) == shape {
        out.push(b);
    }
    out
}

/// -(-x) = x; -(x - y) = y - x; x + (-y) = x - y; (-x) + y = y - x; x - (-y) = x + y; x · (-1) = -x.
fn negation(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let inner = |g: &Graph, id: Id| g.nodes(id, Opcode::Neg).first().map(|n| n.children[0]);
    let new = match (opcode, node.children.as_slice()) {
        (Opcode::Neg, &[x]) => {
            let swapped = g.nodes(x, Opcode::Sub).first().map(|n| [n.children[1], n.children[0]]);
            [inner(g, x), swapped.and_then(|pair| g.add(Opcode::Sub, vec![], &pair))]
        }
        (Opcode::Add, &[x, y]) => [
            inner(g, y).and_then(|y| g.add(Opcode::Sub, vec![], &[x, y])),
            inner(g, x).and_then(|x| g.add(Opcode::Sub, vec![], &[y, x])),
        ],
        (Opcode::Sub, &[x, y]) => [inner(g, y).and_then(|y| g.add(Opcode::Add, vec![], &[x, y])), None],
        (Opcode::Mul, &[x, c]) if g.known(c) == Some(-1.0) && g.ty(x).dtype == DType::F32 => {
            [g.add(Opcode::Neg, vec![], &[x]), None]
        }
        _ => [None, None],
    };
    new.into_iter().flatten().collect()
}

/// not not x = x; x and true = x; x or false = x; select(true, a, b) = a; select(false, a, b) = b; select(c, a, a) = a;
/// select(not c, a, b) = select(c, b, a).
fn logic(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let children = node.children.as_slice();
    let Some(shape) = children.iter().try_fold(vec![], |s, &c| rdc_ir::infer::broadcast(&s, g.shape(c))) else {
        return vec![];
    };
    let mut out = Vec::new();
    match (opcode, children) {
        (Opcode::Not, &[x]) => out.extend(g.nodes(x, Opcode::Not).iter().map(|n| n.children[0])),
        (Opcode::And | Opcode::Or, &[a, b]) => {
            let unit = if opcode == Opcode::And { 1.0 } else { 0.0 };
            out.extend([(a, b), (b, a)].iter().filter(|(_, c)| g.known(*c) == Some(unit)).map(|(x, _)| *x));
        }
        (Opcode::Select, &[c, a, b]) => {
            match g.known(c) {
                Some(0.0) => out.push(b),
                Some(_) => out.push(a),
                None if g.same(a, b) => out.push(a),
                None => {
                    for inner in g.nodes(c, Opcode::Not) {
                        out.extend(g.add(Opcode::Select, vec![], &[inner.children[0], b, a]));
                    }
                }
            };
        }
        _ => {}
    }
    out.retain(|&x| g.shape(x) == shape);
    out
}

/// max(x, x) = min(x, x) = x; cast to the type that x has = x.
fn idempotent(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    match (opcode, node.children.as_slice()) {
        (Opcode::Cast, &[x]) if node.attrs() == [Attr::DType(g.ty(x).dtype)] => vec![x],
        (Opcode::Max | Opcode::Min, &[a, b]) if g.same(a, b) => vec![a],
        _ => vec![],
    }
}

/// (x ∘ e) ∘ f = x ∘ (e ∘ f), ∘ either + or ·, if x is computed more often than e and f: then e ∘ f leaves the loop. The
/// operands of either ∘ may stand in either order. f32 only; integers gain nothing. It may not make the result of e ∘ f
/// larger than both.
fn gather_invariants(g: &mut Graph, opcode: Opcode, node: &Node) -> Vec<Id> {
    let &[a, b] = node.children.as_slice() else { return vec![] };
    if g.ty(a).dtype != DType::F32 {
        return vec![];
    }
    let mut out = Vec::new();
    for (inner, f) in [(a, b), (b, a)] {
        for node in g.nodes(inner, opcode) {
            for (x, e) in [(node.children[0], node.children[1]), (node.children[1], node.children[0])] {
                if g.level(x) <= g.level(e).max(g.level(f)) {
                    continue;
                }
                let Some(both) = rdc_ir::infer::broadcast(g.shape(e), g.shape(f)) else { continue };
                if both == g.shape(e) || both == g.shape(f) {
                    let sum = g.add(opcode, vec![], &[e, f]);
                    out.extend(sum.and_then(|sum| g.add(opcode, vec![], &[x, sum])));
                }
            }
        }
    }
    out
}
