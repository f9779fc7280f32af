//! Expressions.
use super::Lower;
use super::fold;
use super::shapes::broadcast;
use crate::ast::{Arm, BinaryOp, Expr, ExprKind};
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{Dim, Val, explain_shape};
use rdc_ir::{Attr, DType, Opcode};

impl<'a> Lower<'a> {
    /// The value of an expression; mistakes are reported and give [`Val::Error`].
    pub(crate) fn eval(&mut self, expr: &'a Expr) -> Val {
        if self.exhausted(expr.span) {
            return Val::Error;
        }
        let around = self.sizing;
        self.sizing &= matches!(
            expr.kind,
            ExprKind::Name(_)
                | ExprKind::List(_)
                | ExprKind::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div, ..)
        );
        let val = self.deeper(expr.span, Val::Error, |l| l.eval_kind(expr));
        self.sizing = around;
        val
    }
    /// The value of an expression that is a size, or a list of them.
    pub(super) fn eval_size(&mut self, expr: &'a Expr) -> Val {
        let around = std::mem::replace(&mut self.sizing, true);
        let val = self.eval(expr);
        self.sizing = around;
        val
    }
    fn eval_kind(&mut self, expr: &'a Expr) -> Val {
        let span = expr.span;
        match &expr.kind {
            ExprKind::Int(n) => Val::int(*n),
            ExprKind::Float(x) => Val::Float(*x),
            ExprKind::Str(s) => Val::str(s),
            ExprKind::Bool(b) => Val::Bool(*b),
            ExprKind::Bad => Val::Error,
            ExprKind::Name(name) => self.name_value(name, span),
            ExprKind::List(items) => Val::List(items.iter().map(|i| self.eval(i)).collect::<Vec<_>>().into()),
            ExprKind::Neg(a) => match self.eval(a) {
                Val::Int(n, _) if n != i64::MIN => Val::int(-n),
                Val::Float(x) => Val::Float(-x),
                val => self.unary(Opcode::Neg, DType::F32, &val, span),
            },
            ExprKind::Not(a) => match self.eval(a) {
                Val::Bool(b) => Val::Bool(!b),
                val => self.unary(Opcode::Not, DType::Bool, &val, span),
            },
            ExprKind::Binary(op, a, b) => {
                let (x, y) = (self.eval(a), self.eval(b));
                self.binary(*op, (&x, a.span), (&y, b.span), span)
            }
            ExprKind::Index(base, index) => {
                let (x, i) = (self.eval(base), self.eval(index));
                self.index((&x, base.span), (&i, index.span), span)
            }
            ExprKind::If(cond, then, other) => match self.flag(cond) {
                Some(true) => self.eval(then),
                Some(false) => self.eval(other),
                None => Val::Error,
            },
            ExprKind::Match(subject, arms) => match self.arm(subject, arms, span) {
                Some(arm) => self.eval(arm),
                None => Val::Error,
            },
            ExprKind::Call(name, args) => self.call(name, args, span),
        }
    }
    fn name_value(&mut self, name: &str, span: Span) -> Val {
        if let Some(val) = self.lookup(name) {
            let loc = self.loc(span);
            if let Some(b) = self.building.as_mut().filter(|_| name == "S" && !self.sizing) {
                b.counted.get_or_insert(loc);
            }
            return val;
        }
        if matches!(name, "B" | "S") {
            let message = format!("`{name}` has a value in layers and sections only");
            return self.error("not-in-function", span, message, "weights do not depend on batch or chunk");
        }
        let visible = self.visible();
        let error = Diagnostic::error("unknown-name", format!("`{name}` is not known here"));
        let error = error.at(span, "not known");
        self.sink.push(error.suggest(name, visible.iter().map(String::as_str)));
        Val::Error
    }
    /// A compile-time truth value.
    pub(super) fn flag(&mut self, expr: &'a Expr) -> Option<bool> {
        match self.eval(expr) {
            Val::Bool(b) => Some(b),
            Val::Error => None,
            other => {
                let message = format!("a condition must be known at compile time, this is {}", other.kind());
                let error = Diagnostic::error("not-static", message).at(expr.span, format!("this is {}", other.kind()));
                self.sink.push(error.help("`select(condition, a, b)` chooses between tensors at run time"));
                None
            }
        }
    }
    /// The arm of a `match` for the value of its subject.
    pub(super) fn arm<T>(&mut self, subject: &'a Expr, arms: &'a [Arm<T>], span: Span) -> Option<&'a T> {
        let text = match self.eval(subject) {
            Val::Str(text) => text,
            Val::Error => return None,
            other => {
                let message = format!("`match` is on strings, this is {}", other.kind());
                self.error("type-mismatch", subject.span, message, "not a string");
                return None;
            }
        };
        let fits = |arm: &&Arm<T>| arm.patterns.is_empty() || arm.patterns.iter().any(|p| *p.text == *text);
        if let Some(arm) = arms.iter().find(fits) {
            return Some(&arm.body);
        }
        let known: Vec<&str> = arms.iter().flat_map(|a| a.patterns.iter().map(|p| p.text.as_str())).collect();
        let message = format!("{text:?} is none of {}", known.join(", "));
        let mut error = Diagnostic::error("no-arm", message).at(subject.span, format!("this is {text:?}"));
        if let ExprKind::Name(name) = &subject.kind {
            error = self.blame(error, std::slice::from_ref(name), span);
        }
        self.sink.push(error.suggest(&text, known.iter().copied()));
        None
    }
    fn unary(&mut self, opcode: Opcode, like: DType, val: &Val, span: Span) -> Val {
        match self.tensor(val, like, span) {
            Some(t) => self.op(span, opcode, &[&t], vec![], t.dims.clone()),
            None => Val::Error,
        }
    }
    fn binary(&mut self, op: BinaryOp, (a, a_span): (&Val, Span), (b, b_span): (&Val, Span), span: Span) -> Val {
        if matches!((a, b), (Val::Error, _) | (_, Val::Error)) {
            return Val::Error;
        }
        if a.is_static() && b.is_static() {
            return match fold::binary(op, a, b) {
                Some(Ok(val)) => val,
                Some(Err(message)) => self.error("arithmetic", span, message, "here"),
                None => {
                    let message = format!("`{}` is not defined for {} and {}", op.word(), a.kind(), b.kind());
                    self.error("type-mismatch", span, message, "here")
                }
            };
        }
        use BinaryOp::*;
        let like = [a, b].iter().find_map(|v| match v {
            Val::Tensor(t) => Some(self.dtype(t)),
            _ => None,
        });
        let like = like.unwrap_or(if matches!(op, And | Or) { DType::Bool } else { DType::F32 });
        let (Some(x), Some(y)) = (self.tensor(a, like, a_span), self.tensor(b, like, b_span)) else {
            return Val::Error;
        };
        let (opcode, swap) = match op {
            Or => (Opcode::Or, false),
            And => (Opcode::And, false),
            Eq | Ne => (Opcode::Eq, false),
            Lt => (Opcode::Lt, false),
            Le => (Opcode::Le, false),
            Gt => (Opcode::Lt, true),
            Ge => (Opcode::Le, true),
            Add => (Opcode::Add, false),
            Sub => (Opcode::Sub, false),
            Mul => (Opcode::Mul, false),
            Div => (Opcode::Div, false),
        };
        let Some(dims) = self.broadcast((&x.dims, a_span), (&y.dims, b_span), span) else { return Val::Error };
        let operands = if swap { [&y, &x] } else { [&x, &y] };
        match self.op(span, opcode, &operands, vec![], dims.clone()) {
            Val::Tensor(t) if op == Ne => self.op(span, Opcode::Not, &[&t], vec![], dims),
            val => val,
        }
    }
    /// The shape two shapes broadcast to; reports by name where they differ.
    pub(super) fn broadcast(
        &mut self,
        (a, a_span): (&[Dim], Span),
        (b, b_span): (&[Dim], Span),
        span: Span,
    ) -> Option<Vec<Dim>> {
        if let Some(dims) = broadcast(a, b) {
            return Some(dims);
        }
        let differ = a.iter().rev().zip(b.iter().rev()).find(|(x, y)| x.n != y.n && x.n != 1 && y.n != 1);
        let what = differ.map_or(String::new(), |(x, y)| format!(": {} is not {}", x.explain(), y.explain()));
        let error = Diagnostic::error("shape-mismatch", format!("these shapes do not fit together{what}"));
        let error = error.at(span, "combined here").at(a_span, explain_shape(a)).at(b_span, explain_shape(b));
        self.sink.push(error.help("axes align from the last one; a missing axis or one of size 1 repeats"));
        None
    }
    fn index(&mut self, (base, base_span): (&Val, Span), (index, index_span): (&Val, Span), span: Span) -> Val {
        let i = match index {
            Val::Int(n, _) => *n,
            Val::Error => return Val::Error,
            other => {
                let message = format!("an index must be known at compile time, this is {}", other.kind());
                let error =
                    Diagnostic::error("not-static", message).at(index_span, format!("this is {}", other.kind()));
                self.sink.push(error.help("`gather(table, ids)` picks rows at run time"));
                return Val::Error;
            }
        };
        let Some(t) = self.tensor(base, DType::F32, base_span) else { return Val::Error };
        let Some((first, rest)) = t.dims.split_first().filter(|(first, _)| i >= 0 && (i as usize) < first.n) else {
            let message = format!("index {i} is outside the first axis of {}", explain_shape(&t.dims));
            return self.error("out-of-range", index_span, message, "outside");
        };
        let attrs = vec![Attr::Int(0), Attr::Int(i), Attr::Int(i + 1)];
        let mut kept = vec![Dim::number(1)];
        kept.extend(rest.iter().cloned());
        let sliced = match first.n {
            1 => Val::Tensor(t.clone()),
            _ => self.op(span, Opcode::Slice, &[&t], attrs, kept),
        };
        match sliced {
            Val::Tensor(s) => self.reshape(span, &s, rest.to_vec()),
            val => val,
        }
    }
    /// The tensor under another shape.
    pub(super) fn reshape(&mut self, span: Span, t: &crate::value::Tensor, dims: Vec<Dim>) -> Val {
        let shape = dims.iter().map(|d| d.n as i64).collect();
        self.op(span, Opcode::Reshape, &[t], vec![Attr::Ints(shape)], dims)
    }
}
