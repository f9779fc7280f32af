//! Code for row operations (see [`rdc_ir::program::KernelKind`]): whole rows for `Rows` kernels and matmul prologues
//! ([`RowProgram`]), and elementwise epilogues on accumulators ([`Epilogue`]).
//!
//! A row is computed in as few sweeps over its columns as its reductions demand: a sweep evaluates every expression that
//! it stores or reduces, chunk by chunk in registers, and a value computed in one sweep but needed in a later one goes
//! through a buffer (its result's memory if it is a result, else scratch). Chunks are vectors of the target's lanes, then
//! vectors of falling powers of two for the rest of the row. Reductions keep up to four accumulators and fold them in an
//! order that depends on the row's length only.
use super::rowgraph::{Class, Graph, Kind, NodeId, Packed};
use super::{Emitter, Error, Ty, Val, elementwise, math};
use rdc_ir::{DType, Func, OpId, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Independent accumulators of a reduction: enough to hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// Pieces of `width` columns: full vectors of `lanes`, and (start, lanes) of the rest in falling powers of two.
pub fn pieces(width: usize, lanes: usize) -> (usize, Vec<(usize, usize)>) {
    let full = width / lanes;
    let (mut start, mut tail, mut size) = (full * lanes, Vec::new(), lanes / 2);
    while start < width {
        if start + size <= width {
            tail.push((start, size));
            start += size;
        }
        size /= 2;
    }
    (full, tail)
}

/// Where the rows of a value are kept.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// At this byte offset of scratch.
    Scratch(usize),
    /// In the memory of the target of that index.
    Target(usize),
}

/// A quantity reduced over a row in one sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stat {
    /// Of the operand of that `rms_norm`.
    SumOfSquares(NodeId),
    /// Of the operand of that `layer_norm` or `reduce_sum`.
    Sum(NodeId),
    /// Of the operand of that `layer_norm`, less its mean.
    CentredSquares(NodeId),
    /// Of the operand of that `reduce_max`.
    Max(NodeId),
    /// Of the operand of that `softmax`.
    SoftmaxMax(NodeId),
    /// Of `e^(x - max)` of that `softmax`; the exponentials are stored on the way.
    ExpSum(NodeId),
}

/// One pass over the columns.
#[derive(Default, Debug)]
struct Sweep {
    /// Values written, with the column they are written at.
    stores: Vec<(NodeId, Place, usize)>,
    stats: BTreeSet<Stat>,
}

/// A plan for computing rows; see the module documentation.
pub struct RowProgram<'k> {
    graph: Graph<'k>,
    targets: Vec<NodeId>,
    sweeps: BTreeMap<(usize, usize), Sweep>,
    places: HashMap<NodeId, Place>,
    marked: BTreeSet<(NodeId, usize)>,
    /// Nodes that the sweep of their own level writes to their place.
    stored: BTreeSet<NodeId>,
    scratch: usize,
}

/// What is known while a row is being computed.
struct Row<'a> {
    index: Val,
    targets: &'a [Val],
    scratch: Val,
    level: usize,
    /// Start of the row in an argument (or of the gathered row), by node.
    bases: HashMap<NodeId, Val>,
    /// One element for the row, by node.
    columns: HashMap<NodeId, Val>,
    stats: HashMap<Stat, Val>,
    /// Values at the current chunk, by node and constant column offset.
    chunk: HashMap<(NodeId, usize), Val>,
    /// The matmul's values at the current columns, one per part.
    accumulators: &'a [Val],
    /// Columns of a part.
    part: usize,
}

