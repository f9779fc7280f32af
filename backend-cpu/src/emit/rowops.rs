//! Code for whole rows of row operations (see [`rdc_ir::program::KernelKind`]), for `Rows` kernels and matmul
//! prologues.
//!
//! A row is computed in as few sweeps over its columns as its reductions demand: a sweep evaluates every expression
//! that it stores or reduces, chunk by chunk in registers, and a value computed in one sweep but needed in a later one
//! goes through a buffer (its result's memory if it is a result, else scratch). Chunks are vectors of the target's
//! lanes, then vectors of falling powers of two for the rest of the row. Reductions keep up to four accumulators and
//! fold them in an order that depends on the row's length only.
use super::row::{Chunk, Place, Row, Stat, load, packed_row, rotate_row, store};
use super::rowgraph::{Graph, is_buffered};
use super::vectors::{all_pieces, pieces};
use super::{Cmp, Emitter, Val, math};
use rdc_ir::DType;
use rdc_ir::program::Kernel;
use rdc_ir::program::rows::{NodeId, NodeKind as Kind, RowGraph, Stored};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Independent accumulators of a reduction: enough to hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// A value that a program computes.
#[derive(Clone, Copy, Debug)]
pub struct RowTarget {
    /// The value.
    pub node: NodeId,
    /// If it is sums over blocks of so many rows: the node is what is summed.
    pub block: Option<usize>,
}

impl From<&Stored> for RowTarget {
    fn from(stored: &Stored) -> RowTarget {
        RowTarget { node: stored.node, block: stored.block }
    }
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
    /// The nodes that targets are computed from.
    reached: BTreeSet<NodeId>,
    targets: Vec<RowTarget>,
    sweeps: BTreeMap<(usize, usize), Sweep>,
    places: HashMap<NodeId, Place>,
    marked: BTreeSet<(NodeId, usize)>,
    /// Nodes that the sweep of their own level writes to their place.
    stored: BTreeSet<NodeId>,
    scratch: usize,
}

