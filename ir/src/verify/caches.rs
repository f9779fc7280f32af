//! Linear caches: one use each, slots in range, short-lived views.
use super::Checker;
use crate::entity::{OpId, RegionId, ValueId};
use crate::module::{Op, ValueDef};
use crate::ops::Opcode;
use crate::program::KvPolicy;
use std::collections::HashMap;

/// Where a value is used.
#[derive(Clone, Copy)]
struct Use {
    region: RegionId,
    /// Position in the region's list of operations; that of the end for a yield.
    position: usize,
    /// The user; none for a yield.
    op: Option<OpId>,
}

/// The policy of a `kv_slot`, if its attributes say one.
pub fn kv_policy(op: &Op) -> Option<KvPolicy> {
    let arg = usize::try_from(op.int("arg")).ok();
    match op.text("policy") {
        "full" => Some(KvPolicy::Full),
        "modulo" => arg.filter(|&k| k > 0).map(KvPolicy::Modulo),
        "block" => arg.filter(|&m| m > 0).map(KvPolicy::Block),
        "anchor" => Some(KvPolicy::Anchor),
        _ => None,
    }
}

impl Checker<'_> {
    /// Checks the rules of caches in a function whose structure and operations are sound.
    pub(super) fn caches(&mut self) {
        let func = self.func;
        let mut uses: HashMap<ValueId, Vec<Use>> = HashMap::new();
        let mut regions = vec![(func.body, None)];
        let mut owner: HashMap<RegionId, OpId> = HashMap::new();
        while let Some((region, by)) = regions.pop() {
            if let Some(op) = by {
                owner.insert(region, op);
            }
            let data = &func.regions[region];
            for (position, &id) in data.ops.iter().enumerate() {
                for &operand in &func.ops[id].operands {
                    uses.entry(operand).or_default().push(Use { region, position, op: Some(id) });
                }
                regions.extend(func.ops[id].regions.iter().map(|&r| (r, Some(id))));
            }
            for &value in &data.yields {
                uses.entry(value).or_default().push(Use { region, position: data.ops.len(), op: None });
            }
        }
        for &arg in &func.regions[func.body].args {
            self.linear(arg, func.body, None, &uses);
        }
        for (region, id) in func.walk() {
            let op = &func.ops[id];
            for &result in &op.results {
                self.linear(result, region, Some(id), &uses);
            }
            for &inner in &op.regions {
                for &arg in &func.regions[inner].args {
                    self.linear(arg, inner, Some(id), &uses);
                }
            }
            if op.opcode == Opcode::CacheUpdate {
                self.slot(op, id, &owner);
                self.view(op, id, region, &uses);
            }
        }
    }
    fn complain(&mut self, op: Option<OpId>, message: String) {
        match op {
            Some(op) => self.fail_op(op, message),
            None => self.fail(message),
        }
    }
    fn name(&self, value: ValueId) -> String {
        crate::print::Names::new(self.func).get(value)
    }
    fn linear(&mut self, value: ValueId, region: RegionId, op: Option<OpId>, uses: &HashMap<ValueId, Vec<Use>>) {
        if !self.func.ty(value).cache {
            return;
        }
        let uses = uses.get(&value).map_or(&[][..], |u| u);
        if uses.len() != 1 {
            let name = self.name(value);
            self.complain(op, format!("the cache {name} must have exactly one use, not {}", uses.len()));
        } else if uses[0].region != region {
            let name = self.name(value);
            self.complain(op, format!("the cache {name} is used in an inner region; a loop must carry it"));
        }
    }
    fn view(&mut self, op: &Op, id: OpId, region: RegionId, uses: &HashMap<ValueId, Vec<Use>>) {
        let (cache, view) = (op.results[0], op.results[1]);
        let consumer = uses.get(&cache).and_then(|u| u.first());
        let end = consumer.filter(|u| u.region == region).map_or(usize::MAX, |u| u.position);
        for u in uses.get(&view).map_or(&[][..], |u| u) {
            let by_loop = u.op.is_some_and(|op| self.func.ops[op].opcode == Opcode::Loop);
            let problem = match u.op {
                _ if u.region != region => "is used in an inner region",
                None => "is yielded",
                Some(_) if by_loop => "is carried by a loop",
                Some(_) if u.position >= end => "is used after the cache has been handed on",
                Some(_) => continue,
            };
            let name = self.name(view);
            self.fail_op(id, format!("the view {name} {problem}"));
        }
    }
    fn slot(&mut self, op: &Op, id: OpId, owner: &HashMap<RegionId, OpId>) {
        if self.func.ty(op.operands[3]).rank() > 0 {
            return;
        }
        let slots = self.func.ty(op.operands[0]).shape[0];
        match self.last_slot(op.operands[3], owner) {
            Some(last) if last >= slots as u64 => {
                self.fail_op(id, format!("the cache has {slots} slots, but slot {last} can occur"));
            }
            Some(_) => {}
            None => self.fail_op(id, "the slot must be a constant or a `kv_slot` of a loop's step"),
        }
    }
    /// The largest value that a slot can take.
    fn last_slot(&self, slot: ValueId, owner: &HashMap<RegionId, OpId>) -> Option<u64> {
        let func = self.func;
        let def = &func.ops[func.def_op(slot)?];
        match def.opcode {
            Opcode::Constant => constant(def),
            Opcode::KvSlot => {
                let (layer, layers, base) = (def.size("layer"), def.size("layers"), def.size("base"));
                let (policy, step) = (kv_policy(def)?, def.operands[0]);
                let last = match func.values[step].def {
                    ValueDef::Result(by, _) if func.ops[by].opcode == Opcode::Constant => {
                        let step = usize::try_from(constant(&func.ops[by])?).ok()?;
                        policy.slot(step, layer, layers)
                    }
                    // The structure check has made sure that the step is that of a loop around.
                    ValueDef::Arg(inner, 0) => {
                        let max_steps = func.ops[*owner.get(&inner)?].size("max_steps");
                        policy.slots(max_steps, layers).checked_sub(1)?
                    }
                    _ => return None,
                };
                (last as u64).checked_add(base as u64)
            }
            _ => None,
        }
    }
}

fn constant(op: &Op) -> Option<u64> {
    let value = op.float("value");
    (value >= 0.0 && value <= i32::MAX as f64).then_some(value as u64)
}
