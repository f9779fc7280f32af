//! Takes kernels apart, once: the function of a group of operations becomes the typed body that everything after fusion reads.
mod access;
mod heads;
mod rows;
#[cfg(test)]
mod tests;

pub use access::accesses;

use crate::uses::is_constant;
use rdc_ir::program::KernelKind;
use rdc_ir::program::body::{Columns, Epilogue, Generic, KvWrite, Matmul, Matrix, Pack, Product, Rows, ScatterAdd};
use rdc_ir::program::rows::{NodeKind, RowGraph, Stored};
use rdc_ir::{DType, Func, Op, OpId, Opcode, Type, ValueDef, ValueId};
use rows::Builder;
use std::collections::{BTreeSet, HashSet};

/// What a function has that no kernel of its family computes.
pub type Unsupported = String;

/// A family of kernels; a function is taken apart as one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Row operations over so many rows.
    Rows(usize),
    /// One `packed_matmul` with what is around it.
    Matmul,
    /// One `matmul` of activations with what follows it.
    Product,
    /// `cache_update`s.
    KvWrite,
    /// One `attention`.
    Attention,
    /// One `attention` of one token a batch row, with the `cache_update`s of its keys and values.
    DecodeAttention,
    /// One `attention_grad`.
    AttentionGrad,
    /// One `pack`.
    Pack,
    /// `sum_to`s over all rows.
    Columns,
    /// One `scatter_add`.
    ScatterAdd,
    /// Any single operation.
    Generic,
}

/// Takes the function of a kernel apart.
///
/// # Errors
/// If the function has something else than its family is made of; the text says what.
pub fn take_apart(func: &Func, family: Family) -> Result<KernelKind, Unsupported> {
    Ok(match family {
        Family::Rows(rows) => KernelKind::Rows(of_rows(func, rows)?),
        Family::Matmul => KernelKind::Matmul(matmul(func)?),
        Family::Product => KernelKind::Product(product(func)?),
        Family::KvWrite => KernelKind::KvWrite(kv_write(func)?),
        Family::Attention => {
            let attention = heads::attention(func, only(func, Opcode::Attention)?)?;
            if !attention.writes.is_empty() {
                return Err("cache updates with an attention of several tokens".into());
            }
            KernelKind::Attention(attention)
        }
        Family::DecodeAttention => {
            let attention = heads::attention(func, only(func, Opcode::Attention)?)?;
            let heads = &attention.heads;
            if heads.steps != 1 || [heads.keys, heads.values].iter().any(|rows| rows.stride != heads.query.dim) {
                return Err("a decode attention of several tokens, or over keys of several heads side by side".into());
            }
            KernelKind::DecodeAttention(attention)
        }
        Family::AttentionGrad => {
            KernelKind::AttentionGrad(heads::attention_grad(func, only(func, Opcode::AttentionGrad)?)?)
        }
        Family::Pack => KernelKind::Pack(pack(func)?),
        Family::Columns => KernelKind::Columns(columns(func)?),
        Family::ScatterAdd => KernelKind::ScatterAdd(scatter_add(func)?),
        Family::Generic => KernelKind::Generic(generic(func)?),
    })
}

/// The pointer argument that a value is.
fn pointer(func: &Func, value: ValueId) -> Option<usize> {
    match func.values[value].def {
        ValueDef::Arg(region, index) if region == func.body => Some(index),
        _ => None,
    }
}

/// The only operation of that opcode.
fn only(func: &Func, opcode: Opcode) -> Result<OpId, Unsupported> {
    let mut found = func.regions[func.body].ops.iter().filter(|&&op| func.ops[op].opcode == opcode);
    match (found.next(), found.next()) {
        (Some(&op), None) => Ok(op),
        _ => Err(format!("not exactly one {}", opcode.info().mnemonic)),
    }
}

