//! Column sums: `sum_to` from `[rows, columns]` to `[columns]`, with the elementwise operations around it.
use super::graph::{GroupId, GroupKind, UseGraph};
use super::rows::{fits, is_elementwise};
use crate::tile::Machine;
use crate::uses::{User, Uses};
use rdc_ir::{Attr, Builder, Func, OpId, Opcode, RegionId, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// The rows and columns of a `sum_to` that adds up rows.
pub fn size(func: &Func, op: OpId) -> Option<(usize, usize)> {
    let op = &func.ops[op];
    let (x, result) = (func.ty(*op.operands.first()?), func.ty(*op.results.first()?));
    let fits = op.opcode == Opcode::SumTo && x.rank() == 2 && result.shape == [x.last()];
    fits.then(|| (x.rows(), x.last()))
}

/// Whether a value of that shape is all of the elements or one for each row.
fn is_summed(ty: &Type, rows: usize, columns: usize) -> bool {
    let whole = ty.elements() == rows * columns && ty.last() == columns;
    whole || ty.elements() == rows && (ty.last() == 1 || rows != columns)
}

/// The shape of a value within the kernel of a sum: of an operand of it, or of what comes after.
pub fn canonical(ty: &Type, (rows, columns): (usize, usize), after: bool) -> Type {
    let shape = match ty.elements() {
        n if after && n == columns => vec![columns],
        n if !after && n == rows * columns => vec![rows, columns],
        1 => vec![],
        n if !after && n == rows && is_summed(ty, rows, columns) => vec![rows, 1],
        _ => vec![columns],
    };
    ty.with_shape(shape)
}

/// Makes a group of every column sum, with the elementwise operations before it that nothing else needs and those after it.
pub fn group(graph: &mut UseGraph) {
    let func = graph.func;
    for op in graph.ops() {
        if let (Some((rows, columns)), Some(group)) = (size(func, op), graph.group(op)) {
            graph.set_kind(group, GroupKind::Columns(op));
            before(graph, group, op, rows, columns);
            after(graph, group, op, columns);
        }
    }
}

fn before(graph: &mut UseGraph, group: GroupId, sum: OpId, rows: usize, columns: usize) {
    let func = graph.func;
    let mut work = func.ops[sum].operands.clone();
    while let Some(value) = work.pop() {
        let (Some(op), Some(other)) = (func.def_op(value), graph.group_of_value(value)) else { continue };
        let slices = is_slice_of_rows(func, op, rows);
        let open = match graph.kind(other) {
            GroupKind::Open => is_elementwise(func, op) || slices,
            GroupKind::Alias => func.ops[op].opcode == Opcode::Reshape,
            _ => false,
        };
        let fits = is_summed(func.ty(value), rows, columns) && open && graph.feeds_only(other, group);
        if fits && graph.try_join(group, other) && !slices {
            work.extend(&func.ops[op].operands);
        }
    }
}

/// Whether an operation takes some columns of so many rows.
pub fn is_slice_of_rows(func: &Func, op: OpId, rows: usize) -> bool {
    let op = &func.ops[op];
    let from = |v: ValueId| func.ty(v);
    op.opcode == Opcode::Slice
        && op.size("axis") + 1 == from(op.operands[0]).rank()
        && from(op.operands[0]).rows() == rows
}

fn after(graph: &mut UseGraph, group: GroupId, sum: OpId, columns: usize) {
    let func = graph.func;
    let mut work = func.ops[sum].results.clone();
    while let Some(value) = work.pop() {
        for op in graph.users_here(value) {
            let (Some(other), Some(&result)) = (graph.group(op), func.ops[op].results.first()) else { continue };
            let sizes =
                func.ops[op].operands.iter().all(|&v| matches!(func.ty(v).elements(), n if n == columns || n == 1));
            let fits = match graph.kind(other) {
                GroupKind::Open => func.ops[op].opcode.is_elementwise() && sizes,
                GroupKind::Alias => func.ops[op].opcode == Opcode::Reshape && graph.feeds_elementwise(op),
                _ => false,
            };
            if fits && func.ty(result).elements() == columns && graph.try_join(group, other) {
                work.push(result);
            }
        }
    }
}

/// Sums blocks of rows first where the machine wants that and a row kernel has what is summed at hand, or what that is made of: the kernel gives the
/// sums of its blocks as one more result, and the rows need neither be written for the column sum nor read again by it.
pub fn sum_in_blocks(func: &mut Func, machine: &dyn Machine) {
    for (region, op) in func.walk() {
        let Some(size) = size(func, op).filter(|size| size.1 > 1) else { continue };
        let Some(rows) = machine.sum_block(size.0) else { continue };
        let summed = func.ops[op].operands[0];
        let whole = func.through_reshapes(summed);
        let x = if func.ty(whole).last() == size.1 { whole } else { summed };
        let uses = Uses::new(func);
        if is_made_of_rows(func, &uses, region, x, size) {
            let attrs = vec![Attr::Int(rows as i64)];
            func.ops[op].operands[0] = Builder::before(func, region, op).op(Opcode::SumBlocks, &[x], attrs);
        }
    }
}

/// Whether a row kernel of the region reduces rows of a value, or of what elementwise operations of the region make it of, perhaps
/// times something else.
fn is_made_of_rows(func: &Func, uses: &Uses, region: RegionId, x: ValueId, (rows, columns): (usize, usize)) -> bool {
    let here = |op: OpId| uses.region(op) == region;
    let users = |v: ValueId| {
        uses.of(v).iter().filter_map(|user| match *user {
            User::Op(op) => Some(op).filter(|&op| here(op)),
            User::Yield(_) => None,
        })
    };
    let reduces = |op: OpId| {
        let reduction = matches!(func.ops[op].opcode, Opcode::ReduceSum | Opcode::RmsNorm | Opcode::LayerNorm);
        reduction && fits(func, op, rows)
    };
    let leads_to_one = |op: OpId| {
        reduces(op) || is_elementwise(func, op) && func.ops[op].results.iter().any(|&v| users(v).any(reduces))
    };
    let (mut work, mut seen) = (vec![x], HashSet::new());
    while let Some(value) = work.pop() {
        if func.ty(value).elements() != rows * columns || !seen.insert(value) {
            continue;
        }
        if users(value).any(leads_to_one) {
            return true;
        }
        let def = func.def_op(value).filter(|&op| here(op) && is_elementwise(func, op));
        work.extend(def.into_iter().flat_map(|op| &func.ops[op].operands));
    }
    false
}

/// Gives column sums copies of their own of elementwise operations before them that others use too, where computing again reads
/// no more than reading the result would. The results then need no memory for the sum's sake.
pub fn own_operands(func: &mut Func) {
    for (region, op) in func.walk() {
        if let Some((rows, columns)) = size(func, op) {
            let uses = Uses::new(func);
            let mut copies = Copies { func, uses: &uses, region, sum: op, full: rows * columns, known: HashMap::new() };
            let operand = copies.func.ops[op].operands[0];
            let own = copies.own(operand);
            func.ops[op].operands[0] = own;
        }
    }
}

struct Copies<'f> {
    func: &'f mut Func,
    uses: &'f Uses,
    region: RegionId,
    sum: OpId,
    /// Elements of what is summed.
    full: usize,
    known: HashMap<ValueId, ValueId>,
}

