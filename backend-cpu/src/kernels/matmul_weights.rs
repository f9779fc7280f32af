//! Weight panels of narrow element types in registers.
use crate::emit::{Elem, Emitter, Ty, Val};
use rdc_ir::DType;

/// `lanes` columns of two successive inner rows of a bf16 panel, whose pairs (k, k + 1) share a 32-bit lane.
pub fn bf16_pair(e: &mut Emitter, from: Val, lanes: usize) -> (Val, Val) {
    let pair = e.load_raw(from, Ty::new(Elem::I32, lanes));
    let low = e.shl(pair, 16);
    let mask = e.int(-65536, pair.ty);
    let high = e.and(pair, mask);
    (e.bitcast(low, Elem::F32), e.bitcast(high, Elem::F32))
}

/// Widens `length` inner rows of an `nr`-column bf16 or int8 panel to f32 rows at `to`. A bf16 piece starts at an even
/// row; the row after an odd `length` is written too.
pub fn widen(e: &mut Emitter, dtype: DType, nr: usize, from: Val, length: Val, to: Val) {
    let lanes = e.lanes;
    let zero = e.i64(0);
    let step = if dtype == DType::BF16 { 2 } else { 1 };
    e.for_range(zero, length, step, &[], |e, k, _| {
        let (from, to) = (e.at(from, k, nr * dtype.bytes()), e.at(to, k, nr * 4));
        for column in (0..nr).step_by(lanes) {
            let to = e.offset_const(to, column * 4);
            if dtype == DType::BF16 {
                let from = e.offset_const(from, column * 4);
                let (even, odd) = bf16_pair(e, from, lanes);
                e.store_raw(to, even);
                let to = e.offset_const(to, nr * 4);
                e.store_raw(to, odd);
            } else {
                let from = e.offset_const(from, column * dtype.bytes());
                let values = e.load(from, dtype, lanes);
                e.store_raw(to, values);
            }
        }
        vec![]
    });
}
