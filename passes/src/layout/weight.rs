//! Weights as stacked pieces of parameters: what makes two weights the same, and how the IR computes them.
use crate::options::WeightType;
use rdc_ir::program::Piece;
use rdc_ir::{Attr, Builder, DType, Func, Module, Opcode, Type, ValueId};

/// A matrix `[n, k]` made of pieces below each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight {
    /// The pieces; neighbours that are one piece are one.
    pub pieces: Vec<Piece>,
}

impl Weight {
    /// Rows.
    pub fn n(&self) -> usize {
        self.pieces.iter().map(Piece::height).sum()
    }
    /// Columns.
    pub fn k(&self) -> usize {
        self.pieces.first().map_or(0, |b| b.cols.1 - b.cols.0)
    }
    /// Weights of one width below each other.
    pub fn stack<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> Weight {
        let mut pieces: Vec<Piece> = Vec::new();
        for piece in weights.into_iter().flat_map(|w| &w.pieces) {
            match pieces.last_mut() {
                Some(last) if last.param == piece.param && last.cols == piece.cols && last.rows.1 == piece.rows.0 => {
                    last.rows.1 = piece.rows.1;
                }
                _ => pieces.push(piece.clone()),
            }
        }
        Weight { pieces }
    }
    /// Whether it is one piece of one parameter.
    pub fn is_piece(&self) -> bool {
        self.pieces.len() == 1
    }
    fn rows(&self, start: usize, end: usize) -> Weight {
        Weight { pieces: Piece::rows_between(&self.pieces, start, end) }
    }
    fn cols(&self, start: usize, end: usize) -> Weight {
        Weight { pieces: Piece::columns_between(&self.pieces, start, end) }
    }

    /// Reads a matrix that the IR makes of parameters by slices, concatenations and reshapes which keep rows whole.
    pub fn read(func: &Func, value: ValueId) -> Option<Weight> {
        if func.ty(value).rank() == 2 { read_rows(func, value) } else { None }
    }

    /// Appends the operations that pack its transpose, in f32.
    pub fn pack_transposed(&self, b: &mut Builder, module: &Module, nr: usize) -> ValueId {
        let parts: Vec<ValueId> = self.pieces.iter().map(|p| unpacked(p, b, module, WeightType::F32).w).collect();
        let rows = b.concat(&parts, 0);
        let columns = b.op(Opcode::Transpose, &[rows], vec![Attr::Ints(vec![1, 0])]);
        b.op(Opcode::Pack, &[columns], vec![Attr::Int(nr as i64), Attr::Int(1)])
    }

    /// Appends the operations that pack it. Returns the packed weight and, for i8, the scale of each row.
    pub fn pack(&self, b: &mut Builder, module: &Module, dtype: WeightType, layout: Layout) -> Packed {
        let parts: Vec<Unpacked> = self.pieces.iter().map(|piece| unpacked(piece, b, module, dtype)).collect();
        let w: Vec<ValueId> = parts.iter().map(|p| p.w).collect();
        let scales: Vec<ValueId> = parts.iter().filter_map(|p| p.scale).collect();
        let rows = b.concat(&w, 0);
        let stored = match dtype {
            WeightType::Bf16 => b.op(Opcode::Cast, &[rows], vec![Attr::DType(DType::BF16)]),
            WeightType::F32 | WeightType::I8 => rows,
        };
        let attrs = vec![Attr::Int(layout.nr as i64), Attr::Int(layout.parts as i64)];
        let scale = (!scales.is_empty()).then(|| b.concat(&scales, 0));
        Packed { w: b.op(Opcode::Pack, &[stored], attrs), scale }
    }
}

/// Width of a panel, and the parts that lie side by side in it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Width.
    pub nr: usize,
    /// Parts.
    pub parts: usize,
}

/// A weight in panels.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// The panels.
    pub w: ValueId,
    /// The scales of an i8 weight.
    pub scale: Option<ValueId>,
}

/// A weight in rows, quantised if it has scales.
struct Unpacked {
    w: ValueId,
    scale: Option<ValueId>,
}

/// A piece's rows; in int8, with scales that come from whole rows of the parameter.
fn unpacked(piece: &Piece, b: &mut Builder, module: &Module, dtype: WeightType) -> Unpacked {
    let ty = module.param(&piece.param).map_or_else(|| Type::f32([piece.rows.1, piece.cols.1]), |p| p.ty.clone());
    let (n, k) = (ty.rows(), ty.last());
    let param = b.param(&piece.param, ty.clone());
    let matrix = b.reshape(param, &[n, k]);
    let whole = match dtype {
        WeightType::I8 => quantize(b, matrix),
        WeightType::F32 | WeightType::Bf16 => Unpacked { w: matrix, scale: None },
    };
    let rows = b.slice(whole.w, 0, piece.rows);
    let scale = whole.scale.map(|s| b.slice(s, 0, piece.rows));
    Unpacked { w: b.slice(rows, 1, piece.cols), scale }
}

fn quantize(b: &mut Builder, w: ValueId) -> Unpacked {
    let results = b.results(Opcode::Quantize, &[w], vec![]);
    Unpacked { w: results[0], scale: results.get(1).copied() }
}

/// The rows of a value of any rank, seen as a matrix by its last axis.
fn read_rows(func: &Func, value: ValueId) -> Option<Weight> {
    let op = &func.ops[func.def_op(value)?];
    let ty = func.ty(value);
    if ty.rank() == 0 || ty.dtype != DType::F32 {
        return None;
    }
    // Slices and concatenations of an axis take whole runs of rows only if all axes before it have size 1.
    let outermost = |axis: usize, shape: &[usize]| shape[..axis].iter().all(|&n| n == 1);
    match op.opcode {
        Opcode::Param => {
            let piece = Piece { param: op.text("name").into(), rows: (0, ty.rows()), cols: (0, ty.last()) };
            Some(Weight { pieces: vec![piece] })
        }
        Opcode::Reshape => {
            let x = op.operands[0];
            if func.ty(x).last() == ty.last() { read_rows(func, x) } else { None }
        }
        Opcode::Slice => {
            let (x, axis, start, end) = (op.operands[0], op.size("axis"), op.size("start"), op.size("end"));
            let shape = &func.ty(x).shape;
            let inner = read_rows(func, x)?;
            if axis + 1 == shape.len() {
                return Some(inner.cols(start, end));
            }
            let unit: usize = shape[axis + 1..shape.len() - 1].iter().product();
            outermost(axis, shape).then(|| inner.rows(start * unit, end * unit))
        }
        Opcode::Concat => {
            let axis = op.size("axis");
            if axis + 1 == ty.rank() || !outermost(axis, &ty.shape) {
                return None;
            }
            let parts: Option<Vec<Weight>> = op.operands.iter().map(|&v| read_rows(func, v)).collect();
            parts.map(|parts| Weight::stack(&parts))
        }
        _ => None,
    }
}