impl<'a> Row<'a> {
    fn new(index: Val, targets: &'a [Val], scratch: Val) -> Row<'a> {
        Row {
            index,
            targets,
            scratch,
            level: 0,
            bases: HashMap::new(),
            columns: HashMap::new(),
            stats: HashMap::new(),
            chunk: HashMap::new(),
            accumulators: &[],
            part: usize::MAX,
        }
    }
    fn place(&self, e: &mut Emitter, place: Place) -> Val {
        match place {
            Place::Scratch(offset) => e.offset_const(self.scratch, offset),
            Place::Target(index) => self.targets[index],
        }
    }
}

/// A chunk of columns: `col + offset ..` of `lanes`.
#[derive(Clone, Copy)]
struct Chunk {
    col: Val,
    offset: usize,
    lanes: usize,
}

impl<'k> RowProgram<'k> {
    /// Plans the computation of one row of each target, of a kernel of `rows` rows. A target is a value of shape
    /// `[.., D]` with `rows` rows, or one with an element for each row.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the targets depend on anything but row operations.
    pub fn new(kernel: &'k str, func: &'k Func, rows: usize, targets: &[ValueId]) -> Result<RowProgram<'k>, Error> {
        let mut graph = Graph::new(kernel, func, rows, None);
        let nodes = targets.iter().map(|&v| graph.result(v)).collect::<Result<Vec<_>, _>>()?;
        let mut program = RowProgram {
            graph,
            targets: nodes,
            sweeps: BTreeMap::new(),
            places: HashMap::new(),
            marked: BTreeSet::new(),
            stored: BTreeSet::new(),
            scratch: 0,
        };
        program.plan();
        Ok(program)
    }

    /// Bytes of scratch that [`RowProgram::emit`] uses.
    pub fn scratch(&self) -> usize {
        self.scratch
    }

    /// Bytes of a row of a target.
    pub fn stride(&self, target: usize) -> usize {
        let n = &self.graph.nodes[self.targets[target]];
        n.class.width().unwrap_or(1) * n.dtype.bytes()
    }

    // ---- planning ----
    fn plan(&mut self) {
        // A target's memory is its value's place; a second target of the same value is a copy.
        for (index, &node) in self.targets.iter().enumerate() {
            if self.graph.nodes[node].class.width().is_some() {
                self.places.entry(node).or_insert(Place::Target(index));
            }
        }
        for (index, node) in self.targets.clone().into_iter().enumerate() {
            let n = &self.graph.nodes[node];
            let level = n.level;
            if let Some(width) = n.class.width() {
                let first = matches!(self.places.get(&node), Some(Place::Target(i)) if *i == index);
                if !(first && n.is_buffered()) {
                    self.sweeps.entry((level, width)).or_default().stores.push((node, Place::Target(index), 0));
                    self.stored.insert(node);
                }
            }
            self.mark(node, level);
        }
    }

    /// The place of a node, in scratch if it has none yet.
    fn place(&mut self, node: NodeId) -> Place {
        if let Some(&place) = self.places.get(&node) {
            return place;
        }
        let n = &self.graph.nodes[node];
        let bytes = n.class.width().unwrap_or(1) * n.dtype.bytes();
        let place = Place::Scratch(self.scratch);
        self.scratch += bytes.next_multiple_of(64);
        self.places.insert(node, place);
        place
    }

    fn stat(&mut self, stat: Stat, x: NodeId) {
        let n = &self.graph.nodes[x];
        if let Some(width) = n.class.width() {
            let after = matches!(stat, Stat::CentredSquares(_) | Stat::ExpSum(_)) as usize;
            let level = n.level + after;
            self.sweeps.entry((level, width)).or_default().stats.insert(stat);
            self.mark(x, level);
        }
    }

