//! Algebraic simplification by equality saturation, one region at a time.
//!
//! A region becomes an e-graph over its pure operations. Everything else is a leaf: arguments, captured values, parameters,
//! and the results of operations that touch caches or hold regions. Those operations stay in their order; the cheapest
//! terms are rebuilt around them, each as late as its first use. Cost counts a loop's iterations, see [`extract`].
mod extract;
pub mod graph;
pub mod rules;

use crate::analysis;
use extract::Extraction;
use graph::{Fact, Graph, Head, Level, Node};
use rdc_ir::{Func, Loc, Module, OpId, Opcode, RegionId, ValueId};
use std::collections::{HashMap, HashSet};

/// Rounds of saturation, at most. The longest chains of the rules on real models need about half of it.
const MAX_ROUNDS: usize = 24;
/// Nodes of an e-graph, at most: a few times what the largest known models need.
const MAX_NODES: usize = 20_000;

/// Simplifies every function. `trips` is how often a loop is expected to run.
pub fn run(module: &mut Module, trips: usize) {
    for func in &mut module.funcs {
        let constant = analysis::constants(func);
        for region in analysis::regions_inside_out(func) {
            simplify_region(func, region, &constant, trips);
        }
    }
}

/// Whether an operation becomes a node. `param` does not: its type is stored, not inferred.
fn is_pure_node(func: &Func, op: OpId) -> bool {
    let opcode = func.ops[op].opcode;
    opcode != Opcode::Param && analysis::is_pure(func, op) && func.ops[op].results.len() == 1
}

fn simplify_region(func: &mut Func, region: RegionId, constant: &HashSet<ValueId>, trips: usize) {
    let ops = func.regions[region].ops.clone();
    let captured_by: HashMap<OpId, Vec<ValueId>> = ops.iter().map(|&op| (op, analysis::captured(func, op))).collect();
    let mut build = Build::new(func, region, &ops, &captured_by, constant);
    for &op in &ops {
        build.read(func, op);
    }
    build.roots = ops
        .iter()
        .filter(|&&op| !is_pure_node(func, op))
        .flat_map(|op| func.ops[*op].operands.iter().chain(&captured_by[op]))
        .chain(&func.regions[region].yields)
        .filter_map(|value| build.class.get(value).copied())
        .collect();
    saturate(&mut build.graph);
    let extraction = extract::extract(&build.graph, &build.roots, &build.written, trips);
    build.write(func, region, &ops, &captured_by, &extraction);
}

/// Applies the rules until nothing new comes out or a limit is reached.
fn saturate(graph: &mut Graph) {
    for _ in 0..MAX_ROUNDS {
        let mut classes: Vec<_> = graph.egraph.classes().map(|c| c.id).collect();
        classes.sort_unstable();
        let nodes: Vec<(egg::Id, Node)> =
            classes.iter().flat_map(|&id| graph.egraph[id].nodes.iter().map(move |n| (id, n.clone()))).collect();
        let mut changed = false;
        for (id, node) in nodes {
            let Some(opcode) = node.opcode() else { continue };
            if graph.egraph.total_size() > MAX_NODES {
                break;
            }
            for rule in rules::all().filter(|r| (r.roots)(opcode)) {
                for equal in (rule.apply)(graph, opcode, &node) {
                    debug_assert_eq!(graph.ty(equal), graph.ty(id), "{} changes the type", rule.name);
                    changed |= graph.egraph.union(id, equal);
                }
                graph.mark_new(graph.source(id));
            }
        }
        graph.egraph.rebuild();
        if !changed || graph.egraph.total_size() > MAX_NODES {
            return;
        }
    }
}

/// A region on its way into the e-graph and back.
struct Build {
    graph: Graph,
    /// The class of every value that the region sees.
    class: HashMap<ValueId, egg::Id>,
    /// The nodes of the program as it stands, in order.
    written: Vec<(egg::Id, Node)>,
    /// The values that must exist afterwards.
    roots: Vec<egg::Id>,
    /// The values that the e-graph computes.
    pure: HashSet<ValueId>,
}

