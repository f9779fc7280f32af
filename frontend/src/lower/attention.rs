//! Attention, rotary tables and positions: the operations that know where in the sequence a chunk is, and the KV caches.
use super::Lower;
use crate::ast::SectionKind;
use crate::diagnostic::Span;
use crate::value::{Dim, MAX_SIZE, Tensor, Val, explain_shape};
use rdc_ir::program::KvPolicy;
use rdc_ir::{Attr, DType, Opcode, Type, ValueId};

/// A cache may be larger than other tensors.
const MAX_CACHE: usize = 1 << 42;

/// The keys and values of all attentions with the same key heads and head size.
#[derive(Clone, Debug)]
pub(super) struct CacheGroup {
    pub heads: usize,
    pub dim: usize,
    /// Attention calls in the prelude, in one iteration of the core, in the coda.
    pub calls: [usize; 3],
    /// Calls lowered so far.
    done: [usize; 3],
    /// The current values of the K and the V cache.
    pub values: Option<[ValueId; 2]>,
}

/// The caches of a function. The first lowering of a function only counts calls; the second has the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct CachePlan {
    pub groups: Vec<CacheGroup>,
    pub planned: bool,
    pub section: Option<SectionKind>,
    pub policy: Option<KvPolicy>,
    pub max_steps: usize,
}

impl CachePlan {
    /// The plan for the second lowering.
    pub fn plan(&self) -> CachePlan {
        let mut plan = CachePlan { planned: true, section: None, ..self.clone() };
        plan.groups.iter_mut().for_each(|g| g.calls = g.done);
        plan.groups.iter_mut().for_each(|g| g.done = [0; 3]);
        plan
    }
    fn policy(&self) -> KvPolicy {
        self.policy.unwrap_or(KvPolicy::Full)
    }
    /// Slots of a group: prelude, then the loop's by the policy, then coda.
    pub fn slots(&self, group: &CacheGroup) -> usize {
        let [prelude, core, coda] = group.calls;
        prelude + self.policy().slots(self.max_steps, core) + coda
    }
}

/// Names of the K and V cache of a group.
pub(super) fn cache_names(index: usize) -> [String; 2] {
    match index {
        0 => ["cache_k".into(), "cache_v".into()],
        i => [format!("cache_k_{i}"), format!("cache_v_{i}")],
    }
}

/// Name and number of a policy as the `kv_slot` operation has them.
fn policy_attrs(policy: KvPolicy) -> (&'static str, i64) {
    match policy {
        KvPolicy::Full => ("full", 0),
        KvPolicy::Modulo(k) => ("modulo", k as i64),
        KvPolicy::Block(m) => ("block", m as i64),
        KvPolicy::Anchor => ("anchor", 0),
    }
}

