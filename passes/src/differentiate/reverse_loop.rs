//! The reverse of a loop: the loop R of the [module documentation](super).
use super::cotangent::{Contribution, Range};
use super::forward::{LoopShape, make_loop};
use super::reverse::{Level, Reverse};
use super::weights::Product;
use rdc_ir::{Builder, DType, OpId, Opcode, Type, ValueId};

/// What the reverse of a loop has besides the reverse of its body.
pub(super) struct LoopLevel {
    /// The loop in the loss function.
    pub op: OpId,
    /// The step of R.
    pub step: ValueId,
    /// The `is_last` of R.
    pub last: ValueId,
    /// Sums for captured values.
    pub sums: Vec<Sum>,
    /// What R yields stacked.
    pub stacked: Vec<ValueId>,
    /// Gradients of weights that are one product after R.
    pub products: Vec<Product>,
}

/// A sum over the iterations of the contributions to a captured value, or to a range of it.
pub(super) struct Sum {
    value: ValueId,
    range: Option<Range>,
    /// How many sums it is of, along a leading axis; one has no such axis.
    parts: usize,
    /// Zeros before the loop.
    init: ValueId,
    /// The sum so far in this iteration.
    current: ValueId,
}

/// The results of a loop that have cotangents, the cotangents, and which carried values of R they are.
struct Carried {
    /// Index among the carried values of the loop.
    index: usize,
    /// The cotangent that R begins with.
    init: ValueId,
}

