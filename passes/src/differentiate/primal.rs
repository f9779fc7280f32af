//! Values of the forward direction, for the rules: kept ones are read, others computed again.
use super::forward::{Values, copy_op};
use super::reverse::Reverse;
use rdc_ir::{DType, OpId, Opcode, ValueId};

impl Reverse<'_, '_> {
    /// What a value of the loss function is in the reverse direction, at the level of the region that defines it. Each value
    /// is read or computed once for each run of its region.
    pub(super) fn primal(&mut self, value: ValueId) -> ValueId {
        let level = self.level_of(value);
        if let Some(&primal) = self.levels[level].primals.get(&value) {
            return primal;
        }
        let primal = match self.problem.def(value) {
            Some(op) if self.repeats(value, op, level) => self.repeat(op, value, level),
            None if level > 0 => self.loop_argument(value, level),
            _ => self.kept(value, level),
        };
        self.levels[level].primals.insert(value, primal);
        primal
    }
    /// Whether a result is computed again.
    fn repeats(&self, value: ValueId, op: OpId, level: usize) -> bool {
        match self.problem.func.ops[op].opcode {
            Opcode::Loop => false,
            Opcode::Reshape => true,
            // At the outermost level what depends on parameters and constants only is there; in a loop, it is not worth a stack.
            _ if !self.problem.is_variant(value) => level > 0,
            _ => !self.keep.contains(&value),
        }
    }
    /// Runs an operation again, after those that it depends on.
    fn repeat(&mut self, op: OpId, value: ValueId, level: usize) -> ValueId {
        let problem = self.problem;
        let operands = problem.func.ops[op].operands.iter();
        let mut values: Values = operands.map(|&v| (v, self.primal(v))).collect();
        copy_op(&problem.func, &mut self.new, op, self.levels[level].into, &mut values);
        if problem.func.ops[op].opcode != Opcode::Reshape {
            self.record.repeated.insert(op);
        }
        for &result in &problem.func.ops[op].results {
            // Another result may have been kept.
            self.levels[level].primals.entry(result).or_insert(values[&result]);
        }
        values[&value]
    }
    /// Takes a value from the forward direction.
    fn kept(&mut self, value: ValueId, level: usize) -> ValueId {
        let kept = self.forward.values[&value];
        // Arguments and what depends on parameters only would be there anyway.
        let counts = level > 0 || (self.problem.def(value).is_some() && self.problem.is_variant(value));
        if counts {
            self.record.taken.push(value);
        }
        if level == 0 && counts {
            let bytes = self.new.ty(kept).bytes();
            self.record.kept.outside = self.record.kept.outside.saturating_add(bytes);
        }
        self.read(level, kept)
    }
    /// Reads, at a level, a value that the forward direction defined in that level's region.
    pub(super) fn read(&mut self, level: usize, value: ValueId) -> ValueId {
        let Some(of_loop) = &self.levels[level].of_loop else { return value };
        let (step, op) = (of_loop.step, of_loop.op);
        let Some(forward) = self.forward.loops.get_mut(&op) else { return value };
        let before = self.new.ops[forward.op].results.len();
        let stack = forward.stack(&mut self.new, value);
        if self.new.ops[forward.op].results.len() > before {
            let bytes = self.new.ty(stack).bytes();
            self.record.kept.stacks = self.record.kept.stacks.saturating_add(bytes);
        }
        let stack = self.read(level - 1, stack);
        let entry = self.builder_at(level).op(Opcode::Index, &[stack, step], vec![]);
        self.new.values[entry].name = self.new.values[value].name.clone();
        entry
    }
    /// An argument of a loop's body.
    fn loop_argument(&mut self, value: ValueId, level: usize) -> ValueId {
        let index = super::problem::arg_index(&self.problem.func, value);
        let (Some(of_loop), Some(index @ (0 | 1))) = (&self.levels[level].of_loop, index) else {
            return self.kept(value, level);
        };
        let (step, last, op) = (of_loop.step, of_loop.last, of_loop.op);
        let Some((split, asked)) = self.forward.loops.get(&op).map(|f| (f.split, f.steps)) else { return step };
        if index == 0 {
            return split.map_or(step, |s| self.builder_at(level).op(Opcode::Add, &[s.n, step], vec![]));
        }
        if !self.problem.func.ops[op].flag("exit") {
            return last;
        }
        // The reverse loop has as many steps as ran; `is_last` is about the steps asked for.
        let asked = self.read(level - 1, asked);
        let mut builder = self.builder_at(level);
        let one = builder.constant(1.0, DType::I32);
        let next = builder.op(Opcode::Add, &[step, one], vec![]);
        builder.op(Opcode::Eq, &[next, asked], vec![])
    }
}
