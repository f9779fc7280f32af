//! Results that have a place from outside: memory of the caller, or a parameter that they replace.
//!
//! What a kernel makes of such a result's memory element by element may be there before: a sum that a loop carries, the base
//! of a `scatter_add`. So a target is handed on from a result to the values that it is made of. A parameter keeps its old
//! value until everything that reads it has run; where a result comes too early for that, or is in one
//! of two buffers, it is copied at the end. What a result is joined of, end to end, is made in its parts of the place.
use super::entry::{At, Planner};
use crate::Error;
use crate::fuse::kernel::Operand;
use crate::uses::{is_zero, root};
use rdc_ir::program::{Offset, OutputBuffer, Place, Step};
use rdc_ir::{Loc, OpId, Opcode, ValueDef, ValueId};
use std::collections::HashSet;

/// A result of the function.
struct Outcome {
    name: String,
    stacked: bool,
    updates: bool,
    /// The value that owns its memory.
    owner: ValueId,
}

impl Planner<'_> {
    /// Results, less caches.
    fn outcomes(&self) -> Vec<Outcome> {
        let yields = &self.func.regions[self.func.body].yields;
        let results = self.func.outputs.iter().zip(yields).filter(|(_, v)| !self.func.ty(**v).cache);
        let outcome = |(out, &v): (&rdc_ir::Output, &ValueId)| Outcome {
            name: out.name.clone(),
            stacked: out.stacked,
            updates: out.updates,
            owner: root(self.func, v).0,
        };
        results.map(outcome).collect()
    }
    /// Gives results their places, as far as they can be written there at once.
    pub(super) fn want_outputs(&mut self) -> Result<(), Error> {
        let mut index = 0;
        for outcome in self.outcomes() {
            if outcome.updates {
                let buffer = self.updated(&outcome.name)?;
                self.want(outcome.owner, At::whole(buffer));
            } else {
                if !self.is_paired(outcome.owner) {
                    let ty = self.func.ty(outcome.owner).clone();
                    let buffer = self.buffer(outcome.name, ty, Place::Output(index));
                    self.want(outcome.owner, At::whole(buffer));
                }
                index += 1;
            }
        }
        Ok(())
    }
    /// The buffer of a parameter that a result replaces.
    fn updated(&mut self, name: &str) -> Result<usize, Error> {
        let index = self.weights.of_param(name);
        let index =
            index.ok_or_else(|| self.error(Loc::default(), format!("there is no parameter `{name}` to update")))?;
        Ok(self.weight_buffer(index))
    }
    /// Whether a value is in one of two buffers, as the trips of a loop say.
    fn is_paired(&self, value: ValueId) -> bool {
        match self.func.values[value].def {
            ValueDef::Result(id, index) => {
                let op = &self.func.ops[id];
                let carried = op.opcode == Opcode::Loop && index + 1 < op.operands.len();
                carried && !self.survey.in_place(id, index)
            }
            ValueDef::Arg(..) => false,
        }
    }
    /// Wants a value of the body at a place, and what it is made of, if that may be there before.
    fn want(&mut self, value: ValueId, at: At) {
        let mut next = Some(value);
        while let Some(value) = next.take() {
            if self.wanted.contains_key(&value) || !self.may_write(value, at) {
                return;
            }
            self.wanted.insert(value, at);
            if let Some(parts) = self.parts(value, at) {
                self.joined.insert(value);
                self.wanted.extend(parts);
                return;
            }
            next = self.made_of(value);
        }
    }
    /// Whether a value can be written to a place of its own at once.
    fn may_write(&self, value: ValueId, at: At) -> bool {
        let ValueDef::Result(def, _) = self.func.values[value].def else { return false };
        let Some(group) = self.survey.group(def).filter(|_| self.uses.region(def) == self.func.body) else {
            return false;
        };
        if self.is_paired(value) {
            return false;
        }
        let Place::Weight(weight) = self.buffers[at.buffer].place else { return true };
        let old = self.weights.param(weight).and_then(|name| self.survey.param(name));
        let is_stacked = self.func.ops[def].opcode == Opcode::Loop && !self.is_carried(value);
        !is_stacked
            && old.is_none_or(|old| self.survey.free_at(self.func, &self.uses, self.func.body, group, old, value))
    }
    fn is_carried(&self, value: ValueId) -> bool {
        match self.func.values[value].def {
            ValueDef::Result(op, index) => index + 1 < self.func.ops[op].operands.len(),
            ValueDef::Arg(..) => false,
        }
    }
    /// If a value is joined of others, end to end, all of which can be written to their parts of its place at once: those, with
    /// their places. What a loop carries must be zero at first and of one loop, which sets the whole place to zero.
    fn parts(&self, value: ValueId, at: At) -> Option<Vec<(ValueId, At)>> {
        let func = self.func;
        let (op, Offset::Fixed(mut offset)) = (&func.ops[func.def_op(value)?], at.offset) else { return None };
        let outer = &func.ty(value).shape[..op.opcode.eq(&Opcode::Concat).then(|| op.size("axis"))?];
        let alone = self.survey.is_alone(func.body, self.survey.group(func.def_op(value)?)?);
        let mut parts: Vec<(ValueId, At)> = Vec::new();
        let mut makers = HashSet::new();
        for &operand in &op.operands {
            let (owner, start) = root(func, operand);
            let part = At { offset: Offset::Fixed(offset), ..at };
            let whole = start == 0 && func.ty(owner).bytes() == func.ty(operand).bytes();
            let free =
                !self.wanted.contains_key(&owner) && !self.is_yielded(owner) && !parts.iter().any(|p| p.0 == owner);
            if !whole || !free || !self.may_write(owner, part) {
                return None;
            }
            makers.insert(self.carried_from_zero(owner)?);
            offset += func.ty(operand).bytes();
            parts.push((owner, part));
        }
        let one_way = makers.len() == 1 && alone && outer.iter().all(|&n| n == 1);
        one_way.then_some(parts)
    }
    /// The loop that carries a value in one buffer, from zero on; `Some(None)` for what a kernel makes. Not of a loop with an exit: it
    /// may run on and then gives its carried tensors, each a whole buffer, as they were at the exit.
    fn carried_from_zero(&self, value: ValueId) -> Option<Option<OpId>> {
        let func = self.func;
        let ValueDef::Result(def, index) = func.values[value].def else { return None };
        let op = &func.ops[def];
        if op.opcode != Opcode::Loop {
            let kernel = self.survey.built(func.body, self.survey.group(def)?);
            return kernel.map(|_| None);
        }
        let init = *op.operands.get(1 + index).filter(|_| self.is_carried(value))?;
        let next = root(func, func.regions[op.regions[0]].yields[index]).0;
        let inside = match func.values[next].def {
            ValueDef::Result(inner, index) if func.ops[inner].opcode == Opcode::Loop => {
                self.survey.handed(inner, index)
            }
            _ => true,
        };
        (inside && is_zero(func, init) && !op.flag("exit")).then_some(Some(def))
    }
    fn is_yielded(&self, value: ValueId) -> bool {
        self.func.regions[self.func.body].yields.iter().any(|&y| root(self.func, y).0 == value)
    }
    /// A value of the body that is used up in making another, and whose memory that other may have.
    fn made_of(&self, value: ValueId) -> Option<ValueId> {
        let ValueDef::Result(def, index) = self.func.values[value].def else { return None };
        let (body, group) = (self.func.body, self.survey.group(def)?);
        let op = &self.func.ops[def];
        let fits = |v: &ValueId| {
            let here = self.func.def_op(*v).is_some_and(|op| self.uses.region(op) == body);
            here && !self.is_yielded(*v) && self.func.ty(*v).bytes() == self.func.ty(value).bytes()
        };
        if op.opcode == Opcode::Loop {
            let init = *op.operands.get(1 + index).filter(|_| self.is_carried(value))?;
            let owner = root(self.func, init).0;
            return Some(owner).filter(|v| fits(v) && !is_zero(self.func, init) && self.only_user(*v, def));
        }
        let values = self.survey.built(body, group)?.args.iter().filter_map(|arg| match *arg {
            Operand::Value(value) => Some(root(self.func, value).0),
            Operand::Slot(_) => None,
        });
        let mut owners = values.filter(fits);
        owners.find(|&v| {
            self.survey.takes_over(self.func, &self.uses, body, group, v, value)
                && self.survey.free_at(self.func, &self.uses, body, group, v, value)
        })
    }

    /// Copies the results that could not be written to their parameters at once, and lists the others.
    pub(super) fn outputs(&mut self, steps: &mut Vec<Step>) -> Result<Vec<OutputBuffer>, Error> {
        let mut outputs = Vec::new();
        for outcome in self.outcomes() {
            let at = self.place_of(outcome.owner, Loc::default())?;
            if outcome.updates {
                let dst = self.updated(&outcome.name)?;
                if at != At::whole(dst) {
                    steps.push(Step::Copy { dst, src: at.buffer });
                }
            } else {
                self.lives[at.buffer].to_the_end = true;
                let Outcome { name, stacked, .. } = outcome;
                let sequence = self.sequence_of(&self.buffers[at.buffer].ty, stacked);
                outputs.push(OutputBuffer { name, buffer: at.buffer, stacked, sequence });
            }
        }
        Ok(outputs)
    }
}
