//! Operations that move, reduce or index elements.
use super::elementwise::{places, spread};
use super::tensor::map_data;
use super::{Data, Real, Tensor};
use crate::module::Op;
use crate::ops::Opcode;
use crate::types::Type;

fn transpose<E: Copy>(values: &[E], shape: &[usize], perm: &[i64]) -> Vec<E> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let mut places = vec![0];
    for &p in perm {
        let (size, stride) = (shape[p as usize], strides[p as usize]);
        places = places.iter().flat_map(|&at| (0..size).map(move |i| at + i * stride)).collect();
    }
    places.into_iter().map(|p| values[p]).collect()
}

/// A shape seen as [outer, axis, inner].
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

fn slice<E: Copy>(values: &[E], shape: &[usize], axis: usize, start: usize, end: usize) -> Vec<E> {
    let (_, size, inner) = around(shape, axis);
    let blocks = values.chunks_exact(size * inner);
    blocks.flat_map(|block| block[start * inner..end * inner].iter().copied()).collect()
}

fn concat<'a, T: Real, E: Copy + 'a>(
    parts: &'a [&Tensor<T>],
    axis: usize,
    get: impl Fn(&'a Tensor<T>) -> &'a [E],
) -> Vec<E> {
    let (outer, _, _) = around(&parts[0].ty.shape, axis);
    let mut out = Vec::new();
    for block in 0..outer {
        for part in parts {
            let size = part.ty.elements() / outer;
            out.extend_from_slice(&get(part)[block * size..(block + 1) * size]);
        }
    }
    out
}

fn bytes<T: Real>(t: &Tensor<T>) -> &[i8] {
    if let Data::Byte(v) = &t.data { v } else { &[] }
}

fn reduce<T: Real>(a: &Tensor<T>, axis: usize, ty: &Type, first: T, f: impl Fn(T, T) -> T) -> Tensor<T> {
    let (outer, size, inner) = around(&a.ty.shape, axis);
    let values = a.floats();
    let mut out = vec![first; outer * inner];
    for o in 0..outer {
        for s in 0..size {
            for i in 0..inner {
                let to = &mut out[o * inner + i];
                *to = f(*to, values[(o * size + s) * inner + i]);
            }
        }
    }
    Tensor::floats_of(ty.clone(), out)
}

/// The operand copied into zeros, at `start` of an axis that has `size` places.
fn pad<T: Real>(a: &Tensor<T>, axis: usize, start: usize, size: usize, ty: &Type) -> Tensor<T> {
    let (_, len, inner) = around(&a.ty.shape, axis);
    let mut out = vec![T::default(); ty.elements()];
    for (to, from) in out.chunks_exact_mut(size * inner).zip(a.floats().chunks_exact(len * inner)) {
        to[start * inner..][..from.len()].copy_from_slice(from);
    }
    Tensor::floats_of(ty.clone(), out)
}

fn sum_to<T: Real>(a: &Tensor<T>, ty: &Type) -> Tensor<T> {
    let mut out = vec![T::default(); ty.elements()];
    for (place, &value) in places(&ty.shape, &a.ty.shape).into_iter().zip(a.floats()) {
        out[place] += value;
    }
    Tensor::floats_of(ty.clone(), out)
}

fn sum_blocks<T: Real>(a: &Tensor<T>, rows: usize, ty: &Type) -> Tensor<T> {
    let columns = ty.last();
    let mut out = vec![T::default(); ty.elements()];
    for (row, values) in a.floats().chunks_exact(columns.max(1)).enumerate() {
        let sums = &mut out[row / rows * columns..][..columns];
        sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
    }
    Tensor::floats_of(ty.clone(), out)
}

fn one_hot<T: Real>(ids: &[i32], n: usize, ty: &Type) -> Tensor<T> {
    let mut out = vec![T::default(); ty.elements()];
    for (row, &id) in out.chunks_exact_mut(n).zip(ids) {
        if let Ok(id) = row_of(id, n) {
            row[id] = T::from_f64(1.0);
        }
    }
    Tensor::floats_of(ty.clone(), out)
}

fn scatter_add<T: Real>(base: &Tensor<T>, ids: &[i32], rows: &[T]) -> Result<Tensor<T>, String> {
    let (mut out, columns) = (base.floats().to_vec(), base.ty.shape[1]);
    for (&id, row) in ids.iter().zip(rows.chunks_exact(columns)) {
        let to = row_of(id, base.ty.shape[0])? * columns;
        out[to..][..columns].iter_mut().zip(row).for_each(|(to, &v)| *to += v);
    }
    Ok(Tensor::floats_of(base.ty.clone(), out))
}

/// The row of an id, or the error for an id outside the table.
pub(super) fn row_of(id: i32, rows: usize) -> Result<usize, String> {
    match usize::try_from(id) {
        Ok(id) if id < rows => Ok(id),
        _ => Err(format!("id {id} is outside 0..{rows}")),
    }
}

/// Evaluates a shape, reduction or indexing operation; `None` for other operations. `ty` is the result's type.
pub(super) fn eval<T: Real>(op: &Op, o: &[&Tensor<T>], ty: &Type) -> Option<Result<Tensor<T>, String>> {
    let of = |data| Tensor { ty: ty.clone(), data };
    Some(Ok(match op.opcode {
        Opcode::Reshape => of(o[0].data.clone()),
        Opcode::Transpose => of(map_data!(&o[0].data, v => transpose(v, &o[0].ty.shape, op.ints("perm")))),
        Opcode::Slice => {
            let (axis, start, end) = (op.size("axis"), op.size("start"), op.size("end"));
            of(map_data!(&o[0].data, v => slice(v, &o[0].ty.shape, axis, start, end)))
        }
        Opcode::Concat => {
            let axis = op.size("axis");
            of(match o[0].data {
                Data::Float(_) => Data::Float(concat(o, axis, |t| t.floats())),
                Data::Int(_) => Data::Int(concat(o, axis, |t| t.ints())),
                Data::Byte(_) => Data::Byte(concat(o, axis, |t| bytes(t))),
                Data::Bool(_) => Data::Bool(concat(o, axis, |t| t.bools())),
            })
        }
        Opcode::Broadcast => of(map_data!(&o[0].data, v => spread(v, &o[0].ty.shape, &ty.shape))),
        Opcode::Pad => pad(o[0], op.size("axis"), op.size("start"), op.size("size"), ty),
        Opcode::Index => {
            let (entries, i) = (o[0].ty.shape[0], o[1].ints());
            let row = o[0].ty.elements() / (entries * i.len());
            let at = |(b, &i): (usize, &i32)| ((i.max(0) as usize).min(entries - 1) * o[1].ty.elements() + b) * row;
            let starts: Vec<usize> = i.iter().enumerate().map(at).collect();
            of(map_data!(&o[0].data, v => starts.iter().flat_map(|&start| v[start..][..row].to_vec()).collect()))
        }
        Opcode::OneHot => one_hot(o[0].ints(), op.size("n"), ty),
        Opcode::SumTo => sum_to(o[0], ty),
        Opcode::SumBlocks => sum_blocks(o[0], op.size("rows"), ty),
        Opcode::ScatterAdd => return Some(scatter_add(o[0], o[1].ints(), o[2].floats())),
        Opcode::ReduceSum => reduce(o[0], op.size("axis"), ty, T::default(), |a, b| a + b),
        Opcode::ReduceMax => reduce(o[0], op.size("axis"), ty, T::from_f64(f64::NEG_INFINITY), T::maximum),
        Opcode::All => of(Data::Bool(vec![o[0].bools().iter().all(|&v| v)])),
        Opcode::Gather => {
            let (table, columns) = (o[0].floats(), o[0].ty.shape[1]);
            let mut out = Vec::with_capacity(ty.elements());
            for &id in o[1].ints() {
                match row_of(id, o[0].ty.shape[0]) {
                    Ok(row) => out.extend_from_slice(&table[row * columns..][..columns]),
                    Err(message) => return Some(Err(message)),
                }
            }
            of(Data::Float(out))
        }
        Opcode::Positions => {
            let len = op.int("len") as i32;
            of(Data::Int(o[0].ints().iter().flat_map(|&p| (0..len).map(move |s| p.wrapping_add(s))).collect()))
        }
        _ => return None,
    }))
}
