//! The random module's attention and loops.
use super::generate::{Generator, Item, OpenLoop, Sizes};
use crate::entity::ValueId;
use crate::module::Init;
use crate::ops::{Attr, Opcode};
use crate::types::{DType, Type};

pub(super) fn ints(values: &[usize]) -> Attr {
    Attr::Ints(values.iter().map(|&v| v as i64).collect())
}

impl Generator<'_, '_> {
    /// Attention over a state: through the caches where they can be used, else over its own tokens.
    pub(super) fn attention(&mut self) {
        let Sizes { batch, seq, dim, heads, context } = self.sizes;
        let Some(pos) = self.pos else { return };
        let Some(x) = self.of_type(&Type::f32([batch, seq, dim])) else { return };
        let to_heads = |g: &mut Self| {
            let y = g.linear(x.value, dim);
            let y = g.op(Opcode::Reshape, &[y], vec![ints(&[batch, seq, heads, dim / heads])]);
            if (dim / heads).is_multiple_of(2) && g.rng.one_in(2) {
                let attrs = vec![Attr::Int(context as i64), Attr::Int((dim / heads) as i64), Attr::float(100.0)];
                let table = g.op(Opcode::RopeTable, &[], attrs);
                let layout = g.rng.pick(&["adjacent", "half"]);
                return g.op(Opcode::Rope, &[y, table, pos], vec![Attr::Str(layout.into())]);
            }
            y
        };
        let (q, mut k, mut v) = (to_heads(self), to_heads(self), to_heads(self));
        let mut causal = false;
        if let Some([k_cache, v_cache]) = self.caches {
            let slot = self.slot();
            let mut update = |cache, x| match self.builder.try_op(Opcode::CacheUpdate, &[cache, x, pos, slot], vec![]) {
                Ok(results) => (results[0], results[1]),
                Err(message) => unreachable!("{message}"),
            };
            let (k_new, k_view) = update(k_cache, k);
            let (v_new, v_view) = update(v_cache, v);
            (self.caches, k, v, causal) = (Some([k_new, v_new]), k_view, v_view, true);
        }
        let attrs = vec![Attr::Bool(causal), Attr::float(1.0 / ((dim / heads) as f64).sqrt())];
        let out = self.op(Opcode::Attention, &[q, k, v, pos], attrs);
        let out = self.op(Opcode::Reshape, &[out], vec![ints(&[batch, seq, dim])]);
        self.push(out, 2.0 * x.bound);
    }
    /// A slot that the caches have: of a policy on the step of the loop around, or a constant.
    fn slot(&mut self) -> ValueId {
        let Some(step) = self.loops.last().map(|l| l.step) else {
            let slot = self.rng.below(2);
            return self.constant(slot as f64, DType::I32);
        };
        let policy = self.rng.pick(&["full", "modulo", "block", "anchor"]);
        let (arg, layers, base) = (1 + self.rng.below(3), 1 + self.rng.below(2), self.rng.below(3));
        let layer = self.rng.below(layers);
        let mut attrs = vec![Attr::Str(policy.into())];
        attrs.extend([arg, layer, layers, base].map(|i| Attr::Int(i as i64)));
        self.op(Opcode::KvSlot, &[step], attrs)
    }
    /// Something that depends on the step or on whether it is the last.
    pub(super) fn step_signal(&mut self) {
        let Some(&OpenLoop { step, last }) = self.loops.last() else { return };
        let a = self.recent();
        let (value, bound) = match self.rng.below(3) {
            0 => {
                let b = self.of_type(&self.ty(a.value)).unwrap_or(a);
                (self.op(Opcode::Select, &[last, a.value, b.value], vec![]), a.bound.max(b.bound))
            }
            1 => {
                let step = self.op(Opcode::Cast, &[step], vec![Attr::DType(DType::F32)]);
                (self.op(Opcode::Add, &[a.value, step], vec![]), a.bound + 4.0)
            }
            _ => {
                let table = self.param(&[5, self.sizes.dim], Init::Normal { std: 0.5 });
                (self.op(Opcode::Gather, &[table, step], vec![]), 1.0)
            }
        };
        self.push(value, bound);
    }
    pub(super) fn random_loop(&mut self) {
        let Sizes { batch, seq, dim, .. } = self.sizes;
        let Some(steps) = self.steps else { return };
        // Inner loops run a constant number of times, so that the total stays small.
        let max_steps = if self.loops.is_empty() { 1 + self.rng.below(4) } else { 2 };
        let steps = if self.loops.is_empty() { steps } else { self.constant(2.0, DType::I32) };
        let mut init: Vec<ValueId> = Vec::new();
        let state = self.of_type(&Type::f32([batch, seq, dim])).unwrap_or(self.pool[0]);
        init.push(state.value);
        while self.rng.one_in(2) {
            let item = self.recent();
            init.push(item.value);
        }
        let carried = init.len();
        let caches = self.caches.filter(|_| self.rng.one_in(2));
        init.extend(caches.into_iter().flatten());

        let (region, step, last, args) = self.builder.begin_loop(&init);
        let outer_region = self.builder.enter(region);
        let outer_caches = std::mem::replace(&mut self.caches, caches.map(|_| [args[carried], args[carried + 1]]));
        let outer_pool = self.pool.len();
        // Carried values go through tanh before they are yielded (see below); the initial ones have been bounded.
        self.pool.extend(args[..carried].iter().map(|&value| Item { value, bound: 100.0 }));
        self.loops.push(OpenLoop { step, last });
        let ops = self.config.ops / 2;
        self.fill(ops);

        let mut yields = Vec::new();
        for &arg in &args[..carried] {
            let ty = self.ty(arg);
            let next = self.of_type(&ty).map_or(arg, |i| i.value);
            yields.push(if self.rng.one_in(4) { next } else { self.op(Opcode::Tanh, &[next], vec![]) });
        }
        let reverse = self.config.training && self.rng.one_in(3);
        let done = if !reverse && self.rng.one_in(3) { Some(self.exit(args[0])) } else { None };
        let stacked: Vec<Item> = (0..self.rng.below(3)).map(|_| self.recent()).collect();
        yields.extend(self.caches.into_iter().flatten());
        self.loops.pop();
        self.pool.truncate(outer_pool);
        self.builder.enter(outer_region);
        let stacked_values: Vec<ValueId> = stacked.iter().map(|i| i.value).collect();
        let results = self.builder.end_loop(region, steps, &init, &yields, done, &stacked_values, max_steps);
        if reverse {
            self.builder.reverse(&results);
        }
        self.caches = match caches {
            Some(_) => Some([results[carried], results[carried + 1]]),
            None => outer_caches,
        };
        for &value in &results[..carried] {
            self.push(value, 100.0);
        }
        let trips = self.op(Opcode::Cast, &[results[init.len()]], vec![Attr::DType(DType::F32)]);
        self.push(trips, max_steps as f64);
        for (&value, item) in results[init.len() + 1..].iter().zip(stacked) {
            if self.ty(value).rank() < 6 && self.ty(value).elements() <= 4096 {
                self.push(value, item.bound);
            }
        }
    }
    /// Whether a state has become small, or on a fixed step.
    fn exit(&mut self, state: ValueId) -> ValueId {
        if let (Some(open), true) = (self.loops.last(), self.rng.one_in(2)) {
            let step = open.step;
            let limit = self.constant(1.0, DType::I32);
            return self.op(Opcode::Le, &[limit, step], vec![]);
        }
        let limit = self.constant(0.5, DType::F32);
        let small = self.op(Opcode::Lt, &[state, limit], vec![]);
        self.op(Opcode::All, &[small], vec![])
    }
}
