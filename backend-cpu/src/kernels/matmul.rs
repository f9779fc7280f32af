//! Matmuls of many rows: bound by arithmetic.
//!
//! A task is a block of rows times a range of panels, taken a few panels at a time. For each block of `kc` of the inner
//! size (whose piece of the left operand stays in the second-level cache), for each panel, the micro-kernel multiplies `mr`
//! rows at a time with a `kc × nr` piece of the panel, which stays in the first-level cache; `mr × nr` sums stay in
//! registers and, between inner blocks, in a tile of scratch. After the last block the epilogue runs on each tile while its sums
//! are in the first-level cache; what it reads and writes, and the piece of the weight that comes next, the micro-kernel asks
//! memory for. Where the inner size is short, it asks for the next row block, row after row: the lines of a register tile come no
//! faster than a core can wait for them one by one, those of whole rows the machine brings by itself. If row operations follow instead
//! (the row epilogue), tiles are copied into complete rows in scratch, and they run when the task's rows are complete. bf16 and int8
//! pieces are widened to f32 once per task, into scratch, so there is one micro-kernel.
//!
//! The order of additions to an element depends on `kc` only, not on how rows and panels are cut into tasks.
use super::matmul_form::Form;
use super::matmul_rowops::{Finish, Prologue, RowEpilogue, Rows, RowsAhead};
use super::matmul_weights::widen;
use super::micro::{Ahead, Micro, Share};
use super::panels::{copy_floats, widths};
use crate::emit::{Cmp, Emitter, Error, Val};
use rdc_ir::DType;
use rdc_ir::program::Kernel;
use rdc_ir::program::body::Matmul;
use rdc_passes::tile::Cpu;

/// Cache lines of the next piece that are asked for per micro-kernel, at most.
const LINES_AHEAD: usize = 32;

/// Scratch of a thread, in bytes from its start.
struct Scratch {
    /// `f32[kc, nr]`: a widened piece of a panel; at 0 are `f32[rows_per_task, nr]` sums for each panel of a group.
    piece: usize,
    /// `f32[rows_per_task, stride]`: the left operand, if it is computed.
    left: usize,
    /// `f32[rows_per_task, stride]`: complete rows of the product, if row operations follow.
    complete: usize,
    /// Intermediate rows of the row operations before or after.
    rows: usize,
    /// Bytes in all.
    bytes: usize,
}

fn layout(form: &Form, prologue: &Prologue, after: Option<&RowEpilogue>) -> Scratch {
    let piece = form.group * tile_bytes(form);
    let widened = if form.dtype == DType::F32 { 0 } else { form.kc * form.nr * 4 };
    let left = piece + widened.next_multiple_of(64);
    let computed = if form.x_in_place().is_some() { 0 } else { form.rows_per_task * form.left_stride() };
    let complete = left + computed;
    let rows = complete + after.map_or(0, |_| form.rows_per_task * form.row_stride());
    let bytes = rows + prologue.scratch().max(after.map_or(0, RowEpilogue::scratch));
    Scratch { piece, left, complete, rows, bytes }
}

/// Bytes of the sums of one panel.
fn tile_bytes(form: &Form) -> usize {
    (form.rows_per_task * form.nr * 4).next_multiple_of(64)
}

/// Bytes of scratch.
pub fn scratch(kernel: &Kernel, body: &Matmul, cpu: &Cpu) -> Result<usize, Error> {
    let form = Form::new(kernel, body, cpu.lanes)?;
    Ok(layout(&form, &Prologue::new(&form)?, RowEpilogue::new(&form)?.as_ref()).bytes)
}

