//! Makes a kernel of a group: a function of its own, with the values it takes and gives.
use super::attention::bias_of;
use super::body::{Family, accesses, take_apart};
use super::columns;
use super::graph::{Group, GroupKind};
use crate::Error;
use crate::tile::{Machine, Tiled};
use crate::uses::{User, Uses, is_constant};
use rdc_ir::program::body::{Matmul, Product};
use rdc_ir::program::{Access, Kernel, KernelKind, Pointer};
use rdc_ir::{Arg, ArgRole, Attr, Builder, DType, Func, Loc, OpId, Opcode, Output, RegionId, Type, ValueId};
use std::collections::{HashMap, HashSet};

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

/// Makes the kernel of a group of `region`, cut for a machine.
///
/// # Errors
/// If no kernel computes the group.
pub fn build(func: &Func, uses: &Uses, region: RegionId, group: &Group, machine: &dyn Machine) -> Result<Built, Error> {
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
    let (out, args) = (maker.out, maker.args);
    let mut locs: Vec<Loc> = group.ops.iter().map(|&op| func.ops[op].loc).filter(|loc| loc.line > 0).collect();
    locs.sort_by_key(|loc| (loc.line, loc.col));
    locs.dedup();
    let kind = take_apart(&out, family(func, group)).map_err(|what| Error::Unsupported {
        message: format!("{what} is not supported in a kernel of `{}`", func.name),
        loc: locs.first().copied().unwrap_or_default(),
    })?;
    let name = name(func, group, &kind);
    let Tiled { tiling, tasks, dispatch } = machine.tile(&kind);
    let flops = out.walk().iter().map(|&(_, op)| flops_of(&out, op)).fold(0, u64::saturating_add);
    let pointers = pointers(&out, &kind);
    let bytes = pointers.iter().map(|pointer| needed(&kind, pointer)).sum();
    let kernel = Kernel { name, kind, tiling, func: out, pointers, tasks, dispatch, scratch: 0, flops, bytes };
    Ok(Built { kernel, args, results, locs })
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
        Builder::new(&mut self.out).append(opcode, operands, attrs, results, Vec::new())
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
        let attrs = vec![Attr::float(0.0), Attr::DType(DType::I32)];
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

/// The family of the kernel of a group.
fn family(func: &Func, group: &Group) -> Family {
    match group.kind {
        GroupKind::Rows(rows) => Family::Rows(rows),
        GroupKind::Matmul(_) => Family::Matmul,
        GroupKind::KvWrite => Family::KvWrite,
        GroupKind::Attention(_) => Family::Attention,
        GroupKind::DecodeAttention(_) => Family::DecodeAttention,
        GroupKind::AttentionGrad(_) => Family::AttentionGrad,
        GroupKind::Product(_) => Family::Product,
        GroupKind::Pack(_) => Family::Pack,
        // The sum of a single column is the sum of one row.
        GroupKind::Columns(sum) if columns::size(func, sum).is_some_and(|(_, columns)| columns == 1) => Family::Rows(1),
        GroupKind::Columns(_) => Family::Columns,
        GroupKind::ScatterAdd(_) => Family::ScatterAdd,
        GroupKind::Open | GroupKind::Generic | GroupKind::Loop(_) | GroupKind::Alias => Family::Generic,
    }
}

/// The pointers of a kernel's function.
pub fn pointers(func: &Func, kind: &KernelKind) -> Vec<Pointer> {
    let body = &func.regions[func.body];
    let arguments = body.args.iter().map(|&v| func.ty(v)).map(|ty| (ty, ty.cache && ty.rank() == 5));
    let results = body.yields.iter().map(|&v| func.ty(v)).filter(|ty| !ty.cache).map(|ty| (ty, true));
    let tensors: Vec<(&Type, bool)> = arguments.chain(results).collect();
    let accesses = accesses(kind, tensors.len());
    let pointer =
        |((ty, written), access): ((&Type, bool), Access)| Pointer { ty: ty.clone(), access, pitch: None, written };
    tensors.into_iter().zip(accesses).map(pointer).collect()
}

/// Bytes of a pointer that one launch must read or write. Of a table only the rows looked up count, of a cache that is only written
/// the rows written.
fn needed(kind: &KernelKind, pointer: &Pointer) -> u64 {
    let elements = match (pointer.access, kind) {
        (Access::Table { elements }, _) => elements.min(pointer.ty.elements()),
        (Access::Cache, KernelKind::KvWrite(body)) => {
            let chain = body.writes.first().map(|write| write.chain.heads * write.chain.dim);
            body.tokens * chain.unwrap_or(0)
        }
        _ => pointer.ty.elements(),
    };
    (elements * pointer.ty.dtype.bytes()) as u64
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
        (_, KernelKind::Matmul(Matmul { m, n, k, dtype, .. })) => {
            format!("matmul_{}_{m}x{n}x{k}", dtype.name())
        }
        (_, KernelKind::Product(Product { batch: 1, m, n, k, .. })) => format!("product_{m}x{n}x{k}"),
        (_, KernelKind::Product(Product { batch, m, n, k, .. })) => format!("product_{batch}x{m}x{n}x{k}"),
        (GroupKind::Columns(sum), _) => {
            let (rows, columns) = columns::size(func, sum).unwrap_or_default();
            format!("columns_{rows}x{columns}")
        }
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
