//! Sums over all rows of elementwise operations, and elementwise operations on the sums.
use super::row::{Chunk, Row, store};
use super::rowgraph::{Graph, Kind, NodeId};
use super::{Emitter, Error, Ty, Val};
use rdc_ir::program::Kernel;
use rdc_ir::{OpId, Opcode, Type, ValueId};

/// Rows taken together, so that as many streams are read and sums are loaded and stored once for them.
const ROWS: usize = 4;

/// A plan for the sums of every column.
pub struct ColumnProgram<'k> {
    /// Of the terms, over all rows.
    terms: Graph<'k>,
    /// What is summed.
    nodes: Vec<NodeId>,
    /// Of the results, over one row; the sums are given.
    after: Graph<'k>,
    /// Results and the pointer arguments of their memory.
    results: Vec<(NodeId, usize)>,
    rows: usize,
}

/// Whether `to` is `from` summed over leading axes of `rows` elements.
fn is_column_sum(from: &Type, to: &Type, rows: usize) -> bool {
    let ones = vec![1; from.rank().saturating_sub(to.rank())];
    let to = [&ones[..], &to.shape[..]].concat();
    let kept = |axes: usize| to[..axes].iter().all(|&n| n == 1) && from.shape[axes..] == to[axes..];
    (0..=from.rank()).any(|axes| kept(axes) && from.shape[..axes].iter().product::<usize>() == rows)
}

impl<'k> ColumnProgram<'k> {
    /// Plans a kernel of `sum_to`s over `rows` rows of `columns` columns. `results` pairs each result, of `columns` elements,
    /// with the index of its pointer argument.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if anything but elementwise operations comes before or after the sums.
    pub fn new(
        kernel: &'k Kernel,
        (rows, columns): (usize, usize),
        results: &[(ValueId, usize)],
    ) -> Result<ColumnProgram<'k>, Error> {
        let func = &kernel.func;
        let is_sum = |op: &&OpId| func.ops[**op].opcode == Opcode::SumTo;
        let sums: Vec<OpId> = func.regions[func.body].ops.iter().filter(is_sum).copied().collect();
        let given: Vec<ValueId> = sums.iter().map(|&op| func.ops[op].results[0]).collect();
        let (mut terms, mut after) = (Graph::new(kernel, rows, &[]), Graph::new(kernel, 1, &given));
        let mut nodes = Vec::new();
        for (&op, &sum) in sums.iter().zip(&given) {
            let term = func.ops[op].operands[0];
            let (from, to) = (func.ty(term), func.ty(sum));
            if to.elements() != columns || !is_column_sum(from, to, rows) {
                return Err(Error::unsupported(&kernel.name, format!("a sum of {from} to {to} as column sums")));
            }
            nodes.push(terms.result(term)?);
        }
        let mut stored = Vec::new();
        for &(value, pointer) in results {
            if func.ty(value).elements() != columns {
                let what = format!("a result of {} beside sums of {columns} columns", func.ty(value));
                return Err(Error::unsupported(&kernel.name, what));
            }
            stored.push((after.result(value)?, pointer));
        }
        for n in terms.nodes.iter().chain(&after.nodes) {
            match n.kind {
                Kind::Arg(_) | Kind::Given(_) | Kind::Constant(_) | Kind::Positions { .. } | Kind::Gather { .. } => {}
                Kind::Alias(_) | Kind::Elementwise { .. } | Kind::Slice { .. } | Kind::OneHot { .. } => {}
                _ => return Err(Error::unsupported(&kernel.name, format!("{:?} among column sums", n.kind))),
            }
        }
        Ok(ColumnProgram { terms, nodes, after, results: stored, rows })
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
