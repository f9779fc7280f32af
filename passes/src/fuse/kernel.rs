//! Makes a kernel of a group: a function of its own, with the values it takes and gives.
use super::attention::bias_of;
use super::columns;
use super::graph::{Group, GroupKind};
use super::matmul;
use super::rows;
use super::tiles::{self, Tiled};
use super::uses::{User, Uses, is_constant};
use rdc_ir::program::{Dispatch, Kernel, KernelKind, Target};
use rdc_ir::{Arg, ArgRole, Attr, DType, Func, Loc, OpId, Opcode, Output, RegionId, Type, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a launch passes for a pointer argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// A value.
    Value(ValueId),
    /// The slot that a cache update writes.
    Slot(OpId),
}

/// A kernel and what a launch of it takes and gives.
pub struct Built {
    /// The kernel; its name has no number yet.
    pub kernel: Kernel,
    /// Its arguments.
    pub args: Vec<Operand>,
    /// Its results that have a pointer.
    pub results: Vec<ValueId>,
    /// The lines of model text it comes from.
    pub locs: Vec<Loc>,
}

/// Makes the kernel of a group of `region`.
pub fn build(func: &Func, uses: &Uses, region: RegionId, group: &Group, target: &Target) -> Built {
    let mut maker = Maker { func, out: Func::new(""), map: HashMap::new(), slots: HashMap::new(), args: Vec::new() };
    let heads = matches!(group.kind, GroupKind::KvWrite | GroupKind::Attention(_) | GroupKind::DecodeAttention(_));
    match group.kind {
        GroupKind::Columns(sum) => maker.columns(group, sum),
        _ => group.ops.iter().for_each(|&op| maker.op(op, heads)),
    }
    let mut results = Vec::new();
    for &op in &group.ops {
        for (index, &value) in func.ops[op].results.iter().enumerate() {
            let is_update = func.ops[op].opcode == Opcode::CacheUpdate;
            let escapes = |user: &User| match *user {
                User::Yield(_) => true,
                User::Op(user) => uses.within(region, user).is_none_or(|user| !group.ops.contains(&user)),
            };
            // A view is read where it lies: in the cache.
            let linear = is_update && index == 0;
            if linear {
                maker.result(value);
            } else if !is_update && uses.of(value).iter().any(escapes) {
                let owner = owner(func, group, value);
                if !results.contains(&owner) {
                    maker.result(owner);
                    results.push(owner);
                }
            }
        }
    }
    let tiled = tile(func, group, target);
    let name = name(func, group, &tiled.kind);
    let (out, args) = (maker.out, maker.args);
    let flops = out.walk().iter().map(|&(_, op)| flops_of(&out, op)).fold(0, u64::saturating_add);
    let bytes = bytes_of(&out);
    let Tiled { kind, tasks, dispatch } = tiled;
    let pitches = BTreeMap::new();
    let kernel = Kernel { name, kind, func: out, pitches, tasks, dispatch, scratch: 0, flops, bytes };
    let mut locs: Vec<Loc> = group.ops.iter().map(|&op| func.ops[op].loc).filter(|loc| loc.line > 0).collect();
    locs.sort_by_key(|loc| (loc.line, loc.col));
    locs.dedup();
    Built { kernel, args, results, locs }
}

/// The value of a group that a value is another shape of: it has the memory, once.
fn owner(func: &Func, group: &Group, mut value: ValueId) -> ValueId {
    let within = |v: ValueId| func.def_op(v).filter(|op| group.ops.contains(op));
    while let Some(op) = within(value).map(|op| &func.ops[op])
        && op.opcode == Opcode::Reshape
        && within(op.operands[0]).is_some()
    {
        value = op.operands[0];
    }
    value
}

struct Maker<'f> {
    func: &'f Func,
    out: Func,
    map: HashMap<ValueId, ValueId>,
    slots: HashMap<OpId, ValueId>,
    args: Vec<Operand>,
}

