//! Elementwise operations on the accumulators of a matmul, while they are in registers.
use super::row::{Chunk, Row};
use super::rowgraph::Graph;
use super::{Emitter, Val};
use rdc_ir::program::Kernel;
use rdc_ir::program::body::Rows;
use rdc_ir::program::rows::{Class, NodeId, NodeKind};
use std::collections::HashMap;

/// Elementwise operations after a matmul, on accumulators still in registers.
pub struct ElementEpilogue<'k> {
    graph: Graph<'k>,
    results: Vec<Stored>,
    columns: usize,
}

/// A node that is stored.
#[derive(Clone, Copy)]
struct Stored {
    node: NodeId,
    /// The pointer argument of its memory.
    pointer: usize,
    /// Its first column there.
    first: usize,
    /// Bytes between rows there.
    pitch: usize,
}

impl Stored {
    /// The address of column `col` of the node in row `row`.
    fn place(&self, e: &mut Emitter, graph: &Graph, row: Val, col: Val) -> Val {
        let bytes = graph.nodes[self.node].dtype.bytes();
        let place = e.at(e.arg(self.pointer), row, self.pitch);
        let place = e.offset_const(place, self.first * bytes);
        e.at(place, col, bytes)
    }
}

impl<'k> ElementEpilogue<'k> {
    /// The elementwise operations after a product with parts of `columns` columns each.
    pub fn new(kernel: &'k Kernel, rows: &'k Rows, columns: usize) -> ElementEpilogue<'k> {
        let graph = Graph::new(kernel, &rows.graph);
        // Results side by side in one are a row of it.
        let mut widths: HashMap<usize, usize> = HashMap::new();
        for stored in &rows.results {
            *widths.entry(stored.pointer).or_default() += columns * graph.nodes[stored.node].dtype.bytes();
        }
        let results = rows.results.iter().map(|stored| Stored {
            node: stored.node,
            pointer: stored.pointer,
            first: stored.first,
            pitch: kernel.pitch(stored.pointer, widths[&stored.pointer]),
        });
        ElementEpilogue { graph, results: results.collect(), columns }
    }

    /// The arguments and results: their pointers, and the bytes between rows.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.touched().map(|stored| (stored.pointer, stored.pitch))
    }

    /// The arguments that are read row by row, and the results.
    fn touched(&self) -> impl Iterator<Item = Stored> {
        let read = self.graph.nodes.iter().enumerate().filter_map(|(node, n)| match (&n.kind, n.class) {
            (&NodeKind::Arg(pointer), Class::Rows(_)) => {
                Some(Stored { node, pointer, first: 0, pitch: self.graph.pitch(pointer, n) })
            }
            _ => None,
        });
        read.chain(self.results.iter().copied())
    }

    /// Asks for the cache lines of the arguments and results at `columns` columns, from `col` on, of a row (both `i64`): those of
    /// one of `parts` parts. Unless `due` (`i1`), for those at another address: there is no branch, so that it can stand between
    /// steps that leave no register free.
    pub fn prefetch(
        &self,
        e: &mut Emitter,
        row: Val,
        (col, columns): (Val, usize),
        (part, parts): (usize, usize),
        (due, otherwise): (Val, Val),
    ) {
        let lines = self.touched().flat_map(|stored| {
            let bytes = columns * self.graph.nodes[stored.node].dtype.bytes();
            (0..bytes).step_by(64).map(move |line| (stored, line))
        });
        for (stored, line) in lines.skip(part).step_by(parts) {
            let place = stored.place(e, &self.graph, row, col);
            let place = e.select(due, place, otherwise);
            let line = e.offset_const(place, line);
            e.prefetch(line, 1);
        }
    }

    /// Emits the epilogue for columns `col..` of row `row` (both `i64`): `accumulators` holds for each part the matmul's
    /// values there, all of the same number of lanes (any power of two). Everything is read before anything is written, so a
    /// result may share the memory of an argument that is read element by element.
    pub fn emit(&self, e: &mut Emitter, row: Val, col: Val, accumulators: &[Val]) {
        let mut ctx = Row::new(row, &[], e.scratch);
        ctx.accumulators = accumulators;
        ctx.part = self.columns;
        let lanes = accumulators[0].lanes();
        let chunk = Chunk { col, offset: 0, lanes };
        let values: Vec<Val> =
            self.results.iter().map(|stored| self.graph.evaluate(e, &mut ctx, stored.node, chunk)).collect();
        for (stored, value) in self.results.iter().zip(values) {
            let place = stored.place(e, &self.graph, row, col);
            e.store(place, self.graph.nodes[stored.node].dtype, value);
        }
    }
}