    /// Notes that a node is evaluated in a sweep of `level`: places for what comes from earlier sweeps, reductions.
    fn mark(&mut self, node: NodeId, level: usize) {
        if !self.marked.insert((node, level)) {
            return;
        }
        let own = self.graph.nodes[node].level;
        if level > own && !self.graph.is_cheap(node) {
            let place = self.place(node);
            if let Some(width) = self.graph.nodes[node].class.width()
                && self.stored.insert(node)
            {
                self.sweeps.entry((own, width)).or_default().stores.push((node, place, 0));
            }
            return self.mark(node, own);
        }
        match self.graph.nodes[node].kind.clone() {
            Kind::Arg(_) | Kind::Matmul | Kind::Constant(_) | Kind::Positions { .. } => {}
            Kind::Gather { ids, .. } => self.mark(ids, level),
            Kind::PackedGather { ids, .. } => {
                self.place(node);
                self.mark(ids, own);
            }
            Kind::Alias(x) | Kind::Slice { x, .. } => self.mark(x, level),
            Kind::Elementwise { operands, .. } => operands.into_iter().for_each(|o| self.mark(o, level)),
            Kind::Concat(parts) => {
                let place = self.place(node);
                if self.stored.insert(node) {
                    for (part, start) in parts {
                        let n = &self.graph.nodes[part];
                        let key = (n.level, n.class.width().unwrap_or(1));
                        self.sweeps.entry(key).or_default().stores.push((part, place, start));
                        self.mark(part, key.0);
                    }
                }
            }
            Kind::RmsNorm { x, weight, .. } => {
                self.stat(Stat::SumOfSquares(node), x);
                self.mark(x, level);
                self.mark(weight, level);
            }
            Kind::LayerNorm { x, weight, bias, .. } => {
                self.stat(Stat::Sum(node), x);
                self.stat(Stat::CentredSquares(node), x);
                [x, weight, bias].into_iter().for_each(|o| self.mark(o, level));
            }
            Kind::Softmax { x } => {
                // The place of a softmax holds its exponentials first; a target's own memory serves for both.
                self.place(node);
                self.stat(Stat::SoftmaxMax(node), x);
                self.stat(Stat::ExpSum(node), x);
            }
            Kind::Reduce { x, max } => self.stat(if max { Stat::Max(node) } else { Stat::Sum(node) }, x),
        }
    }

    // ---- emission ----
    /// Emits the computation of row `row` (`i64`). `targets` are the addresses of the row in each target's memory;
    /// `scratch` has [`RowProgram::scratch`] bytes.
    pub fn emit(&self, e: &mut Emitter, row: Val, targets: &[Val], scratch: Val) {
        let mut ctx = Row::new(row, targets, scratch);
        let last = self.graph.nodes.iter().map(|n| n.level).max().unwrap_or(0);
        for level in 0..=last {
            ctx.level = level;
            for (index, &node) in self.targets.iter().enumerate() {
                let n = &self.graph.nodes[node];
                if n.level == level && n.class.width().is_none() {
                    let value = self.graph.column(e, &mut ctx, node);
                    e.store(targets[index], n.dtype, value);
                }
            }
            for (id, n) in self.graph.nodes.iter().enumerate() {
                if let (Kind::PackedGather { w, scale, ids, packed }, Some(&place)) = (&n.kind, self.places.get(&id))
                    && n.level == level
                {
                    let ids = self.graph.column(e, &mut ctx, *ids);
                    let to = ctx.place(e, place);
                    packed_row(e, e.arg(*w), scale.map(|s| e.arg(s)), ids, packed, to);
                }
            }
            for (&(_, width), sweep) in self.sweeps.range((level, 0)..(level + 1, 0)) {
                self.sweep(e, &mut ctx, width, sweep);
            }
        }
    }

