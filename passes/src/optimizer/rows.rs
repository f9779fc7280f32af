//! Tensors as rows and columns.
use super::Trained;
use rdc_ir::{ArgRole, Attr, Builder, DType, Opcode, Type, ValueId};

/// An argument `f32[]`.
pub fn scalar_input(b: &mut Builder, name: &str) -> ValueId {
    b.arg(name, ArgRole::Input, Type::scalar(DType::F32))
}

/// A tensor's rows and columns: one row if it has one axis, or columns of one element, which row kernels do not see as rows.
fn shape(ty: &Type) -> [usize; 2] {
    if ty.rank() < 2 || ty.last() == 1 { [1, ty.elements()] } else { [ty.rows(), ty.last()] }
}

/// The parameter of that prefix as rows and columns.
pub fn view(b: &mut Builder, prefix: &str, param: &Trained) -> ValueId {
    let value = b.param(&format!("{prefix}{}", param.name), param.ty.clone());
    b.reshape(value, &shape(&param.ty))
}

/// The output that replaces the parameter of that prefix by rows and columns.
pub fn update(b: &mut Builder, prefix: &str, param: &Trained, rows: ValueId) {
    let value = b.reshape(rows, &param.ty.shape);
    b.update(format!("{prefix}{}", param.name), value);
}

/// The sum of each row that has several columns.
fn row_sums(b: &mut Builder, x: ValueId) -> ValueId {
    if b.func.ty(x).last() == 1 { x } else { b.op(Opcode::ReduceSum, &[x], vec![Attr::Int(1), Attr::Bool(true)]) }
}

/// The sum of all elements of `[rows, columns]`, as `[1, 1]`: of each row, then of those.
pub fn total(b: &mut Builder, x: ValueId) -> ValueId {
    let sums = row_sums(b, x);
    let rows = b.func.ty(sums).elements();
    let sums = b.reshape(sums, &[1, rows]);
    row_sums(b, sums)
}

/// The sum of `[1, 1]` values.
pub fn sum(b: &mut Builder, values: &[ValueId]) -> ValueId {
    if values.is_empty() {
        return b.constant(0.0, DType::F32);
    }
    let joined = b.concat(values, 1);
    row_sums(b, joined)
}
