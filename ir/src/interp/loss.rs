//! Cross-entropy and its derivatives, of given logits or of those of a linear head.
use super::linear::{dot, softmax};
use super::{Real, Tensor};
use crate::module::{IGNORED_LABEL, Op};
use crate::ops::Opcode;
use crate::types::Type;

/// The place of a label among the logits; none if it is ignored, an error if it is outside.
fn label_of(label: i32, classes: usize) -> Result<Option<usize>, String> {
    match usize::try_from(label) {
        _ if label == IGNORED_LABEL => Ok(None),
        Ok(label) if label < classes => Ok(Some(label)),
        _ => Err(format!("label {label} is outside 0..{classes} and not {IGNORED_LABEL}")),
    }
}

/// The logarithm of the sum of `e^v`.
pub(super) fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let max = logits.iter().fold(T::from_f64(f64::NEG_INFINITY), |a, &b| a.maximum(b));
    logits.iter().fold(T::default(), |sum, &v| sum + (v - max).exp()).ln() + max
}

/// (nll, correct) of one token.
fn loss<T: Real>(logits: &[T], label: i32, z_loss: T) -> Result<(T, T), String> {
    let Some(label) = label_of(label, logits.len())? else { return Ok((T::default(), T::default())) };
    let lse = log_sum_exp(logits);
    let correct = logits.iter().all(|&v| v <= logits[label]);
    Ok((lse - logits[label] + z_loss * lse * lse, if correct { T::from_f64(1.0) } else { T::default() }))
}

/// The derivative of nll by the logits of one token, times `dnll`: `(softmax (1 + 2 z_loss lse) - one_hot) dnll`.
fn loss_grad<T: Real>(logits: &[T], label: i32, dnll: T, z_loss: T) -> Result<Vec<T>, String> {
    let Some(label) = label_of(label, logits.len())? else { return Ok(vec![T::default(); logits.len()]) };
    let one = T::from_f64(1.0);
    let factor = one + T::from_f64(2.0) * z_loss * log_sum_exp(logits);
    let mut grad: Vec<T> = softmax(logits).into_iter().map(|p| p * factor * dnll).collect();
    grad[label] += -dnll;
    Ok(grad)
}

/// The logits of one token: `x wᵀ + bias`.
fn head<T: Real>(x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let products = w.chunks_exact(x.len()).map(|row| dot(x, row));
    match bias {
        Some(bias) => products.zip(bias).map(|(v, &b)| v + b).collect(),
        None => products.collect(),
    }
}

/// `nll` and `correct` of all tokens, whose logits an iterator gives.
fn losses<T: Real>(
    logits: impl Iterator<Item = Vec<T>>,
    labels: &[i32],
    z_loss: T,
    types: &[Type],
) -> Result<Vec<Tensor<T>>, String> {
    let each: Result<Vec<(T, T)>, String> = logits.zip(labels).map(|(row, &label)| loss(&row, label, z_loss)).collect();
    let (nll, correct) = each?.into_iter().unzip();
    Ok(vec![Tensor::floats_of(types[0].clone(), nll), Tensor::floats_of(types[1].clone(), correct)])
}

fn grad<T: Real>(o: &[&Tensor<T>], z_loss: T, ty: &Type) -> Result<Vec<Tensor<T>>, String> {
    let mut out = Vec::with_capacity(ty.elements());
    let tokens = o[0].floats().chunks_exact(ty.last());
    for ((row, &label), &dnll) in tokens.zip(o[1].ints()).zip(o[2].floats()) {
        out.extend(loss_grad(row, label, dnll, z_loss)?);
    }
    Ok(vec![Tensor::floats_of(ty.clone(), out)])
}

/// With dlogits from [`loss_grad`]: dx = dlogits w, dw = dlogitsᵀ x, dbias = the sum of dlogits over tokens.
fn linear_grad<T: Real>(o: &[&Tensor<T>], z_loss: T, types: &[Type]) -> Result<Vec<Tensor<T>>, String> {
    let (w, bias, k) = (o[1].floats(), o.get(4).map(|b| b.floats()), o[1].ty.shape[1]);
    let mut grads: Vec<Vec<T>> = types.iter().map(|ty| vec![T::default(); ty.elements()]).collect();
    let [dx, dw, dbias @ ..] = &mut grads[..] else { return Err("there are not two results".into()) };
    let tokens = o[0].floats().chunks_exact(k).zip(dx.chunks_exact_mut(k));
    for (((x, dx), &label), &dnll) in tokens.zip(o[2].ints()).zip(o[3].floats()) {
        let dlogits = loss_grad(&head(x, w, bias), label, dnll, z_loss)?;
        for ((&d, w), dw) in dlogits.iter().zip(w.chunks_exact(k)).zip(dw.chunks_exact_mut(k)) {
            dx.iter_mut().zip(w).for_each(|(dx, &w)| *dx += d * w);
            dw.iter_mut().zip(x).for_each(|(dw, &x)| *dw += d * x);
        }
        for dbias in dbias.iter_mut() {
            dbias.iter_mut().zip(&dlogits).for_each(|(db, &d)| *db += d);
        }
    }
    Ok(types.iter().zip(grads).map(|(ty, grad)| Tensor::floats_of(ty.clone(), grad)).collect())
}

/// Evaluates an operation of this file; `None` for others. `types` are the results' types.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], types: &[Type]) -> Option<Result<Vec<Tensor<T>>, String>> {
    let z_loss = || T::from_f64(op.float("z_loss"));
    Some(match op.opcode {
        Opcode::CrossEntropy => {
            let rows = o[0].floats().chunks_exact(o[0].ty.last());
            losses(rows.map(<[T]>::to_vec), o[1].ints(), z_loss(), types)
        }
        Opcode::CrossEntropyGrad => grad(o, z_loss(), &types[0]),
        Opcode::LinearCrossEntropy => {
            let bias = o.get(3).map(|b| b.floats());
            let rows = o[0].floats().chunks_exact(o[0].ty.last());
            losses(rows.map(|x| head(x, o[1].floats(), bias)), o[2].ints(), z_loss(), types)
        }
        Opcode::LinearCrossEntropyGrad => linear_grad(o, z_loss(), types),
        _ => return None,
    })
}