impl Build {
    /// Puts the leaves in: what the region's operations use and do not compute purely in it.
    fn new(
        func: &Func,
        region: RegionId,
        ops: &[OpId],
        captured_by: &HashMap<OpId, Vec<ValueId>>,
        constant: &HashSet<ValueId>,
    ) -> Build {
        let pure: HashSet<ValueId> =
            ops.iter().filter(|&&op| is_pure_node(func, op)).flat_map(|&op| func.ops[op].results.clone()).collect();
        let here: HashSet<ValueId> = func.regions[region]
            .args
            .iter()
            .copied()
            .chain(ops.iter().flat_map(|&op| func.ops[op].results.iter().copied()))
            .collect();
        let in_loop = region != func.body;
        let used = ops.iter().flat_map(|op| func.ops[*op].operands.iter().chain(&captured_by[op]));
        let mut leaves = HashMap::new();
        let mut constants = Vec::new();
        for &value in used.chain(&func.regions[region].yields).filter(|v| !pure.contains(v)) {
            let level = match (constant.contains(&value), in_loop && here.contains(&value)) {
                (true, _) => Level::Const,
                (false, false) => Level::Invariant,
                (false, true) => Level::Variant,
            };
            leaves.insert(value, Fact { ty: func.ty(value).clone(), level, constant: None });
            if func.defined_by(value, Opcode::Constant).is_some() {
                constants.push(value);
            }
        }
        let mut sorted: Vec<ValueId> = leaves.keys().copied().collect();
        sorted.sort_unstable();
        let mut graph = Graph::new(leaves);
        let mut class: HashMap<ValueId, egg::Id> = sorted.into_iter().map(|v| (v, graph.leaf(v))).collect();
        // A captured constant is a number, not a leaf: rules may read it.
        for value in constants {
            let Some(op) = func.def_op(value) else { continue };
            if let Some(id) = graph.add(Opcode::Constant, func.ops[op].attrs.clone(), &[]) {
                class.insert(value, id);
            }
        }
        graph.mark_new(None);
        Build { graph, class, written: Vec::new(), roots: Vec::new(), pure }
    }

    /// Puts an operation in, if it is pure.
    fn read(&mut self, func: &Func, op: OpId) {
        if !is_pure_node(func, op) {
            return;
        }
        let data = &func.ops[op];
        let children: Option<Vec<egg::Id>> = data.operands.iter().map(|v| self.class.get(v).copied()).collect();
        let Some(children) = children else { return };
        let Some(id) = self.graph.add(data.opcode, data.attrs.clone(), &children) else { return };
        self.graph.mark_new(Some(data.results[0]));
        self.written.push((id, Node { head: Head::Op(data.opcode, data.attrs.clone()), children }));
        self.class.insert(data.results[0], id);
    }

    /// Writes the chosen terms back around the operations that stayed.
    fn write(
        &self,
        func: &mut Func,
        region: RegionId,
        ops: &[OpId],
        captured_by: &HashMap<OpId, Vec<ValueId>>,
        extraction: &Extraction,
    ) {
        let mut origins = HashMap::new();
        for &op in ops.iter().filter(|&&op| is_pure_node(func, op)) {
            let value = func.ops[op].results[0];
            if let Some(&id) = self.class.get(&value) {
                origins.entry(self.graph.egraph.find(id)).or_insert(value);
            }
        }
        let mut writer = Writer { build: self, extraction, origins, made: HashMap::new(), out: Vec::new() };
        let mut replaced = HashMap::new();
        let early = writer.view_users(&view_ends(func, ops));
        let kept: Vec<OpId> = ops.iter().copied().filter(|&op| !is_pure_node(func, op)).collect();
        for op in kept {
            for &id in early.get(&op).into_iter().flatten() {
                writer.value(func, id, Loc::default());
            }
            let loc = func.ops[op].loc;
            for &value in func.ops[op].operands.clone().iter().chain(&captured_by[&op]) {
                writer.replace(func, value, loc, &mut replaced);
            }
            writer.out.push(op);
        }
        for value in func.regions[region].yields.clone() {
            writer.replace(func, value, Loc::default(), &mut replaced);
        }
        func.regions[region].ops = writer.out;
        func.replace_uses(&replaced);
    }
}

