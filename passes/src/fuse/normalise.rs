//! Rewrites a function into the form that fusion and planning expect. The meaning stays; what changes is
//! 1. a reduction that drops the last axis keeps it, and a reshape drops it;
//! 2. attention over keys and values that nothing else needs writes them to caches of one slot first, where a head's keys
//!    lie side by side;
//! 3. a bias that comes before the split into heads, `reshape(x + b)`, is added after, `reshape(x) + reshape(b)`, if queries
//!    or a cache are made of the sum, as attention and cache updates expect it. If not, one after the split is added before;
//! 4. what needs a derivative of queries, keys or values whose rows are joined takes it from the joined rows;
//! 5. a column sum of what row kernels have at hand is taken of sums over blocks of rows, which those kernels give;
//! 6. a `one_hot` or `broadcast`, and elementwise operations before a column sum, are computed again for each user where that
//!    saves memory;
//! 7. operations without use are gone.
use super::attention::bias_of;
use super::{columns, duplicate, gradients};
use crate::tile::Machine;
use crate::uses::{User, Uses};
use crate::weights::stored;
use rdc_ir::{Attr, Builder, DType, Func, OpId, Opcode, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// The rewritten function, for a machine. Body arguments beyond `func.args` are caches of one
/// slot, private to one attention.
pub fn normalise(func: &Func, machine: &dyn Machine) -> Func {
    let mut func = func.clone();
    remove_unused(&mut func);
    keep_reduced_axes(&mut func);
    cache_attention(&mut func);
    bias_after_heads(&mut func);
    bias_before_heads(&mut func);
    gradients::share_rows(&mut func);
    duplicate::own_spreads(&mut func);
    columns::sum_in_blocks(&mut func, machine);
    columns::own_operands(&mut func);
    remove_unused(&mut func);
    func
}

/// Removes operations whose results nothing uses.
pub(crate) fn remove_unused(func: &mut Func) {
    let uses = Uses::new(func);
    let mut dead = HashSet::new();
    for (region, op) in func.walk().into_iter().rev() {
        let unused = |&v: &ValueId| uses.of(v).iter().all(|u| matches!(u, User::Op(op) if dead.contains(op)));
        if func.ops[op].results.iter().all(unused) {
            dead.insert(op);
            func.regions[region].ops.retain(|&o| o != op);
        }
    }
}

fn keep_reduced_axes(func: &mut Func) {
    for (region, id) in func.walk() {
        let op = func.ops[id].clone();
        let reduces = matches!(op.opcode, Opcode::ReduceSum | Opcode::ReduceMax);
        if !reduces || op.flag("keep") || op.size("axis") + 1 != func.ty(op.operands[0]).rank() {
            continue;
        }
        let dropped = func.ty(op.results[0]).shape.clone();
        let mut at = Builder::before(func, region, id);
        let kept = at.op(op.opcode, &op.operands, vec![op.attrs[0].clone(), Attr::Bool(true)]);
        let value = at.reshape(kept, &dropped);
        func.replace_uses(&HashMap::from([(op.results[0], value)]));
    }
}

/// Only where the sum is not the epilogue of a matmul, which is the cheaper place for it.
fn bias_after_heads(func: &mut Func) {
    let uses = Uses::new(func);
    for (region, id) in func.walk() {
        let Some((x, bias, shape)) = biased_heads(func, id) else { continue };
        let result = func.ops[id].results[0];
        if !makes_heads(func, &uses, result) {
            continue;
        }
        let mut at = Builder::before(func, region, id);
        let (x, bias) = (at.reshape(x, &shape), at.reshape(bias, &shape[2..]));
        let sum = at.map(Opcode::Add, &[x, bias]);
        func.replace_uses(&HashMap::from([(result, sum)]));
    }
}

/// Whether nothing but the queries of an attention, or what a cache update writes, is made of a value.
fn makes_heads(func: &Func, uses: &Uses, mut value: ValueId) -> bool {
    loop {
        let &[User::Op(user)] = uses.of(value) else { return false };
        let op = &func.ops[user];
        match op.opcode {
            Opcode::Rope => value = op.results[0],
            Opcode::Add if bias_of(func, user).is_some() => value = op.results[0],
            Opcode::Attention => return op.operands[0] == value,
            Opcode::CacheUpdate => return op.operands[1] == value,
            _ => return false,
        }
    }
}

/// Row operations see the heads of a token as one row.
fn bias_before_heads(func: &mut Func) {
    let uses = Uses::new(func);
    for (region, id) in func.walk() {
        let Some((heads, bias)) = bias_of(func, id) else { continue };
        let split = func.defined_by(heads, Opcode::Reshape);
        let Some(x) = split.map(|op| op.operands[0]) else { continue };
        let (from, to, result) = (func.ty(x).clone(), func.ty(heads).shape.clone(), func.ops[id].results[0]);
        if from.rank() != 3 || from.shape[..2] != to[..2] || makes_heads(func, &uses, result) {
            continue;
        }
        let mut at = Builder::before(func, region, id);
        let bias = at.reshape(bias, &[from.last()]);
        let sum = at.map(Opcode::Add, &[x, bias]);
        let split = at.reshape(sum, &to);
        func.replace_uses(&HashMap::from([(result, split)]));
    }
}

/// For `reshape(x + b)` from `[B, S, H * D]` to heads: x, b and the shape of the result.
fn biased_heads(func: &Func, id: OpId) -> Option<(ValueId, ValueId, Vec<usize>)> {
    let op = &func.ops[id];
    if op.opcode != Opcode::Reshape {
        return None;
    }
    let (from, to) = (&func.ty(op.operands[0]).shape, &func.ty(op.results[0]).shape);
    if from.len() != 3 || to.len() != 4 || from[..2] != to[..2] {
        return None;
    }
    let sum = &func.ops[func.def_op(op.operands[0])?];
    let [a, b] = sum.operands[..] else { return None };
    let is_bias = |v: ValueId| func.ty(v).elements() == from[2] && stored(func, v).is_some();
    let (x, bias) = if is_bias(b) { (a, b) } else { (b, a) };
    let from_matmul = func.defined_by(x, Opcode::PackedMatmul).is_some();
    let fits = sum.opcode == Opcode::Add && is_bias(bias) && func.ty(x).shape == *from && !from_matmul;
    fits.then(|| (x, bias, to.clone()))
}

fn cache_attention(func: &mut Func) {
    let is_view = |func: &Func, v: ValueId| match func.values[v].def {
        ValueDef::Result(op, 1) => func.ops[op].opcode == Opcode::CacheUpdate,
        _ => false,
    };
    let body = func.body;
    let uses = Uses::new(func);
    let mut starts: HashMap<usize, (ValueId, ValueId)> = HashMap::new();
    for (region, id) in func.walk() {
        let others = |&v: &ValueId| uses.of(v).iter().any(|&user| user != User::Op(id));
        if func.ops[id].opcode != Opcode::Attention || func.ops[id].operands[1..3].iter().any(others) {
            continue;
        }
        for index in [1, 2] {
            let x = func.ops[id].operands[index];
            if is_view(func, x) {
                continue;
            }
            let shape = func.ty(x).shape.clone();
            let (zero, pos) = *starts.entry(shape[0]).or_insert_with(|| zeros(func, shape[0]));
            let ty = Type::cache(DType::F32, [&[1], &shape[..]].concat());
            let cache = func.add_arg(body, ty, Some("attention cache".into()));
            let mut at = Builder::before(func, region, id);
            let view = at.results(Opcode::CacheUpdate, &[cache, x, pos, zero], Vec::new())[1];
            func.ops[id].operands[index] = view;
        }
    }
}

/// The constant 0 and `batch` zeros, at the beginning of the function.
fn zeros(func: &mut Func, batch: usize) -> (ValueId, ValueId) {
    let body = func.body;
    let mut at = Builder::first(func, body);
    let zero = at.constant(0.0, DType::I32);
    (zero, at.op(Opcode::Broadcast, &[zero], vec![Attr::shape(&[batch])]))
}
