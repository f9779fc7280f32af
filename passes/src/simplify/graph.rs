//! The e-graph of one region: nodes are pure operations, leaves are the values that the region does not compute purely.
use egg::{DidMerge, EGraph, Id, Language};
use rdc_ir::{Attr, Attrs, DType, Opcode, Type, ValueId};
use std::collections::HashMap;

/// What a value depends on, from the least to the most often computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Parameters and constants only.
    Const,
    /// What the caller gives, or what a loop body captures: computed once per call of the function.
    Invariant,
    /// Arguments of a loop body: computed once per iteration.
    Variant,
}

/// An operation or a leaf over e-classes. Where the text says it is no part of it: equal values from two places are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// What it is.
    pub head: Head,
    /// Operands.
    pub children: Vec<Id>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Head {
    /// A value that stays as it is.
    Leaf(ValueId),
    /// A pure operation with one result.
    Op(Opcode, Attrs),
}

impl Node {
    /// The opcode, unless it is a leaf.
    pub fn opcode(&self) -> Option<Opcode> {
        match self.head {
            Head::Leaf(_) => None,
            Head::Op(opcode, _) => Some(opcode),
        }
    }
    /// The attributes (none for a leaf).
    pub fn attrs(&self) -> &[Attr] {
        match &self.head {
            Head::Leaf(_) => &[],
            Head::Op(_, attrs) => attrs,
        }
    }
    /// The attribute at an index of the op table, as a size.
    pub fn size(&self, index: usize) -> usize {
        self.attrs().get(index).map_or(0, |a| a.as_int().max(0) as usize)
    }
    /// The attribute at an index of the op table, as a truth value.
    pub fn flag(&self, index: usize) -> bool {
        self.attrs().get(index).is_some_and(Attr::as_bool)
    }
    /// The attribute at an index of the op table, as sizes.
    pub fn sizes(&self, index: usize) -> Vec<usize> {
        self.attrs().get(index).map_or(&[][..], Attr::as_ints).iter().map(|&n| n.max(0) as usize).collect()
    }
}

impl Language for Node {
    type Discriminant = Option<Opcode>;
    fn discriminant(&self) -> Option<Opcode> {
        self.opcode()
    }
    fn matches(&self, other: &Node) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }
    fn children(&self) -> &[Id] {
        &self.children
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// What is known of every member of an e-class.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Type.
    pub ty: Type,
    /// What it depends on.
    pub level: Level,
    /// Its value, if it is a known scalar.
    pub constant: Option<f64>,
}

/// The e-class analysis: facts of leaves are given, those of operations follow.
pub struct Facts {
    leaves: HashMap<ValueId, Fact>,
}

impl egg::Analysis<Node> for Facts {
    type Data = Fact;
    fn make(graph: &mut EGraph<Node, Facts>, node: &Node, _: Id) -> Fact {
        match &node.head {
            Head::Leaf(value) => graph.analysis.leaves[value].clone(),
            Head::Op(opcode, attrs) => Fact {
                // `Graph::add` is the only way in and has inferred the type already.
                ty: infer(graph, *opcode, attrs, &node.children).unwrap_or_else(|| Type::scalar(DType::F32)),
                level: node.children.iter().map(|&c| graph[c].data.level).max().unwrap_or(Level::Const),
                constant: (*opcode == Opcode::Constant).then(|| attrs[0].as_float()),
            },
        }
    }
    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        let level = egg::merge_min(&mut a.level, b.level);
        let constant = egg::merge_option(&mut a.constant, b.constant, |_, _| DidMerge(false, false));
        level | constant
    }
}

fn infer(graph: &EGraph<Node, Facts>, opcode: Opcode, attrs: &[Attr], children: &[Id]) -> Option<Type> {
    let types: Vec<Type> = children.iter().map(|&c| graph[c].data.ty.clone()).collect();
    let mut results = (opcode.info().infer)(&types, attrs).ok()?;
    (results.len() == 1).then(|| results.swap_remove(0))
}

/// The e-graph with the accessors that rules are written in.
pub struct Graph {
    /// The e-graph.
    pub egraph: EGraph<Node, Facts>,
    /// For every id ever given, the written value that it is, or that the rule which made it was applied to.
    sources: Vec<Option<ValueId>>,
}

impl Graph {
    /// An e-graph over leaves with these facts.
    pub fn new(leaves: HashMap<ValueId, Fact>) -> Graph {
        Graph { egraph: EGraph::new(Facts { leaves }), sources: Vec::new() }
    }
    /// The class of a leaf.
    pub fn leaf(&mut self, value: ValueId) -> Id {
        self.egraph.add(Node { head: Head::Leaf(value), children: vec![] })
    }
    /// The class of an operation; `None` if its operands break a rule of the op, so that a rewrite need not check them.
    pub fn add(&mut self, opcode: Opcode, attrs: Attrs, children: &[Id]) -> Option<Id> {
        infer(&self.egraph, opcode, &attrs, children)?;
        Some(self.egraph.add(Node { head: Head::Op(opcode, attrs), children: children.to_vec() }))
    }
    /// The class of a scalar constant.
    pub fn constant(&mut self, value: f64, dtype: DType) -> Option<Id> {
        self.add(Opcode::Constant, vec![Attr::float(value), Attr::DType(dtype)], &[])
    }
    /// `slice`, or the operand itself if the range is the whole axis.
    pub fn slice(&mut self, x: Id, axis: usize, start: usize, end: usize) -> Option<Id> {
        if start == 0 && self.shape(x).get(axis) == Some(&end) {
            return Some(x);
        }
        let attrs = [axis, start, end].map(|n| Attr::Int(n as i64)).to_vec();
        self.add(Opcode::Slice, attrs, &[x])
    }
    /// `concat`, or the operand itself if it is the only one.
    pub fn concat(&mut self, parts: &[Id], axis: usize) -> Option<Id> {
        match parts {
            [only] => Some(*only),
            _ => self.add(Opcode::Concat, vec![Attr::Int(axis as i64)], parts),
        }
    }
    /// `reshape`, or the operand itself if it has that shape.
    pub fn reshape(&mut self, x: Id, shape: &[usize]) -> Option<Id> {
        if self.shape(x) == shape {
            return Some(x);
        }
        self.add(Opcode::Reshape, vec![Attr::shape(shape)], &[x])
    }
    /// The type of a class.
    pub fn ty(&self, id: Id) -> &Type {
        &self.egraph[id].data.ty
    }
    /// The shape of a class.
    pub fn shape(&self, id: Id) -> &[usize] {
        &self.ty(id).shape
    }
    /// What a class depends on.
    pub fn level(&self, id: Id) -> Level {
        self.egraph[id].data.level
    }
    /// The value of a class, if it is a known scalar.
    pub fn known(&self, id: Id) -> Option<f64> {
        self.egraph[id].data.constant
    }
    /// The nodes of a class with that opcode.
    pub fn nodes(&self, id: Id, opcode: Opcode) -> Vec<Node> {
        self.egraph[id].nodes.iter().filter(|n| n.opcode() == Some(opcode)).cloned().collect()
    }
    /// Says that all ids made since the last call come from a written value.
    pub fn mark_new(&mut self, source: Option<ValueId>) {
        self.sources.resize(self.egraph.nodes().len(), source);
    }
    /// The written value that an id comes from.
    pub fn source(&self, id: Id) -> Option<ValueId> {
        self.sources.get(usize::from(id)).copied().flatten()
    }
    /// Whether two ids name one class.
    pub fn same(&self, a: Id, b: Id) -> bool {
        self.egraph.find(a) == self.egraph.find(b)
    }
}
