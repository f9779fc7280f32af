//! What is known of a function before anything has a place: its groups and their kernels, who reads each value and when,
//! and which carried values one buffer serves.
//!
//! A carried value needs one buffer if everything that reads it comes before what writes the next one, or is that kernel
//! itself, element by element. A loop inside that takes it as an initial value and hands its result back counts as one
//! kernel if one buffer serves the value there too.
use super::share::may_share;
use crate::analysis;
use crate::fuse::kernel::{Built, Operand};
use crate::fuse::{GroupKind, Item};
use crate::uses::{Uses, moving, root};
use crate::weights::Weights;
use rdc_ir::{Func, OpId, Opcode, RegionId, ValueId};
use std::collections::{HashMap, HashSet};

/// A reading of memory by a group of a region.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Read {
    /// The place of the group in the order of the region.
    group: usize,
    /// If the group is a loop that takes it as an initial value: the index.
    init: Option<usize>,
}

/// The survey of a function.
pub struct Survey {
    items: HashMap<RegionId, Vec<Item>>,
    /// The place of each operation's group in its region.
    at: HashMap<OpId, usize>,
    reads: HashMap<(RegionId, ValueId), Vec<Read>>,
    /// For each parameter one value that stands for all operations that name it.
    params: HashMap<String, ValueId>,
    in_place: HashMap<OpId, Vec<bool>>,
    handed: HashSet<(OpId, usize)>,
}

impl Survey {
    /// Surveys a function whose operations are grouped.
    pub fn new(func: &Func, uses: &Uses, weights: &Weights, items: HashMap<RegionId, Vec<Item>>) -> Survey {
        let mut survey = Survey {
            items,
            at: HashMap::new(),
            reads: HashMap::new(),
            params: HashMap::new(),
            in_place: HashMap::new(),
            handed: HashSet::new(),
        };
        let regions = analysis::regions_inside_out(func);
        for items in survey.items.values() {
            let places = items.iter().enumerate();
            survey.at.extend(places.flat_map(|(index, item)| item.group.ops.iter().map(move |&op| (op, index))));
        }
        for (_, id) in func.walk() {
            let op = &func.ops[id];
            if op.opcode == Opcode::Param {
                survey.params.entry(op.text("name").into()).or_insert(op.results[0]);
            }
        }
        let reader = Reader { func, uses, weights };
        for &region in &regions {
            survey.read(&reader, region);
        }
        for &region in &regions {
            if let Some(id) = uses.owner(region) {
                let in_place =
                    (0..func.ops[id].operands.len() - 1).map(|i| survey.one_buffer(func, uses, id, i)).collect();
                survey.in_place.insert(id, in_place);
            }
        }
        survey
    }
    /// The number of groups of a region.
    pub fn len(&self, region: RegionId) -> usize {
        self.items.get(&region).map_or(0, Vec::len)
    }
    /// A group of a region.
    pub fn item(&mut self, region: RegionId, index: usize) -> Option<&mut Item> {
        self.items.get_mut(&region)?.get_mut(index)
    }
    /// The kernel of a group, if it is one.
    pub fn built(&self, region: RegionId, index: usize) -> Option<&Built> {
        self.items.get(&region)?.get(index)?.built.as_ref()
    }
    /// Whether a group has one operation.
    pub fn is_alone(&self, region: RegionId, index: usize) -> bool {
        self.items.get(&region).and_then(|items| items.get(index)).is_some_and(|item| item.group.ops.len() == 1)
    }
    /// The place of an operation's group in its region; `None` for leaves.
    pub fn group(&self, op: OpId) -> Option<usize> {
        self.at.get(&op).copied()
    }
    /// Whether one buffer serves a carried value of a loop.
    pub fn in_place(&self, id: OpId, index: usize) -> bool {
        self.in_place.get(&id).is_some_and(|all| all.get(index) == Some(&true))
    }
    /// Whether a loop goes on in the buffer of a carried value of the loop around it.
    pub fn handed(&self, id: OpId, index: usize) -> bool {
        self.handed.contains(&(id, index))
    }
    /// The value that stands for a parameter.
    pub fn param(&self, name: &str) -> Option<ValueId> {
        self.params.get(name).copied()
    }
    /// Whether nothing of a region reads a value's memory after a group, and the group itself, if it does, only so that it
    /// may write `result` there.
    pub fn free_at(
        &self,
        func: &Func,
        uses: &Uses,
        region: RegionId,
        group: usize,
        owner: ValueId,
        result: ValueId,
    ) -> bool {
        let mut reads = self.reads.get(&(region, owner)).into_iter().flatten();
        let now = |read: &Read| read.group == group;
        let takes_over = || self.takes_over(func, uses, region, group, owner, result);
        reads.clone().all(|read| read.group <= group) && (!reads.any(now) || takes_over())
    }
    /// Whether the kernel of a group reads a value and may write a result over it.
    pub fn takes_over(
        &self,
        func: &Func,
        uses: &Uses,
        region: RegionId,
        group: usize,
        owner: ValueId,
        result: ValueId,
    ) -> bool {
        let Some(built) = self.built(region, group) else { return false };
        let Some(result) = built.results.iter().position(|&v| v == result) else { return false };
        let mut args = Vec::new();
        for (index, operand) in built.args.iter().enumerate() {
            if let Operand::Value(value) = *operand
                && self.owner(func, uses, value) == owner
            {
                let (root, offset) = root(func, value);
                let whole = self.stands_for(func, root) == owner && offset == 0;
                if !whole || func.ty(value).bytes() != func.ty(owner).bytes() {
                    return false;
                }
                args.push(index);
            }
        }
        built.kernel.results().nth(result).is_some_and(|result| may_share(&built.kernel, &args, result))
    }
    /// The value that owns a value's memory; one for all uses of a parameter.
    pub fn owner(&self, func: &Func, uses: &Uses, value: ValueId) -> ValueId {
        let (mut owner, _) = root(func, value);
        while let Some(stack) = func.def_op(owner).and_then(|op| moving(func, uses, op)) {
            owner = root(func, stack).0;
        }
        self.stands_for(func, owner)
    }
    fn stands_for(&self, func: &Func, owner: ValueId) -> ValueId {
        let param = func.defined_by(owner, Opcode::Param);
        param.and_then(|op| self.param(op.text("name"))).unwrap_or(owner)
    }

