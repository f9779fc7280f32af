//! The shape of a matmul kernel: its anchor, what comes before and after, and how its tasks are cut.
use super::anchor::{only, pointer};
use crate::emit::{Emitter, Error, Val};
use rdc_ir::program::{Kernel, KernelKind, Tiling, has_row_epilogue};
use rdc_ir::{DType, Func, OpId, Opcode, ValueId};
use rdc_passes::tile::Cpu;
use rdc_passes::tile::cpu::cache::{collide, odd_lines};
use std::collections::HashSet;

/// A matmul kernel taken apart. Sizes are in elements; `n` counts the columns of the unsliced result.
pub struct Form<'k> {
    /// The kernel.
    pub kernel: &'k Kernel,
    /// What it computes.
    pub func: &'k Func,
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
    /// Pointer index of the weight.
    pub weight: usize,
    /// Pointer index of the int8 scales.
    pub scale: Option<usize>,
    /// The left operand, reshapes looked through.
    pub x: ValueId,
    /// The `packed_matmul`.
    pub anchor: OpId,
    /// The values that are computed after the product, itself included.
    after: HashSet<ValueId>,
    /// Whether row operations are among what computes them.
    has_row_epilogue: bool,
}

impl<'k> Form<'k> {
    /// Takes a matmul kernel apart.
    pub fn new(cpu: &Cpu, kernel: &'k Kernel) -> Result<Form<'k>, Error> {
        let fail = |what: &str| Err(Error::unsupported(&kernel.name, what));
        let KernelKind::Matmul { m, n, k } = kernel.kind else {
            return fail("a kernel of another kind than matmul");
        };
        let (rows_per_task, panels_per_task, kc, group, prefetch) = match kernel.tiling {
            Tiling::Panels { panels_per_task } => (m, panels_per_task, k, 1, 0),
            Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch } => {
                (rows_per_task, panels_per_task, kc, panels_together, prefetch)
            }
            _ => return fail("a matmul that is not cut by panels"),
        };
        let func = &kernel.func;
        let anchor_id = only(kernel, Opcode::PackedMatmul)?;
        let anchor = &func.ops[anchor_id];
        let Some(weight) = pointer(func, anchor.operands[1]) else { return fail("a weight that is computed") };
        let scale = anchor.operands.get(2).map(|&s| pointer(func, s));
        if scale == Some(None) {
            return fail("scales that are computed");
        }
        let (nr, parts) = (cpu.nr, anchor.size("parts").max(1));
        if nr % (parts * cpu.lanes) != 0 || n % parts != 0 || (parts > 1 && (n / parts) % (nr / parts) != 0) {
            return fail("a number of parts that does not divide the panel into vectors");
        }
        let dtype = func.ty(anchor.operands[1]).dtype;
        let product = anchor.results[0];
        let x = func.through_reshapes(anchor.operands[0]);
        if func.ty(x).elements() != m * k || func.ty(product).elements() != m * n {
            return fail("operands of another size than its kind says");
        }
        if [rows_per_task, panels_per_task, kc, group].contains(&0) {
            return fail("an empty tile");
        }
        let panels = n.div_ceil(nr);
        let form = Form {
            kernel,
            func,
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
            weight,
            scale: scale.flatten(),
            x,
            anchor: anchor_id,
            after: after(func, product, x, (m, n / parts)),
            has_row_epilogue: has_row_epilogue(func, &func.regions[func.body].ops, anchor_id),
        };
        let divided = form.column_blocks != 1 || parts != 1 || form.scale.is_some() || super::is_gemv(kernel);
        if form.has_row_epilogue && divided {
            return fail("row operations after a matmul but on whole rows of plain weights");
        }
        Ok(form)
    }

    /// Pointers of the calling convention: arguments, then results.
    pub fn pointers(&self) -> usize {
        self.func.args.len() + self.results().len()
    }
    /// Whether row operations follow on complete rows of the product.
    pub fn has_row_epilogue(&self) -> bool {
        self.has_row_epilogue
    }
    /// The results.
    fn results(&self) -> &'k [ValueId] {
        &self.func.regions[self.func.body].yields
    }
    /// The left operand, if it is read where it lies: its pointer index, and the bytes between its rows. It is an argument, and
    /// the rows are few enough, or so far apart, that those of a register tile do not fall into one set of the first-level cache.
    pub fn x_in_place(&self) -> Option<(usize, usize)> {
        let x = pointer(self.func, self.x)?;
        let stride = self.kernel.pitch(x, self.k * 4);
        (!collide(self.m, stride)).then_some((x, stride))
    }
    /// Results that are computed before the product, with their pointer indices.
    pub fn prologue_results(&self) -> Vec<(ValueId, usize)> {
        self.numbered_results().filter(|(v, _)| !self.after.contains(v)).collect()
    }
    /// Results that are computed after the product, with their pointer indices.
    pub fn epilogue_results(&self) -> Vec<(ValueId, usize)> {
        self.numbered_results().filter(|(v, _)| self.after.contains(v)).collect()
    }
    fn numbered_results(&self) -> impl Iterator<Item = (ValueId, usize)> {
        self.results().iter().enumerate().map(|(i, &v)| (v, self.func.args.len() + i))
    }
    /// Bytes of a weight panel.
    pub fn panel_bytes(&self) -> usize {
        match self.dtype {
            DType::BF16 => self.k.next_multiple_of(2) * self.nr * 2,
            other => self.k * self.nr * other.bytes(),
        }
    }
    /// Address of a panel.
    pub fn panel(&self, e: &mut Emitter, panel: Val) -> Val {
        e.at(e.arg(self.weight), panel, self.panel_bytes())
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

/// What depends on the product, and elementwise operations over `m` rows of the epilogue's `columns` that the left operand `x` does
/// not need and that need nothing else from before it: they may share their operands with the epilogue.
fn after(func: &Func, product: ValueId, x: ValueId, (m, columns): (usize, usize)) -> HashSet<ValueId> {
    let ops = &func.regions[func.body].ops;
    let mut before = HashSet::from([x]);
    for &op in ops.iter().rev() {
        if func.ops[op].results.iter().any(|v| before.contains(v)) {
            before.extend(&func.ops[op].operands);
        }
    }
    let mut after = HashSet::from([product]);
    for &op in ops {
        let op = &func.ops[op];
        if op.operands.iter().any(|v| after.contains(v)) {
            after.extend(&op.results);
        }
    }
    for &op in ops {
        let op = &func.ops[op];
        let Some(&result) = op.results.first() else { continue };
        let is_constant = |v: ValueId| func.defined_by(v, Opcode::Constant).is_some();
        let is_free = |&v: &ValueId| pointer(func, v).is_some() || after.contains(&v) || is_constant(v);
        let ty = func.ty(result);
        let alike = ty.rank() > 0 && (ty.rows(), ty.last()) == (m, columns);
        if op.opcode.is_elementwise() && alike && !before.contains(&result) && op.operands.iter().all(is_free) {
            after.insert(result);
        }
    }
    after
}
