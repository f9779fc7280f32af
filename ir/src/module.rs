//! Modules, functions, regions, operations, values: the data of the IR.
use crate::entity::{Entity, EntityMap, OpId, ParamId, RegionId, ValueId};
use crate::ops::{Attr, Opcode};
use crate::types::Type;
use serde::{Deserialize, Serialize};

/// A model: parameters and specialised functions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// The model's name in its text.
    pub name: String,
    /// The weights, by checkpoint name (unique).
    pub params: EntityMap<ParamId, Param>,
    /// The functions; names are unique.
    pub funcs: Vec<Func>,
}

/// A named weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// Other checkpoint names that stand for the same tensor (a tied head).
    pub aliases: Vec<String>,
    /// Its type as the checkpoint holds it (always f32 here; storage types are converted on loading).
    pub ty: Type,
    /// How it is drawn when there is no checkpoint.
    pub init: Init,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Whether it belongs to a stack of layers (the paper's "unrolled" parameter count repeats those of looped stacks).
    pub in_stack: bool,
    /// Whether it is training state (a gradient, a moment of the optimiser) rather than a weight: no checkpoint of the model
    /// holds it.
    pub state: bool,
    /// Where the text declares it.
    pub loc: Loc,
}

impl Param {
    /// Training state of that name and type, zero at first.
    pub fn training_state(name: String, ty: Type) -> Param {
        let (aliases, init, loc) = (Vec::new(), Init::Constant(0.0), Loc::default());
        Param { name, aliases, ty, init, decay: false, in_stack: false, state: true, loc }
    }
}

/// How a parameter, or an input such as the initial state, is drawn. Draws are counter-based, see the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// Every element is this number.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal with mean 0, redrawn until within `bound` standard deviations; `std` is that of the untruncated normal.
    TruncNormal {
        /// Standard deviation of the untruncated normal.
        std: f64,
        /// Truncation in standard deviations.
        bound: f64,
    },
}

/// A place in the model text; line 0 means unknown. Lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Loc {
    /// Line.
    pub line: u32,
    /// Column.
    pub col: u32,
}

/// The label of a position whose prediction does not count.
pub const IGNORED_LABEL: i32 = -100;

/// What a function argument is, so that the runtime can fill it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ArgRole {
    /// Token ids, `i32[B, S]`.
    Ids,
    /// Absolute position of each row's first token, `i32[B]`.
    Position,
    /// How many positions of each row are given, `i32[B]`: those from there on are padding.
    Valid,
    /// The trip count r, `i32[]`.
    Steps,
    /// A tensor given by the user or else drawn: the initial state, `f32[B, S, dim]`.
    State(Init),
    /// Labels, `i32[B, S]`: the token that each position is to predict, or [`IGNORED_LABEL`].
    Labels,
    /// The number n of iterations without gradient, `i32[]`.
    NoGradSteps,
    /// The number k of iterations with gradient that follow, `i32[]`.
    GradSteps,
    /// A KV cache, handed back as the result of the same name.
    Cache,
    /// Anything else, given by the user by name.
    Input,
}

/// A function argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    /// Its name: the tensor's name in an input file.
    pub name: String,
    /// Its role.
    pub role: ArgRole,
}

/// A function result; its value is the yield of the body at the same index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Its name: the tensor's name in an output file, or the name of the cache argument it replaces.
    pub name: String,
    /// If set, the leading axis is stacked over the loop's iterations, and only the first `trips` entries count.
    pub stacked: bool,
    /// If set, the result replaces the parameter of that name. Within the function the parameter keeps its old value.
    pub updates: bool,
}

/// A specialised function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Func {
    /// Its name, unique in the module: `prefill`, `decode`, or with a read-out `prefill.act`.
    pub name: String,
    /// Names and roles of the body's arguments, in order.
    pub args: Vec<Arg>,
    /// Names of the body's yields, in order.
    pub outputs: Vec<Output>,
    /// The body.
    pub body: RegionId,
    /// Arena of values.
    pub values: EntityMap<ValueId, Value>,
    /// Arena of operations; those reachable from the body are the function.
    pub ops: EntityMap<OpId, Op>,
    /// Arena of regions.
    pub regions: EntityMap<RegionId, Region>,
}

/// A list of operations with arguments and yields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// Values defined by entering the region.
    pub args: Vec<ValueId>,
    /// Operations in order.
    pub ops: Vec<OpId>,
    /// Values handed to the owner of the region at its end.
    pub yields: Vec<ValueId>,
}

/// A value: its type, definition and optional name for readers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Type.
    pub ty: Type,
    /// Where it comes from.
    pub def: ValueDef,
    /// A name from the model text, for readers only.
    pub name: Option<String>,
}

/// The definition of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueDef {
    /// The result of an operation at an index.
    Result(OpId, usize),
    /// The argument of a region at an index.
    Arg(RegionId, usize),
}

/// Attribute values in the order of the op table.
pub type Attrs = Vec<Attr>;

/// An operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Which entry of the op table.
    pub opcode: Opcode,
    /// Operands in table order.
    pub operands: Vec<ValueId>,
    /// Attributes in table order.
    pub attrs: Attrs,
    /// Results.
    pub results: Vec<ValueId>,
    /// Regions (only `loop` has one).
    pub regions: Vec<RegionId>,
    /// Where the model text says it.
    pub loc: Loc,
}

