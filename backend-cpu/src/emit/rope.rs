//! Rotation of heads by position.
use super::vectors::all_pieces;
use super::{Emitter, Ty, Val};
use rdc_ir::program::rows::Rotation;

/// Rotates a head by the row of a rotary table at `table`: `f32[dim / 2, 2]`. `read` gives columns of the head (first
/// column, lanes), `write` takes them.
pub fn rotate(
    e: &mut Emitter,
    rope: &Rotation,
    table: Val,
    read: impl Fn(&mut Emitter, usize, usize) -> Val,
    write: impl Fn(&mut Emitter, usize, Val),
) {
    let table = |e: &mut Emitter, column: usize, lanes: usize| {
        let place = e.offset_const(table, column * 4);
        e.load_raw(place, Ty::f32(lanes))
    };
    if rope.adjacent {
        for (column, lanes) in all_pieces(rope.dim, e.lanes) {
            let x = read(e, column, lanes);
            let t = table(e, column, lanes);
            let minus = e.neg(t);
            let swapped = e.shuffle(x, x, &(0..lanes).map(|i| i ^ 1).collect::<Vec<_>>());
            let cos = e.shuffle(t, t, &(0..lanes).map(|i| i / 2 * 2).collect::<Vec<_>>());
            // (-sin, sin), or (sin, -sin) to turn back.
            let (even, odd) = if rope.back { (t, minus) } else { (minus, t) };
            let sines = (0..lanes).map(|i| if i % 2 == 0 { i + 1 } else { lanes + i }).collect::<Vec<_>>();
            let sin = e.shuffle(even, odd, &sines);
            let product = e.mul(x, cos);
            let value = e.fma(swapped, sin, product);
            write(e, column, value);
        }
        return;
    }
    let half = rope.dim / 2;
    for (column, lanes) in all_pieces(half, e.lanes) {
        let (a, b) = (read(e, column, lanes), read(e, column + half, lanes));
        let (low, high) = (table(e, 2 * column, lanes), table(e, 2 * column + lanes, lanes));
        let cos = e.shuffle(low, high, &(0..lanes).map(|i| 2 * i).collect::<Vec<_>>());
        let sin = e.shuffle(low, high, &(0..lanes).map(|i| 2 * i + 1).collect::<Vec<_>>());
        let minus = e.neg(sin);
        let (into_a, into_b) = if rope.back { (sin, minus) } else { (minus, sin) };
        let (ac, bc) = (e.mul(a, cos), e.mul(b, cos));
        let (first, second) = (e.fma(b, into_a, ac), e.fma(a, into_b, bc));
        write(e, column, first);
        write(e, column + half, second);
    }
}
