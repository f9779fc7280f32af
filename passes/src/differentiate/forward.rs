//! The forward direction: the loss function once more, with its loop in two parts.
//!
//! Loop N runs the iterations without gradient, loop F those with; both have the loop's body. Stacked results for the reverse
//! direction are added to F later, as they are asked for ([`ForwardLoop::stack`]).
use super::problem::Problem;
use rdc_ir::builder::loop_types;
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Loc, OpId, Opcode, RegionId, Type, Value, ValueDef, ValueId};
use std::collections::HashMap;

/// Values of the loss function and what they are in the gradient.
pub(super) type Values = HashMap<ValueId, ValueId>;

/// The two numbers that replace the number of steps.
#[derive(Clone, Copy)]
pub(super) struct Split {
    /// Iterations without gradient, `n`.
    pub n: ValueId,
    /// Iterations with gradient, `k`.
    pub k: ValueId,
    /// n + k
    total: ValueId,
}

/// A loop of the forward direction that has a reverse: F.
pub(super) struct ForwardLoop {
    /// F itself.
    pub op: OpId,
    /// The largest number of its iterations.
    pub max_steps: usize,
    /// Iterations asked for.
    pub steps: ValueId,
    /// If N goes before it, the numbers of iterations.
    pub split: Option<Split>,
    /// Stacked results by the value in the body.
    stacks: Values,
}

impl ForwardLoop {
    /// How many iterations ran.
    pub(super) fn trips(&self, func: &Func) -> ValueId {
        let op = &func.ops[self.op];
        op.results[op.operands.len() - 1]
    }
    /// The stacked result that holds a value of F's body; makes it if there is none.
    pub(super) fn stack(&mut self, func: &mut Func, value: ValueId) -> ValueId {
        if let Some(&stack) = self.stacks.get(&value) {
            return stack;
        }
        let ty = func.ty(value);
        let shape: Vec<usize> = std::iter::once(self.max_steps).chain(ty.shape.iter().copied()).collect();
        let stack = Value {
            ty: Type::new(ty.dtype, shape),
            def: ValueDef::Result(self.op, func.ops[self.op].results.len()),
            name: func.values[value].name.as_ref().map(|name| format!("{name}_stack")),
        };
        let stack = func.values.push(stack);
        let op = &mut func.ops[self.op];
        op.results.push(stack);
        // The op table orders them max_steps, exit, stacked, reverse.
        op.attrs[2] = Attr::Int(op.attrs[2].as_int() + 1);
        let body = op.regions[0];
        func.regions[body].yields.push(value);
        self.stacks.insert(value, stack);
        stack
    }
}

/// What a loop is besides its values.
pub(super) struct LoopShape {
    /// The exit condition that the body yields.
    pub exit: Option<ValueId>,
    /// The largest number of iterations.
    pub max_steps: usize,
    /// Whether the step runs backwards.
    pub reverse: bool,
    /// The place in the model text.
    pub loc: Loc,
}

/// Appends a loop over a filled body that yields `next` and `stacked`.
#[allow(clippy::too_many_arguments)]
pub(super) fn make_loop(
    func: &mut Func,
    into: RegionId,
    body: RegionId,
    steps: ValueId,
    init: &[ValueId],
    next: &[ValueId],
    stacked: &[ValueId],
    shape: LoopShape,
) -> OpId {
    func.regions[body].yields = next.iter().chain(&shape.exit).chain(stacked).copied().collect();
    let types = loop_types(func, init, stacked, shape.max_steps);
    let operands = std::iter::once(steps).chain(init.iter().copied()).collect();
    let attrs = vec![
        Attr::Int(shape.max_steps as i64),
        Attr::Bool(shape.exit.is_some()),
        Attr::Int(stacked.len() as i64),
        Attr::Bool(shape.reverse),
    ];
    let op = func.make_op(Opcode::Loop, operands, attrs, types, vec![body], shape.loc);
    func.regions[into].ops.push(op);
    op
}

/// The forward direction.
pub(super) struct Forward {
    /// What every value of the loss function is. Of the values in loops, those of F.
    pub values: Values,
    /// The loops F, by the loop of the loss function.
    pub loops: HashMap<OpId, ForwardLoop>,
}

/// Begins the gradient: its arguments and the forward direction.
pub(super) fn forward(problem: &Problem<'_>, new: &mut Func) -> Forward {
    let old = &problem.func;
    let mut values = Values::new();
    let mut builder = Builder::new(new);
    let mut split = None;
    for (arg, &value) in old.args.iter().zip(&old.regions[old.body].args) {
        if Some(value) == problem.steps {
            let scalar = Type::scalar(DType::I32);
            let n = builder.arg("no_grad_steps", ArgRole::NoGradSteps, scalar.clone());
            split = Some((n, builder.arg("grad_steps", ArgRole::GradSteps, scalar)));
        } else {
            values.insert(value, builder.arg(arg.name.clone(), arg.role, old.ty(value).clone()));
        }
    }
    let split = split.map(|(n, k)| Split { n, k, total: builder.op(Opcode::Add, &[n, k], vec![]) });
    values.extend(problem.steps.zip(split).map(|(steps, split)| (steps, split.total)));
    let mut copy = Copy { problem, new, split, loops: HashMap::new() };
    copy.ops(old.body, copy.new.body, &mut values, true);
    Forward { values, loops: copy.loops }
}

struct Copy<'a, 'o> {
    problem: &'a Problem<'o>,
    new: &'a mut Func,
    split: Option<Split>,
    loops: HashMap<OpId, ForwardLoop>,
}

/// Which part of a loop a copy of it is.
#[derive(Clone, Copy)]
enum Part {
    /// The whole loop.
    Whole,
    /// N; given whether k = 0.
    WithoutGradient(ValueId),
    /// F.
    WithGradient(Split),
}

