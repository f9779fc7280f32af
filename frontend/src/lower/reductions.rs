//! Functions that sum: over an axis, over everything, and the cross entropy of logits.
use super::Lower;
use super::builtins::Args;
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{Dim, Tensor, Val, explain_shape, sizes};
use rdc_ir::{Attr, DType, IGNORED_LABEL, Opcode};
use std::rc::Rc;

impl Lower<'_> {
    /// `sum(x, axis?, keep?)`, `reduce_max(x, axis?, keep?)`; over all elements without an axis.
    pub(super) fn reduce(&mut self, opcode: Opcode, a: &Args, span: Span) -> Option<Val> {
        let (x, keep) = (a.tensor(0)?, a.flag(2));
        let Some(axis) = a.whole(1) else {
            let dims = if keep { vec![Dim::number(1); x.dims.len()] } else { Vec::new() };
            return self.reduce_all(opcode, x, dims, span);
        };
        let mut dims = x.dims.clone();
        if (axis as usize) < dims.len() {
            if keep {
                dims[axis as usize] = Dim::number(1);
            } else {
                dims.remove(axis as usize);
            }
        }
        Some(self.op(span, opcode, &[x], vec![Attr::Int(axis), Attr::Bool(keep)], dims))
    }
    fn reduce_all(&mut self, opcode: Opcode, x: &Tensor, dims: Vec<Dim>, span: Span) -> Option<Val> {
        if opcode == Opcode::ReduceSum {
            let shape = dims.iter().map(|d| d.n as i64).collect();
            return Some(self.op(span, Opcode::SumTo, &[x], vec![Attr::Ints(shape)], dims));
        }
        let Val::Tensor(flat) = self.reshape(span, x, vec![Dim::number(elements(x))]) else { return None };
        let attrs = vec![Attr::Int(0), Attr::Bool(false)];
        let Val::Tensor(y) = self.op(span, opcode, &[&flat], attrs, Vec::new()) else { return None };
        Some(if dims.is_empty() { Val::Tensor(y) } else { self.reshape(span, &y, dims) })
    }
    /// `mean(x, axis?, keep?)`
    pub(super) fn mean(&mut self, a: &Args, span: Span) -> Option<Val> {
        let x = a.tensor(0)?;
        let n = match a.whole(1) {
            Some(axis) => x.dims.get(axis as usize).map_or(1, |d| d.n),
            None => elements(x),
        };
        let Val::Tensor(total) = self.reduce(Opcode::ReduceSum, a, span)? else { return None };
        let n = self.constant(n as f64, DType::F32, span)?;
        Some(self.op(span, Opcode::Div, &[&total, &n], vec![], total.dims.clone()))
    }
    /// `all(x)`; padding has no say.
    pub(super) fn all(&mut self, x: &Tensor, span: Span) -> Option<Val> {
        let b = self.building.as_ref()?;
        let (shape, padded) = (sizes(&x.dims), b.chunk > 1 && b.labels.is_none());
        let mut x = x.clone();
        if padded && shape.get(..2) == Some(&[self.options.batch, b.chunk]) {
            let padding = self.padding(span)?;
            let mut dims = padding.dims.clone();
            dims.resize(shape.len(), Dim::number(1));
            let Val::Tensor(padding) = self.reshape(span, &padding, dims) else { return None };
            let Val::Tensor(y) = self.op(span, Opcode::Or, &[&x, &padding], vec![], x.dims.clone()) else {
                return None;
            };
            x = y;
        }
        Some(self.op(span, Opcode::All, &[&x], vec![], vec![]))
    }
    /// `cross_entropy(logits, labels, z_loss?)`; labels repeat along leading axes that only the logits have.
    pub(super) fn cross_entropy(&mut self, a: &Args, span: Span) -> Option<Val> {
        let logits = a.tensor(0)?;
        let mut labels = self.labels(a, 1)?;
        let z_loss = a.number(2).unwrap_or(0.0);
        if !(z_loss.is_finite() && z_loss >= 0.0) {
            let message = format!("`z_loss` must be finite and not negative, not {z_loss}");
            return Some(self.error("bad-value", a.span(2), message, "here"));
        }
        let tokens = logits.dims.split_last().map_or(&[][..], |(_, lead)| lead);
        if sizes(&labels.dims) != sizes(tokens) {
            let repeats = super::shapes::broadcast(&labels.dims, tokens).map(|d| sizes(&d)) == Some(sizes(tokens));
            if logits.dims.is_empty() || !repeats {
                let error = Diagnostic::error("shape-mismatch", "there must be a label for each row of logits");
                let error = error.at(span, "called here").at(a.span(0), explain_shape(&logits.dims));
                self.sink.push(error.at(a.span(1), explain_shape(&labels.dims)));
                return None;
            }
            let Val::Tensor(wide) = self.broadcast_to(span, &labels, tokens.to_vec()) else { return None };
            labels = wide;
        }
        let results = self.emit(span, Opcode::CrossEntropy, &[logits, &labels], vec![Attr::float(z_loss)])?;
        let each = results.into_iter().map(|id| Val::Tensor(self.with_dims(id, labels.dims.clone())));
        Some(Val::Many(Rc::new(each.collect())))
    }
    /// `counted(labels)`
    pub(super) fn counted(&mut self, a: &Args, span: Span) -> Option<Val> {
        let labels = self.labels(a, 0)?;
        let dims = labels.dims.clone();
        let ignored = self.constant(f64::from(IGNORED_LABEL), DType::I32, span)?;
        let Val::Tensor(t) = self.op(span, Opcode::Eq, &[&labels, &ignored], vec![], dims.clone()) else { return None };
        let Val::Tensor(t) = self.op(span, Opcode::Not, &[&t], vec![], dims.clone()) else { return None };
        Some(self.op(span, Opcode::Cast, &[&t], vec![Attr::DType(DType::F32)], dims))
    }
    fn labels(&mut self, a: &Args, index: usize) -> Option<Tensor> {
        let (val, span) = a.val(index);
        let labels = self.tensor(val, DType::I32, span)?;
        if self.dtype(&labels) == DType::I32 {
            return Some(labels);
        }
        let message = format!("labels are i32, not {}", self.show_tensor(&labels));
        self.error("type-mismatch", span, message, "not labels");
        None
    }
}

fn elements(x: &Tensor) -> usize {
    x.dims.iter().map(|d| d.n).product()
}