impl Maker<'_> {
    fn arg(&mut self, operand: Operand, ty: Type, role: ArgRole) -> ValueId {
        let body = self.out.body;
        self.out.args.push(Arg { name: format!("a{}", self.args.len()), role });
        self.args.push(operand);
        self.out.add_arg(body, ty, None)
    }
    fn append(&mut self, opcode: Opcode, operands: Vec<ValueId>, attrs: Vec<Attr>, results: Vec<Type>) -> Vec<ValueId> {
        let op = self.out.make_op(opcode, operands, attrs, results, Vec::new(), Loc::default());
        let body = self.out.body;
        self.out.regions[body].ops.push(op);
        self.out.ops[op].results.clone()
    }
    fn op(&mut self, id: OpId, heads: bool) {
        let op = &self.func.ops[id];
        let types: Vec<Type> = op.results.iter().map(|&v| self.func.ty(v).clone()).collect();
        if op.opcode == Opcode::CacheUpdate {
            self.update(id, types);
            return;
        }
        let bias = bias_of(self.func, id).filter(|_| heads);
        let operands: Vec<ValueId> = match bias {
            // The head-shaped operand first, then the bias as [H, D].
            Some((x, bias)) if !self.map.contains_key(&bias) => {
                let ty = self.func.ty(bias);
                let heads = ty.with_shape(&ty.shape[ty.rank() - 2..]);
                vec![self.value(x), self.value_as(bias, heads)]
            }
            _ => op.operands.iter().map(|&v| self.operand(id, v)).collect(),
        };
        let results = self.append(op.opcode, operands, op.attrs.clone(), types);
        self.map.extend(op.results.iter().copied().zip(results));
    }
    /// A column sum and what is around it, all as matrices, columns, rows and scalars.
    fn columns(&mut self, group: &Group, sum: OpId) {
        let func = self.func;
        let Some(size) = columns::size(func, sum) else { return };
        let mut after = HashSet::new();
        for &id in &group.ops {
            let op = &func.ops[id];
            let behind = id == sum || op.operands.iter().any(|v| after.contains(v));
            let slices = columns::is_slice_of_rows(func, id, size.0);
            let ty = |v: ValueId| match func.ty(v) {
                ty if slices => ty.with_shape(vec![size.0, ty.last()]),
                ty => columns::canonical(ty, size, behind && id != sum),
            };
            let operands: Vec<ValueId> = op.operands.iter().map(|&v| self.value_as(v, ty(v))).collect();
            let result = op.results[0];
            if behind {
                after.insert(result);
            }
            let new = match op.opcode {
                Opcode::Reshape => operands[0],
                _ => {
                    let ty = columns::canonical(func.ty(result), size, behind);
                    let mut attrs = op.attrs.clone();
                    if slices {
                        attrs[0] = Attr::Int(1);
                    }
                    self.append(op.opcode, operands, attrs, vec![ty])[0]
                }
            };
            self.map.insert(result, new);
        }
    }
    /// A cache update on the one slot it writes.
    fn update(&mut self, id: OpId, mut types: Vec<Type>) {
        let op = &self.func.ops[id];
        types[0].shape[0] = 1;
        let slot = Operand::Slot(id);
        let cache = self.arg(slot, types[0].clone(), ArgRole::Cache);
        let (x, pos) = (self.value(op.operands[1]), self.value(op.operands[2]));
        let attrs = vec![Attr::Float(0.0), Attr::DType(DType::I32)];
        let zero = self.append(Opcode::Constant, vec![], attrs, vec![Type::scalar(DType::I32)])[0];
        let results = self.append(op.opcode, vec![cache, x, pos, zero], Vec::new(), types);
        self.slots.insert(id, results[0]);
        self.map.insert(op.results[1], results[1]);
    }
    /// The operand of an operation; views of keys and values lie in a cache.
    fn operand(&mut self, id: OpId, value: ValueId) -> ValueId {
        let op = &self.func.ops[id];
        let is_view = self.func.defined_by(value, Opcode::CacheUpdate).is_some();
        let mut ty = self.func.ty(value).clone();
        ty.cache = op.opcode == Opcode::Attention && op.operands[1..3].contains(&value) && is_view;
        self.value_as(value, ty)
    }
    fn value(&mut self, value: ValueId) -> ValueId {
        self.value_as(value, self.func.ty(value).clone())
    }
    fn value_as(&mut self, value: ValueId, ty: Type) -> ValueId {
        if let Some(&known) = self.map.get(&value) {
            return known;
        }
        let new = if is_constant(self.func, value) {
            let attrs = self.func.def_op(value).map(|op| self.func.ops[op].attrs.clone()).unwrap_or_default();
            let ty = self.func.ty(value).clone();
            self.append(Opcode::Constant, vec![], attrs, vec![ty])[0]
        } else {
            self.arg(Operand::Value(value), ty, ArgRole::Input)
        };
        self.map.insert(value, new);
        new
    }
    fn result(&mut self, value: ValueId) {
        let update = self.func.def_op(value).and_then(|op| self.slots.get(&op));
        let Some(&inner) = update.or_else(|| self.map.get(&value)) else { return };
        let name = format!("r{}", self.out.outputs.len());
        self.out.outputs.push(Output { name, stacked: false, updates: false });
        let body = self.out.body;
        self.out.regions[body].yields.push(inner);
    }
}

