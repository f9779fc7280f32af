//! Takes attentions and cache writes apart: the chains that make heads out of a projection, and where keys and values lie.
use super::rows::rotation;
use super::{Unsupported, pointer};
use rdc_ir::program::body::{Attention, AttentionGrad, CacheWrite, HeadChain, HeadRows, HeadTarget, Heads};
use rdc_ir::{DType, Float, Func, Op, OpId, Opcode, ValueId};

/// The argument whose elements, from an element offset on and without gaps, are the value's: looks through reshapes and
/// slices below axes of size 1.
fn contiguous(func: &Func, value: ValueId) -> Option<(usize, usize)> {
    if let Some(index) = pointer(func, value) {
        return Some((index, 0));
    }
    if let Some(op) = func.defined_by(value, Opcode::Reshape) {
        return contiguous(func, op.operands[0]);
    }
    let op = func.defined_by(value, Opcode::Slice)?;
    let shape = &func.ty(op.operands[0]).shape;
    let axis = op.size("axis");
    let inner: usize = shape[axis + 1..].iter().product();
    let (index, offset) = contiguous(func, op.operands[0])?;
    shape[..axis].iter().all(|&n| n == 1).then_some((index, offset + op.size("start") * inner))
}

/// The chain that makes a tensor `f32[B, S, H, D]`: `rope(reshape(slice(qkv)) + bias)`, say.
fn chain(func: &Func, value: ValueId) -> Option<HeadChain> {
    let &[batch, steps, heads, dim] = func.ty(value).shape.as_slice() else { return None };
    let (tokens, columns) = (batch * steps, heads * dim);
    let mut value = value;
    let mut rope = None;
    if let Some(op) = func.defined_by(value, Opcode::Rope) {
        rope = Some(rotation(func, op)?);
        value = op.operands[0];
    }
    let mut biases = Vec::new();
    loop {
        if let Some(op) = func.defined_by(value, Opcode::Reshape) {
            value = op.operands[0];
        } else if let Some(op) = func.defined_by(value, Opcode::Add) {
            // The bias is the operand of H * D elements; B * S = 1 leaves that open, and then either order adds.
            let is_bias = |v: ValueId| func.ty(v).elements() == columns && contiguous(func, v).is_some();
            let (x, bias) = match (is_bias(op.operands[1]), is_bias(op.operands[0])) {
                (true, _) => (op.operands[0], op.operands[1]),
                (_, true) => (op.operands[1], op.operands[0]),
                _ => return None,
            };
            if func.ty(x).elements() != tokens * columns {
                return None;
            }
            biases.push(contiguous(func, bias)?);
            value = x;
        } else {
            break;
        }
    }
    // The bias next to the source is added first.
    biases.reverse();
    let (mut stride, mut start) = (columns, 0);
    if let Some(op) = func.defined_by(value, Opcode::Slice) {
        let ty = func.ty(op.operands[0]);
        let last = op.size("axis") + 1 == ty.rank() && ty.rows() == tokens;
        if !last || op.size("end") - op.size("start") != columns {
            return None;
        }
        (stride, start) = (ty.last(), op.size("start"));
        value = func.through_reshapes(op.operands[0]);
    }
    let source = pointer(func, value)?;
    (func.ty(value).dtype == DType::F32).then_some(HeadChain { source, stride, start, biases, rope, heads, dim })
}

fn must_chain(func: &Func, value: ValueId) -> Result<HeadChain, Unsupported> {
    chain(func, value).ok_or_else(|| "heads that are not slice, reshape, bias, rope".into())
}

/// Where keys or values lie: in a view of a cache, `[B, G, T, D]` in memory, or in a plain tensor, perhaps some columns of a
/// projection.
fn rows(func: &Func, value: ValueId) -> Option<HeadRows> {
    let &[_, positions, groups, dim] = func.ty(value).shape.as_slice() else { return None };
    let view = match (pointer(func, value), func.defined_by(value, Opcode::CacheUpdate)) {
        (Some(index), _) if func.ty(value).cache => Some(index),
        (_, Some(update)) => pointer(func, update.operands[0]),
        _ => None,
    };
    if let Some(pointer) = view {
        let group = positions * dim;
        return Some(HeadRows { pointer, start: 0, batch: groups * group, group, stride: dim });
    }
    let HeadChain { source, stride, start, .. } =
        chain(func, value).filter(|c| c.biases.is_empty() && c.rope.is_none())?;
    Some(HeadRows { pointer: source, start, batch: positions * stride, group: dim, stride })
}

