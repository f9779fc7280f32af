//! The words of the command line. Scripts depend on them: add, don't rename.
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rdc_ir::program::KvPolicy;
use rdc_ir::training::{OptimizerKind, Remat};
use rdc_runtime::train::Bytes;
use std::path::PathBuf;

/// The compiler for recurrent-depth language models.
#[derive(Parser, Debug)]
#[command(name = "rdc", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Show no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compile a model text into an artifact, or show a stage of the way there
    #[cfg(feature = "compiler")]
    Compile(CompileArgs),
    /// Run an artifact, or a model text compiled on the fly
    Run(RunArgs),
    /// Write the loss and its gradient by every parameter
    #[cfg(feature = "compiler")]
    Grad(GradArgs),
    /// Train a model
    Train(TrainArgs),
    /// Loss and accuracy at several numbers of iterations
    Eval(EvalArgs),
    /// Show parameters, work, memory plan and kernels of an artifact or a model text
    Inspect(InspectArgs),
    /// Measure speed as ratios to ceilings measured in the same run
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How a model text is specialised. On an artifact, every one that is given must agree with it.
#[derive(Args, Debug, Default, Clone)]
pub struct ModelArgs {
    /// The CPU: native, x86-64-v3, x86-64-v4 or aarch64 (default native)
    #[arg(long, value_name = "T")]
    pub target: Option<String>,
    /// A Hugging Face folder: config.json and *.safetensors
    #[arg(long, value_name = "DIR", conflicts_with = "weights")]
    pub hf: Option<PathBuf>,
    /// A safetensors file, or the index.json of a sharded one
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Set a size, flag or string of the text, over config.json
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Rows of the batch (default 1)
    #[arg(long, value_name = "B", value_parser = positive)]
    pub batch: Option<usize>,
    /// Tokens of a prefill chunk (default: the compiler chooses)
    #[arg(long, value_name = "S", value_parser = positive)]
    pub seq: Option<usize>,
    /// Longest sequence (default: the text's)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub context: Option<usize>,
    /// Most iterations of the loop; sizes KV caches and stacked results (default: the text's)
    #[arg(long, value_name = "R", value_parser = positive)]
    pub max_steps: Option<usize>,
    /// Which KV slot an iteration writes: full, modulo:K, block:M or anchor (default: the text's)
    #[arg(long, value_name = "POLICY", value_parser = crate::kv::parse)]
    pub kv: Option<KvPolicy>,
    /// How weights are stored; arithmetic is f32 (default f32)
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Compute outputs that have one entry per token for the last token of a chunk only
    #[arg(long)]
    pub last_only: bool,
}

/// How weights are stored.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Single precision.
    F32,
    /// Rounded to bfloat16.
    Bf16,
    /// Bytes with a scale per row.
    I8,
}

impl Dtype {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::I8 => "i8",
        }
    }
}

/// Arguments of `compile`.
#[cfg(feature = "compiler")]
#[derive(Args, Debug)]
pub struct CompileArgs {
    /// The model text
    pub model: PathBuf,
    #[command(flatten)]
    pub options: ModelArgs,
    /// Show a stage instead of writing an artifact
    #[arg(long, value_enum)]
    pub emit: Option<Emit>,
    /// With --emit ir: the pass after which to look (default: the last); `--after help` lists them
    #[arg(long, value_name = "PASS", requires = "emit")]
    pub after: Option<String>,
    /// The artifact (default: the text's name with .rda); with --emit a folder that gets one file per kernel
    #[arg(long, short, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// Print how long each pass and the code generation took
    #[arg(long)]
    pub timing: bool,
    /// Compile losses, their gradients and an optimiser, for `rdc train`, instead of read-outs
    #[arg(long)]
    pub train: bool,
    #[command(flatten)]
    pub training: TrainFlags,
}

/// Iterations with gradient unless something says otherwise: the paper's.
pub const GRAD_STEPS: usize = 8;

