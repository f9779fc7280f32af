//! The use graph of a region and its contraction into groups.
use crate::tile::Machine;
use crate::uses::{User, Uses};
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use rdc_ir::{Func, OpId, Opcode, RegionId, ValueId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// What a group of operations is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Not decided yet.
    Open,
    /// Row operations over that many rows.
    Rows(usize),
    /// A matmul with prologue and epilogue.
    Matmul(OpId),
    /// Cache updates.
    KvWrite,
    /// An attention over the cache.
    Attention(OpId),
    /// Cache updates and the attention of one token.
    DecodeAttention(OpId),
    /// The derivatives of an attention.
    AttentionGrad(OpId),
    /// A product of two activations with an epilogue.
    Product(OpId),
    /// A weight being packed, perhaps its transpose.
    Pack(OpId),
    /// A column sum with what comes before and after it.
    Columns(OpId),
    /// Rows added to a table.
    ScatterAdd(OpId),
    /// One operation.
    Generic,
    /// A loop.
    Loop(OpId),
    /// A reshape or contiguous slice: no kernel, the operand's memory seen otherwise.
    Alias,
}

/// A group of operations of one region, in the region's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What it becomes.
    pub kind: GroupKind,
    /// Its operations.
    pub ops: Vec<OpId>,
}

/// The id of a group under construction.
pub type GroupId = usize;

/// Operations of a region as nodes, with an edge from each definition to each use, and the groups they are in.
pub struct UseGraph<'f> {
    /// The function.
    pub func: &'f Func,
    /// Its uses.
    pub uses: &'f Uses,
    /// The region.
    pub region: RegionId,
    graph: DiGraph<OpId, ()>,
    node: HashMap<OpId, NodeIndex>,
    group_of: Vec<GroupId>,
    groups: Vec<Group>,
}

