//! Gives every value of a function a place and emits its schedule.
use super::kernels::Kernels;
use super::survey::Survey;
use crate::Error;
use crate::fuse::kernel::{Built, Operand};
use crate::fuse::{Fused, GroupKind, zeros};
use crate::uses::{Uses, alias, moving, root};
use crate::weights::Weights;
use rdc_ir::program::{Buffer, Entry, Input, KvPolicy, Launch, LaunchArg, Offset, Place, Step};
use rdc_ir::{ArgRole, Func, Loc, Op, OpId, Opcode, RegionId, Type, ValueDef, ValueId};
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
}

/// Plans one function: its schedule without barriers, and what places in the arena depend on, by buffer.
///
/// # Errors
/// As [`super::build`].
pub fn plan(fused: Fused, weights: &mut Weights, kernels: &mut Kernels) -> Result<(Entry, Vec<Life>), Error> {
    let Fused { func, uses, regions } = fused;
    let func = &func;
    let survey = Survey::new(func, &uses, weights, regions);
    let mut planner = Planner {
        func,
        uses,
        survey,
        weights,
        kernels,
        buffers: Vec::new(),
        lives: Vec::new(),
        weight_buffers: HashMap::new(),
        place: HashMap::new(),
        wanted: HashMap::new(),
        joined: HashSet::new(),
        path: Vec::new(),
        loops: 0,
    };
    let inputs = planner.inputs();
    planner.want_outputs()?;
    let mut steps = planner.region(func.body)?;
    let outputs = planner.outputs(&mut steps)?;
    let (buffers, lives) = (planner.buffers, planner.lives);
    Ok((Entry { name: func.name.clone(), buffers, inputs, outputs, steps, arena: 0, live: 0 }, lives))
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct At {
    pub(super) buffer: usize,
    pub(super) offset: Offset,
}

impl At {
    pub(super) fn whole(buffer: usize) -> At {
        At { buffer, offset: Offset::Fixed(0) }
    }
}

pub(super) struct Planner<'a> {
    pub(super) func: &'a Func,
    pub(super) uses: Uses,
    pub(super) survey: Survey,
    pub(super) weights: &'a mut Weights,
    kernels: &'a mut Kernels,
    pub(super) buffers: Vec<Buffer>,
    pub(super) lives: Vec<Life>,
    weight_buffers: HashMap<usize, usize>,
    pub(super) place: HashMap<ValueId, At>,
    /// Places that values must be written to: outputs, next carried values, stacked results.
    pub(super) wanted: HashMap<ValueId, At>,
    /// Values whose parts are made where they belong.
    pub(super) joined: HashSet<ValueId>,
    pub(super) path: Vec<usize>,
    pub(super) loops: usize,
}