/// Which operation ends the life of which cache view: the next one that takes the same cache.
fn view_ends(func: &Func, ops: &[OpId]) -> HashMap<ValueId, OpId> {
    let taker: HashMap<ValueId, OpId> =
        ops.iter().flat_map(|&op| func.ops[op].operands.iter().map(move |&v| (v, op))).collect();
    let updates = ops.iter().filter(|&&op| func.ops[op].opcode == Opcode::CacheUpdate);
    updates
        .filter_map(|&op| match func.ops[op].results[..] {
            [cache, view] => taker.get(&cache).map(|&end| (view, end)),
            _ => None,
        })
        .collect()
}

/// Turns chosen nodes into operations, each once, when first needed.
struct Writer<'a> {
    build: &'a Build,
    extraction: &'a Extraction,
    /// The first written value of each class: it gives the name and the place in the text.
    origins: HashMap<egg::Id, ValueId>,
    made: HashMap<egg::Id, ValueId>,
    out: Vec<OpId>,
}

impl Writer<'_> {
    /// For each operation that ends a view, the chosen classes that use the view and so must be written before it.
    fn view_users(&self, ends: &HashMap<ValueId, OpId>) -> HashMap<OpId, Vec<egg::Id>> {
        let mut users: HashMap<OpId, Vec<egg::Id>> = HashMap::new();
        let mut seen = HashSet::new();
        let mut stack: Vec<egg::Id> = self.build.roots.iter().rev().copied().collect();
        while let Some(id) = stack.pop() {
            let id = self.build.graph.egraph.find(id);
            let Some(node) = self.extraction.node(&self.build.graph, id).filter(|_| seen.insert(id)) else { continue };
            for &child in &node.children {
                if let Some(Node { head: Head::Leaf(view), .. }) = self.extraction.node(&self.build.graph, child)
                    && let Some(&end) = ends.get(view)
                {
                    users.entry(end).or_default().push(id);
                }
            }
            stack.extend(node.children.iter().rev());
        }
        users
    }

    /// Makes the value of a class that operations outside the e-graph use under another id, and notes the replacement.
    fn replace(&mut self, func: &mut Func, value: ValueId, loc: Loc, replaced: &mut HashMap<ValueId, ValueId>) {
        let Some(&id) = self.build.class.get(&value).filter(|_| self.build.pure.contains(&value)) else { return };
        if let Some(new) = self.value(func, id, loc) {
            replaced.insert(value, new);
        }
    }

    /// The value of a class. `loc` is the place of its user, for terms that come from no place.
    fn value(&mut self, func: &mut Func, id: egg::Id, loc: Loc) -> Option<ValueId> {
        let wanted = self.build.graph.egraph.find(id);
        // A stack, not recursion: a model may be thousands of operations deep.
        let mut stack = vec![(wanted, loc)];
        while let Some(&(id, loc)) = stack.last() {
            if self.made.contains_key(&id) {
                stack.pop();
                continue;
            }
            let node = self.extraction.node(&self.build.graph, id)?;
            let origin = self.origins.get(&id).copied();
            let source = origin.or_else(|| self.build.graph.source(id));
            let own_loc = source.and_then(|v| func.def_op(v)).map(|op| func.ops[op].loc);
            let loc = own_loc.filter(|l| l.line != 0).unwrap_or(loc);
            let children: Vec<egg::Id> = node.children.iter().map(|&c| self.build.graph.egraph.find(c)).collect();
            let missing: Vec<egg::Id> = children.iter().copied().filter(|c| !self.made.contains_key(c)).collect();
            if !missing.is_empty() {
                stack.extend(missing.into_iter().rev().map(|c| (c, loc)));
                continue;
            }
            let value = match &node.head {
                Head::Leaf(value) => *value,
                Head::Op(opcode, attrs) => {
                    let operands = children.iter().map(|c| self.made[c]).collect();
                    let ty = self.build.graph.ty(id).clone();
                    let op = func.make_op(*opcode, operands, attrs.clone(), vec![ty], vec![], loc);
                    let value = func.ops[op].results[0];
                    func.values[value].name = origin.and_then(|v| func.values[v].name.clone());
                    self.out.push(op);
                    value
                }
            };
            self.made.insert(id, value);
        }
        self.made.get(&wanted).copied()
    }
}
