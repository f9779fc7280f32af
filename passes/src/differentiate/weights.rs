//! Gradients of matrices: `leftᵀ · right`, summed over all tokens and all iterations of a loop.
//!
//! In a loop the sum is carried, `acc + leftᵀ right`, and every iteration reads and writes the whole of it. If there are
//! fewer tokens than the matrix has rows or columns, that moves more bytes than the activations themselves. Then they are
//! stacked instead, and one product over the tokens of all iterations follows the loop: same work, one pass over the
//! gradient. Entries of iterations that did not run are zero and add nothing.
//!
//! If there are many tokens, so many that the gradient is small beside the activations, the loop carries as many sums as the machine
//! asks for, each of its part of the tokens, and adds them at the end. A worker that has one part of the work then reads rows that it
//! wrote itself, in the kernels before, and nobody else has them in a cache when it writes them again.
use super::cotangent::{Contribution, Range};
use super::reverse::Reverse;
use crate::tile::Backward;
use rdc_ir::{Attr, Opcode, ValueId};

/// A gradient `leftᵀ · right` to be computed after the loop.
pub(super) struct Product {
    value: ValueId,
    range: Option<Range>,
    left: Source,
    right: Source,
}

/// Where the rows of all iterations are.
#[derive(Clone, Copy)]
struct Source {
    stack: Stack,
    /// Rows of one iteration.
    rows: usize,
    /// Their length.
    columns: usize,
}

#[derive(Clone, Copy)]
enum Stack {
    /// In a stack of the forward loop.
    Forward(ValueId),
    /// In the reverse loop's stacked result of this index.
    Reverse(usize),
    /// Nowhere yet: to be stacked.
    Missing(ValueId),
}

impl Reverse<'_, '_> {
    /// Adds `leftᵀ · right` to the cotangent of a matrix, or to a range of it.
    pub(super) fn give_product(&mut self, value: ValueId, range: Option<Range>, left: ValueId, right: ValueId) {
        if !self.wants(value) {
            return;
        }
        if let Some(product) = self.stacked_product(value, range, left, right) {
            let level = self.innermost();
            if let Some(of_loop) = &mut self.levels[level].of_loop {
                of_loop.products.push(product);
            }
            return;
        }
        let (rows, columns) = (self.new.ty(left).rows(), [left, right].map(|v| self.new.ty(v).last()));
        let Backward { partial_sums: parts, many_tokens, .. } = self.problem.options.backward;
        let many = parts > 1 && rows * (columns[0] + columns[1]) >= many_tokens * columns[0] * columns[1];
        if many && rows.is_multiple_of(parts) && self.innermost() != self.level_of(value) {
            let [left, right] = [(left, columns[0]), (right, columns[1])]
                .map(|(v, columns)| self.reshape(v, &[parts, rows / parts, columns]));
            let products = self.product(left, right);
            self.accumulate_parts(value, range, products);
            return;
        }
        let product = self.product(left, right);
        let term = range.map_or(Contribution::Whole(product), |r| Contribution::Part(r, product));
        self.contribute(value, term);
    }
    fn product(&mut self, left: ValueId, right: ValueId) -> ValueId {
        self.op(Opcode::Matmul, &[left, right], vec![Attr::Bool(true), Attr::Bool(false)])
    }
    /// How to compute the product after the loop, if that is cheaper and memory allows it.
    fn stacked_product(
        &mut self,
        value: ValueId,
        range: Option<Range>,
        left: ValueId,
        right: ValueId,
    ) -> Option<Product> {
        self.problem.options.stack_weight_grads?;
        // A stack of stacks is not worth the trouble.
        if self.innermost() != 1 || self.level_of(value) != 0 {
            return None;
        }
        let sources = [self.source(left)?, self.source(right)?];
        let missing = |s: &&Source| matches!(s.stack, Stack::Missing(_));
        let activations: usize = sources.iter().filter(missing).map(|s| s.rows * s.columns).sum();
        let bytes = activations.saturating_mul(4).saturating_mul(self.max_steps());
        if activations >= sources[0].columns * sources[1].columns || bytes > self.allowance {
            return None;
        }
        self.allowance -= bytes;
        let [left, right] = sources.map(|s| self.stacked(s));
        Some(Product { value, range, left, right })
    }
    /// Where the rows of an activation `[rows, columns]` of this iteration are.
    fn source(&self, activation: ValueId) -> Option<Source> {
        let of_loop = self.levels[self.innermost()].of_loop.as_ref()?;
        let ty = self.new.ty(activation);
        let (rows, columns) = (ty.rows(), ty.last());
        let root = self.new.through_reshapes(activation);
        let entry = self.new.defined_by(root, Opcode::Index).filter(|op| op.operands[1] == of_loop.step);
        let stack = match (entry, of_loop.stacked.iter().position(|&v| v == root)) {
            (Some(entry), _) => Stack::Forward(entry.operands[0]),
            (None, Some(index)) => Stack::Reverse(index),
            (None, None) => Stack::Missing(root),
        };
        Some(Source { stack, rows, columns })
    }
    /// Stacks what is to be stacked.
    fn stacked(&mut self, source: Source) -> Source {
        let level = self.innermost();
        match (source.stack, &mut self.levels[level].of_loop) {
            (Stack::Missing(value), Some(of_loop)) => {
                of_loop.stacked.push(value);
                Source { stack: Stack::Reverse(of_loop.stacked.len() - 1), ..source }
            }
            _ => source,
        }
    }
    /// Computes a product after the loop, whose stacked results are given.
    pub(super) fn give_stacked_product(&mut self, product: Product, stacks: &[ValueId]) {
        let [left, right] = [product.left, product.right].map(|source| {
            let stack = match source.stack {
                Stack::Forward(stack) | Stack::Missing(stack) => stack,
                Stack::Reverse(index) => stacks[index],
            };
            let rows = self.new.ty(stack).elements() / source.columns;
            self.reshape(stack, &[rows, source.columns])
        });
        let sum = self.product(left, right);
        let term = product.range.map_or(Contribution::Whole(sum), |r| Contribution::Part(r, sum));
        self.contribute(product.value, term);
    }
}