impl<'k> RowProgram<'k> {
    /// Plans the computation of one row of each target of a kernel. Sums over blocks of rows are complete after the rows of a block,
    /// which must be computed in order.
    pub fn new(kernel: &'k Kernel, graph: &'k RowGraph, targets: &[RowTarget]) -> RowProgram<'k> {
        let mut program = RowProgram {
            graph: Graph::new(kernel, graph),
            reached: graph.reached(targets.iter().map(|target| target.node)),
            targets: targets.to_vec(),
            sweeps: BTreeMap::new(),
            places: HashMap::new(),
            marked: BTreeSet::new(),
            stored: BTreeSet::new(),
            scratch: 0,
        };
        program.plan();
        program
    }

    /// Bytes of scratch that [`RowProgram::emit`] uses.
    pub fn scratch(&self) -> usize {
        self.scratch
    }

    /// The address of what row `row` (`i64`) of a target is written to, or added to, in the memory of a pointer.
    pub fn row_of(&self, e: &mut Emitter, target: usize, pointer: usize, row: Val) -> Val {
        let row = self.block(target).map_or(row, |rows| e.div_rem(row, rows).0);
        e.at(e.arg(pointer), row, self.pitch(target, pointer))
    }

    /// Bytes from one row of a target to the next in the memory of a pointer.
    pub fn pitch(&self, target: usize, pointer: usize) -> usize {
        self.graph.pitch(pointer, &self.graph.nodes[self.targets[target].node])
    }

    /// Rows of the blocks that a target sums, if it does.
    pub fn block(&self, target: usize) -> Option<usize> {
        self.targets[target].block
    }

    // ---- planning ----
    fn plan(&mut self) {
        // A target's memory is its value's place; a second target of the same value is a copy.
        for (index, target) in self.targets.iter().enumerate() {
            if target.block.is_none() && self.graph.nodes[target.node].class.width().is_some() {
                self.places.entry(target.node).or_insert(Place::Target(index));
            }
        }
        for (index, RowTarget { node, block }) in self.targets.clone().into_iter().enumerate() {
            let n = &self.graph.nodes[node];
            let level = n.level;
            if let Some(width) = n.class.width().filter(|_| block.is_some()) {
                self.sweeps.entry((level, width)).or_default().stores.push((node, Place::Sums(index), 0));
            } else if let Some(width) = n.class.width() {
                let first = matches!(self.places.get(&node), Some(Place::Target(i)) if *i == index);
                if !(first && is_buffered(&n.kind)) {
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
            Kind::Arg(_) | Kind::Given(_) | Kind::Constant(_) | Kind::Positions { .. } => {}
            Kind::Gather { ids, .. } | Kind::OneHot { ids } => self.mark(ids, level),
            Kind::Rope { x, .. } => {
                self.place(node);
                if self.graph.is_resident(x) {
                    return self.mark(x, own);
                }
                let (place, before) = (self.place(x), self.graph.nodes[x].level);
                if let Some(width) = self.graph.nodes[x].class.width()
                    && self.stored.insert(x)
                {
                    self.sweeps.entry((before, width)).or_default().stores.push((x, place, 0));
                }
                self.mark(x, before);
            }
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
    /// `scratch` has [`RowProgram::scratch`] bytes. An element of an argument is read before any target's element at the same
    /// place is written, but again in later sweeps if those need it.
    pub fn emit(&self, e: &mut Emitter, row: Val, targets: &[Val], scratch: Val) {
        self.emit_after(e, row, None, targets, scratch);
    }

    /// As [`RowProgram::emit`]; `given` is the address of the row of the given value, if there is one.
    pub fn emit_after(&self, e: &mut Emitter, row: Val, given: Option<Val>, targets: &[Val], scratch: Val) {
        let mut ctx = Row { given, ..Row::new(row, targets, scratch) };
        for (index, target) in self.targets.iter().enumerate() {
            if let (Some(rows), Some(width)) = (target.block, self.graph.nodes[target.node].class.width()) {
                let (rest, none) = (e.div_rem(row, rows).1, e.i64(0));
                let begins = e.cmp(Cmp::Eq, rest, none);
                e.when(begins, |e| clear_row(e, width, targets[index]));
            }
        }
        // A target may have the memory of a column.
        for &node in &self.reached {
            if let (Kind::Arg(_), None) = (&self.graph.nodes[node].kind, self.graph.nodes[node].class.width()) {
                self.graph.column(e, &mut ctx, node);
            }
        }
        let last = self.reached.iter().map(|&node| self.graph.nodes[node].level).max().unwrap_or(0);
        for level in 0..=last {
            ctx.level = level;
            for (index, &RowTarget { node, .. }) in self.targets.iter().enumerate() {
                let n = &self.graph.nodes[node];
                if n.level == level && n.class.width().is_none() {
                    let value = self.graph.column(e, &mut ctx, node);
                    e.store(targets[index], n.dtype, value);
                }
            }
            for (id, n) in self.graph.nodes.iter().enumerate() {
                let Some(&place) = self.places.get(&id).filter(|_| n.level == level) else { continue };
                match &n.kind {
                    Kind::PackedGather { table, scale, ids, packing, dtype } => {
                        let ids = self.graph.column(e, &mut ctx, *ids);
                        let to = ctx.place(e, place);
                        packed_row(e, (e.arg(*table), *dtype, packing), scale.map(|s| e.arg(s)), ids, to);
                    }
                    Kind::Rope { x, rope } => {
                        let from = self.address(e, &mut ctx, *x);
                        let to = ctx.place(e, place);
                        rotate_row(e, row, rope, from, to);
                    }
                    _ => {}
                }
            }
            for (&(_, width), sweep) in self.sweeps.range((level, 0)..(level + 1, 0)) {
                self.sweep(e, &mut ctx, width, sweep);
            }
        }
    }

    /// Where the current row of a node lies that is in memory.
    fn address(&self, e: &mut Emitter, ctx: &mut Row, node: NodeId) -> Val {
        let n = &self.graph.nodes[node];
        match (self.places.get(&node), &n.kind) {
            (Some(&place), _) => ctx.place(e, place),
            (None, Kind::Alias(x)) => self.address(e, ctx, *x),
            (None, Kind::Slice { x, start }) => {
                let base = self.address(e, ctx, *x);
                e.offset_const(base, start * n.dtype.bytes())
            }
            _ => self.graph.base(e, ctx, node),
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
                    Kind::RmsNorm { eps, .. } | Kind::LayerNorm { eps, .. } => eps.0,
                    _ => 0.0,
                };
                let mean = mean(e);
                let eps = e.f32(eps as f32, 1);
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
        // All is read before anything is written: a target may have the memory of an argument.
        let values: Vec<Val> = sweep.stores.iter().map(|&(node, ..)| self.value(e, ctx, node, chunk)).collect();
        let operands: Vec<Val> = stats.iter().map(|&s| self.value(e, ctx, self.operand(s), chunk)).collect();
        for (&(node, place, at), value) in sweep.stores.iter().zip(values) {
            let base = ctx.place(e, place);
            let dtype = self.graph.nodes[node].dtype;
            let value = match place {
                Place::Sums(_) => {
                    let sum = load(e, base, dtype, chunk);
                    e.add(sum, value)
                }
                Place::Scratch(_) | Place::Target(_) => value,
            };
            store(e, base, dtype, Chunk { offset: chunk.offset + at, ..chunk }, value);
        }
        let mut next = Vec::new();
        for ((&stat, &acc), x) in stats.iter().zip(accumulators).zip(operands) {
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
        self.places.contains_key(&node) && (is_buffered(&n.kind) || n.level < ctx.level)
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

/// Zeros in a row of `width` floats.
pub fn clear_row(e: &mut Emitter, width: usize, row: Val) {
    for (column, lanes) in all_pieces(width, e.lanes) {
        let place = e.offset_const(row, column * 4);
        let none = e.f32(0.0, lanes);
        e.store_raw(place, none);
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
