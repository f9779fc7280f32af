//! Elementwise operations on the accumulators of a matmul, while they are in registers.
use super::row::{Chunk, Row, store};
use super::rowgraph::{Class, Graph, Kind, NodeId};
use super::{Emitter, Error, Val};
use rdc_ir::{Func, OpId, Opcode, ValueId};

/// Elementwise operations after a matmul, on accumulators still in registers.
pub struct Epilogue<'k> {
    graph: Graph<'k>,
    /// Nodes stored, with the pointer argument of their memory.
    results: Vec<(NodeId, usize)>,
    columns: usize,
}

impl<'k> Epilogue<'k> {
    /// Plans the epilogue of `matmul`, a `matmul` or a `packed_matmul` of `rows` rows with a weight of `parts` parts.
    /// `results` pairs each value to store, all of shape `[.., n / parts]`, with the index of its pointer argument.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a result is anything but elementwise operations on parts of the matmul and arguments.
    pub fn new(
        kernel: &'k str,
        func: &'k Func,
        rows: usize,
        matmul: OpId,
        results: &[(ValueId, usize)],
    ) -> Result<Epilogue<'k>, Error> {
        let op = &func.ops[matmul];
        let parts = if op.opcode == Opcode::PackedMatmul { op.size("parts").max(1) } else { 1 };
        let columns = func.ty(op.results[0]).last() / parts;
        let mut graph = Graph::new(kernel, func, rows, &op.results);
        let mut nodes = Vec::new();
        for &(value, pointer) in results {
            let node = graph.result(value)?;
            if graph.nodes[node].class.width().unwrap_or(1) != columns {
                let what = format!("a result of {} after a matmul of {columns} columns", func.ty(value));
                return Err(Error::unsupported(kernel, what));
            }
            nodes.push((node, pointer));
        }
        let epilogue = Epilogue { graph, results: nodes, columns };
        for (id, n) in epilogue.graph.nodes.iter().enumerate() {
            let fits = match &n.kind {
                Kind::Arg(_) | Kind::Constant(_) | Kind::Positions { .. } | Kind::Gather { .. } => true,
                Kind::Alias(_) | Kind::OneHot { .. } => true,
                Kind::Elementwise { operands, .. } => {
                    parts == 1 || operands.iter().all(|&o| !matches!(epilogue.graph.nodes[o].kind, Kind::Given(_)))
                }
                Kind::Slice { x, start } => {
                    let of_matmul = matches!(epilogue.graph.nodes[*x].kind, Kind::Given(_));
                    !of_matmul || (start % columns == 0 && n.class.width().unwrap_or(1) == columns)
                }
                Kind::Given(_) => parts == 1 || !epilogue.results.iter().any(|r| r.0 == id),
                _ => false,
            };
            if !fits {
                return Err(Error::unsupported(kernel, format!("{:?} after a matmul", n.kind)));
            }
        }
        Ok(epilogue)
    }

    /// Asks for the cache lines of the arguments and results at a column of a row (both `i64`).
    pub fn prefetch(&self, e: &mut Emitter, row: Val, col: Val) {
        let args = self.graph.nodes.iter().filter_map(|n| match (&n.kind, n.class) {
            (Kind::Arg(pointer), Class::Rows(_)) => Some((*pointer, n.dtype)),
            _ => None,
        });
        let results = self.results.iter().map(|&(node, pointer)| (pointer, self.graph.nodes[node].dtype));
        for (pointer, dtype) in args.chain(results) {
            let place = e.at(e.arg(pointer), row, self.columns * dtype.bytes());
            let place = e.at(place, col, dtype.bytes());
            e.prefetch(place, 1);
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
            self.results.iter().map(|&(node, _)| self.graph.evaluate(e, &mut ctx, node, chunk)).collect();
        for (&(node, pointer), value) in self.results.iter().zip(values) {
            let n = &self.graph.nodes[node];
            let base = e.at(e.arg(pointer), row, self.columns * n.dtype.bytes());
            store(e, base, n.dtype, chunk, value);
        }
    }
}