    fn sweep(&self, e: &mut Emitter, ctx: &mut Row, width: usize, sweep: &Sweep) {
        for &(node, ..) in &sweep.stores {
            self.prepare(e, ctx, node);
        }
        for &stat in &sweep.stats {
            self.prepare(e, ctx, self.operand(stat));
        }
        let stats: Vec<Stat> = sweep.stats.iter().copied().collect();
        let (full, tail) = pieces(width, e.lanes);
        let unroll = if stats.is_empty() { 1 } else { ACCUMULATORS.min(full.max(1)) };
        let trips = full / unroll;
        let start: Vec<Val> = (0..unroll).flat_map(|_| &stats).map(|&s| e.f32(initial(s), e.lanes)).collect::<Vec<_>>();
        let per_chunk = stats.len();
        let step = unroll * e.lanes;
        let zero = e.i64(0);
        let mut totals = start;
        if trips > 1 {
            let hi = e.i64(trips * step);
            totals = e.for_range(zero, hi, step, &totals, |e, col, carried| {
                let mut next = Vec::new();
                for u in 0..unroll {
                    let chunk = Chunk { col, offset: u * e.lanes, lanes: e.lanes };
                    next.extend(self.chunk(e, ctx, sweep, &stats, chunk, &carried[u * per_chunk..][..per_chunk]));
                }
                next
            });
        }
        let first = if trips > 1 { trips * unroll } else { 0 };
        for i in first..full {
            let u = (i - first) % unroll;
            let chunk = Chunk { col: zero, offset: i * e.lanes, lanes: e.lanes };
            let next = self.chunk(e, ctx, sweep, &stats, chunk, &totals[u * per_chunk..][..per_chunk]);
            totals.splice(u * per_chunk..(u + 1) * per_chunk, next);
        }
        // Accumulators fold pairwise, then their lanes, then the tail's pieces are joined in order.
        let mut folded: Vec<Option<Val>> = vec![None; per_chunk];
        if full > 0 {
            for (i, &stat) in stats.iter().enumerate() {
                let mut values: Vec<Val> = (0..unroll).map(|u| totals[u * per_chunk + i]).collect();
                while values.len() > 1 {
                    values = values
                        .chunks(2)
                        .map(|pair| if pair.len() == 2 { join(e, stat, pair[0], pair[1]) } else { pair[0] })
                        .collect();
                }
                folded[i] = Some(e.fold(values[0], |e, a, b| join(e, stat, a, b)));
            }
        }
        for (offset, lanes) in tail {
            let start: Vec<Val> = stats.iter().map(|&s| e.f32(initial(s), lanes)).collect();
            let chunk = Chunk { col: zero, offset, lanes };
            let next = self.chunk(e, ctx, sweep, &stats, chunk, &start);
            for (i, value) in next.into_iter().enumerate() {
                let value = e.fold(value, |e, a, b| join(e, stats[i], a, b));
                folded[i] = Some(match folded[i] {
                    Some(sum) => join(e, stats[i], sum, value),
                    None => value,
                });
            }
        }
        for (stat, value) in stats.into_iter().zip(folded) {
            if let Some(value) = value {
                let value = self.finish_stat(e, stat, value, width);
                ctx.stats.insert(stat, value);
            }
        }
        ctx.chunk.clear();
    }

    /// What is kept of a finished reduction: the factor or term that the rest of the row is computed with.
    fn finish_stat(&self, e: &mut Emitter, stat: Stat, value: Val, width: usize) -> Val {
        let mean = |e: &mut Emitter| {
            let n = e.f32(width as f32, 1);
            e.div(value, n)
        };
        match stat {
            Stat::SumOfSquares(node) | Stat::CentredSquares(node) => {
                let eps = match self.graph.nodes[node].kind {
                    Kind::RmsNorm { eps, .. } | Kind::LayerNorm { eps, .. } => eps,
                    _ => 0.0,
                };
                let mean = mean(e);
                let eps = e.f32(eps, 1);
                let sum = e.add(mean, eps);
                math::rsqrt(e, sum)
            }
            Stat::Sum(node) if matches!(self.graph.nodes[node].kind, Kind::LayerNorm { .. }) => mean(e),
            Stat::ExpSum(_) => {
                let one = e.f32(1.0, 1);
                e.div(one, value)
            }
            Stat::Sum(_) | Stat::Max(_) | Stat::SoftmaxMax(_) => value,
        }
    }

