//! Sums over all rows of elementwise operations, and elementwise operations on the sums.
use super::row::{Chunk, Row, store};
use super::rowgraph::Graph;
use super::{Emitter, Ty, Val};
use rdc_ir::program::Kernel;
use rdc_ir::program::body::Columns;
use rdc_ir::program::rows::NodeId;

/// Rows taken together, so that as many streams are read and sums are loaded and stored once for them.
const ROWS: usize = 4;

/// A plan for the sums of every column.
pub struct ColumnProgram<'k> {
    /// Of the terms, over all rows.
    terms: Graph<'k>,
    /// What is summed.
    nodes: &'k [NodeId],
    /// Of the results, over one row; the sums are given.
    after: Graph<'k>,
    /// Results and the pointer arguments of their memory.
    results: Vec<(NodeId, usize)>,
    rows: usize,
}

impl<'k> ColumnProgram<'k> {
    /// Plans a kernel.
    pub fn new(kernel: &'k Kernel, columns: &'k Columns) -> ColumnProgram<'k> {
        let Columns { terms, sums, epilogue, .. } = columns;
        ColumnProgram {
            terms: Graph::new(kernel, terms),
            nodes: sums,
            after: Graph::new(kernel, &epilogue.graph),
            results: epilogue.results.iter().map(|stored| (stored.node, stored.pointer)).collect(),
            rows: terms.rows,
        }
    }

    /// Bytes of scratch for sums of `columns` columns.
    pub fn scratch(&self, columns: usize) -> usize {
        self.nodes.len() * stride(columns)
    }

    /// Emits the columns `first..` of which there are `count` (`i64`), at most `most`.
    pub fn emit(&self, e: &mut Emitter, first: Val, count: Val, most: usize) {
        let zero = e.i64(0);
        let sums: Vec<Val> = (0..self.nodes.len()).map(|i| e.offset_const(e.scratch, i * stride(most))).collect();
        by_vectors(e, count, |e, column, lanes| {
            let none = e.f32(0.0, lanes);
            for &sum in &sums {
                let place = e.at(sum, column, 4);
                e.store_raw(place, none);
            }
        });
        let whole = e.i64(self.rows / ROWS * ROWS);
        let end = e.i64(self.rows);
        e.for_range(zero, whole, ROWS, &[], |e, row, _| {
            self.add_rows(e, row, ROWS, (first, count), &sums);
            vec![]
        });
        e.each(whole, end, |e, row| self.add_rows(e, row, 1, (first, count), &sums));
        self.finish(e, (first, count), &sums);
    }

    /// Adds `rows` rows to the sums, in order.
    fn add_rows(&self, e: &mut Emitter, row: Val, rows: usize, (first, count): (Val, Val), sums: &[Val]) {
        let mut contexts = Vec::new();
        for i in 0..rows {
            let mut ctx = Row::new(e.add_const(row, i), &[], e.scratch);
            self.nodes.iter().for_each(|&node| self.terms.prepare_all(e, &mut ctx, node));
            contexts.push(ctx);
        }
        by_vectors(e, count, |e, column, lanes| {
            let chunk = Chunk { col: e.add(first, column), offset: 0, lanes };
            contexts.iter_mut().for_each(|ctx| ctx.chunk.clear());
            for (&node, &sum) in self.nodes.iter().zip(sums) {
                let place = e.at(sum, column, 4);
                let mut total = e.load_raw(place, Ty::f32(lanes));
                for ctx in &mut contexts {
                    let term = self.terms.evaluate(e, ctx, node, chunk);
                    total = e.add(total, term);
                }
                e.store_raw(place, total);
            }
        });
    }

    /// The results. All is read before anything is written: a result may have the memory of an argument.
    fn finish(&self, e: &mut Emitter, (first, count): (Val, Val), sums: &[Val]) {
        let zero = e.i64(0);
        let mut once = Row::new(zero, &[], e.scratch);
        self.results.iter().for_each(|&(node, _)| self.after.prepare_all(e, &mut once, node));
        by_vectors(e, count, |e, column, lanes| {
            let loaded: Vec<Val> = sums
                .iter()
                .map(|&sum| {
                    let place = e.at(sum, column, 4);
                    e.load_raw(place, Ty::f32(lanes))
                })
                .collect();
            let mut ctx = Row { accumulators: &loaded, ..once.clone() };
            let chunk = Chunk { col: e.add(first, column), offset: 0, lanes };
            let values: Vec<Val> =
                self.results.iter().map(|&(node, _)| self.after.evaluate(e, &mut ctx, node, chunk)).collect();
            for (&(node, pointer), value) in self.results.iter().zip(values) {
                store(e, e.arg(pointer), self.after.nodes[node].dtype, chunk, value);
            }
        });
    }
}

/// Bytes of the sums of so many columns.
fn stride(columns: usize) -> usize {
    (columns * 4).next_multiple_of(64)
}

/// Runs the body for whole vectors of `0..count` (`i64`), then for each element left.
fn by_vectors(e: &mut Emitter, count: Val, mut body: impl FnMut(&mut Emitter, Val, usize)) {
    let n = e.lanes;
    let (zero, (vectors, _)) = (e.i64(0), e.div_rem(count, n));
    let whole = e.mul_const(vectors, n);
    e.for_range(zero, whole, n, &[], |e, column, _| {
        body(e, column, n);
        vec![]
    });
    e.each(whole, count, |e, column| body(e, column, 1));
}
