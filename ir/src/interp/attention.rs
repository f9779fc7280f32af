//! Rotary embedding, attention, and the KV cache.
use super::linear::{dot, softmax};
use super::loss::log_sum_exp;
use super::{Data, Real, Tensor};
use crate::module::Op;
use crate::ops::Opcode;
use crate::types::{DType, Type};
use crate::verify::kv_policy;

/// The absolute position of token `s` of a row that starts at `pos`.
fn position(pos: i32, s: usize) -> Result<usize, String> {
    usize::try_from(pos).map(|p| p + s).map_err(|_| format!("position {pos} is negative"))
}

/// The rotation, by the angles of the table or, if `back`, by their opposites.
fn rope<T: Real>(op: &Op, x: &Tensor<T>, table: &Tensor<T>, pos: &[i32], back: bool) -> Result<Tensor<T>, String> {
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
                let (a, b, cos, sin) = (head[first], head[second], angle[0], if back { -angle[1] } else { angle[1] });
                turned[first] = a * cos - b * sin;
                turned[second] = b * cos + a * sin;
            }
            out.extend(turned);
        }
    }
    Ok(Tensor::floats_of(x.ty.clone(), out))
}

/// What one head of one query sees.
struct Query<'k, T> {
    /// Where the query, and so its result, begins.
    at: usize,
    /// Where each key, and so its value, begins.
    keys: &'k [usize],
    /// The score of each key.
    scores: &'k [T],
}

