//! The shape of a matmul kernel: how its tasks are cut, and where its operands lie.
use super::unsupported;
use crate::emit::{Emitter, Error, Val};
use rdc_ir::DType;
use rdc_ir::program::body::Matmul;
use rdc_ir::program::rows::NodeKind;
use rdc_ir::program::{Kernel, Tiling};
use rdc_passes::tile::cpu::cache::{collide, odd_lines};

/// A matmul kernel with its tiles. Sizes are in elements; `n` counts the columns of the unsliced result.
pub struct Form<'k> {
    /// The kernel.
    pub kernel: &'k Kernel,
    /// What it computes.
    pub body: &'k Matmul,
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Inner size.
    pub k: usize,
    /// Rows per task.
    pub rows_per_task: usize,
    /// Panels per task.
    pub panels_per_task: usize,
    /// Inner block size.
    pub kc: usize,
    /// Panels taken together.
    pub group: usize,
    /// Bytes of the next task's rows that may be prefetched.
    pub prefetch: usize,
    /// Columns of a panel.
    pub nr: usize,
    /// Panels of the weight.
    pub panels: usize,
    /// Tasks of a row block.
    pub column_blocks: usize,
    /// Parts of the weight; a panel holds `nr / parts` columns of each.
    pub parts: usize,
    /// Element type of the weight.
    pub dtype: DType,
}

impl<'k> Form<'k> {
    /// The form of a matmul kernel.
    pub fn new(kernel: &'k Kernel, body: &'k Matmul, lanes: usize) -> Result<Form<'k>, Error> {
        let (rows_per_task, panels_per_task, kc, group, prefetch) = match kernel.tiling {
            Tiling::Panels { panels_per_task } => (body.m, panels_per_task, body.k, 1, 0),
            Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch } => {
                (rows_per_task, panels_per_task, kc, panels_together, prefetch)
            }
            _ => return unsupported(kernel, "a matmul that is not cut by panels"),
        };
        let &Matmul { m, n, k, packing, dtype, .. } = body;
        let (nr, parts) = (packing.nr, packing.parts);
        if nr % (parts * lanes) != 0 {
            return unsupported(kernel, "a number of parts that does not divide the panel into vectors");
        }
        if [rows_per_task, panels_per_task, kc, group].contains(&0) {
            return unsupported(kernel, "an empty tile");
        }
        let panels = packing.panels();
        Ok(Form {
            kernel,
            body,
            m,
            n,
            k,
            rows_per_task: rows_per_task.min(m),
            panels_per_task,
            // Whole pairs of bf16, and no block longer than the inner size.
            kc: kc.min(k).next_multiple_of(2),
            group,
            prefetch,
            nr,
            panels,
            column_blocks: panels.div_ceil(panels_per_task),
            parts,
            dtype,
        })
    }

    /// The left operand, if it is read where it lies: its pointer index, and the bytes between its rows. It is an argument, and
    /// the rows are few enough, or so far apart, that those of a register tile do not fall into one set of the first-level cache.
    pub fn x_in_place(&self) -> Option<(usize, usize)> {
        let NodeKind::Arg(x) = self.body.before.nodes[self.body.left].kind else { return None };
        let stride = self.kernel.pitch(x, self.k * 4);
        (!collide(self.m, stride)).then_some((x, stride))
    }
    /// Bytes of a weight panel.
    pub fn panel_bytes(&self) -> usize {
        self.body.packing.panel_elements() * self.dtype.bytes()
    }
    /// Address of a panel.
    pub fn panel(&self, e: &mut Emitter, panel: Val) -> Val {
        e.at(e.arg(self.body.weight), panel, self.panel_bytes())
    }
    /// Columns of the last panel if it is not full.
    pub fn ragged(&self) -> Option<usize> {
        Some(self.n % self.nr).filter(|&r| r != 0)
    }
    /// Bytes between rows of a computed left operand.
    pub fn left_stride(&self) -> usize {
        odd_lines(self.k)
    }
    /// Bytes between complete rows of the product, padded to whole panels.
    pub fn row_stride(&self) -> usize {
        odd_lines(self.panels * self.nr)
    }
}
