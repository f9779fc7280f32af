//! What surrounds a matmul: the row operations that make its left operand, and the epilogue on its result.
use super::matmul_form::Form;
use super::{unsupported, whole_blocks};
use crate::emit::{Cmp, ElementEpilogue, Emitter, Error, RowProgram, RowTarget, Ty, Val, vectors};
use rdc_ir::DType;
use rdc_ir::program::Tiling;
use rdc_ir::program::body::{Epilogue, Matmul};
use rdc_ir::program::rows::Stored;

/// The rows of a block: `count` from `first` (both `i64`), and its left operand in memory.
#[derive(Clone, Copy)]
pub struct Rows {
    /// First row.
    pub first: Val,
    /// How many.
    pub count: Val,
    /// Address of the first row of the left operand.
    pub left: Val,
    /// Bytes from one row of it to the next.
    pub stride: usize,
}

/// The row operations before a matmul.
pub struct Prologue<'k> {
    /// Computes the left operand only.
    bare: Option<RowProgram<'k>>,
    /// Computes and stores the results among the values before the matmul too.
    storing: Option<RowProgram<'k>>,
    /// The pointer indices of those results.
    results: Vec<usize>,
}

impl<'k> Prologue<'k> {
    /// Plans the prologue of a kernel.
    pub fn new(form: &Form<'k>) -> Result<Prologue<'k>, Error> {
        let Matmul { before, left, kept, .. } = form.body;
        whole_blocks(form.kernel, kept, (form.rows_per_task, form.m))?;
        let left: Vec<RowTarget> = match form.x_in_place() {
            Some(_) => vec![],
            None => vec![RowTarget { node: *left, block: None }],
        };
        let program =
            |targets: &[RowTarget]| (!targets.is_empty()).then(|| RowProgram::new(form.kernel, before, targets));
        let all: Vec<RowTarget> = left.iter().copied().chain(kept.iter().map(RowTarget::from)).collect();
        let storing = if kept.is_empty() { None } else { program(&all) };
        Ok(Prologue { bare: program(&left), storing, results: kept.iter().map(|stored| stored.pointer).collect() })
    }

    /// Bytes of scratch for intermediate rows.
    pub fn scratch(&self) -> usize {
        [&self.bare, &self.storing].into_iter().flatten().map(RowProgram::scratch).max().unwrap_or(0)
    }

    /// Computes the left operand of a row block and, where `store` (`i1`) is true, the results among the values before the
    /// matmul.
    pub fn emit(&self, e: &mut Emitter, rows: Rows, store: Val, scratch: Val) {
        match (&self.bare, &self.storing) {
            (None, None) => {}
            (Some(bare), None) => self.rows(e, bare, rows, false, scratch),
            (None, Some(storing)) => e.when(store, |e| self.rows(e, storing, rows, true, scratch)),
            (Some(bare), Some(storing)) => {
                let with = |e: &mut Emitter| {
                    self.rows(e, storing, rows, true, scratch);
                    vec![]
                };
                let without = |e: &mut Emitter| {
                    self.rows(e, bare, rows, false, scratch);
                    vec![]
                };
                e.branch(store, &[], with, without);
            }
        }
    }

    fn rows(&self, e: &mut Emitter, program: &RowProgram, rows: Rows, store: bool, scratch: Val) {
        let zero = e.i64(0);
        e.each(zero, rows.count, |e, i| {
            let row = e.add(rows.first, i);
            let mut targets = Vec::new();
            if self.bare.is_some() {
                targets.push(e.at(rows.left, i, rows.stride));
            }
            if store {
                for &pointer in &self.results {
                    targets.push(program.row_of(e, targets.len(), pointer, row));
                }
            }
            program.emit(e, row, &targets, scratch);
        });
    }
}

/// Rows that memory is asked for while the micro-kernels of a task compute: one after the other, so that the machine sees them coming
/// and brings more than a core can wait for.
pub struct RowsAhead {
    /// Pointers, and the bytes between rows.
    rows: Vec<(usize, usize)>,
    /// Rows of a task.
    height: usize,
}

impl RowsAhead {
    /// `height` rows of each of some pointers, given with the bytes between rows.
    pub fn new(rows: impl IntoIterator<Item = (usize, usize)>, height: usize) -> RowsAhead {
        let mut rows: Vec<(usize, usize)> = rows.into_iter().collect();
        rows.sort_unstable();
        rows.dedup_by_key(|row| row.0);
        RowsAhead { rows, height }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row.1 * self.height).sum()
    }

    /// Asks for a part of what round `round` (`i64`) of `rounds` brings of the rows from `first` (`i64`) on.
    pub fn emit(&self, e: &mut Emitter, first: Val, (round, rounds): (Val, usize), (part, parts): (usize, usize)) {
        let mut slot = 0;
        for &(pointer, bytes) in &self.rows {
            let share = (self.height * bytes).div_ceil(64).div_ceil(rounds);
            let from = e.at(e.arg(pointer), first, bytes);
            let from = e.at(from, round, share * 64);
            for line in 0..share {
                if slot % parts == part {
                    let line = e.offset_const(from, line * 64);
                    e.prefetch(line, 2);
                }
                slot += 1;
            }
        }
    }
}

/// The row operations after a matmul, on its complete rows.
pub struct RowEpilogue<'k> {
    program: RowProgram<'k>,
    results: &'k [Stored],
    rows_per_task: usize,
}

