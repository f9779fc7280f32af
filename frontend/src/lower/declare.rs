//! Declarations: weights, parts, states and the rest of what stands at the top of a model.
use super::settings::names_in;
use super::{Lower, State, Weight};
use crate::ast::{Expr, Layer, Name, Stmt, StmtKind};
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{MAX_COUNT, Part, Val, sizes};
use rdc_ir::program::KvPolicy;
use rdc_ir::{Init, Param, Type};
use std::rc::Rc;

/// The longest checkpoint name.
const MAX_NAME: usize = 1000;

impl<'a> Lower<'a> {
    /// Declares everything that stands at the top of a model: settings and layers first, then, if all settings have
    /// values, the rest in order. Gives whether they have.
    pub fn declare_model(&mut self, items: &'a [Stmt]) -> bool {
        for stmt in items {
            match &stmt.kind {
                StmtKind::Setting { kind, name, value, fields } => self.declare_setting(*kind, name, value, fields),
                StmtKind::Layer(layer) => self.declare_layer(layer),
                _ => {}
            }
        }
        self.check_overrides();
        if !self.settings_are_fine() {
            return false;
        }
        for stmt in items {
            if !matches!(stmt.kind, StmtKind::Setting { .. } | StmtKind::Layer(_)) {
                self.exec(std::slice::from_ref(stmt));
            }
        }
        true
    }
    /// One declaration. Those in the wrong place were reported by [`crate::scope`].
    pub(super) fn declare(&mut self, stmt: &'a Stmt) {
        match &stmt.kind {
            StmtKind::Weight { name, shape, init, decay, at } => {
                self.declare_weight(name, shape, init, *decay, at.as_ref(), stmt.span);
            }
            StmtKind::Tie { name, target, at } => self.declare_tie(name, target, at.as_ref()),
            StmtKind::Part { name, layer, args, count, at } => {
                let part = self.part_value(name, layer, args, count.as_ref(), at.as_ref());
                self.claim(name);
                self.bind(&name.text, part.map_or(Val::Error, Val::Part));
            }
            StmtKind::State { name, ty, init } => {
                let free = self.claim(name);
                let Some(init) = self.init(init) else {
                    self.bind(&name.text, Val::Error);
                    return;
                };
                if free {
                    self.states.push(State { name: &name.text, ty, init, span: name.span });
                }
            }
            StmtKind::Ignore(names) => self.ignored.extend(names.iter().map(|n| n.text.clone())),
            StmtKind::Readout(names) => {
                for name in names {
                    if self.readouts.iter().any(|(n, _)| *n == name.text) {
                        let message = format!("read-out `{}` is declared twice", name.text);
                        self.error("duplicate-name", name.span, message, "again here");
                    } else {
                        self.readouts.push((name.text.clone(), name.span));
                    }
                }
            }
            StmtKind::Require { cond, message } => self.require(cond, message),
            StmtKind::Cache { policy, arg } => self.declare_cache(policy, arg.as_ref()),
            StmtKind::Layer(layer) => self.declare_layer(layer),
            StmtKind::Section(section) => self.sections.push(section),
            StmtKind::Loss(loss) => self.declare_loss(loss),
            _ => {}
        }
    }
    /// Claims a name in the innermost body or the model; reports if it is taken there. (A body may reuse the model's names.)
    pub(crate) fn claim(&mut self, name: &Name) -> bool {
        let taken = match self.frames.last_mut() {
            Some(frame) => frame.declared.insert(name.text.clone(), name.span),
            None => self.declared.insert(name.text.clone(), name.span),
        };
        let Some(before) = taken else { return true };
        let message = format!("`{}` is declared twice", name.text);
        let error = Diagnostic::error("duplicate-name", message).at(name.span, "again here");
        self.sink.push(error.at(before, "first here"));
        false
    }
    fn require(&mut self, cond: &'a Expr, message: &'a Name) {
        if self.flag(cond) == Some(false) {
            let error = Diagnostic::error("not-met", &message.text).at(cond.span, "this does not hold");
            let error = self.blame(error, &names_in(cond), cond.span);
            self.sink.push(error);
        }
    }
    fn declare_layer(&mut self, layer: &'a Layer) {
        if self.claim(&layer.name) {
            self.layers.push(layer);
        }
    }
    /// How something is drawn: a number means that number everywhere.
    fn init(&mut self, expr: &'a Expr) -> Option<Init> {
        match self.eval(expr) {
            Val::Init(init) => Some(init),
            Val::Error => None,
            val => match val.number() {
                Some(x) if x.is_finite() => Some(Init::Constant(x)),
                _ => {
                    let message = format!("expected an initialiser, found {}", val.kind());
                    let error = Diagnostic::error("type-mismatch", message).at(expr.span, "not an initialiser");
                    self.sink.push(error.help("a number, `normal(std)` or `trunc_normal(std)`"));
                    None
                }
            },
        }
    }
    fn declare_weight(
        &mut self,
        name: &'a Name,
        shape: &'a [Expr],
        init: &'a Expr,
        decay: bool,
        at: Option<&'a Name>,
        span: Span,
    ) {
        let free = self.claim(name);
        let (dims, init) = (self.shape(shape, span), self.init(init));
        let (Some(dims), Some(init), true) = (dims, init, free) else {
            self.bind(&name.text, Val::Error);
            return;
        };
        let (prefix, in_stack) = self.frames.last().map_or(("", false), |f| (f.prefix.as_str(), f.in_stack));
        let full = format!("{prefix}{}", at.map_or(&name.text, |a| &a.text));
        let ty = Type::f32(sizes(&dims));
        let name_span = at.map_or(name.span, |a| a.span);
        if full.len() > MAX_NAME || self.aliases.contains(&full) {
            let why = if full.len() > MAX_NAME { "is too long" } else { "already stands for a tied weight" };
            self.error("bad-name", name_span, format!("the checkpoint name `{full:.80}` {why}"), "here");
            self.bind(&name.text, Val::Error);
            return;
        }
        if let Some(&index) = self.weight_names.get(&full) {
            // A layer called twice declares its weights twice: the same statement, the same tensor.
            let (before, same) = (self.weights[index].declared, self.module.params[self.weights[index].param].ty == ty);
            if before != span || !same {
                let message = format!("two weights have the checkpoint name `{full}`");
                let error = Diagnostic::error("duplicate-weight", message).at(name_span, "again");
                self.sink.push(error.at(before, "first here"));
            }
            self.bind(&name.text, Val::Weight(index));
            return;
        }
        let loc = self.loc(span);
        let param = Param { name: full.clone(), aliases: Vec::new(), ty, init, decay, in_stack, state: false, loc };
        let param = self.module.params.push(param);
        self.weights.push(Weight { param, dims, declared: span });
        self.weight_names.insert(full, self.weights.len() - 1);
        self.bind(&name.text, Val::Weight(self.weights.len() - 1));
    }
    fn declare_tie(&mut self, name: &'a Name, target: &'a Name, at: Option<&'a Name>) {
        self.claim(name);
        let val = match self.lookup(&target.text) {
            Some(Val::Weight(index)) => {
                if let Some(at) = at {
                    if self.weight_names.contains_key(&at.text) || !self.aliases.insert(at.text.clone()) {
                        let message = format!("the checkpoint name `{:.80}` is already taken", at.text);
                        return drop(self.error("bad-name", at.span, message, "again here"));
                    }
                    self.module.params[self.weights[index].param].aliases.push(at.text.clone());
                }
                Val::Weight(index)
            }
            Some(Val::Error) => Val::Error,
            Some(other) => {
                let message = format!("`tie` needs a weight, `{}` is {}", target.text, other.kind());
                self.error("type-mismatch", target.span, message, "not a weight")
            }
            None => {
                let visible = self.visible();
                let error = Diagnostic::error("unknown-name", format!("`{}` is not known here", target.text));
                let error = error.at(target.span, "not known");
                self.sink.push(error.suggest(&target.text, visible.iter().map(String::as_str)));
                Val::Error
            }
        };
        self.bind(&name.text, val);
    }
    fn part_value(
        &mut self,
        name: &'a Name,
        layer_name: &'a Name,
        args: &'a [Expr],
        count: Option<&'a Expr>,
        at: Option<&'a Name>,
    ) -> Option<Part> {
        let Some(layer) = self.layer_index(&layer_name.text) else {
            let error = Diagnostic::error("unknown-layer", format!("there is no layer `{}`", layer_name.text));
            let known: Vec<&str> = self.layers.iter().map(|l| l.name.text.as_str()).collect();
            let error = error.at(layer_name.span, "not known").suggest(&layer_name.text, known);
            self.sink.push(error);
            return None;
        };
        let statics = self.layers[layer].statics.len();
        if args.len() != statics {
            let message = format!("layer `{}` takes {statics} values in `<…>`, not {}", layer_name.text, args.len());
            let error = Diagnostic::error("count-mismatch", message).at(layer_name.span, "here");
            self.sink.push(error.at(self.layers[layer].name.span, "declared here"));
            return None;
        }
        let args: Vec<Val> = args.iter().map(|a| self.eval(a)).collect();
        if args.iter().any(|a| matches!(a, Val::Error)) {
            return None;
        }
        let count = match count {
            None => None,
            Some(expr) => match self.eval(expr) {
                Val::Int(n, _) if (0..=MAX_COUNT).contains(&n) => Some(n as usize),
                Val::Error => return None,
                other => {
                    let message = format!("a stack has 0 to {MAX_COUNT} layers, not {}", other.show());
                    self.error("bad-size", expr.span, message, "here");
                    return None;
                }
            },
        };
        let (prefix, in_stack) = self.frames.last().map_or(("", false), |f| (f.prefix.as_str(), f.in_stack));
        let own = at.map_or(name.text.as_str(), |a| a.text.as_str());
        let prefix: Rc<str> = if own.is_empty() { prefix.into() } else { format!("{prefix}{own}.").into() };
        Some(Part { layer, args: Rc::new(args), count, prefix, in_stack: in_stack || count.is_some() })
    }
    fn declare_cache(&mut self, policy: &'a Name, arg: Option<&'a Expr>) {
        let number = match arg.map(|a| (self.eval(a), a.span)) {
            None => None,
            Some((Val::Int(n, _), _)) if (1..=MAX_COUNT).contains(&n) => Some(n as usize),
            Some((Val::Error, _)) => return,
            Some((other, span)) => {
                let message = format!("a cache policy takes a number from 1 to {MAX_COUNT}, not {}", other.show());
                self.error("bad-size", span, message, "here");
                return;
            }
        };
        let found = match (policy.text.as_str(), number) {
            ("full", None) => KvPolicy::Full,
            ("anchor", None) => KvPolicy::Anchor,
            ("modulo", Some(k)) => KvPolicy::Modulo(k),
            ("block", Some(m)) => KvPolicy::Block(m),
            (name, _) => {
                let known = ["full", "modulo", "block", "anchor"];
                let error = Diagnostic::error("unknown-policy", format!("`{name}` is not a cache policy as written"));
                let error = error.at(policy.span, "full, modulo(K), block(M) or anchor");
                self.sink.push(error.suggest(name, known));
                return;
            }
        };
        self.cache_policy = Some(found);
    }
}