impl Copies<'_> {
    /// The value that the sum is to use instead.
    fn own(&mut self, value: ValueId) -> ValueId {
        if let Some(&own) = self.known.get(&value) {
            return own;
        }
        let own = match self.func.def_op(value) {
            Some(op) if self.is_copied(value, op) => self.copy(value, op),
            _ => value,
        };
        self.known.insert(value, own);
        own
    }
    fn is_copied(&self, value: ValueId, op: OpId) -> bool {
        let data = &self.func.ops[op];
        let moves = data.opcode == Opcode::Reshape || is_elementwise(self.func, op);
        if !moves || self.func.ty(value).elements() != self.full || self.uses.region(op) != self.region {
            return false;
        }
        let is_full = |v: &ValueId| self.func.ty(*v).elements() == self.full;
        let full: HashSet<ValueId> = data.operands.iter().copied().filter(is_full).collect();
        self.uses.of(value).len() == 1 || full.len() == 1 && full.iter().all(|&v| self.is_stored(v))
    }
    /// Whether a value will be in memory whatever the sum does.
    fn is_stored(&self, value: ValueId) -> bool {
        let func = &self.func;
        let computed = |op: &OpId| {
            let opcode = func.ops[*op].opcode;
            opcode.is_elementwise() || opcode == Opcode::Reshape
        };
        match func.values[value].def {
            ValueDef::Arg(..) => true,
            ValueDef::Result(op, _) if self.uses.region(op) != self.region => true,
            ValueDef::Result(op, _) if matches!(func.ops[op].opcode, Opcode::Index | Opcode::Loop) => true,
            ValueDef::Result(op, _) if func.ops[op].opcode == Opcode::Reshape => {
                self.is_stored(func.ops[op].operands[0])
            }
            ValueDef::Result(..) => self.uses.of(value).iter().any(|user| match user {
                User::Op(op) => !computed(op),
                User::Yield(_) => true,
            }),
        }
    }
    fn copy(&mut self, value: ValueId, op: OpId) -> ValueId {
        let data = self.func.ops[op].clone();
        let operands: Vec<ValueId> = data.operands.iter().map(|&v| self.own(v)).collect();
        if self.uses.of(value).len() == 1 && operands == data.operands {
            return value;
        }
        let mut at = Builder::before(self.func, self.region, self.sum);
        at.loc = data.loc;
        at.op(data.opcode, &operands, data.attrs)
    }
}