/// The kernel's module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Matmul) -> Result<String, Error> {
    let form = Form::new(kernel, body, cpu.lanes)?;
    let prologue = Prologue::new(&form)?;
    let finish = Finish::new(&form);
    let after = RowEpilogue::new(&form)?;
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    let scratch = layout(&form, &prologue, after.as_ref());
    let rows_at = scratch.rows;
    let ahead = rows_ahead(&form, &finish, after.as_ref());
    let gemm = Gemm { form: &form, mr: cpu.mr, finish: &finish, after: after.as_ref(), ahead, scratch };
    e.tasks(|e, task| {
        let (row_block, column_block) = e.div_rem(task, form.column_blocks);
        let first = e.mul_const(row_block, form.rows_per_task);
        let count = bounded(e, first, form.rows_per_task, form.m);
        let (left, stride) = match form.x_in_place() {
            Some((x, stride)) => (e.at(e.arg(x), first, stride), stride),
            None => (e.offset_const(e.scratch, gemm.scratch.left), form.left_stride()),
        };
        let rows = Rows { first, count, left, stride };
        let zero = e.i64(0);
        let store = e.cmp(Cmp::Eq, column_block, zero);
        // The task before, if it belongs to this call and row block, has left its rows in scratch.
        let fresh = e.cmp(Cmp::Eq, task, e.begin);
        let due = e.or(fresh, store);
        e.when(due, |e| {
            let scratch = e.offset_const(e.scratch, rows_at);
            prologue.emit(e, rows, store, scratch);
        });
        let panel = e.mul_const(column_block, form.panels_per_task);
        let panels = bounded(e, panel, form.panels_per_task, form.panels);
        let end = e.add(panel, panels);
        e.for_range(panel, end, form.group, &[], |e, panel, _| {
            let rest = e.sub(end, panel);
            let most = e.i64(form.group);
            let count = if form.group == 1 { most } else { e.min(most, rest) };
            gemm.group(e, rows, panel, count);
            vec![]
        });
        if let Some(after) = &after {
            let [complete, scratch] = [gemm.scratch.complete, rows_at].map(|offset| e.offset_const(e.scratch, offset));
            after.emit(e, (first, rows.count), (complete, form.row_stride()), scratch);
        }
    });
    Ok(e.finish())
}

/// The rows that are asked for ahead as a whole: of the task those that a row epilogue writes, or of the next one what it needs around
/// its product, if the tiling allows as much.
fn rows_ahead(form: &Form, finish: &Finish, after: Option<&RowEpilogue>) -> Option<(Whose, RowsAhead)> {
    if let Some(after) = after {
        return Some((Whose::Own, after.written()));
    }
    let rows = finish.around();
    (form.prefetch > 0 && rows.bytes() <= form.prefetch).then_some((Whose::Next, rows))
}

/// `ceil(a / b)`.
pub fn ceil_div(e: &mut Emitter, a: Val, b: usize) -> Val {
    let a = e.add_const(a, b - 1);
    e.div_rem(a, b).0
}

/// `min(step, size - start)`, as a constant if `step` divides `size`.
pub fn bounded(e: &mut Emitter, start: Val, step: usize, size: usize) -> Val {
    let whole = e.i64(step);
    if size.is_multiple_of(step) {
        return whole;
    }
    let size = e.i64(size);
    let rest = e.sub(size, start);
    e.min(whole, rest)
}

/// A piece of a panel, of one inner block.
#[derive(Clone, Copy)]
struct Piece {
    panel: Val,
    /// Which inner block.
    block: Val,
    /// Its elements as `f32[length, nr]`.
    right: Val,
    length: Val,
    /// `f32[rows_per_task, nr]`: the sums of the panel.
    sums: Val,
    /// Whether (`i1`) the inner block is the first, the last.
    begins: Val,
    ends: Val,
    /// The piece of the weight that comes after this one.
    next: Val,
}

/// Which task rows belong to.
#[derive(Clone, Copy)]
enum Whose {
    Own,
    Next,
}

struct Gemm<'k> {
    form: &'k Form<'k>,
    mr: usize,
    finish: &'k Finish<'k>,
    after: Option<&'k RowEpilogue<'k>>,
    ahead: Option<(Whose, RowsAhead)>,
    scratch: Scratch,
}

