//! Loss functions with a loop, each also without it: unrolled for given numbers of steps, with the first n of them on copies
//! of the parameters that are arguments, so that they have no gradient. The two agree by construction.
use super::support::{Build, execute, int, ints, loss};
use rdc_ir::interp::{Inputs, Tensor};
use rdc_ir::{ArgRole, Attr, DType, Module, Opcode, Type, ValueId};

/// What an iteration yields.
pub struct Body {
    pub next: Vec<ValueId>,
    pub done: Option<ValueId>,
    pub stacked: Vec<ValueId>,
}

/// What the parts of a model are given.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// Parameters, or copies of them.
    pub w: &'a [ValueId],
    /// Arguments.
    pub x: &'a [ValueId],
    /// Values from before the loop.
    pub captured: &'a [ValueId],
    /// n + k
    pub steps: ValueId,
    /// After the loop, how many of the k steps ran.
    pub trips: ValueId,
}

/// Captured values, and the first state.
type Begin = fn(&mut Build<'_>, Given<'_>) -> (Vec<ValueId>, Vec<ValueId>);

/// A model: what comes before the loop, its body, and the loss after it.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    pub weights: &'static [&'static [usize]],
    pub inputs: &'static [&'static [usize]],
    pub can_exit: bool,
    pub begin: Begin,
    /// An iteration: its step, whether it is the last, its state.
    pub body: fn(&mut Build<'_>, Given<'_>, ValueId, ValueId, &[ValueId]) -> Body,
    /// The loss: of the last state and the stacked values.
    pub end: fn(&mut Build<'_>, Given<'_>, &[ValueId], &[ValueId]) -> ValueId,
}

pub const MAX_STEPS: usize = 5;

impl Model {
    fn values(&self, c: &mut Build<'_>) -> (Vec<ValueId>, Vec<ValueId>) {
        let w = self.weights.iter().map(|shape| c.param(shape)).collect();
        (w, self.inputs.iter().map(|shape| c.input(shape)).collect())
    }
    /// With a loop.
    pub fn looped(&self, seed: u64) -> (Module, Inputs<f64>) {
        loss(seed, |c| {
            let (w, x) = self.values(c);
            let steps = c.b.arg("steps", ArgRole::Steps, Type::scalar(DType::I32));
            let given = Given { w: &w, x: &x, captured: &[], steps, trips: steps };
            let (captured, init) = (self.begin)(c, given);
            let given = Given { captured: &captured, ..given };
            let (region, step, last, carried) = c.b.begin_loop(&init);
            let outer = c.b.enter(region);
            let body = (self.body)(c, given, step, last, &carried);
            c.b.enter(outer);
            let results = c.b.end_loop(region, steps, &init, &body.next, body.done, &body.stacked, MAX_STEPS);
            let given = Given { trips: results[init.len()], ..given };
            (self.end)(c, given, &results[..init.len()], &results[init.len() + 1..])
        })
    }
    /// Without: `n` iterations without gradient, then `trips` of the `k` that were asked for.
    pub fn unrolled(&self, seed: u64, n: usize, k: usize, trips: usize) -> (Module, Inputs<f64>) {
        loss(seed, |c| {
            let (w, x) = self.values(c);
            let copies: Vec<Tensor<f64>> = c.params.iter().map(|p| (*c.inputs.params[&p.name]).clone()).collect();
            let frozen: Vec<ValueId> = copies.into_iter().map(|t| c.argument(t)).collect();
            let steps = c.b.constant((n + k) as f64, DType::I32);
            let ran = c.b.constant(trips as f64, DType::I32);
            let given = Given { w: &w, x: &x, captured: &[], steps, trips: ran };
            let (captured, init) = (self.begin)(c, given);
            let given = Given { captured: &captured, ..given };
            let mut state = init;
            if n > 0 {
                let given = Given { w: &frozen, captured: &[], ..given };
                let (captured, init) = (self.begin)(c, given);
                let given = Given { captured: &captured, ..given };
                state = init;
                for i in 0..n {
                    state = self.iteration(c, given, i, n + k, &state).next;
                }
            }
            // One iteration too many, whose values are not used, for the types of the stacks.
            let unused = self.iteration(c, given, 0, n + k, &state).stacked;
            let mut stacks: Vec<Vec<ValueId>> = vec![Vec::new(); unused.len()];
            for i in n..n + trips {
                let body = self.iteration(c, given, i, n + k, &state);
                state = body.next;
                for (stack, value) in stacks.iter_mut().zip(body.stacked) {
                    let shape: Vec<usize> = [1].into_iter().chain(c.shape(value)).collect();
                    stack.push(c.op(Opcode::Reshape, &[value], vec![ints(&shape)]));
                }
            }
            let mut joined = Vec::new();
            for (mut stack, value) in stacks.into_iter().zip(unused) {
                let missing: Vec<usize> = [MAX_STEPS - trips].into_iter().chain(c.shape(value)).collect();
                if missing[0] > 0 {
                    let zero = c.number(0.0);
                    stack.push(c.op(Opcode::Broadcast, &[zero], vec![ints(&missing)]));
                }
                joined.push(c.op(Opcode::Concat, &stack, vec![int(0)]));
            }
            (self.end)(c, given, &state, &joined)
        })
    }
    fn iteration(&self, c: &mut Build<'_>, given: Given<'_>, i: usize, steps: usize, state: &[ValueId]) -> Body {
        let step = c.b.constant(i as f64, DType::I32);
        let last = c.b.constant((i + 1 == steps) as u8 as f64, DType::Bool);
        (self.body)(c, given, step, last, state)
    }
    /// How many of k steps run.
    pub fn trips(&self, seed: u64, k: usize) -> usize {
        let (module, mut inputs) = self.looped(seed);
        inputs.args.insert("steps".into(), Tensor::int(k as i32).into());
        execute(&module, "loss", &inputs).trips[0]
    }
}

