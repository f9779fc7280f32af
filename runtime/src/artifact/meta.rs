//! The metadata of an artifact.
use rdc_ir::positions::Positions;
use rdc_ir::program::{KvPolicy, Program};
use rdc_ir::{Init, Param, Type};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything about a compiled model but its code and weights. Stored as JSON; maps are ordered, so equal metadata is
/// equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the compiler that wrote it.
    pub compiler: String,
    /// Sizes, constants and flags of the model text as resolved, by name, as text.
    pub sizes: BTreeMap<String, String>,
    /// Steps of the loop unless `--steps` says otherwise.
    pub default_steps: usize,
    /// The most steps of the loop (R_max).
    pub max_steps: usize,
    /// Positions of the KV cache; 0 if the model has no context.
    pub context: usize,
    /// Rows of a batch.
    pub batch: usize,
    /// Chunk lengths that functions exist for, the longest first.
    pub chunks: Vec<usize>,
    /// Read-outs; the first is the default and its functions have no suffix.
    pub readouts: Vec<Readout>,
    /// What the results of the functions of read-outs have to do with positions, by the functions' names.
    pub positions: BTreeMap<String, Positions>,
    /// The shapes of the outputs of the functions of read-outs, as the text gives them, by the functions' names and the outputs'. (A buffer
    /// may have the same elements under another shape.)
    pub shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
    /// `--dtype`: `f32`, `bf16` or `i8`.
    pub dtype: String,
    /// Which KV slot a layer call uses.
    pub kv: KvPolicy,
    /// The parameters by checkpoint name, and the training state (gradients, moments).
    pub params: Vec<ParamInfo>,
    /// What the trainer needs to know, if the program trains.
    #[serde(default)]
    pub train: Option<TrainMeta>,
    /// Flags of the compilation that a run may repeat, by name without dashes.
    pub options: BTreeMap<String, String>,
    /// Numbers for `rdc inspect` that only the compiler knows (operations hoisted out of the loop, …).
    pub report: serde_json::Value,
    /// Byte offset in the code section of each kernel, by name.
    pub symbols: BTreeMap<String, u64>,
    /// What the code section is made of.
    pub isa: Isa,
    /// The program.
    pub program: Program,
}

/// The instructions of machine code, as far as a loader must know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isa {
    /// The architecture, by its name in `std::env::consts`: `x86_64`, `aarch64`.
    pub architecture: String,
    /// CPU features that must be present to run it, by their `std::arch` names (`avx2`, `fma`).
    pub requires: Vec<String>,
}

/// A read-out of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Readout {
    /// Its name.
    pub name: String,
    /// The names of its outputs.
    pub outputs: Vec<String>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamInfo {
    /// Its name in a checkpoint.
    pub name: String,
    /// Other names of the same tensor.
    pub aliases: Vec<String>,
    /// Its type.
    pub ty: Type,
    /// How it is drawn if the artifact holds no weights.
    pub init: Init,
    /// Whether it belongs to a stack of layers.
    pub in_stack: bool,
    /// Whether weight decay applies to it.
    #[serde(default)]
    pub decay: bool,
    /// Whether it is training state: zero at first, and in no checkpoint of the model.
    #[serde(default)]
    pub state: bool,
}

/// What is particular to a program that trains. Its functions are, for each loss, `grad` and `loss` with the loss's suffix;
/// `update`; and `accumulate` if [`TrainMeta::accumulate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainMeta {
    /// The losses; the first is the default.
    pub losses: Vec<LossInfo>,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// The most iterations with gradient (K).
    pub max_grad_steps: usize,
    /// What is kept for the derivative: `none`, `iteration`, `auto`.
    pub remat: String,
    /// The optimiser that `update` is of, by its name in a configuration.
    pub optimizer: String,
    /// Whether gradients can be accumulated over batches: then `update` reads `sum.*`, which `accumulate` adds `grad.*` to.
    pub accumulate: bool,
    /// Checkpoint names of the parameters that are not trained.
    pub frozen: Vec<String>,
    /// The config.json of its checkpoints: the fields that the text reads.
    #[serde(default)]
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// A loss of the text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossInfo {
    /// Its name.
    pub name: String,
    /// What follows `grad` and `loss` in its functions' names: empty, or a dot and the name.
    pub suffix: String,
    /// The names of its outputs; `loss` is the scalar that is minimised.
    pub outputs: Vec<String>,
    /// Operations of the text's products, two per multiply-add, outside of its loop and in an iteration, if that is known.
    #[serde(default)]
    pub products: Option<[u64; 2]>,
    /// Whether it is about every iteration's state, so that no iteration goes without gradient.
    pub all_steps: bool,
}

impl From<&Param> for ParamInfo {
    fn from(p: &Param) -> ParamInfo {
        ParamInfo {
            name: p.name.clone(),
            aliases: p.aliases.clone(),
            ty: p.ty.clone(),
            init: p.init,
            in_stack: p.in_stack,
            decay: p.decay,
            state: p.state,
        }
    }
}