impl Gemm<'_> {
    /// A group of `count` panels: all inner blocks, the epilogue in the last.
    fn group(&self, e: &mut Emitter, rows: Rows, first: Val, count: Val) {
        let form = self.form;
        let (zero, last) = (e.i64(0), e.i64(form.k.div_ceil(form.kc) - 1));
        e.repeat(form.k.div_ceil(form.kc), |e, block| {
            let start = e.mul_const(block, form.kc);
            let length = bounded(e, start, form.kc, form.k);
            let left = e.at(rows.left, start, 4);
            let (begins, ends) = (e.cmp(Cmp::Eq, block, zero), e.cmp(Cmp::Eq, block, last));
            e.each(zero, count, |e, i| {
                let panel = e.add(first, i);
                let weight = form.panel(e, panel);
                let weight = e.at(weight, start, form.nr * form.dtype.bytes());
                let right = self.piece(e, weight, length);
                let sums = e.at(e.scratch, i, tile_bytes(form));
                let next = e.offset_const(weight, form.panel_bytes());
                self.rows(e, Rows { left, ..rows }, Piece { panel, block, right, length, sums, begins, ends, next });
            });
        });
    }

    /// A piece of a panel as f32.
    fn piece(&self, e: &mut Emitter, weight: Val, length: Val) -> Val {
        let form = self.form;
        if form.dtype == DType::F32 {
            return weight;
        }
        let piece = e.offset_const(e.scratch, self.scratch.piece);
        widen(e, form.dtype, form.nr, weight, length, piece);
        piece
    }

    /// The micro-kernel over all rows of the task and, in the last inner block, the epilogue of each tile while its sums are in
    /// the first-level cache.
    fn rows(&self, e: &mut Emitter, rows: Rows, piece: Piece) {
        let form = self.form;
        let zero = e.i64(0);
        let tiles = ceil_div(e, rows.count, self.mr);
        e.each(zero, tiles, |e, tile| {
            let from = e.mul_const(tile, self.mr);
            let (rest, most) = (e.sub(rows.count, from), e.i64(self.mr));
            let count = e.min(rest, most);
            let first = e.add(rows.first, from);
            let left = e.at(rows.left, from, rows.stride);
            let sums = e.at(piece.sums, from, form.nr * 4);
            let lines = |e: &mut Emitter, (round, part): Share| {
                let row = e.add(first, round);
                self.prefetch_weight(e, piece.next, tile, (round, part));
                self.prefetch_rows(e, rows, (piece, tile), (round, part));
                if self.ahead.is_none() {
                    self.finish.prefetch(e, row, piece.panel, part, (piece.ends, sums));
                }
            };
            let ahead = Ahead::over(self.mr, (form.k, form.kc), &lines);
            let micro = |e: &mut Emitter, count: usize| {
                let even = Micro::is_even(form.k, form.kc);
                let micro = Micro { rows: count, nr: form.nr, row_stride: rows.stride, step: 4, even };
                let begins = (form.k > form.kc).then_some(piece.begins);
                micro.emit(
                    e,
                    (left, piece.right),
                    piece.length,
                    (sums, begins),
                    ahead.as_ref().filter(|_| count == self.mr),
                );
            };
            widths(e, rest, (form.m, form.rows_per_task, self.mr), micro);
            e.when(piece.ends, |e| {
                e.each(zero, count, |e, i| {
                    let sums = e.at(sums, i, form.nr * 4);
                    if self.after.is_some() {
                        let row = e.add(from, i);
                        self.keep(e, row, piece.panel, sums);
                    } else {
                        let row = e.add(first, i);
                        self.finish.row(e, row, piece.panel, sums);
                    }
                });
            });
        });
    }

    /// Copies a panel's sums of a row of the task to where its rows are completed.
    fn keep(&self, e: &mut Emitter, row: Val, panel: Val, sums: Val) {
        let form = self.form;
        let complete = e.offset_const(e.scratch, self.scratch.complete);
        let to = e.at(complete, row, form.row_stride());
        let to = e.at(to, panel, form.nr * 4);
        copy_floats(e, sums, to, form.nr);
    }

    /// Asks for a part of what a round of a tile brings of whole rows: the task's micro-kernels share them out.
    fn prefetch_rows(&self, e: &mut Emitter, rows: Rows, (piece, tile): (Piece, Val), (round, part): Share) {
        let (form, Some((whose, ahead))) = (self.form, &self.ahead) else { return };
        let first = match whose {
            Whose::Own => rows.first,
            Whose::Next => e.add_const(rows.first, form.rows_per_task),
        };
        let (tiles, blocks) = (form.rows_per_task.div_ceil(self.mr), form.k.div_ceil(form.kc));
        let mut index = piece.panel;
        for (size, next) in [(blocks, piece.block), (tiles, tile), (self.mr, round)] {
            index = e.mul_const(index, size);
            index = e.add(index, next);
        }
        ahead.emit(e, first, (index, form.panels * blocks * tiles * self.mr), part);
    }

    /// Asks for a part of what a round of a tile brings of the piece of the weight that is used next: it streams in while the one
    /// before it is in use.
    fn prefetch_weight(&self, e: &mut Emitter, next: Val, tile: Val, (round, (part, parts)): Share) {
        let form = self.form;
        let lines = (form.kc * form.nr * form.dtype.bytes()).div_ceil(64);
        let share = lines.div_ceil((form.rows_per_task / self.mr).max(1)).min(LINES_AHEAD).div_ceil(self.mr);
        let next = e.at(next, tile, self.mr * share * 64);
        let next = e.at(next, round, share * 64);
        for line in (part..share).step_by(parts) {
            let line = e.offset_const(next, line * 64);
            e.prefetch(line, 2);
        }
    }
}