    /// The node that a reduction runs over.
    fn operand(&self, stat: Stat) -> NodeId {
        let (Stat::SumOfSquares(node)
        | Stat::Sum(node)
        | Stat::CentredSquares(node)
        | Stat::Max(node)
        | Stat::SoftmaxMax(node)
        | Stat::ExpSum(node)) = stat;
        match self.graph.nodes[node].kind {
            Kind::RmsNorm { x, .. } | Kind::LayerNorm { x, .. } | Kind::Softmax { x } | Kind::Reduce { x, .. } => x,
            _ => node,
        }
    }

    /// Stores and reductions of one chunk; returns the successors of the accumulators.
    fn chunk(
        &self,
        e: &mut Emitter,
        ctx: &mut Row,
        sweep: &Sweep,
        stats: &[Stat],
        chunk: Chunk,
        accumulators: &[Val],
    ) -> Vec<Val> {
        ctx.chunk.clear();
        for &(node, place, at) in &sweep.stores {
            let value = self.value(e, ctx, node, chunk);
            let base = ctx.place(e, place);
            let dtype = self.graph.nodes[node].dtype;
            store(e, base, dtype, Chunk { offset: chunk.offset + at, ..chunk }, value);
        }
        let mut next = Vec::new();
        for (&stat, &acc) in stats.iter().zip(accumulators) {
            let x = self.value(e, ctx, self.operand(stat), chunk);
            next.push(match stat {
                Stat::SumOfSquares(_) => e.fma(x, x, acc),
                Stat::Sum(_) | Stat::Max(_) | Stat::SoftmaxMax(_) => join(e, stat, acc, x),
                Stat::CentredSquares(node) => {
                    let mean = e.splat(ctx.stats[&Stat::Sum(node)], chunk.lanes);
                    let d = e.sub(x, mean);
                    e.fma(d, d, acc)
                }
                Stat::ExpSum(node) => {
                    let max = e.splat(ctx.stats[&Stat::SoftmaxMax(node)], chunk.lanes);
                    let d = e.sub(x, max);
                    let power = math::exp_nonpositive(e, d);
                    let base = ctx.place(e, self.places[&node]);
                    store(e, base, DType::F32, chunk, power);
                    e.add(acc, power)
                }
            });
        }
        next
    }

    /// Computes, ahead of a loop over columns, what a node needs once per row.
    fn prepare(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) {
        if self.is_loaded(ctx, node) {
            return;
        }
        self.graph.prepare(e, ctx, node, &mut |e, ctx, node| self.prepare(e, ctx, node));
    }

    fn is_loaded(&self, ctx: &Row, node: NodeId) -> bool {
        let n = &self.graph.nodes[node];
        self.places.contains_key(&node) && (n.is_buffered() || n.level < ctx.level)
    }

    /// The value of a node at a chunk.
    fn value(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, chunk: Chunk) -> Val {
        if let Some(&value) = ctx.chunk.get(&(node, chunk.offset))
            && value.lanes() == chunk.lanes
        {
            return value;
        }
        let n = &self.graph.nodes[node];
        let value = match (n.class.width(), &n.kind) {
            (Some(_), _) if self.is_loaded(ctx, node) => {
                let base = ctx.place(e, self.places[&node]);
                load(e, base, n.dtype, chunk)
            }
            (Some(_), Kind::Softmax { .. }) => {
                let base = ctx.place(e, self.places[&node]);
                let power = load(e, base, DType::F32, chunk);
                let inverse = e.splat(ctx.stats[&Stat::ExpSum(node)], chunk.lanes);
                e.mul(power, inverse)
            }
            (Some(_), Kind::RmsNorm { x, weight, .. }) => {
                let x = self.value(e, ctx, *x, chunk);
                let weight = self.value(e, ctx, *weight, chunk);
                let inverse = e.splat(ctx.stats[&Stat::SumOfSquares(node)], chunk.lanes);
                let y = e.mul(x, inverse);
                e.mul(y, weight)
            }
            (Some(_), Kind::LayerNorm { x, weight, bias, .. }) => {
                let x = self.value(e, ctx, *x, chunk);
                let (weight, bias) = (self.value(e, ctx, *weight, chunk), self.value(e, ctx, *bias, chunk));
                let mean = e.splat(ctx.stats[&Stat::Sum(node)], chunk.lanes);
                let inverse = e.splat(ctx.stats[&Stat::CentredSquares(node)], chunk.lanes);
                let d = e.sub(x, mean);
                let y = e.mul(d, inverse);
                e.fma(y, weight, bias)
            }
            _ => self.graph.value(e, ctx, node, chunk, &mut |e, ctx, node, chunk| self.value(e, ctx, node, chunk)),
        };
        ctx.chunk.insert((node, chunk.offset), value);
        value
    }
}

