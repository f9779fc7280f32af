//! Evaluates a model text for the chosen settings and builds the IR.
//!
//! There is one evaluator ([`Lower::eval`], [`Lower::exec`]): compile-time values are folded, tensors become operations of
//! the function being built. Layers are evaluated once per call, so a shape error is found where the shapes are known;
//! [`crate::diagnostic::Sink`] drops repetitions.
mod attention;
mod builtins;
mod declare;
mod expr;
mod fold;
mod function;
mod layers;
mod loss;
mod reductions;
mod settings;
mod shapes;

pub(crate) use builtins::NAMES as FUNCTIONS;
pub use builtins::functions;

use crate::ast::{Layer, Loss, Model, Section};
use crate::diagnostic::{Diagnostic, Sink, Span};
use crate::options::Options;
use crate::value::{Dim, Part, Tensor, Val};
use attention::CachePlan;
use rdc_ir::program::KvPolicy;
use rdc_ir::{DType, Func, Init, Loc, Module, ParamId, RegionId, ValueId};
use settings::Setting;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// How deeply layers, blocks and expressions may nest while evaluating.
const DEEPEST: usize = 250;
/// How many expressions are evaluated for one function: far above every real model, low enough to end soon.
const BUDGET: usize = 500_000;
/// How many unused layers are checked by themselves.
const MOST_UNUSED: usize = 64;

/// A weight that the text declares.
struct Weight {
    param: ParamId,
    dims: Vec<Dim>,
    declared: Span,
}

/// A random or constant tensor that the caller may give.
pub(crate) struct State<'a> {
    name: &'a str,
    ty: &'a crate::ast::TypeExpr,
    init: Init,
    span: Span,
}

/// The names of a body being evaluated.
#[derive(Default)]
struct Frame {
    vars: HashMap<String, Val>,
    /// Prefix of checkpoint names of weights declared here.
    prefix: String,
    in_stack: bool,
    /// What `return` gave, with its place.
    returned: Option<(Vec<Val>, Span)>,
    /// Names declared here and where.
    declared: HashMap<String, Span>,
}

/// The function being built.
struct Building {
    func: Func,
    region: RegionId,
    /// Chunk length.
    chunk: usize,
    pos: Option<ValueId>,
    /// Which positions are padding, `bool[B, S]`, if something asks.
    padding: Option<ValueId>,
    /// Where the text takes S for a number and not for a size.
    counted: Option<Loc>,
    /// The trip count.
    steps: Option<ValueId>,
    /// What a loss compares with. A function with labels has no caches: its chunk is the whole sequence.
    labels: Option<Tensor>,
    constants: HashMap<(u64, DType), ValueId>,
    weights: HashMap<usize, ValueId>,
    tables: HashMap<(bool, i64, i64, u64), ValueId>,
    caches: CachePlan,
    /// `step`, while in the loop.
    step: Option<ValueId>,
    collected: Vec<(String, Tensor, Span)>,
    exit: Option<(ValueId, Span)>,
}

/// The evaluator.
pub(crate) struct Lower<'a> {
    pub options: &'a Options,
    pub sink: Sink,
    pub settings: Vec<Setting>,
    pub module: Module,
    pub ignored: Vec<String>,
    pub readouts: Vec<(String, Span)>,
    pub cache_policy: Option<KvPolicy>,
    globals: HashMap<String, Val>,
    declared: HashMap<String, Span>,
    layers: Vec<&'a Layer>,
    sections: Vec<&'a Section>,
    losses: Vec<&'a Loss>,
    states: Vec<State<'a>>,
    weights: Vec<Weight>,
    weight_names: HashMap<String, usize>,
    /// Checkpoint names that stand for a tied weight.
    aliases: HashSet<String>,
    lines: Vec<usize>,
    frames: Vec<Frame>,
    depth: usize,
    /// Whether the expression being evaluated is the size of an axis.
    sizing: bool,
    spent: usize,
    building: Option<Building>,
}

impl<'a> Lower<'a> {
    /// An evaluator for a text.
    pub fn new(model: &'a Model, source: &str, options: &'a Options) -> Lower<'a> {
        let lines = std::iter::once(0).chain(source.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Lower {
            options,
            sink: Sink::default(),
            settings: Vec::new(),
            module: Module { name: model.name.text.clone(), ..Module::default() },
            ignored: Vec::new(),
            readouts: Vec::new(),
            cache_policy: None,
            globals: HashMap::new(),
            declared: HashMap::new(),
            layers: Vec::new(),
            sections: Vec::new(),
            losses: Vec::new(),
            states: Vec::new(),
            weights: Vec::new(),
            weight_names: HashMap::new(),
            aliases: HashSet::new(),
            lines,
            frames: Vec::new(),
            depth: 0,
            sizing: false,
            spent: 0,
            building: None,
        }
    }

