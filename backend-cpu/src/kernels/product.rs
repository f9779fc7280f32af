//! Products of two row-major operands, either transposed: bound by arithmetic.
//!
//! A task is a block of rows times a block of columns. For each block of `kc` of the inner size it copies its piece of
//! the left operand to scratch, `mr` rows interleaved, where it stays in the second-level cache. Then, panel by panel of
//! `nr` columns, it copies a piece of the right operand, which stays in the first-level cache while the micro-kernel
//! of the matmuls ([`Micro`]) goes through the left one. The sums of the whole block stay in scratch until the last inner
//! block is done; then the epilogue runs over them row by row, and reads an element of an argument before it writes that
//! of a result.
//!
//! Blocks at the edge are computed as whole tiles. The order of additions to an element depends on `kc` only.
use super::heads::{all_pieces, pointer};
use super::matmul::{bounded, remainders};
use super::micro::Micro;
use super::panels::Strip;
use crate::emit::{Cmp, Emitter, Epilogue, Error, Ty, Val};
use rdc_ir::program::{Kernel, KernelKind, Target};
use rdc_ir::{Opcode, ValueId};

/// Cache lines of the next panel that are asked for per micro-kernel, at most.
const LINES_AHEAD: usize = 32;

/// An operand in memory.
struct Operand {
    pointer: usize,
    /// Bytes of a row.
    stride: usize,
    /// Whether the inner index runs along rows, so that panels are transposed copies.
    inner_last: bool,
}

/// A kernel taken apart. Sizes are in elements.
struct Form<'k> {
    m: usize,
    n: usize,
    k: usize,
    rows_per_task: usize,
    columns_per_task: usize,
    kc: usize,
    mr: usize,
    nr: usize,
    left: Operand,
    right: Operand,
    pointers: usize,
    epilogue: Epilogue<'k>,
}

impl<'k> Form<'k> {
    fn new(target: &Target, kernel: &'k Kernel) -> Result<Form<'k>, Error> {
        let fail = |what: &str| Err(Error::unsupported(&kernel.name, what));
        let KernelKind::Product { m, n, k, rows_per_task, columns_per_task, kc } = kernel.kind else {
            return fail("a kernel of another kind than product");
        };
        if [m, n, k, rows_per_task, columns_per_task, kc].contains(&0) {
            return fail("an empty tile");
        }
        let func = &kernel.func;
        let body = &func.regions[func.body];
        let mut anchors = body.ops.iter().filter(|&&op| func.ops[op].opcode == Opcode::Matmul);
        let (Some(&anchor), None) = (anchors.next(), anchors.next()) else {
            return fail("a product kernel without exactly one matmul");
        };
        let op = &func.ops[anchor];
        let operand = |value: ValueId, inner_last: bool, outer: usize| {
            let (pointer, shape) = (pointer(func, value)?, &func.ty(value).shape);
            let wanted = if inner_last { [outer, k] } else { [k, outer] };
            (*shape == wanted).then_some(Operand { pointer, stride: shape[1] * 4, inner_last })
        };
        let left = operand(op.operands[0], !op.flag("trans_a"), m);
        let right = operand(op.operands[1], op.flag("trans_b"), n);
        let (Some(left), Some(right)) = (left, right) else {
            return fail("operands that are not arguments of the sizes its kind says");
        };
        let first = func.args.len();
        let results: Vec<(ValueId, usize)> = body.yields.iter().enumerate().map(|(i, &v)| (v, first + i)).collect();
        let epilogue = Epilogue::new(&kernel.name, func, m, anchor, &results)?;
        Ok(Form {
            m,
            n,
            k,
            rows_per_task: rows_per_task.min(m),
            columns_per_task: columns_per_task.min(n),
            kc: kc.min(k),
            mr: target.mr,
            nr: target.nr,
            left,
            right,
            pointers: first + results.len(),
            epilogue,
        })
    }

    /// Tiles of a task's rows, and panels of its columns.
    fn tiles(&self) -> (usize, usize) {
        (self.rows_per_task.div_ceil(self.mr), self.columns_per_task.div_ceil(self.nr))
    }
    /// Bytes of `mr` interleaved rows: an odd number of cache lines, so that they do not fall on each other in the cache.
    fn left_bytes(&self) -> usize {
        ((self.kc * self.mr * 4).div_ceil(64) | 1) * 64
    }
    /// Bytes of the sums of one panel.
    fn sums_bytes(&self) -> usize {
        (self.tiles().0 * self.mr * self.nr * 4).next_multiple_of(64)
    }
    /// Byte offsets into scratch of the right panel (at 0 is the left block), of the sums, and their end.
    fn scratch(&self) -> (usize, usize, usize) {
        let (tiles, panels) = self.tiles();
        let right = tiles * self.left_bytes();
        let sums = right + (self.kc * self.nr * 4).next_multiple_of(64);
        (right, sums, sums + panels * self.sums_bytes())
    }
}

/// Bytes of scratch.
pub fn scratch(kernel: &Kernel, target: &Target) -> Result<usize, Error> {
    Ok(Form::new(target, kernel)?.scratch().2)
}

/// The kernel's module.
pub fn emit(target: &Target, kernel: &Kernel) -> Result<String, Error> {
    let form = Form::new(target, kernel)?;
    let mut e = Emitter::new(&kernel.name, form.pointers, target.lanes);
    let column_blocks = form.n.div_ceil(form.columns_per_task);
    e.tasks(|e, task| {
        let (row_block, column_block) = e.div_rem(task, column_blocks);
        let row = e.mul_const(row_block, form.rows_per_task);
        let column = e.mul_const(column_block, form.columns_per_task);
        let rows = bounded(e, row, form.rows_per_task, form.m);
        let columns = bounded(e, column, form.columns_per_task, form.n);
        let block = Block { form: &form, row, column, rows, columns };
        e.repeat(form.k.div_ceil(form.kc), |e, inner| block.multiply(e, inner));
        block.finish(e);
    });
    Ok(e.finish())
}

/// The block of a task.
struct Block<'f> {
    form: &'f Form<'f>,
    row: Val,
    column: Val,
    rows: Val,
    columns: Val,
}

