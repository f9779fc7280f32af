//! Loops: buffers of carried values, stacked results, the schedule of the body.
//!
//! A carried value that has two buffers begins in `even`. Inside and after the loop it is the pair of both, which follows the trips, so
//! where it stands does not depend on how often the loop runs, or ran before in a loop around.
use super::entry::{At, Planner};
use crate::Error;
use crate::uses::{User, alias, is_zero, root};
use rdc_ir::program::{Advance, Exit, LoopStep, Offset, Place, Step};
use rdc_ir::{DType, Op, OpId, Type, ValueId};

impl Planner<'_> {
    /// Emits a loop.
    pub(super) fn emit_loop(&mut self, id: OpId, steps: &mut Vec<Step>) -> Result<(), Error> {
        let (func, op) = (self.func, &self.func.ops[id]);
        let region = op.regions[0];
        let (args, yields) = (&func.regions[region].args, &func.regions[region].yields);
        let (inits, max_steps) = (&op.operands[1..], op.size("max_steps"));
        let trip_count = self.place_of(op.operands[0], op.loc)?.buffer;
        self.lives[trip_count].to_the_end = true;
        let step = self.buffer("step", Type::scalar(DType::I32), Place::Step);
        let is_last = self.buffer("is_last", Type::scalar(DType::Bool), Place::IsLast);
        let trips = self.buffer("trips", Type::scalar(DType::I32), Place::Trips);
        self.place.insert(args[0], At::whole(step));
        self.place.insert(args[1], At::whole(is_last));
        self.place.insert(op.results[inits.len()], At::whole(trips));

        let mut carried = Vec::new();
        for (index, &init) in inits.iter().enumerate() {
            let (arg, result) = (args[2 + index], op.results[index]);
            if func.ty(init).cache {
                let at = self.place_of(init, op.loc)?;
                self.place.insert(arg, at);
                self.place.insert(result, at);
                continue;
            }
            let initial = self.initial(id, index, steps)?;
            let (now, next) = match self.survey.in_place(id, index) {
                true => (initial, initial),
                false => {
                    let (name, ty) = (self.buffers[initial.buffer].name.clone(), func.ty(arg).clone());
                    let (even, odd) = (initial.buffer, self.in_arena(format!("other {name}"), ty.clone()));
                    let now = self.buffer(&name, ty.clone(), Place::Pair { even, odd, trips });
                    let next = self.buffer(format!("next {name}"), ty, Place::Pair { even: odd, odd: even, trips });
                    (At::whole(now), At::whole(next))
                }
            };
            self.place.insert(arg, now);
            self.place.insert(result, now);
            self.wanted.insert(root(func, yields[index]).0, next);
            // A part of a buffer is no tensor of its own to be recorded.
            carried.extend((now == At::whole(now.buffer)).then_some(now.buffer));
        }
        let exit = op.flag("exit").then(|| {
            let done = self.in_arena("done", Type::scalar(DType::Bool));
            self.wanted.insert(root(func, yields[inits.len()]).0, At::whole(done));
            Exit { done, allowed: self.may_exit() }
        });
        self.stacked(op);

        self.path.push(self.loops);
        self.loops += 1;
        let mut body = self.region(region)?;
        self.path.pop();
        for (index, &init) in inits.iter().enumerate() {
            let at = self.place_of(yields[index], op.loc)?;
            if func.ty(init).cache {
                if at != self.place[&args[2 + index]] {
                    return Err(self.error(op.loc, "a loop must carry each cache at the same place"));
                }
            } else if let Some(want) = self.wanted.get(&root(func, yields[index]).0)
                && at != *want
            {
                // A loop inside left it elsewhere.
                body.push(Step::Copy { dst: want.buffer, src: at.buffer });
            }
        }
        steps.push(Step::Loop(LoopStep {
            steps: trip_count,
            max_steps,
            reverse: op.flag("reverse"),
            advance: Advance { step, is_last, trips, exit },
            body,
            carried,
        }));
        Ok(())
    }
    /// Where a carried value begins, with the initial value in it: the place where the result is wanted, or the
    /// initial value's own if nothing else needs it, or a new one.
    fn initial(&mut self, id: OpId, index: usize, steps: &mut Vec<Step>) -> Result<At, Error> {
        let (func, op) = (self.func, &self.func.ops[id]);
        let (init, arg) = (op.operands[1 + index], func.regions[op.regions[0]].args[2 + index]);
        let ty = func.ty(arg).clone();
        let name = func.values[arg].name.clone().unwrap_or_else(|| self.name_of(init));
        let wanted = self.wanted.get(&op.results[index]).filter(|_| self.survey.in_place(id, index)).copied();
        if is_zero(func, init) {
            let at = wanted.unwrap_or_else(|| At::whole(self.in_arena(name, ty)));
            let zero = Step::Zero { buffer: at.buffer, beyond: None };
            // The other parts of the place are this loop's too.
            if !steps.iter().rev().take_while(|step| matches!(step, Step::Zero { .. })).any(|step| *step == zero) {
                steps.push(zero);
            }
            return Ok(at);
        }
        let at = self.place_of(init, op.loc)?;
        if self.survey.handed(id, index) || wanted == Some(at) {
            return Ok(at);
        }
        let life = &self.lives[at.buffer];
        let owner = root(func, init).0;
        let own = life.arena && !life.to_the_end && life.home == self.path;
        let free = own && self.uses.home(func, owner) == self.uses.region(id) && self.only_user(owner, id);
        if free && wanted.is_none() {
            self.buffers[at.buffer].ty = ty;
            self.buffers[at.buffer].name = name;
            return Ok(at);
        }
        let to = wanted.unwrap_or_else(|| At::whole(self.in_arena(name, ty)));
        steps.push(Step::Copy { dst: to.buffer, src: at.buffer });
        Ok(to)
    }
    /// The cell that says whether loops may end early.
    fn may_exit(&mut self) -> usize {
        let found = self.buffers.iter().position(|buffer| buffer.place == Place::MayExit);
        found.unwrap_or_else(|| self.buffer("may_exit", Type::scalar(DType::Bool), Place::MayExit))
    }
    /// Whether a loop takes a value once, as an initial value, and nothing else uses it.
    pub(super) fn only_user(&self, value: ValueId, id: OpId) -> bool {
        let (mut work, mut count) = (vec![value], 0);
        while let Some(value) = work.pop() {
            for user in self.uses.of(value) {
                match *user {
                    User::Op(op) if op == id => count += 1,
                    User::Op(op) if alias(self.func, op).is_some() => work.extend(&self.func.ops[op].results),
                    _ => return false,
                }
            }
        }
        count == 1
    }
    /// Places of the stacked results. (`tails` zeroes the entries that no iteration writes, where a step reads them.)
    fn stacked(&mut self, op: &Op) {
        let func = self.func;
        let (yields, count) = (&func.regions[op.regions[0]].yields, op.size("stacked"));
        for index in 0..count {
            let result = op.results[op.operands.len() + index];
            let value = yields[yields.len() - count + index];
            let buffer = match self.wanted.get(&result) {
                Some(at) => at.buffer,
                None => self.in_arena(format!("all {}", self.name_of(value)), func.ty(result).clone()),
            };
            self.place.insert(result, At::whole(buffer));
            let stride = func.ty(value).bytes();
            self.wanted.insert(root(func, value).0, At { buffer, offset: Offset::Step { stride } });
        }
    }
}
