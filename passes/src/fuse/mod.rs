//! Fusion: groups the operations of a region into the kernels that `rdc_ir::program::KernelKind` allows.
//!
//! Every operation starts in a group of its own. Groups join if the kind of kernel and the machine ([`crate::tile`]) allow it and if
//! the graph of groups stays acyclic. The phases, in order of who has the first word:
//! 1. a column sum takes the elementwise operations around it, a pack the transpose before it;
//! 2. a packed matmul, and a product of two activations, takes the elementwise operations after it (epilogue);
//! 3. attentions and cache updates take the chains that make their heads; with one query per row, an attention takes the
//!    updates of its two caches too; the derivatives of an attention take their rotation back and the join of their rows;
//! 4. a packed matmul takes the row operations that make its left operand (prologue). One row per batch is where this pays
//!    most: every thread recomputes a norm, which costs less than a barrier. What others need too becomes a result;
//! 5. the row operations left join into row kernels, which join the packed matmul whose result they alone take (row epilogue);
//! 6. reshapes and contiguous slices that nobody took need no kernel; every other operation is a kernel of its own.
//!
//! Before that, the function is rewritten into the form that fusion expects ([`normalise`]), and what must be written to a place of its
//! own gets an operation of its own ([`copies`]).
//!
//! A group is then taken apart, once, into the typed body that all who come after read ([`body`]). If its family does not compute it
//! after all, its operations become kernels of their own ([`apart`]).
pub mod attention;
pub mod body;
pub mod columns;
mod copies;
pub mod duplicate;
pub mod gradients;
pub mod graph;
pub mod kernel;
pub mod matmul;
pub mod normalise;
pub mod rows;
#[cfg(test)]
mod tests;

pub use graph::{Group, GroupKind};

use crate::tile::Machine;
use crate::uses::{User, Uses, alias, is_zero, moving};
use crate::weights::{Weights, leaves};
use crate::{Error, analysis};
use graph::{GroupId, UseGraph};
use kernel::{Built, Operand};
use rdc_ir::print::{Names, print_func_with};
use rdc_ir::{Func, Module, OpId, Opcode, RegionId, ValueId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::{self, Write};

/// A module whose operations are grouped into kernels. Its text is IR in which operations stand in the order of execution, with a
/// comment above those of each kernel: what it is, how it is cut, and how it reaches each value.
pub struct FusedModule {
    /// The module without its functions.
    pub head: Module,
    /// The functions.
    pub funcs: Vec<Fused>,
    /// What is known of constant buffers; none is listed yet.
    pub weights: Weights,
}

/// A function whose operations are grouped into kernels.
pub struct Fused {
    /// The function, normalised.
    pub func: Func,
    /// Who uses its values.
    pub uses: Uses,
    /// The groups of each region in an order of execution.
    pub regions: HashMap<RegionId, Vec<Item>>,
}

/// A group with its kernel, if it is one.
pub struct Item {
    /// The group.
    pub group: Group,
    /// Its kernel.
    pub built: Option<Built>,
}

/// Fuses a module whose weights are packed for the machine.
///
/// # Errors
/// If no kernel computes an operation.
pub fn run(module: &Module, machine: &dyn Machine) -> Result<FusedModule, Error> {
    let weights = Weights::new(module);
    let funcs = module.funcs.iter().map(|func| fuse(func, &weights, machine)).collect::<Result<_, _>>()?;
    let head = Module { name: module.name.clone(), params: module.params.clone(), funcs: Vec::new() };
    Ok(FusedModule { head, funcs, weights })
}

fn fuse(func: &Func, weights: &Weights, machine: &dyn Machine) -> Result<Fused, Error> {
    let mut func = normalise::normalise(func, machine);
    copies::insert(&mut func, weights);
    normalise::remove_unused(&mut func);
    let uses = Uses::new(&func);
    let leaves = leaves(&func, &uses, weights);
    let mut regions = HashMap::new();
    for region in analysis::regions_inside_out(&func) {
        let mut items = Vec::new();
        let mut groups: VecDeque<Group> = self::groups(&func, &uses, &leaves, region, machine).into();
        while let Some(group) = groups.pop_front() {
            let no_kernel =
                matches!(group.kind, GroupKind::Alias | GroupKind::Loop(_)) || zeros(&func, &group).is_some();
            let built = (!no_kernel).then(|| kernel::build(&func, &uses, region, &group, machine));
            match built.transpose() {
                Ok(built) => items.push(Item { group, built }),
                Err(_) if group.ops.len() > 1 => {
                    apart(&func, &uses, &group).into_iter().rev().for_each(|group| groups.push_front(group));
                }
                Err(error) => return Err(error),
            }
        }
        regions.insert(region, items);
    }
    Ok(Fused { func, uses, regions })
}

/// The value of a group that is zeros and nothing else.
pub fn zeros(func: &Func, group: &Group) -> Option<ValueId> {
    let [op] = group.ops[..] else { return None };
    let op = &func.ops[op];
    (op.opcode == Opcode::Broadcast && is_zero(func, op.results[0])).then_some(op.results[0])
}

impl fmt::Display for FusedModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.head)?;
        self.funcs.iter().try_for_each(|fused| write!(f, "\n{fused}"))
    }
}

