//! Products of two row-major operands, either transposed: bound by arithmetic.
//!
//! A task is a block of rows times a block of columns of one matrix. For each block of `kc` of the inner size, its piece of the left
//! operand stays in the second-level cache: in scratch, `mr` rows interleaved, or, if the inner index runs along its rows, row by
//! row where it lies, as in matmuls (or in scratch: [`Left`]). Panel by panel of `nr` columns, the micro-kernel of the
//! matmuls ([`Micro`]) goes through it with a piece of the right operand, which lies in scratch and stays in the first-level
//! cache. The sums of the whole block stay in scratch between inner blocks. After the last one the epilogue runs on each tile
//! while its sums are in the first-level cache. It reads an element of an argument before it writes that of a result.
//!
//! Pieces are copied to scratch bit by bit while the pieces before them are multiplied. Their cache lines come from far
//! and, one a row, fall into few sets of the caches, so the micro-kernel asks for them only shortly before; so it does for what
//! the epilogue reads and writes.
//!
//! Copied blocks at the edge are computed as whole tiles. The order of additions to an element depends on `kc` only.
//!
//! `examples/matmul_bench.rs`, one thread of an Intel Xeon, tasks of 192 rows and 512 columns, accumulating: aᵀ b for (m, n, k) =
//! (1024, 1024, 512), (384, 2048, 1024), (128, 704, 4096) and (1024, 2816, 2048), a b for (512, 1024, 5632), in place, and (512,
//! 1024, 3072), copied: 84 to 87 % of the multiply-add peak with AVX2, 88 to 90 % with AVX-512. Without the copies it would be 95
//! to 97 %.
use super::heads::all_pieces;
use super::matmul::{bounded, ceil_div};
use super::micro::{Ahead, Micro, Share};
use super::panels::{Strip, copy_rows, widths};
use super::unsupported;
use crate::emit::{Cmp, ElementEpilogue, Emitter, Error, Ty, Val};
use rdc_ir::program::body::{Matrix, Product};
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;
use rdc_passes::tile::cpu::cache::{collide, odd_lines};

/// How many micro-kernels before it is copied a piece of the right operand is asked for.
const TILES_AHEAD: usize = 2;

/// An operand in memory.
struct Operand {
    pointer: usize,
    /// Bytes between rows.
    stride: usize,
    /// Bytes of a matrix.
    bytes: usize,
    /// Whether the inner index runs along rows, so that panels are transposed copies.
    inner_last: bool,
}

impl Operand {
    fn new(kernel: &Kernel, &Matrix { pointer, rows, columns, inner_last }: &Matrix) -> Operand {
        let stride = kernel.pitch(pointer, columns * 4);
        Operand { pointer, stride, bytes: rows * stride, inner_last }
    }
}

/// Where the micro-kernel reads the left operand.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// In scratch, `mr` rows interleaved.
    Interleaved,
    /// Where it lies, row by row.
    InPlace,
    /// In scratch, row by row: where it lies a tile's rows would fall on each other in the cache.
    Rows,
}

/// A kernel with its tiles. Sizes are in elements.
struct Form<'k> {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    rows_per_task: usize,
    columns_per_task: usize,
    kc: usize,
    mr: usize,
    nr: usize,
    left: Operand,
    left_in: Left,
    right: Operand,
    epilogue: ElementEpilogue<'k>,
}

