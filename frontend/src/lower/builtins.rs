//! The functions of the language. Each stands for an operation of the IR's op table, or for a few.
use super::{Lower, fold};
use crate::ast::{Arg, Name};
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{Dim, Tensor, Val, explain_shape};
use rdc_ir::{Attr, DType, Init, Opcode};
use std::rc::Rc;

/// What an argument must be.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A tensor; numbers become f32 constants.
    Tensor,
    /// A whole number known at compile time, at least 0.
    Whole,
    /// A number known at compile time.
    Number,
    /// A truth value known at compile time.
    Flag,
    /// A string.
    Text,
    /// A list of sizes.
    Sizes,
    /// Anything.
    Any,
}
use Kind::*;

/// How a function is called: its parameters, how many trailing ones may be left out, whether more values may follow.
struct Signature {
    name: &'static str,
    params: &'static [(&'static str, Kind)],
    optional: usize,
    variadic: bool,
}

macro_rules! signatures {
    ($($name:ident ($($param:ident: $kind:ident),*) $(optional $optional:literal)? $(variadic $variadic:literal)?;)*) => {
        /// Names of the functions, in the order of docs/language.md.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
        const SIGNATURES: &[Signature] = &[$(Signature {
            name: stringify!($name),
            params: &[$((stringify!($param), $kind)),*],
            optional: 0 $(+ $optional)?,
            variadic: false $(|| $variadic)?,
        },)*];
    };
}

signatures! {
    linear(x: Tensor, w: Tensor, b: Tensor) optional 1;
    matmul(a: Tensor, b: Tensor, trans_a: Flag, trans_b: Flag) optional 2;
    rms_norm(x: Tensor, weight: Tensor, eps: Number);
    layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: Number);
    softmax(x: Tensor);
    attention(q: Tensor, k: Tensor, v: Tensor, causal: Flag, scale: Number) optional 1;
    rope(x: Tensor, base: Number, layout: Text);
    gather(table: Tensor, ids: Any);
    positions();
    sinusoid_table(len: Whole, dim: Whole, base: Number);
    heads(x: Tensor, n: Whole);
    merge(x: Tensor);
    split(x: Tensor, parts: Any);
    concat(x: Tensor, axis: Whole) optional 1 variadic true;
    slice(x: Tensor, axis: Whole, start: Whole, end: Whole);
    reshape(x: Tensor, shape: Sizes);
    broadcast(x: Tensor, shape: Sizes);
    transpose(x: Tensor, perm: Any);
    unsqueeze(x: Tensor);
    squeeze(x: Tensor);
    sum(x: Tensor, axis: Whole, keep: Flag) optional 2;
    mean(x: Tensor, axis: Whole, keep: Flag) optional 2;
    reduce_max(x: Tensor, axis: Whole, keep: Flag) optional 2;
    all(x: Tensor);
    cross_entropy(logits: Tensor, labels: Any, z_loss: Number) optional 1;
    counted(labels: Any);
    stop_gradient(x: Tensor);
    select(cond: Any, a: Any, b: Any);
    max(a: Any, b: Any);
    min(a: Any, b: Any);
    exp(x: Tensor);
    log(x: Tensor);
    sqrt(x: Tensor);
    rsqrt(x: Tensor);
    abs(x: Tensor);
    tanh(x: Tensor);
    erf(x: Tensor);
    sigmoid(x: Tensor);
    relu(x: Tensor);
    silu(x: Tensor);
    gelu(x: Tensor);
    gelu_tanh(x: Tensor);
    f32(x: Any);
    i32(x: Any);
    normal(std: Number);
    trunc_normal(std: Number, bound: Number) optional 1;
}

/// How every function is written, `linear(x, w, b?)`, in the order of docs/language.md.
pub fn functions() -> Vec<String> {
    NAMES.iter().filter_map(|name| signature(name)).collect()
}

