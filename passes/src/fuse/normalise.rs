//! Rewrites a function into the form that fusion and planning expect. The meaning stays; what changes is
//! 1. a reduction that drops the last axis keeps it, and a reshape drops it;
//! 2. a bias added before heads are split, `reshape(x + b)`, is added after: `reshape(x) + reshape(b)`;
//! 3. attention over plain keys and values writes them to caches of one slot first, so that there is one attention kernel;
//! 4. a value that must be written to a place of its own (yields, initial carried values) comes from an operation of its
//!    own: otherwise an identity `cast` copies it;
//!    A stacked result that is to be read whole is copied too, so that the copy sees its unwritten entries as zeros;
//! 5. operations without use are gone.
use super::uses::{User, Uses, alias, is_constant, root};
use crate::plan::weights::stored;
use rdc_ir::{Attr, DType, Func, Loc, OpId, Opcode, RegionId, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// The rewritten function. Body arguments beyond `func.args` are caches of one slot, private to one attention.
pub fn normalise(func: &Func) -> Func {
    let mut func = func.clone();
    remove_unused(&mut func);
    keep_reduced_axes(&mut func);
    bias_after_heads(&mut func);
    cache_attention(&mut func);
    own_places(&mut func);
    remove_unused(&mut func);
    func
}

/// Puts operations into a region before an operation, or at its end.
struct Inserter<'f> {
    func: &'f mut Func,
    region: RegionId,
    before: Option<OpId>,
    loc: Loc,
}

impl Inserter<'_> {
    fn op(&mut self, opcode: Opcode, operands: Vec<ValueId>, attrs: Vec<Attr>, results: Vec<Type>) -> Vec<ValueId> {
        let id = self.func.make_op(opcode, operands, attrs, results, Vec::new(), self.loc);
        let ops = &mut self.func.regions[self.region].ops;
        let at = self.before.and_then(|op| ops.iter().position(|&o| o == op)).unwrap_or(ops.len());
        ops.insert(at, id);
        self.func.ops[id].results.clone()
    }
    fn reshape(&mut self, value: ValueId, shape: Vec<usize>) -> ValueId {
        let attr = Attr::Ints(shape.iter().map(|&n| n as i64).collect());
        let ty = self.func.ty(value).with_shape(shape);
        self.op(Opcode::Reshape, vec![value], vec![attr], vec![ty])[0]
    }
    fn copy(&mut self, value: ValueId) -> ValueId {
        let ty = self.func.ty(value).clone();
        let copy = self.op(Opcode::Cast, vec![value], vec![Attr::DType(ty.dtype)], vec![ty])[0];
        self.func.values[copy].name = self.func.values[value].name.clone();
        copy
    }
}

fn before(func: &mut Func, region: RegionId, op: OpId) -> Inserter<'_> {
    let loc = func.ops[op].loc;
    Inserter { func, region, before: Some(op), loc }
}

fn remove_unused(func: &mut Func) {
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
        let dropped = func.ty(op.results[0]).clone();
        let mut kept = dropped.shape.clone();
        kept.push(1);
        let mut at = before(func, region, id);
        let attrs = vec![op.attrs[0].clone(), Attr::Bool(true)];
        let kept = at.op(op.opcode, op.operands, attrs, vec![dropped.with_shape(kept)])[0];
        let value = at.reshape(kept, dropped.shape);
        func.replace_uses(&HashMap::from([(op.results[0], value)]));
    }
}

