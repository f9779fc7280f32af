//! How a kernel reaches the tensor of each pointer.
use rdc_ir::program::body::{CacheWrite, Epilogue, HeadChain, Heads, Rows};
use rdc_ir::program::rows::{Class, NodeKind, Rotation, RowGraph, Stored};
use rdc_ir::program::{Access, KernelKind};
use std::collections::BTreeMap;

/// The accesses of a kernel's pointers.
pub fn accesses(kind: &KernelKind, pointers: usize) -> Vec<Access> {
    let mut found = Accesses(vec![None; pointers]);
    match kind {
        KernelKind::Rows(rows) => found.rows(rows, Access::Rows),
        KernelKind::Matmul(matmul) => {
            found.note(matmul.weight, Access::Weight);
            matmul.scale.iter().for_each(|&scale| found.note(scale, Access::Weight));
            found.graph(&matmul.before, Access::Rows);
            found.stored(&matmul.before, &matmul.kept, Access::Rows);
            let (Epilogue::Elements(rows) | Epilogue::Rows(rows)) = &matmul.epilogue;
            found.rows(rows, Access::Rows);
        }
        KernelKind::Product(product) => {
            // A task works on some rows of the only matrix, or on any of one of several.
            let row = if product.batch == 1 { Access::Rows } else { Access::Matrix };
            for (operand, by_rows) in [(product.left, product.left.inner_last), (product.right, false)] {
                found.note(operand.pointer, if by_rows { row } else { Access::Matrix }(operand.columns));
            }
            found.rows(&product.epilogue, row);
        }
        KernelKind::Columns(columns) => {
            found.graph(&columns.terms, Access::Matrix);
            found.rows(&columns.epilogue, |_| Access::Row);
        }
        KernelKind::KvWrite(body) => {
            body.writes.iter().for_each(|write| found.cache_write(write, (Access::Whole, Access::Cache)))
        }
        KernelKind::Attention(attention) | KernelKind::DecodeAttention(attention) => {
            attention.writes.iter().for_each(|write| found.cache_write(write, (Access::Batch, Access::Batch)));
            found.heads(&attention.heads);
            found.note(attention.result, Access::Batch);
        }
        KernelKind::AttentionGrad(grad) => {
            found.heads(&grad.heads);
            found.chain(&grad.dout, Access::Batch);
            for target in grad.targets.iter().flatten() {
                found.note(target.pointer, Access::Batch);
                target.rope.iter().for_each(|rope| found.rotation(rope));
            }
        }
        KernelKind::Pack(_) | KernelKind::ScatterAdd(_) | KernelKind::Generic(_) => {}
    }
    found.0.into_iter().map(|access| access.unwrap_or(Access::Whole)).collect()
}

struct Accesses(Vec<Option<Access>>);

impl Accesses {
    /// A pointer that is reached in two ways may be reached anywhere.
    fn note(&mut self, pointer: usize, access: Access) {
        let known = self.0[pointer].get_or_insert(access);
        if *known != access {
            *known = Access::Whole;
        }
    }
    fn rows(&mut self, rows: &Rows, row: impl Fn(usize) -> Access) {
        self.graph(&rows.graph, &row);
        self.stored(&rows.graph, &rows.results, row);
    }
    fn graph(&mut self, graph: &RowGraph, row: impl Fn(usize) -> Access) {
        for node in &graph.nodes {
            match &node.kind {
                NodeKind::Arg(pointer) => {
                    let access = match node.class {
                        Class::Rows(columns) => row(columns),
                        Class::Column => row(1),
                        Class::RowVector(_) => Access::Row,
                        Class::Scalar => Access::Scalar,
                    };
                    self.note(*pointer, access);
                }
                NodeKind::Gather { table, .. } | NodeKind::PackedGather { table, .. } => {
                    let rows = if matches!(node.class, Class::Rows(_)) { graph.rows } else { 1 };
                    self.note(*table, Access::Table { elements: rows * node.class.width().unwrap_or(1) });
                    if let NodeKind::PackedGather { scale: Some(scale), .. } = node.kind {
                        self.note(scale, Access::Whole);
                    }
                }
                NodeKind::Rope { rope, .. } => self.rotation(rope),
                NodeKind::Positions { pos, .. } => self.note(*pos, Access::Whole),
                _ => {}
            }
        }
    }
    fn stored(&mut self, graph: &RowGraph, results: &[Stored], row: impl Fn(usize) -> Access) {
        let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
        for stored in results {
            let width = graph.nodes[stored.node].class.width().unwrap_or(1);
            match stored.block {
                Some(rows) => self.note(stored.pointer, Access::Blocks { rows, columns: width }),
                None => *widths.entry(stored.pointer).or_default() += width,
            }
        }
        widths.into_iter().for_each(|(pointer, width)| self.note(pointer, row(width)));
    }
    fn rotation(&mut self, rope: &Rotation) {
        self.note(rope.table, Access::Whole);
        self.note(rope.pos, Access::Whole);
    }
    fn chain(&mut self, chain: &HeadChain, source: Access) {
        self.note(chain.source, source);
        chain.biases.iter().for_each(|bias| self.note(bias.0, Access::Row));
        chain.rope.iter().for_each(|rope| self.rotation(rope));
    }
    fn cache_write(&mut self, write: &CacheWrite, (source, cache): (Access, Access)) {
        self.chain(&write.chain, source);
        self.note(write.cache, cache);
        self.note(write.pos, Access::Whole);
    }
    fn heads(&mut self, heads: &Heads) {
        self.chain(&heads.query, Access::Batch);
        self.note(heads.keys.pointer, Access::Batch);
        self.note(heads.values.pointer, Access::Batch);
        self.note(heads.pos, Access::Whole);
    }
}