    /// Notes what the groups of a region read.
    fn read(&mut self, reader: &Reader, region: RegionId) {
        let Reader { func, uses, weights } = *reader;
        let mut found: Vec<(ValueId, OpId, Option<usize>)> = Vec::new();
        for item in self.items.get(&region).into_iter().flatten() {
            let Some(&first) = item.group.ops.first() else { continue };
            if let Some(built) = &item.built {
                let values =
                    built.args.iter().filter_map(|arg| if let Operand::Value(v) = arg { Some(*v) } else { None });
                found.extend(values.map(|v| (v, first, None)));
            }
            if let GroupKind::Loop(id) = item.group.kind {
                let operands = func.ops[id].operands.iter().enumerate();
                found.extend(operands.map(|(i, &v)| (v, id, i.checked_sub(1))));
            }
        }
        if let Some(id) = uses.owner(region) {
            let yields = func.regions[region].yields.iter();
            let outside = yields.filter(|&&v| uses.home(func, self.owner(func, uses, v)) != region);
            found.extend(outside.map(|&v| (v, id, None)));
        }
        for (value, op, init) in found {
            let owner = self.owner(func, uses, value);
            let home = if weights.stored(func, value).is_some() { func.body } else { uses.home(func, owner) };
            let (mut op, mut init) = (op, init);
            loop {
                let level = uses.region(op);
                if let Some(&group) = self.at.get(&op) {
                    self.reads.entry((level, owner)).or_default().push(Read { group, init });
                }
                match uses.owner(level) {
                    Some(around) if level != home => (op, init) = (around, None),
                    _ => break,
                }
            }
        }
    }

    fn one_buffer(&mut self, func: &Func, uses: &Uses, id: OpId, index: usize) -> bool {
        let op = &func.ops[id];
        let region = op.regions[0];
        let (arg, next) = (func.regions[region].args[2 + index], func.regions[region].yields[index]);
        let owner = root(func, next).0;
        let Some(def) = func.def_op(owner).filter(|_| !func.ty(arg).cache) else { return false };
        let Some(group) = self.group(def).filter(|_| uses.region(def) == region) else { return false };
        if func.ops[def].opcode != Opcode::Loop {
            return self.free_at(func, uses, region, group, arg, owner);
        }
        let result = func.ops[def].results.iter().position(|&v| v == owner).unwrap_or(usize::MAX);
        let reads = self.reads.get(&(region, arg)).cloned().unwrap_or_default();
        let now: Vec<&Read> = reads.iter().filter(|read| read.group >= group).collect();
        if !self.in_place(def, result) {
            return false;
        }
        match now[..] {
            [] => true,
            [read] => {
                let handed = *read == Read { group, init: Some(result) } && func.ops[def].operands[1 + result] == arg;
                if handed {
                    self.handed.insert((def, result));
                }
                handed
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    func: &'a Func,
    uses: &'a Uses,
    weights: &'a Weights,
}