    /// Reports an error at a place and gives the value that stands for a mistake.
    fn error(&mut self, id: &'static str, span: Span, message: impl Into<String>, label: impl Into<String>) -> Val {
        self.sink.push(Diagnostic::error(id, message).at(span, label));
        Val::Error
    }
    /// Line and column of a place.
    fn loc(&self, span: Span) -> Loc {
        let line = self.lines.partition_point(|&start| start <= span.start as usize);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        Loc { line: line as u32, col: (span.start as usize - start + 1) as u32 }
    }
    /// Whether the function being built has become too large; reports it once.
    fn exhausted(&mut self, span: Span) -> bool {
        self.spent += 1;
        if self.spent == BUDGET {
            self.error("too-large", span, "the text unfolds to too many operations", "while evaluating this");
        }
        self.spent >= BUDGET
    }
    /// Runs `f` one level deeper, unless that is too deep.
    fn deeper<T>(&mut self, span: Span, otherwise: T, f: impl FnOnce(&mut Self) -> T) -> T {
        if self.depth >= DEEPEST {
            self.error("too-deep", span, "layers and expressions nest too deeply", "while evaluating this");
            return otherwise;
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }
    /// The value of a name: local, then of the model, then of the function (`B`, `S`).
    fn lookup(&self, name: &str) -> Option<Val> {
        if let Some(val) = self.frames.last().and_then(|f| f.vars.get(name)) {
            return Some(val.clone());
        }
        if let Some(val) = self.globals.get(name) {
            return Some(val.clone());
        }
        let building = self.building.as_ref()?;
        match name {
            "B" => Some(Val::Int(self.options.batch as i64, Some("B".into()))),
            "S" => Some(Val::Int(building.chunk as i64, Some("S".into()))),
            _ => None,
        }
    }
    /// Every name that [`Lower::lookup`] knows.
    fn visible(&self) -> Vec<String> {
        if self.sink.is_full() {
            return Vec::new();
        }
        let locals = self.frames.last().into_iter().flat_map(|f| f.vars.keys());
        locals.chain(self.globals.keys()).cloned().collect()
    }
    /// Binds a name in the innermost body, or in the model.
    fn bind(&mut self, name: &str, val: Val) {
        if let (Val::Tensor(t), Some(b)) = (&val, &mut self.building) {
            let slot = &mut b.func.values[t.id].name;
            if slot.is_none() {
                *slot = Some(name.to_string());
            }
        }
        match self.frames.last_mut() {
            Some(frame) => frame.vars.insert(name.to_string(), val),
            None => self.globals.insert(name.to_string(), val),
        };
    }
    /// Binds a name of the model.
    pub(crate) fn set_global(&mut self, name: &str, val: Val) {
        self.globals.insert(name.to_string(), val);
    }
    /// The layer of a name.
    fn layer_index(&self, name: &str) -> Option<usize> {
        self.layers.iter().position(|l| l.name.text == name)
    }
    /// Reports layers that no branch of the text uses, after evaluating them by themselves so that mistakes in them show.
    pub fn check_unused_layers(&mut self, model: &Model, chunk: usize) {
        let used = crate::scope::instantiated(&model.items);
        let unused: Vec<usize> =
            (0..self.layers.len()).filter(|&i| !used.contains(&*self.layers[i].name.text)).collect();
        for index in unused.into_iter().take(MOST_UNUSED) {
            let layer = self.layers[index];
            let message = format!("layer `{}` is never used", layer.name.text);
            self.sink.push(Diagnostic::warning("unused-layer", message).at(layer.name.span, "declared here"));
            if layer.statics.is_empty() {
                self.try_layer(index, chunk);
            }
        }
    }
    /// Evaluates a layer on arguments of its own types, for its errors only.
    fn try_layer(&mut self, index: usize, chunk: usize) {
        let layer = self.layers[index];
        self.trial(|l| {
            l.building = Some(Building::new(Func::new("check"), chunk));
            l.building_pos();
            let mut args = Vec::new();
            for (name, ty) in &layer.params {
                let Some((dtype, dims)) = l.type_expr(ty) else { continue };
                args.push((Val::Tensor(l.argument(&name.text, rdc_ir::ArgRole::Input, dtype, dims)), name.span));
            }
            if args.len() == layer.params.len() {
                let part = Part { layer: index, args: Rc::default(), count: None, prefix: "".into(), in_stack: false };
                l.call_part(&part, args, layer.name.span);
            }
            l.building = None;
        });
    }
    /// Runs `f` for what it finds; the weights that it declares are forgotten.
    fn trial<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let (module, weights, names) = (self.module.clone(), self.weights.len(), self.weight_names.clone());
        let result = f(self);
        self.module = module;
        self.weights.truncate(weights);
        self.weight_names = names;
        result
    }
}

impl Building {
    fn new(func: Func, chunk: usize) -> Building {
        let region = func.body;
        Building {
            func,
            region,
            chunk,
            pos: None,
            padding: None,
            counted: None,
            steps: None,
            labels: None,
            constants: HashMap::new(),
            weights: HashMap::new(),
            tables: HashMap::new(),
            caches: CachePlan::default(),
            step: None,
            collected: Vec::new(),
            exit: None,
        }
    }
}
