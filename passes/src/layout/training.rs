//! Products of training other than those with transposed weights.
use super::shape;
use super::weight::Weight;
use crate::rewrite::rewrite;
use rdc_ir::{Builder, Func, Module, OpId, Opcode, ValueId};

/// The largest weight, in bytes, of which there is a packed transpose. Copies of larger ones would be a good part of all memory,
/// for products that take as long if they pack what they read in the caches.
const LARGEST_TRANSPOSE: usize = 12_000_000;

/// Products with weights as they are become products with the packed transpose. Of other products with one right operand for
/// all rows, the left one becomes rank 2.
pub fn products(module: &mut Module, nr: usize) {
    for i in 0..module.funcs.len() {
        let mut func = std::mem::replace(&mut module.funcs[i], Func::new(""));
        rewrite(&mut func, |b, op| product(b, module, op, nr).map(|value| vec![value]));
        module.funcs[i] = func;
    }
}

fn product(b: &mut Builder, module: &Module, op: OpId, nr: usize) -> Option<ValueId> {
    let data = b.func.ops[op].clone();
    if data.opcode != Opcode::Matmul || data.flag("trans_a") {
        return None;
    }
    let (x, w) = (data.operands[0], data.operands[1]);
    let transposes = |w: &Weight| w.is_piece() && !data.flag("trans_b") && w.n() * w.k() * 4 <= LARGEST_TRANSPOSE;
    if let Some(weight) = Weight::read(b.func, w).filter(transposes) {
        let packed = weight.pack_transposed(b, module, nr);
        return Some(b.op(Opcode::PackedMatmul, &[x, packed], shape(weight.k(), weight.n(), 1)));
    }
    let (from, to) = (b.func.ty(x).clone(), b.func.ty(data.results[0]).shape.clone());
    if from.rank() == 2 || b.func.ty(w).rank() != 2 {
        return None;
    }
    let rows = b.reshape(x, &[from.rows(), from.last()]);
    let product = b.op(Opcode::Matmul, &[rows, w], data.attrs);
    Some(b.reshape(product, &to))
}