fn tile(func: &Func, group: &Group, target: &Target) -> Tiled {
    let generic = Tiled { kind: KernelKind::Generic, tasks: 1, dispatch: Dispatch::Static };
    match group.kind {
        GroupKind::Rows(rows) => tiles::rows(rows, rows::block(func, &group.ops)),
        GroupKind::Matmul(anchor) => {
            let (op, x) = (&func.ops[anchor], func.ty(func.ops[anchor].operands[0]));
            let nr = func.ty(op.operands[1]).shape[2];
            let around = matmul::around(func, &group.ops, anchor);
            tiles::matmul((x.rows(), op.size("n"), op.size("k")), nr, around, target)
        }
        GroupKind::KvWrite => {
            let is_update = |op: &&OpId| func.ops[**op].opcode == Opcode::CacheUpdate;
            let x = group.ops.iter().find(is_update).map(|&op| func.ty(func.ops[op].operands[1]));
            x.map_or(generic, |x| tiles::kv_write(x.shape[0] * x.shape[1]))
        }
        GroupKind::Attention(op) => {
            let q = &func.ty(func.ops[op].operands[0]).shape;
            tiles::attention(q[1], q[0] * q[2])
        }
        GroupKind::DecodeAttention(op) => {
            let k = &func.ty(func.ops[op].operands[1]).shape;
            Tiled { kind: KernelKind::DecodeAttention, tasks: k[0] * k[2], dispatch: Dispatch::Static }
        }
        GroupKind::AttentionGrad(op) => {
            let (q, k) = (&func.ty(func.ops[op].operands[0]).shape, &func.ty(func.ops[op].operands[1]).shape);
            tiles::attention_grad(q[1], k[0] * k[2])
        }
        GroupKind::Product(op) => {
            let (op, a) = (&func.ops[op], func.ty(func.ops[op].operands[0]));
            let (result, k) = (func.ty(op.results[0]), a.shape[a.rank() - if op.flag("trans_a") { 2 } else { 1 }]);
            let (batch, m, n) =
                (result.rows() / result.shape[result.rank() - 2], result.shape[result.rank() - 2], result.last());
            tiles::product(batch, (m, n, k), target)
        }
        GroupKind::Pack(op) => tiles::pack(func.ty(func.ops[op].results[0]).shape[0]),
        GroupKind::Columns(op) => {
            columns::size(func, op).map_or(generic, |(rows, columns)| tiles::columns(rows, columns, target))
        }
        GroupKind::ScatterAdd(op) => tiles::scatter_add(func.ty(func.ops[op].results[0]).shape[0]),
        GroupKind::Open | GroupKind::Generic | GroupKind::Loop(_) | GroupKind::Alias => generic,
    }
}

