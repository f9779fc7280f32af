//! Cross-entropy as row operations, and the loss of a linear head as a loop over chunks of tokens.
//!
//! With m the largest logit of a row, e = exp(x - m) and s = sum e: lse = log s + m, softmax = e / s, and the derivative of
//! `lse - x[l] + z lse^2` by x is `softmax (1 + 2 z lse) - one_hot(l)`.
use crate::tile::Machine;
use rdc_ir::{Attr, Builder, DType, IGNORED_LABEL, OpId, Opcode, ValueId};

/// If no divisor of the number of tokens lies between this and the most that a machine wants at a time, there is one chunk.
const LEAST_TOKENS: usize = 32;

/// Tokens per chunk, at most so many if that can be.
fn chunk_of(tokens: usize, most: usize) -> usize {
    let divisor = (LEAST_TOKENS..=most.min(tokens)).rev().find(|&n| tokens.is_multiple_of(n));
    divisor.unwrap_or(tokens)
}

/// Row operations on the logits `[c, V]` and labels `[c]` of a chunk.
struct Rows<'b, 'f> {
    b: &'b mut Builder<'f>,
    logits: ValueId,
    labels: ValueId,
    z_loss: f64,
}

/// What loss and derivative have in common; columns `[c, 1]` but for `exp: [c, V]`.
struct Softmax {
    max: ValueId,
    exp: ValueId,
    sum: ValueId,
    lse: ValueId,
}

impl Rows<'_, '_> {
    fn float(&mut self, value: f64) -> ValueId {
        self.b.constant(value, DType::F32)
    }
    fn reduce(&mut self, opcode: Opcode, x: ValueId) -> ValueId {
        self.b.op(opcode, &[x], vec![Attr::Int(1), Attr::Bool(true)])
    }
    fn softmax(&mut self) -> Softmax {
        let max = self.reduce(Opcode::ReduceMax, self.logits);
        let shifted = self.b.map(Opcode::Sub, &[self.logits, max]);
        let exp = self.b.map(Opcode::Exp, &[shifted]);
        let sum = self.reduce(Opcode::ReduceSum, exp);
        let log = self.b.map(Opcode::Log, &[sum]);
        let lse = self.b.map(Opcode::Add, &[log, max]);
        Softmax { max, exp, sum, lse }
    }
    /// 1 at the label. An ignored label counts as another one: what comes of it is masked.
    fn hit(&mut self) -> ValueId {
        let classes = self.b.func.ty(self.logits).last();
        let (first, last) = (self.b.constant(0.0, DType::I32), self.b.constant((classes - 1) as f64, DType::I32));
        let at_least = self.b.map(Opcode::Max, &[self.labels, first]);
        let inside = self.b.map(Opcode::Min, &[at_least, last]);
        self.b.op(Opcode::OneHot, &[inside], vec![Attr::Int(classes as i64)])
    }
    /// The column, with 0 where the label is ignored.
    fn masked(&mut self, column: ValueId) -> ValueId {
        let tokens = self.b.func.ty(self.labels).elements();
        let labels = self.b.reshape(self.labels, &[tokens, 1]);
        let ignored = self.b.constant(f64::from(IGNORED_LABEL), DType::I32);
        let is_ignored = self.b.map(Opcode::Eq, &[labels, ignored]);
        let zero = self.float(0.0);
        self.b.map(Opcode::Select, &[is_ignored, zero, column])
    }
    /// `nll` and `correct`, both `[c, 1]`.
    fn loss(&mut self) -> [ValueId; 2] {
        let Softmax { max, lse, .. } = self.softmax();
        let hit = self.hit();
        let products = self.b.map(Opcode::Mul, &[hit, self.logits]);
        let own = self.reduce(Opcode::ReduceSum, products);
        let mut nll = self.b.map(Opcode::Sub, &[lse, own]);
        if self.z_loss != 0.0 {
            let z = self.float(self.z_loss);
            let square = self.b.map(Opcode::Mul, &[lse, lse]);
            let penalty = self.b.map(Opcode::Mul, &[square, z]);
            nll = self.b.map(Opcode::Add, &[nll, penalty]);
        }
        let largest = self.b.map(Opcode::Le, &[max, own]);
        let correct = self.b.op(Opcode::Cast, &[largest], vec![Attr::DType(DType::F32)]);
        [nll, correct].map(|column| self.masked(column))
    }
    /// The derivative of `nll` by the logits, times `dnll: [c, 1]`.
    fn grad(&mut self, dnll: ValueId) -> ValueId {
        let Softmax { exp, sum, lse, .. } = self.softmax();
        let dnll = self.masked(dnll);
        let mut factor = self.b.map(Opcode::Div, &[dnll, sum]);
        if self.z_loss != 0.0 {
            let (one, twice) = (self.float(1.0), self.float(2.0 * self.z_loss));
            let slope = self.b.map(Opcode::Mul, &[lse, twice]);
            let slope = self.b.map(Opcode::Add, &[slope, one]);
            factor = self.b.map(Opcode::Mul, &[factor, slope]);
        }
        let spread = self.b.map(Opcode::Mul, &[exp, factor]);
        let hit = self.hit();
        let own = self.b.map(Opcode::Mul, &[hit, dnll]);
        self.b.map(Opcode::Sub, &[spread, own])
    }
}