impl Copy<'_, '_> {
    /// Copies the operations of a region; with `record`, so that they can be differentiated.
    fn ops(&mut self, region: RegionId, into: RegionId, values: &mut Values, record: bool) {
        let old = &self.problem.func;
        for &id in &old.regions[region].ops {
            let op = &old.ops[id];
            if op.opcode == Opcode::Loop {
                self.any_loop(id, into, values, record);
            } else {
                copy_op(old, self.new, id, into, values);
            }
        }
    }
    fn any_loop(&mut self, id: OpId, into: RegionId, values: &mut Values, record: bool) {
        let op = &self.problem.func.ops[id];
        let init: Vec<ValueId> = op.operands[1..].iter().map(|v| values[v]).collect();
        let max_steps = op.size("max_steps");
        let split = self.split.filter(|_| into == self.new.body && Some(op.operands[0]) == self.problem.steps);
        let Some(split) = split else {
            let steps = values[&op.operands[0]];
            let copy = self.loop_copy(id, into, (steps, init, max_steps), Part::Whole, values, record);
            let results = self.new.ops[copy].results.clone();
            values.extend(op.results.iter().copied().zip(results));
            return;
        };
        let mut builder = Builder::at(self.new, into);
        let zero = builder.constant(0.0, DType::I32);
        let alone = builder.op(Opcode::Eq, &[split.k, zero], vec![]);
        let part = Part::WithoutGradient(alone);
        let first = self.loop_copy(id, into, (split.n, init, max_steps), part, &mut values.clone(), false);
        let carried = op.operands.len() - 1;
        let state = self.new.ops[first].results[..carried].to_vec();
        let most = max_steps.min(self.problem.options.max_grad_steps.max(1));
        let second = self.loop_copy(id, into, (split.k, state, most), Part::WithGradient(split), values, record);
        let results = self.new.ops[second].results.clone();
        for (i, (&old, new)) in op.results.iter().zip(results).enumerate() {
            let is_stack = i > carried;
            values.insert(old, if is_stack { self.lengthen(new, max_steps, into) } else { new });
        }
    }
    /// A stack with zeros behind it, so that it has as many entries as the loss function's.
    fn lengthen(&mut self, stack: ValueId, entries: usize, into: RegionId) -> ValueId {
        let ty = self.new.ty(stack).clone();
        let missing = entries - ty.shape[0];
        if missing == 0 {
            return stack;
        }
        let mut builder = Builder::at(self.new, into);
        let mut shape = ty.shape.clone();
        shape[0] = missing;
        let zero = builder.constant(0.0, ty.dtype);
        let zeros = builder.op(Opcode::Broadcast, &[zero], vec![Attr::shape(&shape)]);
        builder.op(Opcode::Concat, &[stack, zeros], vec![Attr::Int(0)])
    }
    fn loop_copy(
        &mut self,
        id: OpId,
        into: RegionId,
        (steps, init, max_steps): (ValueId, Vec<ValueId>, usize),
        part: Part,
        values: &mut Values,
        record: bool,
    ) -> OpId {
        let old = &self.problem.func;
        let op = &old.ops[id];
        let source = &old.regions[op.regions[0]];
        let (body, mut step, mut last, carried) = Builder::at(self.new, into).begin_loop(&init);
        for (&from, &to) in source.args.iter().zip([step, last].iter().chain(&carried)) {
            self.new.values[to].name = old.values[from].name.clone();
        }
        let mut builder = Builder::at(self.new, body);
        match part {
            Part::Whole => {}
            Part::WithoutGradient(alone) => last = builder.op(Opcode::And, &[last, alone], vec![]),
            Part::WithGradient(split) => step = builder.op(Opcode::Add, &[split.n, step], vec![]),
        }
        let args = [step, last].into_iter().chain(carried);
        values.extend(source.args.iter().copied().zip(args));
        self.ops(op.regions[0], body, values, record);
        let yields: Vec<ValueId> = source.yields.iter().map(|v| values[v]).collect();
        let (next, rest) = yields.split_at(init.len());
        let (done, stacked) = rest.split_at(op.flag("exit") as usize);
        let stacked = if matches!(part, Part::WithoutGradient(_)) { &[] } else { stacked };
        let shape = LoopShape { exit: done.first().copied(), max_steps, reverse: op.flag("reverse"), loc: op.loc };
        let copy = make_loop(self.new, into, body, steps, &init, next, stacked, shape);
        let results = self.new.ops[copy].results.clone();
        for (&from, &to) in op.results.iter().zip(&results) {
            self.new.values[to].name = old.values[from].name.clone();
        }
        if record {
            let split = match part {
                Part::WithGradient(split) => Some(split),
                _ => None,
            };
            let stacks = stacked.iter().copied().zip(results[init.len() + 1..].iter().copied()).collect();
            self.loops.insert(id, ForwardLoop { op: copy, max_steps, steps, split, stacks });
        }
        copy
    }
}

/// Copies one operation without regions; its operands must be in the map, its results will be.
pub(super) fn copy_op(old: &Func, new: &mut Func, id: OpId, into: RegionId, values: &mut Values) {
    let op = &old.ops[id];
    let operands: Vec<ValueId> = op.operands.iter().map(|v| values[v]).collect();
    let types = op.results.iter().map(|&v| old.ty(v).clone()).collect();
    let mut builder = Builder::at(new, into);
    builder.loc = op.loc;
    let copies = builder.append(op.opcode, operands, op.attrs.clone(), types, Vec::new());
    for (&from, to) in op.results.iter().zip(copies) {
        new.values[to].name = old.values[from].name.clone();
        values.insert(from, to);
    }
}
