//! Result types of operations: one function per shape rule, named by the op table.
use crate::module::Op;
use crate::ops::Attr;
use crate::types::{DType, Type};

type Types = Result<Vec<Type>, String>;

/// The shape two shapes broadcast to, or `None`.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

fn broadcast_or(a: &Type, b: &Type) -> Result<Vec<usize>, String> {
    broadcast(&a.shape, &b.shape).ok_or_else(|| format!("shapes {a} and {b} do not broadcast"))
}

fn want(t: &Type, dtype: DType, what: &str) -> Result<(), String> {
    if t.dtype == dtype && !t.cache { Ok(()) } else { Err(format!("{what} must be {}, not {t}", dtype.name())) }
}

/// An operand of a contraction, or what one is to be made of: f32 or bf16.
fn want_float(t: &Type, what: &str) -> Result<(), String> {
    if matches!(t.dtype, DType::F32 | DType::BF16) && !t.cache {
        Ok(())
    } else {
        Err(format!("{what} must be f32 or bf16, not {t}"))
    }
}

fn want_rank(t: &Type, rank: usize, what: &str) -> Result<(), String> {
    if t.rank() == rank { Ok(()) } else { Err(format!("{what} must have rank {rank}, not {t}")) }
}

/// One `i32` for all of a batch, or one for each row of it.
fn want_steps(t: &Type, batch: Option<usize>, what: &str) -> Result<(), String> {
    want(t, DType::I32, what)?;
    match t.shape[..] {
        [] => Ok(()),
        [rows] if batch.is_none_or(|batch| rows == batch) => Ok(()),
        _ => Err(format!("{what} must be one number, or one for each row, not {t}")),
    }
}

fn axis_of(t: &Type, attr: &Attr) -> Result<usize, String> {
    let axis = attr.as_int();
    if axis >= 0 && (axis as usize) < t.rank() { Ok(axis as usize) } else { Err(format!("axis {axis} is outside {t}")) }
}

fn positive(v: i64, what: &str) -> Result<usize, String> {
    if v > 0 && v <= u32::MAX as i64 { Ok(v as usize) } else { Err(format!("{what} must be positive, not {v}")) }
}

