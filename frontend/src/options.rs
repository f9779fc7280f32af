//! What a text is specialised for, and what comes of it.
use crate::diagnostic::Diagnostic;
use rdc_ir::positions::Positions;
use rdc_ir::program::KvPolicy;
use rdc_ir::{DType, Module};
use std::collections::BTreeMap;

/// Which losses become functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LossSelection {
    /// None: the text is compiled to be run.
    #[default]
    None,
    /// Every loss.
    All,
    /// The losses of these names.
    Only(Vec<String>),
}

/// A loss that the text declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossInfo {
    /// Its name.
    pub name: String,
    /// The read-out that it is of.
    pub readout: String,
    /// Its function, if it is selected: `loss` for the first loss of the text, `loss.NAME` for others.
    pub func: String,
    /// The function's outputs; the first is `loss`, `f32[]`.
    pub outputs: Vec<String>,
    /// Whether it depends on what single iterations recorded, or on an exit: then all iterations must have gradient.
    pub all_steps: bool,
}

/// What a text is specialised for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The object of a config.json; fields that the text names have precedence over the text's defaults.
    pub config: Option<serde_json::Value>,
    /// `--set NAME=VALUE`, which has precedence over config.json; the last one of a name counts.
    pub overrides: Vec<(String, String)>,
    /// Rows.
    pub batch: usize,
    /// Chunk lengths to specialise; 1 is `decode`, the first greater one `prefill`, further ones `prefill_LENGTH`. If there are none,
    /// 64 (the context, if that is shorter) and 1, or, if losses are selected, none.
    pub chunks: Vec<usize>,
    /// The longest sequence; the text's `context` if absent.
    pub context: Option<usize>,
    /// The largest number of steps; the text's if absent.
    pub max_steps: Option<usize>,
    /// The cache policy; the text's if absent.
    pub kv: Option<KvPolicy>,
    /// The element type of the caches: f32 or bf16.
    pub kv_dtype: DType,
    /// The read-outs to compile; all if absent.
    pub readouts: Option<Vec<String>>,
    /// Outputs only of the last position of a chunk.
    pub last_only: bool,
    /// The losses to compile.
    pub losses: LossSelection,
    /// The sequence length of losses; the context, but at most 128, if absent.
    pub train_seq: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            config: None,
            overrides: Vec::new(),
            batch: 1,
            chunks: vec![64, 1],
            context: None,
            max_steps: None,
            kv: None,
            kv_dtype: DType::F32,
            readouts: None,
            last_only: false,
            losses: LossSelection::None,
            train_seq: None,
        }
    }
}

/// A compiled text.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The IR: one function per read-out and chunk length, then one per selected loss.
    pub module: Module,
    /// The model's default number of steps, at most `max_steps`.
    pub default_steps: usize,
    /// The number of steps that caches and stacked results are planned for.
    pub max_steps: usize,
    /// The longest sequence; 0 if the text states none, which has nothing that depends on it.
    pub context: usize,
    /// The cache policy.
    pub kv: KvPolicy,
    /// Rows.
    pub batch: usize,
    /// Chunk lengths that have functions.
    pub chunks: Vec<usize>,
    /// The compiled read-outs.
    pub readouts: Vec<String>,
    /// The read-out whose functions have no suffix.
    pub default_readout: String,
    /// Every named size, count, constant, flag and string with its value, in the order of the text.
    pub sizes: Vec<(String, String)>,
    /// The same as a config.json has it: every field that the text reads, with the value in use.
    pub config: Vec<(String, serde_json::Value)>,
    /// Checkpoint tensors that the text says to ignore.
    pub ignored: Vec<String>,
    /// The losses that the text declares, selected or not.
    pub losses: Vec<LossInfo>,
    /// The first of them.
    pub default_loss: Option<String>,
    /// The sequence length of losses.
    pub train_seq: usize,
    /// What the results of the functions of read-outs have to do with positions, by the functions' names. Of a read-out whose calls must
    /// be whole sequences only the first chunk length has a function.
    pub positions: BTreeMap<String, Positions>,
    /// Warnings.
    pub warnings: Vec<Diagnostic>,
}
