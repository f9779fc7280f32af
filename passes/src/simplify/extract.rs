//! Chooses one node for every e-class, so that the values a region needs cost least when shared work counts once.
//!
//! The least-cost choice is NP-hard. Here: a greedy choice from the leaves up that counts shared work within each class,
//! then single changes from the needed values down as long as the whole becomes cheaper; and the same descent from
//! the program as written. The cheaper of the two is taken, so the result never costs more than the text.
use super::graph::{Graph, Head, Level, Node};
use egg::Id;
use rdc_ir::{Loc, Op, Opcode, Type};
use std::collections::HashMap;

/// The cost of an operation: floating-point operations, plus the elements that are moved (by shape operations) or stored and
/// loaded again (by a product), times how often it runs. What depends on parameters only is made once and for all.
/// To this comes one per execution and axis, so that fewer operations and lower ranks win a tie.
fn cost(graph: &Graph, node: &Node, id: Id, trips: u64) -> u64 {
    let Head::Op(opcode, attrs) = &node.head else { return 0 };
    let result = graph.ty(id);
    let operands: Vec<&Type> = node.children.iter().map(|&c| graph.ty(c)).collect();
    let elements = result.elements() as u64;
    let moved = match opcode {
        Opcode::Slice | Opcode::Concat | Opcode::Transpose | Opcode::Broadcast | Opcode::Gather => elements,
        Opcode::Matmul => elements,
        _ => 0,
    };
    let op = Op {
        opcode: *opcode,
        operands: vec![],
        attrs: attrs.clone(),
        results: vec![],
        regions: vec![],
        loc: Loc::default(),
    };
    let flops = (opcode.info().flops)(&op, &operands, &[result]);
    let overhead = 1 + result.rank() as u64;
    // A class holds terms of several levels if the cheaper ones were found by rewriting: the node's own operands count.
    match node.children.iter().map(|&c| graph.level(c)).max().unwrap_or(Level::Const) {
        Level::Const => flops.saturating_add(overhead),
        Level::Invariant => flops.saturating_add(moved + overhead),
        Level::Variant => flops.saturating_add(moved + overhead).saturating_mul(trips),
    }
}

/// The problem over dense indices of classes.
struct Problem {
    /// Per class: cost, children, and the node, of every alternative.
    classes: Vec<Vec<Alternative>>,
    index: HashMap<Id, usize>,
}

struct Alternative {
    cost: u64,
    children: Vec<usize>,
    node: Node,
}

/// Per class, the alternative taken.
type Choice = Vec<Option<usize>>;

/// The nodes chosen, by class.
pub struct Extraction {
    problem: Problem,
    choice: Choice,
}

impl Extraction {
    /// The node chosen for a class that the roots need.
    pub fn node(&self, graph: &Graph, id: Id) -> Option<&Node> {
        let class = *self.problem.index.get(&graph.egraph.find(id))?;
        self.choice[class].map(|alternative| &self.problem.classes[class][alternative].node)
    }
}

/// Chooses nodes for the classes that `roots` need. `written` holds the program's own nodes in order of definition.
pub fn extract(graph: &Graph, roots: &[Id], written: &[(Id, Node)], trips: usize) -> Extraction {
    let problem = Problem::new(graph, trips.max(2) as u64);
    let roots: Vec<usize> = roots.iter().map(|&id| problem.index[&graph.egraph.find(id)]).collect();
    let mut greedy = problem.greedy();
    let mut own = greedy.clone();
    for (id, node) in written.iter().rev() {
        // In reverse, so that of two equal values the earlier one counts: its operands are earlier still, hence no cycle.
        let class = problem.index[&graph.egraph.find(*id)];
        if problem.classes[class].iter().any(|a| matches!(a.node.head, Head::Leaf(_))) {
            continue; // The value is a leaf, which costs nothing.
        }
        let canonical = node.clone().canonical(graph);
        if let Some(i) = problem.classes[class].iter().position(|a| a.node == canonical) {
            own[class] = Some(i);
        }
    }
    let from_greedy = problem.descend(&roots, &mut greedy);
    let from_own = problem.descend(&roots, &mut own);
    let choice = if from_greedy < from_own { greedy } else { own };
    Extraction { problem, choice }
}

