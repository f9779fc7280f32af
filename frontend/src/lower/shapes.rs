//! Appending operations with shapes known by name.
use super::Lower;
use crate::ast::{Expr, TypeExpr};
use crate::diagnostic::{Diagnostic, Span};
use crate::value::{Dim, MAX_ELEMENTS, MAX_SIZE, Tensor, Val, explain_shape, show_shape, sizes};
use rdc_ir::{ArgRole, Attr, Builder, DType, Opcode, Type, ValueId};

/// The shape that two shapes broadcast to.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |s: &'_ [Dim], i: usize| (i + s.len() >= rank).then(|| s[i + s.len() - rank].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Some(x), Some(y)) if x.n == y.n => Some(if x.text.is_some() { x } else { y }),
            (Some(x), Some(y)) if x.n == 1 => Some(y),
            (Some(x), Some(y)) if y.n == 1 => Some(x),
            (Some(_), Some(_)) => None,
            (x, y) => x.or(y),
        })
        .collect()
}

impl<'a> Lower<'a> {
    /// Appends an operation; reports the op's own words if it does not fit.
    pub(super) fn emit(
        &mut self,
        span: Span,
        opcode: Opcode,
        operands: &[&Tensor],
        attrs: Vec<Attr>,
    ) -> Option<Vec<ValueId>> {
        let ids: Vec<ValueId> = operands.iter().map(|t| t.id).collect();
        if self.exhausted(span) {
            return None;
        }
        let loc = self.loc(span);
        let Some(b) = &mut self.building else {
            self.error("not-in-function", span, "tensors can be computed in layers and sections only", "not here");
            return None;
        };
        let mut builder = Builder::at(&mut b.func, b.region);
        builder.loc = loc;
        match builder.try_op(opcode, &ids, attrs) {
            Ok(results) => {
                let large = results.iter().map(|&r| b.func.ty(r)).find(|t| !t.cache && too_large(&t.shape)).cloned();
                if let Some(ty) = large {
                    let message = format!("{ty} has more than 2^36 elements");
                    self.error("too-large", span, message, "this tensor is too large");
                    return None;
                }
                Some(results)
            }
            Err(message) => {
                let shapes: Vec<String> = operands.iter().map(|t| self.show_tensor(t)).collect();
                let error = Diagnostic::error("bad-operation", message).at(span, "this operation");
                self.sink.push(error.help(format!("the operands are {}", shapes.join(" and "))));
                None
            }
        }
    }
    /// Appends an operation of one result whose shape has these names (numbers decide if they disagree).
    pub(super) fn op(
        &mut self,
        span: Span,
        opcode: Opcode,
        operands: &[&Tensor],
        attrs: Vec<Attr>,
        dims: Vec<Dim>,
    ) -> Val {
        match self.emit(span, opcode, operands, attrs) {
            Some(results) => Val::Tensor(self.with_dims(results[0], dims)),
            None => Val::Error,
        }
    }
    /// A value with names for its shape.
    pub(super) fn with_dims(&self, id: ValueId, dims: Vec<Dim>) -> Tensor {
        let shape = self.building.as_ref().map(|b| b.func.ty(id).shape.clone()).unwrap_or_default();
        let dims = if sizes(&dims) == shape { dims } else { shape.into_iter().map(Dim::number).collect() };
        Tensor { id, dims }
    }
    /// Element type of a tensor.
    pub(super) fn dtype(&self, t: &Tensor) -> DType {
        self.building.as_ref().map_or(DType::F32, |b| b.func.ty(t.id).dtype)
    }
    /// `f32[B, S, dim]`
    pub(super) fn show_tensor(&self, t: &Tensor) -> String {
        format!("{}{}", self.dtype(t).name(), show_shape(&t.dims))
    }
    /// Adds an argument to the function being built.
    pub(super) fn argument(&mut self, name: &str, role: ArgRole, dtype: DType, dims: Vec<Dim>) -> Tensor {
        let ty = Type::new(dtype, sizes(&dims));
        match &mut self.building {
            Some(b) => Tensor { id: Builder::new(&mut b.func).arg(name, role, ty), dims },
            None => Tensor { id: rdc_ir::entity::Entity::new(0), dims },
        }
    }
    /// Runs `f` with operations appended to the body of the function, before the loop if that is being filled.
    pub(super) fn in_body<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let Some(b) = &mut self.building else { return f(self) };
        let region = std::mem::replace(&mut b.region, b.func.body);
        let result = f(self);
        if let Some(b) = &mut self.building {
            b.region = region;
        }
        result
    }
    /// A scalar constant.
    pub(super) fn constant(&mut self, value: f64, dtype: DType, span: Span) -> Option<Tensor> {
        let key = (value.to_bits(), dtype);
        if let Some(&id) = self.building.as_ref().and_then(|b| b.constants.get(&key)) {
            return Some(Tensor { id, dims: Vec::new() });
        }
        let attrs = vec![Attr::float(value), Attr::DType(dtype)];
        let id = self.in_body(|l| l.emit(span, Opcode::Constant, &[], attrs))?[0];
        self.building.as_mut()?.constants.insert(key, id);
        Some(Tensor { id, dims: Vec::new() })
    }
    /// The tensor of a weight.
    pub(super) fn weight_tensor(&mut self, index: usize) -> Option<Tensor> {
        let weight = &self.weights[index];
        let (dims, param) = (weight.dims.clone(), &self.module.params[weight.param]);
        let b = self.building.as_mut()?;
        if let Some(&id) = b.weights.get(&index) {
            return Some(Tensor { id, dims });
        }
        let mut builder = Builder::new(&mut b.func);
        builder.loc = param.loc;
        let id = builder.param(&param.name, param.ty.clone());
        b.weights.insert(index, id);
        Some(Tensor { id, dims })
    }
    /// A value as a tensor; numbers become constants of type `like`.
    pub(super) fn tensor(&mut self, val: &Val, like: DType, span: Span) -> Option<Tensor> {
        match val {
            Val::Tensor(t) => Some(t.clone()),
            Val::Weight(index) => match self.weight_tensor(*index) {
                Some(t) => Some(t),
                None => {
                    self.error("not-in-function", span, "a weight has a value in layers and sections only", "not here");
                    None
                }
            },
            Val::Bool(b) if like == DType::Bool => self.constant(f64::from(u8::from(*b)), like, span),
            Val::Int(n, _) if like == DType::F32 || (like == DType::I32 && i32::try_from(*n).is_ok()) => {
                self.constant(*n as f64, like, span)
            }
            Val::Float(x) if like == DType::F32 => self.constant(*x, like, span),
            Val::Error => None,
            other => {
                let message = format!("expected a tensor of {}, found {}", like.name(), other.kind());
                self.error("type-mismatch", span, message, format!("this is {}", other.kind()));
                None
            }
        }
    }
    /// A value as a size of an axis.
    pub(super) fn dim(&mut self, val: &Val, span: Span) -> Option<Dim> {
        match val {
            Val::Int(n, text) if (1..=MAX_SIZE).contains(n) => Some(Dim { n: *n as usize, text: text.clone() }),
            Val::Int(n, _) => {
                let message = format!("a size must be between 1 and {MAX_SIZE}, not {n}");
                self.error("bad-size", span, message, format!("this is {n}"));
                None
            }
            Val::Error => None,
            Val::Float(x) => {
                let message = format!("a size must be a whole number, not {x}");
                self.error("not-whole", span, message, format!("this is {x}"));
                None
            }
            other => {
                let message = format!("expected a size, found {}", other.kind());
                self.error("type-mismatch", span, message, format!("this is {}", other.kind()));
                None
            }
        }
    }
    /// The sizes of a shape.
    pub(super) fn shape(&mut self, exprs: &'a [Expr], span: Span) -> Option<Vec<Dim>> {
        let dims: Vec<Option<Dim>> = exprs
            .iter()
            .map(|e| {
                let val = self.eval_size(e);
                self.dim(&val, e.span)
            })
            .collect();
        let dims: Vec<Dim> = dims.into_iter().collect::<Option<_>>()?;
        if dims.len() > 8 || too_large(&sizes(&dims)) {
            let message = format!("{} has more than 2^36 elements or 8 axes", explain_shape(&dims));
            self.error("too-large", span, message, "this tensor is too large");
            return None;
        }
        Some(dims)
    }
    /// A stated type.
    pub(super) fn type_expr(&mut self, ty: &'a TypeExpr) -> Option<(DType, Vec<Dim>)> {
        let dtype = match ty.dtype.as_ref().map(|n| n.text.as_str()) {
            None | Some("f32") => DType::F32,
            Some("i32") => DType::I32,
            Some("bool") => DType::Bool,
            Some(other) => {
                let known = ["f32", "i32", "bool"];
                let span = ty.dtype.as_ref().map_or(ty.span, |n| n.span);
                let error = Diagnostic::error("unknown-type", format!("`{other}` is not an element type"));
                self.sink.push(error.at(span, "f32, i32 or bool").suggest(other, known));
                return None;
            }
        };
        Some((dtype, self.shape(&ty.shape, ty.span)?))
    }
    /// Whether a tensor has a stated type; reports it if not. `what` names the thing, `stated` is where its type is.
    pub(super) fn check_type(
        &mut self,
        t: &Tensor,
        (dtype, dims): (DType, &[Dim]),
        what: &str,
        span: Span,
        stated: Span,
    ) -> bool {
        let found = self.dtype(t);
        if found == dtype && sizes(&t.dims) == sizes(dims) {
            return true;
        }
        let (want, have) = (format!("{}{}", dtype.name(), show_shape(dims)), self.show_tensor(t));
        let mut message = format!("{what} must be {want}, not {have}");
        if sizes(&t.dims) != sizes(dims) {
            message += &format!(" ({:?}, not {:?})", sizes(dims), sizes(&t.dims));
        }
        let error = Diagnostic::error("shape-mismatch", message).at(span, format!("this is {have}"));
        self.sink.push(error.at(stated, format!("must be {want}")));
        false
    }
}

fn too_large(shape: &[usize]) -> bool {
    shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).is_none_or(|n| n > MAX_ELEMENTS)
}
