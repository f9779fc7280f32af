//! The random module: straight-line operations. Loops and attention are in `blocks`.
use super::Rng;
use crate::builder::Builder;
use crate::entity::ValueId;
use crate::module::{ArgRole, Func, Init, Loc, Module, Param};
use crate::ops::{Attr, Opcode};
use crate::types::{DType, Type};

/// What random modules contain.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Roughly how many operations there are in the body; inner regions have half as many.
    pub ops: usize,
    /// Whether there are loops (nested up to twice).
    pub loops: bool,
    /// Whether there are KV caches.
    pub caches: bool,
    /// Whether there are `pack`, `quantize` and the operations on packed weights.
    pub packed: bool,
    /// Whether there are casts to bf16 and selections by comparison, which a change of precision can flip.
    pub jumps: bool,
    /// Whether there are labels, losses, derivatives, loops in reverse and the other operations of training.
    pub training: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { ops: 24, loops: true, caches: true, packed: false, jumps: true, training: false }
    }
}

/// A random module with one function, `f`, which verifies.
pub fn random_module(seed: u64, config: &Config) -> Module {
    let mut rng = Rng::new(seed);
    let dim = rng.pick(&[4, 8, 12]);
    let sizes = Sizes { batch: 1 + rng.below(2), seq: 1 + rng.below(3), dim, heads: 2, context: 6 + rng.below(3) };
    let mut module = Module { name: format!("random_{seed}"), ..Module::default() };
    let mut func = Func::new("f");
    let mut generator = Generator {
        rng,
        config: *config,
        sizes,
        builder: Builder::new(&mut func),
        module: &mut module,
        pool: Vec::new(),
        caches: None,
        loops: Vec::new(),
        ids: None,
        labels: None,
        pos: None,
        steps: None,
    };
    generator.function();
    module.funcs.push(func);
    module
}

/// The sizes that a module's shapes are made of.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub seq: usize,
    pub dim: usize,
    pub heads: usize,
    pub context: usize,
}

/// An f32 value that can be used, and an estimate of its largest element.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub value: ValueId,
    pub bound: f64,
}

pub(super) struct OpenLoop {
    pub step: ValueId,
    pub last: ValueId,
}

pub(super) struct Generator<'g, 'f> {
    pub rng: Rng,
    pub config: Config,
    pub sizes: Sizes,
    pub builder: Builder<'f>,
    pub module: &'g mut Module,
    /// The f32 values visible here, of any shape.
    pub pool: Vec<Item>,
    /// The current k and v caches, if they can be used here.
    pub caches: Option<[ValueId; 2]>,
    pub loops: Vec<OpenLoop>,
    pub ids: Option<ValueId>,
    pub labels: Option<ValueId>,
    pub pos: Option<ValueId>,
    pub steps: Option<ValueId>,
}

/// Slots of the random caches: enough for two layers of four iterations at a base of up to two.
pub(super) const SLOTS: usize = 12;

