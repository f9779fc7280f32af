//! Weight layout: products with weights read panels that are packed once.
//!
//! - `matmul(x, wᵀ)` whose `w` is made of pieces of parameters becomes `packed_matmul(x, pack(w))`. A product with any other
//!   weight (transposed in the checkpoint, or computed from parameters) stays as it is.
//! - Products of one input become one product over the stacked weights, followed by slices (query, key, value; gate, up).
//!   A bias that each part then gets before it is split into heads is added after the split instead, where the kernels
//!   that consume the heads expect it.
//! - If the result of a product falls into two halves that meet again element by element (a gated activation), its
//!   weight is packed with the two halves side by side in each panel, so that they meet in registers.
//! - A table that is a weight of a product too is read from that weight's panels.
//! - The weights are stored in the type that the options ask for, see [`WeightType`]. int8 scales come from whole rows of a
//!   parameter, so that they do not depend on how it is split. With bf16, what is left of the parameters is rounded as well.
//!
//! One weight has one layout in all functions, so that they share its memory: products are joined, and parts used, only if
//! every function can do the same (in training, parts are used wherever they can be: a second pack takes little).
//!
//! Packing stays in the IR as operations on parameters; hoisting takes them out of loops.
//!
//! In training parameters change, so packs are computed as everything else is ([`run_for_training`]). Then products are joined
//! only if their weights are one piece of one parameter, tables are read as they are, and a product with a weight as the
//! checkpoint holds it, `matmul(dy, w)`, is one with the packed transpose. What products are left take operands of rank 2.
mod training;
mod weight;