/// How a function is written: `linear(x, w, b?)`.
fn signature(name: &str) -> Option<String> {
    let s = SIGNATURES.iter().find(|s| s.name == name)?;
    let least = s.params.len() - s.optional;
    let params: Vec<String> =
        s.params.iter().enumerate().map(|(i, (p, _))| format!("{p}{}", if i < least { "" } else { "?" })).collect();
    Some(format!("{name}({})", if s.variadic { format!("x, …, {}?", s.params[1].0) } else { params.join(", ") }))
}

/// The arguments of a call, in the order of the parameters, of the kinds the signature asks for.
pub(super) struct Args {
    vals: Vec<Option<(Val, Span)>>,
    rest: Vec<Tensor>,
}

impl Args {
    pub(super) fn val(&self, i: usize) -> (&Val, Span) {
        match self.vals.get(i).and_then(Option::as_ref) {
            Some((val, span)) => (val, *span),
            None => (&Val::Error, Span::default()),
        }
    }
    pub(super) fn span(&self, i: usize) -> Span {
        self.val(i).1
    }
    pub(super) fn tensor(&self, i: usize) -> Option<&Tensor> {
        match self.val(i).0 {
            Val::Tensor(t) => Some(t),
            _ => None,
        }
    }
    pub(super) fn whole(&self, i: usize) -> Option<i64> {
        match self.val(i).0 {
            Val::Int(n, _) => Some(*n),
            _ => None,
        }
    }
    pub(super) fn number(&self, i: usize) -> Option<f64> {
        self.val(i).0.number()
    }
    pub(super) fn flag(&self, i: usize) -> bool {
        matches!(self.val(i).0, Val::Bool(true))
    }
}