/// The operands of an attention or of its derivative, whose first are q, k, v and pos.
fn heads(func: &Func, op: &Op) -> Result<Heads, Unsupported> {
    let (q, k) = (func.ty(op.operands[0]), func.ty(op.operands[1]));
    Ok(Heads {
        query: must_chain(func, op.operands[0])?,
        keys: rows(func, op.operands[1]).ok_or("keys that are not in memory")?,
        values: rows(func, op.operands[2]).ok_or("values that are not in memory")?,
        pos: pointer(func, op.operands[3]).ok_or("positions that are not an argument")?,
        causal: op.flag("causal"),
        scale: Float(op.float("scale")),
        batch: q.shape[0],
        steps: q.shape[1],
        groups: k.shape[2],
        context: k.shape[1],
    })
}

/// A `cache_update` of a single-slot cache.
fn write(func: &Func, op: &Op) -> Result<CacheWrite, Unsupported> {
    let shape = &func.ty(op.operands[0]).shape;
    if shape[0] != 1 {
        return Err("a cache of several slots".into());
    }
    Ok(CacheWrite {
        chain: must_chain(func, op.operands[1])?,
        cache: pointer(func, op.operands[0]).ok_or("a cache that is not an argument")?,
        pos: pointer(func, op.operands[2]).ok_or("positions that are not an argument")?,
        steps: func.ty(op.operands[1]).shape[1],
        context: shape[2],
    })
}

/// All cache updates of a kernel.
pub(super) fn writes(func: &Func) -> Result<Vec<CacheWrite>, Unsupported> {
    let ops = func.regions[func.body].ops.iter().map(|&op| &func.ops[op]);
    ops.filter(|op| op.opcode == Opcode::CacheUpdate).map(|op| write(func, op)).collect()
}

/// An attention whose result, perhaps reshaped, is the only one that is not a cache.
pub(super) fn attention(func: &Func, op: OpId) -> Result<Attention, Unsupported> {
    let op = &func.ops[op];
    let mut results = func.regions[func.body].yields.iter().copied().filter(|&v| !func.ty(v).cache);
    match (results.next(), results.next()) {
        (Some(result), None) if func.through_reshapes(result) == op.results[0] => {}
        _ => return Err("results besides the attention's".into()),
    }
    Ok(Attention { heads: heads(func, op)?, result: func.args.len(), writes: writes(func)? })
}

/// The derivative of an attention.
pub(super) fn attention_grad(func: &Func, op: OpId) -> Result<AttentionGrad, Unsupported> {
    let op = &func.ops[op];
    let mut targets = [None, None, None];
    for (index, &value) in func.regions[func.body].yields.iter().enumerate() {
        add_targets(func, op, value, func.args.len() + index, &mut targets).ok_or("results besides the derivatives")?;
    }
    Ok(AttentionGrad { heads: heads(func, op)?, dout: must_chain(func, op.operands[4])?, targets })
}

/// Finds the targets of the results of `op` in a value that a kernel yields under a pointer: one of them, perhaps turned back
/// and reshaped, or several joined along the last axis. Adds them to `targets`, by result; `None` if the value is anything
/// else or a target was known.
fn add_targets(func: &Func, op: &Op, value: ValueId, pointer: usize, targets: &mut [Option<HeadTarget>]) -> Option<()> {
    let value = func.through_reshapes(value);
    let joined = func.defined_by(value, Opcode::Concat).filter(|op| op.size("axis") + 1 == func.ty(value).rank());
    let parts = joined.map_or(vec![value], |op| op.operands.clone());
    let stride = parts.iter().map(|&part| {
        let shape = &func.ty(part).shape;
        shape[2.min(shape.len())..].iter().product::<usize>()
    });
    let stride = stride.sum();
    let mut start = 0;
    for part in parts {
        let mut heads = func.through_reshapes(part);
        let mut rope = None;
        if let Some(turn) = func.defined_by(heads, Opcode::RopeGrad) {
            rope = Some(rotation(func, turn)?);
            heads = func.through_reshapes(turn.operands[0]);
        }
        let result = op.results.iter().position(|&r| r == heads)?;
        let &[_, _, count, dim] = func.ty(heads).shape.as_slice() else { return None };
        let target = targets.get_mut(result).filter(|target| target.is_none())?;
        *target = Some(HeadTarget { pointer, stride, start, rope, dim });
        start += count * dim;
    }
    (start == stride).then_some(())
}