/// The results of a `cross_entropy`.
pub fn cross_entropy(b: &mut Builder, op: OpId) -> Vec<ValueId> {
    let data = b.func.ops[op].clone();
    let (ty, shape) = (b.func.ty(data.operands[0]).clone(), b.func.ty(data.operands[1]).shape.clone());
    let logits = b.reshape(data.operands[0], &[ty.rows(), ty.last()]);
    let labels = b.reshape(data.operands[1], &[ty.rows()]);
    let columns = Rows { b, logits, labels, z_loss: data.float("z_loss") }.loss();
    columns.map(|v| b.reshape(v, &shape)).to_vec()
}

/// The result of a `cross_entropy_grad`.
pub fn cross_entropy_grad(b: &mut Builder, op: OpId) -> Vec<ValueId> {
    let data = b.func.ops[op].clone();
    let ty = b.func.ty(data.operands[0]).clone();
    let logits = b.reshape(data.operands[0], &[ty.rows(), ty.last()]);
    let labels = b.reshape(data.operands[1], &[ty.rows()]);
    let dnll = b.reshape(data.operands[2], &[ty.rows(), 1]);
    let grad = Rows { b, logits, labels, z_loss: data.float("z_loss") }.grad(dnll);
    vec![b.reshape(grad, &ty.shape)]
}

/// A linear head and its tokens, in chunks.
struct Head {
    /// `[chunks, c, K]`; `[c, K]` if there is one chunk.
    x: ValueId,
    /// `[chunks, c]`; `[c]` if there is one chunk.
    labels: ValueId,
    w: ValueId,
    bias: Option<ValueId>,
    z_loss: f64,
    chunks: usize,
    /// Tokens per chunk.
    c: usize,
}

impl Head {
    fn new(b: &mut Builder, op: OpId, bias: usize, machine: &dyn Machine) -> Head {
        let data = b.func.ops[op].clone();
        let ty = b.func.ty(data.operands[0]).clone();
        let c = chunk_of(ty.rows(), machine.loss_tokens(b.func.ty(data.operands[1]).shape[0]));
        let chunks = ty.rows() / c;
        let x = split(b, data.operands[0], chunks, &[c, ty.last()]);
        let labels = split(b, data.operands[2], chunks, &[c]);
        let bias = data.operands.get(bias).copied();
        Head { x, labels, w: data.operands[1], bias, z_loss: data.float("z_loss"), chunks, c }
    }
    /// The shapes of the derivatives by the weight and by the bias.
    fn sums(&self, b: &Builder) -> Vec<Vec<usize>> {
        std::iter::once(self.w).chain(self.bias).map(|v| b.func.ty(v).shape.clone()).collect()
    }
    /// The logits and labels of a chunk `x: [c, K]`.
    fn rows<'b, 'f>(&self, b: &'b mut Builder<'f>, x: ValueId, labels: ValueId) -> Rows<'b, 'f> {
        let mut logits = b.op(Opcode::Matmul, &[x, self.w], vec![Attr::Bool(false), Attr::Bool(true)]);
        if let Some(bias) = self.bias {
            logits = b.map(Opcode::Add, &[logits, bias]);
        }
        Rows { b, logits, labels, z_loss: self.z_loss }
    }
    /// The derivatives by a chunk `x: [c, K]` of these logits, by the weight and by the bias; `dnll: [c]`.
    fn grads(&self, mut rows: Rows, x: ValueId, dnll: ValueId) -> (ValueId, Vec<ValueId>) {
        let dnll = rows.b.reshape(dnll, &[self.c, 1]);
        let dlogits = rows.grad(dnll);
        let b = rows.b;
        let dx = b.op(Opcode::Matmul, &[dlogits, self.w], vec![Attr::Bool(false), Attr::Bool(false)]);
        let mut sums = vec![b.op(Opcode::Matmul, &[dlogits, x], vec![Attr::Bool(true), Attr::Bool(false)])];
        if let Some(bias) = self.bias {
            let shape = b.func.ty(bias).shape.clone();
            sums.push(b.op(Opcode::SumTo, &[dlogits], vec![Attr::shape(&shape)]));
        }
        (dx, sums)
    }
}

/// All tokens' values as chunks of that shape.
fn split(b: &mut Builder, value: ValueId, chunks: usize, shape: &[usize]) -> ValueId {
    let shape = if chunks == 1 { shape.to_vec() } else { [&[chunks], shape].concat() };
    b.reshape(value, &shape)
}