impl fmt::Display for Fused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut func = self.func.clone();
        let mut notes = HashMap::new();
        let names = Names::new(&func);
        for (&region, items) in &self.regions {
            let grouped: Vec<OpId> = items.iter().flat_map(|item| item.group.ops.clone()).collect();
            // What needs no kernel comes first: constants, and what weights hold.
            let ops = &mut func.regions[region].ops;
            ops.retain(|op| !grouped.contains(op));
            ops.extend(grouped);
            for item in items {
                if let (Some(built), Some(&first)) = (&item.built, item.group.ops.first()) {
                    notes.insert(first, note(built, &names));
                }
            }
        }
        f.write_str(&print_func_with(&func, &notes))
    }
}

/// What a kernel is, and how it reaches the values that it takes and gives.
fn note(built: &Built, names: &Names) -> String {
    let kernel = &built.kernel;
    let mut text = format!("{}: {}, {} tasks of {:?}", kernel.name, kernel.kind.name(), kernel.tasks, kernel.tiling);
    let taken = built.args.iter().map(|arg| match *arg {
        Operand::Value(value) => names.get(value),
        Operand::Slot(_) => "the slot".into(),
    });
    let given = built.results.iter().map(|&value| names.get(value));
    for (name, pointer) in taken.chain(given).zip(&kernel.pointers) {
        let verb = if pointer.written { "writes" } else { "reads" };
        // Writing into a String cannot fail.
        let _ = write!(text, "\n  {verb} {name}: {:?}", pointer.access);
    }
    text
}

/// Groups the operations of a region (not of the regions inside it), in an order of execution, as suits a machine. `leaves` need no
/// kernel.
pub fn groups(func: &Func, uses: &Uses, leaves: &HashSet<OpId>, region: RegionId, machine: &dyn Machine) -> Vec<Group> {
    let mut graph = UseGraph::new(func, uses, leaves, region);
    for op in graph.ops() {
        let Some(group) = graph.group(op) else { continue };
        if func.ops[op].opcode == Opcode::Loop {
            graph.set_kind(group, GroupKind::Loop(op));
        } else if needs_no_kernel(func, uses, op) {
            graph.set_kind(group, GroupKind::Alias);
        }
    }
    columns::group(&mut graph);
    single_operations(&mut graph);
    matmul::epilogues(&mut graph);
    attention::group(&mut graph);
    gradients::group(&mut graph);
    if machine.widest_prologue() > 0 {
        matmul::prologues(&mut graph, machine);
        matmul::tails(&mut graph);
        matmul::companions(&mut graph);
    }
    row_groups(&mut graph);
    matmul::row_epilogues(&mut graph, machine);
    for op in graph.ops() {
        if let Some(group) = graph.group(op)
            && graph.kind(group) == GroupKind::Open
        {
            graph.set_kind(group, GroupKind::Generic);
        }
    }
    graph.finish(machine)
}

/// The operations of a group that no kernel computes together, each on its own.
pub fn apart(func: &Func, uses: &Uses, group: &Group) -> Vec<Group> {
    let kind = |op: OpId| if needs_no_kernel(func, uses, op) { GroupKind::Alias } else { GroupKind::Generic };
    group.ops.iter().map(|&op| Group { kind: kind(op), ops: vec![op] }).collect()
}

/// Whether an operation's result is memory of its operand, or an address.
fn needs_no_kernel(func: &Func, uses: &Uses, op: OpId) -> bool {
    alias(func, op).is_some() || moving(func, uses, op).is_some() || is_address(func, uses, op)
}