impl Reverse<'_, '_> {
    /// Differentiates a loop.
    pub(super) fn reverse_loop(&mut self, id: OpId) {
        let old = &self.problem.func;
        let op = &old.ops[id];
        let source = &old.regions[op.regions[0]];
        let carried = op.operands.len() - 1;
        let finals: Vec<Option<ValueId>> = op.results[..carried].iter().map(|&v| self.cotangent(v)).collect();
        let of_stacks = self.cotangents_of_stacks(id);
        if finals.iter().chain(&of_stacks).all(Option::is_none) {
            return;
        }
        let mut chosen = Vec::new();
        for (index, last) in finals.into_iter().enumerate() {
            // The last iteration yields the result, or, if there is none, it is the initial value.
            let from = [source.yields[index], op.operands[index + 1]];
            let has_source = last.is_some() && from.into_iter().any(|v| self.wants(v));
            if self.wants(source.args[index + 2]) || has_source {
                let init = last.unwrap_or_else(|| self.zeros(self.old_ty(op.results[index])));
                chosen.push(Carried { index, init });
            }
        }

        let init: Vec<ValueId> = chosen.iter().map(|c| c.init).collect();
        let (body, step, last, args) = Builder::new(&mut self.new).begin_loop(&init);
        let of_loop = LoopLevel { op: id, step, last, sums: Vec::new(), stacked: Vec::new(), products: Vec::new() };
        self.levels.push(Level::new(op.regions[0], body, Some(of_loop)));
        for (c, &arg) in chosen.iter().zip(&args) {
            self.new.values[arg].name = old.values[source.args[c.index + 2]].name.as_ref().map(|n| format!("d_{n}"));
            self.give(source.yields[c.index], arg);
        }
        let first_stacked = source.yields.len() - of_stacks.len();
        for (&value, stack) in source.yields[first_stacked..].iter().zip(of_stacks) {
            if let (Some(stack), true) = (stack, self.wants(value)) {
                let entry = self.op(Opcode::Index, &[stack, step], vec![]);
                self.give(value, entry);
            }
        }
        self.sweep(op.regions[0]);
        self.loc = op.loc;
        let next: Vec<ValueId> = chosen
            .iter()
            .map(|c| {
                let arg = source.args[c.index + 2];
                self.cotangent(arg).unwrap_or_else(|| self.zeros(self.old_ty(arg)))
            })
            .collect();
        self.close_loop(id, chosen, next);
    }
    /// The cotangents of the stacked results, with as many entries as F has.
    fn cotangents_of_stacks(&mut self, id: OpId) -> Vec<Option<ValueId>> {
        let op = &self.problem.func.ops[id];
        let most = self.forward.loops[&id].max_steps;
        let first = op.results.len() - op.size("stacked");
        let mut all = Vec::new();
        for &result in &op.results[first..] {
            let cotangent = self.cotangent(result).map(|stack| {
                let range = Range { axis: 0, start: 0, end: most };
                if most < op.size("max_steps") { self.op(Opcode::Slice, &[stack], range.attrs()) } else { stack }
            });
            all.push(cotangent);
        }
        all
    }
    /// Ends R, whose body yields `next` for the chosen carried values, and gives its results to what is outside.
    fn close_loop(&mut self, id: OpId, chosen: Vec<Carried>, mut next: Vec<ValueId>) {
        let Some(Level { into: body, of_loop: Some(of_loop), .. }) = self.levels.pop() else { return };
        let outer = self.innermost();
        let forward = &self.forward.loops[&id];
        let (max_steps, split, trips) = (forward.max_steps, forward.split, forward.trips(&self.new));
        let trips = self.read(outer, trips);
        let mut init: Vec<ValueId> = chosen.iter().map(|c| c.init).collect();
        init.extend(of_loop.sums.iter().map(|s| s.init));
        next.extend(of_loop.sums.iter().map(|s| s.current));
        let into = self.levels[outer].into;
        let shape = LoopShape { exit: None, max_steps, reverse: true, loc: self.loc };
        let op = make_loop(&mut self.new, into, body, trips, &init, &next, &of_loop.stacked, shape);
        let results = self.new.ops[op].results.clone();

        let operands = &self.problem.func.ops[id].operands;
        for (c, &result) in chosen.iter().zip(&results) {
            let value = operands[c.index + 1];
            if !self.wants(value) {
                continue;
            }
            // What N did is a constant; without N, the initial value is not.
            let cotangent = match split {
                None => result,
                Some(split) => {
                    let zero = self.builder_at(outer).constant(0.0, DType::I32);
                    let none_before = self.op(Opcode::Eq, &[split.n, zero], vec![]);
                    let nothing = self.number(0.0);
                    self.op(Opcode::Select, &[none_before, result, nothing], vec![])
                }
            };
            self.give(value, cotangent);
        }
        for (sum, &result) in of_loop.sums.iter().zip(&results[chosen.len()..]) {
            let whole = if sum.parts == 1 { result } else { self.sum_of_parts(result) };
            let term = sum.range.map_or(Contribution::Whole(whole), |r| Contribution::Part(r, whole));
            self.contribute(sum.value, term);
        }
        let stacks = &results[init.len() + 1..];
        for product in of_loop.products {
            self.give_stacked_product(product, stacks);
        }
    }
    /// Adds a contribution to the sum that the innermost loop carries for a captured value.
    pub(super) fn accumulate(&mut self, value: ValueId, term: Contribution) {
        let range = if let Contribution::Part(range, _) = term { Some(range) } else { None };
        self.extend_sum(value, range, 1, |cx, current| match term {
            Contribution::Whole(term) | Contribution::Part(_, term) => cx.add(current, term),
            Contribution::Rows { ids, rows } => cx.op(Opcode::ScatterAdd, &[current, ids, rows], vec![]),
        });
    }
    /// Adds contributions to a captured value, or to a range of it, each to a sum of its own: `terms` has them along a leading axis.
    pub(super) fn accumulate_parts(&mut self, value: ValueId, range: Option<Range>, terms: ValueId) {
        let parts = self.new.ty(terms).shape[0];
        self.extend_sum(value, range, parts, |cx, current| cx.add(current, terms));
    }
    fn extend_sum(
        &mut self,
        value: ValueId,
        range: Option<Range>,
        parts: usize,
        add: impl FnOnce(&mut Self, ValueId) -> ValueId,
    ) {
        let level = self.innermost();
        let is_same = |s: &Sum| s.value == value && s.range == range && s.parts == parts;
        let found = self.levels[level].of_loop.as_ref().and_then(|l| l.sums.iter().position(is_same));
        let index = found.unwrap_or_else(|| self.new_sum(level, value, range, parts));
        let Some(current) = self.levels[level].of_loop.as_ref().map(|l| l.sums[index].current) else { return };
        let next = add(self, current);
        if let Some(of_loop) = &mut self.levels[level].of_loop {
            of_loop.sums[index].current = next;
        }
    }
    fn new_sum(&mut self, level: usize, value: ValueId, range: Option<Range>, parts: usize) -> usize {
        let ty = self.old_ty(value);
        let mut ty: Type = range.map_or_else(|| ty.clone(), |range| range.of(ty));
        if parts > 1 {
            ty.shape.insert(0, parts);
        }
        let init = self.zeros_at(level - 1, &ty);
        let name = self.problem.func.values[value].name.as_ref().map(|n| format!("d_{n}"));
        let body = self.levels[level].into;
        let current = self.new.add_arg(body, ty, name);
        let Some(of_loop) = &mut self.levels[level].of_loop else { return 0 };
        of_loop.sums.push(Sum { value, range, parts, init, current });
        of_loop.sums.len() - 1
    }
    /// The sum of sums that lie along a leading axis.
    fn sum_of_parts(&mut self, parts: ValueId) -> ValueId {
        let (count, shape) = (self.new.ty(parts).shape[0], self.new.ty(parts).shape[1..].to_vec());
        let part = |cx: &mut Self, i: usize| {
            let part = cx.op(Opcode::Slice, &[parts], Range { axis: 0, start: i, end: i + 1 }.attrs());
            cx.reshape(part, &shape)
        };
        let first = part(self, 0);
        (1..count).fold(first, |sum, i| {
            let part = part(self, i);
            self.add(sum, part)
        })
    }
    /// How many iterations the innermost loop has at most.
    pub(super) fn max_steps(&self) -> usize {
        let of_loop = self.levels[self.innermost()].of_loop.as_ref();
        of_loop.and_then(|l| self.forward.loops.get(&l.op)).map_or(1, |f| f.max_steps)
    }
}
