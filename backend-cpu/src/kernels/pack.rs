//! Packs a weight into panels while a program runs, for weights that training changes.
//!
//! Algorithm: a task is a range of panels; the columns of a panel are rows of the weight, copied by squares of vectors that
//! are transposed in registers, or columns of it if what is packed is its transpose. Bound: memory.
use super::matmul::bounded;
use super::panels::{Strip, clear, copy_floats};
use super::unsupported;
use crate::emit::{Cmp, Emitter, Error, Val};
use rdc_ir::packing::Packing;
use rdc_ir::program::body::Pack;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::Cpu;

/// Panels that are copied side by side where their columns are the weight's, so that long pieces of its rows are read.
const GROUP: usize = 4;

/// A kernel with its tiles; sizes are in elements.
struct Form {
    /// Pointer argument of the weight.
    weight: usize,
    /// Whether the weight's transpose is packed.
    flipped: bool,
    n: usize,
    k: usize,
    nr: usize,
    parts: usize,
    panels: usize,
    panels_per_task: usize,
}

impl Form {
    fn new(kernel: &Kernel, body: &Pack) -> Result<Form, Error> {
        let Tiling::Panels { panels_per_task: panels_per_task @ 1.. } = kernel.tiling else {
            return unsupported(kernel, "a pack that is cut otherwise than into panels");
        };
        let Packing { n, k, nr, parts, .. } = body.packing;
        let panels = body.packing.panels();
        Ok(Form { weight: body.weight, flipped: body.flipped, n, k, nr, parts, panels, panels_per_task })
    }

    /// The columns of a part of a panel.
    fn strip(&self, e: &mut Emitter, panel: Val, part: usize, columns: usize) -> Strip {
        let first = e.mul_const(panel, self.nr / self.parts);
        let first = e.add_const(first, part * (self.n / self.parts));
        let step = if self.flipped { 4 } else { self.k * 4 };
        let stride = if self.flipped { self.n * 4 } else { self.k * 4 };
        Strip { from: e.at(e.arg(self.weight), first, step), stride, transpose: !self.flipped, columns }
    }

    fn panel(&self, e: &mut Emitter, panel: Val, to: Val, columns: usize) {
        let length = e.i64(self.k);
        let width = columns / self.parts;
        for part in 0..self.parts {
            let to = e.offset_const(to, part * width * 4);
            self.strip(e, panel, part, width).copy(e, length, to, self.nr);
        }
        clear(e, columns..self.nr, length, to, self.nr);
    }

    /// Whole panels of a weight's columns, row by row of the weight.
    fn side_by_side(&self, e: &mut Emitter, first: Val, count: Val, to: Val) {
        let width = self.nr / self.parts;
        let parts: Vec<Strip> = (0..self.parts).map(|part| self.strip(e, first, part, width)).collect();
        let zero = e.i64(0);
        e.repeat(self.k, |e, k| {
            for (part, strip) in parts.iter().enumerate() {
                let (from, to) = (e.at(strip.from, k, strip.stride), e.at(to, k, self.nr * 4));
                let to = e.offset_const(to, part * width * 4);
                e.each(zero, count, |e, panel| {
                    let (from, to) = (e.at(from, panel, width * 4), e.at(to, panel, self.panel_bytes()));
                    copy_floats(e, from, to, width);
                });
            }
        });
    }

    fn panel_bytes(&self) -> usize {
        self.k * self.nr * 4
    }
}

/// The kernel's MLIR module.
pub fn emit(cpu: &Cpu, kernel: &Kernel, body: &Pack) -> Result<String, Error> {
    let (form, result) = (Form::new(kernel, body)?, body.result);
    let mut e = Emitter::new(&kernel.name, kernel.pointers.len(), cpu.lanes);
    e.tasks(|e, task| {
        let first = e.mul_const(task, form.panels_per_task);
        let count = bounded(e, first, form.panels_per_task, form.panels);
        let end = e.add(first, count);
        let whole = e.i64(form.n / form.nr);
        let whole = e.min(end, whole);
        let to = |e: &mut Emitter, panel: Val| e.at(e.arg(result), panel, form.panel_bytes());
        if form.flipped {
            e.for_range(first, whole, GROUP, &[], |e, panel, _| {
                let (rest, most) = (e.sub(whole, panel), e.i64(GROUP));
                let (count, to) = (e.min(rest, most), to(e, panel));
                form.side_by_side(e, panel, count, to);
                vec![]
            });
        } else {
            e.each(first, whole, |e, panel| {
                let to = to(e, panel);
                form.panel(e, panel, to, form.nr);
            });
        }
        if form.n % form.nr != 0 {
            let ragged = e.cmp(Cmp::Lt, whole, end);
            e.when(ragged, |e| {
                let to = to(e, whole);
                form.panel(e, whole, to, form.n % form.nr);
            });
        }
    });
    Ok(e.finish())
}