/// Operations with kernels of their own.
fn single_operations(graph: &mut UseGraph) {
    let func = graph.func;
    for op in graph.ops() {
        let Some(group) = graph.group(op) else { continue };
        match func.ops[op].opcode {
            Opcode::AttentionGrad => graph.set_kind(group, GroupKind::AttentionGrad(op)),
            Opcode::ScatterAdd => graph.set_kind(group, GroupKind::ScatterAdd(op)),
            Opcode::Pack => {
                graph.set_kind(group, GroupKind::Pack(op));
                let w = func.ops[op].operands[0];
                let transpose = func.def_op(w).filter(|&op| func.ops[op].opcode == Opcode::Transpose);
                if let Some(other) = transpose.and_then(|op| graph.group(op))
                    && graph.feeds_only(other, group)
                {
                    graph.try_join(group, other);
                }
            }
            _ => {}
        }
    }
}

/// Whether an operation is the slot of cache updates only, which becomes part of an address.
fn is_address(func: &Func, uses: &Uses, op: OpId) -> bool {
    let for_update = |user: &User| match *user {
        User::Op(user) => func.ops[user].opcode == Opcode::CacheUpdate,
        User::Yield(_) => false,
    };
    func.ops[op].opcode == Opcode::KvSlot && uses.of(func.ops[op].results[0]).iter().all(for_update)
}

/// Joins the row operations left over, in order, with the row groups that feed them.
fn row_groups(graph: &mut UseGraph) {
    let func = graph.func;
    for op in graph.ops() {
        let Some(group) = graph.group(op) else { continue };
        let Some(rows) = rows::natural_rows(func, op) else { continue };
        if graph.kind(group) != GroupKind::Open {
            continue;
        }
        graph.set_kind(group, GroupKind::Rows(rows));
        let mut group = take_shared(graph, group, op);
        for &operand in &func.ops[op].operands {
            // A table and its ids come from memory.
            if !rows::is_lookup(func, op) {
                group = join_rows(graph, group, operand);
            }
        }
    }
}

/// Joins a row group with the one that makes an operand, perhaps through reshapes, if one number of rows suits both.
fn join_rows(graph: &mut UseGraph, group: GroupId, operand: ValueId) -> GroupId {
    let mut set = vec![group];
    let mut value = operand;
    let other = loop {
        let Some(other) = graph.group_of_value(value) else { return group };
        if set.contains(&other) {
            return group;
        }
        set.push(other);
        match (graph.kind(other), graph.members(other)) {
            (GroupKind::Rows(rows), _) => break rows,
            (GroupKind::Alias, &[reshape]) => value = graph.func.ops[reshape].operands[0],
            _ => return group,
        }
    };
    let GroupKind::Rows(own) = graph.kind(group) else { return group };
    let suits = |rows: usize| {
        let mut ops = set.iter().flat_map(|&g| graph.members(g));
        ops.all(|&op| rows::fits(graph.func, op, rows) || rows::is_shared(graph.func, op) && !escapes(graph, op, &set))
    };
    let Some(rows) = [other, own].into_iter().find(|&rows| suits(rows)) else { return group };
    let Some(&first) = set.last().filter(|_| graph.can_join(&set)) else { return group };
    for &member in &set {
        graph.join(first, member);
    }
    graph.set_kind(first, GroupKind::Rows(rows));
    first
}

/// Whether anything outside of a set of groups uses a result of an operation.
fn escapes(graph: &UseGraph, op: OpId, set: &[GroupId]) -> bool {
    let outside = |user: &User| match *user {
        User::Op(op) => graph.group(op).is_none_or(|g| !set.contains(&g)),
        User::Yield(_) => true,
    };
    graph.func.ops[op].results.iter().any(|&v| graph.uses.of(v).iter().any(outside))
}

/// Takes scalar arithmetic and positions that only this group needs.
fn take_shared(graph: &mut UseGraph, group: GroupId, op: OpId) -> GroupId {
    let func = graph.func;
    let mut work = func.ops[op].operands.clone();
    while let Some(value) = work.pop() {
        let Some(other) = graph.group_of_value(value) else { continue };
        let Some(op) = func.def_op(value) else { continue };
        let ty = func.ty(value);
        // A kernel makes the position of each of its rows, not rows of them.
        let column = func.ops[op].opcode == Opcode::Positions && graph.kind(group) == GroupKind::Rows(ty.elements());
        let small = rows::is_shared(func, op) && ty.rank() == 0 || column;
        if small
            && graph.kind(other) == GroupKind::Open
            && graph.feeds_only(other, group)
            && graph.try_join(group, other)
        {
            work.extend(&func.ops[op].operands);
        }
    }
    group
}