impl<'k> Form<'k> {
    fn new(cpu: &Cpu, kernel: &'k Kernel, body: &'k Product) -> Result<Form<'k>, Error> {
        let Tiling::Blocks { rows_per_task, columns_per_task, kc } = kernel.tiling else {
            return unsupported(kernel, "a product that is cut otherwise than into blocks");
        };
        let &Product { batch, m, n, k, .. } = body;
        if [batch, m, n, k, rows_per_task, columns_per_task, kc].contains(&0) {
            return unsupported(kernel, "an empty tile");
        }
        let left = Operand::new(kernel, &body.left);
        Ok(Form {
            batch,
            m,
            n,
            k,
            rows_per_task: rows_per_task.min(m),
            columns_per_task: columns_per_task.min(n),
            kc: kc.min(k),
            mr: cpu.mr,
            nr: cpu.nr,
            left_in: match left.inner_last {
                false => Left::Interleaved,
                true if collide(m, left.stride) => Left::Rows,
                true => Left::InPlace,
            },
            left,
            right: Operand::new(kernel, &body.right),
            epilogue: ElementEpilogue::new(kernel, &body.epilogue, n),
        })
    }

    /// Tiles of a task's rows, and panels of its columns.
    fn tiles(&self) -> (usize, usize) {
        (self.rows_per_task.div_ceil(self.mr), self.columns_per_task.div_ceil(self.nr))
    }
    /// Bytes between the rows of a tile as the micro-kernel reads them, and between the inner steps.
    fn left_strides(&self) -> (usize, usize) {
        match self.left_in {
            Left::Interleaved => (4, self.mr * 4),
            Left::InPlace => (self.left.stride, 4),
            Left::Rows => (odd_lines(self.kc), 4),
        }
    }
    /// Bytes of `mr` copied rows: an odd number of cache lines, so that they do not fall on each other in the cache.
    fn left_bytes(&self) -> usize {
        match self.left_in {
            Left::Interleaved => odd_lines(self.kc * self.mr),
            Left::InPlace => 0,
            Left::Rows => self.mr * odd_lines(self.kc),
        }
    }
    /// Whether the left operand is copied to scratch.
    fn copies_left(&self) -> bool {
        self.left_in != Left::InPlace
    }
    /// Bytes of the sums of one panel.
    fn sums_bytes(&self) -> usize {
        (self.tiles().0 * self.mr * self.nr * 4).next_multiple_of(64)
    }
    /// Bytes of a panel of the right operand.
    fn right_bytes(&self) -> usize {
        (self.kc * self.nr * 4).next_multiple_of(64)
    }
    /// Bytes of a block of the left operand.
    fn block_bytes(&self) -> usize {
        self.tiles().0 * self.left_bytes()
    }
    /// Blocks of the inner size.
    fn blocks(&self) -> usize {
        self.k.div_ceil(self.kc)
    }
    /// Byte offsets into scratch of two right panels (at 0 are two left blocks, or one if there is one), of the sums, and
    /// their end.
    fn scratch(&self) -> (usize, usize, usize) {
        let right = self.blocks().min(2) * self.block_bytes();
        let sums = right + 2 * self.right_bytes();
        (right, sums, sums + self.tiles().1 * self.sums_bytes())
    }
    /// Inner steps of the next panel of the right operand that are copied per micro-kernel.
    fn right_share(&self, lanes: usize) -> usize {
        self.right.whole(self.kc.div_ceil(self.tiles().0), lanes)
    }
    /// Inner steps of the next block of the left operand that are copied per panel.
    fn left_share(&self, lanes: usize) -> usize {
        self.left.whole(self.kc.div_ceil(self.tiles().1), lanes)
    }
}

impl Operand {
    /// Steps that are copied at a time, rounded up to whole cache lines if they lie side by side.
    fn whole(&self, steps: usize, lanes: usize) -> usize {
        if self.inner_last { steps.next_multiple_of(2 * lanes) } else { steps }
    }
}

/// Bytes of scratch.
pub fn scratch(kernel: &Kernel, body: &Product, cpu: &Cpu) -> Result<usize, Error> {
    Ok(Form::new(cpu, kernel, body)?.scratch().2)
}

/// The kernel's module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Product) -> Result<String, Error> {
    let form = Form::new(cpu, kernel, body)?;
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    let (row_blocks, column_blocks) = (form.m.div_ceil(form.rows_per_task), form.n.div_ceil(form.columns_per_task));
    e.tasks(|e, task| {
        let (row_block, column_block) = e.div_rem(task, column_blocks);
        let (matrix, row_block) = if form.batch > 1 { e.div_rem(row_block, row_blocks) } else { (e.i64(0), row_block) };
        let row = e.mul_const(row_block, form.rows_per_task);
        let column = e.mul_const(column_block, form.columns_per_task);
        let rows = bounded(e, row, form.rows_per_task, form.m);
        let columns = bounded(e, column, form.columns_per_task, form.n);
        let block = Block { form: &form, matrix, row, column, rows, columns };
        e.repeat(form.blocks(), |e, inner| block.multiply(e, inner));
    });
    Ok(e.finish())
}

/// A block of the inner size.
#[derive(Clone, Copy)]
struct Inner {
    /// Its number.
    index: Val,
    start: Val,
    /// Not positive beyond the last block.
    length: Val,
}

