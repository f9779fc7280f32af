//! Fusion: groups the operations of a region into the kernels that `rdc_ir::program::KernelKind` allows.
//!
//! Every operation starts in a group of its own. Groups join if the kind of kernel allows it and if the graph of groups
//! stays acyclic. The phases, in order of who has the first word:
//! 1. a packed matmul takes the elementwise operations after it (epilogue);
//! 2. attentions and cache updates take the chains that make their heads; with one query per row, an attention takes the
//!    updates of its two caches too;
//! 3. a packed matmul takes the row operations that make its left operand (prologue). One row per batch is where this pays
//!    most: every thread recomputes a norm, which costs less than a barrier. What others need too becomes a result;
//! 4. the row operations left join into row kernels;
//! 5. reshapes and contiguous slices that nobody took need no kernel; every other operation is a kernel of its own.
pub mod attention;
pub mod graph;
pub mod kernel;
pub mod matmul;
pub mod normalise;
pub mod rows;
pub mod tiles;
pub mod uses;

pub use graph::{Group, GroupKind};

use graph::{GroupId, UseGraph};
use rdc_ir::{Func, OpId, Opcode, RegionId};
use std::collections::HashSet;
use uses::{User, Uses, alias};

/// Groups the operations of a region (not of the regions inside it), in an order of execution. `leaves` need no kernel.
pub fn groups(func: &Func, uses: &Uses, leaves: &HashSet<OpId>, region: RegionId) -> Vec<Group> {
    let mut graph = UseGraph::new(func, uses, leaves, region);
    for op in graph.ops() {
        let Some(group) = graph.group(op) else { continue };
        if func.ops[op].opcode == Opcode::Loop {
            graph.set_kind(group, GroupKind::Loop(op));
        } else if alias(func, op).is_some() || is_address(func, uses, op) {
            graph.set_kind(group, GroupKind::Alias);
        }
    }
    matmul::epilogues(&mut graph);
    attention::group(&mut graph);
    matmul::prologues(&mut graph);
    row_groups(&mut graph);
    for op in graph.ops() {
        if let Some(group) = graph.group(op)
            && graph.kind(group) == GroupKind::Open
        {
            graph.set_kind(group, GroupKind::Generic);
        }
    }
    graph.finish()
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
        if graph.kind(group) != GroupKind::Open {
            continue;
        }
        let lookup = rows::lookup_rows(func, op);
        let Some(rows) = rows::rows_of(func, op).or(lookup) else { continue };
        let mut group = group;
        for &operand in &func.ops[op].operands {
            let Some(other) = graph.group_of_value(operand) else { continue };
            let fits = match graph.kind(other) {
                // A table and its ids come from memory, except for positions that nobody else wants.
                GroupKind::Open => lookup.is_some() && feeds_only(graph, other, op) && is_positions(graph, other),
                GroupKind::Rows(n) => lookup.is_none() && (n == rows || is_one_row(graph, other)),
                _ => false,
            };
            if fits && graph.can_join(&[group, other]) {
                graph.join(other, group);
                group = other;
            }
        }
        graph.set_kind(group, GroupKind::Rows(rows));
    }
}

/// Whether a group only looks one row up, which a kernel of any number of rows can do for itself.
fn is_one_row(graph: &UseGraph, group: GroupId) -> bool {
    graph.members(group).iter().all(|&op| {
        rows::lookup_rows(graph.func, op).is_some()
            && graph.func.ty(graph.func.ops[op].results[0]).rank() == 1
            && graph.uses.of(graph.func.ops[op].results[0]).len() == 1
    })
}

fn is_positions(graph: &UseGraph, group: GroupId) -> bool {
    graph.members(group).iter().all(|&op| graph.func.ops[op].opcode == Opcode::Positions)
}

fn feeds_only(graph: &UseGraph, group: GroupId, user: OpId) -> bool {
    graph.members(group).iter().all(|&op| {
        let results = &graph.func.ops[op].results;
        results.iter().all(|&v| graph.uses.of(v).iter().all(|&u| u == User::Op(user)))
    })
}