fn initial(stat: Stat) -> f32 {
    if matches!(stat, Stat::Max(_) | Stat::SoftmaxMax(_)) { f32::NEG_INFINITY } else { 0.0 }
}

fn join(e: &mut Emitter, stat: Stat, a: Val, b: Val) -> Val {
    match stat {
        Stat::Max(_) => e.max(a, b),
        // A NaN that this misses comes back with the sum of the exponentials.
        Stat::SoftmaxMax(_) => e.max_fast(a, b),
        _ => e.add(a, b),
    }
}

fn address(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk) -> Val {
    let pointer = e.at(base, chunk.col, dtype.bytes());
    e.offset_const(pointer, chunk.offset * dtype.bytes())
}

fn load(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk) -> Val {
    let pointer = address(e, base, dtype, chunk);
    e.load(pointer, dtype, chunk.lanes)
}

fn store(e: &mut Emitter, base: Val, dtype: DType, chunk: Chunk, value: Val) {
    let pointer = address(e, base, dtype, chunk);
    e.store(pointer, dtype, value);
}

/// Copies row `id` of a packed table to `to`.
fn packed_row(e: &mut Emitter, w: Val, scale: Option<Val>, id: Val, packed: &Packed, to: Val) {
    let Packed { n, k, parts, nr, kp, dtype } = *packed;
    let id = e.index(id, n);
    let (part_rows, part_width) = (n / parts, nr / parts);
    let (part, within) = e.div_rem(id, part_rows);
    let (panel, lane) = e.div_rem(within, part_width);
    let first = e.mul_const(part, part_width);
    let column = e.add(first, lane);
    let base = e.at(w, panel, k.div_ceil(kp) * nr * kp * dtype.bytes());
    let base = e.at(base, column, kp * dtype.bytes());
    let factor = scale.map(|s| {
        let place = e.at(s, id, 4);
        e.load_raw(place, Ty::f32(1))
    });
    let copy = |e: &mut Emitter, i: Val, j: usize| {
        let from = e.at(base, i, nr * kp * dtype.bytes());
        let from = e.offset_const(from, j * dtype.bytes());
        let mut value = e.load(from, dtype, 1);
        if let Some(f) = factor {
            value = e.mul(value, f);
        }
        let place = e.at(to, i, kp * 4);
        let place = e.offset_const(place, j * 4);
        e.store_raw(place, value);
    };
    e.repeat(k / kp, |e, i| (0..kp).for_each(|j| copy(e, i, j)));
    let last = e.i64(k / kp);
    (0..k % kp).for_each(|j| copy(e, last, j));
}

type Prepare<'f> = dyn FnMut(&mut Emitter, &mut Row, NodeId) + 'f;
type Evaluate<'f> = dyn FnMut(&mut Emitter, &mut Row, NodeId, Chunk) -> Val + 'f;