use crate::analysis;
use crate::options::WeightType;
use rdc_ir::{Attr, Builder, DType, Func, Module, OpId, Opcode, RegionId, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use weight::{Layout, Weight};

/// A product with fewer columns than this is not joined with others.
const NARROW: usize = 4;

/// Lays out the weights of every function for panels of width `nr`.
pub fn run(module: &mut Module, dtype: WeightType, nr: usize) {
    let surveys = module.funcs.iter().map(|func| Survey::of(func, false)).collect();
    lay_out(module, surveys, dtype, nr, false);
}

/// Lays out the weights of every function, as parameters that change, for panels of width `nr`.
pub fn run_for_training(module: &mut Module, nr: usize) {
    let surveys = module.funcs.iter().map(|func| Survey::of(func, true)).collect();
    lay_out(module, surveys, WeightType::F32, nr, true);
    training::products(module, nr);
}

fn lay_out(module: &mut Module, surveys: Vec<Survey>, dtype: WeightType, nr: usize, training: bool) {
    let plan = Plan { training, ..Plan::new(&surveys, dtype, nr) };
    for (i, survey) in surveys.iter().enumerate() {
        let mut func = std::mem::replace(&mut module.funcs[i], Func::new(""));
        let params: Vec<OpId> =
            func.walk().into_iter().map(|(_, op)| op).filter(|&op| func.ops[op].opcode == Opcode::Param).collect();
        rewrite(&mut func, module, survey, &plan);
        if dtype == WeightType::Bf16 {
            round(&mut func, &params);
        }
        module.funcs[i] = func;
    }
}

/// Products of one input with weights made of pieces of parameters.
struct Group {
    /// The products, in order.
    sites: Vec<OpId>,
    /// Their weights.
    weights: Vec<Weight>,
    /// Whether the result, were the products joined, falls into two halves that meet again.
    halves: bool,
    /// Where results get a bias and are then split into heads.
    heads: Vec<Heads>,
}

/// `reshape(add(x, bias))` with x the result of a product, bias a row, and heads `[H, D]` made of the last axis.
#[derive(Clone, Copy)]
struct Heads {
    reshape: OpId,
    x: ValueId,
    bias: ValueId,
}

impl Group {
    fn joined(&self) -> Weight {
        Weight::stack(&self.weights)
    }
}

/// What a function does with weights.
struct Survey {
    /// Products that could be one, and single ones.
    groups: Vec<Group>,
    /// Gathers from weights made of pieces.
    gathers: HashMap<OpId, Weight>,
}

impl Survey {
    fn of(func: &Func, training: bool) -> Survey {
        let uses = Uses::of(func);
        let mut survey = Survey { groups: Vec::new(), gathers: HashMap::new() };
        let mut by_input: HashMap<(RegionId, ValueId), usize> = HashMap::new();
        for (region, op) in func.walk() {
            let data = &func.ops[op];
            if data.opcode == Opcode::Gather && !training {
                survey.gathers.extend(Weight::read(func, data.operands[0]).map(|w| (op, w)));
            }
            if data.opcode != Opcode::Matmul || data.flag("trans_a") || !data.flag("trans_b") {
                continue;
            }
            let (x, w, result) = (data.operands[0], data.operands[1], data.results[0]);
            let Some(weight) = Weight::read(func, w).filter(|w| !training || w.is_piece()) else { continue };
            // A narrow product, or one whose result leaves the region as it is, would gain nothing and cost a copy.
            let joins = weight.n() >= NARROW && !uses.yielded.contains(&result);
            let goes_with = |group: &usize| {
                !training || Weight::stack(survey.groups[*group].weights.iter().chain([&weight])).is_piece()
            };
            let known = by_input.get(&(region, x)).copied().filter(goes_with);
            let index = known.filter(|_| joins).unwrap_or(survey.groups.len());
            if index == survey.groups.len() {
                if joins {
                    by_input.insert((region, x), index);
                }
                survey.groups.push(Group { sites: vec![], weights: vec![], halves: false, heads: vec![] });
            }
            survey.groups[index].sites.push(op);
            survey.groups[index].weights.push(weight);
        }
        for group in &mut survey.groups {
            group.halves = uses.halves(func, group).is_some_and(|(a, b)| uses.meet(func, a, b, training));
            group.heads = group.sites.iter().filter_map(|&site| uses.heads(func, func.ops[site].results[0])).collect();
        }
        survey
    }
}

/// Who uses each value.
struct Uses {
    users: HashMap<ValueId, Vec<OpId>>,
    yielded: HashSet<ValueId>,
}

impl Uses {
    fn of(func: &Func) -> Uses {
        let mut uses =
            Uses { users: HashMap::new(), yielded: func.regions[func.body].yields.iter().copied().collect() };
        for (_, op) in func.walk() {
            for &operand in &func.ops[op].operands {
                uses.users.entry(operand).or_default().push(op);
            }
            for &region in &func.ops[op].regions {
                uses.yielded.extend(&func.regions[region].yields);
            }
        }
        uses
    }
    fn users(&self, value: ValueId) -> &[OpId] {
        self.users.get(&value).map_or(&[], Vec::as_slice)
    }

    /// The bias and the split into heads that are all that happens to a value.
    fn heads(&self, func: &Func, x: ValueId) -> Option<Heads> {
        let only_user = |v: ValueId| match self.users(v) {
            [op] if !self.yielded.contains(&v) => Some(*op),
            _ => None,
        };
        let add = &func.ops[only_user(x)?];
        let bias = add.operands.iter().copied().find(|&v| v != x)?;
        let is_row = add.opcode == Opcode::Add && func.ty(bias).shape == [func.ty(x).last()];
        let reshape = only_user(add.results[0])?;
        let (from, to) = (&func.ty(x).shape, &func.ty(func.ops[reshape].results[0]).shape);
        let splits = func.ops[reshape].opcode == Opcode::Reshape
            && to.len() == from.len() + 1
            && to[..from.len() - 1] == from[..from.len() - 1];
        (is_row && splits).then_some(Heads { reshape, x, bias })
    }

    /// The two halves that the result of a group falls into: the results of two products of equal width, or two slices.
    fn halves(&self, func: &Func, group: &Group) -> Option<(ValueId, ValueId)> {
        let result = |op: OpId| func.ops[op].results[0];
        match group.sites[..] {
            [a, b] if group.weights[0].n() == group.weights[1].n() => Some((result(a), result(b))),
            [site] => {
                let value = result(site);
                let (axis, n) = (func.ty(value).rank() - 1, func.ty(value).last());
                let &[a, b] = self.users(value) else { return None };
                let range = |op: OpId| {
                    let op = &func.ops[op];
                    let last = op.opcode == Opcode::Slice && op.size("axis") == axis;
                    last.then(|| (op.size("start"), op.size("end")))
                };
                let (low, high) = ((0, n / 2), (n / 2, n));
                let whole = !self.yielded.contains(&value) && n % 2 == 0;
                match (range(a)?, range(b)?) {
                    (p, q) if whole && p == low && q == high => Some((result(a), result(b))),
                    (p, q) if whole && p == high && q == low => Some((result(b), result(a))),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Whether two values are used by elementwise operations, and one of these depends on both. In training other uses do
    /// not matter: values are kept for the way back.
    fn meet(&self, func: &Func, a: ValueId, b: ValueId, training: bool) -> bool {
        let elementwise = |&op: &OpId| {
            let op = &func.ops[op];
            op.opcode.is_elementwise() && func.ty(op.results[0]).shape == func.ty(a).shape
        };
        let reach = |from: ValueId| {
            let mut seen = HashSet::new();
            let mut work = vec![from];
            while let Some(value) = work.pop() {
                for &op in self.users(value).iter().filter(|op| elementwise(op)) {
                    if seen.insert(op) {
                        work.push(func.ops[op].results[0]);
                    }
                }
            }
            seen
        };
        let only = |v: ValueId| training || !self.yielded.contains(&v) && self.users(v).iter().all(elementwise);
        only(a) && only(b) && !reach(a).is_disjoint(&reach(b))
    }
}

/// What holds for all functions.
struct Plan {
    dtype: WeightType,
    nr: usize,
    /// Whether each product is by itself as to parts.
    training: bool,
    /// The lists of weights that are joined.
    joined: BTreeSet<Vec<Weight>>,
    /// The weights, joined where they are, that are packed in two parts.
    halved: BTreeSet<Weight>,
    /// The tables that are read from panels.
    packed_tables: BTreeSet<Weight>,
}

impl Plan {
    fn new(surveys: &[Survey], dtype: WeightType, nr: usize) -> Plan {
        let groups = || surveys.iter().flat_map(|s| &s.groups);
        let factors: BTreeSet<&Weight> = groups().flat_map(|g| &g.weights).collect();
        let tables: BTreeSet<&Weight> = surveys.iter().flat_map(|s| s.gathers.values()).collect();
        // bf16 tables are always packed: the panels are half the size of the rounded f32 rows.
        let packed_tables: BTreeSet<Weight> =
            tables.into_iter().filter(|w| dtype == WeightType::Bf16 || factors.contains(w)).cloned().collect();
        let mut groups_of: BTreeMap<&Weight, BTreeSet<&[Weight]>> = BTreeMap::new();
        for group in groups() {
            for weight in &group.weights {
                groups_of.entry(weight).or_default().insert(&group.weights);
            }
        }
        let joined: BTreeSet<Vec<Weight>> = groups()
            .map(|g| &g.weights)
            .filter(|weights| weights.len() > 1)
            .filter(|weights| weights.iter().all(|w| groups_of[w].len() == 1 && !packed_tables.contains(w)))
            .filter(|weights| weights.iter().collect::<BTreeSet<_>>().len() == weights.len())
            .cloned()
            .collect();
        let mut halves: BTreeMap<Weight, bool> = BTreeMap::new();
        for group in groups() {
            if joined.contains(&group.weights) || group.weights.len() == 1 {
                *halves.entry(group.joined()).or_insert(true) &= group.halves;
            } else {
                halves.extend(group.weights.iter().map(|w| (w.clone(), false)));
            }
        }
        let halved = halves.into_iter().filter(|(w, h)| *h && !packed_tables.contains(w)).map(|(w, _)| w).collect();
        Plan { dtype, nr, training: false, joined, halved, packed_tables }
    }
    /// The layout of a table.
    fn layout(&self, weight: &Weight) -> Layout {
        self.in_halves(weight, self.halved.contains(weight))
    }
    /// The layout of a product's weight.
    fn layout_of(&self, unit: &Unit, weight: &Weight) -> Layout {
        if self.training { self.in_halves(weight, unit.halves) } else { self.layout(weight) }
    }
    fn in_halves(&self, w: &Weight, halves: bool) -> Layout {
        let nr = self.nr;
        let fits = nr.is_multiple_of(2) && w.n().is_multiple_of(2) && (w.n() / 2).is_multiple_of(nr / 2);
        Layout { nr, parts: if halves && fits { 2 } else { 1 } }
    }
}

/// The products to emit at an operation: several of them as one.
struct Unit<'a> {
    sites: &'a [OpId],
    weights: &'a [Weight],
    /// Whether the result falls into two halves that meet again.
    halves: bool,
}

fn rewrite(func: &mut Func, module: &Module, survey: &Survey, plan: &Plan) {
    let mut units: HashMap<OpId, Unit> = HashMap::new();
    let mut gone: HashSet<OpId> = HashSet::new();
    let mut heads: HashMap<OpId, Heads> = HashMap::new();
    for group in &survey.groups {
        let (sites, weights) = (&group.sites, &group.weights);
        let joined = plan.joined.contains(weights);
        let chunk = if joined { sites.len() } else { 1 };
        if joined {
            heads.extend(group.heads.iter().map(|h| (h.reshape, *h)));
        }
        for (sites, weights) in sites.chunks(chunk).zip(weights.chunks(chunk)) {
            let halves = group.halves && sites.len() == group.sites.len();
            units.insert(sites[0], Unit { sites, weights, halves });
            gone.extend(&sites[1..]);
        }
    }
    let mut replaced = HashMap::new();
    for region in analysis::regions_inside_out(func) {
        for op in std::mem::take(&mut func.regions[region].ops) {
            let mut b = Builder::at(func, region);
            b.loc = b.func.ops[op].loc;
            if let Some(unit) = units.get(&op) {
                product(&mut b, module, plan, unit, &mut replaced);
            } else if let Some(table) = survey.gathers.get(&op).filter(|w| plan.packed_tables.contains(w)) {
                let packed = table.pack(&mut b, module, plan.dtype, plan.layout(table));
                let operands: Vec<ValueId> =
                    [packed.w, b.func.ops[op].operands[1]].into_iter().chain(packed.scale).collect();
                let rows = b.op(Opcode::PackedGather, &operands, shape(table.n(), table.k(), 1));
                replace(&mut b, op, rows, &mut replaced);
            } else if let Some(&Heads { x, bias, .. }) = heads.get(&op) {
                let shape = b.func.ops[op].attrs.clone();
                let split = b.op(Opcode::Reshape, &[x], shape.clone());
                let sizes = shape[0].as_ints();
                let row = b.op(Opcode::Reshape, &[bias], vec![Attr::Ints(sizes[sizes.len() - 2..].to_vec())]);
                let biased = b.op(Opcode::Add, &[split, row], vec![]);
                replace(&mut b, op, biased, &mut replaced);
            } else if !gone.contains(&op) {
                func.regions[region].ops.push(op);
            }
        }
    }
    func.replace_uses(&replaced);
}

/// The attributes of an operation on a packed weight.
fn shape(n: usize, k: usize, parts: usize) -> Vec<Attr> {
    [n, k, parts].map(|n| Attr::Int(n as i64)).to_vec()
}

/// Appends one product for the sites, which share their input, and a slice for each.
fn product(b: &mut Builder, module: &Module, plan: &Plan, unit: &Unit, replaced: &mut HashMap<ValueId, ValueId>) {
    let weight = Weight::stack(unit.weights);
    let layout = plan.layout_of(unit, &weight);
    let packed = weight.pack(b, module, plan.dtype, layout);
    let x = b.func.ops[unit.sites[0]].operands[0];
    let operands: Vec<ValueId> = [x, packed.w].into_iter().chain(packed.scale).collect();
    let result = b.op(Opcode::PackedMatmul, &operands, shape(weight.n(), weight.k(), layout.parts));
    let axis = b.func.ty(result).rank() - 1;
    let mut start = 0;
    for (&site, part) in unit.sites.iter().zip(unit.weights) {
        b.loc = b.func.ops[site].loc;
        let value = b.slice(result, axis, (start, start + part.n()));
        replace(b, site, value, replaced);
        start += part.n();
    }
}

fn replace(b: &mut Builder, op: OpId, new: ValueId, replaced: &mut HashMap<ValueId, ValueId>) {
    let old = b.func.ops[op].results[0];
    b.func.values[new].name = b.func.values[old].name.clone();
    replaced.insert(old, new);
}

/// Rounds parameters to bf16 and back for all uses but the packing, which rounds by itself.
fn round(func: &mut Func, params: &[OpId]) {
    let mut rounded = HashMap::new();
    for (region, op) in func.walk() {
        if !params.contains(&op) {
            continue;
        }
        let value = func.ops[op].results[0];
        let mut b = Builder::after(func, region, op);
        let narrow = b.op(Opcode::Cast, &[value], vec![Attr::DType(DType::BF16)]);
        let wide = b.op(Opcode::Cast, &[narrow], vec![Attr::DType(DType::F32)]);
        func.inherit_name(value, wide);
        rounded.insert(value, (narrow, wide));
    }
    func.replace_uses(&rounded.iter().map(|(&value, &(_, wide))| (value, wide)).collect());
    for (value, (narrow, _)) in rounded {
        if let Some(cast) = func.def_op(narrow) {
            func.ops[cast].operands = vec![value];
        }
    }
}