impl Lower<'_> {
    /// The `pos` argument.
    pub(super) fn building_pos(&mut self) -> Option<Tensor> {
        let dims = vec![Dim::named(self.options.batch, "B")];
        if let Some(id) = self.building.as_ref()?.pos {
            return Some(Tensor { id, dims });
        }
        let pos = self.argument("pos", rdc_ir::ArgRole::Position, DType::I32, dims);
        self.building.as_mut()?.pos = Some(pos.id);
        Some(pos)
    }
    /// The context length, as a size.
    pub(super) fn context(&mut self, span: Span) -> Option<Dim> {
        let n = match self.globals.get("context") {
            Some(Val::Int(n, _)) => *n as usize,
            Some(_) => return None,
            None => match self.options.context {
                Some(n) => n,
                None => {
                    let message = "the text does not say how long a sequence can become";
                    let error = crate::Diagnostic::error("no-context", message).at(span, "needs the context length");
                    self.sink.push(error.help("declare `size context = 4096`, or give --context"));
                    return None;
                }
            },
        };
        let chunk = self.building.as_ref().map_or(1, |b| b.chunk);
        if n < chunk || n as i64 > MAX_SIZE {
            let message = format!("a chunk of {chunk} does not fit into a context of {n}");
            self.sink
                .push(crate::Diagnostic::error("bad-context", message).help("a larger --context or a smaller --seq"));
            return None;
        }
        Some(Dim::named(n, "context"))
    }
    /// A rotary or sinusoid table, made once per function.
    pub(super) fn table(&mut self, rotary: bool, dims: &[Dim], base: f64, span: Span) -> Option<Tensor> {
        let (len, dim) = (dims[0].n as i64, dims[1].n as i64);
        if !(base.is_finite() && base > 0.0) || dim % 2 != 0 {
            let message = format!("a table needs an even size and a positive base, not {dim} and {base}");
            self.error("bad-value", span, message, "here");
            return None;
        }
        let key = (rotary, len, dim, base.to_bits());
        let known = self.building.as_ref().and_then(|b| b.tables.get(&key)).copied();
        let opcode = if rotary { Opcode::RopeTable } else { Opcode::SinusoidTable };
        let attrs = vec![Attr::Int(len), Attr::Int(dim), Attr::float(base)];
        let id = match known {
            Some(id) => id,
            None => self.in_body(|l| l.emit(span, opcode, &[], attrs))?[0],
        };
        self.building.as_mut()?.tables.insert(key, id);
        Some(self.with_dims(id, dims.to_vec()))
    }
    /// `positions()`
    pub(super) fn positions(&mut self, span: Span) -> Option<Val> {
        let pos = self.building_pos()?;
        let chunk = self.building.as_ref()?.chunk;
        let dims = vec![pos.dims[0].clone(), Dim::named(chunk, "S")];
        Some(self.op(span, Opcode::Positions, &[&pos], vec![Attr::Int(chunk as i64)], dims))
    }
    /// Which positions of the call are padding, `bool[B, S]`: those at and beyond the number of valid ones.
    pub(super) fn padding(&mut self, span: Span) -> Option<Tensor> {
        let b = self.building.as_ref()?;
        let dims = vec![Dim::named(self.options.batch, "B"), Dim::named(b.chunk, "S")];
        if let Some(id) = b.padding {
            return Some(Tensor { id, dims });
        }
        let padding = self.in_body(|l| {
            let pos = l.building_pos()?;
            // No name of the text has a space.
            let valid = l.argument("valid positions", rdc_ir::ArgRole::Valid, DType::I32, pos.dims.clone());
            let Val::Tensor(end) = l.op(span, Opcode::Add, &[&pos, &valid], vec![], pos.dims.clone()) else {
                return None;
            };
            let column = vec![dims[0].clone(), Dim::number(1)];
            let (Val::Tensor(end), Val::Tensor(at)) = (l.reshape(span, &end, column), l.positions(span)?) else {
                return None;
            };
            match l.op(span, Opcode::Le, &[&end, &at], vec![], dims) {
                Val::Tensor(padding) => Some(padding),
                _ => None,
            }
        })?;
        self.building.as_mut()?.padding = Some(padding.id);
        Some(padding)
    }
    /// `rope(x, base, layout)`
    pub(super) fn rope(&mut self, x: &Tensor, base: f64, layout: &str, span: Span) -> Option<Val> {
        let [_, _, _, dim] = x.dims.as_slice() else {
            let message = format!("`rope` rotates [B, S, heads, size], not {}", explain_shape(&x.dims));
            return Some(self.error("shape-mismatch", span, message, "here"));
        };
        if !matches!(layout, "adjacent" | "half") {
            let error = crate::Diagnostic::error("bad-value", format!("{layout:?} is not a rotary layout"));
            self.sink.push(error.at(span, "\"adjacent\" or \"half\"").suggest(layout, ["adjacent", "half"]));
            return None;
        }
        let context = self.context(span)?;
        let table = self.table(true, &[context, dim.clone()], base, span)?;
        let pos = self.building_pos()?;
        Some(self.op(span, Opcode::Rope, &[x, &table, &pos], vec![Attr::Str(layout.into())], x.dims.clone()))
    }
    /// `attention(q, k, v, causal, scale?)`
    pub(super) fn attention(&mut self, qkv: [Tensor; 3], causal: bool, scale: Option<f64>, span: Span) -> Option<Val> {
        let [q, k, v] = qkv;
        let (h, g) = match (q.dims.as_slice(), k.dims.as_slice()) {
            ([_, _, h, qd], [_, _, g, kd]) if qd.n == kd.n && h.n % g.n == 0 => (h.clone(), g.clone()),
            ([_, _, h, _], [_, _, g, _]) if h.n % g.n != 0 => {
                let message = format!("{} key heads do not divide {} query heads", g.explain(), h.explain());
                return Some(self.error("shape-mismatch", span, message, "each key head serves as many query heads"));
            }
            _ => {
                let (q, k) = (explain_shape(&q.dims), explain_shape(&k.dims));
                let message = format!("attention takes [B, S, heads, size], not {q} and {k}");
                return Some(self.error("shape-mismatch", span, message, "here"));
            }
        };
        let dim = q.dims[3].n;
        let scale = scale.unwrap_or(1.0 / (dim as f64).sqrt());
        let attrs = vec![Attr::Bool(causal), Attr::float(scale)];
        let pos = self.building_pos()?;
        let dims = vec![q.dims[0].clone(), q.dims[1].clone(), h, q.dims[3].clone()];
        let (k, v) = if causal { self.cached((g.n, dim), k, v, span)? } else { (k, v) };
        Some(self.op(span, Opcode::Attention, &[&q, &k, &v, &pos], attrs, dims))
    }
    /// Writes keys and values of this chunk into the cache and gives all of the context; counts the call if the caches
    /// are not planned yet. A loss has none: its keys and values are those of the chunk.
    fn cached(&mut self, (heads, dim): (usize, usize), k: Tensor, v: Tensor, span: Span) -> Option<(Tensor, Tensor)> {
        let context = self.context(span)?;
        if self.building.as_ref()?.labels.is_some() {
            return Some((k, v));
        }
        let step = self.building.as_ref()?.step;
        let caches = &mut self.building.as_mut()?.caches;
        let found = caches.groups.iter().position(|g| (g.heads, g.dim) == (heads, dim));
        let index = found.unwrap_or_else(|| {
            caches.groups.push(CacheGroup { heads, dim, calls: [0; 3], done: [0; 3], values: None });
            caches.groups.len() - 1
        });
        let section = caches.section.unwrap_or(SectionKind::Prelude) as usize;
        let call = caches.groups[index].done[section];
        caches.groups[index].done[section] += 1;
        let group = caches.groups[index].clone();
        let Some(values) = group.values.filter(|_| caches.planned) else { return Some((k, v)) };
        let base = group.calls[0];
        let slot = match (SectionKind::Core as usize == section, step) {
            (true, Some(step)) => {
                let (policy, arg) = policy_attrs(caches.policy());
                let attrs = vec![
                    Attr::Str(policy.into()),
                    Attr::Int(arg),
                    Attr::Int(call as i64),
                    Attr::Int(group.calls[1] as i64),
                    Attr::Int(base as i64),
                ];
                let step = Tensor { id: step, dims: Vec::new() };
                Tensor { id: self.emit(span, Opcode::KvSlot, &[&step], attrs)?[0], dims: Vec::new() }
            }
            _ => {
                let loop_slots = caches.policy().slots(caches.max_steps, group.calls[1]);
                let first = if section == SectionKind::Coda as usize { base + loop_slots } else { 0 };
                self.constant((first + call) as f64, DType::I32, span)?
            }
        };
        let pos = self.building_pos()?;
        let (mut next, mut views) = (values, Vec::new());
        for (i, x) in [k, v].iter().enumerate() {
            let cache = Tensor { id: values[i], dims: Vec::new() };
            let results = self.emit(span, Opcode::CacheUpdate, &[&cache, x, &pos, &slot], vec![])?;
            next[i] = results[0];
            let mut dims = x.dims.clone();
            dims[1] = context.clone();
            views.push(self.with_dims(results[1], dims));
        }
        self.building.as_mut()?.caches.groups[index].values = Some(next);
        let view = views.pop()?;
        Some((views.pop()?, view))
    }
    /// Adds the cache arguments that the plan asks for.
    pub(super) fn cache_arguments(&mut self, span: Span) -> Option<()> {
        let plan = self.building.as_ref()?.caches.clone();
        for (i, group) in plan.groups.iter().enumerate() {
            let context = self.context(span)?;
            let shape = [plan.slots(group), self.options.batch, context.n, group.heads, group.dim];
            let elements = shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
            if elements.is_none_or(|n| n > MAX_CACHE) {
                let message = format!("a KV cache of {shape:?} is too large");
                let error = crate::Diagnostic::error("too-large", message).at(span, "for this loop");
                self.sink
                    .push(error.help("a smaller --context or --max-steps, or a sharing policy such as --kv modulo:4"));
                return None;
            }
            let mut values = Vec::new();
            for name in cache_names(i) {
                let b = self.building.as_mut()?;
                let ty = Type::cache(self.options.kv_dtype, shape);
                values.push(rdc_ir::Builder::new(&mut b.func).arg(name, rdc_ir::ArgRole::Cache, ty));
            }
            self.building.as_mut()?.caches.groups[i].values = Some([values[0], values[1]]);
        }
        Some(())
    }
}
