//! The reverse direction: goes through the operations backwards and gathers contributions to cotangents.
use super::cotangent::{self, Contribution, Range};
use super::forward::{Forward, forward};
use super::problem::Problem;
use super::reverse_loop::LoopLevel;
use super::{Kept, gradient_name, rules};
use rdc_ir::{Builder, Func, Loc, OpId, Opcode, RegionId, Type, ValueId};
use std::collections::{HashMap, HashSet};

/// A region of the loss function whose reverse is being made.
pub(super) struct Level {
    /// The region of the loss function.
    pub region: RegionId,
    /// The region that its reverse is appended to.
    pub into: RegionId,
    /// Primal values that are at hand in the reverse.
    pub primals: HashMap<ValueId, ValueId>,
    /// f32 constants by bits.
    pub numbers: HashMap<u64, ValueId>,
    /// Contributions to the cotangents of the values that the region defines.
    pub terms: HashMap<ValueId, Vec<Contribution>>,
    /// What a loop has besides.
    pub of_loop: Option<LoopLevel>,
}

impl Level {
    pub(super) fn new(region: RegionId, into: RegionId, of_loop: Option<LoopLevel>) -> Level {
        let (primals, numbers, terms) = (HashMap::new(), HashMap::new(), HashMap::new());
        Level { region, into, primals, numbers, terms, of_loop }
    }
}

/// What was kept and what computed again, for the policies.
#[derive(Default)]
pub(super) struct Record {
    /// Bytes.
    pub kept: Kept,
    /// The values of the loss function that the reverse took from the forward direction, in the order of their use.
    pub taken: Vec<ValueId>,
    /// The operations of the loss function that it ran again.
    pub repeated: HashSet<OpId>,
}

/// The gradient in the making.
pub(super) struct Reverse<'p, 'o> {
    /// The loss function.
    pub problem: &'p Problem<'o>,
    /// Values that are taken from the forward direction if a rule needs them.
    pub keep: &'p HashSet<ValueId>,
    /// The gradient.
    pub new: Func,
    /// Its forward direction.
    pub forward: Forward,
    /// The body, the loop in the body, and so on to the region that is being reversed.
    pub levels: Vec<Level>,
    /// The place in the model text of the operation that is being differentiated.
    pub loc: Loc,
    /// Bytes left for stacking activations for weight gradients.
    pub allowance: usize,
    /// What was kept.
    pub record: Record,
}

/// Makes the gradient, keeping these values where they are needed.
pub(super) fn reverse(problem: &Problem<'_>, keep: &HashSet<ValueId>) -> (Func, Record) {
    let mut new = Func::new(problem.name.clone());
    let forward = forward(problem, &mut new);
    let top = Level::new(problem.func.body, new.body, None);
    let mut cx = Reverse {
        problem,
        keep,
        new,
        forward,
        levels: vec![top],
        loc: Loc::default(),
        allowance: problem.options.stack_weight_grads.unwrap_or(0),
        record: Record::default(),
    };
    let one = cx.number(1.0);
    cx.give(problem.loss, one);
    cx.sweep(problem.func.body);
    cx.outputs();
    (cx.new, cx.record)
}

impl<'p> Reverse<'p, '_> {
    /// The index of the innermost level.
    pub(super) fn innermost(&self) -> usize {
        self.levels.len() - 1
    }
    /// The level of the region that defines a value of the loss function.
    pub(super) fn level_of(&self, value: ValueId) -> usize {
        let home = self.problem.home(value);
        self.levels.iter().position(|l| l.region == home).unwrap_or(0)
    }
    /// Whether a value has a cotangent.
    pub(super) fn wants(&self, value: ValueId) -> bool {
        self.problem.activity.active(value)
    }
    /// Adds to the cotangent of a value, if it has one. A term of a larger shape is summed to the value's: this is the
    /// derivative of the broadcasting that elementwise operations do.
    pub(super) fn give(&mut self, value: ValueId, term: ValueId) {
        if self.wants(value) {
            let shape = self.problem.func.ty(value).shape.clone();
            let term = self.sum_to(term, &shape);
            self.contribute(value, Contribution::Whole(term));
        }
    }
    /// Adds to a range of the cotangent of a value, if it has one.
    pub(super) fn give_part(&mut self, value: ValueId, range: Range, term: ValueId) {
        if self.wants(value) {
            self.contribute(value, Contribution::Part(range, term));
        }
    }
    /// Adds a contribution to the cotangent of an active value: to its terms, or in a loop that captures it to the sum that
    /// the loop carries.
    pub(super) fn contribute(&mut self, value: ValueId, term: Contribution) {
        let level = self.innermost();
        if level == self.level_of(value) {
            self.levels[level].terms.entry(value).or_default().push(term);
        } else {
            self.accumulate(value, term);
        }
    }
    /// The terms of a value's cotangent; no more may come.
    pub(super) fn take(&mut self, value: ValueId) -> Vec<Contribution> {
        let level = self.innermost();
        self.levels[level].terms.remove(&value).unwrap_or_default()
    }
    /// The cotangent of a value, if anything contributed to it.
    pub(super) fn cotangent(&mut self, value: ValueId) -> Option<ValueId> {
        let terms = self.take(value);
        let ty = self.problem.func.ty(value);
        let sum = cotangent::sum(self, ty, &terms)?;
        let name = self.problem.func.values[value].name.as_ref();
        if let (Some(name), slot @ None) = (name, &mut self.new.values[sum].name) {
            *slot = Some(format!("d_{name}"));
        }
        Some(sum)
    }
    /// Differentiates the operations of a region, from the last to the first.
    pub(super) fn sweep(&mut self, region: RegionId) {
        let problem: &'p Problem<'_> = self.problem;
        for &id in problem.func.regions[region].ops.iter().rev() {
            let op = &problem.func.ops[id];
            self.loc = op.loc;
            if op.opcode == Opcode::Loop {
                self.reverse_loop(id);
                continue;
            }
            let (Some(rule), Some(&result)) = (rules::rule(op.opcode), op.results.first()) else { continue };
            if !self.wants(result) || rules::linear::in_parts(self, op) {
                continue;
            }
            if let Some(dy) = self.cotangent(result) {
                rule(self, op, dy);
            }
        }
    }
    /// The results of the gradient: those of the loss function, then the gradients.
    fn outputs(&mut self) {
        let problem = self.problem;
        let old = &problem.func;
        for (output, value) in old.outputs.iter().zip(&old.regions[old.body].yields) {
            if !output.stacked {
                Builder::new(&mut self.new).output(output.name.clone(), self.forward.values[value], false);
            }
        }
        for weight in &problem.weights {
            let gradient = weight.value.and_then(|v| self.cotangent(v));
            let gradient = gradient.unwrap_or_else(|| self.zeros(&weight.ty));
            Builder::new(&mut self.new).update(gradient_name(&weight.name), gradient);
        }
    }
    /// The type of a value of the loss function.
    pub(super) fn old_ty(&self, value: ValueId) -> &'p Type {
        self.problem.func.ty(value)
    }
}
