//! Constant buffers: values that depend on parameters only, as recipes that the artifact writer evaluates.
//!
//! A recipe covers what layout and hoisting leave: a parameter (perhaps rounded to bf16) or a contiguous part of one,
//! packed stacks of parameter blocks, their int8 scales, and position tables. Any other arithmetic on parameters is not
//! a weight; it runs as ordinary kernels, outside the loops because hoisting put it there.
//!
//! In a module of training, where functions update parameters, a recipe would be out of date after the first step: there
//! only parameters as they are, and tables, are buffers, and packing is an ordinary kernel.
use crate::uses::{User, Uses, alias, is_zero, root};
use rdc_ir::infer::packed_type;
use rdc_ir::program::{Piece, Weight, WeightSource};
use rdc_ir::{DType, Func, Module, OpId, Opcode, Type, ValueDef, ValueId};
use std::collections::{HashMap, HashSet};

/// A value found in a constant buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The whole buffer.
    pub weight: Weight,
    /// Where the value begins in it, in bytes.
    pub offset: usize,
}

/// The constant buffer that holds a value, if the value depends on parameters only and a recipe expresses it.
pub fn stored(func: &Func, value: ValueId) -> Option<Stored> {
    let (found, dtype) = find(func, value)?;
    // A half-way cast to bf16 is no buffer of its own: vectors are stored as f32 always.
    (dtype == found.weight.ty.dtype).then_some(found)
}

/// Operations that need no kernel: constants, values that weights hold, the steps towards them, and zeros that loops
/// begin with, which each sets for itself.
pub fn leaves(func: &Func, uses: &Uses, weights: &Weights) -> HashSet<OpId> {
    let mut leaves = HashSet::new();
    for (_, id) in func.walk().into_iter().rev() {
        let op = &func.ops[id];
        let only_for_leaves = |v: ValueId| {
            let users = uses.of(v);
            !users.is_empty() && users.iter().all(|u| matches!(u, User::Op(op) if leaves.contains(op)))
        };
        let begins_loops = |v: ValueId| {
            let init = |u: &User| match *u {
                User::Op(id) => func.ops[id].opcode == Opcode::Loop && func.ops[id].operands[0] != v,
                User::Yield(_) => false,
            };
            is_zero(func, v) && uses.of(v).iter().all(init)
        };
        let needs_none = |v: ValueId| only_for_leaves(v) || weights.stored(func, v).is_some() || begins_loops(v);
        let leaf = op.opcode == Opcode::Constant || !op.results.is_empty() && op.results.iter().all(|&v| needs_none(v));
        if leaf {
            leaves.insert(id);
        }
    }
    leaves
}

