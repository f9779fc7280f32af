//! Checks that the recipes of weights make what their types say, so that making them takes no more memory and time than the
//! types say.
use super::bytes;
use crate::artifact::Meta;
use rdc_ir::infer::packed_type;
use rdc_ir::program::{Piece, Weight, WeightSource};
use rdc_ir::{DType, Type};
use std::collections::HashMap;

/// Bytes of a table: it is made in one piece.
const MAX_TABLE: usize = 4 << 30;
/// Elements of a panel of a packed weight, and of a parameter's row: the least that is made at a time.
const MAX_PANEL: usize = 1 << 28;

/// Checks that a weight's recipe makes its type.
pub(crate) fn weight(weight: &Weight) -> Result<(), String> {
    let ty = &weight.ty;
    let size = bytes(ty).ok_or("it is too large")?;
    let is_table = |shape: &[usize], dim: usize| {
        dim > 0 && dim.is_multiple_of(2) && ty.shape == shape && is_plain(ty, DType::F32) && size <= MAX_TABLE
    };
    let fits = match &weight.source {
        WeightSource::Param { .. } | WeightSource::State { .. } => is_plain(ty, DType::F32),
        WeightSource::Packed { pieces, n, k, nr, parts } => {
            rows_of(pieces) == Some(*n)
                && pieces.iter().all(|p| p.cols.1.checked_sub(p.cols.0) == Some(*k))
                && is_packed(ty, *n, *k, *nr, *parts)
        }
        WeightSource::Scales { pieces } => {
            is_plain(ty, DType::F32) && rows_of(pieces).is_some_and(|rows| ty.shape == [rows])
        }
        WeightSource::RopeTable { len, dim, .. } => is_table(&[*len, *dim / 2, 2], *dim),
        WeightSource::SinusoidTable { len, dim, .. } => is_table(&[*len, *dim], *dim),
    };
    if fits { Ok(()) } else { Err(format!("its recipe does not make {ty}")) }
}

/// Checks that the parameters have the parts that weights are made of. One that is absent is found when it is read.
pub(super) fn params(meta: &Meta) -> Result<(), String> {
    for param in &meta.params {
        if bytes(&param.ty).is_none() || param.ty.last() > MAX_PANEL {
            return Err(format!("parameter {} is too large", param.name));
        }
    }
    let types: HashMap<&str, &Type> = meta.params.iter().map(|p| (p.name.as_str(), &p.ty)).collect();
    let inside = |piece: &Piece| {
        types.get(piece.param.as_str()).is_none_or(|ty| piece.rows.1 <= ty.rows() && piece.cols.1 <= ty.last())
    };
    for weight in &meta.program.weights {
        let fits = match &weight.source {
            WeightSource::Param { name, .. } | WeightSource::State { name } => {
                types.get(name.as_str()).is_none_or(|ty| ty.elements() == weight.ty.elements())
            }
            WeightSource::Packed { pieces, .. } | WeightSource::Scales { pieces } => pieces.iter().all(inside),
            WeightSource::RopeTable { .. } | WeightSource::SinusoidTable { .. } => true,
        };
        if !fits {
            return Err(format!("weight {} takes more than its parameters have", weight.name));
        }
    }
    Ok(())
}

fn is_plain(ty: &Type, dtype: DType) -> bool {
    ty.dtype == dtype && !ty.cache
}

fn rows_of(pieces: &[Piece]) -> Option<usize> {
    pieces.iter().try_fold(0usize, |rows, p| rows.checked_add(p.rows.1.checked_sub(p.rows.0)?))
}

/// Whether a type is what `pack {nr, parts}` makes of `[n, k]`.
fn is_packed(ty: &Type, n: usize, k: usize, nr: usize, parts: usize) -> bool {
    let splits = |a: usize, b: usize| b > 0 && a.is_multiple_of(b);
    let parts_fit = parts == 1 || (splits(n, parts) && splits(nr, parts) && splits(n / parts, nr / parts));
    let is_stored = matches!(ty.dtype, DType::F32 | DType::BF16 | DType::I8);
    let panel_fits = n > 0 && k > 0 && nr > 0 && nr.checked_mul(k).is_some_and(|panel| panel <= MAX_PANEL);
    is_stored && parts_fit && panel_fits && *ty == packed_type(ty.dtype, n, k, nr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ty: Type, source: WeightSource) -> Result<(), String> {
        weight(&Weight { name: "w".into(), ty, source })
    }

    #[test]
    fn recipes_that_do_not_make_their_types() {
        let rope = |len, dim| WeightSource::RopeTable { len, dim, base: 1e4 };
        assert_eq!(check(Type::f32([9, 4, 2]), rope(9, 8)), Ok(()));
        for (len, dim) in [(1 << 61, 8), (8, 8), (9, 9), (9, 0)] {
            assert!(check(Type::f32([9, 4, 2]), rope(len, dim)).is_err(), "{len} {dim}");
        }
        assert!(check(Type::f32([1 << 61, 4, 2]), rope(1 << 61, 8)).is_err());
        assert!(check(Type::f32([1 << 40, 4, 2]), rope(1 << 40, 8)).is_err());
        let sinusoid = |len, dim| WeightSource::SinusoidTable { len, dim, base: 1e4 };
        assert_eq!(check(Type::f32([9, 8]), sinusoid(9, 8)), Ok(()));
        assert!(check(Type::f32([9, 7]), sinusoid(9, 7)).is_err());
        assert!(check(Type::f32([9, 8]), sinusoid(1 << 61, 8)).is_err());

        let piece = |rows, cols| Piece { param: "a".into(), rows, cols };
        let scales = |rows| WeightSource::Scales { pieces: vec![piece((0, 3), (0, 5)), piece(rows, (0, 5))] };
        assert_eq!(check(Type::f32([5]), scales((1, 3))), Ok(()));
        for rows in [(1, 4), (3, 1), (0, usize::MAX)] {
            assert!(check(Type::f32([5]), scales(rows)).is_err());
        }
        let packed = |n, k, nr, parts, rows, cols| {
            let source = WeightSource::Packed { pieces: vec![piece(rows, cols)], n, k, nr, parts };
            check(packed_type(DType::I8, 32, 5, 16), source)
        };
        assert_eq!(packed(32, 5, 16, 2, (4, 36), (1, 6)), Ok(()));
        for (n, k, nr, parts, rows, cols) in [
            (32, 5, 0, 1, (0, 32), (0, 5)),
            (32, 5, 16, 0, (0, 32), (0, 5)),
            (32, 5, 16, 3, (0, 32), (0, 5)),
            (32, 5, 8, 1, (0, 32), (0, 5)),
            (32, 9, 16, 1, (0, 32), (0, 9)),
            (32, 5, 16, 1, (0, 31), (0, 5)),
            (32, 5, 16, 1, (0, 32), (0, 4)),
            (32, 5, 16, 1, (0, 32), (5, 0)),
            (0, 5, 16, 1, (0, 0), (0, 5)),
            (32, 0, 16, 1, (0, 32), (0, 0)),
            (32, 1 << 61, 16, 1, (0, 32), (0, 1 << 61)),
        ] {
            assert!(packed(n, k, nr, parts, rows, cols).is_err(), "{n} {k} {nr} {parts} {rows:?} {cols:?}");
        }
    }
}
