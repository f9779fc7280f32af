//! Builds functions: puts operations into a region, with result types inferred by the op table.
use crate::entity::{OpId, RegionId, ValueId};
use crate::module::{Arg, ArgRole, Func, Loc, Output};
use crate::ops::{Attr, Opcode};
use crate::types::{DType, Type};

/// Puts operations into one region of a function at a time: at its end, or before an operation.
pub struct Builder<'f> {
    /// The function being built.
    pub func: &'f mut Func,
    region: RegionId,
    /// The operation that the new ones go before.
    before: Option<OpId>,
    /// The place in the model text given to the operations that follow.
    pub loc: Loc,
}

impl<'f> Builder<'f> {
    /// A builder that appends to the body.
    pub fn new(func: &'f mut Func) -> Builder<'f> {
        let region = func.body;
        Builder::at(func, region)
    }
    /// A builder that appends to a region.
    pub fn at(func: &'f mut Func, region: RegionId) -> Builder<'f> {
        Builder { func, region, before: None, loc: Loc::default() }
    }
    /// A builder that inserts before the first operation of a region.
    pub fn first(func: &'f mut Func, region: RegionId) -> Builder<'f> {
        let before = func.regions[region].ops.first().copied();
        Builder { func, region, before, loc: Loc::default() }
    }
    /// A builder that inserts before an operation of a region, with its place in the model text.
    pub fn before(func: &'f mut Func, region: RegionId, op: OpId) -> Builder<'f> {
        let loc = func.ops[op].loc;
        Builder { func, region, before: Some(op), loc }
    }
    /// A builder that inserts after an operation of a region, with its place in the model text.
    pub fn after(func: &'f mut Func, region: RegionId, op: OpId) -> Builder<'f> {
        let loc = func.ops[op].loc;
        let before = func.regions[region].ops.iter().skip_while(|&&o| o != op).nth(1).copied();
        Builder { func, region, before, loc }
    }
    /// The region that operations are appended to.
    pub fn region(&self) -> RegionId {
        self.region
    }
    /// Appends to another region from now on; returns the previous one.
    pub fn enter(&mut self, region: RegionId) -> RegionId {
        self.before = None;
        std::mem::replace(&mut self.region, region)
    }
    /// Adds a function argument.
    pub fn arg(&mut self, name: impl Into<String>, role: ArgRole, ty: Type) -> ValueId {
        let name = name.into();
        self.func.args.push(Arg { name: name.clone(), role });
        let body = self.func.body;
        self.func.add_arg(body, ty, Some(name))
    }
    /// Adds a function result.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId, stacked: bool) {
        self.func.outputs.push(Output { name: name.into(), stacked, updates: false });
        let body = self.func.body;
        self.func.regions[body].yields.push(value);
    }
    /// Adds a result that replaces the parameter of that name.
    pub fn update(&mut self, param: impl Into<String>, value: ValueId) {
        self.func.outputs.push(Output { name: param.into(), stacked: false, updates: true });
        let body = self.func.body;
        self.func.regions[body].yields.push(value);
    }
    /// Appends an operation with attributes in table order. The error says which rule of the op is broken.
    pub fn try_op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> Result<Vec<ValueId>, String> {
        let info = opcode.info();
        let (least, most) = (info.operands.len() - info.optional.min(info.operands.len()), info.operands.len());
        let count_ok =
            if info.variadic { operands.len() + 1 >= most } else { (least..=most).contains(&operands.len()) };
        if !count_ok {
            return Err(format!("{} takes {most} operands, not {}", info.mnemonic, operands.len()));
        }
        let kinds_ok = attrs.len() == info.attrs.len() && attrs.iter().zip(info.attrs).all(|(a, s)| a.kind() == s.kind);
        if !kinds_ok {
            return Err(format!("{} takes other attributes than {attrs:?}", info.mnemonic));
        }
        let types: Vec<Type> = operands.iter().map(|&v| self.func.ty(v).clone()).collect();
        let results = (info.infer)(&types, &attrs).map_err(|e| format!("{}: {e}", info.mnemonic))?;
        Ok(self.append(opcode, operands.to_vec(), attrs, results, Vec::new()))
    }
    /// Appends an operation whose result types are known.
    pub fn append(
        &mut self,
        opcode: Opcode,
        operands: Vec<ValueId>,
        attrs: Vec<Attr>,
        results: Vec<Type>,
        regions: Vec<RegionId>,
    ) -> Vec<ValueId> {
        let op = self.func.make_op(opcode, operands, attrs, results, regions, self.loc);
        let ops = &mut self.func.regions[self.region].ops;
        let at = self.before.and_then(|before| ops.iter().position(|&o| o == before)).unwrap_or(ops.len());
        ops.insert(at, op);
        self.func.ops[op].results.clone()
    }
    /// Appends an operation that the caller knows to be well-formed and that has one result.
    ///
    /// # Panics
    /// If the operands break a rule of the op: for the compiler's own use, never on what a user wrote.
    #[track_caller]
    pub fn op(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        self.results(opcode, operands, attrs)[0]
    }
    /// As [`Builder::op`], of an operation with several results.
    ///
    /// # Panics
    /// As [`Builder::op`].
    #[track_caller]
    pub fn results(&mut self, opcode: Opcode, operands: &[ValueId], attrs: Vec<Attr>) -> Vec<ValueId> {
        match self.try_op(opcode, operands, attrs) {
            Ok(results) => results,
            Err(e) => panic!("{e}"),
        }
    }
    /// An operation without attributes, as elementwise ones are.
    #[track_caller]
    pub fn map(&mut self, opcode: Opcode, operands: &[ValueId]) -> ValueId {
        self.op(opcode, operands, Vec::new())
    }
    /// The value in another shape; itself if it has that shape.
    #[track_caller]
    pub fn reshape(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        if self.func.ty(x).shape == shape { x } else { self.op(Opcode::Reshape, &[x], vec![Attr::shape(shape)]) }
    }
    /// The value repeated to a shape; itself if it has that shape.
    #[track_caller]
    pub fn broadcast(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        if self.func.ty(x).shape == shape { x } else { self.op(Opcode::Broadcast, &[x], vec![Attr::shape(shape)]) }
    }
    /// Part of an axis; the value itself if the range is the whole axis.
    #[track_caller]
    pub fn slice(&mut self, x: ValueId, axis: usize, (start, end): (usize, usize)) -> ValueId {
        if start == 0 && self.func.ty(x).shape[axis] == end {
            return x;
        }
        self.op(Opcode::Slice, &[x], [axis, start, end].map(|n| Attr::Int(n as i64)).to_vec())
    }
    /// Values joined along an axis; the value itself if there is only one.
    #[track_caller]
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        match parts {
            [only] => *only,
            _ => self.op(Opcode::Concat, parts, vec![Attr::Int(axis as i64)]),
        }
    }
    /// A copy of a value that has memory of its own: a `cast` to its own type.
    pub fn copy(&mut self, x: ValueId) -> ValueId {
        let ty = self.func.ty(x).clone();
        let copy = self.append(Opcode::Cast, vec![x], vec![Attr::DType(ty.dtype)], vec![ty], Vec::new())[0];
        self.func.inherit_name(x, copy);
        copy
    }
    /// The parameter of that name and type.
    pub fn param(&mut self, name: &str, ty: Type) -> ValueId {
        self.append(Opcode::Param, vec![], vec![Attr::Str(name.into())], vec![ty], vec![])[0]
    }
    /// A scalar constant.
    pub fn constant(&mut self, value: f64, dtype: DType) -> ValueId {
        self.op(Opcode::Constant, &[], vec![Attr::float(value), Attr::DType(dtype)])
    }
    /// Starts a loop: creates its region with arguments `(step, is_last, carried…)` and returns it with the arguments'
    /// values. Fill it with [`Builder::enter`], then call [`Builder::end_loop`] from outside it.
    pub fn begin_loop(&mut self, init: &[ValueId]) -> (RegionId, ValueId, ValueId, Vec<ValueId>) {
        let region = self.func.regions.push(Default::default());
        let step = self.func.add_arg(region, Type::scalar(DType::I32), Some("step".into()));
        let last = self.func.add_arg(region, Type::scalar(DType::Bool), Some("is_last".into()));
        let carried = init
            .iter()
            .map(|&v| {
                let ty = self.func.ty(v).clone();
                self.func.add_arg(region, ty, None)
            })
            .collect();
        (region, step, last, carried)
    }
    /// Appends the loop op over a filled region. `done` is given iff the loop can end early.
    /// Results: the final carried values, the trips, the stacked values. For a reverse loop see [`Builder::reverse`].
    #[allow(clippy::too_many_arguments)]
    pub fn end_loop(
        &mut self,
        region: RegionId,
        steps: ValueId,
        init: &[ValueId],
        carried: &[ValueId],
        done: Option<ValueId>,
        stacked: &[ValueId],
        max_steps: usize,
    ) -> Vec<ValueId> {
        let yields: Vec<ValueId> = carried.iter().chain(done.iter()).chain(stacked).copied().collect();
        self.func.regions[region].yields = yields;
        let results = loop_types(self.func, init, stacked, max_steps);
        let operands = std::iter::once(steps).chain(init.iter().copied()).collect();
        let attrs = vec![
            Attr::Int(max_steps as i64),
            Attr::Bool(done.is_some()),
            Attr::Int(stacked.len() as i64),
            Attr::Bool(false),
        ];
        self.append(Opcode::Loop, operands, attrs, results, vec![region])
    }
    /// Makes the loop with these results run in reverse. It must not be one that can end early.
    pub fn reverse(&mut self, results: &[ValueId]) {
        if let Some(op) = results.first().and_then(|&v| self.func.def_op(v)) {
            self.func.ops[op].set_attr("reverse", Attr::Bool(true));
        }
    }
}

/// The result types of a loop: carried, trips, stacked.
pub fn loop_types(func: &Func, init: &[ValueId], stacked: &[ValueId], max_steps: usize) -> Vec<Type> {
    let mut types: Vec<Type> = init.iter().map(|&v| func.ty(v).clone()).collect();
    types.push(Type::scalar(DType::I32));
    for &v in stacked {
        let ty = func.ty(v);
        let mut shape = vec![max_steps];
        shape.extend(&ty.shape);
        types.push(Type::new(ty.dtype, shape));
    }
    types
}
