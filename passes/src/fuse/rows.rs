//! Row operations: what a kernel can compute row by row over tensors seen as `[rows, columns]`.
use rdc_ir::{Func, OpId, Opcode, Type};

/// How an operand is seen by an elementwise operation over a full shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The same shape.
    Full,
    /// One row, used by every row.
    Row,
    /// One column, used by every column.
    Column,
    /// One number.
    Scalar,
}

/// The view of an operand of shape `operand` beside a result of shape `full`, if it is one of the four.
pub fn view(operand: &[usize], full: &[usize]) -> Option<View> {
    let (count, total) = (operand.iter().product::<usize>(), full.iter().product::<usize>());
    if operand.len() > full.len() {
        return None;
    }
    if count == total {
        return Some(View::Full);
    }
    if count == 1 {
        return Some(View::Scalar);
    }
    let last = full.last().copied().unwrap_or(1);
    if operand.last() == Some(&last) && count == last {
        return Some(View::Row);
    }
    let column = operand.last() == Some(&1) && operand.len() == full.len() && count * last == total;
    column.then_some(View::Column)
}

/// Whether an elementwise operation sees its operands as rows, columns or scalars of its result.
pub fn is_elementwise(func: &Func, op: OpId) -> bool {
    let op = &func.ops[op];
    let full = &func.ty(op.results[0]).shape;
    op.opcode.is_elementwise() && op.operands.iter().all(|&v| view(&func.ty(v).shape, full).is_some())
}

/// Whether a kernel over `rows` rows can compute an operation: as rows of several columns, or as one element for each row
/// whatever the shape (`[B, S]` beside `[B, S, 1]` and `[B, S, D]`).
pub fn fits(func: &Func, id: OpId, rows: usize) -> bool {
    let op = &func.ops[id];
    let Some(result) = op.results.first().map(|&v| func.ty(v)) else { return false };
    let operands = || op.operands.iter().map(|&v| func.ty(v));
    let is_rows = |ty: &Type| ty.rank() > 0 && ty.rows() == rows && ty.last() > 1;
    let last_axis = |ty: &Type| op.size("axis") + 1 == ty.rank();
    // Heads of one token are one row.
    let is_tokens = |ty: &Type| ty.rank() == 4 && ty.shape[0] * ty.shape[1] == rows;
    match op.opcode {
        Opcode::Rope | Opcode::RopeGrad => is_tokens(result),
        Opcode::OneHot => is_rows(result),
        Opcode::Pad => last_axis(result) && is_rows(result) && operands().all(is_rows),
        Opcode::Broadcast => is_rows(result) && operands().all(|ty| view(&ty.shape, &result.shape).is_some()),
        Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax => is_rows(result),
        Opcode::SumBlocks => operands().all(is_rows),
        Opcode::ReduceSum | Opcode::ReduceMax => op.flag("keep") && operands().all(|ty| last_axis(ty) && is_rows(ty)),
        Opcode::Slice | Opcode::Concat => last_axis(result) && is_rows(result),
        Opcode::Reshape => operands().all(|from| {
            let same_rows = is_rows(from) && is_rows(result) && from.last() == result.last();
            let splits = |whole: &Type, heads: &Type| is_rows(whole) && is_tokens(heads);
            same_rows || splits(from, result) || splits(result, from) || from.elements() == rows
        }),
        Opcode::Gather | Opcode::PackedGather => is_rows(result),
        _ if op.opcode.is_elementwise() => {
            let columns =
                result.elements() == rows && operands().all(|ty| matches!(ty.elements(), n if n == rows || n == 1));
            columns || is_rows(result) && is_elementwise(func, id)
        }
        _ => false,
    }
}

/// The number of rows that an operation has by its shape, if it is one that row kernels are made for. Scalar arithmetic
/// is not.
pub fn natural_rows(func: &Func, id: OpId) -> Option<usize> {
    let result = func.ty(*func.ops[id].results.first()?);
    if func.ops[id].opcode == Opcode::SumBlocks {
        return Some(func.ty(func.ops[id].operands[0]).rows()).filter(|&rows| fits(func, id, rows));
    }
    let is_start = func.ops[id].opcode != Opcode::Reshape && result.rank() > 0;
    let tokens = if result.rank() == 4 { result.shape[0] * result.shape[1] } else { result.rows() };
    [result.rows(), tokens, result.elements()].into_iter().find(|&rows| is_start && fits(func, id, rows))
}

/// Whether an operation looks rows up in a table.
pub fn is_lookup(func: &Func, id: OpId) -> bool {
    matches!(func.ops[id].opcode, Opcode::Gather | Opcode::PackedGather)
}

/// Whether an operation computes scalars or one row from scalars and rows, so that any kernel can compute it for itself:
/// the row of a step, say, that is added to every token.
pub fn is_shared(func: &Func, id: OpId) -> bool {
    let op = &func.ops[id];
    let Some(result) = op.results.first().map(|&v| func.ty(v)) else { return false };
    let one_row = |ty: &Type| ty.rows() == 1 && (ty.last() == result.last() || ty.elements() == 1);
    match op.opcode {
        Opcode::Gather => result.rank() == 1,
        _ => op.opcode.is_elementwise() && result.rank() < 2 && op.operands.iter().all(|&v| one_row(func.ty(v))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_operands() {
        let full = [2, 3, 8];
        assert_eq!(view(&[2, 3, 8], &full), Some(View::Full));
        assert_eq!(view(&[8], &full), Some(View::Row));
        assert_eq!(view(&[1, 1, 8], &full), Some(View::Row));
        assert_eq!(view(&[2, 3, 1], &full), Some(View::Column));
        assert_eq!(view(&[], &full), Some(View::Scalar));
        assert_eq!(view(&[3, 8], &full), None, "one table for every batch is neither a row nor full");
        assert_eq!(view(&[2, 1, 8], &full), None);
        assert_eq!(view(&[3, 1], &full), None);
        assert_eq!(view(&[3, 8], &[1, 3, 8]), Some(View::Full));
    }
}