impl Node {
    fn canonical(mut self, graph: &Graph) -> Node {
        for child in &mut self.children {
            *child = graph.egraph.find(*child);
        }
        self
    }
}

impl Problem {
    fn new(graph: &Graph, trips: u64) -> Problem {
        let mut ids: Vec<Id> = graph.egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let index: HashMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let classes = ids
            .iter()
            .map(|&id| {
                let nodes = graph.egraph[id].nodes.iter().map(|n| n.clone().canonical(graph));
                nodes
                    .map(|node| Alternative {
                        cost: cost(graph, &node, id, trips),
                        children: node.children.iter().map(|c| index[c]).collect(),
                        node,
                    })
                    .collect()
            })
            .collect();
        Problem { classes, index }
    }

    /// For every class the alternative whose operands, counted once each, cost least; to a fixed point.
    fn greedy(&self) -> Choice {
        // The classes that the best term of a class uses, with their costs there, sorted by class; and their sum.
        type Best = Option<(usize, Vec<(usize, u64)>, u64)>;
        let mut best: Vec<Best> = vec![None; self.classes.len()];
        let mut changed = true;
        while changed {
            changed = false;
            for (class, alternatives) in self.classes.iter().enumerate() {
                for (i, alternative) in alternatives.iter().enumerate() {
                    let mut used = vec![(class, alternative.cost)];
                    let complete = alternative.children.iter().all(|&child| match &best[child] {
                        Some((_, below, _)) if below.binary_search_by_key(&class, |e| e.0).is_err() => {
                            used = merge(&used, below);
                            true
                        }
                        _ => false,
                    });
                    let total = used.iter().fold(0u64, |sum, e| sum.saturating_add(e.1));
                    if complete && best[class].as_ref().is_none_or(|b| total < b.2) {
                        best[class] = Some((i, used, total));
                        changed = true;
                    }
                }
            }
        }
        best.into_iter().map(|b| b.map(|b| b.0)).collect()
    }

    /// Changes single choices, from the roots down, while the whole becomes cheaper. Returns the cost.
    fn descend(&self, roots: &[usize], choice: &mut Choice) -> u64 {
        let Some((mut total, mut order)) = self.total(roots, choice) else { return u64::MAX };
        loop {
            let before = total;
            for class in order.into_iter().rev() {
                for alternative in 0..self.classes[class].len() {
                    let old = choice[class].replace(alternative);
                    match self.total(roots, choice) {
                        Some((new, _)) if new < total => total = new,
                        _ => choice[class] = old,
                    }
                }
            }
            if total == before {
                return total;
            }
            order = self.total(roots, choice).map(|t| t.1).unwrap_or_default();
        }
    }

    /// The cost of everything the roots need, and those classes, operands first; `None` if the choice has a cycle.
    fn total(&self, roots: &[usize], choice: &Choice) -> Option<(u64, Vec<usize>)> {
        let mut state = vec![Visit::New; self.classes.len()];
        let mut order = Vec::new();
        let mut stack: Vec<(usize, usize)> = Vec::new();
        let mut sum = 0u64;
        for &root in roots {
            stack.push((root, 0));
            while let Some((class, next)) = stack.pop() {
                let alternative = &self.classes[class][choice[class]?];
                match (state[class], next) {
                    (Visit::Done, _) => continue,
                    (Visit::Open, 0) => return None,
                    _ => {}
                }
                state[class] = Visit::Open;
                if let Some(&child) = alternative.children.get(next) {
                    stack.push((class, next + 1));
                    if state[child] == Visit::Open {
                        return None;
                    }
                    stack.push((child, 0));
                } else {
                    state[class] = Visit::Done;
                    sum = sum.saturating_add(alternative.cost);
                    order.push(class);
                }
            }
        }
        Some((sum, order))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

/// The union of two lists sorted by class.
fn merge(a: &[(usize, u64)], b: &[(usize, u64)]) -> Vec<(usize, u64)> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while let (Some(&x), Some(&y)) = (a.get(i), b.get(j)) {
        out.push(if x.0 <= y.0 { x } else { y });
        i += (x.0 <= y.0) as usize;
        j += (y.0 <= x.0) as usize;
    }
    out.extend(&a[i..]);
    out.extend(&b[j..]);
    out
}