/// The buffer, and the element type that the value has at this point of a cast chain.
fn find(func: &Func, value: ValueId) -> Option<(Stored, DType)> {
    let ValueDef::Result(id, index) = func.values[value].def else { return None };
    let op = &func.ops[id];
    let whole = |name: String, ty: &Type, source: WeightSource| {
        Some((Stored { weight: Weight { name, ty: ty.clone(), source }, offset: 0 }, ty.dtype))
    };
    let ty = func.ty(value);
    match op.opcode {
        Opcode::Param => {
            let name = op.text("name").to_string();
            whole(name.clone(), ty, WeightSource::Param { name, via_bf16: false })
        }
        Opcode::RopeTable => {
            let (len, dim, base) = (op.size("len"), op.size("dim"), op.float("base"));
            whole(format!("rope_table_{len}x{dim}"), ty, WeightSource::RopeTable { len, dim, base })
        }
        Opcode::SinusoidTable => {
            let (len, dim, base) = (op.size("len"), op.size("dim"), op.float("base"));
            whole(format!("sinusoid_table_{len}x{dim}"), ty, WeightSource::SinusoidTable { len, dim, base })
        }
        Opcode::Cast => {
            let (mut found, from) = find(func, op.operands[0])?;
            let WeightSource::Param { via_bf16, .. } = &mut found.weight.source else { return None };
            match (from, op.attr("dtype").as_dtype()) {
                (DType::F32, DType::BF16) => *via_bf16 = true,
                (DType::BF16, DType::F32) => {}
                (a, b) if a == b => {}
                _ => return None,
            }
            Some((found, op.attr("dtype").as_dtype()))
        }
        Opcode::Reshape | Opcode::Slice => {
            let (source, offset) = alias(func, id)?;
            let (mut found, dtype) = find(func, source)?;
            // The buffer holds f32 even where the chain is at bf16.
            found.offset += offset / func.ty(source).dtype.bytes() * found.weight.ty.dtype.bytes();
            Some((found, dtype))
        }
        Opcode::Quantize if index == 1 => {
            let pieces = pieces(func, op.operands[0])?.pieces;
            whole(format!("{}.scale", name_of(&pieces)), ty, WeightSource::Scales { pieces })
        }
        Opcode::Concat if op.int("axis") == 0 => {
            let mut all = Vec::new();
            for &part in &op.operands {
                let (found, _) = find(func, part)?;
                let WeightSource::Scales { pieces } = &found.weight.source else { return None };
                if found.weight.ty != *func.ty(part) {
                    return None;
                }
                all.extend(pieces.iter().cloned());
            }
            whole(format!("{}.scale", name_of(&all)), ty, WeightSource::Scales { pieces: all })
        }
        Opcode::Pack => {
            let rows = pieces(func, op.operands[0])?;
            let (shape, nr, parts) = (&func.ty(op.operands[0]).shape, op.size("nr"), op.size("parts"));
            let (n, k) = (shape[0], shape[1]);
            debug_assert_eq!(*ty, packed_type(rows.dtype, n, k, nr));
            let name = format!("{}.packed_{}", name_of(&rows.pieces), rows.dtype.name());
            whole(name, ty, WeightSource::Packed { pieces: rows.pieces, n, k, nr, parts })
        }
        _ => None,
    }
}

fn name_of(pieces: &[Piece]) -> String {
    let mut names: Vec<&str> = pieces.iter().map(|p| p.param.as_str()).collect();
    names.dedup();
    names.join("+")
}

/// Blocks of parameters stacked by rows, over a value seen as rank 2 by its last axis.
struct Rows {
    pieces: Vec<Piece>,
    dtype: DType,
    /// Whether every piece takes all columns of its parameter.
    whole_rows: bool,
}

fn pieces(func: &Func, value: ValueId) -> Option<Rows> {
    let ValueDef::Result(id, index) = func.values[value].def else { return None };
    let op = &func.ops[id];
    let ty = func.ty(value);
    let inner = |i: usize| pieces(func, *op.operands.get(i)?);
    match op.opcode {
        Opcode::Param => Some(Rows {
            pieces: vec![Piece { param: op.text("name").into(), rows: (0, ty.rows()), cols: (0, ty.last()) }],
            dtype: DType::F32,
            whole_rows: true,
        }),
        Opcode::Cast => {
            let from = inner(0)?;
            match (from.dtype, op.attr("dtype").as_dtype()) {
                (DType::F32, DType::BF16) => Some(Rows { dtype: DType::BF16, ..from }),
                (a, b) if a == b => Some(from),
                _ => None,
            }
        }
        // Scales come from whole rows, so quantising part of a row is another number.
        Opcode::Quantize if index == 0 => {
            let from = inner(0)?;
            (from.dtype == DType::F32 && from.whole_rows).then_some(Rows { dtype: DType::I8, ..from })
        }
        Opcode::Reshape => inner(0).filter(|_| func.ty(op.operands[0]).last() == ty.last()),
        Opcode::Slice => {
            let (from, source) = (inner(0)?, func.ty(op.operands[0]));
            let (axis, start, end) = (op.size("axis"), op.size("start"), op.size("end"));
            if axis + 1 == source.rank() && axis > 0 {
                let whole_rows = from.whole_rows && start == 0 && end == source.last();
                return Some(Rows { pieces: Piece::columns_between(&from.pieces, start, end), whole_rows, ..from });
            }
            if axis + 1 == source.rank() || source.shape[..axis].iter().any(|&n| n != 1) {
                return None;
            }
            let rows_each: usize = source.shape[axis + 1..source.rank() - 1].iter().product();
            let pieces = Piece::rows_between(&from.pieces, start * rows_each, end * rows_each);
            Some(Rows { pieces, ..from })
        }
        Opcode::Concat => {
            let axis = op.size("axis");
            if axis + 1 >= ty.rank() || ty.shape[..axis].iter().any(|&n| n != 1) {
                return None;
            }
            let mut all = inner(0)?;
            for i in 1..op.operands.len() {
                let next = inner(i)?;
                if next.dtype != all.dtype {
                    return None;
                }
                all.pieces.extend(next.pieces);
                all.whole_rows &= next.whole_rows;
            }
            Some(all)
        }
        _ => None,
    }
}