impl Op {
    /// The attribute of that name.
    ///
    /// # Panics
    /// If the op table gives this opcode no such attribute (a mistake of the compiler, not of its user).
    pub fn attr(&self, name: &str) -> &Attr {
        let index = self.opcode.info().attrs.iter().position(|a| a.name == name);
        match index.and_then(|i| self.attrs.get(i)) {
            Some(attr) => attr,
            None => panic!("{} has no attribute {name}", self.opcode.info().mnemonic),
        }
    }
    /// Replaces the attribute of that name.
    ///
    /// # Panics
    /// As [`Op::attr`].
    pub fn set_attr(&mut self, name: &str, attr: Attr) {
        let index = self.opcode.info().attrs.iter().position(|a| a.name == name);
        match index.and_then(|i| self.attrs.get_mut(i)) {
            Some(old) => *old = attr,
            None => panic!("{} has no attribute {name}", self.opcode.info().mnemonic),
        }
    }
    /// An integer attribute.
    pub fn int(&self, name: &str) -> i64 {
        self.attr(name).as_int()
    }
    /// A non-negative integer attribute.
    pub fn size(&self, name: &str) -> usize {
        self.attr(name).as_int().max(0) as usize
    }
    /// A float attribute.
    pub fn float(&self, name: &str) -> f64 {
        self.attr(name).as_float()
    }
    /// A truth attribute.
    pub fn flag(&self, name: &str) -> bool {
        self.attr(name).as_bool()
    }
    /// A string attribute.
    pub fn text(&self, name: &str) -> &str {
        self.attr(name).as_str()
    }
    /// An integer list attribute.
    pub fn ints(&self, name: &str) -> &[i64] {
        self.attr(name).as_ints()
    }
}

impl Func {
    /// An empty function of that name.
    pub fn new(name: impl Into<String>) -> Func {
        let mut regions = EntityMap::default();
        let body = regions.push(Region::default());
        Func {
            name: name.into(),
            args: Vec::new(),
            outputs: Vec::new(),
            body,
            values: EntityMap::default(),
            ops: EntityMap::default(),
            regions,
        }
    }
    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &Type {
        &self.values[value].ty
    }
    /// The operation that defines a value, if it is a result.
    pub fn def_op(&self, value: ValueId) -> Option<OpId> {
        match self.values[value].def {
            ValueDef::Result(op, _) => Some(op),
            ValueDef::Arg(..) => None,
        }
    }
    /// The operation that defines a value, if it has that opcode.
    pub fn defined_by(&self, value: ValueId, opcode: Opcode) -> Option<&Op> {
        self.def_op(value).map(|op| &self.ops[op]).filter(|op| op.opcode == opcode)
    }
    /// Gives a value the name of the one that it takes the place of, unless it has one.
    pub fn inherit_name(&mut self, from: ValueId, to: ValueId) {
        if self.values[to].name.is_none() {
            self.values[to].name = self.values[from].name.clone();
        }
    }
    /// What a value is before its reshapes.
    pub fn through_reshapes(&self, mut value: ValueId) -> ValueId {
        while let Some(op) = self.defined_by(value, Opcode::Reshape) {
            value = op.operands[0];
        }
        value
    }
    /// Adds an argument to a region.
    pub fn add_arg(&mut self, region: RegionId, ty: Type, name: Option<String>) -> ValueId {
        let index = self.regions[region].args.len();
        let value = self.values.push(Value { ty, def: ValueDef::Arg(region, index), name });
        self.regions[region].args.push(value);
        value
    }
    /// Creates an operation with result types already known, without putting it into a region.
    pub fn make_op(
        &mut self,
        opcode: Opcode,
        operands: Vec<ValueId>,
        attrs: Attrs,
        results: Vec<Type>,
        regions: Vec<RegionId>,
        loc: Loc,
    ) -> OpId {
        let id = OpId::new(self.ops.len());
        let results = results
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.values.push(Value { ty, def: ValueDef::Result(id, i), name: None }))
            .collect();
        self.ops.push(Op { opcode, operands, attrs, results, regions, loc })
    }
    /// All operations reachable from the body, outer before inner, in order.
    pub fn walk(&self) -> Vec<(RegionId, OpId)> {
        let mut out = Vec::new();
        self.walk_region(self.body, &mut out);
        out
    }
    fn walk_region(&self, region: RegionId, out: &mut Vec<(RegionId, OpId)>) {
        for &op in &self.regions[region].ops {
            out.push((region, op));
            for &inner in &self.ops[op].regions {
                self.walk_region(inner, out);
            }
        }
    }
    /// Replaces every use of each key by its value, in the whole function. Chains are followed.
    pub fn replace_uses(&mut self, map: &std::collections::HashMap<ValueId, ValueId>) {
        let resolve = |mut v: ValueId| {
            while let Some(&next) = map.get(&v) {
                v = next;
            }
            v
        };
        for id in self.ops.keys() {
            for operand in &mut self.ops[id].operands {
                *operand = resolve(*operand);
            }
        }
        for id in self.regions.keys() {
            for value in &mut self.regions[id].yields {
                *value = resolve(*value);
            }
        }
    }
}

impl Module {
    /// The parameter of that checkpoint name (aliases not considered).
    pub fn param(&self, name: &str) -> Option<&Param> {
        self.params.values().find(|p| p.name == name)
    }
    /// The function of that name.
    pub fn func(&self, name: &str) -> Option<&Func> {
        self.funcs.iter().find(|f| f.name == name)
    }
}
