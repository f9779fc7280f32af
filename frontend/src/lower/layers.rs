//! Bodies: statements, layers and their calls.
use super::{Frame, Lower};
use crate::ast::{Expr, Name, Stmt, StmtKind};
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{Part, Val};
use std::rc::Rc;

impl<'a> Lower<'a> {
    /// Executes statements until one returns; gives whether one did.
    pub(super) fn exec(&mut self, block: &'a [Stmt]) -> bool {
        for (i, stmt) in block.iter().enumerate() {
            let span = stmt.span;
            if self.exhausted(span) {
                return true;
            }
            if self.deeper(span, true, |l| l.exec_one(stmt)) {
                if let Some(next) = block.get(i + 1) {
                    let warning = Diagnostic::warning("unreachable", "this statement is never reached");
                    self.sink.push(warning.at(next.span, "after a `return`"));
                }
                return true;
            }
        }
        false
    }
    fn exec_one(&mut self, stmt: &'a Stmt) -> bool {
        match &stmt.kind {
            StmtKind::Let { names, values } => self.exec_let(names, values, stmt.span),
            StmtKind::Return(values) => {
                let vals = self.eval_flat(values);
                if let Some(frame) = self.frames.last_mut() {
                    frame.returned = Some((vals, stmt.span));
                }
                return true;
            }
            StmtKind::If { cond, then, other } => match self.flag(cond) {
                Some(true) => return self.exec(then),
                Some(false) => return self.exec(other),
                None => self.bind_errors([then, other]),
            },
            StmtKind::Match { subject, arms } => match self.arm(subject, arms, stmt.span) {
                Some(body) => return self.exec(body),
                None => self.bind_errors(arms.iter().map(|a| &a.body)),
            },
            StmtKind::Collect { name, value } => self.exec_collect(name, value),
            StmtKind::Exit(cond) => self.exec_exit(cond),
            _ => self.declare(stmt),
        }
        false
    }
    /// Binds what branches would bind, since none of them can be chosen: one mistake is enough.
    fn bind_errors(&mut self, blocks: impl IntoIterator<Item = &'a crate::ast::Block>) {
        for name in blocks.into_iter().flat_map(|b| crate::scope::bound(b)) {
            self.bind(name, Val::Error);
        }
    }
    /// The values of expressions, calls of several results spread out.
    fn eval_flat(&mut self, values: &'a [Expr]) -> Vec<Val> {
        let mut out = Vec::new();
        for value in values {
            match self.eval(value) {
                Val::Many(vals) => out.extend(vals.iter().cloned()),
                val => out.push(val),
            }
        }
        out
    }
    fn exec_let(&mut self, names: &'a [Name], values: &'a [Expr], span: Span) {
        let vals = self.eval_flat(values);
        let broken = vals.iter().any(|v| matches!(v, Val::Error));
        if vals.len() != names.len() && !broken {
            let message = format!("{} names for {} values", names.len(), vals.len());
            self.error("count-mismatch", span, message, format!("{} values", vals.len()));
        }
        for (i, name) in names.iter().enumerate() {
            let val = if vals.len() == names.len() { vals[i].clone() } else { Val::Error };
            self.bind(&name.text, val);
        }
    }
    /// Calls a layer, or each layer of a stack in turn on the result of the one before.
    pub(super) fn call_part(&mut self, part: &Part, args: Vec<(Val, Span)>, span: Span) -> Val {
        let Some(count) = part.count else { return self.call_layer(part, &args, span) };
        let layer = self.layers[part.layer];
        if layer.results.len() != 1 || args.is_empty() {
            let message = format!("a stack needs a layer with one result, `{}` is not one", layer.name.text);
            return self.error("bad-stack", span, message, "called here");
        }
        let mut args = args;
        for i in 0..count {
            let one = Part { count: None, prefix: format!("{}{i}.", part.prefix).into(), ..part.clone() };
            match self.call_layer(&one, &args, span) {
                Val::Error => return Val::Error,
                val => args[0] = (val, span),
            }
        }
        args.swap_remove(0).0
    }
    fn call_layer(&mut self, part: &Part, args: &[(Val, Span)], span: Span) -> Val {
        let layer = self.layers[part.layer];
        if self.exhausted(span) {
            return Val::Error;
        }
        if args.len() != layer.params.len() {
            let message =
                format!("layer `{}` takes {} values, not {}", layer.name.text, layer.params.len(), args.len());
            let error = Diagnostic::error("count-mismatch", message).at(span, format!("{} values", args.len()));
            self.sink.push(error.at(layer.name.span, "declared here"));
            return Val::Error;
        }
        let mut frame = Frame { prefix: part.prefix.to_string(), in_stack: part.in_stack, ..Frame::default() };
        frame.vars.extend(layer.statics.iter().map(|n| n.text.clone()).zip(part.args.iter().cloned()));
        self.frames.push(frame);
        let result = self.deeper(span, Val::Error, |l| l.run_layer(part, args));
        self.frames.pop();
        result
    }
    fn run_layer(&mut self, part: &Part, args: &[(Val, Span)]) -> Val {
        let layer = self.layers[part.layer];
        for ((name, ty), (val, arg_span)) in layer.params.iter().zip(args) {
            let Some((dtype, dims)) = self.type_expr(ty) else { return Val::Error };
            let Some(t) = self.tensor(val, dtype, *arg_span) else { return Val::Error };
            let what = format!("`{}` of layer `{}`", name.text, layer.name.text);
            if !self.check_type(&t, (dtype, &dims), &what, *arg_span, ty.span) {
                return Val::Error;
            }
            let known = self.with_dims(t.id, dims);
            if let Some(frame) = self.frames.last_mut() {
                frame.vars.insert(name.text.clone(), Val::Tensor(known));
            }
        }
        self.exec(&layer.body);
        let Some((vals, at)) = self.frames.last_mut().and_then(|f| f.returned.take()) else {
            let message = format!("layer `{}` returns nothing", layer.name.text);
            let error = Diagnostic::error("no-return", message).at(layer.name.span, "has no `return`");
            self.sink.push(error.help("end it with `return VALUE`"));
            return Val::Error;
        };
        if vals.iter().any(|v| matches!(v, Val::Error)) {
            return Val::Error;
        }
        if vals.len() != layer.results.len() {
            let message =
                format!("layer `{}` returns {} values, not {}", layer.name.text, layer.results.len(), vals.len());
            return self.error("count-mismatch", at, message, format!("{} values", vals.len()));
        }
        let mut out = Vec::new();
        for (val, ty) in vals.iter().zip(&layer.results) {
            let Some((dtype, dims)) = self.type_expr(ty) else { return Val::Error };
            let Some(t) = self.tensor(val, dtype, at) else { return Val::Error };
            let what = format!("the result of layer `{}`", layer.name.text);
            if !self.check_type(&t, (dtype, &dims), &what, at, ty.span) {
                return Val::Error;
            }
            out.push(Val::Tensor(self.with_dims(t.id, dims)));
        }
        if out.len() == 1 { out.swap_remove(0) } else { Val::Many(Rc::new(out)) }
    }
}
