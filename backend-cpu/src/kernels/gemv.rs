//! Matmuls of few rows: bound by reading the weight, once, in the order in which it lies.
//!
//! The left operand is computed once per call. A task is a range of panels; each panel is one contiguous stream. Sums stay
//! in registers, in several chains per column vector so that additions need not wait for each other; the chain of an
//! inner index depends on the index only, so results do not depend on how panels are cut into tasks.
use super::matmul_form::Form;
use super::matmul_rowops::{Finish, Prologue, Rows};
use super::matmul_weights::bf16_pair;
use super::unsupported;
use crate::emit::{Cmp, Emitter, Error, Ty, Val};
use rdc_ir::DType;
use rdc_ir::program::Kernel;
use rdc_ir::program::body::{Epilogue, Matmul};
use rdc_passes::tile::Cpu;

/// Inner steps per iteration.
const UNROLL: usize = 4;

/// Sums in registers that keep two multiply-add units busy.
const SUMS: usize = 8;

/// How far ahead of use a weight is asked for, in bytes: hardware streams end at page boundaries, and two pages ahead
/// read 10 % faster from a shared cache than half a page.
const AHEAD: usize = 8192;

/// Scratch of a thread, in bytes from its start.
struct Scratch {
    /// `f32[m, stride]`: the left operand, if it is computed; at 0 is `f32[m, nr]`, the sums of the current panel.
    left: usize,
    /// Intermediate rows of the prologue.
    rows: usize,
    /// Bytes in all.
    bytes: usize,
}

fn layout(form: &Form, prologue: &Prologue) -> Scratch {
    let left = (form.m * form.nr * 4).next_multiple_of(64);
    let computed = if form.x_in_place().is_some() { 0 } else { form.m * form.left_stride() };
    let rows = left + computed;
    Scratch { left, rows, bytes: rows + prologue.scratch() }
}

/// Bytes of scratch.
pub fn scratch(kernel: &Kernel, body: &Matmul, cpu: &Cpu) -> Result<usize, Error> {
    let form = Form::new(kernel, body, cpu.lanes)?;
    Ok(layout(&form, &Prologue::new(&form)?).bytes)
}

/// The kernel's module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Matmul) -> Result<String, Error> {
    let form = Form::new(kernel, body, cpu.lanes)?;
    if matches!(body.epilogue, Epilogue::Rows(_)) {
        return unsupported(kernel, "row operations after a matmul of few rows");
    }
    let prologue = Prologue::new(&form)?;
    let finish = Finish::new(&form);
    let scratch = layout(&form, &prologue);
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    let (left, stride) = match form.x_in_place() {
        Some((x, stride)) => (e.arg(x), stride),
        None => (e.offset_const(e.scratch, scratch.left), form.left_stride()),
    };
    let rows = Rows { first: e.i64(0), count: e.i64(form.m), left, stride };
    let store = e.cmp(Cmp::Eq, e.begin, rows.first);
    let rows_scratch = e.offset_const(e.scratch, scratch.rows);
    prologue.emit(&mut e, rows, store, rows_scratch);
    // Tasks follow each other without a gap, so the panels of a call are one range.
    let first = e.mul_const(e.begin, form.panels_per_task);
    let end = e.mul_const(e.end, form.panels_per_task);
    let panels = e.i64(form.panels);
    let end = e.min(end, panels);
    e.each(first, end, |e, panel| {
        let weight = form.panel(e, panel);
        let sums = stream(&form, e, weight, rows);
        let vectors = form.nr / e.lanes;
        for (i, &sum) in sums.iter().enumerate() {
            let to = e.offset_const(e.scratch, (i / vectors * form.nr + i % vectors * e.lanes) * 4);
            e.store_raw(to, sum);
        }
        e.each(rows.first, rows.count, |e, row| {
            let sums = e.at(e.scratch, row, form.nr * 4);
            finish.row(e, row, panel, sums);
        });
    });
    Ok(e.finish())
}

/// The sums of one panel: for each row, one vector per `lanes` columns.
fn stream(form: &Form, e: &mut Emitter, weight: Val, rows: Rows) -> Vec<Val> {
    let lanes = e.lanes;
    let vectors = form.nr / lanes;
    let per_chain = form.m * vectors;
    let chains = (SUMS / per_chain).clamp(1, UNROLL);
    let zero = e.f32(0.0, lanes);
    let line = form.nr * form.dtype.bytes();
    // `count` inner steps from k; k is even where pairs matter.
    let steps = |e: &mut Emitter, k: Val, sums: &[Val], count: usize| {
        let (left, weight) = (e.at(rows.left, k, 4), e.at(weight, k, line));
        let mut sums = sums.to_vec();
        let mut odd = vec![];
        for u in 0..count {
            let columns: Vec<Val> = match form.dtype {
                DType::BF16 if u % 2 == 1 => std::mem::take(&mut odd),
                DType::BF16 => {
                    let pairs: Vec<_> = (0..vectors)
                        .map(|v| {
                            let from = e.offset_const(weight, u * line + v * lanes * 4);
                            bf16_pair(e, from, lanes)
                        })
                        .collect();
                    odd = pairs.iter().map(|p| p.1).collect();
                    pairs.iter().map(|p| p.0).collect()
                }
                other => (0..vectors)
                    .map(|v| {
                        let from = e.offset_const(weight, u * line + v * lanes * other.bytes());
                        e.load(from, other, lanes)
                    })
                    .collect(),
            };
            let chain = u % chains * per_chain;
            for row in 0..form.m {
                let from = e.offset_const(left, row * rows.stride + u * 4);
                let x = e.load_raw(from, Ty::f32(1));
                let x = e.splat(x, lanes);
                for (v, &w) in columns.iter().enumerate() {
                    let sum = &mut sums[chain + row * vectors + v];
                    *sum = e.fma(x, w, *sum);
                }
            }
        }
        sums
    };
    let (start, whole) = (e.i64(0), e.i64(form.k / UNROLL * UNROLL));
    let sums = e.for_range(start, whole, UNROLL, &vec![zero; chains * per_chain], |e, k, sums| {
        let next = e.at(weight, k, line);
        for ahead in (0..UNROLL * line).step_by(64) {
            let place = e.offset_const(next, AHEAD + ahead);
            e.prefetch(place, 1);
        }
        steps(e, k, sums, UNROLL)
    });
    let mut sums = steps(e, whole, &sums, form.k % UNROLL);
    while sums.len() > per_chain {
        let half = sums.len() / 2;
        sums = (0..half).map(|i| e.add(sums[i], sums[half + i])).collect();
    }
    sums
}
