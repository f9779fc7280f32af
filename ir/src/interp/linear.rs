//! Matmuls, norms, softmax, and the operations on packed weights.
use super::shape::row_of;
use super::{Data, Real, Tensor};
use crate::module::Op;
use crate::ops::Opcode;
use crate::packing::{self, Packing};
use crate::types::Type;

/// Σ a_i b_i. Several partial sums, so that it is fast and more exact than one.
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 8;
    let mut sums = [T::default(); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail = rest.fold(T::default(), |sum, (&a, &b)| sum + a * b);
    sums.into_iter().fold(tail, |a, b| a + b)
}

/// `[x, y]` to `[y, x]`.
fn flip<T: Real>(values: &[T], x: usize, y: usize) -> Vec<T> {
    (0..y).flat_map(|j| (0..x).map(move |i| values[i * y + j])).collect()
}

fn matmul<T: Real>(op: &Op, a: &Tensor<T>, b: &Tensor<T>, ty: &Type) -> Tensor<T> {
    let last2 = |t: &Tensor<T>| (t.ty.shape[t.ty.rank() - 2], t.ty.last());
    let ((ax, ay), (bx, by)) = (last2(a), last2(b));
    let batched = b.ty.rank() > 2;
    let block = if batched { bx * by } else { b.ty.elements() };
    // With one b for all, the leading axes of a are rows.
    let (rows, count) = if batched { (ax, a.ty.elements() / (ax * ay)) } else { (a.ty.rows(), 1) };
    let mut out = Vec::with_capacity(ty.elements());
    for i in 0..count {
        let a = &a.floats()[i * rows * ay..(i + 1) * rows * ay];
        let b = &b.floats()[i * block..(i + 1) * block];
        let flipped_a = op.flag("trans_a").then(|| flip(a, rows, ay));
        let flipped_b = (!op.flag("trans_b")).then(|| flip(b, bx, by));
        let k = if op.flag("trans_b") { by } else { bx };
        let (a, b) = (flipped_a.as_deref().unwrap_or(a), flipped_b.as_deref().unwrap_or(b));
        for row in a.chunks_exact(k) {
            out.extend(b.chunks_exact(k).map(|column| dot(row, column)));
        }
    }
    Tensor::floats_of(ty.clone(), out)
}

fn by_row<T: Real>(x: &Tensor<T>, mut f: impl FnMut(&[T]) -> Vec<T>) -> Tensor<T> {
    Tensor::floats_of(x.ty.clone(), x.floats().chunks_exact(x.ty.last()).flat_map(&mut f).collect())
}

fn mean<T: Real>(row: impl ExactSizeIterator<Item = T>) -> T {
    let n = T::from_f64(row.len() as f64);
    row.fold(T::default(), |a, b| a + b) / n
}

fn rms_norm<T: Real>(x: &Tensor<T>, weight: &[T], eps: T) -> Tensor<T> {
    by_row(x, |row| {
        let scale = T::from_f64(1.0) / (mean(row.iter().map(|&v| v * v)) + eps).sqrt();
        row.iter().zip(weight).map(|(&v, &w)| v * scale * w).collect()
    })
}

fn layer_norm<T: Real>(x: &Tensor<T>, weight: &[T], bias: &[T], eps: T) -> Tensor<T> {
    by_row(x, |row| {
        let center = mean(row.iter().copied());
        let var = mean(row.iter().map(|&v| (v - center) * (v - center)));
        let scale = T::from_f64(1.0) / (var + eps).sqrt();
        row.iter().zip(weight.iter().zip(bias)).map(|(&v, (&w, &b))| (v - center) * scale * w + b).collect()
    })
}

/// exp(x - max) / sum
pub(super) fn softmax<T: Real>(row: &[T]) -> Vec<T> {
    let max = row.iter().fold(T::from_f64(f64::NEG_INFINITY), |a, &b| a.maximum(b));
    let exps: Vec<T> = row.iter().map(|&v| (v - max).exp()).collect();
    let sum = exps.iter().fold(T::default(), |a, &b| a + b);
    exps.into_iter().map(|v| v / sum).collect()
}