impl<'f> UseGraph<'f> {
    /// The graph of a region, each operation in a group of its own. `leaves` (constants and weights) are no nodes.
    pub fn new(func: &'f Func, uses: &'f Uses, leaves: &HashSet<OpId>, region: RegionId) -> UseGraph<'f> {
        let mut graph = DiGraph::new();
        let mut node = HashMap::new();
        let mut groups = Vec::new();
        for &op in &func.regions[region].ops {
            if !leaves.contains(&op) {
                node.insert(op, graph.add_node(op));
                groups.push(Group { kind: GroupKind::Open, ops: vec![op] });
            }
        }
        let mut this = UseGraph { func, uses, region, graph, node, group_of: (0..groups.len()).collect(), groups };
        this.add_edges();
        this
    }
    fn add_edges(&mut self) {
        for (op, from) in self.node.clone() {
            for &value in &self.func.ops[op].results {
                for user in self.users_here(value) {
                    self.graph.update_edge(from, self.node[&user], ());
                }
            }
            // A view may be overwritten by the next update of its cache: its readers come before that update.
            if self.func.ops[op].opcode == Opcode::CacheUpdate {
                let [cache, view] = self.func.ops[op].results[..] else { continue };
                for next in self.users_here(cache) {
                    for reader in self.users_here(view) {
                        if reader != next {
                            self.graph.update_edge(self.node[&reader], self.node[&next], ());
                        }
                    }
                }
            }
        }
    }
    /// The operations of this region that use a value, themselves or inside.
    pub fn users_here(&self, value: ValueId) -> Vec<OpId> {
        let inside = |user: &User| match *user {
            User::Op(op) => self.uses.within(self.region, op),
            User::Yield(region) => self.uses.owner(region).and_then(|op| self.uses.within(self.region, op)),
        };
        let mut ops: Vec<OpId> = self.uses.of(value).iter().filter_map(inside).collect();
        ops.sort();
        ops.dedup();
        ops.retain(|op| self.node.contains_key(op));
        ops
    }
    /// Whether a loop stands between two operations of the region, the earlier one first.
    pub fn loop_between(&self, first: OpId, second: OpId) -> bool {
        let ops = &self.func.regions[self.region].ops;
        let mut between = ops.iter().skip_while(|&&op| op != first).take_while(|&&op| op != second);
        between.any(|&op| self.func.ops[op].opcode == Opcode::Loop)
    }
    /// The operations that are nodes, in the region's order.
    pub fn ops(&self) -> Vec<OpId> {
        self.graph.node_weights().copied().collect()
    }
    /// The group of an operation; `None` for leaves and operations of other regions.
    pub fn group(&self, op: OpId) -> Option<GroupId> {
        self.node.get(&op).map(|n| self.group_of[n.index()])
    }
    /// The group that defines a value, if it is defined here.
    pub fn group_of_value(&self, value: ValueId) -> Option<GroupId> {
        self.func.def_op(value).and_then(|op| self.group(op))
    }
    /// The group of an operation if what it becomes is not decided yet.
    pub fn open(&self, op: OpId) -> Option<GroupId> {
        self.group(op).filter(|&group| self.kind(group) == GroupKind::Open)
    }
    /// What a group becomes.
    pub fn kind(&self, group: GroupId) -> GroupKind {
        self.groups[group].kind
    }
    /// Decides what a group becomes.
    pub fn set_kind(&mut self, group: GroupId, kind: GroupKind) {
        self.groups[group].kind = kind;
    }
    /// The operations of a group.
    pub fn members(&self, group: GroupId) -> &[OpId] {
        &self.groups[group].ops
    }
    /// Whether groups can become one: no path leaves them and comes back.
    pub fn can_join(&self, set: &[GroupId]) -> bool {
        let mut seen = vec![false; self.groups.len()];
        let mut stack: Vec<GroupId> = Vec::new();
        let successors = |group: GroupId| {
            self.groups[group]
                .ops
                .iter()
                .flat_map(|op| self.graph.edges(self.node[op]))
                .map(|e| self.group_of[e.target().index()])
        };
        for &group in set {
            stack.extend(successors(group).filter(|g| !set.contains(g)));
        }
        while let Some(group) = stack.pop() {
            if set.contains(&group) {
                return false;
            }
            if !std::mem::replace(&mut seen[group], true) {
                stack.extend(successors(group));
            }
        }
        true
    }
    /// Whether everything that a group computes is used by another group only.
    pub fn feeds_only(&self, group: GroupId, user: GroupId) -> bool {
        let used_there = |u: &User| match *u {
            User::Op(op) => self.group(op) == Some(user),
            User::Yield(_) => false,
        };
        let mut results = self.groups[group].ops.iter().flat_map(|&op| &self.func.ops[op].results);
        results.all(|&v| self.uses.of(v).iter().all(used_there))
    }
    /// Whether some elementwise operation of this region, in no group yet, uses a result of an operation.
    pub fn feeds_elementwise(&self, op: OpId) -> bool {
        let results = &self.func.ops[op].results;
        let mut users = results.iter().flat_map(|&v| self.users_here(v));
        users.any(|user| self.func.ops[user].opcode.is_elementwise() && self.open(user).is_some())
    }
    /// Moves the operations of `other` into `group`.
    pub fn join(&mut self, group: GroupId, other: GroupId) {
        if group == other {
            return;
        }
        let moved = std::mem::take(&mut self.groups[other].ops);
        for op in &moved {
            self.group_of[self.node[op].index()] = group;
        }
        let ops = &mut self.groups[group].ops;
        ops.extend(moved);
        let order = |op: &OpId| self.node[op];
        ops.sort_by_key(order);
    }
    /// Puts an operation into a group of its own again.
    pub fn leave(&mut self, op: OpId, kind: GroupKind) {
        if let Some(group) = self.group(op) {
            self.groups[group].ops.retain(|&o| o != op);
            self.group_of[self.node[&op].index()] = self.groups.len();
            self.groups.push(Group { kind, ops: vec![op] });
        }
    }
    /// Joins if that is possible.
    pub fn try_join(&mut self, group: GroupId, other: GroupId) -> bool {
        let ok = group != other && self.can_join(&[group, other]);
        if ok {
            self.join(group, other);
        }
        ok
    }
    /// The groups in an order of execution: definitions first, otherwise the order of the region, but for sums over all rows whose
    /// results nothing here uses, the gradients of weights: see [`Late`].
    pub fn finish(self, machine: &dyn Machine) -> Vec<Group> {
        let mut waiting = vec![0usize; self.groups.len()];
        let mut next = vec![Vec::new(); self.groups.len()];
        for edge in self.graph.edge_references() {
            let (a, b) = (self.group_of[edge.source().index()], self.group_of[edge.target().index()]);
            if a != b {
                waiting[b] += 1;
                next[a].push(b);
            }
        }
        let key = |g: GroupId| Reverse((self.groups[g].ops.first().map(|op| self.node[op]), g));
        let mut ready: BinaryHeap<_> = (0..self.groups.len()).filter(|&g| waiting[g] == 0).map(key).collect();
        let mut order = Vec::new();
        let mut late = Late { most: machine.kernels_put_off(), ..Late::default() };
        while let Some(Reverse((_, group))) = ready.pop() {
            let kind = self.kind(group);
            if next[group].is_empty() && matches!(kind, GroupKind::Product(_) | GroupKind::Columns(_)) {
                late.put_off(group);
                continue;
            }
            late.before(kind, self.by_rows(kind), &mut order);
            order.push(group);
            for &user in &next[group] {
                waiting[user] -= 1;
                if waiting[user] == 0 {
                    ready.push(key(user));
                }
            }
        }
        order.extend(late.sums.into_iter().map(|(group, _)| group));
        debug_assert_eq!(order.len(), self.groups.len(), "groups form a cycle");
        order.iter().map(|&g| self.groups[g].clone()).filter(|g| !g.ops.is_empty()).collect()
    }
    /// Whether a row of a group's results needs the same row of its operands only, and weights.
    fn by_rows(&self, kind: GroupKind) -> bool {
        match kind {
            GroupKind::Rows(_) | GroupKind::Matmul(_) => true,
            GroupKind::Product(op) => !self.func.ops[op].flag("trans_a"),
            _ => false,
        }
    }
}

/// Sums over all rows that are put off to where threads would otherwise wait for each other: a kernel that mixes rows must wait for
/// all of the one before it, and meanwhile there is a sum whose operands have long been complete.
#[derive(Default)]
struct Late {
    /// The groups, with the number of kernels before them.
    sums: Vec<(GroupId, usize)>,
    /// The kernels so far, without those put off, and whether the last one mixes rows.
    kernels: usize,
    mixes: bool,
    /// Kernels that a sum is put off at most: its operands stay in memory as long.
    most: usize,
}

impl Late {
    fn put_off(&mut self, group: GroupId) {
        self.sums.push((group, self.kernels));
    }
    /// Appends what comes before a group of that kind.
    fn before(&mut self, kind: GroupKind, by_rows: bool, order: &mut Vec<GroupId>) {
        if kind == GroupKind::Alias {
            return;
        }
        let (kernels, most, meets) = (self.kernels, self.most, !by_rows || self.mixes);
        let due = |&mut (_, since): &mut (GroupId, usize)| match kind {
            GroupKind::Loop(_) => true,
            _ => meets && since < kernels || since + most <= kernels,
        };
        order.extend(self.sums.extract_if(.., due).map(|(group, _)| group));
        self.kernels += 1;
        self.mixes = !by_rows;
    }
}