fn linear(c: &mut Build<'_>, x: ValueId, w: ValueId) -> ValueId {
    c.op(Opcode::Matmul, &[x, w], vec![Attr::Bool(false), Attr::Bool(true)])
}
fn norm(c: &mut Build<'_>, x: ValueId, w: ValueId) -> ValueId {
    c.op(Opcode::RmsNorm, &[x, w], vec![Attr::float(1e-2)])
}
fn slice(c: &mut Build<'_>, x: ValueId, axis: usize, start: usize, end: usize) -> ValueId {
    c.op(Opcode::Slice, &[x], vec![int(axis), int(start), int(end)])
}
fn reshape(c: &mut Build<'_>, x: ValueId, shape: &[usize]) -> ValueId {
    c.op(Opcode::Reshape, &[x], vec![ints(shape)])
}
/// The sum of all elements of a product.
fn dot(c: &mut Build<'_>, a: ValueId, b: ValueId) -> ValueId {
    let product = c.map(Opcode::Mul, &[a, b]);
    c.op(Opcode::SumTo, &[product], vec![ints(&[])])
}
fn scaled(c: &mut Build<'_>, a: ValueId, by: f64) -> ValueId {
    let by = c.number(by);
    c.map(Opcode::Mul, &[a, by])
}

/// An injected embedding, an adapter in halves of one weight, a gated MLP, norms, and a second carried value.
const RECURRENT: Model = Model {
    name: "recurrent",
    weights: &[&[2, 4], &[4, 4], &[4, 8], &[4], &[8, 4], &[4, 4]],
    inputs: &[&[2, 4], &[2, 4], &[2, 4]],
    can_exit: false,
    begin: |c, g| {
        let e = c.map(Opcode::Mul, &[g.w[0], g.x[1]]);
        let e = linear(c, e, g.w[1]);
        let e = c.map(Opcode::Tanh, &[e]);
        let halves = [slice(c, g.w[2], 1, 0, 4), slice(c, g.w[2], 1, 4, 8)];
        let injected = linear(c, e, halves[1]);
        (vec![injected, halves[0]], vec![g.x[0], e])
    },
    body: |c, g, _, _, state| {
        let x = linear(c, state[0], g.captured[1]);
        let x = c.map(Opcode::Add, &[x, g.captured[0]]);
        let normed = norm(c, x, g.w[3]);
        let both = linear(c, normed, g.w[4]);
        let (gate, up) = (slice(c, both, 1, 0, 4), slice(c, both, 1, 4, 8));
        let gate = c.map(Opcode::Silu, &[gate]);
        let h = c.map(Opcode::Mul, &[gate, up]);
        let y = linear(c, h, g.w[5]);
        let y = c.map(Opcode::Add, &[y, x]);
        let s = norm(c, y, g.w[3]);
        let m = scaled(c, state[1], 0.5);
        let product = c.map(Opcode::Mul, &[s, state[0]]);
        let m = c.map(Opcode::Add, &[m, product]);
        Body { next: vec![s, m], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| {
        let s = norm(c, state[0], g.w[3]);
        let (a, b) = (dot(c, s, g.x[1]), dot(c, state[1], g.x[2]));
        c.map(Opcode::Add, &[a, b])
    },
};

/// A body that depends on the step and on whether it is the last, and a loss that depends on the number of steps.
const STEPS: Model = Model {
    name: "steps",
    weights: &[&[MAX_STEPS, 3], &[2, 3], &[2, 3]],
    inputs: &[&[2, 3]],
    can_exit: false,
    begin: |c, g| (vec![], vec![c.map(Opcode::Exp, &[g.w[1]])]),
    body: |c, g, step, last, state| {
        let row = c.map(Opcode::Gather, &[g.w[0], step]);
        let number = c.op(Opcode::Cast, &[step], vec![Attr::DType(DType::F32)]);
        let by_step = c.map(Opcode::Mul, &[number, g.w[2]]);
        let s = c.map(Opcode::Mul, &[state[0], row]);
        let s = c.map(Opcode::Add, &[s, by_step]);
        let s = c.map(Opcode::Tanh, &[s]);
        let other = c.map(Opcode::Mul, &[s, g.w[1]]);
        Body { next: vec![c.map(Opcode::Select, &[last, other, s])], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| {
        let steps = c.op(Opcode::Cast, &[g.steps], vec![Attr::DType(DType::F32)]);
        let value = dot(c, state[0], g.x[0]);
        c.map(Opcode::Mul, &[value, steps])
    },
};

/// Exit probabilities and losses of all steps, with a head that shares the table of the embedding.
const STACKED: Model = Model {
    name: "stacked",
    weights: &[&[5, 4], &[4, 4], &[1, 4], &[4]],
    inputs: &[],
    can_exit: false,
    begin: |c, g| {
        let ids = token_ids(c, 0);
        let one = c.number(1.0);
        let rest = c.op(Opcode::Broadcast, &[one], vec![ints(&[3])]);
        let h = c.map(Opcode::Gather, &[g.w[0], ids]);
        (vec![], vec![h, rest])
    },
    body: |c, g, _, last, state| {
        let h = linear(c, state[0], g.w[1]);
        let h = c.map(Opcode::Add, &[h, state[0]]);
        let h = norm(c, h, g.w[3]);
        let labels = token_ids(c, 1);
        let nll = c.op(Opcode::LinearCrossEntropy, &[h, g.w[0], labels], vec![Attr::float(1e-3)]);
        let gate = linear(c, h, g.w[2]);
        let gate = reshape(c, gate, &[3]);
        let leave = c.map(Opcode::Sigmoid, &[gate]);
        let p = c.map(Opcode::Mul, &[leave, state[1]]);
        let rest = c.map(Opcode::Sub, &[state[1], p]);
        let p = c.map(Opcode::Select, &[last, state[1], p]);
        Body { next: vec![h, rest], done: None, stacked: vec![p, nll] }
    },
    end: |c, g, _, stacks| {
        let expected = dot(c, stacks[0], stacks[1]);
        let spread = dot(c, stacks[0], stacks[0]);
        let trips = c.op(Opcode::Cast, &[g.trips], vec![Attr::DType(DType::F32)]);
        let spread = c.map(Opcode::Mul, &[spread, trips]);
        c.map(Opcode::Sub, &[expected, spread])
    },
};

/// Three tokens, made in the function: 0, 1, 2, or with an offset.
fn token_ids(c: &mut Build<'_>, offset: usize) -> ValueId {
    let start = c.b.constant(offset as f64, DType::I32);
    let start = reshape(c, start, &[1]);
    let ids = c.op(Opcode::Positions, &[start], vec![int(3)]);
    reshape(c, ids, &[3])
}

/// Adaptive halting: the loop ends when all rows have spent their probability.
const HALTING: Model = Model {
    name: "halting",
    weights: &[&[2, 4], &[4, 4], &[1, 4]],
    inputs: &[&[2, 4]],
    can_exit: true,
    begin: |c, g| {
        let zero = c.number(0.0);
        let spent = c.op(Opcode::Broadcast, &[zero], vec![ints(&[2, 1])]);
        let output = c.op(Opcode::Broadcast, &[zero], vec![ints(&[2, 4])]);
        (vec![], vec![g.w[0], spent, output])
    },
    body: |c, g, _, last, state| {
        let h = linear(c, state[0], g.w[1]);
        let h = c.map(Opcode::Tanh, &[h]);
        let gate = linear(c, h, g.w[2]);
        let p = c.map(Opcode::Sigmoid, &[gate]);
        let one = c.number(1.0);
        let left = c.map(Opcode::Sub, &[one, state[1]]);
        let sum = c.map(Opcode::Add, &[state[1], p]);
        let most = c.number(0.9);
        let over = c.map(Opcode::Le, &[most, sum]);
        let ends = c.map(Opcode::Or, &[over, last]);
        let p = c.map(Opcode::Select, &[ends, left, p]);
        let spent = c.map(Opcode::Add, &[state[1], p]);
        let part = c.map(Opcode::Mul, &[p, h]);
        let output = c.map(Opcode::Add, &[state[2], part]);
        let done = c.map(Opcode::All, &[over]);
        Body { next: vec![h, spent, output], done: Some(done), stacked: vec![p] }
    },
    end: |c, g, state, stacks| {
        let value = dot(c, state[2], g.x[0]);
        let cost = dot(c, stacks[0], stacks[0]);
        c.map(Opcode::Add, &[value, cost])
    },
};

/// Attention with rotary positions, and layer norms.
const ATTENTION: Model = Model {
    name: "attention",
    weights: &[&[1, 3, 4], &[12, 4], &[4], &[4], &[4, 4]],
    inputs: &[&[1, 3, 4]],
    can_exit: false,
    begin: |c, g| {
        let table = c.op(Opcode::RopeTable, &[], vec![int(4), int(2), Attr::float(10.0)]);
        let zero = c.b.constant(0.0, DType::I32);
        let pos = reshape(c, zero, &[1]);
        (vec![table, pos], vec![g.w[0]])
    },
    body: |c, g, _, _, state| {
        let qkv = linear(c, state[0], g.w[1]);
        let mut head = |i: usize| {
            let part = slice(c, qkv, 2, 4 * i, 4 * i + 4);
            reshape(c, part, &[1, 3, 2, 2])
        };
        let (q, k, v) = (head(0), head(1), head(2));
        let rope = |c: &mut Build<'_>, x| {
            c.op(Opcode::Rope, &[x, g.captured[0], g.captured[1]], vec![Attr::Str("adjacent".into())])
        };
        let (q, k) = (rope(c, q), rope(c, k));
        let y = c.op(Opcode::Attention, &[q, k, v, g.captured[1]], vec![Attr::Bool(true), Attr::float(0.7)]);
        let y = reshape(c, y, &[1, 3, 4]);
        let y = linear(c, y, g.w[4]);
        let y = c.map(Opcode::Add, &[y, state[0]]);
        let y = c.op(Opcode::LayerNorm, &[y, g.w[2], g.w[3]], vec![Attr::float(1e-2)]);
        Body { next: vec![y], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| {
        let p = c.map(Opcode::Softmax, &[state[0]]);
        dot(c, p, g.x[0])
    },
};

/// Loops in the body and after it that run a constant number of times; parameters are taken where they are used.
const NESTED: Model = Model {
    name: "nested",
    weights: &[&[2, 3], &[3, 3], &[3]],
    inputs: &[&[2, 3]],
    can_exit: false,
    begin: |c, g| (vec![c.map(Opcode::Sigmoid, &[g.w[0]])], vec![g.x[0]]),
    body: |c, g, step, _, state| {
        let square = c.map(Opcode::Mul, &[state[0], state[0]]);
        let init = [c.map(Opcode::Sub, &[state[0], g.captured[0]])];
        let trips = c.b.constant(2.0, DType::I32);
        let (region, inner_step, last, args) = c.b.begin_loop(&init);
        let outer = c.b.enter(region);
        let t = linear(c, args[0], g.w[1]);
        let t = c.map(Opcode::Add, &[t, square]);
        let t = c.map(Opcode::Tanh, &[t]);
        let both = c.map(Opcode::Add, &[step, inner_step]);
        let both = c.op(Opcode::Cast, &[both], vec![Attr::DType(DType::F32)]);
        let more = c.map(Opcode::Mul, &[both, g.w[2]]);
        let other = c.map(Opcode::Mul, &[t, more]);
        let next = c.map(Opcode::Select, &[last, other, t]);
        c.b.enter(outer);
        let results = c.b.end_loop(region, trips, &init, &[next], None, &[t], 3);
        let sum = c.op(Opcode::ReduceSum, &[results[2]], vec![int(0), Attr::Bool(false)]);
        let sum = scaled(c, sum, 0.3);
        Body { next: vec![c.map(Opcode::Add, &[sum, results[0]])], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| {
        let trips = c.b.constant(2.0, DType::I32);
        let init = [state[0]];
        let (region, _, _, args) = c.b.begin_loop(&init);
        let outer = c.b.enter(region);
        let next = linear(c, args[0], g.w[1]);
        let next = c.map(Opcode::Atan, &[next]);
        c.b.enter(outer);
        let results = c.b.end_loop(region, trips, &init, &[next], None, &[], 3);
        dot(c, results[0], g.x[0])
    },
};

/// A carried value that goes through unchanged, one that starts over in each iteration, two that change places.
const SWAPPED: Model = Model {
    name: "swapped",
    weights: &[&[2], &[2], &[2], &[2]],
    inputs: &[&[2]],
    can_exit: false,
    begin: |_, g| (vec![], g.w.to_vec()),
    body: |c, g, _, _, state| {
        let product = c.map(Opcode::Mul, &[state[0], state[3]]);
        let next = vec![state[1], product, state[2], g.w[2]];
        Body { next, done: None, stacked: vec![] }
    },
    end: |c, g, state, _| {
        let a = c.map(Opcode::Mul, &[state[0], state[1]]);
        let b = c.map(Opcode::Mul, &[state[2], state[3]]);
        let sum = c.map(Opcode::Add, &[a, b]);
        dot(c, sum, g.x[0])
    },
};

/// More tokens than weights have elements, so that their gradients are carried in parts; of one weight, of a range.
pub const TOKENS: Model = Model {
    name: "tokens",
    weights: &[&[2, 2], &[4, 2]],
    inputs: &[&[20, 2], &[20, 2]],
    can_exit: false,
    begin: |_, g| (vec![], vec![g.x[0]]),
    body: |c, g, _, _, state| {
        let y = linear(c, state[0], g.w[1]);
        let y = slice(c, y, 1, 1, 3);
        let y = c.map(Opcode::Tanh, &[y]);
        let y = linear(c, y, g.w[0]);
        Body { next: vec![c.map(Opcode::Add, &[y, g.x[1]])], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| dot(c, state[0], g.x[1]),
};

/// Wide enough that every product costs more to compute again than to keep; the second is twice as wide as the first.
pub const WIDE: Model = Model {
    name: "wide",
    weights: &[&[128, 64], &[256, 128], &[64, 256]],
    inputs: &[&[8, 64]],
    can_exit: false,
    begin: |_, g| (vec![], vec![g.x[0]]),
    body: |c, g, _, _, state| {
        let mut y = state[0];
        for &w in g.w {
            y = linear(c, y, w);
            y = c.map(Opcode::Tanh, &[y]);
        }
        Body { next: vec![y], done: None, stacked: vec![] }
    },
    end: |c, g, state, _| dot(c, state[0], g.x[0]),
};

pub const MODELS: &[Model] = &[RECURRENT, STEPS, STACKED, HALTING, ATTENTION, NESTED, SWAPPED, TOKENS];