impl Graph<'_> {
    /// One element for the current row of a node of class `Column` or `Scalar`.
    fn column(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) -> Val {
        if let Some(&value) = ctx.columns.get(&node) {
            return value;
        }
        let n = &self.nodes[node];
        let value = match &n.kind {
            Kind::Arg(index) => {
                let base = e.arg(*index);
                let place = if n.class == Class::Column { e.at(base, ctx.index, n.dtype.bytes()) } else { base };
                e.load(place, n.dtype, 1)
            }
            Kind::Constant(value) => elementwise::constant(e, *value, n.dtype, 1),
            Kind::Positions { pos, len } => {
                let (batch, step) = e.div_rem(ctx.index, *len);
                let place = e.at(e.arg(*pos), batch, 4);
                let first = e.load(place, DType::I32, 1);
                let step = e.trunci(step, super::Elem::I32);
                e.add(first, step)
            }
            Kind::Elementwise { op, from, operands } => {
                let values: Vec<Val> = operands.iter().map(|&o| self.column(e, ctx, o)).collect();
                elementwise::apply(e, &self.func.ops[*op], *from, &values).unwrap_or(values[0])
            }
            Kind::Alias(x) => self.column(e, ctx, *x),
            Kind::Reduce { max, .. } => ctx.stats[&if *max { Stat::Max(node) } else { Stat::Sum(node) }],
            Kind::Matmul => ctx.accumulators[0],
            Kind::Slice { .. }
            | Kind::Gather { .. }
            | Kind::PackedGather { .. }
            | Kind::Concat(_)
            | Kind::RmsNorm { .. }
            | Kind::LayerNorm { .. }
            | Kind::Softmax { .. } => unreachable!("the graph gives these a width"),
        };
        ctx.columns.insert(node, value);
        value
    }

    /// See [`RowProgram::prepare`].
    fn prepare(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, inner: &mut Prepare) {
        let n = &self.nodes[node];
        if n.class.width().is_none() {
            self.column(e, ctx, node);
            return;
        }
        match &n.kind {
            Kind::Arg(_) | Kind::Gather { .. } => {
                self.base(e, ctx, node);
            }
            Kind::Alias(x) | Kind::Slice { x, .. } => inner(e, ctx, *x),
            Kind::Elementwise { operands, .. } => operands.iter().for_each(|&o| inner(e, ctx, o)),
            Kind::RmsNorm { x, weight, .. } => [*x, *weight].into_iter().for_each(|o| inner(e, ctx, o)),
            Kind::LayerNorm { x, weight, bias, .. } => {
                [*x, *weight, *bias].into_iter().for_each(|o| inner(e, ctx, o));
            }
            _ => {}
        }
    }

    /// The address of the current row of an argument or of a gathered row.
    fn base(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) -> Val {
        if let Some(&base) = ctx.bases.get(&node) {
            return base;
        }
        let n = &self.nodes[node];
        let base = match (&n.kind, n.class) {
            (Kind::Arg(index), Class::Rows(d)) => e.at(e.arg(*index), ctx.index, d * n.dtype.bytes()),
            (Kind::Arg(index), _) => e.arg(*index),
            (Kind::Gather { table, rows, ids }, class) => {
                let id = self.column(e, ctx, *ids);
                let id = e.index(id, *rows);
                e.at(e.arg(*table), id, class.width().unwrap_or(1) * 4)
            }
            _ => unreachable!("only arguments and gathers lie in memory by rows"),
        };
        ctx.bases.insert(node, base);
        base
    }

    /// The value at a chunk of a node that needs no reduction and no buffer; `inner` evaluates its operands.
    fn value(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, chunk: Chunk, inner: &mut Evaluate) -> Val {
        let n = &self.nodes[node];
        if n.class.width().is_none() {
            let value = self.column(e, ctx, node);
            return e.splat(value, chunk.lanes);
        }
        match &n.kind {
            Kind::Arg(_) | Kind::Gather { .. } => {
                let base = self.base(e, ctx, node);
                load(e, base, n.dtype, chunk)
            }
            Kind::Alias(x) => inner(e, ctx, *x, chunk),
            Kind::Slice { x, start } => inner(e, ctx, *x, Chunk { offset: chunk.offset + start, ..chunk }),
            Kind::Elementwise { op, from, operands } => {
                let values: Vec<Val> = operands.iter().map(|&o| inner(e, ctx, o, chunk)).collect();
                elementwise::apply(e, &self.func.ops[*op], *from, &values).unwrap_or(values[0])
            }
            Kind::Matmul => ctx.accumulators[(chunk.offset / ctx.part).min(ctx.accumulators.len() - 1)],
            _ => unreachable!("row programs evaluate these, epilogues refuse them"),
        }
    }
}