/// The results with their pointers; none is a cache.
fn results(func: &Func) -> Result<Vec<(ValueId, usize)>, Unsupported> {
    let yields = &func.regions[func.body].yields;
    if yields.iter().any(|&v| func.ty(v).cache) {
        return Err("a cache among results that are none".into());
    }
    Ok(yields.iter().enumerate().map(|(index, &v)| (v, func.args.len() + index)).collect())
}

/// Row operations that make some values.
fn row_operations(
    func: &Func,
    rows: usize,
    given: &[ValueId],
    results: &[(ValueId, usize)],
) -> Result<Rows, Unsupported> {
    let mut graph = Builder::new(func, rows, given);
    let results = results.iter().map(|&(value, pointer)| graph.stored(value, pointer)).collect::<Result<_, _>>()?;
    Ok(Rows { graph: graph.finish(), results })
}

fn of_rows(func: &Func, rows: usize) -> Result<Rows, Unsupported> {
    row_operations(func, rows, &[], &results(func)?)
}

fn matmul(func: &Func) -> Result<Matmul, Unsupported> {
    let anchor = &func.ops[only(func, Opcode::PackedMatmul)?];
    let (n, k, product) = (anchor.size("n"), anchor.size("k"), anchor.results[0]);
    let weight = pointer(func, anchor.operands[1]).ok_or("a weight that is computed")?;
    let scale = match anchor.operands.get(2) {
        Some(&scale) => Some(pointer(func, scale).ok_or("scales that are computed")?),
        None => None,
    };
    let x = func.through_reshapes(anchor.operands[0]);
    let (m, ty) = (func.ty(product).rows(), func.ty(anchor.operands[1]));
    if func.ty(x).elements() != m * k || func.ty(product).elements() != m * n {
        return Err("operands of another size than the product's".into());
    }
    let packing = rows::packing(ty, n, k, anchor.size("parts"));
    let parts = packing.parts;
    let whole = n.is_multiple_of(parts) && packing.nr.is_multiple_of(parts);
    if !whole || parts > 1 && !(n / parts).is_multiple_of(packing.nr / parts) {
        return Err("a number of parts that does not divide the panel".into());
    }
    let after = after(func, product, x, (m, n / parts));
    let (late, early): (Vec<_>, Vec<_>) = results(func)?.into_iter().partition(|(v, _)| after.contains(v));
    let mut before = Builder::new(func, m, &[]);
    let left = before.result(x)?;
    let kept = early.into_iter().map(|(value, pointer)| before.stored(value, pointer)).collect::<Result<_, _>>()?;
    let epilogue = match rows_follow(func, product, parts) {
        true if parts > 1 || scale.is_some() => {
            return Err("row operations after a matmul but on whole rows of plain weights".into());
        }
        true => Epilogue::Rows(row_operations(func, m, &[product], &late)?),
        false => Epilogue::Elements(elements(func, m, product, parts, &late)?),
    };
    Ok(Matmul { m, n, k, packing, dtype: ty.dtype, weight, scale, before: before.finish(), left, kept, epilogue })
}

/// Whether row operations follow on the rows of a product of so many parts, not elementwise operations alone on the elements of its
/// parts: `rope(reshape(slice(x · wᵀ)))`, say.
fn rows_follow(func: &Func, product: ValueId, parts: usize) -> bool {
    let mut after = BTreeSet::from([product]);
    let mut found = false;
    for &op in &func.regions[func.body].ops {
        let op = &func.ops[op];
        if op.operands.iter().any(|v| after.contains(v)) {
            after.extend(&op.results);
            found |= !op.opcode.is_elementwise()
                && match op.opcode {
                    Opcode::Reshape | Opcode::Concat => false,
                    Opcode::Slice => parts == 1,
                    _ => true,
                };
        }
    }
    found
}

