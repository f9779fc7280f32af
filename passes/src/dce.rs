//! Dead code: operations, carried values and stacked results of loops that nothing needs.
//!
//! A value is live if the function returns it, or a live operation uses it. Of a loop, a carried value is live if its
//! result or its argument in the body is; then its initial value and its yield are too. The trip count and the exit
//! condition are live with the loop. A loop with no live result goes. Caches are linear, so a function that is given one returns it,
//! which keeps every update alive.
use rdc_ir::{Attr, Func, Module, OpId, Opcode, RegionId, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// Removes dead code from every function.
pub fn run(module: &mut Module) {
    for func in &mut module.funcs {
        let live = live_values(func);
        sweep(func, func.body, &live);
    }
}

fn live_values(func: &Func) -> HashSet<ValueId> {
    // The loop that owns each region.
    let owner: HashMap<RegionId, OpId> =
        func.walk().iter().flat_map(|&(_, op)| func.ops[op].regions.iter().map(move |&r| (r, op))).collect();
    let mut live = HashSet::new();
    let mut work: Vec<ValueId> = func.regions[func.body].yields.clone();
    while let Some(value) = work.pop() {
        if !live.insert(value) {
            continue;
        }
        match func.values[value].def {
            ValueDef::Result(op, index) if func.ops[op].opcode == Opcode::Loop => {
                work.extend(loop_needs(func, op));
                work.extend(result_needs(func, op, index));
            }
            ValueDef::Result(op, _) => work.extend(&func.ops[op].operands),
            ValueDef::Arg(region, index) => {
                if let Some(&op) = owner.get(&region) {
                    work.extend(loop_needs(func, op));
                    if index >= 2 {
                        work.extend(result_needs(func, op, index - 2));
                    }
                }
            }
        }
    }
    live
}

/// What a loop needs to run at all: its trip count and exit condition.
fn loop_needs(func: &Func, op: OpId) -> Vec<ValueId> {
    let data = &func.ops[op];
    let mut needs = vec![data.operands[0]];
    if data.flag("exit") {
        needs.push(func.regions[data.regions[0]].yields[data.operands.len() - 1]);
    }
    needs
}

/// What a result of a loop needs: of a carried one the initial value and the yield, of a stacked one the yield.
fn result_needs(func: &Func, op: OpId, index: usize) -> Vec<ValueId> {
    let data = &func.ops[op];
    let carried = data.operands.len() - 1;
    let yields = &func.regions[data.regions[0]].yields;
    if index < carried {
        vec![data.operands[index + 1], yields[index]]
    } else if index > carried {
        vec![yields[index - 1 + data.flag("exit") as usize]]
    } else {
        vec![]
    }
}

fn sweep(func: &mut Func, region: RegionId, live: &HashSet<ValueId>) {
    let mut kept = Vec::new();
    let mut replaced = HashMap::new();
    for op in func.regions[region].ops.clone() {
        let is_loop = func.ops[op].opcode == Opcode::Loop;
        if !func.ops[op].results.iter().any(|v| live.contains(v)) {
            continue;
        }
        if is_loop {
            let body = func.ops[op].regions[0];
            kept.push(narrow_loop(func, op, live, &mut replaced));
            sweep(func, body, live);
        } else {
            kept.push(op);
        }
    }
    func.regions[region].ops = kept;
    func.replace_uses(&replaced);
}

/// The loop without its dead carried and stacked values.
fn narrow_loop(func: &mut Func, op: OpId, live: &HashSet<ValueId>, replaced: &mut HashMap<ValueId, ValueId>) -> OpId {
    let data = func.ops[op].clone();
    let body = data.regions[0];
    let (args, yields) = (func.regions[body].args.clone(), func.regions[body].yields.clone());
    let carried = data.operands.len() - 1;
    let exit = data.flag("exit") as usize;
    let kept: Vec<usize> =
        (0..carried).filter(|&i| live.contains(&data.results[i]) || live.contains(&args[i + 2])).collect();
    let stacked: Vec<usize> = (carried + 1..data.results.len()).filter(|&i| live.contains(&data.results[i])).collect();
    if kept.len() == carried && stacked.len() + carried + 1 == data.results.len() {
        return op;
    }
    let results: Vec<usize> = kept.iter().copied().chain([carried]).chain(stacked.iter().copied()).collect();
    let types = results.iter().map(|&i| func.ty(data.results[i]).clone()).collect();
    let operands = std::iter::once(data.operands[0]).chain(kept.iter().map(|&i| data.operands[i + 1])).collect();
    let mut attrs = data.attrs.clone();
    // The op table orders them max_steps, exit, stacked.
    attrs[2] = Attr::Int(stacked.len() as i64);
    let new = func.make_op(Opcode::Loop, operands, attrs, types, vec![body], data.loc);
    for (&old, &new) in results.iter().zip(&func.ops[new].results.clone()) {
        let old = data.results[old];
        func.values[new].name = func.values[old].name.clone();
        replaced.insert(old, new);
    }
    let new_args: Vec<ValueId> = [0, 1].into_iter().chain(kept.iter().map(|&i| i + 2)).map(|i| args[i]).collect();
    for (i, &arg) in new_args.iter().enumerate() {
        func.values[arg].def = ValueDef::Arg(body, i);
    }
    let region = &mut func.regions[body];
    region.args = new_args;
    region.yields = kept
        .iter()
        .copied()
        .chain((0..exit).map(|i| carried + i))
        .chain(stacked.iter().map(|&i| i - 1 + exit))
        .map(|i| yields[i])
        .collect();
    new
}