impl Block<'_> {
    /// Adds the share of an inner block to the sums.
    fn multiply(&self, e: &mut Emitter, inner: Val) {
        let form = self.form;
        let (right_at, sums_at, _) = form.scratch();
        let start = e.mul_const(inner, form.kc);
        let length = bounded(e, start, form.kc, form.k);
        let zero = e.i64(0);
        let first = e.cmp(Cmp::Eq, inner, zero);
        self.left(e, start, length);
        let (tiles, panels) = (ceil_div(e, self.rows, form.mr), ceil_div(e, self.columns, form.nr));
        let (right, sums) = (e.offset_const(e.scratch, right_at), e.offset_const(e.scratch, sums_at));
        let even = Micro::is_even(form.k, form.kc);
        let micro = Micro { rows: form.mr, nr: form.nr, row_stride: 4, step: form.mr * 4, even };
        e.each(zero, panels, |e, panel| {
            self.right(e, panel, (start, length), right);
            let sums = e.at(sums, panel, form.sums_bytes());
            e.each(zero, tiles, |e, tile| {
                let left = e.at(e.scratch, tile, form.left_bytes());
                let sums = e.at(sums, tile, form.mr * form.nr * 4);
                self.prefetch(e, panel, tile, start);
                micro.emit(e, left, right, length, sums, (form.k > form.kc).then_some(first));
            });
        });
    }

    /// The address of element (outer, inner) of an operand.
    fn element(e: &mut Emitter, operand: &Operand, outer: Val, inner: Val) -> Val {
        let (row, column) = if operand.inner_last { (outer, inner) } else { (inner, outer) };
        let row = e.at(e.arg(operand.pointer), row, operand.stride);
        e.at(row, column, 4)
    }

    /// The left operand's piece, `mr` rows interleaved at a time.
    fn left(&self, e: &mut Emitter, start: Val, length: Val) {
        let form = self.form;
        let from = Self::element(e, &form.left, self.row, start);
        let (whole, rest) = e.div_rem(self.rows, form.mr);
        let zero = e.i64(0);
        let Operand { stride, inner_last: transpose, .. } = form.left;
        if transpose {
            e.each(zero, whole, |e, tile| {
                let (from, to) = (e.at(from, tile, form.mr * stride), e.at(e.scratch, tile, form.left_bytes()));
                Strip { from, stride, transpose, columns: form.mr }.copy(e, length, to, form.mr);
            });
        } else {
            // Row by row of memory, so that every cache line is read once.
            e.each(zero, length, |e, k| {
                let (from, to) = (e.at(from, k, stride), e.at(e.scratch, k, form.mr * 4));
                e.each(zero, whole, |e, tile| {
                    let (from, to) = (e.at(from, tile, form.mr * 4), e.at(to, tile, form.left_bytes()));
                    super::panels::copy_floats(e, from, to, form.mr);
                });
            });
        }
        for columns in remainders(form.m, form.rows_per_task, form.mr) {
            let wanted = e.i64(columns);
            let here = e.cmp(Cmp::Eq, rest, wanted);
            e.when(here, |e| {
                let step = if transpose { form.mr * stride } else { form.mr * 4 };
                let (from, to) = (e.at(from, whole, step), e.at(e.scratch, whole, form.left_bytes()));
                Strip { from, stride, transpose, columns }.copy(e, length, to, form.mr);
            });
        }
    }

    /// A panel of the right operand.
    fn right(&self, e: &mut Emitter, panel: Val, (start, length): (Val, Val), to: Val) {
        let form = self.form;
        let offset = e.mul_const(panel, form.nr);
        let outer = e.add(self.column, offset);
        let from = Self::element(e, &form.right, outer, start);
        let Operand { stride, inner_last: transpose, .. } = form.right;
        let left_over = e.sub(self.columns, offset);
        self.widths(e, left_over, |e, columns| {
            Strip { from, stride, transpose, columns }.copy(e, length, to, form.nr);
        });
    }

    /// Runs `body` with the columns of the panel that has `left_over` (`i64`) columns of the task from its first on.
    fn widths(&self, e: &mut Emitter, left_over: Val, body: impl Fn(&mut Emitter, usize)) {
        let form = self.form;
        let ragged = remainders(form.n, form.columns_per_task, form.nr);
        if form.columns_per_task >= form.nr {
            if ragged.is_empty() {
                return body(e, form.nr);
            }
            let whole = e.i64(form.nr);
            let whole = e.cmp(Cmp::Ge, left_over, whole);
            e.when(whole, |e| body(e, form.nr));
        }
        for columns in ragged {
            let wanted = e.i64(columns);
            let here = e.cmp(Cmp::Eq, left_over, wanted);
            e.when(here, |e| body(e, columns));
        }
    }

    /// Asks for a share of the next panel of the right operand: what lies behind the columns of this one.
    fn prefetch(&self, e: &mut Emitter, panel: Val, tile: Val, start: Val) {
        let form = self.form;
        if form.right.inner_last {
            return;
        }
        let share = form.kc.div_ceil(form.tiles().0).min(LINES_AHEAD);
        let next = e.add_const(panel, 1);
        let offset = e.mul_const(next, form.nr);
        let outer = e.add(self.column, offset);
        let from = Self::element(e, &form.right, outer, start);
        let from = e.at(from, tile, share * form.right.stride);
        for line in 0..share {
            let line = e.offset_const(from, line * form.right.stride);
            e.prefetch(line, 2);
        }
    }

    /// The epilogue over all sums.
    fn finish(&self, e: &mut Emitter) {
        let form = self.form;
        let zero = e.i64(0);
        let panels = ceil_div(e, self.columns, form.nr);
        let sums = e.offset_const(e.scratch, form.scratch().1);
        e.each(zero, self.rows, |e, i| {
            let row = e.add(self.row, i);
            let sums = e.at(sums, i, form.nr * 4);
            e.each(zero, panels, |e, panel| {
                let sums = e.at(sums, panel, form.sums_bytes());
                let offset = e.mul_const(panel, form.nr);
                let column = e.add(self.column, offset);
                let left_over = e.sub(self.columns, offset);
                self.widths(e, left_over, |e, columns| {
                    for (start, lanes) in all_pieces(columns, e.lanes) {
                        let from = e.offset_const(sums, start * 4);
                        let sum = e.load_raw(from, Ty::f32(lanes));
                        let column = e.add_const(column, start);
                        form.epilogue.emit(e, row, column, &[sum]);
                    }
                });
            });
        });
    }
}

/// `ceil(a / b)`.
fn ceil_div(e: &mut Emitter, a: Val, b: usize) -> Val {
    let a = e.add_const(a, b - 1);
    e.div_rem(a, b).0
}