/// Runs `body` once for each chunk: of `stacks` it gets the chunk's entries, of `sums` what there is so far. It returns what
/// is stacked and what is added to the sums; so does this.
fn for_chunks(
    b: &mut Builder,
    chunks: usize,
    stacks: &[ValueId],
    sums: &[Vec<usize>],
    body: impl FnOnce(&mut Builder, &[ValueId]) -> (Vec<ValueId>, Vec<ValueId>),
) -> (Vec<ValueId>, Vec<ValueId>) {
    if chunks == 1 {
        return body(b, stacks);
    }
    let zero = b.constant(0.0, DType::F32);
    let init: Vec<ValueId> =
        sums.iter().map(|shape| b.op(Opcode::Broadcast, &[zero], vec![Attr::shape(shape)])).collect();
    let steps = b.constant(chunks as f64, DType::I32);
    let (region, step, _, carried) = b.begin_loop(&init);
    let outside = b.enter(region);
    let entries: Vec<ValueId> = stacks.iter().map(|&v| b.map(Opcode::Index, &[v, step])).collect();
    let (stacked, terms) = body(b, &entries);
    let next: Vec<ValueId> = carried.iter().zip(terms).map(|(&acc, term)| b.map(Opcode::Add, &[acc, term])).collect();
    b.enter(outside);
    let mut results = b.end_loop(region, steps, &init, &next, None, &stacked, chunks);
    let stacked = results.split_off(init.len() + 1);
    results.truncate(init.len());
    (stacked, results)
}

/// The results of a `linear_cross_entropy`.
pub fn linear_cross_entropy(b: &mut Builder, op: OpId, machine: &dyn Machine) -> Vec<ValueId> {
    let head = Head::new(b, op, 3, machine);
    let shape = b.func.ty(b.func.ops[op].operands[2]).shape.clone();
    let (columns, _) = for_chunks(b, head.chunks, &[head.x, head.labels], &[], |b, entries| {
        let columns = head.rows(b, entries[0], entries[1]).loss();
        (columns.to_vec(), vec![])
    });
    columns.into_iter().map(|v| b.reshape(v, &shape)).collect()
}

/// The results of a `linear_cross_entropy` and of the `linear_cross_entropy_grad` that is its derivative, in one loop.
pub fn linear_cross_entropy_with_grad(
    b: &mut Builder,
    loss: OpId,
    grad: OpId,
    machine: &dyn Machine,
) -> (Vec<ValueId>, Vec<ValueId>) {
    let head = Head::new(b, loss, 3, machine);
    let (x, labels, dnll) = (b.func.ops[loss].operands[0], b.func.ops[loss].operands[2], b.func.ops[grad].operands[3]);
    let (dnll, sums) = (split(b, dnll, head.chunks, &[head.c]), head.sums(b));
    let (mut stacked, sums) = for_chunks(b, head.chunks, &[head.x, head.labels, dnll], &sums, |b, entries| {
        let mut rows = head.rows(b, entries[0], entries[1]);
        let [nll, correct] = rows.loss();
        let (dx, sums) = head.grads(rows, entries[0], entries[2]);
        (vec![nll, correct, dx], sums)
    });
    let [of_labels, of_x] = [labels, x].map(|v| b.func.ty(v).shape.clone());
    let dx = stacked.pop().map(|dx| b.reshape(dx, &of_x));
    let columns = stacked.into_iter().map(|v| b.reshape(v, &of_labels)).collect();
    (columns, dx.into_iter().chain(sums).collect())
}

/// The results of a `linear_cross_entropy_grad`.
pub fn linear_cross_entropy_grad(b: &mut Builder, op: OpId, machine: &dyn Machine) -> Vec<ValueId> {
    let head = Head::new(b, op, 4, machine);
    let (x, dnll) = (b.func.ops[op].operands[0], b.func.ops[op].operands[3]);
    let (dnll, sums) = (split(b, dnll, head.chunks, &[head.c]), head.sums(b));
    let (dx, sums) = for_chunks(b, head.chunks, &[head.x, head.labels, dnll], &sums, |b, entries| {
        let (dx, sums) = head.grads(head.rows(b, entries[0], entries[1]), entries[0], entries[2]);
        (vec![dx], sums)
    });
    let shape = b.func.ty(x).shape.clone();
    dx.into_iter().map(|v| b.reshape(v, &shape)).chain(sums).collect()
}

#[cfg(test)]
mod tests {
    use super::chunk_of;

    #[test]
    fn chunks_divide_the_tokens() {
        assert_eq!(chunk_of(4096, 512), 512);
        assert_eq!(chunk_of(1000, 512), 500);
        assert_eq!(chunk_of(7, 512), 7, "few tokens are one chunk");
        assert_eq!(chunk_of(521, 512), 521, "so is a prime number of them");
        assert_eq!(chunk_of(512, 262), 256);
        assert_eq!(chunk_of(2 * 521, 512), 1042);
    }
}