impl Planner<'_> {
    pub(super) fn error(&self, loc: Loc, message: impl std::fmt::Display) -> Error {
        Error::Unsupported { message: format!("`{}`: {message}", self.func.name), loc }
    }
    pub(super) fn buffer(&mut self, name: impl Into<String>, ty: Type, place: Place) -> usize {
        self.buffers.push(Buffer { name: name.into(), ty, pitch: None, place });
        self.lives.push(Life::default());
        self.buffers.len() - 1
    }
    /// A buffer of the arena that comes to life in the loops of `self.path`.
    pub(super) fn in_arena(&mut self, name: impl Into<String>, ty: Type) -> usize {
        let buffer = self.buffer(name, ty, Place::Arena(0));
        self.lives[buffer].arena = true;
        self.lives[buffer].home = self.path.clone();
        buffer
    }
    pub(super) fn name_of(&self, value: ValueId) -> String {
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
                let vocabulary = (arg.role == ArgRole::Ids).then(|| self.vocabulary(value)).flatten();
                Input { name: arg.name.clone(), role: arg.role, buffer, vocabulary }
            })
            .collect()
    }
    /// Emits the operations of a region.
    pub(super) fn region(&mut self, region: RegionId) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        for index in 0..self.survey.len(region) {
            let Some(item) = self.survey.item(region, index) else { continue };
            let first = item.group.ops.first().and_then(|&op| self.func.ops[op].results.first().copied());
            if let Some(value) = first.filter(|v| self.joined.contains(v)) {
                self.result(value);
            } else if let GroupKind::Loop(op) = item.group.kind {
                self.emit_loop(op, &mut steps)?;
            } else if let Some(value) = zeros(self.func, &item.group) {
                let buffer = self.result(value).buffer;
                steps.push(Step::Zero { buffer, beyond: None });
            } else if item.built.is_some() {
                let launch = self.launch(region, index)?;
                steps.push(Step::Launch(launch));
            }
        }
        Ok(steps)
    }
    /// Where a value that is about to be written goes.
    fn result(&mut self, value: ValueId) -> At {
        let at = match self.wanted.get(&value) {
            Some(&at) => at,
            None => At::whole(self.in_arena(self.name_of(value), self.func.ty(value).clone())),
        };
        self.place.insert(value, at);
        at
    }
    /// A value of this region that a launch uses up and whose memory one of its results may have.
    fn used_up(&self, region: RegionId, group: usize, built: &Built, result: ValueId) -> Option<At> {
        let values = built.args.iter().filter_map(|arg| match *arg {
            Operand::Value(value) => Some(root(self.func, value).0),
            Operand::Slot(_) => None,
        });
        let mut owners = values.filter(|&v| {
            let at = self.place.get(&v).copied();
            let life = at.filter(|at| at.offset == Offset::Fixed(0)).map(|at| &self.lives[at.buffer]);
            let own = life.is_some_and(|l| l.arena && !l.to_the_end && l.home == self.path);
            let here = self.func.def_op(v).is_some_and(|op| self.uses.region(op) == region);
            let yielded = || self.func.regions[region].yields.iter().any(|&y| root(self.func, y).0 == v);
            own && here && !self.wanted.contains_key(&v) && !yielded()
        });
        let found = owners.find(|&v| {
            self.survey.takes_over(self.func, &self.uses, region, group, v, result)
                && self.survey.free_at(self.func, &self.uses, region, group, v, result)
        });
        found.and_then(|v| self.place.get(&v).copied())
    }
    fn launch(&mut self, region: RegionId, index: usize) -> Result<Launch, Error> {
        let mut reused = HashMap::new();
        if let Some(built) = self.survey.built(region, index) {
            for &value in built.results.iter().filter(|v| !self.wanted.contains_key(v)) {
                let at = self.used_up(region, index, built, value);
                if let Some(at) = at.filter(|at| !reused.values().any(|other| other == at)) {
                    reused.insert(value, at);
                }
            }
        }
        let taken = self.survey.item(region, index).and_then(|item| item.built.take());
        let Some(built) = taken else { return Err(self.error(Loc::default(), "a kernel was planned twice")) };
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
            let at = match reused.get(&value) {
                Some(&at) => {
                    self.place.insert(value, at);
                    at
                }
                None => self.result(value),
            };
            args.push(LaunchArg { buffer: at.buffer, offset: at.offset });
        }
        Ok(Launch { kernel: self.kernels.index(built.kernel), args, waits: false, locs: built.locs })
    }

    fn is_view(&self, value: ValueId) -> bool {
        let (value, _) = root(self.func, value);
        match self.func.values[value].def {
            ValueDef::Result(op, 1) => self.func.ops[op].opcode == Opcode::CacheUpdate,
            _ => false,
        }
    }
    /// Where a value is; aliases, weights and views are found on demand.
    pub(super) fn place_of(&mut self, value: ValueId, loc: Loc) -> Result<At, Error> {
        if let Some(&at) = self.place.get(&value) {
            return Ok(at);
        }
        let at = if let Some(found) = self.weights.stored(self.func, value) {
            let index = self.weights.index(found.weight);
            At { buffer: self.weight_buffer(index), offset: Offset::Fixed(found.offset) }
        } else {
            match self.func.values[value].def {
                // An argument beyond those of the function: a cache private to one attention.
                ValueDef::Arg(..) => At::whole(self.in_arena(self.name_of(value), self.func.ty(value).clone())),
                ValueDef::Result(id, index) => {
                    let op = &self.func.ops[id];
                    match (op.opcode, index) {
                        (Opcode::CacheUpdate, 0) => self.place_of(op.operands[0], op.loc)?,
                        (Opcode::CacheUpdate, _) => self.slot_of(id)?,
                        (Opcode::Index, _) if let Some(stack) = moving(self.func, &self.uses, id) => {
                            let at = self.place_of(stack, op.loc)?;
                            if at.offset != Offset::Fixed(0) {
                                return Err(self.error(op.loc, "a part of a stack is used on its own"));
                            }
                            At { buffer: at.buffer, offset: Offset::Step { stride: self.func.ty(value).bytes() } }
                        }
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
    /// The buffer of a weight.
    pub(super) fn weight_buffer(&mut self, index: usize) -> usize {
        if let Some(&buffer) = self.weight_buffers.get(&index) {
            return buffer;
        }
        let (name, ty) = (self.weights.get(index).name.clone(), self.weights.get(index).ty.clone());
        let buffer = self.buffer(name, ty, Place::Weight(index));
        self.weight_buffers.insert(index, buffer);
        buffer
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