/// Only where the sum is not the epilogue of a matmul, which is the cheaper place for it.
fn bias_after_heads(func: &mut Func) {
    for (region, id) in func.walk() {
        let Some((x, bias, shape)) = biased_heads(func, id) else { continue };
        let result = func.ops[id].results[0];
        let ty = func.ty(result).clone();
        let mut at = before(func, region, id);
        let x = at.reshape(x, shape.clone());
        let bias = at.reshape(bias, shape[2..].to_vec());
        let sum = at.op(Opcode::Add, vec![x, bias], Vec::new(), vec![ty])[0];
        func.replace_uses(&HashMap::from([(result, sum)]));
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
    let from_matmul = func.def_op(x).is_some_and(|op| func.ops[op].opcode == Opcode::PackedMatmul);
    let fits = sum.opcode == Opcode::Add && is_bias(bias) && func.ty(x).shape == *from && !from_matmul;
    fits.then(|| (x, bias, to.clone()))
}

fn cache_attention(func: &mut Func) {
    let is_view = |func: &Func, v: ValueId| match func.values[v].def {
        ValueDef::Result(op, 1) => func.ops[op].opcode == Opcode::CacheUpdate,
        _ => false,
    };
    let body = func.body;
    let mut starts: HashMap<usize, (ValueId, ValueId)> = HashMap::new();
    for (region, id) in func.walk() {
        if func.ops[id].opcode != Opcode::Attention {
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
            let cache = func.add_arg(body, ty.clone(), Some("attention cache".into()));
            let mut at = before(func, region, id);
            let types = vec![ty, Type::f32(shape)];
            let view = at.op(Opcode::CacheUpdate, vec![cache, x, pos, zero], Vec::new(), types)[1];
            func.ops[id].operands[index] = view;
        }
    }
}

/// The constant 0 and `batch` zeros, at the beginning of the function.
fn zeros(func: &mut Func, batch: usize) -> (ValueId, ValueId) {
    let (region, first) = (func.body, func.regions[func.body].ops.first().copied());
    let mut at = Inserter { func, region, before: first, loc: Loc::default() };
    let (number, scalar) = (vec![Attr::Float(0.0), Attr::DType(DType::I32)], Type::scalar(DType::I32));
    let zero = at.op(Opcode::Constant, Vec::new(), number, vec![scalar])[0];
    let attrs = vec![Attr::Ints(vec![batch as i64])];
    let zeros = at.op(Opcode::Broadcast, vec![zero], attrs, vec![Type::new(DType::I32, [batch])])[0];
    (zero, zeros)
}

/// Copies values where two owners would want one place, or a place that is not theirs to write.
fn own_places(func: &mut Func) {
    for (region, id) in func.walk() {
        let op = func.ops[id].clone();
        match op.opcode {
            // A constant has no memory to be an alias of.
            Opcode::Reshape | Opcode::Slice if is_constant(func, op.operands[0]) => {
                let copy = before(func, region, id).copy(op.operands[0]);
                func.ops[id].operands[0] = copy;
            }
            Opcode::Loop => {
                for (i, &init) in op.operands.iter().enumerate() {
                    if !func.ty(init).cache && !is_whole(func, init) {
                        let copy = before(func, region, id).copy(init);
                        func.ops[id].operands[i] = copy;
                    }
                }
                let carried = op.operands.len() - 1 + usize::from(op.flag("exit"));
                own_yields(func, op.regions[0], carried);
            }
            _ => {}
        }
    }
    own_yields(func, func.body, usize::MAX);
}

/// Whether a value fills a buffer that every thread sees.
fn is_whole(func: &Func, value: ValueId) -> bool {
    let (root, offset) = root(func, value);
    if offset != 0 || func.ty(root).bytes() != func.ty(value).bytes() {
        return false;
    }
    match func.values[root].def {
        ValueDef::Arg(region, index) => region == func.body || index >= 2,
        ValueDef::Result(op, index) => match func.ops[op].opcode {
            Opcode::Loop => index + 1 != func.ops[op].operands.len(),
            Opcode::Constant | Opcode::Param | Opcode::RopeTable | Opcode::SinusoidTable => false,
            Opcode::Cast | Opcode::Quantize | Opcode::Concat => stored(func, root).is_none(),
            Opcode::CacheUpdate => false,
            _ => true,
        },
    }
}

/// Gives each yield an operation of its own. Yields from `stacked` on are written at an address that moves with the step.
fn own_yields(func: &mut Func, region: RegionId, stacked: usize) {
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
                let here = func.regions[region].ops.contains(&op);
                here && (region == func.body || func.ops[op].opcode != Opcode::Loop)
            }
        };
        let uncut = region == func.body && is_stacked(func, owner) && !func.outputs[index].stacked;
        let ok = !uncut && is_result && is_whole(func, value) && (index < stacked || stays_here(func, region, owner));
        if !ok || !taken.insert(owner) {
            let loc = func.def_op(value).map(|op| func.ops[op].loc).unwrap_or_default();
            let copy = Inserter { func, region, before: None, loc }.copy(value);
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
fn stays_here(func: &Func, region: RegionId, value: ValueId) -> bool {
    let uses = Uses::new(func);
    let mut work = vec![value];
    while let Some(value) = work.pop() {
        for user in uses.of(value) {
            match *user {
                User::Yield(_) => {}
                User::Op(op) if uses.region(op) != region || func.ops[op].opcode == Opcode::Loop => return false,
                User::Op(op) => match alias(func, op) {
                    Some((_, 0)) => work.extend(&func.ops[op].results),
                    Some(_) => return false,
                    None => {}
                },
            }
        }
    }
    true
}
