//! Matrix products.
use super::super::cotangent::{Range, covers, parts};
use super::Reverse;
use rdc_ir::{Attr, Op, Opcode, ValueId};

/// y = A B, A and B being a and b or their transposes: A gets dy Bᵀ, B gets Aᵀ dy.
pub(super) fn matmul(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId) {
    columns(cx, op, dy, None);
}

/// If all that is known about the cotangent of a product's result is the cotangents of at most two ranges of its columns that
/// leave some out, differentiates the product as that many products, of as many parts of b. Says whether it did.
pub(in super::super) fn in_parts(cx: &mut Reverse<'_, '_>, op: &Op) -> bool {
    let is_plain = op.opcode == Opcode::Matmul && cx.old_ty(op.operands[1]).rank() == 2;
    if !is_plain {
        return false;
    }
    let result = op.results[0];
    let ty = cx.old_ty(result).clone();
    let last = ty.rank() - 1;
    let terms = cx.take(result);
    let some =
        |p: &Vec<(Range, ValueId)>| p.len() <= 2 && p.iter().all(|(range, _)| range.axis == last) && !covers(p, &ty);
    match parts(cx, &terms).filter(some) {
        Some(parts) => {
            for (range, dy) in parts {
                columns(cx, op, dy, Some((range.start, range.end)));
            }
            true
        }
        None => {
            let level = cx.innermost();
            cx.levels[level].terms.insert(result, terms);
            false
        }
    }
}

/// The rule for a range of the result's columns, or for all.
fn columns(cx: &mut Reverse<'_, '_>, op: &Op, dy: ValueId, range: Option<(usize, usize)>) {
    let (a, b) = (op.operands[0], op.operands[1]);
    let (ta, tb) = (op.flag("trans_a"), op.flag("trans_b"));
    let (a_ty, b_ty) = (cx.old_ty(a), cx.old_ty(b));
    let product =
        |cx: &mut Reverse<'_, '_>, x, y, tx, ty| cx.op(Opcode::Matmul, &[x, y], vec![Attr::Bool(tx), Attr::Bool(ty)]);
    // The axis of b that makes the result's columns.
    let axis = b_ty.rank() - if tb { 2 } else { 1 };
    let range = range.map(|(start, end)| Range { axis, start, end });
    if cx.wants(a) {
        let whole = cx.primal(b);
        let b = range.map_or(whole, |range| cx.op(Opcode::Slice, &[whole], range.attrs()));
        let da = if ta { product(cx, b, dy, tb, true) } else { product(cx, dy, b, false, !tb) };
        cx.give(a, da);
    }
    if !cx.wants(b) {
        return;
    }
    let x = cx.primal(a);
    if b_ty.rank() == 2 && !ta {
        // All leading axes of a are rows.
        let (dy_columns, x_columns) = (cx.new.ty(dy).last(), a_ty.last());
        let dy = cx.reshape(dy, &[a_ty.rows(), dy_columns]);
        let x = cx.reshape(x, &[a_ty.rows(), x_columns]);
        let (left, right) = if tb { (dy, x) } else { (x, dy) };
        cx.give_product(b, range, left, right);
        return;
    }
    let db = if tb { product(cx, dy, x, true, ta) } else { product(cx, x, dy, !ta, false) };
    match range {
        Some(range) => cx.give_part(b, range, db),
        None => cx.give(b, db),
    }
}