/// The program's weights, each once.
#[derive(Default)]
pub struct Weights {
    list: Vec<Weight>,
    known: HashMap<String, usize>,
    /// Types of the parameters, and whether they are training state, by name.
    params: HashMap<String, (Type, bool)>,
    /// Whether functions update parameters.
    training: bool,
}

impl Weights {
    /// No weights yet of a module.
    pub fn new(module: &Module) -> Weights {
        let params = module.params.values().map(|p| (p.name.clone(), (p.ty.clone(), p.state)));
        let training = module.funcs.iter().flat_map(|f| &f.outputs).any(|o| o.updates);
        Weights { params: params.collect(), training, ..Weights::default() }
    }
    /// The buffer that holds a value, if the value depends on parameters only and a buffer of this module holds it.
    pub fn stored(&self, func: &Func, value: ValueId) -> Option<Stored> {
        let mut found = if self.training { self.plain(func, value)? } else { stored(func, value)? };
        if let WeightSource::Param { name, .. } = &found.weight.source
            && self.params.get(name).is_some_and(|(_, state)| *state)
        {
            found.weight.source = WeightSource::State { name: name.clone() };
        }
        Some(found)
    }
    /// A parameter or a table as it is, or a part of one.
    fn plain(&self, func: &Func, value: ValueId) -> Option<Stored> {
        let (root, offset) = root(func, value);
        let op = &func.ops[func.def_op(root)?];
        let is_plain = matches!(op.opcode, Opcode::Param | Opcode::RopeTable | Opcode::SinusoidTable);
        let found = stored(func, root).filter(|_| is_plain)?;
        Some(Stored { offset, ..found })
    }
    /// The index of the weight that holds a parameter as it is; `None` if there is no such parameter.
    pub fn of_param(&mut self, name: &str) -> Option<usize> {
        let (ty, state) = self.params.get(name)?.clone();
        let name = name.to_string();
        let source = if state {
            WeightSource::State { name: name.clone() }
        } else {
            WeightSource::Param { name: name.clone(), via_bf16: false }
        };
        Some(self.index(Weight { name, ty, source }))
    }
    /// The index of a weight, added if it is new.
    pub fn index(&mut self, weight: Weight) -> usize {
        let key = format!("{:?}{:?}", weight.ty, weight.source);
        *self.known.entry(key).or_insert_with(|| {
            self.list.push(weight);
            self.list.len() - 1
        })
    }
    /// The parameter that a weight holds as it is.
    pub fn param(&self, index: usize) -> Option<&str> {
        match &self.list[index].source {
            WeightSource::Param { name, .. } | WeightSource::State { name } => Some(name),
            _ => None,
        }
    }
    /// A weight.
    pub fn get(&self, index: usize) -> &Weight {
        &self.list[index]
    }
    /// All of them.
    pub fn finish(self) -> Vec<Weight> {
        self.list
    }
}
