//! Gives every value of a function a place and emits its schedule.
use super::kernels::Kernels;
use super::weights::{self, Weights};
use super::{arena, barriers};
use crate::Error;
use crate::fuse::kernel::{self, Operand};
use crate::fuse::uses::{User, Uses, alias, root};
use crate::fuse::{self, GroupKind};
use rdc_ir::program::{
    Buffer, Entry, Input, KvPolicy, Launch, LaunchArg, LoopStep, Offset, OutputBuffer, Place, Step, Target,
};
use rdc_ir::{DType, Func, Loc, Op, OpId, Opcode, RegionId, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// What the arena needs to know about a buffer.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Whether it lives in the arena.
    pub arena: bool,
    /// The loops around the place where it comes to life, outermost first, by their number in the schedule.
    pub home: Vec<usize>,
    /// Whether it must keep its contents to the end.
    pub to_the_end: bool,
    /// The buffer that it exchanges addresses with.
    pub pair: Option<usize>,
}

/// Plans one function, which must be normalised.
pub fn plan(func: &Func, target: &Target, weights: &mut Weights, kernels: &mut Kernels) -> Result<Entry, Error> {
    let uses = Uses::new(func);
    let leaves = weights::leaves(func, &uses);
    let mut planner = Planner {
        func,
        uses,
        leaves,
        target,
        weights,
        kernels,
        buffers: Vec::new(),
        lives: Vec::new(),
        weight_buffers: HashMap::new(),
        place: HashMap::new(),
        wanted: HashMap::new(),
        path: Vec::new(),
        loops: 0,
    };
    let inputs = planner.inputs();
    planner.want_outputs();
    let steps = planner.region(func.body)?;
    let outputs = planner.outputs()?;
    let (buffers, lives) = (planner.buffers, planner.lives);
    let mut entry = Entry { name: func.name.clone(), buffers, inputs, outputs, steps, arena: 0, live: 0 };
    arena::allocate(&mut entry, &lives);
    barriers::place(&mut entry, &lives, kernels);
    Ok(entry)
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At {
    buffer: usize,
    offset: Offset,
}

impl At {
    fn whole(buffer: usize) -> At {
        At { buffer, offset: Offset::Fixed(0) }
    }
}

struct Planner<'a> {
    func: &'a Func,
    uses: Uses,
    leaves: HashSet<OpId>,
    target: &'a Target,
    weights: &'a mut Weights,
    kernels: &'a mut Kernels,
    buffers: Vec<Buffer>,
    lives: Vec<Life>,
    weight_buffers: HashMap<usize, usize>,
    place: HashMap<ValueId, At>,
    /// Places that values must be written to: outputs, next carried values, stacked results.
    wanted: HashMap<ValueId, At>,
    path: Vec<usize>,
    loops: usize,
}

