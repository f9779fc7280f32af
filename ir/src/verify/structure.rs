//! Ids, ownership of operations and regions, definitions before uses.
use super::{Checker, type_problem};
use crate::entity::{Entity, OpId, RegionId, ValueId};
use crate::module::ValueDef;
use crate::parse::MAX_DEPTH;
use std::collections::HashSet;

/// What the walk over the regions has met.
struct Walk {
    ops: HashSet<OpId>,
    regions: HashSet<RegionId>,
    /// Values that can be used at the place of the walk.
    visible: HashSet<ValueId>,
    ok: bool,
}

impl Checker<'_> {
    /// Checks the structure; says whether ids are valid and counts match, so that other checks may index by them.
    pub(super) fn structure(&mut self) -> bool {
        let func = self.func;
        let mut walk = Walk { ops: HashSet::new(), regions: HashSet::new(), visible: HashSet::new(), ok: true };
        let Some(body) = func.regions.get(func.body) else {
            self.fail("the body is not a region of the function");
            return false;
        };
        if body.args.len() != func.args.len() || body.yields.len() != func.outputs.len() {
            self.fail(format!(
                "{} arguments and {} outputs, but the body has {} arguments and {} yields",
                func.args.len(),
                func.outputs.len(),
                body.args.len(),
                body.yields.len()
            ));
            walk.ok = false;
        }
        self.region(func.body, None, 0, &mut walk);
        walk.ok
    }
    fn broken(&mut self, walk: &mut Walk, owner: Option<OpId>, message: String) {
        walk.ok = false;
        match owner {
            Some(op) => self.fail_op(op, message),
            None => self.fail(message),
        }
    }
    fn region(&mut self, region: RegionId, owner: Option<OpId>, depth: usize, walk: &mut Walk) {
        let Some(data) = self.func.regions.get(region) else {
            return self.broken(walk, owner, format!("{region:?} does not exist"));
        };
        if !walk.regions.insert(region) {
            return self.broken(walk, owner, format!("{region:?} has two owners"));
        }
        if depth > MAX_DEPTH {
            return self.broken(walk, owner, format!("regions are nested more than {MAX_DEPTH} deep"));
        }
        let mut defined = Vec::new();
        for (i, &arg) in data.args.iter().enumerate() {
            self.define(arg, ValueDef::Arg(region, i), owner, walk, &mut defined);
        }
        for &id in &data.ops {
            let Some(op) = self.func.ops.get(id) else {
                self.broken(walk, owner, format!("{id:?} does not exist"));
                continue;
            };
            if !walk.ops.insert(id) {
                self.broken(walk, Some(id), "the operation stands in two places".into());
                continue;
            }
            for &operand in &op.operands {
                self.usable(operand, Some(id), walk);
            }
            for &inner in &op.regions {
                self.region(inner, Some(id), depth + 1, walk);
            }
            for (i, &result) in op.results.iter().enumerate() {
                self.define(result, ValueDef::Result(id, i), Some(id), walk, &mut defined);
            }
        }
        for &value in &data.yields {
            self.usable(value, owner, walk);
        }
        for value in defined {
            walk.visible.remove(&value);
        }
    }
    fn define(
        &mut self,
        value: ValueId,
        def: ValueDef,
        owner: Option<OpId>,
        walk: &mut Walk,
        defined: &mut Vec<ValueId>,
    ) {
        let Some(data) = self.func.values.get(value) else {
            return self.broken(walk, owner, format!("value {} does not exist", value.index()));
        };
        if data.def != def {
            self.broken(walk, owner, format!("value {} says it is defined elsewhere", value.index()));
        }
        if let Some(problem) = type_problem(&data.ty) {
            self.broken(walk, owner, problem);
        }
        walk.visible.insert(value);
        defined.push(value);
    }
    fn usable(&mut self, value: ValueId, owner: Option<OpId>, walk: &mut Walk) {
        if !walk.visible.contains(&value) {
            let name = crate::print::Names::new(self.func).get(value);
            self.broken(walk, owner, format!("{name} is not defined before this use"));
        }
    }
}