/// Types that the op itself cannot infer; the verifier checks them against params and regions.
pub fn stored(_: &[Type], _: &[Attr]) -> Types {
    Err("result types are stored, not inferred".into())
}
/// `constant`
pub fn constant(_: &[Type], a: &[Attr]) -> Types {
    match a[1].as_dtype() {
        d @ (DType::F32 | DType::I32 | DType::Bool) => Ok(vec![Type::scalar(d)]),
        d => Err(format!("a constant cannot be {}", d.name())),
    }
}
/// `rope_table`
pub fn rope_table(_: &[Type], a: &[Attr]) -> Types {
    let (len, dim) = (positive(a[0].as_int(), "len")?, positive(a[1].as_int(), "dim")?);
    if dim % 2 != 0 {
        return Err(format!("dim must be even, not {dim}"));
    }
    Ok(vec![Type::f32([len, dim / 2, 2])])
}
/// `sinusoid_table`
pub fn sinusoid_table(_: &[Type], a: &[Attr]) -> Types {
    let (len, dim) = (positive(a[0].as_int(), "len")?, positive(a[1].as_int(), "dim")?);
    if dim % 2 != 0 {
        return Err(format!("dim must be even, not {dim}"));
    }
    Ok(vec![Type::f32([len, dim])])
}
/// Two numbers of the same type.
pub fn arith2(t: &[Type], _: &[Attr]) -> Types {
    if t[0].dtype != t[1].dtype || !matches!(t[0].dtype, DType::F32 | DType::I32) || t[0].cache || t[1].cache {
        return Err(format!("operands must both be f32 or both i32, not {} and {}", t[0], t[1]));
    }
    Ok(vec![Type::new(t[0].dtype, broadcast_or(&t[0], &t[1])?)])
}
/// Two floats.
pub fn float2(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    arith2(t, a)
}
/// One float.
pub fn float1(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    Ok(vec![t[0].clone()])
}
/// Comparison of two numbers.
pub fn compare(t: &[Type], a: &[Attr]) -> Types {
    Ok(vec![Type::new(DType::Bool, arith2(t, a)?.remove(0).shape)])
}
/// Two truth values.
pub fn logic2(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::Bool, "operand")?;
    want(&t[1], DType::Bool, "operand")?;
    Ok(vec![Type::new(DType::Bool, broadcast_or(&t[0], &t[1])?)])
}
/// One truth value.
pub fn logic1(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::Bool, "operand")?;
    Ok(vec![t[0].clone()])
}
/// `select`
pub fn select(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::Bool, "condition")?;
    if t[1].dtype != t[2].dtype || t[1].cache || t[2].cache {
        return Err(format!("branches must have one type, not {} and {}", t[1], t[2]));
    }
    let both = Type::new(t[1].dtype, broadcast_or(&t[1], &t[2])?);
    Ok(vec![both.with_shape(broadcast_or(&t[0], &both)?)])
}
/// `cast`
pub fn cast(t: &[Type], a: &[Attr]) -> Types {
    let to = a[0].as_dtype();
    if t[0].cache || t[0].dtype == DType::I8 || to == DType::I8 {
        return Err(format!("cannot cast {} to {}", t[0], to.name()));
    }
    Ok(vec![Type::new(to, t[0].shape.clone())])
}
fn shape_of(attr: &Attr) -> Result<Vec<usize>, String> {
    attr.as_ints().iter().map(|&n| positive(n, "size")).collect()
}
/// `reshape`
pub fn reshape(t: &[Type], a: &[Attr]) -> Types {
    let shape = shape_of(&a[0])?;
    let elements = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
    if t[0].cache || elements != Some(t[0].elements()) {
        return Err(format!("cannot reshape {} to {shape:?}", t[0]));
    }
    Ok(vec![t[0].with_shape(shape)])
}
/// `transpose`
pub fn transpose(t: &[Type], a: &[Attr]) -> Types {
    let perm = a[0].as_ints();
    let mut seen = vec![false; t[0].rank()];
    let ok = perm.len() == t[0].rank()
        && !t[0].cache
        && perm.iter().all(|&p| p >= 0 && (p as usize) < seen.len() && !std::mem::replace(&mut seen[p as usize], true));
    if !ok {
        return Err(format!("{perm:?} does not permute the axes of {}", t[0]));
    }
    Ok(vec![t[0].with_shape(perm.iter().map(|&p| t[0].shape[p as usize]).collect::<Vec<_>>())])
}
/// `slice`
pub fn slice(t: &[Type], a: &[Attr]) -> Types {
    let axis = axis_of(&t[0], &a[0])?;
    let (start, end) = (a[1].as_int(), a[2].as_int());
    if t[0].cache || start < 0 || start >= end || end as usize > t[0].shape[axis] {
        return Err(format!("{start}..{end} is not a range of axis {axis} of {}", t[0]));
    }
    let mut shape = t[0].shape.clone();
    shape[axis] = (end - start) as usize;
    Ok(vec![t[0].with_shape(shape)])
}
/// `concat`
pub fn concat(t: &[Type], a: &[Attr]) -> Types {
    let Some(first) = t.first() else { return Err("nothing to concatenate".into()) };
    let axis = axis_of(first, &a[0])?;
    let mut shape = first.shape.clone();
    if first.cache {
        return Err(format!("cannot join {first}"));
    }
    for part in &t[1..] {
        let same = part.dtype == first.dtype
            && part.rank() == first.rank()
            && !part.cache
            && (0..first.rank()).all(|i| i == axis || part.shape[i] == first.shape[i]);
        if !same {
            return Err(format!("{first} and {part} do not join along axis {axis}"));
        }
        shape[axis] = shape[axis].saturating_add(part.shape[axis]);
    }
    Ok(vec![first.with_shape(shape)])
}
/// `broadcast`
pub fn broadcast_to(t: &[Type], a: &[Attr]) -> Types {
    let shape = shape_of(&a[0])?;
    if t[0].cache || broadcast(&t[0].shape, &shape).as_ref() != Some(&shape) {
        return Err(format!("{} does not broadcast to {shape:?}", t[0]));
    }
    Ok(vec![t[0].with_shape(shape)])
}
/// Reductions.
pub fn reduce(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    let axis = axis_of(&t[0], &a[0])?;
    let mut shape = t[0].shape.clone();
    if a[1].as_bool() {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    Ok(vec![t[0].with_shape(shape)])
}
/// `all`
pub fn all(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::Bool, "operand")?;
    Ok(vec![Type::scalar(DType::Bool)])
}
/// `gather`
pub fn gather(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::F32, "table")?;
    want_rank(&t[0], 2, "table")?;
    want(&t[1], DType::I32, "ids")?;
    let mut shape = t[1].shape.clone();
    shape.push(t[0].shape[1]);
    Ok(vec![Type::f32(shape)])
}
/// `positions`
pub fn positions(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::I32, "pos")?;
    want_rank(&t[0], 1, "pos")?;
    Ok(vec![Type::new(DType::I32, [t[0].shape[0], positive(a[0].as_int(), "len")?])])
}
/// `matmul`
pub fn matmul(t: &[Type], attrs: &[Attr]) -> Types {
    let (a, b) = (&t[0], &t[1]);
    want_float(a, "a")?;
    want(b, a.dtype, "b")?;
    if a.rank() < 2 || b.rank() < 2 {
        return Err(format!("matmul needs rank 2 or more, not {a} and {b}"));
    }
    let (ta, tb) = (attrs[0].as_bool(), attrs[1].as_bool());
    if b.rank() > 2 && a.shape[..a.rank() - 2] != b.shape[..b.rank() - 2] {
        return Err(format!("leading axes of {a} and {b} differ"));
    }
    if ta && b.rank() == 2 && a.rank() > 2 {
        return Err("a transposed operand with leading axes needs a batched b".into());
    }
    let pick = |s: &Type, flip: bool| {
        let (x, y) = (s.shape[s.rank() - 2], s.shape[s.rank() - 1]);
        if flip { (y, x) } else { (x, y) }
    };
    let ((m, ka), (kb, n)) = (pick(a, ta), pick(b, tb));
    if ka != kb {
        return Err(format!("inner sizes {ka} and {kb} of {a} and {b} differ"));
    }
    let mut shape = a.shape[..a.rank() - 2].to_vec();
    shape.extend([m, n]);
    Ok(vec![Type::f32(shape)])
}
/// A product of counts, at most `u64::MAX`.
fn flops(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |n: u64, &f| n.saturating_mul(f as u64))
}
/// 2 per multiply-add.
pub fn matmul_flops(op: &Op, operands: &[&Type], results: &[&Type]) -> u64 {
    let a = operands[0];
    let k = if op.flag("trans_a") { a.shape[a.rank() - 2] } else { a.last() };
    flops(&[2, results[0].elements(), k])
}
/// `rms_norm`
pub fn rms_norm(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::F32, "x")?;
    for w in &t[1..] {
        want(w, DType::F32, "weight")?;
        if t[0].rank() == 0 || w.shape != [t[0].last()] {
            return Err(format!("a weight of {w} does not fit the last axis of {}", t[0]));
        }
    }
    Ok(vec![t[0].clone()])
}
/// `layer_norm`
pub fn layer_norm(t: &[Type], a: &[Attr]) -> Types {
    rms_norm(t, a)
}
/// `rope`
pub fn rope(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "x")?;
    want_rank(&t[0], 4, "x")?;
    want(&t[1], DType::F32, "table")?;
    want(&t[2], DType::I32, "pos")?;
    if t[1].rank() != 3 || t[1].shape[1] * 2 != t[0].shape[3] || t[1].shape[2] != 2 {
        return Err(format!("a table of {} does not fit {}", t[1], t[0]));
    }
    if t[2].shape != [t[0].shape[0]] {
        return Err(format!("pos must be i32[{}], not {}", t[0].shape[0], t[2]));
    }
    if !matches!(a[0].as_str(), "adjacent" | "half") {
        return Err(format!("layout must be \"adjacent\" or \"half\", not {:?}", a[0].as_str()));
    }
    Ok(vec![t[0].clone()])
}
/// `attention`
pub fn attention(t: &[Type], attrs: &[Attr]) -> Types {
    for (x, name) in t.iter().zip(["q", "k", "v"]) {
        want_float(x, name)?;
        want_rank(x, 4, name)?;
    }
    want(&t[3], DType::I32, "pos")?;
    let (q, k) = (&t[0].shape, &t[1].shape);
    if t[1] != t[2] || k[2] == 0 || q[0] != k[0] || q[3] != k[3] || q[2] % k[2] != 0 || t[3].shape != [q[0]] {
        return Err(format!("attention cannot join {}, {}, {} at {}", t[0], t[1], t[2], t[3]));
    }
    let lse = attrs.get(2).is_some_and(Attr::as_bool).then(|| Type::f32(&q[..3]));
    Ok(std::iter::once(Type::f32(q.clone())).chain(lse).collect())
}
/// Two matmuls and a softmax over what a query sees: all T keys, or on average half of the square if causal over S = T.
pub fn attention_flops(op: &Op, operands: &[&Type], _: &[&Type]) -> u64 {
    let (q, t) = (operands[0], operands[1].shape[1]);
    let seen2 = if op.flag("causal") && q.shape[1] > 1 { q.shape[1].min(t) + 1 } else { 2 * t };
    flops(&[q.rows(), seen2, 2 * q.last() + 2])
}
/// `cache_update`
pub fn cache_update(t: &[Type], _: &[Attr]) -> Types {
    let (cache, x) = (&t[0], &t[1]);
    want(&t[2], DType::I32, "pos")?;
    want_steps(&t[3], x.shape.first().copied(), "slot")?;
    let fits = cache.cache
        && matches!(cache.dtype, DType::F32 | DType::BF16)
        && (x.dtype == DType::F32 || x.dtype == cache.dtype)
        && cache.rank() == 5
        && x.rank() == 4
        && cache.shape[1] == x.shape[0]
        && cache.shape[3..] == x.shape[2..]
        && t[2].shape == [x.shape[0]];
    if !fits {
        return Err(format!("{x} at {}, {} does not fit into {cache}", t[2], t[3]));
    }
    Ok(vec![cache.clone(), Type::new(cache.dtype, cache.shape[1..].to_vec())])
}
/// `kv_slot`
pub fn kv_slot(t: &[Type], a: &[Attr]) -> Types {
    want_steps(&t[0], None, "step")?;
    match a[0].as_str() {
        "full" | "anchor" => {}
        "modulo" | "block" => {
            positive(a[1].as_int(), "arg")?;
        }
        p => return Err(format!("unknown cache policy {p:?}")),
    }
    positive(a[3].as_int(), "layers")?;
    Ok(vec![t[0].clone()])
}
/// `quantize`
pub fn quantize(t: &[Type], _: &[Attr]) -> Types {
    want(&t[0], DType::F32, "w")?;
    want_rank(&t[0], 2, "w")?;
    Ok(vec![Type::new(DType::I8, t[0].shape.clone()), Type::f32([t[0].shape[0]])])
}
/// How many consecutive k a packed weight interleaves.
pub fn k_pack(dtype: DType) -> usize {
    if dtype == DType::BF16 { 2 } else { 1 }
}
/// The packed type of `w: [n, k]`.
pub fn packed_type(dtype: DType, n: usize, k: usize, nr: usize) -> Type {
    let kp = k_pack(dtype);
    Type::new(dtype, [n.div_ceil(nr), k.div_ceil(kp), nr, kp])
}
/// Whether `n` rows in `parts` parts fill panels of `nr` columns.
fn check_parts(w: &Type, n: usize, nr: usize, parts: usize) -> Result<(), String> {
    let splits = nr.is_multiple_of(parts) && n.is_multiple_of(parts) && (n / parts).is_multiple_of(nr / parts);
    if parts == 1 || splits { Ok(()) } else { Err(format!("{w} does not split into {parts} parts for panels of {nr}")) }
}
/// `pack`
pub fn pack(t: &[Type], a: &[Attr]) -> Types {
    let w = &t[0];
    want_rank(w, 2, "w")?;
    if !matches!(w.dtype, DType::F32 | DType::BF16 | DType::I8) || w.cache {
        return Err(format!("cannot pack {w}"));
    }
    let (nr, parts) = (positive(a[0].as_int(), "nr")?, positive(a[1].as_int(), "parts")?);
    check_parts(w, w.shape[0], nr, parts)?;
    Ok(vec![packed_type(w.dtype, w.shape[0], w.shape[1], nr)])
}
fn check_packed(w: &Type, scale: Option<&Type>, n: usize, k: usize, parts: &Attr) -> Result<(), String> {
    let stored = matches!(w.dtype, DType::F32 | DType::BF16 | DType::I8);
    if !stored || w.rank() != 4 || w.shape[2] == 0 || *w != packed_type(w.dtype, n, k, w.shape[2]) {
        return Err(format!("{w} is not a packed weight of {n} by {k}"));
    }
    check_parts(w, n, w.shape[2], positive(parts.as_int(), "parts")?)?;
    match scale {
        Some(s) if *s != Type::f32([n]) => Err(format!("scale must be f32[{n}], not {s}")),
        None if w.dtype == DType::I8 => Err("an i8 weight needs a scale".into()),
        _ => Ok(()),
    }
}
/// `packed_matmul`
pub fn packed_matmul(t: &[Type], a: &[Attr]) -> Types {
    let (n, k) = (positive(a[0].as_int(), "n")?, positive(a[1].as_int(), "k")?);
    want_float(&t[0], "x")?;
    check_packed(&t[1], t.get(2), n, k, &a[2])?;
    if t[0].rank() == 0 || t[0].last() != k {
        return Err(format!("x must end in {k}, not {}", t[0]));
    }
    let mut shape = t[0].shape.clone();
    shape[t[0].rank() - 1] = n;
    Ok(vec![Type::f32(shape)])
}
/// 2 per multiply-add.
pub fn packed_matmul_flops(op: &Op, operands: &[&Type], _: &[&Type]) -> u64 {
    flops(&[2, operands[0].elements(), op.size("n")])
}
/// `packed_gather`
pub fn packed_gather(t: &[Type], a: &[Attr]) -> Types {
    let (n, k) = (positive(a[0].as_int(), "n")?, positive(a[1].as_int(), "k")?);
    check_packed(&t[0], t.get(2), n, k, &a[2])?;
    want(&t[1], DType::I32, "ids")?;
    let mut shape = t[1].shape.clone();
    shape.push(k);
    Ok(vec![Type::f32(shape)])
}
/// `pad`
pub fn pad(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    let axis = axis_of(&t[0], &a[0])?;
    let (start, size) = (a[1].as_int(), positive(a[2].as_int(), "size")?);
    let fits = usize::try_from(start).is_ok_and(|s| s.saturating_add(t[0].shape[axis]) <= size);
    if !fits {
        return Err(format!("{} at {start} does not fit into {size} along axis {axis}", t[0]));
    }
    let mut shape = t[0].shape.clone();
    shape[axis] = size;
    Ok(vec![t[0].with_shape(shape)])
}
/// `index`
pub fn index(t: &[Type], _: &[Attr]) -> Types {
    if t[0].cache || t[0].rank() == 0 || t[0].shape[0] == 0 {
        return Err(format!("{} has no entries", t[0]));
    }
    if t[1].rank() > 0 && t[0].rank() < 2 {
        return Err(format!("the entries of {} have no rows", t[0]));
    }
    want_steps(&t[1], t[0].shape.get(1).copied(), "i")?;
    Ok(vec![t[0].with_shape(t[0].shape[1..].to_vec())])
}
/// `one_hot`
pub fn one_hot(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::I32, "ids")?;
    let mut shape = t[0].shape.clone();
    shape.push(positive(a[0].as_int(), "n")?);
    Ok(vec![Type::f32(shape)])
}
/// `sum_to`
pub fn sum_to(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    let shape = shape_of(&a[0])?;
    if broadcast(&shape, &t[0].shape).as_ref() != Some(&t[0].shape) {
        return Err(format!("{shape:?} does not broadcast to {}", t[0]));
    }
    Ok(vec![t[0].with_shape(shape)])
}
/// `sum_blocks`
pub fn sum_blocks(t: &[Type], a: &[Attr]) -> Types {
    want(&t[0], DType::F32, "operand")?;
    let Attr::Int(rows) = a[0] else { return Err("rows must be an integer".into()) };
    match usize::try_from(rows) {
        Ok(rows) if rows > 0 && t[0].rank() > 0 => {
            Ok(vec![t[0].with_shape(vec![t[0].rows().div_ceil(rows), t[0].last()])])
        }
        _ => Err(format!("blocks of {rows} rows of {}", t[0])),
    }
}
/// `scatter_add`
pub fn scatter_add(t: &[Type], _: &[Attr]) -> Types {
    let rows = gather(&t[..2], &[])?.remove(0);
    if t[2] != rows {
        return Err(format!("rows must be {rows}, not {}", t[2]));
    }
    Ok(vec![t[0].clone()])
}
fn per_token(x: &Type, other: &Type, dtype: DType, what: &str) -> Result<(), String> {
    want(x, DType::F32, "logits")?;
    want(other, dtype, what)?;
    if x.rank() == 0 || other.shape != x.shape[..x.rank() - 1] {
        return Err(format!("{what} of {other} do not fit {x}"));
    }
    Ok(())
}
/// `cross_entropy`
pub fn cross_entropy(t: &[Type], _: &[Attr]) -> Types {
    per_token(&t[0], &t[1], DType::I32, "labels")?;
    Ok(vec![Type::f32(t[1].shape.clone()); 2])
}
/// `cross_entropy_grad`
pub fn cross_entropy_grad(t: &[Type], _: &[Attr]) -> Types {
    per_token(&t[0], &t[1], DType::I32, "labels")?;
    per_token(&t[0], &t[2], DType::F32, "dnll")?;
    Ok(vec![t[0].clone()])
}
fn head(x: &Type, w: &Type, bias: Option<&Type>) -> Result<(), String> {
    want(w, DType::F32, "w")?;
    want_rank(w, 2, "w")?;
    if x.rank() == 0 || x.last() != w.shape[1] {
        return Err(format!("x must end in {}, not {x}", w.shape[1]));
    }
    match bias {
        Some(b) if *b != Type::f32([w.shape[0]]) => Err(format!("bias must be f32[{}], not {b}", w.shape[0])),
        _ => Ok(()),
    }
}
/// `linear_cross_entropy`
pub fn linear_cross_entropy(t: &[Type], _: &[Attr]) -> Types {
    per_token(&t[0], &t[2], DType::I32, "labels")?;
    head(&t[0], &t[1], t.get(3))?;
    Ok(vec![Type::f32(t[2].shape.clone()); 2])
}
/// `linear_cross_entropy_grad`
pub fn linear_cross_entropy_grad(t: &[Type], _: &[Attr]) -> Types {
    per_token(&t[0], &t[2], DType::I32, "labels")?;
    per_token(&t[0], &t[3], DType::F32, "dnll")?;
    head(&t[0], &t[1], t.get(4))?;
    Ok([&t[0], &t[1]].into_iter().chain(t.get(4)).cloned().collect())
}
/// One product.
pub fn linear_cross_entropy_flops(_: &Op, operands: &[&Type], _: &[&Type]) -> u64 {
    flops(&[2, operands[0].elements(), operands[1].shape[0]])
}
/// Three products: the logits again, and the derivatives by x and w.
pub fn linear_cross_entropy_grad_flops(_: &Op, operands: &[&Type], _: &[&Type]) -> u64 {
    flops(&[6, operands[0].elements(), operands[1].shape[0]])
}
/// `attention_grad`
pub fn attention_grad(t: &[Type], a: &[Attr]) -> Types {
    let out = attention(&t[..4], a)?.remove(0);
    want_float(&t[4], "dout")?;
    if t[4].shape != out.shape {
        return Err(format!("dout must be {out}, not {}", t[4]));
    }
    if let Some(lse) = t.get(5).filter(|lse| **lse != Type::f32(&out.shape[..3])) {
        return Err(format!("lse must be {}, not {lse}", Type::f32(&out.shape[..3])));
    }
    Ok(t[..3].iter().map(|ty| Type::f32(ty.shape.clone())).collect())
}
/// Five matmuls where `attention` has two.
pub fn attention_grad_flops(op: &Op, operands: &[&Type], results: &[&Type]) -> u64 {
    attention_flops(op, operands, results).saturating_mul(5) / 2
}