/// How losses are compiled for training.
#[derive(Args, Debug, Default, Clone)]
pub struct TrainFlags {
    /// The loss (default: the text's first)
    #[arg(long, value_name = "NAME")]
    pub loss: Option<String>,
    /// Most iterations with gradient (default 8, at most the text's max_steps)
    #[arg(long, value_name = "K", value_parser = positive)]
    pub max_grad_steps: Option<usize>,
    /// What is kept of the iterations for the way back: auto what costs more to compute again and fits into --memory, none all
    /// but elementwise operations, iteration the state only (default auto)
    #[arg(long, value_parser = remat())]
    pub remat: Option<Remat>,
    /// Bytes for weights, gradients, moments and activations, with --remat auto: 2GB, 500MB, … (default: as many as it takes)
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// The optimiser to compile (default adamw)
    #[arg(long, value_parser = optimizer())]
    pub optimizer: Option<OptimizerKind>,
    /// Parameters that are not trained, by pattern (`*`, `?`); may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub freeze: Vec<String>,
    /// Sum gradients over this many batches before an update (default 1)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub accumulate: Option<usize>,
}

/// A parser of one of these words, each with its help.
fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    values: [(T, &'static str, &'static str); N],
) -> impl TypedValueParser<Value = T> {
    let words = values.map(|(_, word, help)| PossibleValue::new(word).help(help));
    PossibleValuesParser::new(words).try_map(move |given| {
        let value = values.into_iter().find(|(_, word, _)| *word == given);
        value.map(|(value, ..)| value).ok_or("no such word")
    })
}

fn remat() -> impl TypedValueParser<Value = Remat> {
    one_of([
        (Remat::Auto, Remat::Auto.name(), "What costs more to compute again than to keep, if it fits"),
        (Remat::None, Remat::None.name(), "Everything but elementwise operations"),
        (Remat::Iteration, Remat::Iteration.name(), "The carried state only"),
    ])
}

fn optimizer() -> impl TypedValueParser<Value = OptimizerKind> {
    one_of([
        (OptimizerKind::AdamW, OptimizerKind::AdamW.name(), "AdamW, as in PyTorch"),
        (OptimizerKind::EllisAdam, OptimizerKind::EllisAdam.name(), "The variant of the Huginn run"),
    ])
}

/// Arguments of `grad`.
#[cfg(feature = "compiler")]
#[derive(Args, Debug)]
pub struct GradArgs {
    /// The model text
    pub model: PathBuf,
    /// Tensors by name: input_ids [B,S], labels [B,S] (already shifted, -100 ignored), optional initial_state [B,S,dim]
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where `loss` and `grad.NAME` for every parameter go
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Iterations without gradient, first
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub no_grad_steps: usize,
    /// Iterations with gradient, after them
    #[arg(long, value_name = "K")]
    pub grad_steps: usize,
    /// Seed of what is drawn: an initial state not given, weights without a checkpoint (default 0)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads (default: what the process may use)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub training: TrainFlags,
    #[command(flatten)]
    pub options: ModelArgs,
}

/// A stage to look at.
#[cfg(feature = "compiler")]
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// The intermediate representation.
    Ir,
    /// Kernels, memory plan and schedule.
    Program,
    /// MLIR of each kernel.
    Mlir,
    /// Optimised LLVM IR of each kernel.
    Llvm,
    /// Assembly of each kernel.
    Asm,
    /// Object files (needs -o).
    Obj,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// An artifact (.rda), or a model text (.rdm) to compile for the input's shapes
    pub file: PathBuf,
    /// Tensors by name: input_ids [B,S], optional initial_state [B,S,dim]
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where the results go
    #[arg(long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Iterations of the loop (default: the text's)
    #[arg(long, value_name = "R")]
    pub steps: Option<usize>,
    /// Seed of everything drawn: an initial state not given, weights without a checkpoint (default 0)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads (default: what the process may use)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Feed the sequence in pieces of these lengths through the KV cache
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = positive)]
    pub chunks: Vec<usize>,
    /// Which read-out of the text to run
    #[arg(long, value_name = "NAME")]
    pub readout: Option<String>,
    /// Also write the state after each iteration: state_1 … state_R
    #[arg(long)]
    pub states: bool,
    /// Print time, FLOP/s and bytes/s per kernel against measured ceilings
    #[arg(long)]
    pub profile: bool,
    /// Write a trace for Perfetto (implies profiling)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The profile as JSON
    #[arg(long)]
    pub json: bool,
    /// Do not read or write the compile cache
    #[arg(long)]
    pub no_cache: bool,
    /// Check every byte of the artifact first, the weights of files over 256 MB too
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub options: ModelArgs,
}

