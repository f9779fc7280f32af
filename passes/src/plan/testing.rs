//! What tests of fusing and planning share.
#![allow(clippy::unwrap_used)]
use crate::tile::Cpu;
use crate::{Error, Options, WeightType, fuse};
use rdc_ir::program::{KvPolicy, Program};
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Init, Loc, Module, Opcode, Param, Type, ValueId};

/// A machine with 256-bit vectors.
pub const CPU: Cpu = Cpu { lanes: 8, mr: 6, nr: 16, l1: 32 << 10, l2: 512 << 10 };

/// Options for that machine.
pub fn options() -> Options {
    let (target, machine) = ("x86-64-v3".into(), std::sync::Arc::new(CPU));
    Options { target, machine, dtype: WeightType::F32, expected_trips: 8, training: None }
}

/// The program of a module.
pub fn build(module: &Module, options: &Options) -> Result<Program, Error> {
    super::build(fuse::run(module, &*options.machine)?, options)
}

/// Sizes of the test model: a prelude block, a loop over core blocks, a tied head.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Batch.
    pub b: usize,
    /// Chunk length.
    pub s: usize,
    /// Context.
    pub t: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub groups: usize,
    /// Head size.
    pub head: usize,
    /// Inner size of the MLP.
    pub inner: usize,
    /// Core blocks.
    pub layers: usize,
    /// Steps at most.
    pub max_steps: usize,
    /// Cache policy with its argument.
    pub policy: (&'static str, usize),
    /// Whether the loop leaves early.
    pub exit: bool,
    /// Whether there are caches; without, attention is over the chunk.
    pub cached: bool,
    /// Element type of the matmul weights.
    pub dtype: DType,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            b: 1,
            s: 5,
            t: 12,
            heads: 4,
            groups: 4,
            head: 4,
            inner: 24,
            layers: 2,
            max_steps: 4,
            policy: ("full", 0),
            exit: false,
            cached: true,
            dtype: DType::F32,
        }
    }
}

/// Ids are below this.
pub const VOCAB: usize = 23;

impl Sizes {
    fn dim(&self) -> usize {
        self.heads * self.head
    }
    fn kv_policy(&self) -> KvPolicy {
        match self.policy.0 {
            "modulo" => KvPolicy::Modulo(self.policy.1),
            "block" => KvPolicy::Block(self.policy.1),
            "anchor" => KvPolicy::Anchor,
            _ => KvPolicy::Full,
        }
    }
    /// Type of each of the two caches.
    pub fn cache(&self) -> Type {
        let slots = 1 + self.kv_policy().slots(self.max_steps, self.layers);
        Type::cache(DType::F32, [slots, self.b, self.t, self.groups, self.head])
    }
}

struct Block<'b, 'f> {
    b: &'b mut Builder<'f>,
    sizes: &'b Sizes,
    pos: ValueId,
    table: ValueId,
}

fn ints(values: &[usize]) -> Vec<Attr> {
    vec![Attr::Ints(values.iter().map(|&v| v as i64).collect())]
}