/// What depends on the product, and elementwise operations over `m` rows of the epilogue's `columns` that the left operand `x` does
/// not need and that need nothing else from before it: they may share their operands with the epilogue.
fn after(func: &Func, product: ValueId, x: ValueId, (m, columns): (usize, usize)) -> HashSet<ValueId> {
    let ops = &func.regions[func.body].ops;
    let mut before = HashSet::from([x]);
    for &op in ops.iter().rev() {
        if func.ops[op].results.iter().any(|v| before.contains(v)) {
            before.extend(&func.ops[op].operands);
        }
    }
    let mut after = HashSet::from([product]);
    for &op in ops {
        let op = &func.ops[op];
        if op.operands.iter().any(|v| after.contains(v)) {
            after.extend(&op.results);
        }
    }
    for &op in ops {
        let op = &func.ops[op];
        let Some(&result) = op.results.first() else { continue };
        let is_free = |&v: &ValueId| pointer(func, v).is_some() || after.contains(&v) || is_constant(func, v);
        let ty = func.ty(result);
        let alike = ty.rank() > 0 && (ty.rows(), ty.last()) == (m, columns);
        if op.opcode.is_elementwise() && alike && !before.contains(&result) && op.operands.iter().all(is_free) {
            after.insert(result);
        }
    }
    after
}

/// Elementwise operations on a product of `rows` rows, whose weight has `parts` parts, and on arguments. A result has the shape
/// `[.., n / parts]`, or is several such values joined along the last axis.
fn elements(
    func: &Func,
    rows: usize,
    product: ValueId,
    parts: usize,
    results: &[(ValueId, usize)],
) -> Result<Rows, Unsupported> {
    let columns = func.ty(product).last() / parts;
    let mut graph = Builder::new(func, rows, &[product]);
    let mut stored = Vec::new();
    for &(value, pointer) in results {
        let joined = func.defined_by(value, Opcode::Concat).filter(|op| op.size("axis") + 1 == func.ty(value).rank());
        for (index, &part) in joined.map_or(&[value][..], |op| &op.operands).iter().enumerate() {
            let node = graph.result(part)?;
            if graph.at(node).class.width().unwrap_or(1) != columns {
                return Err(format!("a result of {} after a matmul of {columns} columns", func.ty(part)));
            }
            stored.push(Stored { node, pointer, first: index * columns, block: None });
        }
    }
    let graph = graph.finish();
    let is_given = |&node: &usize| matches!(graph.nodes[node].kind, NodeKind::Given(_));
    for (id, n) in graph.nodes.iter().enumerate() {
        let fits = match &n.kind {
            NodeKind::Elementwise { operands, .. } => parts == 1 || !operands.iter().any(is_given),
            NodeKind::Slice { x, start } => {
                !is_given(x) || (start % columns == 0 && n.class.width().unwrap_or(1) == columns)
            }
            NodeKind::Given(_) => parts == 1 || !stored.iter().any(|r| r.node == id),
            kind => is_elementwise(kind),
        };
        if !fits {
            return Err(format!("{:?} after a matmul", n.kind));
        }
    }
    Ok(Rows { graph, results: stored })
}

/// Whether a node's element needs the elements in its place only, and what is one for a row, a column or all.
fn is_elementwise(kind: &NodeKind) -> bool {
    use NodeKind::{Alias, Arg, Constant, Elementwise, Gather, Given, OneHot, Positions};
    matches!(
        kind,
        Alias(_)
            | Arg(_)
            | Constant(_)
            | Elementwise { .. }
            | Gather { .. }
            | Given(_)
            | OneHot { .. }
            | Positions { .. }
    )
}