/// Elementwise operations after a matmul, on accumulators still in registers.
pub struct Epilogue<'k> {
    graph: Graph<'k>,
    /// Nodes stored, with the pointer argument of their memory.
    results: Vec<(NodeId, usize)>,
    columns: usize,
    parts: usize,
}

impl<'k> Epilogue<'k> {
    /// Plans the epilogue of `matmul`, a `packed_matmul` of `rows` rows with a weight of `parts` parts. `results` pairs
    /// each value to store, all of shape `[.., n / parts]`, with the index of its pointer argument.
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
        let parts = op.size("parts").max(1);
        let columns = op.size("n") / parts;
        let mut graph = Graph::new(kernel, func, rows, Some(matmul));
        let mut nodes = Vec::new();
        for &(value, pointer) in results {
            let node = graph.result(value)?;
            if graph.nodes[node].class.width().unwrap_or(1) != columns {
                let what = format!("a result of {} after a matmul of {columns} columns", func.ty(value));
                return Err(Error::unsupported(kernel, what));
            }
            nodes.push((node, pointer));
        }
        let epilogue = Epilogue { graph, results: nodes, columns, parts };
        for (id, n) in epilogue.graph.nodes.iter().enumerate() {
            let fits = match &n.kind {
                Kind::Arg(_) | Kind::Constant(_) | Kind::Positions { .. } | Kind::Gather { .. } | Kind::Alias(_) => {
                    true
                }
                Kind::Elementwise { operands, .. } => {
                    parts == 1 || operands.iter().all(|&o| !matches!(epilogue.graph.nodes[o].kind, Kind::Matmul))
                }
                Kind::Slice { x, start } => {
                    let of_matmul = matches!(epilogue.graph.nodes[*x].kind, Kind::Matmul);
                    !of_matmul || (start % columns == 0 && n.class.width().unwrap_or(1) == columns)
                }
                Kind::Matmul => parts == 1 || !epilogue.results.iter().any(|r| r.0 == id),
                _ => false,
            };
            if !fits {
                return Err(Error::unsupported(kernel, format!("{:?} after a matmul", n.kind)));
            }
        }
        Ok(epilogue)
    }

    /// Columns of the results: those of one part.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Parts of the matmul's result.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Emits the epilogue for columns `col..` of row `row` (both `i64`): `accumulators` holds for each part the matmul's
    /// values there, all of the same number of lanes (any power of two).
    pub fn emit(&self, e: &mut Emitter, row: Val, col: Val, accumulators: &[Val]) {
        let mut ctx = Row::new(row, &[], e.scratch);
        ctx.accumulators = accumulators;
        ctx.part = self.columns;
        let lanes = accumulators[0].lanes();
        for &(node, pointer) in &self.results {
            let n = &self.graph.nodes[node];
            let chunk = Chunk { col, offset: 0, lanes };
            let value = self.value(e, &mut ctx, node, chunk);
            let base = e.at(e.arg(pointer), row, self.columns * n.dtype.bytes());
            store(e, base, n.dtype, chunk, value);
        }
    }

    fn value(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId, chunk: Chunk) -> Val {
        if let Some(&value) = ctx.chunk.get(&(node, chunk.offset)) {
            return value;
        }
        let value = self.graph.value(e, ctx, node, chunk, &mut |e, ctx, node, chunk| self.value(e, ctx, node, chunk));
        ctx.chunk.insert((node, chunk.offset), value);
        value
    }
}