impl Block<'_, '_> {
    fn linear(&mut self, x: ValueId, name: &str, n: usize, parts: usize) -> ValueId {
        let k = self.b.func.ty(x).last();
        let (n, k, parts) = (n as i64, k as i64, parts as i64);
        let w = self.b.param(name, Type::f32([n as usize, k as usize]));
        let layout = vec![Attr::Int(16), Attr::Int(parts)];
        let attrs = vec![Attr::Int(n), Attr::Int(k), Attr::Int(parts)];
        match self.sizes.dtype {
            DType::I8 => {
                let both = self.b.try_op(Opcode::Quantize, &[w], vec![]).unwrap();
                let packed = self.b.op(Opcode::Pack, &[both[0]], layout);
                self.b.op(Opcode::PackedMatmul, &[x, packed, both[1]], attrs)
            }
            dtype => {
                let w = if dtype == DType::BF16 { self.b.op(Opcode::Cast, &[w], vec![Attr::DType(dtype)]) } else { w };
                let packed = self.b.op(Opcode::Pack, &[w], layout);
                self.b.op(Opcode::PackedMatmul, &[x, packed], attrs)
            }
        }
    }
    fn norm(&mut self, x: ValueId, name: &str) -> ValueId {
        let w = self.b.param(name, Type::f32([self.sizes.dim()]));
        self.b.op(Opcode::RmsNorm, &[x, w], vec![Attr::float(1e-6)])
    }
    fn slice(&mut self, x: ValueId, axis: usize, start: usize, end: usize) -> ValueId {
        let attrs = [axis, start, end].iter().map(|&v| Attr::Int(v as i64)).collect();
        self.b.op(Opcode::Slice, &[x], attrs)
    }
    /// A sandwich-norm block. `kv` is the two caches and the slot; updated.
    fn block(&mut self, x: ValueId, name: &str, kv: &mut Option<([ValueId; 2], ValueId)>) -> ValueId {
        let Sizes { b, s, heads, groups, head, inner, .. } = *self.sizes;
        let (dim, kv_dim) = (heads * head, groups * head);
        let n1 = self.norm(x, &format!("{name}.norm_1"));
        let qkv = self.linear(n1, &format!("{name}.qkv"), dim + 2 * kv_dim, 1);
        let bias = self.b.param(&format!("{name}.qk_bias"), Type::f32([2, 1, heads, head]));
        let mut parts = Vec::new();
        for (i, (start, count)) in [(0, heads), (dim, groups), (dim + kv_dim, groups)].into_iter().enumerate() {
            let part = self.slice(qkv, 2, start, start + count * head);
            let mut part = self.b.op(Opcode::Reshape, &[part], ints(&[b, s, count, head]));
            if i < 2 {
                let row = self.slice(bias, 0, i, i + 1);
                let row = self.slice(row, 2, 0, count);
                let row = self.b.op(Opcode::Reshape, &[row], ints(&[count, head]));
                part = self.b.op(Opcode::Add, &[part, row], vec![]);
                let layout = vec![Attr::Str("adjacent".into())];
                part = self.b.op(Opcode::Rope, &[part, self.table, self.pos], layout);
            }
            parts.push(part);
        }
        if let Some((caches, slot)) = kv {
            for i in 0..2 {
                let out =
                    self.b.try_op(Opcode::CacheUpdate, &[caches[i], parts[1 + i], self.pos, *slot], vec![]).unwrap();
                caches[i] = out[0];
                parts[1 + i] = out[1];
            }
        }
        let attrs = vec![Attr::Bool(kv.is_some()), Attr::float(0.5)];
        let a = self.b.op(Opcode::Attention, &[parts[0], parts[1], parts[2], self.pos], attrs);
        let a = self.b.op(Opcode::Reshape, &[a], ints(&[b, s, dim]));
        let a = self.linear(a, &format!("{name}.proj"), dim, 1);
        let y = self.b.op(Opcode::Add, &[a, x], vec![]);
        let y = self.norm(y, &format!("{name}.norm_2"));
        let n3 = self.norm(y, &format!("{name}.norm_3"));
        let fc = self.linear(n3, &format!("{name}.fc"), 2 * inner, 2);
        let (gate, up) = (self.slice(fc, 2, 0, inner), self.slice(fc, 2, inner, 2 * inner));
        let gate = self.b.op(Opcode::Silu, &[gate], vec![]);
        let gated = self.b.op(Opcode::Mul, &[gate, up], vec![]);
        let m = self.linear(gated, &format!("{name}.mlp_proj"), dim, 1);
        let z = self.b.op(Opcode::Add, &[m, y], vec![]);
        self.norm(z, &format!("{name}.norm_4"))
    }
}