fn product(func: &Func) -> Result<Product, Unsupported> {
    let op = &func.ops[only(func, Opcode::Matmul)?];
    let result = func.ty(op.results[0]);
    let &[ref lead @ .., m, n] = &result.shape[..] else { return Err("a product of another rank".into()) };
    let batch = lead.iter().product();
    let operand = |index: usize, inner_last: bool, outer: usize| {
        let (at, shape) = (pointer(func, op.operands[index])?, &func.ty(op.operands[index]).shape);
        let &[ref lead @ .., rows, columns] = &shape[..] else { return None };
        let own = if inner_last { rows } else { columns };
        let fits = lead.iter().product::<usize>() == batch && lead.len() < 2 && own == outer;
        fits.then_some(Matrix { pointer: at, rows, columns, inner_last })
    };
    let left = operand(0, !op.flag("trans_a"), m);
    let right = operand(1, op.flag("trans_b"), n);
    let (Some(left), Some(right)) = (left, right) else {
        return Err("operands that are not matrices in memory".into());
    };
    let k = if left.inner_last { left.columns } else { left.rows };
    let epilogue = elements(func, batch * m, op.results[0], 1, &results(func)?)?;
    Ok(Product { batch, m, n, k, left, right, epilogue })
}

fn kv_write(func: &Func) -> Result<KvWrite, Unsupported> {
    let writes = heads::writes(func)?;
    let mut tokens = func.regions[func.body].ops.iter().map(|&op| &func.ops[op]);
    let first = tokens.find(|op| op.opcode == Opcode::CacheUpdate).ok_or("no cache update")?;
    let shape = &func.ty(first.operands[1]).shape;
    match func.regions[func.body].yields.iter().all(|&v| func.ty(v).cache) {
        true => Ok(KvWrite { tokens: shape[0] * shape[1], writes }),
        false => Err("results besides the caches".into()),
    }
}

fn pack(func: &Func) -> Result<Pack, Unsupported> {
    let &[result] = &func.regions[func.body].yields[..] else { return Err("a pack of several results".into()) };
    let op = func.defined_by(func.through_reshapes(result), Opcode::Pack).ok_or("a result that is not packed")?;
    let w = func.through_reshapes(op.operands[0]);
    let transpose = func.defined_by(w, Opcode::Transpose).filter(|t| t.ints("perm") == [1, 0]);
    let source = transpose.map_or(w, |t| func.through_reshapes(t.operands[0]));
    let weight = pointer(func, source).ok_or("a pack of what is computed")?;
    let (ty, packed) = (func.ty(op.operands[0]), func.ty(op.results[0]));
    if ty.dtype != DType::F32 || ty.rank() != 2 {
        return Err("a pack of another type than f32".into());
    }
    let packing = rows::packing(packed, ty.shape[0], ty.shape[1], op.size("parts"));
    Ok(Pack { weight, flipped: transpose.is_some(), packing, result: func.args.len() })
}

/// Whether `to` is `from` summed over leading axes of `rows` elements.
fn is_column_sum(from: &Type, to: &Type, rows: usize) -> bool {
    let to = rows::padded(to, from.rank());
    let kept = |axes: usize| to[..axes].iter().all(|&n| n == 1) && from.shape[axes..] == to[axes..];
    (0..=from.rank()).any(|axes| kept(axes) && from.shape[..axes].iter().product::<usize>() == rows)
}

/// Sums of several columns.
fn columns(func: &Func) -> Result<Columns, Unsupported> {
    let is_sum = |op: &&Op| op.opcode == Opcode::SumTo;
    let ops = func.regions[func.body].ops.iter().map(|&op| &func.ops[op]);
    let sums: Vec<&Op> = ops.filter(is_sum).collect();
    let first = sums.first().ok_or("no sum over rows")?;
    let columns = func.ty(first.results[0]).elements();
    let rows = func.ty(first.operands[0]).elements() / columns.max(1);
    let mut terms = Builder::new(func, rows, &[]);
    let mut nodes = Vec::new();
    for sum in &sums {
        let (from, to) = (func.ty(sum.operands[0]), func.ty(sum.results[0]));
        if to.elements() != columns || !is_column_sum(from, to, rows) {
            return Err(format!("a sum of {from} to {to} as column sums"));
        }
        nodes.push(terms.result(sum.operands[0])?);
    }
    let results = results(func)?;
    if let Some((value, _)) = results.iter().find(|(v, _)| func.ty(*v).elements() != columns) {
        return Err(format!("a result of {} beside sums of {columns} columns", func.ty(*value)));
    }
    let given: Vec<ValueId> = sums.iter().map(|sum| sum.results[0]).collect();
    let (terms, epilogue) = (terms.finish(), row_operations(func, 1, &given, &results)?);
    let all_elementwise = |graph: &RowGraph| match graph.nodes.iter().find(|n| !of_columns(&n.kind)) {
        Some(n) => Err(format!("{:?} among column sums", n.kind)),
        None => Ok(()),
    };
    all_elementwise(&terms)?;
    all_elementwise(&epilogue.graph)?;
    Ok(Columns { columns, terms, sums: nodes, epilogue })
}

