//! A loss function ready to be differentiated, with what is known about it.
use super::activity::Activity;
use super::{Options, is_steps, rules, unsupported};
use crate::Error;
use rdc_ir::{Func, Loc, OpId, Opcode, Param, RegionId, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// A parameter whose gradient is wanted.
pub(super) struct Weight {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Its value in the function, if it is used there.
    pub value: Option<ValueId>,
}

/// A loss function and what is known about it.
pub(super) struct Problem<'o> {
    /// The function. Each parameter is one operation at the start of the body.
    pub func: Func,
    /// The name of the gradient.
    pub name: String,
    /// The options.
    pub options: &'o Options,
    /// The parameters whose gradient is wanted.
    pub weights: Vec<Weight>,
    /// The loss.
    pub loss: ValueId,
    /// The argument that is the number of steps.
    pub steps: Option<ValueId>,
    /// Which values have cotangents.
    pub activity: Activity,
    home: HashMap<ValueId, RegionId>,
    variant: HashSet<ValueId>,
}

impl<'o> Problem<'o> {
    pub(super) fn new<'m>(
        loss: &Func,
        name: &str,
        weights: impl Iterator<Item = &'m Param>,
        options: &'o Options,
    ) -> Result<Problem<'o>, Error> {
        let mut func = loss.clone();
        let params = params_first(&mut func);
        let yields = &func.regions[func.body].yields;
        let output = func.outputs.iter().zip(yields).find(|(o, v)| o.name == "loss" && *func.ty(**v) == Type::f32([]));
        let Some((_, &loss)) = output else {
            return Err(unsupported(format!("{} has no output `loss` of type f32[]", func.name), Loc::default()));
        };
        let weights: Vec<Weight> = weights
            .map(|p| Weight { name: p.name.clone(), ty: p.ty.clone(), value: params.get(&p.name).copied() })
            .collect();
        let roots: Vec<ValueId> = weights.iter().filter_map(|w| w.value).collect();
        let args = func.args.iter().zip(&func.regions[func.body].args);
        let steps = args.into_iter().find(|(a, _)| is_steps(a.role)).map(|(_, &v)| v);
        let activity = Activity::new(&func, &roots, loss);
        let (home, variant) = places(&func);
        let problem = Problem { func, name: name.into(), options, weights, loss, steps, activity, home, variant };
        problem.check()?;
        Ok(problem)
    }
    /// The region that defines a value.
    pub(super) fn home(&self, value: ValueId) -> RegionId {
        self.home.get(&value).copied().unwrap_or(self.func.body)
    }
    /// Whether a value changes with the arguments of the region that defines it. Others are parameters and constants, or in a
    /// loop are the same in every iteration.
    pub(super) fn is_variant(&self, value: ValueId) -> bool {
        self.variant.contains(&value)
    }
    /// The operation that defines a value, unless that is a region argument.
    pub(super) fn def(&self, value: ValueId) -> Option<OpId> {
        self.func.def_op(value)
    }
    /// Whether everything on the way from the parameters to the loss has a derivative.
    fn check(&self) -> Result<(), Error> {
        for (_, id) in self.func.walk() {
            let op = &self.func.ops[id];
            let active = op.results.iter().any(|&v| self.activity.active(v));
            let fail = |what: &str| Err(unsupported(format!("{}: {what}", op.opcode.info().mnemonic), op.loc));
            if active && op.opcode == Opcode::Loop && op.flag("reverse") {
                return fail("a loop that runs backwards has no derivative");
            }
            if op.opcode == Opcode::Attention && op.results.get(1).is_some_and(|&lse| self.activity.active(lse)) {
                return fail("the log-sum-exp has no derivative");
            }
            for (i, &operand) in op.operands.iter().enumerate() {
                if active
                    && self.activity.varied(operand)
                    && let Some(why) = rules::missing(op.opcode, i)
                {
                    return fail(why);
                }
            }
        }
        Ok(())
    }
}

/// Makes each parameter one operation at the start of the body; returns their values by name.
fn params_first(func: &mut Func) -> HashMap<String, ValueId> {
    let mut first = HashMap::new();
    let mut replaced = HashMap::new();
    let mut front = Vec::new();
    for (region, id) in func.walk() {
        let op = &func.ops[id];
        if op.opcode != Opcode::Param {
            continue;
        }
        let (name, value) = (op.text("name").to_string(), op.results[0]);
        func.regions[region].ops.retain(|&o| o != id);
        match first.get(&name) {
            Some(&earlier) => _ = replaced.insert(value, earlier),
            None => {
                front.push(id);
                first.insert(name, value);
            }
        }
    }
    func.replace_uses(&replaced);
    func.regions[func.body].ops.splice(0..0, front);
    first
}

/// The region of every value, and which values change with the arguments of their region.
fn places(func: &Func) -> (HashMap<ValueId, RegionId>, HashSet<ValueId>) {
    let mut home: HashMap<ValueId, RegionId> = HashMap::new();
    let mut variant = HashSet::new();
    let enter = |region: RegionId, home: &mut HashMap<ValueId, RegionId>, variant: &mut HashSet<ValueId>| {
        for &arg in &func.regions[region].args {
            home.insert(arg, region);
            variant.insert(arg);
        }
    };
    enter(func.body, &mut home, &mut variant);
    for (region, id) in func.walk() {
        let op = &func.ops[id];
        let changes = |v: &ValueId| home.get(v) == Some(&region) && variant.contains(v);
        let changes = !op.regions.is_empty() || op.operands.iter().any(changes);
        for &result in &op.results {
            home.insert(result, region);
            if changes {
                variant.insert(result);
            }
        }
        op.regions.iter().for_each(|&inner| enter(inner, &mut home, &mut variant));
    }
    (home, variant)
}

/// The index of a region argument.
pub(super) fn arg_index(func: &Func, value: ValueId) -> Option<usize> {
    match func.values[value].def {
        ValueDef::Arg(_, index) => Some(index),
        ValueDef::Result(..) => None,
    }
}
