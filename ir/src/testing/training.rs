//! The random module's operations of training.
use super::blocks::ints;
use super::generate::{Generator, Item, Sizes};
use crate::entity::ValueId;
use crate::module::Init;
use crate::ops::{Attr, Opcode};
use crate::types::{DType, Type};

/// Rows of the weight of a linear head.
const CLASSES: usize = 9;

impl Generator<'_, '_> {
    /// One of the operations that only training uses.
    pub(super) fn training(&mut self) {
        match self.rng.below(8) {
            0 => self.pad(),
            1 => self.index(),
            2 if self.rng.one_in(3) => self.sum_blocks(),
            2 => self.sum_to(),
            3 => self.scatter_add(),
            4 => self.cross_entropy(),
            5 => self.linear_cross_entropy(),
            6 => self.attention_grad(),
            _ => {
                let a = self.recent();
                let opcode = self.rng.pick(&[Opcode::Atan, Opcode::StopGradient]);
                let value = self.op(opcode, &[a.value], vec![]);
                self.push(value, a.bound);
            }
        }
    }
    /// All results of an operation.
    fn results(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> Vec<ValueId> {
        match self.builder.try_op(opcode, operands, attrs) {
            Ok(results) => results,
            Err(message) => unreachable!("{message}"),
        }
    }
    fn pad(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        let axis = self.rng.below(ty.rank());
        let start = self.rng.below(3);
        let size = start + ty.shape[axis] + self.rng.below(3);
        let value = self.op(Opcode::Pad, &[x.value], [axis, start, size].map(|i| Attr::Int(i as i64)).to_vec());
        if self.ty(value).elements() <= 4096 {
            self.push(value, x.bound);
        }
    }
    /// An entry by the step of the loop around, or by a number that may be outside.
    fn index(&mut self) {
        let x = self.ranked();
        let by = match self.loops.last() {
            Some(open) => open.step,
            None => {
                let i = self.rng.below(4) as f64 - 1.0;
                self.constant(i, DType::I32)
            }
        };
        let value = self.op(Opcode::Index, &[x.value, by], vec![]);
        self.push(value, x.bound);
    }
    fn sum_to(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        // Any axis may repeat, and leading ones may be missing.
        let mut shape = ty.shape.clone();
        for size in &mut shape {
            if self.rng.one_in(2) {
                *size = 1;
            }
        }
        let shape = shape.split_off(self.rng.below(ty.rank() + 1));
        let value = self.op(Opcode::SumTo, &[x.value], vec![ints(&shape)]);
        let count = ty.elements() / self.ty(value).elements();
        self.push(value, x.bound * count as f64);
    }
    fn sum_blocks(&mut self) {
        let x = self.ranked();
        let rows = 1 + self.rng.below(7);
        let value = self.op(Opcode::SumBlocks, &[x.value], vec![Attr::Int(rows as i64)]);
        self.push(value, x.bound * rows as f64);
    }
    fn scatter_add(&mut self) {
        let Sizes { batch, seq, dim, .. } = self.sizes;
        let Some(ids) = self.ids else { return };
        let rows = self.of_type(&Type::f32([batch, seq, dim])).unwrap_or(self.pool[0]);
        let base = self.param(&[7, dim], Init::Normal { std: 0.5 });
        let value = self.op(Opcode::ScatterAdd, &[base, ids, rows.value], vec![]);
        self.push(value, 1.0 + rows.bound * (batch * seq) as f64);
        let value = self.op(Opcode::OneHot, &[ids], vec![Attr::Int(dim as i64)]);
        self.push(value, 1.0);
    }
    /// A loss with its labels, and its derivative for a weight of each token.
    fn cross_entropy(&mut self) {
        let Sizes { batch, seq, dim, .. } = self.sizes;
        let Some(labels) = self.labels else { return };
        let logits = self.of_type(&Type::f32([batch, seq, dim])).unwrap_or(self.pool[0]);
        let z_loss = vec![Attr::float(self.rng.pick(&[0.0, 0.01]))];
        let results = self.results(Opcode::CrossEntropy, &[logits.value, labels], z_loss.clone());
        self.push_loss(&results, logits.bound);
        let operands = [logits.value, labels, results[0]];
        let value = self.op(Opcode::CrossEntropyGrad, &operands, z_loss);
        self.push(value, 10.0 * logits.bound * logits.bound);
    }
    fn push_loss(&mut self, results: &[ValueId], bound: f64) {
        self.push(results[0], 3.0 + 3.0 * bound);
        // A change of precision can make another logit the largest.
        if self.config.jumps {
            self.push(results[1], 1.0);
        }
    }
    fn linear_cross_entropy(&mut self) {
        let Sizes { batch, seq, dim, .. } = self.sizes;
        let Some(labels) = self.labels else { return };
        let x = self.of_type(&Type::f32([batch, seq, dim])).unwrap_or(self.pool[0]);
        let w = self.param(&[CLASSES, dim], Init::Normal { std: 0.5 });
        let bias = if self.rng.one_in(2) { vec![self.param(&[CLASSES], Init::Normal { std: 0.5 })] } else { vec![] };
        let z_loss = vec![Attr::float(self.rng.pick(&[0.0, 0.01]))];
        let operands = [&[x.value, w, labels], &bias[..]].concat();
        let results = self.results(Opcode::LinearCrossEntropy, &operands, z_loss.clone());
        let bound = x.bound * dim as f64;
        self.push_loss(&results, bound);
        let operands = [&[x.value, w, labels, results[0]], &bias[..]].concat();
        for value in self.results(Opcode::LinearCrossEntropyGrad, &operands, z_loss) {
            self.push(value, bound * bound);
        }
    }
    fn attention_grad(&mut self) {
        let Sizes { batch, seq, dim, heads, context } = self.sizes;
        let Some(pos) = self.pos else { return };
        let state = Type::f32([batch, seq, dim]);
        let size = dim / heads;
        let heads_of = |g: &mut Self, count: usize| {
            let x = g.of_type(&state).unwrap_or(g.pool[0]);
            // Bounded, so that the softmax is not one of large differences.
            let x = Item { value: g.op(Opcode::Tanh, &[x.value], vec![]), bound: 1.0 };
            let y = g.linear(x.value, count * size);
            g.op(Opcode::Reshape, &[y], vec![ints(&[batch, seq, count, size])])
        };
        let groups = self.rng.pick(&[1, heads]);
        let (q, k) = (heads_of(self, heads), heads_of(self, groups));
        let (v, dout) = (heads_of(self, groups), heads_of(self, heads));
        let attrs = vec![Attr::Bool(self.rng.one_in(2)), Attr::float(1.0 / (size as f64).sqrt())];
        let mut grads = self.results(Opcode::AttentionGrad, &[q, k, v, pos, dout], attrs);
        if size.is_multiple_of(2) {
            let attrs = vec![Attr::Int(context as i64), Attr::Int(size as i64), Attr::float(100.0)];
            let table = self.op(Opcode::RopeTable, &[], attrs);
            let layout = self.rng.pick(&["adjacent", "half"]);
            grads[0] = self.op(Opcode::RopeGrad, &[grads[0], table, pos], vec![Attr::Str(layout.into())]);
        }
        for grad in grads {
            self.push(grad, 10.0 * dim as f64);
        }
    }
}
