//! Elementwise operations on the accumulators of a matmul, while they are in registers.
use super::row::{Chunk, Row};
use super::rowgraph::{Class, Graph, Kind, NodeId};
use super::{Emitter, Error, Val};
use rdc_ir::program::Kernel;
use rdc_ir::{Func, OpId, Opcode, ValueId};

/// Elementwise operations after a matmul, on accumulators still in registers.
pub struct Epilogue<'k> {
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

impl<'k> Epilogue<'k> {
    /// Plans the epilogue of `matmul`, a `matmul` or a `packed_matmul` of `rows` rows with a weight of `parts` parts.
    /// `results` pairs each value to store, of shape `[.., n / parts]` or several such values joined along the last axis, with
    /// the index of its pointer argument.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a result is anything but elementwise operations on parts of the matmul and arguments, or such
    /// values joined.
    pub fn new(
        kernel: &'k Kernel,
        rows: usize,
        matmul: OpId,
        results: &[(ValueId, usize)],
    ) -> Result<Epilogue<'k>, Error> {
        let func = &kernel.func;
        let op = &func.ops[matmul];
        let parts = if op.opcode == Opcode::PackedMatmul { op.size("parts").max(1) } else { 1 };
        let columns = func.ty(op.results[0]).last() / parts;
        let mut graph = Graph::new(kernel, rows, &op.results);
        let mut nodes = Vec::new();
        for &(value, pointer) in results {
            let (joined, ty) = (joined(func, value), func.ty(value));
            let width = if joined.is_some() { ty.last() } else { columns };
            let pitch = kernel.pitch(pointer, width * ty.dtype.bytes());
            let mut first = 0;
            for &part in joined.unwrap_or(&[value]) {
                let node = graph.result(part)?;
                if graph.nodes[node].class.width().unwrap_or(1) != columns {
                    let what = format!("a result of {} after a matmul of {columns} columns", func.ty(part));
                    return Err(Error::unsupported(&kernel.name, what));
                }
                nodes.push(Stored { node, pointer, first, pitch });
                first += columns;
            }
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
                Kind::Given(_) => parts == 1 || !epilogue.results.iter().any(|r| r.node == id),
                _ => false,
            };
            if !fits {
                return Err(Error::unsupported(&kernel.name, format!("{:?} after a matmul", n.kind)));
            }
        }
        Ok(epilogue)
    }

    /// The arguments and results: their pointers, and the bytes between rows.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.touched().map(|stored| (stored.pointer, stored.pitch))
    }

    /// The arguments that are read row by row, and the results.
    fn touched(&self) -> impl Iterator<Item = Stored> {
        let read = self.graph.nodes.iter().enumerate().filter_map(|(node, n)| match (&n.kind, n.class) {
            (&Kind::Arg(pointer), Class::Rows(_)) => {
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

/// The values that a value joins along the last axis.
fn joined(func: &Func, value: ValueId) -> Option<&[ValueId]> {
    let op = &func.ops[func.def_op(value)?];
    let along_rows = op.opcode == Opcode::Concat && op.size("axis") + 1 == func.ty(value).rank();
    along_rows.then_some(&op.operands)
}
