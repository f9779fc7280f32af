//! Matmuls of more than 4 rows: bound by arithmetic.
//!
//! A task is a block of rows times a range of panels, taken a few panels at a time. For each block of `kc` of the inner
//! size (whose piece of the left operand stays in the second-level cache), for each panel, the micro-kernel multiplies `mr`
//! rows at a time with a `kc × nr` piece of the panel, which stays in the first-level cache; `mr × nr` sums stay in
//! registers and, between inner blocks, in a tile of scratch. The epilogue then runs over the finished tiles. bf16 and
//! int8 pieces are widened to f32 once per task, into scratch, so there is one micro-kernel.
//!
//! The order of additions to an element depends on `kc` only, not on how rows and panels are cut into tasks.
use super::matmul_form::Form;
use super::matmul_rowops::{Finish, Prologue, Rows};
use super::matmul_weights::widen;
use super::micro::Micro;
use crate::emit::{Cmp, Emitter, Error, Val};
use rdc_ir::DType;
use rdc_ir::program::{Kernel, Target};

/// Panels taken together when the inner size has several blocks: their tiles of sums, a block of the left operand and a
/// piece of each panel share the second-level cache.
const GROUP: usize = 8;

/// Cache lines of the next piece that are asked for per micro-kernel, at most.
const LINES_AHEAD: usize = 32;

/// Scratch of a thread, in bytes from its start.
struct Scratch {
    /// `f32[kc, nr]`: a widened piece of a panel; at 0 are `f32[rows_per_task, nr]` sums for each panel of a group.
    piece: usize,
    /// `f32[rows_per_task, stride]`: the left operand, if it is computed.
    left: usize,
    /// Intermediate rows of the prologue.
    rows: usize,
    /// Bytes in all.
    bytes: usize,
}

fn layout(form: &Form, prologue: &Prologue) -> Scratch {
    let piece = group(form) * tile_bytes(form);
    let widened = if form.dtype == DType::F32 { 0 } else { form.kc * form.nr * 4 };
    let left = piece + widened.next_multiple_of(64);
    let computed = if form.x_argument().is_some() { 0 } else { form.rows_per_task * form.left_stride() };
    let rows = left + computed;
    Scratch { piece, left, rows, bytes: rows + prologue.scratch() }
}

/// Panels taken together.
fn group(form: &Form) -> usize {
    if form.k <= form.kc { 1 } else { GROUP.min(form.panels_per_task) }
}

/// Bytes of the sums of one panel.
fn tile_bytes(form: &Form) -> usize {
    (form.rows_per_task * form.nr * 4).next_multiple_of(64)
}

/// Bytes of scratch.
pub fn scratch(kernel: &Kernel, target: &Target) -> Result<usize, Error> {
    let form = Form::new(target, kernel)?;
    Ok(layout(&form, &Prologue::new(&form)?).bytes)
}

/// The kernel's module.
pub fn emit(target: &Target, kernel: &Kernel) -> Result<String, Error> {
    let form = Form::new(target, kernel)?;
    let prologue = Prologue::new(&form)?;
    let finish = Finish::new(&form)?;
    let mut e = Emitter::new(form.name, form.pointers(), target.lanes);
    let scratch = layout(&form, &prologue);
    let rows_at = scratch.rows;
    let gemm = Gemm { form: &form, mr: target.mr, finish: &finish, scratch };
    e.tasks(|e, task| {
        let (row_block, column_block) = e.div_rem(task, form.column_blocks);
        let first = e.mul_const(row_block, form.rows_per_task);
        let count = bounded(e, first, form.rows_per_task, form.m);
        let (left, stride) = match form.x_argument() {
            Some(x) => (e.at(e.arg(x), first, form.k * 4), form.k * 4),
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
        e.for_range(panel, end, group(&form), &[], |e, panel, _| {
            let rest = e.sub(end, panel);
            let most = e.i64(group(&form));
            let count = if group(&form) == 1 { most } else { e.min(most, rest) };
            gemm.group(e, rows, panel, count);
            vec![]
        });
    });
    Ok(e.finish())
}

/// What is left over in tasks of `per_task` of `size` items, the last task shorter, that are taken `unit` at a time.
pub fn remainders(size: usize, per_task: usize, unit: usize) -> Vec<usize> {
    let mut out = vec![per_task.min(size) % unit, size % per_task % unit];
    out.sort_unstable();
    out.dedup();
    out.retain(|&rest| rest > 0);
    out
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

struct Gemm<'k> {
    form: &'k Form<'k>,
    mr: usize,
    finish: &'k Finish<'k>,
    scratch: Scratch,
}

impl Gemm<'_> {
    /// A group of `count` panels: all inner blocks, then the epilogue.
    fn group(&self, e: &mut Emitter, rows: Rows, first: Val, count: Val) {
        let form = self.form;
        let zero = e.i64(0);
        e.repeat(form.k.div_ceil(form.kc), |e, block| {
            let start = e.mul_const(block, form.kc);
            let length = bounded(e, start, form.kc, form.k);
            let left = e.at(rows.left, start, 4);
            let begin = e.cmp(Cmp::Eq, block, zero);
            e.each(zero, count, |e, i| {
                let panel = e.add(first, i);
                let weight = form.panel(e, panel);
                let weight = e.at(weight, start, form.nr * form.dtype.bytes());
                let piece = self.piece(e, weight, length);
                let tile = e.at(e.scratch, i, tile_bytes(form));
                let next = e.offset_const(weight, form.panel_bytes());
                self.rows(e, Rows { left, ..rows }, piece, length, tile, begin, next);
            });
        });
        e.each(zero, count, |e, i| {
            let panel = e.add(first, i);
            let tile = e.at(e.scratch, i, tile_bytes(form));
            e.each(zero, rows.count, |e, i| {
                let row = e.add(rows.first, i);
                let sums = e.at(tile, i, form.nr * 4);
                self.finish.row(e, row, panel, sums);
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

    /// The micro-kernel over all rows of the task. `next` is the piece of the weight that comes after this one.
    #[allow(clippy::too_many_arguments)]
    fn rows(&self, e: &mut Emitter, rows: Rows, piece: Val, length: Val, tile: Val, first: Val, next: Val) {
        let form = self.form;
        let (blocks, rest) = e.div_rem(rows.count, self.mr);
        let micro = |e: &mut Emitter, count: usize, from: Val| {
            let left = e.at(rows.left, from, rows.stride);
            let sums = e.at(tile, from, form.nr * 4);
            let even = Micro::is_even(form.k, form.kc);
            let micro = Micro { rows: count, nr: form.nr, row_stride: rows.stride, step: 4, even };
            micro.emit(e, left, piece, length, sums, (form.k > form.kc).then_some(first));
        };
        if form.rows_per_task >= self.mr {
            let zero = e.i64(0);
            e.each(zero, blocks, |e, block| {
                let from = e.mul_const(block, self.mr);
                // The weight streams in while the piece before it is in use.
                let lines = (form.kc * form.nr * form.dtype.bytes()).div_ceil(64);
                let share = lines.div_ceil(form.rows_per_task / self.mr).min(LINES_AHEAD);
                let next = e.at(next, block, share * 64);
                for line in 0..share {
                    let line = e.offset_const(next, line * 64);
                    e.prefetch(line, 2);
                }
                micro(e, self.mr, from);
            });
        }
        for count in remainders(form.m, form.rows_per_task, self.mr) {
            let wanted = e.i64(count);
            let here = e.cmp(Cmp::Eq, rest, wanted);
            e.when(here, |e| {
                let from = e.mul_const(blocks, self.mr);
                micro(e, count, from);
            });
        }
    }
}