impl<'a> Lower<'a> {
    /// The value of a call.
    pub(super) fn call(&mut self, name: &'a Name, args: &'a [Arg], span: Span) -> Val {
        // A size may have the name of a function (`heads`), a layer hides it.
        let callee = self.lookup(&name.text);
        let signature = SIGNATURES.iter().find(|s| s.name == name.text);
        if let Some(callee) = callee.filter(|c| signature.is_none() || !c.is_static()) {
            return self.call_value(&callee, name, args, span);
        }
        let Some(signature) = signature else {
            let visible = self.visible();
            let known = NAMES.iter().copied().chain(visible.iter().map(String::as_str));
            let error = Diagnostic::error("unknown-function", format!("there is no function or layer `{}`", name.text));
            self.sink.push(error.at(name.span, "not known").suggest(&name.text, known));
            return Val::Error;
        };
        let kind = |index: usize, arg: &Arg| {
            let param = arg.name.as_ref().map_or(signature.params.get(index), |name| {
                signature.params.iter().find(|(param, _)| *param == name.text)
            });
            param.map(|(_, kind)| *kind)
        };
        let vals = args.iter().enumerate().map(|(index, arg)| match kind(index, arg) {
            Some(Sizes) => (self.eval_size(&arg.value), arg.value.span),
            _ => (self.eval(&arg.value), arg.value.span),
        });
        let vals: Vec<(Val, Span)> = vals.collect();
        if vals.iter().any(|(v, _)| matches!(v, Val::Error)) {
            return Val::Error;
        }
        // Some functions of numbers are also compile-time arithmetic.
        if let [(x, _)] = vals.as_slice()
            && let Some(y) = x.number().and_then(|x| fold::unary(signature.name, x))
        {
            return if y.is_finite() {
                Val::Float(y)
            } else {
                self.error("arithmetic", span, format!("this is {y}"), "not a finite number")
            };
        }
        let Some(args) = self.bind_args(signature, args, vals, span) else { return Val::Error };
        self.builtin(signature.name, &args, span).unwrap_or(Val::Error)
    }
    fn call_value(&mut self, callee: &Val, name: &Name, args: &'a [Arg], span: Span) -> Val {
        let Val::Part(part) = callee else {
            if !matches!(callee, Val::Error) {
                let message = format!("`{}` is {}, it cannot be called", name.text, callee.kind());
                self.error("type-mismatch", name.span, message, callee.kind());
            }
            return Val::Error;
        };
        if let Some(named) = args.iter().find_map(|a| a.name.as_ref()) {
            self.error("named-argument", named.span, "layers take their values by position", "remove this name");
        }
        let mut vals = Vec::new();
        for arg in args {
            match self.eval(&arg.value) {
                Val::Many(many) => vals.extend(many.iter().map(|v| (v.clone(), arg.value.span))),
                val => vals.push((val, arg.value.span)),
            }
        }
        match vals.iter().any(|(v, _)| matches!(v, Val::Error)) {
            true => Val::Error,
            false => self.call_part(part, vals, span),
        }
    }
    /// Puts arguments to their parameters and checks their kinds.
    fn bind_args(&mut self, s: &Signature, args: &[Arg], vals: Vec<(Val, Span)>, span: Span) -> Option<Args> {
        let mut out = Args { vals: vec![None; s.params.len()], rest: Vec::new() };
        let usage = signature(s.name).unwrap_or_default();
        let mut next = 0;
        for (arg, (val, at)) in args.iter().zip(vals) {
            let index = match &arg.name {
                Some(name) => match s.params.iter().position(|(p, _)| *p == name.text) {
                    Some(i) if out.vals[i].is_none() => i,
                    Some(_) => {
                        let message = format!("`{}` of {usage} is given twice", name.text);
                        self.error("named-argument", name.span, message, "again here");
                        return None;
                    }
                    None => {
                        let error = Diagnostic::error("named-argument", format!("{usage} has no `{}`", name.text));
                        let error = error.at(name.span, "not known");
                        self.sink.push(error.suggest(&name.text, s.params.iter().map(|(p, _)| *p)));
                        return None;
                    }
                },
                None if s.variadic && next > 0 => {
                    out.rest.push(self.tensor(&val, DType::F32, at)?);
                    continue;
                }
                None => {
                    next += 1;
                    next - 1
                }
            };
            let Some((param, kind)) = s.params.get(index) else {
                let error = Diagnostic::error("count-mismatch", format!("too many values for {usage}"));
                self.sink.push(error.at(at, "one too many"));
                return None;
            };
            let val = self.as_kind(*kind, &val, &format!("`{param}` of {usage}"), at)?;
            out.vals[index] = Some((val, at));
        }
        let least = s.params.len() - s.optional;
        if let Some(i) = (0..least).find(|&i| out.vals[i].is_none()) {
            let message = format!("`{}` of {usage} is missing", s.params[i].0);
            self.error("count-mismatch", span, message, "called here");
            return None;
        }
        Some(out)
    }
    fn as_kind(&mut self, kind: Kind, val: &Val, what: &str, span: Span) -> Option<Val> {
        let wanted = match (kind, val) {
            (Any, _) => return Some(val.clone()),
            (Tensor, Val::Int(..) | Val::Float(_) | Val::Tensor(_) | Val::Weight(_)) => {
                return self.tensor(val, DType::F32, span).map(Val::Tensor);
            }
            (Tensor, _) => "a tensor",
            (Whole, Val::Int(n, _)) if *n >= 0 => return Some(val.clone()),
            (Whole, _) => "a whole number known at compile time",
            (Number, Val::Int(..) | Val::Float(_)) => return Some(val.clone()),
            (Number, _) => "a number known at compile time",
            (Flag, Val::Bool(_)) => return Some(val.clone()),
            (Flag, _) => "true, false or a flag",
            (Text, Val::Str(_)) => return Some(val.clone()),
            (Text, _) => "a string",
            (Sizes, Val::List(items)) => {
                for item in items.iter() {
                    self.dim(item, span)?;
                }
                return Some(val.clone());
            }
            (Sizes, _) => "a list of sizes",
        };
        let found = if val.is_static() { val.show() } else { val.kind().to_string() };
        self.error("type-mismatch", span, format!("{what} must be {wanted}, not {found}"), format!("this is {found}"));
        None
    }
    fn list_dims(&mut self, (val, span): (&Val, Span)) -> Option<Vec<Dim>> {
        match val {
            Val::List(items) => items.iter().map(|i| self.dim(i, span)).collect(),
            _ => None,
        }
    }
    fn builtin(&mut self, name: &str, a: &Args, span: Span) -> Option<Val> {
        let unary = |l: &mut Self, opcode| a.tensor(0).map(|t| l.op(span, opcode, &[t], vec![], t.dims.clone()));
        match name {
            "linear" => self.linear(a, span),
            "matmul" => {
                let attrs = vec![Attr::Bool(a.flag(2)), Attr::Bool(a.flag(3))];
                Some(self.op(span, Opcode::Matmul, &[a.tensor(0)?, a.tensor(1)?], attrs, vec![]))
            }
            "rms_norm" => {
                let (x, w) = (a.tensor(0)?, a.tensor(1)?);
                self.norm_fits(x, &[(w, a.span(1))], span)?;
                Some(self.op(span, Opcode::RmsNorm, &[x, w], vec![Attr::float(a.number(2)?)], x.dims.clone()))
            }
            "layer_norm" => {
                let (x, w, b) = (a.tensor(0)?, a.tensor(1)?, a.tensor(2)?);
                self.norm_fits(x, &[(w, a.span(1)), (b, a.span(2))], span)?;
                Some(self.op(span, Opcode::LayerNorm, &[x, w, b], vec![Attr::float(a.number(3)?)], x.dims.clone()))
            }
            "softmax" => unary(self, Opcode::Softmax),
            "attention" => {
                let qkv = [a.tensor(0)?.clone(), a.tensor(1)?.clone(), a.tensor(2)?.clone()];
                self.attention(qkv, a.flag(3), a.number(4), span)
            }
            "rope" => {
                let Val::Str(layout) = a.val(2).0 else { return None };
                self.rope(a.tensor(0)?, a.number(1)?, layout, span)
            }
            "gather" => self.gather(a, span),
            "positions" => self.positions(span),
            "sinusoid_table" => {
                let dims = vec![self.dim(a.val(0).0, a.span(0))?, self.dim(a.val(1).0, a.span(1))?];
                let base = a.number(2)?;
                self.table(false, &dims, base, span).map(Val::Tensor)
            }
            "heads" => {
                let (x, n) = (a.tensor(0)?, self.dim(a.val(1).0, a.span(1))?);
                let (last, lead) = x.dims.split_last()?;
                if last.n % n.n != 0 {
                    let message = format!("{} does not divide into {} heads", last.explain(), n.explain());
                    return Some(self.error("shape-mismatch", span, message, explain_shape(&x.dims)));
                }
                let mut dims = lead.to_vec();
                let each = Dim { n: last.n / n.n, text: quotient(last, &n) };
                dims.extend([n, each]);
                Some(self.reshape(span, x, dims))
            }
            "merge" => {
                let x = a.tensor(0)?;
                let [lead @ .., n, d] = x.dims.as_slice() else {
                    let message =
                        format!("`merge` joins the last two axes, there are not two in {}", explain_shape(&x.dims));
                    return Some(self.error("shape-mismatch", span, message, "here"));
                };
                let mut dims = lead.to_vec();
                dims.push(Dim { n: n.n.checked_mul(d.n)?, text: Some(format!("{} * {}", n.show(), d.show()).into()) });
                Some(self.reshape(span, x, dims))
            }
            "split" => self.split(a, span),
            "concat" => self.concat(a, span),
            "slice" => {
                let (x, axis) = (a.tensor(0)?, a.whole(1)?);
                let (start, end) = (a.whole(2)?, a.whole(3)?);
                let mut dims = x.dims.clone();
                if let Some(d) = dims.get_mut(axis as usize) {
                    *d = Dim::number(end.saturating_sub(start).max(0) as usize);
                }
                let attrs = vec![Attr::Int(axis), Attr::Int(start), Attr::Int(end)];
                Some(self.op(span, Opcode::Slice, &[x], attrs, dims))
            }
            "reshape" => {
                let dims = self.list_dims(a.val(1))?;
                Some(self.reshape(span, a.tensor(0)?, dims))
            }
            "broadcast" => {
                let dims = self.list_dims(a.val(1))?;
                Some(self.broadcast_to(span, a.tensor(0)?, dims))
            }
            "transpose" => {
                let Val::List(items) = a.val(1).0 else {
                    return Some(self.error("type-mismatch", a.span(1), "`perm` must be a list of axes", "not a list"));
                };
                let perm: Vec<i64> = items.iter().map(|v| if let Val::Int(n, _) = v { *n } else { -1 }).collect();
                let x = a.tensor(0)?;
                let dims = perm.iter().map(|&p| x.dims.get(p as usize).cloned()).collect::<Option<Vec<_>>>();
                Some(self.op(span, Opcode::Transpose, &[x], vec![Attr::Ints(perm)], dims.unwrap_or_default()))
            }
            "unsqueeze" => {
                let mut dims = a.tensor(0)?.dims.clone();
                dims.push(Dim::number(1));
                Some(self.reshape(span, a.tensor(0)?, dims))
            }
            "squeeze" => {
                let x = a.tensor(0)?;
                match x.dims.split_last() {
                    Some((last, lead)) if last.n == 1 => Some(self.reshape(span, x, lead.to_vec())),
                    _ => {
                        let message = format!("the last axis of {} is not of size 1", explain_shape(&x.dims));
                        Some(self.error("shape-mismatch", span, message, "here"))
                    }
                }
            }
            "sum" => self.reduce(Opcode::ReduceSum, a, span),
            "reduce_max" => self.reduce(Opcode::ReduceMax, a, span),
            "mean" => self.mean(a, span),
            "cross_entropy" => self.cross_entropy(a, span),
            "counted" => self.counted(a, span),
            "all" => self.all(a.tensor(0)?, span),
            "select" => self.select(a, span),
            "max" => self.pick(Opcode::Max, a, span),
            "min" => self.pick(Opcode::Min, a, span),
            "f32" => self.cast(a, DType::F32, span),
            "i32" => self.cast(a, DType::I32, span),
            "normal" => self.draw(a, None, span),
            "trunc_normal" => self.draw(a, Some(a.number(1).unwrap_or(3.0)), span),
            _ => {
                let opcode = Opcode::parse(name)?;
                unary(self, opcode)
            }
        }
    }
    fn norm_fits(&mut self, x: &Tensor, weights: &[(&Tensor, Span)], span: Span) -> Option<()> {
        for (w, at) in weights {
            let fits = x.dims.last().is_some_and(|d| w.dims.len() == 1 && w.dims[0].n == d.n);
            if !fits {
                let message = format!("a weight of {} does not fit {}", explain_shape(&w.dims), explain_shape(&x.dims));
                let error = Diagnostic::error("shape-mismatch", message).at(*at, explain_shape(&w.dims));
                self.sink.push(error.at(span, "the last axis must have its size"));
                return None;
            }
        }
        Some(())
    }
    fn linear(&mut self, a: &Args, span: Span) -> Option<Val> {
        let (x, w) = (a.tensor(0)?, a.tensor(1)?);
        let fits = w.dims.len() == 2 && x.dims.len() >= 2 && x.dims.last().is_some_and(|d| d.n == w.dims[1].n);
        if !fits {
            let (have, want) = (x.dims.last().map(Dim::explain), w.dims.last().map(Dim::explain));
            let why = match (have, want) {
                (Some(h), Some(w)) if h != w => format!("the input ends in {h}, the weight takes {w}"),
                _ => "the input has two axes or more, the weight two".to_string(),
            };
            let error = Diagnostic::error("shape-mismatch", format!("`linear` cannot join these shapes: {why}"));
            let error = error.at(span, "called here").at(a.span(0), explain_shape(&x.dims));
            let error = error.at(a.span(1), explain_shape(&w.dims));
            self.sink.push(error.help("linear(x, w) is x · wᵀ with w stored as [outputs, inputs]"));
            return None;
        }
        let mut dims = x.dims.clone();
        *dims.last_mut()? = w.dims[0].clone();
        let attrs = vec![Attr::Bool(false), Attr::Bool(true)];
        let Val::Tensor(y) = self.op(span, Opcode::Matmul, &[x, w], attrs, dims) else { return None };
        let Some(b) = a.tensor(2) else { return Some(Val::Tensor(y)) };
        let dims = self.broadcast((&y.dims, span), (&b.dims, a.span(2)), span)?;
        Some(self.op(span, Opcode::Add, &[&y, b], vec![], dims))
    }
    fn gather(&mut self, a: &Args, span: Span) -> Option<Val> {
        let table = self.tensor(a.val(0).0, DType::F32, a.span(0))?;
        let ids = self.tensor(a.val(1).0, DType::I32, a.span(1))?;
        let mut dims = ids.dims.clone();
        dims.extend(table.dims.get(1).cloned());
        Some(self.op(span, Opcode::Gather, &[&table, &ids], vec![], dims))
    }
    fn split(&mut self, a: &Args, span: Span) -> Option<Val> {
        const MOST: usize = 64;
        let x = a.tensor(0)?;
        let last = x.dims.last()?.clone();
        let axis = x.dims.len() as i64 - 1;
        let parts = match a.val(1) {
            (Val::Int(n, _), at) => {
                let n = *n;
                if !(1..=MOST as i64).contains(&n) || last.n % n as usize != 0 {
                    let message = format!("{} does not split into {n} equal parts", last.explain());
                    return Some(self.error("shape-mismatch", at, message, explain_shape(&x.dims)));
                }
                let part = Dim { n: last.n / n as usize, text: quotient(&last, &Dim::number(n as usize)) };
                vec![part; n as usize]
            }
            (Val::List(items), _) if items.len() <= MOST => self.list_dims(a.val(1))?,
            (_, at) => {
                let message = format!("`parts` must be a number up to {MOST} or a list of sizes");
                return Some(self.error("type-mismatch", at, message, "here"));
            }
        };
        let total: usize = parts.iter().map(|d| d.n).sum();
        if total != last.n {
            let shown: Vec<String> = parts.iter().map(Dim::explain).collect();
            let message = format!("the parts {} make {total}, not {}", shown.join(", "), last.explain());
            return Some(self.error("shape-mismatch", a.span(1), message, explain_shape(&x.dims)));
        }
        let (mut out, mut start) = (Vec::new(), 0);
        for part in parts {
            let end = start + part.n as i64;
            let mut dims = x.dims.clone();
            *dims.last_mut()? = part;
            let attrs = vec![Attr::Int(axis), Attr::Int(start), Attr::Int(end)];
            out.push(self.op(span, Opcode::Slice, &[x], attrs, dims));
            start = end;
        }
        Some(Val::Many(Rc::new(out)))
    }
    fn concat(&mut self, a: &Args, span: Span) -> Option<Val> {
        let first = a.tensor(0)?;
        let axis = a.whole(1).unwrap_or(first.dims.len() as i64 - 1);
        let parts: Vec<&Tensor> = std::iter::once(first).chain(&a.rest).collect();
        let mut dims = first.dims.clone();
        if let Some(d) = dims.get_mut(axis.max(0) as usize) {
            let along = |t: &&Tensor| t.dims.get(axis as usize).cloned().unwrap_or_else(|| Dim::number(0));
            let all: Vec<Dim> = parts.iter().map(along).collect();
            let text = all.iter().map(Dim::show).collect::<Vec<_>>().join(" + ");
            let text = (text.len() < 60).then(|| text.into());
            *d = Dim { n: all.iter().map(|d| d.n).sum(), text };
        }
        Some(self.op(span, Opcode::Concat, &parts, vec![Attr::Int(axis)], dims))
    }
    /// The tensor broadcast to a shape.
    pub(super) fn broadcast_to(&mut self, span: Span, t: &Tensor, dims: Vec<Dim>) -> Val {
        let shape = dims.iter().map(|d| d.n as i64).collect();
        self.op(span, Opcode::Broadcast, &[t], vec![Attr::Ints(shape)], dims)
    }
    /// The common element type of operands that may be numbers.
    fn common(&self, vals: &[&Val]) -> DType {
        vals.iter()
            .find_map(|v| match v {
                Val::Tensor(t) => Some(self.dtype(t)),
                Val::Bool(_) => Some(DType::Bool),
                _ => None,
            })
            .unwrap_or(DType::F32)
    }
    fn select(&mut self, a: &Args, span: Span) -> Option<Val> {
        let cond = self.tensor(a.val(0).0, DType::Bool, a.span(0))?;
        let like = self.common(&[a.val(1).0, a.val(2).0]);
        let x = self.tensor(a.val(1).0, like, a.span(1))?;
        let y = self.tensor(a.val(2).0, like, a.span(2))?;
        let both = self.broadcast((&x.dims, a.span(1)), (&y.dims, a.span(2)), span)?;
        let dims = self.broadcast((&cond.dims, a.span(0)), (&both, span), span)?;
        Some(self.op(span, Opcode::Select, &[&cond, &x, &y], vec![], dims))
    }
    /// `max` and `min`, of numbers or tensors.
    fn pick(&mut self, opcode: Opcode, a: &Args, span: Span) -> Option<Val> {
        let ((x, x_span), (y, y_span)) = (a.val(0), a.val(1));
        if let (Some(p), Some(q)) = (x.number(), y.number()) {
            let first = if opcode == Opcode::Max { p >= q } else { p <= q };
            return Some(if first { x.clone() } else { y.clone() });
        }
        let like = self.common(&[x, y]);
        let (x, y) = (self.tensor(x, like, x_span)?, self.tensor(y, like, y_span)?);
        let dims = self.broadcast((&x.dims, x_span), (&y.dims, y_span), span)?;
        Some(self.op(span, opcode, &[&x, &y], vec![], dims))
    }
    fn cast(&mut self, a: &Args, to: DType, span: Span) -> Option<Val> {
        let like = self.common(&[a.val(0).0]);
        let x = self.tensor(a.val(0).0, like, a.span(0))?;
        match self.dtype(&x) == to {
            true => Some(Val::Tensor(x)),
            false => Some(self.op(span, Opcode::Cast, &[&x], vec![Attr::DType(to)], x.dims.clone())),
        }
    }
    fn draw(&mut self, a: &Args, bound: Option<f64>, span: Span) -> Option<Val> {
        let std = a.number(0)?;
        if !(std.is_finite() && std >= 0.0 && bound.is_none_or(|b| b.is_finite() && b >= 0.01)) {
            let message = "a standard deviation must be finite and not negative, a bound at least 0.01";
            return Some(self.error("bad-value", span, message, format!("std = {std}")));
        }
        Some(Val::Init(match bound {
            None => Init::Normal { std },
            Some(bound) => Init::TruncNormal { std, bound },
        }))
    }
}

fn quotient(a: &Dim, b: &Dim) -> Option<Rc<str>> {
    let text = a.text.as_ref()?;
    // `3 * dim` in 3 parts is `dim`.
    if let Some(rest) = text.strip_prefix(&format!("{} * ", b.n)).filter(|r| !r.contains(' ')) {
        return Some(rest.into());
    }
    let text = if text.contains(' ') { format!("({text})") } else { text.to_string() };
    (text.len() < 50).then(|| format!("{text} / {}", b.show()).into())
}
