//! Values that must be written to a place of their own come from an operation of their own: otherwise an identity `cast`
//! copies them. That is so
//! - for yields, and for initial carried values that are part of something else, unless they are zero;
//! - for a stacked result that is read whole: the copy sees its unwritten entries as zeros;
//! - for what a loop writes or reads at an address that moves with its step, if a loop inside or an operation outside uses it;
//! - for a trip count that is a constant.
use crate::uses::{User, Uses, alias, is_constant, is_zero, moving, root};
use crate::weights::Weights;
use rdc_ir::{Builder, Func, OpId, Opcode, RegionId, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// Inserts the copies.
pub fn insert(func: &mut Func, weights: &Weights) {
    own_entries(func);
    let mut constants = HashMap::new();
    for (region, id) in func.walk() {
        let op = func.ops[id].clone();
        match op.opcode {
            // A constant has no memory to be an alias of.
            Opcode::Reshape | Opcode::Slice | Opcode::StopGradient if is_constant(func, op.operands[0]) => {
                let copy = Builder::before(func, region, id).copy(op.operands[0]);
                func.ops[id].operands[0] = copy;
            }
            Opcode::Loop => own_loop(func, weights, region, id, &mut constants),
            _ => {}
        }
    }
    own_yields(func, weights, func.body, 0, usize::MAX);
}

fn own_loop(func: &mut Func, weights: &Weights, region: RegionId, id: OpId, constants: &mut HashMap<u64, ValueId>) {
    let op = func.ops[id].clone();
    for (i, &operand) in op.operands.iter().enumerate() {
        let own = match i {
            0 => is_cell(func, operand),
            _ => func.ty(operand).cache || is_zero(func, operand),
        };
        if own || is_whole(func, weights, operand) {
            continue;
        }
        func.ops[id].operands[i] = match func.def_op(operand) {
            Some(def) if i == 0 && func.ops[def].opcode == Opcode::Constant => {
                let key = func.ops[def].float("value").to_bits();
                *constants.entry(key).or_insert_with(|| constant(func, def))
            }
            _ => Builder::before(func, region, id).copy(operand),
        };
    }
    let carried = op.operands.len() - 1;
    own_yields(func, weights, op.regions[0], carried, carried + usize::from(op.flag("exit")));
}

/// A constant in memory, at the beginning of the function.
fn constant(func: &mut Func, def: OpId) -> ValueId {
    let (body, op) = (func.body, func.ops[def].clone());
    let mut at = Builder::first(func, body);
    at.loc = op.loc;
    let constant = at.op(op.opcode, &op.operands, op.attrs);
    at.copy(constant)
}

/// Copies entries of a stack that are used beyond the loop whose step they are of.
fn own_entries(func: &mut Func) {
    let uses = Uses::new(func);
    for (region, id) in func.walk() {
        let entry = moving(func, &uses, id).and(func.ops[id].results.first().copied());
        if let Some(entry) = entry.filter(|&entry| !stays_here(func, &uses, region, entry)) {
            let copy = Builder::after(func, region, id).copy(entry);
            func.replace_uses(&HashMap::from([(entry, copy)]));
            if let Some(cast) = func.def_op(copy) {
                func.ops[cast].operands[0] = entry;
            }
        }
    }
}

/// Whether a value is a thread's own number: a step, or the trips of a loop.
fn is_cell(func: &Func, value: ValueId) -> bool {
    let (root, _) = root(func, value);
    match func.values[root].def {
        ValueDef::Arg(region, index) => region != func.body && index == 0,
        ValueDef::Result(op, index) => func.ops[op].opcode == Opcode::Loop && index + 1 == func.ops[op].operands.len(),
    }
}

/// Whether a value fills a buffer that every thread sees.
pub fn is_whole(func: &Func, weights: &Weights, value: ValueId) -> bool {
    let (root, offset) = root(func, value);
    if offset != 0 || func.ty(root).bytes() != func.ty(value).bytes() {
        return false;
    }
    match func.values[root].def {
        ValueDef::Arg(region, index) => region == func.body || index >= 2,
        ValueDef::Result(op, index) => match func.ops[op].opcode {
            Opcode::Loop => index + 1 != func.ops[op].operands.len(),
            Opcode::Constant | Opcode::CacheUpdate => false,
            // It may be an address that moves.
            Opcode::Index => false,
            _ => weights.stored(func, root).is_none(),
        },
    }
}

/// Gives each yield an operation of its own. The first `carried` may be results of loops. Yields from `stacked` on are
/// written at an address that moves with the step.
fn own_yields(func: &mut Func, weights: &Weights, region: RegionId, carried: usize, stacked: usize) {
    let uses = Uses::new(func);
    let here: HashSet<OpId> = func.regions[region].ops.iter().copied().collect();
    let mut taken = HashSet::new();
    for index in 0..func.regions[region].yields.len() {
        let value = func.regions[region].yields[index];
        if func.ty(value).cache {
            continue;
        }
        let (owner, _) = root(func, value);
        let is_result = match func.values[owner].def {
            ValueDef::Arg(..) => false,
            ValueDef::Result(op, _) => {
                let writes_anywhere = func.ops[op].opcode != Opcode::Loop || region == func.body || index < carried;
                here.contains(&op) && writes_anywhere
            }
        };
        let uncut = region == func.body && is_stacked(func, owner) && !func.outputs[index].stacked;
        let ok = !uncut
            && is_result
            && is_whole(func, weights, value)
            && (index < stacked || stays_here(func, &uses, region, owner));
        if !ok || !taken.insert(owner) {
            let loc = func.def_op(value).map(|op| func.ops[op].loc).unwrap_or_default();
            // An argument is read before the iteration writes its next value.
            let is_arg = matches!(func.values[owner].def, ValueDef::Arg(..)) && region != func.body;
            let is_first = is_arg && owner == value;
            let mut at = if is_first { Builder::first(func, region) } else { Builder::at(func, region) };
            at.loc = loc;
            let copy = at.copy(value);
            taken.insert(copy);
            func.regions[region].yields[index] = copy;
        }
    }
}

/// Whether a value is a stacked result of a loop.
fn is_stacked(func: &Func, value: ValueId) -> bool {
    match func.values[value].def {
        ValueDef::Result(op, index) => func.ops[op].opcode == Opcode::Loop && index >= func.ops[op].operands.len(),
        ValueDef::Arg(..) => false,
    }
}

/// Whether all uses are in this region and at the beginning of the value, so that the moving address serves them too.
fn stays_here(func: &Func, uses: &Uses, region: RegionId, value: ValueId) -> bool {
    let mut work = vec![value];
    while let Some(value) = work.pop() {
        for user in uses.of(value) {
            match *user {
                User::Yield(other) if other != region => return false,
                User::Yield(_) => {}
                User::Op(op) => match (func.ops[op].opcode, alias(func, op)) {
                    _ if uses.region(op) != region => return false,
                    (_, Some((_, 0))) => work.extend(&func.ops[op].results),
                    (Opcode::Loop | Opcode::Index, _) | (_, Some(_)) => return false,
                    (_, None) => {}
                },
            }
        }
    }
    true
}