impl Generator<'_, '_> {
    fn function(&mut self) {
        let Sizes { batch, seq, dim, heads, context } = self.sizes;
        let state = ArgRole::State(Init::TruncNormal { std: 0.5, bound: 3.0 });
        self.ids = Some(self.builder.arg("input_ids", ArgRole::Ids, Type::new(DType::I32, [batch, seq])));
        self.pos = Some(self.builder.arg("pos", ArgRole::Position, Type::new(DType::I32, [batch])));
        self.steps = Some(self.builder.arg("steps", ArgRole::Steps, Type::scalar(DType::I32)));
        let initial = self.builder.arg("initial_state", state, Type::f32([batch, seq, dim]));
        let extra = self.builder.arg("extra", ArgRole::Input, Type::f32([batch, seq, dim]));
        if self.config.training {
            self.labels = Some(self.builder.arg("labels", ArgRole::Labels, Type::new(DType::I32, [batch, seq])));
        }
        if self.config.caches {
            let ty = Type::cache(DType::F32, [SLOTS, batch, context, heads, dim / heads]);
            self.caches = Some(["k_cache", "v_cache"].map(|n| self.builder.arg(n, ArgRole::Cache, ty.clone())));
        }
        self.pool = vec![Item { value: initial, bound: 2.0 }, Item { value: extra, bound: 1.0 }];
        self.fill(self.config.ops);
        for i in 0..1 + self.rng.below(3) {
            let item = self.recent();
            self.builder.output(format!("out_{i}"), item.value, false);
        }
        // Always a result of the size of the state, and the caches.
        let last = self.of_type(&Type::f32([batch, seq, dim])).map_or(initial, |i| i.value);
        self.builder.output("state", last, false);
        if let Some(caches) = self.caches {
            for (name, cache) in ["k_cache", "v_cache"].into_iter().zip(caches) {
                self.builder.output(name, cache, false);
            }
        }
        if self.config.training {
            self.updates();
        }
    }
    /// Appends about `count` operations.
    pub fn fill(&mut self, count: usize) {
        for _ in 0..count {
            self.builder.loc = Loc { line: 1 + self.rng.below(99) as u32, col: 1 + self.rng.below(20) as u32 };
            match self.rng.below(if self.config.training { 28 } else { 20 }) {
                0..=2 => self.unary(),
                3..=5 => self.binary(),
                6 | 7 => self.matmul(),
                8 => self.split_matmul(),
                9 => self.norm(),
                10 => self.reshape(),
                11 => self.slice(),
                12 => self.concat(),
                13 => self.reduce(),
                14 => self.table_row(),
                15 if self.config.jumps => self.jump(),
                16 => self.attention(),
                17 if self.config.packed => self.packed(),
                18 if self.config.loops && self.loops.len() < 2 => self.random_loop(),
                19 if !self.loops.is_empty() => self.step_signal(),
                20.. => self.training(),
                _ => self.binary(),
            }
        }
    }
    pub fn ty(&self, value: ValueId) -> Type {
        self.builder.func.ty(value).clone()
    }
    /// Adds a value to the pool, made small first if it may be large.
    pub fn push(&mut self, value: ValueId, bound: f64) -> ValueId {
        let (value, bound) =
            if bound > 100.0 { (self.op(Opcode::Tanh, &[value], vec![]), 1.0) } else { (value, bound) };
        if self.rng.one_in(8) {
            let name = self.rng.pick(&["h", "x", "core.0/out", "s"]);
            self.builder.func.values[value].name = Some(name.into());
        }
        self.pool.push(Item { value, bound });
        value
    }
    pub fn op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        self.builder.op(opcode, operands, attrs)
    }
    /// A random value, recent ones more often.
    pub fn recent(&mut self) -> Item {
        let n = self.pool.len();
        let back = self.rng.below(n).min(self.rng.below(n));
        self.pool[n - 1 - back]
    }
    /// A random value with at least one axis.
    pub fn ranked(&mut self) -> Item {
        let item = self.recent();
        // The first values of the pool are states.
        if self.ty(item.value).rank() == 0 { self.pool[self.rng.below(2)] } else { item }
    }
    /// A random value of that type.
    pub fn of_type(&mut self, ty: &Type) -> Option<Item> {
        let fit: Vec<Item> = self.pool.iter().copied().filter(|i| self.builder.func.ty(i.value) == ty).collect();
        if fit.is_empty() { None } else { Some(self.rng.pick(&fit)) }
    }
    /// A new parameter, or now and then an old one of the same type.
    pub fn param(&mut self, shape: &[usize], init: Init) -> ValueId {
        let ty = Type::f32(shape);
        let old: Vec<String> = self.module.params.values().filter(|p| p.ty == ty).map(|p| p.name.clone()).collect();
        let name = if !old.is_empty() && self.rng.one_in(3) {
            old[self.rng.below(old.len())].clone()
        } else {
            let name = format!("layer.{}.weight", self.module.params.len());
            let aliases = if self.rng.one_in(8) { vec![format!("alias of {name}")] } else { vec![] };
            let (decay, in_stack) = (self.rng.one_in(2), self.rng.one_in(2));
            let loc = Loc { line: 1 + self.rng.below(9) as u32, col: 1 };
            self.module.params.push(Param {
                name: name.clone(),
                aliases,
                ty: ty.clone(),
                init,
                decay,
                in_stack,
                state: false,
                loc,
            });
            name
        };
        self.builder.param(&name, ty)
    }
    pub fn constant(&mut self, value: f64, dtype: DType) -> ValueId {
        self.builder.constant(value, dtype)
    }
    pub fn unary(&mut self) {
        use Opcode::*;
        let a = self.recent();
        let one = |g: &mut Self, of: ValueId| {
            let (abs, one) = (g.op(Abs, &[of], vec![]), g.constant(1.0, DType::F32));
            g.op(Add, &[abs, one], vec![])
        };
        let op = self.rng.pick(&[Neg, Abs, Tanh, Erf, Sigmoid, Relu, Silu, Gelu, GeluTanh, Exp, Log, Sqrt, Rsqrt]);
        let (operand, bound) = match op {
            Exp => (self.op(Tanh, &[a.value], vec![]), 3.0),
            Log | Sqrt => (one(self, a.value), a.bound + 1.0),
            Rsqrt => (one(self, a.value), 1.0),
            Tanh | Erf | Sigmoid => (a.value, 1.0),
            _ => (a.value, a.bound),
        };
        let value = self.op(op, &[operand], vec![]);
        self.push(value, bound);
    }
    fn binary(&mut self) {
        use Opcode::*;
        let (a, b) = (self.recent(), self.recent());
        if crate::infer::broadcast(&self.ty(a.value).shape, &self.ty(b.value).shape).is_none() {
            return self.unary();
        }
        let op = self.rng.pick(&[Add, Add, Sub, Mul, Mul, Max, Min, Div]);
        let (b, bound) = match op {
            Mul => (b.value, a.bound * b.bound),
            Div => {
                let (abs, one) = (self.op(Abs, &[b.value], vec![]), self.constant(1.0, DType::F32));
                (self.op(Add, &[abs, one], vec![]), a.bound)
            }
            _ => (b.value, a.bound + b.bound),
        };
        let operands = if self.rng.one_in(2) && op != Div { [b, a.value] } else { [a.value, b] };
        let value = self.op(op, &operands, vec![]);
        if self.ty(value).elements() <= 4096 {
            self.push(value, bound);
        }
    }
    /// `x · wᵀ` by a parameter of `n` rows.
    pub fn linear(&mut self, x: ValueId, n: usize) -> ValueId {
        let k = self.ty(x).last();
        let w = self.param(&[n, k], Init::Normal { std: 0.7 / (k as f64).sqrt() });
        if self.rng.one_in(4) {
            let w = self.op(Opcode::Transpose, &[w], vec![Attr::Ints(vec![1, 0])]);
            return self.op(Opcode::Matmul, &[x, w], vec![Attr::Bool(false), Attr::Bool(false)]);
        }
        self.op(Opcode::Matmul, &[x, w], vec![Attr::Bool(false), Attr::Bool(true)])
    }
    fn matmul(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        if ty.rank() < 2 {
            return self.unary();
        }
        let n = self.rng.pick(&[self.sizes.dim, self.sizes.dim, 2 * self.sizes.dim, 5]);
        let value = self.linear(x.value, n);
        let bound = x.bound * (ty.last() as f64).sqrt();
        self.push(value, bound);
    }
    /// A matmul over joined inputs, as an adapter has it.
    fn split_matmul(&mut self) {
        let a = self.ranked();
        let ty = self.ty(a.value);
        let b = self.of_type(&ty).unwrap_or(a);
        if ty.rank() < 2 {
            return self.unary();
        }
        let joined = self.op(Opcode::Concat, &[a.value, b.value], vec![Attr::Int(ty.rank() as i64 - 1)]);
        let value = self.linear(joined, self.sizes.dim);
        self.push(value, (a.bound + b.bound) * (ty.last() as f64).sqrt());
    }
    /// Outputs that update: a weight by its double, training state by a value of the pool.
    fn updates(&mut self) {
        if let Some(param) = self.module.params.values().next().cloned() {
            let old = self.builder.param(&param.name, param.ty);
            let new = self.op(Opcode::Add, &[old, old], vec![]);
            self.builder.update(param.name, new);
        }
        let item = self.recent();
        let (name, ty) = ("sum of something".to_string(), self.ty(item.value));
        let (init, loc) = (Init::Constant(0.0), Loc::default());
        let (aliases, decay, in_stack) = (vec![], false, false);
        self.module.params.push(Param { name: name.clone(), aliases, ty, init, decay, in_stack, state: true, loc });
        self.builder.update(name, item.value);
    }
    fn norm(&mut self) {
        let x = self.ranked();
        let last = self.ty(x.value).last();
        let eps = vec![Attr::float(1e-5)];
        let (value, bound) = match self.rng.below(3) {
            0 => (self.op(Opcode::Softmax, &[x.value], vec![]), 1.0),
            1 => {
                let w = self.param(&[last], Init::Constant(1.0));
                (self.op(Opcode::RmsNorm, &[x.value, w], eps), 2.0 * (last as f64).sqrt())
            }
            _ => {
                let (w, b) = (self.param(&[last], Init::Constant(1.0)), self.param(&[last], Init::Constant(0.0)));
                // A generous eps: the variance of a short row can vanish.
                (self.op(Opcode::LayerNorm, &[x.value, w, b], vec![Attr::float(0.1)]), 2.0 * (last as f64).sqrt())
            }
        };
        self.push(value, bound);
    }
    fn reshape(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        let value = if self.rng.one_in(2) && ty.rank() > 1 {
            let mut perm: Vec<i64> = (0..ty.rank() as i64).collect();
            perm.rotate_left(1 + self.rng.below(ty.rank() - 1));
            self.op(Opcode::Transpose, &[x.value], vec![Attr::Ints(perm)])
        } else {
            let shape = vec![ty.rows() as i64, ty.last() as i64];
            self.op(Opcode::Reshape, &[x.value], vec![Attr::Ints(shape)])
        };
        self.push(value, x.bound);
    }
    fn slice(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        let axis = self.rng.below(ty.rank());
        let start = self.rng.below(ty.shape[axis]);
        let end = start + 1 + self.rng.below(ty.shape[axis] - start);
        let attrs = [axis, start, end].map(|i| Attr::Int(i as i64)).to_vec();
        let value = self.op(Opcode::Slice, &[x.value], attrs);
        self.push(value, x.bound);
    }
    fn concat(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        let axis = self.rng.below(ty.rank());
        let y = self.of_type(&ty).unwrap_or(x);
        let value = self.op(Opcode::Concat, &[x.value, y.value], vec![Attr::Int(axis as i64)]);
        if self.ty(value).elements() <= 4096 {
            self.push(value, x.bound.max(y.bound));
        }
    }
    fn reduce(&mut self) {
        let x = self.ranked();
        let ty = self.ty(x.value);
        let axis = self.rng.below(ty.rank());
        let attrs = vec![Attr::Int(axis as i64), Attr::Bool(self.rng.one_in(2))];
        if self.rng.one_in(2) {
            let mut value = self.op(Opcode::ReduceMax, &[x.value], attrs);
            if self.rng.one_in(3) {
                let mut shape = self.ty(value).shape;
                shape.insert(0, 2);
                let shape = shape.into_iter().map(|n| n as i64).collect();
                value = self.op(Opcode::Broadcast, &[value], vec![Attr::Ints(shape)]);
            }
            self.push(value, x.bound);
        } else {
            let value = self.op(Opcode::ReduceSum, &[x.value], attrs);
            self.push(value, x.bound * ty.shape[axis] as f64);
        }
    }
    /// Rows of a table: a parameter by token id, or a sinusoid by position.
    fn table_row(&mut self) {
        let Sizes { seq, dim, context, .. } = self.sizes;
        let (Some(ids), Some(pos)) = (self.ids, self.pos) else { return };
        let value = if self.rng.one_in(2) {
            let table = self.param(&[7, dim], Init::Normal { std: 0.5 });
            self.op(Opcode::Gather, &[table, ids], vec![])
        } else {
            let attrs = vec![Attr::Int(context as i64), Attr::Int(dim as i64), Attr::float(10000.0)];
            let table = self.op(Opcode::SinusoidTable, &[], attrs);
            let positions = self.op(Opcode::Positions, &[pos], vec![Attr::Int(seq as i64)]);
            self.op(Opcode::Gather, &[table, positions], vec![])
        };
        self.push(value, 1.0);
    }
    /// Rounding and selection.
    fn jump(&mut self) {
        let (a, b) = (self.recent(), self.recent());
        let (ta, tb) = (self.ty(a.value), self.ty(b.value));
        if self.rng.one_in(2) || ta != tb {
            let half = self.op(Opcode::Cast, &[a.value], vec![Attr::DType(DType::BF16)]);
            let value = self.op(Opcode::Cast, &[half], vec![Attr::DType(DType::F32)]);
            self.push(value, a.bound);
            return;
        }
        let compare = self.rng.pick(&[Opcode::Lt, Opcode::Le, Opcode::Eq]);
        let mut cond = self.op(compare, &[a.value, b.value], vec![]);
        match self.rng.below(4) {
            0 => cond = self.op(Opcode::Not, &[cond], vec![]),
            1 => {
                let other = self.op(Opcode::Lt, &[b.value, a.value], vec![]);
                let join = self.rng.pick(&[Opcode::And, Opcode::Or]);
                cond = self.op(join, &[cond, other], vec![]);
            }
            _ => {}
        }
        let value = self.op(Opcode::Select, &[cond, a.value, b.value], vec![]);
        self.push(value, a.bound.max(b.bound));
    }
    fn packed(&mut self) {
        let x = self.ranked();
        let k = self.ty(x.value).last();
        let (n, nr, parts) = self.rng.pick(&[(8, 4, 1), (8, 4, 2), (6, 4, 1), (16, 8, 4)]);
        let w = self.param(&[n, k], Init::Normal { std: 0.7 / (k as f64).sqrt() });
        let pack = vec![Attr::Int(nr), Attr::Int(parts)];
        if let (Some(ids), true) = (self.ids, self.rng.one_in(4)) {
            let w = self.op(Opcode::Pack, &[w], pack);
            let attrs = vec![Attr::Int(n as i64), Attr::Int(k as i64), Attr::Int(parts)];
            let value = self.op(Opcode::PackedGather, &[w, ids], attrs);
            self.push(value, 2.0);
            return;
        }
        let attrs = vec![Attr::Int(n as i64), Attr::Int(k as i64), Attr::Int(parts)];
        let value = match self.rng.below(3) {
            0 => {
                let w = self.op(Opcode::Pack, &[w], pack);
                self.op(Opcode::PackedMatmul, &[x.value, w], attrs)
            }
            1 => {
                let w = self.op(Opcode::Cast, &[w], vec![Attr::DType(DType::BF16)]);
                let w = self.op(Opcode::Pack, &[w], pack);
                self.op(Opcode::PackedMatmul, &[x.value, w], attrs)
            }
            _ => {
                let quantized = match self.builder.try_op(Opcode::Quantize, &[w], vec![]) {
                    Ok(results) => results,
                    Err(message) => unreachable!("{message}"),
                };
                let w = self.op(Opcode::Pack, &[quantized[0]], pack);
                self.op(Opcode::PackedMatmul, &[x.value, w, quantized[1]], attrs)
            }
        };
        self.push(value, x.bound * (k as f64).sqrt());
    }
}