fn dims(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// What the kernel does, for symbols and people.
fn name(func: &Func, group: &Group, kind: &KernelKind) -> String {
    let result = |op: OpId| func.ops[op].results.last().map(|&v| func.ty(v));
    match (group.kind, kind) {
        (GroupKind::Matmul(op), KernelKind::Matmul { m, n, k, .. }) => {
            format!("matmul_{}_{m}x{n}x{k}", func.ty(func.ops[op].operands[1]).dtype.name())
        }
        (_, KernelKind::Product { batch: 1, m, n, k, .. }) => format!("product_{m}x{n}x{k}"),
        (_, KernelKind::Product { batch, m, n, k, .. }) => format!("product_{batch}x{m}x{n}x{k}"),
        (_, KernelKind::Columns { rows, columns, .. }) => format!("columns_{rows}x{columns}"),
        (GroupKind::AttentionGrad(op), _) => format!("attention_grad_{}", attention_dims(func, op)),
        (GroupKind::Attention(op), _) => format!("attention_{}", attention_dims(func, op)),
        (GroupKind::DecodeAttention(op), _) => format!("decode_attention_{}", attention_dims(func, op)),
        (GroupKind::KvWrite, _) => {
            let view = group.ops.iter().rev().find(|op| func.ops[**op].opcode == Opcode::CacheUpdate);
            let x = view.map(|&op| dims(&func.ty(func.ops[op].operands[1]).shape));
            format!("kv_write_{}", x.unwrap_or_default())
        }
        _ => {
            let mut words: Vec<&str> = group.ops.iter().map(|&op| func.ops[op].opcode.info().mnemonic).collect();
            words.dedup();
            words.truncate(3);
            let last = group.ops.last().and_then(|&op| result(op));
            format!("{}_{}", words.join("_"), last.map(|ty| dims(&ty.shape)).unwrap_or_default())
        }
    }
}

/// Batch, queries, keys, heads, head size.
fn attention_dims(func: &Func, op: OpId) -> String {
    let (q, k) = (&func.ty(func.ops[op].operands[0]).shape, &func.ty(func.ops[op].operands[1]).shape);
    dims(&[q[0], q[1], k[1], q[2], q[3]])
}

fn flops_of(func: &Func, op: OpId) -> u64 {
    let op = &func.ops[op];
    let types = |values: &[ValueId]| values.iter().map(|&v| func.ty(v)).collect::<Vec<_>>();
    (op.opcode.info().flops)(op, &types(&op.operands), &types(&op.results))
}

/// Bytes of arguments and results. Of a table only the rows looked up count, of a cache that is only written the rows
/// written.
fn bytes_of(func: &Func) -> u64 {
    let mut bytes = 0;
    let body = &func.regions[func.body];
    let attends = body.ops.iter().any(|&op| func.ops[op].opcode == Opcode::Attention);
    for &arg in &body.args {
        let table_of = |op: &&OpId| {
            let op = &func.ops[**op];
            matches!(op.opcode, Opcode::Gather | Opcode::PackedGather) && op.operands[0] == arg
        };
        let written_by = |op: &&OpId| func.ops[**op].opcode == Opcode::CacheUpdate && func.ops[**op].operands[0] == arg;
        let ty = func.ty(arg);
        if let Some(&op) = body.ops.iter().find(table_of) {
            let rows = func.ty(func.ops[op].results[0]);
            bytes += rows.elements().min(ty.elements()) * ty.dtype.bytes();
        } else if let Some(&op) = body.ops.iter().find(written_by).filter(|_| !attends) {
            bytes += func.ty(func.ops[op].operands[1]).elements() * ty.dtype.bytes();
        } else {
            bytes += ty.bytes();
        }
    }
    bytes += body.yields.iter().map(|&v| func.ty(v)).filter(|ty| !ty.cache).map(Type::bytes).sum::<usize>();
    bytes as u64
}