impl Inner {
    fn new(e: &mut Emitter, form: &Form, index: Val) -> Inner {
        let start = e.mul_const(index, form.kc);
        let (most, all) = (e.i64(form.kc), e.i64(form.k));
        let rest = e.sub(all, start);
        Inner { index, start, length: e.min(most, rest) }
    }
    /// The part `from..to` of it that there is: its first step and its length, not negative.
    fn clip(&self, e: &mut Emitter, from: Val, to: Val) -> (Val, Val) {
        let zero = e.i64(0);
        let end = e.min(to, self.length);
        let length = e.sub(end, from);
        (from, e.max(length, zero))
    }
}

/// The block of a task.
struct Block<'f> {
    form: &'f Form<'f>,
    /// Which of the batch.
    matrix: Val,
    row: Val,
    column: Val,
    rows: Val,
    columns: Val,
}

impl Block<'_> {
    /// Adds the share of an inner block to the sums.
    fn multiply(&self, e: &mut Emitter, index: Val) {
        let form = self.form;
        let (inner, next) = (Inner::new(e, form, index), e.add_const(index, 1));
        let next = Inner::new(e, form, next);
        let (zero, end) = (e.i64(0), e.i64(form.blocks() - 1));
        let (first, last) = (e.cmp(Cmp::Eq, index, zero), e.cmp(Cmp::Eq, index, end));
        let (tiles, panels) = (ceil_div(e, self.rows, form.mr), ceil_div(e, self.columns, form.nr));
        let (left_share, right_share) = (form.left_share(e.lanes), form.right_share(e.lanes));
        if form.copies_left() {
            e.when(first, |e| self.left_from(e, inner, tiles, zero));
        }
        self.right(e, inner, zero, zero, inner.length);
        let sums = e.offset_const(e.scratch, form.scratch().1);
        let (row_stride, step) = form.left_strides();
        let even = Micro::is_even(form.k, form.kc);
        let micro = Micro { rows: form.mr, nr: form.nr, row_stride, step, even };
        e.each(zero, panels, |e, panel| {
            let (right, sums) = (self.right_panel(e, panel), e.at(sums, panel, form.sums_bytes()));
            let later = e.add_const(panel, 1);
            let more = e.cmp(Cmp::Lt, later, panels);
            let from = e.mul_const(panel, left_share);
            let to = e.add_const(from, left_share);
            // What is copied with a panel was asked for with the one before; what is read where it lies is due in the next block.
            let due = if form.copies_left() { to } else { from };
            e.each(zero, tiles, |e, tile| {
                if form.blocks() > 1 && form.copies_left() {
                    self.left(e, next, tile, from, to);
                }
                e.when(more, |e| {
                    let from = e.mul_const(tile, right_share);
                    let to = e.add_const(from, right_share);
                    self.right(e, inner, later, from, to);
                });
                let left = self.left_tile(e, inner, tile);
                let sums = e.at(sums, tile, form.mr * form.nr * 4);
                let lines = |e: &mut Emitter, share: Share| {
                    if form.blocks() > 1 {
                        self.prefetch_left(e, next, (tile, due), share);
                    }
                    self.prefetch_right(e, inner, (later, panels), (tile, tiles), share);
                    self.prefetch_epilogue(e, (tile, panel), share, (last, sums));
                };
                let ahead = Ahead::over(form.mr, (form.k, form.kc), &lines);
                let first = (form.blocks() > 1).then_some(first);
                let multiply = |e: &mut Emitter, rows: usize| {
                    let ahead = ahead.as_ref().filter(|_| rows == form.mr);
                    Micro { rows, ..micro }.emit(e, (left, right), inner.length, (sums, first), ahead);
                };
                if form.copies_left() {
                    multiply(e, form.mr);
                } else {
                    self.heights(e, tile, multiply);
                }
                e.when(last, |e| self.finish(e, panel, tile, sums));
            });
            // The last block of rows has fewer tiles.
            e.when(more, |e| {
                let from = e.mul_const(tiles, right_share);
                self.right(e, inner, later, from, inner.length);
            });
        });
        if form.blocks() > 1 && form.copies_left() {
            let from = e.mul_const(panels, left_share);
            self.left_from(e, next, tiles, from);
        }
    }

    /// The address of element (outer, inner) of an operand.
    fn element(&self, e: &mut Emitter, operand: &Operand, outer: Val, inner: Val) -> Val {
        let (row, column) = if operand.inner_last { (outer, inner) } else { (inner, outer) };
        let matrix = e.at(e.arg(operand.pointer), self.matrix, operand.bytes);
        let row = e.at(matrix, row, operand.stride);
        e.at(row, column, 4)
    }

    /// Runs `body` with the rows of a tile.
    fn heights(&self, e: &mut Emitter, tile: Val, body: impl Fn(&mut Emitter, usize)) {
        let form = self.form;
        let offset = e.mul_const(tile, form.mr);
        let left_over = e.sub(self.rows, offset);
        widths(e, left_over, (form.m, form.rows_per_task, form.mr), body);
    }

    /// Runs `body` with the columns of a panel.
    fn breadths(&self, e: &mut Emitter, panel: Val, body: impl Fn(&mut Emitter, usize)) {
        let form = self.form;
        let offset = e.mul_const(panel, form.nr);
        let left_over = e.sub(self.columns, offset);
        widths(e, left_over, (form.n, form.columns_per_task, form.nr), body);
    }

    /// Where the micro-kernel reads a tile's rows of the left operand.
    fn left_tile(&self, e: &mut Emitter, inner: Inner, tile: Val) -> Val {
        if self.form.copies_left() {
            let block = self.left_block(e, inner);
            return e.at(block, tile, self.form.left_bytes());
        }
        let offset = e.mul_const(tile, self.form.mr);
        let row = e.add(self.row, offset);
        self.element(e, &self.form.left, row, inner.start)
    }

    /// Where a block of the left operand is copied to: two take turns.
    fn left_block(&self, e: &mut Emitter, inner: Inner) -> Val {
        let one = e.i64(1);
        let odd = e.and(inner.index, one);
        e.at(e.scratch, odd, self.form.block_bytes())
    }

    /// Copies steps `from..to`, as far as there are, of a tile's rows of the left operand.
    fn left(&self, e: &mut Emitter, inner: Inner, tile: Val, from: Val, to: Val) {
        let form = self.form;
        let (first, length) = inner.clip(e, from, to);
        let offset = e.mul_const(tile, form.mr);
        let (outer, step) = (e.add(self.row, offset), e.add(inner.start, first));
        let from = self.element(e, &form.left, outer, step);
        let tile_at = self.left_tile(e, inner, tile);
        let (pitch, each) = form.left_strides();
        let (to, stride) = (e.at(tile_at, first, each), form.left.stride);
        self.heights(e, tile, |e, rows| match form.left_in {
            Left::Rows => copy_rows(e, (from, stride), (to, pitch), (rows, length)),
            _ => Strip { from, stride, transpose: false, columns: rows }.copy(e, length, to, form.mr),
        });
    }

    /// Copies all from a step on, some steps of all tiles at a time: a cache line holds rows of several tiles.
    fn left_from(&self, e: &mut Emitter, inner: Inner, tiles: Val, from: Val) {
        let share = self.form.left_share(e.lanes);
        let zero = e.i64(0);
        e.for_range(from, inner.length, share, &[], |e, from, _| {
            let to = e.add_const(from, share);
            e.each(zero, tiles, |e, tile| self.left(e, inner, tile, from, to));
            vec![]
        });
    }

    /// Asks for a part of a round of a tile's rows of the share of the left operand that begins at step `from`: some steps of all
    /// of them, or all steps of one where those lie side by side.
    fn prefetch_left(&self, e: &mut Emitter, inner: Inner, (tile, from): (Val, Val), share: Share) {
        let form = self.form;
        let offset = e.mul_const(tile, form.mr);
        let (outer, step) = (e.add(self.row, offset), e.add(inner.start, from));
        let steps = form.left_share(e.lanes);
        let lines = if form.left.inner_last { (form.mr, (steps * 4).div_ceil(64)) } else { (steps, 1) };
        self.prefetch(e, &form.left, (outer, step), lines, share);
    }

    /// Asks for a part of a round of some rows of an operand as they lie in memory, from an element on: so many cache lines of each.
    fn prefetch(
        &self,
        e: &mut Emitter,
        operand: &Operand,
        (outer, step): (Val, Val),
        (rows, lines): (usize, usize),
        (round, (part, parts)): Share,
    ) {
        let each = rows.div_ceil(self.form.mr);
        let first = e.mul_const(round, each);
        let (outer, step) = if operand.inner_last { (e.add(outer, first), step) } else { (outer, e.add(step, first)) };
        let from = self.element(e, operand, outer, step);
        for line in (part..each * lines).step_by(parts) {
            let line = e.offset_const(from, line / lines * operand.stride + line % lines * 64);
            e.prefetch(line, 2);
        }
    }

    /// Asks for a part of what the epilogue of a tile reads and writes in the row of a round, or for another address if it is not
    /// due.
    fn prefetch_epilogue(&self, e: &mut Emitter, (tile, panel): (Val, Val), (round, part): Share, due: (Val, Val)) {
        let (row, column) = self.corner(e, tile, panel);
        let row = e.add(row, round);
        self.form.epilogue.prefetch(e, row, (column, self.form.nr), part, due);
    }

    /// Where a panel of the right operand is copied to: two take turns.
    fn right_panel(&self, e: &mut Emitter, panel: Val) -> Val {
        let one = e.i64(1);
        let odd = e.and(panel, one);
        let first = e.offset_const(e.scratch, self.form.scratch().0);
        e.at(first, odd, self.form.right_bytes())
    }

    /// Copies steps `from..to`, as far as there are, of a panel of the right operand.
    fn right(&self, e: &mut Emitter, inner: Inner, panel: Val, from: Val, to: Val) {
        let form = self.form;
        let (first, length) = inner.clip(e, from, to);
        let offset = e.mul_const(panel, form.nr);
        let (outer, step) = (e.add(self.column, offset), e.add(inner.start, first));
        let from = self.element(e, &form.right, outer, step);
        let to = self.right_panel(e, panel);
        let to = e.at(to, first, form.nr * 4);
        let Operand { stride, inner_last: transpose, .. } = form.right;
        self.breadths(e, panel, |e, columns| {
            Strip { from, stride, transpose, columns }.copy(e, length, to, form.nr);
        });
    }

    /// Asks for a part of a round of what is copied some micro-kernels later than the share of `panel` at `tile` (of `tiles`):
    /// of that panel, of the one after it, or of the first one of the next inner block.
    fn prefetch_right(
        &self,
        e: &mut Emitter,
        inner: Inner,
        (panel, panels): (Val, Val),
        (tile, tiles): (Val, Val),
        share: Share,
    ) {
        let form = self.form;
        if form.right.inner_last {
            return;
        }
        let steps = form.right_share(e.lanes);
        let ahead = e.add_const(tile, TILES_AHEAD);
        let wrapped = e.sub(ahead, tiles);
        let beyond = e.cmp(Cmp::Ge, ahead, tiles);
        let later = e.add_const(panel, 1);
        let (panel, tile) = (e.select(beyond, later, panel), e.select(beyond, wrapped, ahead));
        // After the last panel comes the first one of the next inner block.
        let zero = e.i64(0);
        let after = e.cmp(Cmp::Ge, panel, panels);
        let (panel, skipped) = (e.select(after, zero, panel), e.select(after, inner.length, zero));
        let (offset, step) = (e.mul_const(panel, form.nr), e.mul_const(tile, steps));
        let (start, outer) = (e.add(inner.start, skipped), e.add(self.column, offset));
        let step = e.add(start, step);
        self.prefetch(e, &form.right, (outer, step), (steps, form.nr * 4 / 64), share);
    }

    /// The row, counted over all matrices, and column of the result at which a tile begins.
    fn corner(&self, e: &mut Emitter, tile: Val, panel: Val) -> (Val, Val) {
        let (row, column) = (e.mul_const(tile, self.form.mr), e.mul_const(panel, self.form.nr));
        let above = e.mul_const(self.matrix, self.form.m);
        let row = e.add(self.row, row);
        (e.add(above, row), e.add(self.column, column))
    }

    /// The epilogue of a tile of finished sums.
    fn finish(&self, e: &mut Emitter, panel: Val, tile: Val, sums: Val) {
        let form = self.form;
        self.breadths(e, panel, |e, columns| {
            let (row, column) = self.corner(e, tile, panel);
            let done = e.mul_const(tile, form.mr);
            let (left_over, most, zero) = (e.sub(self.rows, done), e.i64(form.mr), e.i64(0));
            let count = e.min(left_over, most);
            e.each(zero, count, |e, i| {
                let row = e.add(row, i);
                let sums = e.at(sums, i, form.nr * 4);
                for (start, lanes) in all_pieces(columns, e.lanes) {
                    let from = e.offset_const(sums, start * 4);
                    let sum = e.load_raw(from, Ty::f32(lanes));
                    let column = e.add_const(column, start);
                    form.epilogue.emit(e, row, column, &[sum]);
                }
            });
        });
    }
}