/// Arguments of `train`.
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// A model text (.rdm), or an artifact of `rdc compile --train`
    pub file: PathBuf,
    /// The configuration; flags have precedence over it
    #[arg(long, value_name = "train.toml")]
    pub config: PathBuf,
    /// The folder of the run: checkpoints, metrics.jsonl, loss.svg
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue from the newest checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    /// Start from this checkpoint (a Hugging Face folder or a safetensors file) instead of drawn weights
    #[arg(long, value_name = "DIR")]
    pub finetune: Option<PathBuf>,
    /// Steps of the run
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Rows of a batch
    #[arg(long, value_name = "B", value_parser = positive)]
    pub batch: Option<usize>,
    /// Tokens of a row
    #[arg(long, value_name = "S", value_parser = positive)]
    pub seq: Option<usize>,
    /// The full learning rate
    #[arg(long, value_name = "LR")]
    pub lr: Option<f64>,
    /// Seed of everything drawn
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads (default: what the process may use)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Set a size, flag or string of the text
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// The CPU to compile for (default native)
    #[arg(long, value_name = "T")]
    pub target: Option<String>,
    /// Print an event per line as JSON instead of progress
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub training: TrainFlags,
}

/// Arguments of `eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// An artifact (.rda), or a model text (.rdm) with --hf or --weights
    pub file: PathBuf,
    /// A built-in task
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub task: Option<String>,
    /// Sizes of the task's problems, each measured on its own (default: what fits)
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = positive, requires = "task")]
    pub size: Vec<usize>,
    /// A training configuration, whose validation rows are taken
    #[arg(long, value_name = "train.toml")]
    pub config: Option<PathBuf>,
    /// Numbers of iterations
    #[arg(long, value_name = "R,R,…", value_delimiter = ',', default_value = "1,2,4,8,16,32")]
    pub steps: Vec<usize>,
    /// Rows that are measured, of each size
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub rows: usize,
    /// Seed of problems and states
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Worker threads (default: what the process may use)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Draw accuracy over iterations (loss, where nothing is exact) into this file
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub options: ModelArgs,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// An artifact (.rda) or a model text (.rdm)
    pub file: PathBuf,
    /// Count work and unrolled parameters at this number of iterations (default: the text's)
    #[arg(long, value_name = "R")]
    pub steps: Option<usize>,
    /// Check every byte of the artifact first, the weights too
    #[arg(long)]
    pub verify: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub options: ModelArgs,
}

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Artifacts whose kernels to measure; without any, a matmul and the sizes below, compiled now
    pub artifacts: Vec<PathBuf>,
    /// Sizes of the standard model
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "tiny,small,medium")]
    pub sizes: Vec<String>,
    /// Weight types
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32")]
    pub dtype: Vec<Dtype>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "gemm,prefill,decode")]
    pub work: Vec<Work>,
    /// Iterations of the loop
    #[arg(long, value_name = "R", value_delimiter = ',', default_value = "8,32")]
    pub steps: Vec<usize>,
    /// Worker threads
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = positive)]
    pub threads: Vec<usize>,
    /// Seconds of measuring per line
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub seconds: f64,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// With an artifact: only the kernels whose name contains this
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// With --work train: time per kernel of one more step
    #[arg(long)]
    pub profile: bool,
    /// With an artifact: launch each kernel this often and measure nothing (to count instructions)
    #[arg(long, value_name = "N")]
    pub repeat: Option<usize>,
    /// As JSON, one object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub training: TrainFlags,
}

/// What `bench` measures.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A 512 x 512 x 512 matmul.
    Gemm,
    /// A whole prompt.
    Prefill,
    /// One token behind a full cache.
    Decode,
    /// A training step, the last 8 iterations with gradient; of an artifact of `compile --train` if one is given.
    Train,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("is not a number".into()),
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_positive_and_settings_have_a_name() {
        assert_eq!(positive("3"), Ok(3));
        assert!(positive("0").is_err() && positive("x").is_err());
        assert_eq!(assignment("dim=64"), Ok(("dim".into(), "64".into())));
        assert!(assignment("dim").is_err() && assignment("=64").is_err());
    }
}