/// The test model's function `name`. Outputs: `logits`, `states` (stacked), `trips`, and the caches if it has any.
pub fn function(name: &str, sizes: &Sizes) -> Func {
    let mut func = Func::new(name);
    let dim = sizes.dim();
    let mut b = Builder::new(&mut func);
    let ids = b.arg("input_ids", ArgRole::Ids, Type::new(DType::I32, [sizes.b, sizes.s]));
    let pos = b.arg("pos", ArgRole::Position, Type::new(DType::I32, [sizes.b]));
    let steps = b.arg("steps", ArgRole::Steps, Type::scalar(DType::I32));
    let state = b.arg("initial_state", ArgRole::State(Init::Constant(0.0)), Type::f32([sizes.b, sizes.s, dim]));
    let caches: Vec<ValueId> = if sizes.cached {
        ["cache_k", "cache_v"].map(|n| b.arg(n, ArgRole::Cache, sizes.cache())).to_vec()
    } else {
        Vec::new()
    };
    let rope = vec![Attr::Int(sizes.t as i64), Attr::Int(sizes.head as i64), Attr::float(10000.0)];
    let table = b.op(Opcode::RopeTable, &[], rope);
    let wte = b.param("wte", Type::f32([VOCAB, dim]));
    let packed = b.op(Opcode::Pack, &[wte], vec![Attr::Int(16), Attr::Int(1)]);
    let tied = vec![Attr::Int(VOCAB as i64), Attr::Int(dim as i64), Attr::Int(1)];
    let h = b.op(Opcode::PackedGather, &[packed, ids], tied.clone());
    let scale = b.constant(4.0, DType::F32);
    let h = b.op(Opcode::Mul, &[h, scale], vec![]);
    let zero = b.constant(0.0, DType::I32);
    let mut block = Block { b: &mut b, sizes, pos, table };
    let mut kv = (!caches.is_empty()).then(|| ([caches[0], caches[1]], zero));
    let e = block.block(h, "prelude", &mut kv);
    let injected = block.linear(e, "adapter_e", dim, 1);

    let caches = kv.map(|(caches, _)| caches.to_vec()).unwrap_or_default();
    let init: Vec<ValueId> = std::iter::once(state).chain(caches).collect();
    let (region, step, _, carried) = block.b.begin_loop(&init);
    let body = block.b.enter(region);
    let x = block.linear(carried[0], "adapter_s", dim, 1);
    let mut x = block.b.op(Opcode::Add, &[x, injected], vec![]);
    let mut kv = (carried.len() > 1).then(|| ([carried[1], carried[2]], zero));
    for layer in 0..sizes.layers {
        if let Some((_, slot)) = &mut kv {
            let (policy, arg) = sizes.policy;
            let numbers = [arg, layer, sizes.layers, 1].map(|v| Attr::Int(v as i64));
            let attrs = std::iter::once(Attr::Str(policy.into())).chain(numbers).collect();
            *slot = block.b.op(Opcode::KvSlot, &[step], attrs);
        }
        x = block.block(x, &format!("core.{layer}"), &mut kv);
    }
    let done = sizes.exit.then(|| {
        // Leaves when the sum over the first token is large.
        let first = block.slice(x, 1, 0, 1);
        let sum = block.b.op(Opcode::ReduceSum, &[first], vec![Attr::Int(2), Attr::Bool(false)]);
        let bound = block.b.constant(0.0, DType::F32);
        let above = block.b.op(Opcode::Lt, &[bound, sum], vec![]);
        block.b.op(Opcode::All, &[above], vec![])
    });
    let next: Vec<ValueId> = std::iter::once(x).chain(kv.iter().flat_map(|(c, _)| *c)).collect();
    block.b.enter(body);
    let out = block.b.end_loop(region, steps, &init, &next, done, &[x], sizes.max_steps);
    let last = block.norm(out[0], "ln_f");
    let logits = block.b.op(Opcode::PackedMatmul, &[last, packed], tied);
    b.output("logits", logits, false);
    b.output("states", out[init.len() + 1], true);
    b.output("trips", out[init.len()], false);
    for (name, &cache) in ["cache_k", "cache_v"].iter().zip(&out[1..init.len()]) {
        b.output(*name, cache, false);
    }
    func
}

/// The module of some functions, with the parameters that they use.
pub fn module(funcs: Vec<Func>) -> Module {
    let mut module = Module { name: "test".into(), ..Module::default() };
    for func in &funcs {
        for (_, op) in func.walk() {
            let op = &func.ops[op];
            if op.opcode == Opcode::Param && module.param(op.text("name")).is_none() {
                module.params.push(Param {
                    name: op.text("name").into(),
                    aliases: Vec::new(),
                    ty: func.ty(op.results[0]).clone(),
                    init: Init::Normal { std: 1.0 },
                    decay: false,
                    in_stack: false,
                    state: false,
                    loc: Loc::default(),
                });
            }
        }
    }
    module.funcs = funcs;
    module
}