impl<'k> RowEpilogue<'k> {
    /// Plans the row epilogue of a kernel that has one.
    pub fn new(form: &Form<'k>) -> Result<Option<RowEpilogue<'k>>, Error> {
        let Epilogue::Rows(rows) = &form.body.epilogue else { return Ok(None) };
        if form.column_blocks != 1 || matches!(form.kernel.tiling, Tiling::Panels { .. }) {
            return unsupported(form.kernel, "row operations after a matmul but on whole rows");
        }
        whole_blocks(form.kernel, &rows.results, (form.rows_per_task, form.m))?;
        let targets: Vec<RowTarget> = rows.results.iter().map(RowTarget::from).collect();
        let program = RowProgram::new(form.kernel, &rows.graph, &targets);
        Ok(Some(RowEpilogue { program, results: &rows.results, rows_per_task: form.rows_per_task }))
    }

    /// Bytes of scratch for intermediate rows.
    pub fn scratch(&self) -> usize {
        self.program.scratch()
    }

    /// The results that have a row for each row, to be asked for as they are computed.
    pub fn written(&self) -> RowsAhead {
        let written = self.results.iter().enumerate().filter(|(target, _)| self.program.block(*target).is_none());
        let rows = written.map(|(target, stored)| (stored.pointer, self.program.pitch(target, stored.pointer)));
        RowsAhead::new(rows, self.rows_per_task)
    }

    /// Applies them to `count` rows (`i64`) from `first` on, which lie at `from`, `stride` bytes apart.
    pub fn emit(&self, e: &mut Emitter, (first, count): (Val, Val), (from, stride): (Val, usize), scratch: Val) {
        let zero = e.i64(0);
        e.each(zero, count, |e, i| {
            let row = e.add(first, i);
            let given = e.at(from, i, stride);
            let places = self.results.iter().enumerate();
            let targets: Vec<Val> =
                places.map(|(target, stored)| self.program.row_of(e, target, stored.pointer, row)).collect();
            self.program.emit_after(e, row, Some(given), &targets, scratch);
        });
    }
}

/// What follows a matmul: int8 scales, then elementwise operations and stores.
pub struct Finish<'k> {
    form: &'k Form<'k>,
    epilogue: Option<ElementEpilogue<'k>>,
}

impl<'k> Finish<'k> {
    /// Plans the epilogue of a kernel.
    pub fn new(form: &'k Form<'k>) -> Finish<'k> {
        let epilogue = match &form.body.epilogue {
            Epilogue::Elements(rows) => Some(ElementEpilogue::new(form.kernel, rows, form.n / form.parts)),
            Epilogue::Rows(_) => None,
        };
        Finish { form, epilogue }
    }

    /// Finishes a row of a panel, whose sums lie at `sums`: `f32[nr]`. The last panel may be ragged.
    pub fn row(&self, e: &mut Emitter, row: Val, panel: Val, sums: Val) {
        let form = self.form;
        let Some(ragged) = form.ragged() else {
            return self.columns(e, row, panel, sums, form.nr);
        };
        if form.panels == 1 {
            return self.columns(e, row, panel, sums, ragged);
        }
        let last = e.i64(form.panels - 1);
        let is_last = e.cmp(Cmp::Eq, panel, last);
        let short = |e: &mut Emitter| {
            self.columns(e, row, panel, sums, ragged);
            vec![]
        };
        let whole = |e: &mut Emitter| {
            self.columns(e, row, panel, sums, form.nr);
            vec![]
        };
        e.branch(is_last, &[], short, whole);
    }

    /// What the epilogue of a whole row block reads and writes, the left operand too if it is read where it lies.
    pub fn around(&self) -> RowsAhead {
        let left = self.form.x_in_place();
        let around = self.epilogue.iter().flat_map(ElementEpilogue::rows).chain(left);
        RowsAhead::new(around, self.form.rows_per_task)
    }

    /// Asks for one of the parts of what [`Finish::row`] reads and writes, or for another address if it is not due.
    pub fn prefetch(&self, e: &mut Emitter, row: Val, panel: Val, part: (usize, usize), due: (Val, Val)) {
        let width = self.form.nr / self.form.parts;
        let column = e.mul_const(panel, width);
        self.epilogue.iter().for_each(|epilogue| epilogue.prefetch(e, row, (column, width), part, due));
    }

    fn columns(&self, e: &mut Emitter, row: Val, panel: Val, sums: Val, columns: usize) {
        let form = self.form;
        let (part, width) = (form.n / form.parts, form.nr / form.parts);
        let first = e.mul_const(panel, width);
        let (full, tail) = vectors::pieces(columns / form.parts, e.lanes);
        let full = (0..full).map(|v| (v * e.lanes, e.lanes)).collect::<Vec<_>>();
        for (start, lanes) in full.into_iter().chain(tail) {
            let column = e.add_const(first, start);
            let product: Vec<Val> = (0..form.parts)
                .map(|p| {
                    let from = e.offset_const(sums, (p * width + start) * 4);
                    let sum = e.load_raw(from, Ty::f32(lanes));
                    let Some(scale) = form.body.scale else { return sum };
                    let from = e.at(e.arg(scale), column, 4);
                    let from = e.offset_const(from, p * part * 4);
                    let scale = e.load(from, DType::F32, lanes);
                    e.mul(sum, scale)
                })
                .collect();
            self.epilogue.iter().for_each(|epilogue| epilogue.emit(e, row, column, &product));
        }
    }
}
