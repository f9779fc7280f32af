//! Row operations: what a kernel can compute row by row over tensors seen as `[rows, columns]`.
use rdc_ir::{Func, OpId, Opcode};

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

/// The number of rows of a row operation that may stand before a matmul; `None` for other operations. Scalar arithmetic
/// is no row operation.
pub fn rows_of(func: &Func, id: OpId) -> Option<usize> {
    let op = &func.ops[id];
    let result = func.ty(*op.results.first()?);
    if result.rank() == 0 {
        return None;
    }
    let last_axis = |ty: &rdc_ir::Type| op.size("axis") + 1 == ty.rank();
    let ok = match op.opcode {
        Opcode::RmsNorm | Opcode::LayerNorm | Opcode::Softmax => true,
        Opcode::ReduceSum | Opcode::ReduceMax => op.flag("keep") && last_axis(func.ty(op.operands[0])),
        Opcode::Slice | Opcode::Concat => last_axis(result),
        _ => is_elementwise(func, id),
    };
    ok.then(|| result.rows())
}

/// The number of rows of an operation that looks rows up in a table.
pub fn lookup_rows(func: &Func, id: OpId) -> Option<usize> {
    let op = &func.ops[id];
    matches!(op.opcode, Opcode::Gather | Opcode::PackedGather).then(|| func.ty(op.results[0]).rows())
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