impl Planner<'_> {
    fn error(&self, loc: Loc, message: impl std::fmt::Display) -> Error {
        Error::Unsupported { message: format!("`{}`: {message}", self.func.name), loc }
    }
    fn buffer(&mut self, name: impl Into<String>, ty: Type, place: Place) -> usize {
        self.buffers.push(Buffer { name: name.into(), ty, place });
        self.lives.push(Life::default());
        self.buffers.len() - 1
    }
    /// A buffer of the arena that comes to life in the loops of `self.path`.
    fn in_arena(&mut self, name: impl Into<String>, ty: Type) -> usize {
        let buffer = self.buffer(name, ty, Place::Arena(0));
        self.lives[buffer].arena = true;
        self.lives[buffer].home = self.path.clone();
        buffer
    }
    fn name_of(&self, value: ValueId) -> String {
        if let Some(name) = &self.func.values[value].name {
            return name.clone();
        }
        self.func.def_op(value).map_or("argument", |op| self.func.ops[op].opcode.info().mnemonic).into()
    }

    fn inputs(&mut self) -> Vec<Input> {
        let args = self.func.args.iter().zip(self.func.regions[self.func.body].args.clone());
        args.enumerate()
            .map(|(index, (arg, value))| {
                let buffer = self.buffer(&arg.name, self.func.ty(value).clone(), Place::Input(index));
                self.place.insert(value, At::whole(buffer));
                Input { name: arg.name.clone(), role: arg.role, buffer }
            })
            .collect()
    }
    /// Results as name, stacked flag and the value that owns the memory.
    fn results(&self) -> Vec<(&str, bool, ValueId)> {
        let yields = &self.func.regions[self.func.body].yields;
        let results = self.func.outputs.iter().zip(yields).filter(|(_, v)| !self.func.ty(**v).cache);
        results.map(|(out, &v)| (out.name.as_str(), out.stacked, root(self.func, v).0)).collect()
    }
    /// Results are written to the caller's memory at once, except carried values, which have two places.
    fn want_outputs(&mut self) {
        let yields: Vec<ValueId> = self.func.regions[self.func.body].yields.clone();
        let types: Vec<Type> = yields.iter().map(|&v| self.func.ty(v).clone()).filter(|ty| !ty.cache).collect();
        let results: Vec<_> = self.results().into_iter().map(|(name, _, owner)| (name.to_string(), owner)).collect();
        for (index, ((name, owner), ty)) in results.into_iter().zip(types).enumerate() {
            if !self.is_carried(owner) {
                let buffer = self.buffer(name, ty, Place::Output(index));
                self.wanted.insert(owner, At::whole(buffer));
            }
        }
    }
    fn is_carried(&self, value: ValueId) -> bool {
        match self.func.values[value].def {
            ValueDef::Result(op, index) => {
                let op = &self.func.ops[op];
                op.opcode == Opcode::Loop && index + 1 < op.operands.len()
            }
            ValueDef::Arg(..) => false,
        }
    }
    fn outputs(&mut self) -> Result<Vec<OutputBuffer>, Error> {
        let results: Vec<_> = self.results().into_iter().map(|(n, s, v)| (n.to_string(), s, v)).collect();
        let mut outputs = Vec::new();
        for (name, stacked, owner) in results {
            let buffer = self.place_of(owner, Loc::default())?.buffer;
            self.lives[buffer].to_the_end = true;
            outputs.push(OutputBuffer { name, buffer, stacked });
        }
        Ok(outputs)
    }

    /// Emits the operations of a region.
    fn region(&mut self, region: RegionId) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for group in fuse::groups(self.func, &self.uses, &self.leaves, region) {
            match group.kind {
                GroupKind::Alias => {}
                GroupKind::Loop(op) => self.emit_loop(op, &mut steps)?,
                _ => {
                    let launch = self.launch(region, &group)?;
                    steps.push(Step::Launch(launch));
                }
            }
        }
        Ok(steps)
    }
    fn launch(&mut self, region: RegionId, group: &fuse::Group) -> Result<Launch, Error> {
        let built = kernel::build(self.func, &self.uses, region, group, self.target);
        let loc = built.locs.first().copied().unwrap_or_default();
        let mut args = Vec::new();
        for (index, &operand) in built.args.iter().enumerate() {
            let at = match operand {
                Operand::Slot(update) => self.slot_of(update)?,
                Operand::Value(value) => {
                    let at = self.place_of(value, loc)?;
                    let moves = !matches!(at.offset, Offset::Fixed(_));
                    if moves && self.uses.home(self.func, value) != region {
                        return Err(self.error(loc, "a loop uses a cache slot of the loop around it"));
                    }
                    at
                }
            };
            let in_cache = matches!(operand, Operand::Value(v) if self.is_view(v));
            let body = &built.kernel.func.regions[built.kernel.func.body];
            if in_cache && !built.kernel.func.ty(body.args[index]).cache {
                return Err(self.error(loc, "a cache may be read by attention only"));
            }
            args.push(LaunchArg { buffer: at.buffer, offset: at.offset });
        }
        for &value in &built.results {
            let at = match self.wanted.get(&value) {
                Some(&at) => at,
                None => At::whole(self.in_arena(self.name_of(value), self.func.ty(value).clone())),
            };
            self.place.insert(value, at);
            args.push(LaunchArg { buffer: at.buffer, offset: at.offset });
        }
        Ok(Launch { kernel: self.kernels.index(built.kernel), args, barrier: false, locs: built.locs })
    }

    fn is_view(&self, value: ValueId) -> bool {
        let (value, _) = root(self.func, value);
        match self.func.values[value].def {
            ValueDef::Result(op, 1) => self.func.ops[op].opcode == Opcode::CacheUpdate,
            _ => false,
        }
    }
    /// Where a value is; aliases, weights and views are found on demand.
    fn place_of(&mut self, value: ValueId, loc: Loc) -> Result<At, Error> {
        if let Some(&at) = self.place.get(&value) {
            return Ok(at);
        }
        let at = if let Some(found) = weights::stored(self.func, value) {
            let (name, ty, index) =
                (found.weight.name.clone(), found.weight.ty.clone(), self.weights.index(found.weight));
            let buffer = match self.weight_buffers.get(&index) {
                Some(&buffer) => buffer,
                None => self.buffer(name, ty, Place::Weight(index)),
            };
            self.weight_buffers.insert(index, buffer);
            At { buffer, offset: Offset::Fixed(found.offset) }
        } else {
            match self.func.values[value].def {
                // An argument beyond those of the function: a cache private to one attention.
                ValueDef::Arg(..) => At::whole(self.in_arena(self.name_of(value), self.func.ty(value).clone())),
                ValueDef::Result(id, index) => {
                    let op = &self.func.ops[id];
                    match (op.opcode, index) {
                        (Opcode::CacheUpdate, 0) => self.place_of(op.operands[0], op.loc)?,
                        (Opcode::CacheUpdate, _) => self.slot_of(id)?,
                        _ => {
                            let Some((source, offset)) = alias(self.func, id) else {
                                let what = op.opcode.info().mnemonic;
                                return Err(self.error(op.loc, format!("`{what}` is used where it has no memory")));
                            };
                            let at = self.place_of(source, op.loc)?;
                            self.shifted(at, offset, loc)?
                        }
                    }
                }
            }
        };
        self.place.insert(value, at);
        Ok(at)
    }
    fn shifted(&self, at: At, by: usize, loc: Loc) -> Result<At, Error> {
        match at.offset {
            Offset::Fixed(offset) => Ok(At { buffer: at.buffer, offset: Offset::Fixed(offset + by) }),
            _ if by == 0 => Ok(at),
            _ => Err(self.error(loc, "a part of a cache is used on its own")),
        }
    }
    /// The slot that a cache update writes.
    fn slot_of(&mut self, update: OpId) -> Result<At, Error> {
        let op = &self.func.ops[update];
        let cache = self.place_of(op.operands[0], op.loc)?;
        let (slots, stride) = (self.func.ty(op.operands[0]).shape[0], self.func.ty(op.results[1]).bytes());
        let slot = self.func.def_op(op.operands[3]).map(|id| &self.func.ops[id]);
        let fixed = |slot: usize| {
            let at = At { buffer: cache.buffer, offset: Offset::Fixed(slot * stride) };
            if slot < slots {
                Ok(at)
            } else {
                Err(self.error(op.loc, format!("slot {slot} of a cache of {slots} slots")))
            }
        };
        match slot {
            Some(def) if def.opcode == Opcode::Constant => fixed(def.float("value").max(0.0) as usize),
            Some(def) if def.opcode == Opcode::KvSlot => {
                let (policy, layer, layers, base) =
                    (policy_of(def), def.size("layer"), def.size("layers"), def.size("base"));
                let step = def.operands[0];
                if let Some(step) = self.func.def_op(step).map(|id| &self.func.ops[id])
                    && step.opcode == Opcode::Constant
                {
                    return fixed(base + policy.slot(step.float("value").max(0.0) as usize, layer, layers));
                }
                if self.func.values[step].def != ValueDef::Arg(self.uses.region(update), 0) {
                    return Err(self.error(op.loc, "a cache slot must follow the step of the loop around it"));
                }
                Ok(At { buffer: cache.buffer, offset: Offset::Slot { policy, layer, layers, base, stride } })
            }
            _ => Err(self.error(op.loc, "a cache slot must be a constant or a `kv_slot`")),
        }
    }

    fn emit_loop(&mut self, id: OpId, steps: &mut Vec<Step>) -> Result<(), Error> {
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

        let (mut swaps, mut carried) = (Vec::new(), Vec::new());
        for (index, &init) in inits.iter().enumerate() {
            let (arg, result) = (args[2 + index], op.results[index]);
            if func.ty(init).cache {
                let at = self.place_of(init, op.loc)?;
                self.place.insert(arg, at);
                self.place.insert(result, at);
                continue;
            }
            let now = self.initial(id, init, arg, steps)?;
            let next = self.in_arena(format!("next {}", self.buffers[now].name), func.ty(arg).clone());
            self.lives[now].pair = Some(next);
            self.lives[next].pair = Some(now);
            self.place.insert(arg, At::whole(now));
            self.place.insert(result, At::whole(now));
            self.wanted.insert(root(func, yields[index]).0, At::whole(next));
            swaps.push((now, next));
            carried.push(now);
        }
        let mut done = None;
        if op.flag("exit") {
            // Read by every thread after an iteration, while others may be ahead: nothing else may use its byte.
            let buffer = self.in_arena("done", Type::scalar(DType::Bool));
            self.lives[buffer].to_the_end = true;
            self.wanted.insert(root(func, yields[inits.len()]).0, At::whole(buffer));
            done = Some(buffer);
        }
        self.stacked(op);

        self.path.push(self.loops);
        self.loops += 1;
        let body = self.region(region)?;
        self.path.pop();
        for (index, &init) in inits.iter().enumerate() {
            if func.ty(init).cache && self.place_of(yields[index], op.loc)? != self.place[&args[2 + index]] {
                return Err(self.error(op.loc, "a loop must carry each cache at the same place"));
            }
        }
        steps.push(Step::Loop(LoopStep {
            steps: trip_count,
            max_steps,
            reverse: op.flag("reverse"),
            step,
            is_last,
            trips,
            body,
            swaps,
            done,
            carried,
        }));
        Ok(())
    }
    /// The buffer that a carried value begins in: the initial value's own if nothing else needs it, else a copy.
    fn initial(&mut self, id: OpId, init: ValueId, arg: ValueId, steps: &mut Vec<Step>) -> Result<usize, Error> {
        let ty = self.func.ty(arg).clone();
        let at = self.place_of(init, self.func.ops[id].loc)?;
        let name = self.func.values[arg].name.clone().unwrap_or_else(|| self.name_of(init));
        let life = &self.lives[at.buffer];
        let owner = root(self.func, init).0;
        let own = life.arena && life.pair.is_none() && !life.to_the_end && life.home == self.path;
        if own && self.uses.home(self.func, owner) == self.uses.region(id) && self.only_user(owner, id) {
            self.buffers[at.buffer].ty = ty;
            self.buffers[at.buffer].name = name;
            return Ok(at.buffer);
        }
        let buffer = self.in_arena(name, ty);
        steps.push(Step::Copy { dst: buffer, src: at.buffer });
        Ok(buffer)
    }
    /// Whether a loop takes a value once, as an initial value, and nothing else uses it.
    fn only_user(&self, value: ValueId, id: OpId) -> bool {
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
    /// Places of the stacked results. (The runtime zeroes the entries that no iteration wrote, where a step reads them.)
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

/// The policy of a `kv_slot`.
fn policy_of(op: &Op) -> KvPolicy {
    match op.text("policy") {
        "modulo" => KvPolicy::Modulo(op.size("arg")),
        "block" => KvPolicy::Block(op.size("arg")),
        "anchor" => KvPolicy::Anchor,
        _ => KvPolicy::Full,
    }
}