/// Whether a node can be computed for some columns of some rows.
fn of_columns(kind: &NodeKind) -> bool {
    is_elementwise(kind) || matches!(kind, NodeKind::Slice { .. })
}

fn scatter_add(func: &Func) -> Result<ScatterAdd, Unsupported> {
    let op = &func.ops[only(func, Opcode::ScatterAdd)?];
    let operand = |i: usize| pointer(func, func.through_reshapes(op.operands[i])).ok_or("operands that are computed");
    let table = func.ty(op.operands[0]);
    if func.regions[func.body].yields != op.results {
        return Err("results besides the table".into());
    }
    Ok(ScatterAdd {
        base: operand(0)?,
        ids: operand(1)?,
        terms: operand(2)?,
        result: func.args.len(),
        rows: table.shape[0],
        columns: table.last(),
        count: func.ty(op.operands[1]).elements(),
    })
}

fn generic(func: &Func) -> Result<Generic, Unsupported> {
    let body = &func.regions[func.body];
    let mut ops = body.ops.iter().copied().filter(|&op| func.ops[op].opcode != Opcode::Constant);
    let id = match (ops.next(), ops.next(), &body.ops[..]) {
        (Some(op), None, _) => op,
        (None, _, &[constant]) => constant,
        _ => return Err("a generic kernel of several operations".into()),
    };
    let op = &func.ops[id];
    let name = op.opcode.info().mnemonic;
    if !op.operands.iter().all(|&v| pointer(func, v).is_some() || is_constant(func, v)) {
        return Err(format!("{name} of values from elsewhere"));
    }
    // A result without a pointer cannot be written, so that the rest must be yielded, each once and in order.
    let wanted = match op.opcode {
        Opcode::Attention if op.results[1..].iter().any(|lse| body.yields.contains(lse)) => {
            return Err("an attention's log-sum-exp".into());
        }
        Opcode::CacheUpdate | Opcode::Attention => &op.results[..1],
        _ => &op.results[..],
    };
    if body.yields != wanted || wanted.is_empty() {
        return Err(format!("{name} with results left out, repeated or out of order"));
    }
    let rows = match op.opcode {
        Opcode::Param | Opcode::Loop | Opcode::RopeTable | Opcode::SinusoidTable => {
            return Err(format!("{name} in a kernel"));
        }
        Opcode::Pack if func.ty(op.operands[0]).cache => return Err(format!("{name} of a cache")),
        Opcode::LayerNorm | Opcode::PackedGather | Opcode::RmsNorm | Opcode::Softmax => {
            Some(of_rows(func, func.ty(op.results[0]).rows())?)
        }
        _ => None,
    };
    let moves_nothing = op.opcode.is_elementwise() || op.opcode == Opcode::Reshape;
    let alike = |v: &&ValueId| moves_nothing && func.ty(**v).elements() == func.ty(op.results[0]).elements();
    let in_place = op.operands.iter().filter(alike).filter_map(|&v| pointer(func, v)).collect();
    Ok(Generic { op: id, in_place, rows })
}
