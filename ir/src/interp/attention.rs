//! Rotary embedding, attention, and the KV cache.
use super::linear::{dot, softmax};
use super::{Data, Real, Tensor};
use crate::module::Op;
use crate::ops::Opcode;
use crate::types::Type;
use crate::verify::kv_policy;

/// The absolute position of token `s` of a row that starts at `pos`.
fn position(pos: i32, s: usize) -> Result<usize, String> {
    usize::try_from(pos).map(|p| p + s).map_err(|_| format!("position {pos} is negative"))
}

fn rope<T: Real>(op: &Op, x: &Tensor<T>, table: &Tensor<T>, pos: &[i32]) -> Result<Tensor<T>, String> {
    let &[_, s, h, d] = &x.ty.shape[..] else { return Err("x has not rank 4".into()) };
    let adjacent = op.text("layout") == "adjacent";
    let rows = table.ty.shape[0];
    let mut out = Vec::with_capacity(x.ty.elements());
    for (token, heads) in x.floats().chunks_exact(h * d).enumerate() {
        let at = position(pos[token / s], token % s)?;
        if at >= rows {
            return Err(format!("position {at} is outside the table of {rows} rows"));
        }
        let angles = &table.floats()[at * d..][..d];
        for head in heads.chunks_exact(d) {
            let mut turned = head.to_vec();
            for (j, angle) in angles.chunks_exact(2).enumerate() {
                let (first, second) = if adjacent { (2 * j, 2 * j + 1) } else { (j, j + d / 2) };
                let (a, b, cos, sin) = (head[first], head[second], angle[0], angle[1]);
                turned[first] = a * cos - b * sin;
                turned[second] = b * cos + a * sin;
            }
            out.extend(turned);
        }
    }
    Ok(Tensor::floats_of(x.ty.clone(), out))
}

fn attention<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Result<Tensor<T>, String> {
    let (q, k, v, pos) = (o[0], o[1].floats(), o[2].floats(), o[3].ints());
    let &[_, s, h, d] = &q.ty.shape[..] else { return Err("q has not rank 4".into()) };
    let (t, g) = (o[1].ty.shape[1], o[1].ty.shape[2]);
    let (causal, scale) = (op.flag("causal"), T::from_f64(op.float("scale")));
    let mut out = Vec::with_capacity(ty.elements());
    for (b, &first) in pos.iter().enumerate() {
        for i in 0..s {
            let seen = if causal { (position(first, i)? + 1).min(t) } else { t };
            for head in 0..h {
                let group = head / (h / g);
                let q = &q.floats()[((b * s + i) * h + head) * d..][..d];
                let key = |j: usize| ((b * t + j) * g + group) * d;
                let scores: Vec<T> = (0..seen).map(|j| dot(q, &k[key(j)..][..d]) * scale).collect();
                let mut sum = vec![T::default(); d];
                for (j, &p) in softmax(&scores).iter().enumerate() {
                    sum.iter_mut().zip(&v[key(j)..]).for_each(|(sum, &v)| *sum += p * v);
                }
                out.extend(sum);
            }
        }
    }
    Ok(Tensor::floats_of(ty.clone(), out))
}

fn kv_slot<T: Real>(op: &Op, step: i32) -> Result<Tensor<T>, String> {
    let policy = kv_policy(op).ok_or("unknown policy")?;
    let step = usize::try_from(step).map_err(|_| format!("step {step} is negative"))?;
    let slot = policy.slot(step, op.size("layer"), op.size("layers")) + op.size("base");
    i32::try_from(slot).map(Tensor::int).map_err(|_| format!("slot {slot} is too large"))
}

/// Writes a chunk into a slot of the cache, in place; returns the cache and the view of the slot.
pub(super) fn cache_update<T: Real>(
    mut cache: Tensor<T>,
    x: &Tensor<T>,
    pos: &[i32],
    slot: i32,
    view: &Type,
) -> Result<(Tensor<T>, Tensor<T>), String> {
    let &[slots, batch, t, h, d] = &cache.ty.shape[..] else { return Err("the cache has not rank 5".into()) };
    let slot = usize::try_from(slot).ok().filter(|&i| i < slots).ok_or(format!("slot {slot} is outside 0..{slots}"))?;
    let s = x.ty.shape[1];
    let size = batch * t * h * d;
    let Data::Float(values) = &mut cache.data else { return Err("the cache is not f32".into()) };
    let values = &mut values[slot * size..][..size];
    for (token, row) in x.floats().chunks_exact(h * d).enumerate() {
        let at = position(pos[token / s], token % s)?;
        if at < t {
            values[((token / s) * t + at) * h * d..][..h * d].copy_from_slice(row);
        }
    }
    let view = Tensor::floats_of(view.clone(), values.to_vec());
    Ok((cache, view))
}

/// Evaluates an operation of this file other than `cache_update`; `None` for others. `ty` is the result's type.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Option<Result<Tensor<T>, String>> {
    match op.opcode {
        Opcode::Rope => Some(rope(op, o[0], o[1], o[2].ints())),
        Opcode::Attention => Some(attention(op, o, ty)),
        Opcode::KvSlot => Some(kv_slot(op, o[0].ints().first().copied().unwrap_or(0))),
        _ => None,
    }
}