/// Quantises as the runtime does: in f32, which the parameters are.
fn quantize<T: Real>(w: &Tensor<T>, scales: &Type) -> Vec<Tensor<T>> {
    let (mut values, mut all) = (Vec::new(), Vec::new());
    for row in w.floats().chunks_exact(w.ty.last()) {
        let row: Vec<f32> = row.iter().map(|v| v.to_f32()).collect();
        let scale = packing::row_scale(&row);
        values.extend(row.iter().map(|&v| packing::quantize(v, scale)));
        all.push(T::from_f32(scale));
    }
    let ty = Type::new(crate::types::DType::I8, w.ty.shape.clone());
    vec![Tensor { ty, data: Data::Byte(values) }, Tensor::floats_of(scales.clone(), all)]
}

fn pack<T: Real>(op: &Op, w: &Tensor<T>, ty: &Type) -> Tensor<T> {
    let (n, k) = (w.ty.shape[0], w.ty.shape[1]);
    let packing = Packing::new(w.ty.dtype, n, k, op.size("nr"), op.size("parts"));
    let mut out = Tensor::zeros(ty);
    let places = (0..n).flat_map(|row| (0..k).map(move |i| packing.place(row, i)));
    match (&mut out.data, &w.data) {
        (Data::Float(out), Data::Float(w)) => places.zip(w).for_each(|(p, &v)| out[p] = v),
        (Data::Byte(out), Data::Byte(w)) => places.zip(w).for_each(|(p, &v)| out[p] = v),
        // `pack` keeps the element type.
        _ => {}
    }
    out
}

/// The rows of a packed weight as floats, less the scale.
struct Unpacked<'t, T> {
    packing: Packing,
    weight: &'t Tensor<T>,
    scale: Option<&'t [T]>,
}

impl<'t, T: Real> Unpacked<'t, T> {
    fn new(op: &Op, weight: &'t Tensor<T>, scale: Option<&&'t Tensor<T>>) -> Self {
        let nr = weight.ty.shape[2];
        let packing = Packing::new(weight.ty.dtype, op.size("n"), op.size("k"), nr, op.size("parts"));
        Unpacked { packing, weight, scale: scale.map(|s| s.floats()) }
    }
    fn row(&self, n: usize) -> Vec<T> {
        let places = (0..self.packing.k).map(|k| self.packing.place(n, k));
        match &self.weight.data {
            Data::Byte(v) => places.map(|p| T::from_f64(v[p] as f64)).collect(),
            _ => places.map(|p| self.weight.floats()[p]).collect(),
        }
    }
    fn scale(&self, n: usize) -> T {
        self.scale.map_or(T::from_f64(1.0), |s| s[n])
    }
}

fn packed_matmul<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Tensor<T> {
    let weight = Unpacked::new(op, o[1], o.get(2));
    let (n, k) = (weight.packing.n, weight.packing.k);
    let mut out = vec![T::default(); ty.elements()];
    for column in 0..n {
        let (row, scale) = (weight.row(column), weight.scale(column));
        for (x, out) in o[0].floats().chunks_exact(k).zip(out.chunks_exact_mut(n)) {
            out[column] = dot(x, &row) * scale;
        }
    }
    Tensor::floats_of(ty.clone(), out)
}

fn packed_gather<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Result<Tensor<T>, String> {
    let weight = Unpacked::new(op, o[0], o.get(2));
    let mut out = Vec::with_capacity(ty.elements());
    for &id in o[1].ints() {
        let row = row_of(id, weight.packing.n)?;
        let scale = weight.scale(row);
        out.extend(weight.row(row).into_iter().map(|v| v * scale));
    }
    Ok(Tensor::floats_of(ty.clone(), out))
}

/// Evaluates an operation of this file; `None` for others. `ty` are the results' types.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &[Type]) -> Option<Result<Vec<Tensor<T>>, String>> {
    let eps = || T::from_f64(op.float("eps"));
    let one = match op.opcode {
        Opcode::Matmul => matmul(op, o[0], o[1], &ty[0]),
        Opcode::RmsNorm => rms_norm(o[0], o[1].floats(), eps()),
        Opcode::LayerNorm => layer_norm(o[0], o[1].floats(), o[2].floats(), eps()),
        Opcode::Softmax => by_row(o[0], softmax),
        Opcode::Quantize => return Some(Ok(quantize(o[0], &ty[1]))),
        Opcode::Pack => pack(op, o[0], &ty[0]),
        Opcode::PackedMatmul => packed_matmul(op, o, &ty[0]),
        Opcode::PackedGather => return Some(packed_gather(op, o, &ty[0]).map(|t| vec![t])),
        _ => return None,
    };
    Some(Ok(vec![one]))
}