/// Calls `each` for all heads of all queries, in row-major order.
fn queries<T: Real>(op: &Op, o: &[&Tensor<T>], mut each: impl FnMut(Query<'_, T>)) -> Result<(), String> {
    let (q, k, pos) = (o[0], o[1].floats(), o[3].ints());
    let &[_, s, h, d] = &q.ty.shape[..] else { return Err("q has not rank 4".into()) };
    let (t, g) = (o[1].ty.shape[1], o[1].ty.shape[2]);
    let (causal, scale) = (op.flag("causal"), T::from_f64(op.float("scale")));
    for (b, &first) in pos.iter().enumerate() {
        for i in 0..s {
            let seen = if causal { (position(first, i)? + 1).min(t) } else { t };
            for head in 0..h {
                let group = head / (h / g);
                let at = ((b * s + i) * h + head) * d;
                let keys: Vec<usize> = (0..seen).map(|j| ((b * t + j) * g + group) * d).collect();
                let score = |&key: &usize| dot(&q.floats()[at..][..d], &k[key..][..d]) * scale;
                let scores: Vec<T> = keys.iter().map(score).collect();
                each(Query { at, keys: &keys, scores: &scores });
            }
        }
    }
    Ok(())
}

/// `to += factor * from`, as far as `to` goes.
fn add_times<T: Real>(to: &mut [T], factor: T, from: &[T]) {
    to.iter_mut().zip(from).for_each(|(to, &v)| *to += factor * v);
}

fn attention<T: Real>(op: &Op, o: &[&Tensor<T>], types: &[Type]) -> Result<Vec<Tensor<T>>, String> {
    let (v, d) = (o[2].floats(), types[0].last());
    let (mut out, mut lse) = (vec![T::default(); types[0].elements()], Vec::new());
    queries(op, o, |query| {
        for (&key, weight) in query.keys.iter().zip(softmax(query.scores)) {
            add_times(&mut out[query.at..][..d], weight, &v[key..]);
        }
        if types.len() > 1 {
            lse.push(log_sum_exp(query.scores));
        }
    })?;
    Ok(types.iter().zip([out, lse]).map(|(ty, values)| Tensor::floats_of(ty.clone(), values)).collect())
}

/// With weights p = softmax(s), s_j = scale q·k_j, and out = Σ p_j v_j: dv_j = p_j dout, dp_j = dout·v_j,
/// ds_j = p_j (dp_j - Σ p dp), dq = scale Σ ds_j k_j, dk_j = scale ds_j q.
fn attention_grad<T: Real>(op: &Op, o: &[&Tensor<T>], types: &[Type]) -> Result<Vec<Tensor<T>>, String> {
    let (q, k, v, dout, d) = (o[0].floats(), o[1].floats(), o[2].floats(), o[4].floats(), types[0].last());
    let scale = T::from_f64(op.float("scale"));
    let mut grads: Vec<Vec<T>> = types.iter().map(|ty| vec![T::default(); ty.elements()]).collect();
    let [dq, dk, dv] = &mut grads[..] else { return Err("there are not three results".into()) };
    queries(op, o, |Query { at, keys, scores }| {
        let weights = match o.get(5) {
            Some(lse) => scores.iter().map(|&score| (score - lse.floats()[at / d]).exp()).collect(),
            None => softmax(scores),
        };
        let dout = &dout[at..][..d];
        let dweights: Vec<T> = keys.iter().map(|&key| dot(dout, &v[key..][..d])).collect();
        let mean = dot(&weights, &dweights);
        for ((&key, &weight), &dweight) in keys.iter().zip(&weights).zip(&dweights) {
            let dscore = weight * (dweight - mean) * scale;
            add_times(&mut dq[at..][..d], dscore, &k[key..]);
            add_times(&mut dk[key..][..d], dscore, &q[at..]);
            add_times(&mut dv[key..][..d], weight, dout);
        }
    })?;
    Ok(types.iter().zip(grads).map(|(ty, grad)| Tensor::floats_of(ty.clone(), grad)).collect())
}

fn kv_slot<T: Real>(op: &Op, steps: &[i32], ty: &Type) -> Result<Tensor<T>, String> {
    let policy = kv_policy(op).ok_or("unknown policy")?;
    let slot = |&step: &i32| {
        let step = usize::try_from(step).map_err(|_| format!("step {step} is negative"))?;
        let slot = policy.slot(step, op.size("layer"), op.size("layers")) + op.size("base");
        i32::try_from(slot).map_err(|_| format!("slot {slot} is too large"))
    };
    let slots: Result<Vec<i32>, String> = steps.iter().map(slot).collect();
    Ok(Tensor { ty: ty.clone(), data: Data::Int(slots?) })
}

/// Writes a chunk into a slot of the cache, or a slot for each row, in place and in its element type; returns the cache and the
/// view of the slots.
pub(super) fn cache_update<T: Real>(
    mut cache: Tensor<T>,
    x: &Tensor<T>,
    pos: &[i32],
    slot: &[i32],
    view: &Type,
) -> Result<(Tensor<T>, Tensor<T>), String> {
    let &[slots, batch, t, h, d] = &cache.ty.shape[..] else { return Err("the cache has not rank 5".into()) };
    let (s, row) = (x.ty.shape[1], t * h * d);
    let Data::Float(values) = &mut cache.data else { return Err("the cache is not of floats".into()) };
    let mut seen = Vec::with_capacity(view.elements());
    for (b, tokens) in x.floats().chunks_exact(s * h * d).enumerate() {
        let slot = slot[b % slot.len()];
        let at = usize::try_from(slot).ok().filter(|&i| i < slots);
        let at = at.ok_or_else(|| format!("slot {slot} is outside 0..{slots}"))?;
        let values = &mut values[(at * batch + b) * row..][..row];
        for (i, token) in tokens.chunks_exact(h * d).enumerate() {
            let at = position(pos[b], i)?;
            if at < t {
                let to = &mut values[at * h * d..][..h * d];
                to.copy_from_slice(token);
                if cache.ty.dtype == DType::BF16 {
                    to.iter_mut().for_each(|v| *v = v.to_bf16());
                }
            }
        }
        seen.extend_from_slice(values);
    }
    Ok((cache, Tensor::floats_of(view.clone(), seen)))
}

/// Evaluates an operation of this file other than `cache_update`; `None` for others. `types` are the results' types.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], types: &[Type]) -> Option<Result<Vec<Tensor<T>>, String>> {
    let one = match op.opcode {
        Opcode::Rope => rope(op, o[0], o[1], o[2].ints(), false),
        Opcode::RopeGrad => rope(op, o[0], o[1], o[2].ints(), true),
        Opcode::Attention => return Some(attention(op, o, types)),
        Opcode::AttentionGrad => return Some(attention_grad(op, o, types)),
        Opcode::KvSlot => kv_slot(op, o[0].ints(), &types[0]),
        _ => return None,
    };
    Some(one.map(|tensor| vec![tensor]))
}
