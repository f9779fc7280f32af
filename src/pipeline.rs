//! From a model text to an artifact: the front end, the passes and the back end in order, with what the command line chose.
use crate::cli::{Dtype, ModelArgs};
use crate::files;
use crate::fingerprint;
use crate::kv;
use crate::progress::Progress;
use crate::report::{Report, Work};
use anyhow::{Context, Result};
use rdc_backend_cpu::CodeImage;
use rdc_frontend::checkpoint::match_tensors;
use rdc_frontend::{Diagnostic, LossSelection, Lowered};
use rdc_ir::program::Program;
use rdc_ir::{Func, Module, Opcode, Type};
use rdc_passes::optimizer::Optimizer;
use rdc_passes::{Observer, WeightType};
use rdc_runtime::artifact::{self, Contents, LossInfo, Meta, ParamInfo, Readout, TrainMeta};
use rdc_runtime::checkpoint::Checkpoint;
use rdc_runtime::code::Code;
use rdc_runtime::model::Model;
use rdc_runtime::train::{Bytes, OptimizerKind, Remat, Trainer};
use rdc_runtime::weights::{CheckpointSource, DrawnSource, ParamSource};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::Path;

/// Diagnostics as they are to be shown.
#[derive(Debug)]
pub struct Rendered(String);

impl std::fmt::Display for Rendered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Rendered {}

/// A model text.
pub struct Text {
    /// What it is called in messages: its path.
    pub name: String,
    /// What it says.
    pub source: String,
}

impl Text {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Text> {
        Ok(Text { name: path.display().to_string(), source: files::read_text(path)? })
    }
}

/// What a text is specialised for beside its [`ModelArgs`].
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    /// Rows; `--batch` or 1 if absent.
    pub batch: Option<usize>,
    /// Chunk lengths; `--seq` and 1 if absent.
    pub chunks: Option<Vec<usize>>,
    /// A read-out to compile alone; all if absent.
    pub readout: Option<Option<String>>,
    /// If set, losses are compiled for training, and no read-out is.
    pub training: Option<Training>,
}

/// How losses are compiled for training.
#[derive(Clone, Debug)]
pub struct Training {
    /// The losses; the text's first if there are none.
    pub losses: Vec<String>,
    /// Tokens of a row; the compiler's choice if absent.
    pub seq: Option<usize>,
    /// The most iterations with gradient.
    pub max_grad_steps: usize,
    /// What is kept for the way back.
    pub remat: Remat,
    /// Bytes that [`Remat::Auto`] may plan for.
    pub memory: Option<Bytes>,
    /// The optimiser to compile, if any.
    pub optimizer: Option<OptimizerKind>,
    /// Whether gradients are summed over several batches before an update.
    pub accumulate: bool,
    /// Patterns (`*` and `?`) of parameters that are not trained.
    pub freeze: Vec<String>,
    /// Whether the losses without gradient are compiled too, for evaluation.
    pub evaluate: bool,
}

/// A text, read and lowered, with its checkpoint.
pub struct Front {
    text: Text,
    lowered: Lowered,
    checkpoint: Option<Weights>,
    dtype: Dtype,
    target: String,
    last_only: bool,
    training: Option<Training>,
}

/// A checkpoint whose tensors fit the model.
struct Weights {
    checkpoint: Checkpoint,
    /// Tensor names by parameter names.
    names: BTreeMap<String, String>,
    fingerprint: String,
}

/// A text up to the program.
pub struct Built {
    /// The metadata, without symbols.
    pub meta: Meta,
    /// The module after the last pass.
    pub module: Module,
    checkpoint: Option<Weights>,
}

/// Lowers a text with its config, and opens its checkpoint.
pub fn front(text: Text, args: &ModelArgs, shapes: &Shapes) -> Result<Front> {
    let config = args.hf.as_deref().map(read_config).transpose()?;
    let mut options = rdc_frontend::Options {
        config,
        overrides: args.set.clone(),
        batch: shapes.batch.or(args.batch).unwrap_or(1),
        chunks: match (&shapes.training, &shapes.chunks, args.seq) {
            (None, Some(chunks), None) => chunks.clone(),
            (None, _, Some(seq)) => vec![seq, 1],
            _ => Vec::new(),
        },
        context: args.context,
        max_steps: args.max_steps,
        kv: args.kv,
        readouts: None,
        last_only: args.last_only,
        losses: LossSelection::None,
        train_seq: None,
    };
    options.chunks.sort_unstable_by(|a, b| b.cmp(a));
    options.chunks.dedup();
    let lower = |options: &rdc_frontend::Options| {
        rdc_frontend::compile(&text.name, &text.source, options)
            .map_err(|errors| rendered(&errors, &text.name, &text.source))
    };
    // Lowering costs next to nothing, and shows the read-outs and the losses.
    let probe = lower(&options)?;
    if let Some(training) = &shapes.training {
        let wanted = if training.losses.is_empty() {
            Vec::from_iter(probe.default_loss.clone())
        } else {
            training.losses.clone()
        };
        // A text without losses gets the front end's error.
        options.losses = if wanted.is_empty() { LossSelection::All } else { LossSelection::Only(wanted) };
        options.train_seq = training.seq.or(args.seq);
    }
    options.readouts = shapes.readout.as_ref().map(|r| vec![r.clone().unwrap_or(probe.default_readout.clone())]);
    let lowered = if shapes.training.is_none() && options.readouts.is_none() { probe } else { lower(&options)? };
    if !lowered.warnings.is_empty() {
        eprint!(
            "{}",
            rdc_frontend::render_with(&lowered.warnings, &text.name, &text.source, std::io::stderr().is_terminal())
        );
    }
    let weights = args.hf.as_deref().or(args.weights.as_deref());
    let checkpoint = weights.map(|w| open_checkpoint(w, &lowered)).transpose()?;
    Ok(Front {
        text,
        lowered,
        checkpoint,
        dtype: args.dtype.unwrap_or(Dtype::F32),
        target: args.target.clone().unwrap_or_else(|| "native".into()),
        last_only: args.last_only,
        training: shapes.training.clone(),
    })
}

fn rendered(errors: &[Diagnostic], name: &str, source: &str) -> anyhow::Error {
    Rendered(rdc_frontend::render_with(errors, name, source, std::io::stderr().is_terminal())).into()
}

fn read_config(folder: &Path) -> Result<serde_json::Value> {
    let path = folder.join("config.json");
    serde_json::from_str(&files::read_text(&path)?).with_context(|| format!("{} is not JSON", path.display()))
}

fn open_checkpoint(path: &Path, lowered: &Lowered) -> Result<Weights> {
    let checkpoint = Checkpoint::open(path)?;
    let tensors: Vec<(String, Vec<usize>)> =
        checkpoint.tensors().map(|(name, info)| (name.to_string(), info.shape.clone())).collect();
    let matched = match_tensors(&lowered.module, &lowered.ignored, &tensors)
        .map_err(|errors| rendered(&errors, &path.display().to_string(), ""))?;
    let note = |what: &str, names: &[String]| {
        if !names.is_empty() {
            eprintln!("note: {}: {what}: {}", path.display(), names.join(", "));
        }
    };
    note("tensors that the text ignores", &matched.ignored);
    note("tensors that nothing uses", &matched.unused);
    let params = lowered.module.params.values().map(|p| p.name.clone());
    let names = params.zip(matched.tensors.iter().map(|&i| tensors[i].0.clone())).collect();
    let fingerprint = fingerprint::of(&checkpoint);
    Ok(Weights { checkpoint, names, fingerprint })
}

/// Runs the passes. The observer sees the module after each; see [`pipeline::POINTS`].
pub fn build(front: Front, observer: &mut Observer<'_>) -> Result<Built> {
    let Front { text, lowered, checkpoint, dtype, target, last_only, training } = front;
    let target = rdc_backend_cpu::target(&target)?;
    let frozen = training.as_ref().map(|t| frozen(&lowered.module, &t.freeze)).transpose()?.unwrap_or_default();
    let train = training.as_ref().map(|t| train_meta(t, &lowered, &frozen));
    let options = rdc_passes::Options {
        target,
        dtype: match dtype {
            Dtype::F32 => WeightType::F32,
            Dtype::Bf16 => WeightType::Bf16,
            Dtype::I8 => WeightType::I8,
        },
        expected_trips: lowered.default_steps.max(1),
        training: training.as_ref().map(|t| rdc_passes::Training {
            max_grad_steps: t.max_grad_steps,
            remat: match t.remat {
                Remat::None => rdc_passes::Remat::None,
                Remat::Iteration => rdc_passes::Remat::Iteration,
                Remat::Auto => rdc_passes::Remat::Auto {
                    memory: t.memory.map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX)),
                },
            },
            optimizer: t.optimizer.map(|kind| rdc_passes::optimizer::Options {
                optimizer: match kind {
                    OptimizerKind::Adamw => Optimizer::AdamW,
                    OptimizerKind::EllisAdam => Optimizer::EllisAdam,
                },
                accumulate: t.accumulate,
                ..Default::default()
            }),
            frozen,
            losses: t.evaluate,
        }),
    };
    let written: Vec<(String, [u64; 2])> = lowered.module.funcs.iter().map(|f| (f.name.clone(), flops(f))).collect();
    let looped_stack_parameters = looped_stack_parameters(&lowered.module);
    let compiled = rdc_passes::compile(lowered.module, &options, observer);
    let (module, program) = compiled.map_err(|error| match error {
        rdc_passes::Error::Unsupported { message, loc } if loc.line > 0 => {
            let line = text.source.lines().nth(loc.line as usize - 1).unwrap_or_default().trim();
            anyhow::anyhow!("{}:{}:{}: {message}\n  {line}", text.name, loc.line, loc.col)
        }
        error => anyhow::anyhow!("{}: {error}", text.name),
    })?;
    // Those of the text, then the state of training.
    let params: Vec<ParamInfo> = module.params.values().map(ParamInfo::from).collect();
    let functions = written
        .into_iter()
        .map(|(name, [once_written, iteration_written])| {
            let [once, iteration] = module.func(&name).map_or([0, 0], flops);
            (name, Work { once_written, iteration_written, once, iteration })
        })
        .collect();
    let report = Report { looped_stack_parameters, functions };
    let mut options = BTreeMap::from([
        ("target".to_string(), program.target.name.clone()),
        ("batch".to_string(), lowered.batch.to_string()),
        ("context".to_string(), lowered.context.to_string()),
        ("max-steps".to_string(), lowered.max_steps.to_string()),
        ("kv".to_string(), kv::name(lowered.kv)),
        ("dtype".to_string(), dtype.name().to_string()),
        ("last-only".to_string(), last_only.to_string()),
    ]);
    if let Some(weights) = &checkpoint {
        options.insert("weights".to_string(), weights.fingerprint.clone());
    }
    let meta = Meta {
        compiler: env!("CARGO_PKG_VERSION").to_string(),
        sizes: lowered.sizes.into_iter().collect(),
        default_steps: lowered.default_steps,
        max_steps: lowered.max_steps,
        context: lowered.context,
        batch: lowered.batch,
        chunks: lowered.chunks,
        readouts: match training {
            Some(_) => Vec::new(),
            None => readouts(&lowered.default_readout, &lowered.readouts, &program),
        },
        shapes: module.funcs.iter().filter(|f| lowered.positions.contains_key(&f.name)).map(output_shapes).collect(),
        positions: lowered.positions,
        dtype: dtype.name().to_string(),
        kv: lowered.kv,
        params,
        train,
        options,
        report: serde_json::to_value(report)?,
        symbols: BTreeMap::new(),
        program,
    };
    Ok(Built { meta, module, checkpoint })
}

/// The shapes of a function's outputs less caches, by name, with the function's name.
fn output_shapes(func: &Func) -> (String, BTreeMap<String, Vec<usize>>) {
    let outputs = func.outputs.iter().zip(&func.regions[func.body].yields).filter(|(_, v)| !func.ty(**v).cache);
    (func.name.clone(), outputs.map(|(o, v)| (o.name.clone(), func.ty(*v).shape.clone())).collect())
}

/// The parameters whose names match one of the patterns.
fn frozen(module: &Module, patterns: &[String]) -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for pattern in patterns {
        let mut found = module.params.values().filter(|p| matches(pattern, &p.name)).peekable();
        anyhow::ensure!(found.peek().is_some(), "--freeze {pattern}: no parameter has such a name");
        names.extend(found.map(|p| p.name.clone()));
    }
    Ok(names.into_iter().collect())
}

/// Whether a name matches a pattern: `*` stands for any characters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) if matches(&pattern[1..], name) => true,
        (Some('*'), Some(c)) => matches(pattern, &name[c.len_utf8()..]),
        (Some(p), Some(c)) if p == '?' || p == c => matches(&pattern[p.len_utf8()..], &name[c.len_utf8()..]),
        _ => false,
    }
}

fn train_meta(training: &Training, lowered: &Lowered, frozen: &[String]) -> TrainMeta {
    let compiled = |l: &rdc_frontend::LossInfo| lowered.module.func(&l.func);
    let losses = lowered.losses.iter().filter_map(|l| Some((l, compiled(l)?))).map(|(l, func)| LossInfo {
        name: l.name.clone(),
        suffix: l.func.strip_prefix("loss").unwrap_or_default().to_string(),
        outputs: l.outputs.clone(),
        products: rdc_ir::cost::product_flops(func),
        all_steps: l.all_steps,
    });
    TrainMeta {
        losses: losses.collect(),
        batch: lowered.batch,
        seq: lowered.train_seq,
        max_grad_steps: training.max_grad_steps,
        remat: training.remat.name().into(),
        optimizer: training.optimizer.map_or("none", OptimizerKind::name).into(),
        accumulate: training.accumulate,
        frozen: frozen.to_vec(),
        config: lowered.config.iter().cloned().collect(),
    }
}

/// The default read-out first, then the others that are compiled.
fn readouts(default: &str, compiled: &[String], program: &Program) -> Vec<Readout> {
    let names = std::iter::once(default).chain(compiled.iter().map(String::as_str).filter(|n| *n != default));
    names
        .map(|name| {
            let suffix = if name == default { None } else { Some(name) };
            let entry = program.entries.iter().find(|e| e.name.split_once('.').map(|(_, s)| s) == suffix);
            let outputs = entry.into_iter().flat_map(|e| e.outputs.iter().map(|o| o.name.clone())).collect();
            Readout { name: name.to_string(), outputs }
        })
        .collect()
}

/// Operations of a function outside its loops, and of one iteration of its loops.
fn flops(func: &Func) -> [u64; 2] {
    let mut total = [0u64; 2];
    for (region, op) in func.walk() {
        let op = &func.ops[op];
        let types = |values: &[rdc_ir::ValueId]| values.iter().map(|&v| func.ty(v)).collect::<Vec<&Type>>();
        let cost = (op.opcode.info().flops)(op, &types(&op.operands), &types(&op.results));
        let part = &mut total[usize::from(region != func.body)];
        *part = part.saturating_add(cost);
    }
    total
}

/// Parameters of layer stacks that are used inside a loop.
fn looped_stack_parameters(module: &Module) -> u64 {
    let mut names = BTreeSet::new();
    for func in &module.funcs {
        for (region, op) in func.walk() {
            let op = &func.ops[op];
            if op.opcode != Opcode::Param {
                continue;
            }
            // A parameter read outside the loop counts if the loop captures it.
            let inside = region != func.body || {
                let captured = |(r, user): (rdc_ir::RegionId, rdc_ir::OpId)| {
                    r != func.body && func.ops[user].operands.iter().any(|v| op.results.contains(v))
                };
                func.walk().into_iter().any(captured)
            };
            if inside {
                names.insert(op.text("name").to_string());
            }
        }
    }
    let looped = module.params.values().filter(|p| p.in_stack && names.contains(&p.name));
    looped.map(|p| p.ty.elements() as u64).sum()
}

/// Generates the code of all kernels.
pub fn generate(built: &mut Built, progress: &Progress) -> Result<CodeImage> {
    let report = |p: rdc_backend_cpu::Progress| {
        progress.stage(&format!("compiling kernels: {} of {}, {}", p.done, p.total, p.kernel));
    };
    let image =
        rdc_backend_cpu::compile(&mut built.meta.program, &rdc_backend_cpu::Options { progress: Some(&report) })?;
    built.meta.symbols = image.symbols.iter().map(|s| (s.name.clone(), s.offset as u64)).collect();
    Ok(image)
}

/// Writes the artifact. The IR stays in it for readers.
pub fn write(built: &Built, image: &CodeImage, path: &Path, progress: &Progress) -> Result<()> {
    crate::interrupt::watch(path);
    let ir = built.module.to_string();
    let source = built.checkpoint.as_ref().map(|w| CheckpointSource::new(&w.checkpoint, w.names.clone()));
    let contents = Contents {
        meta: &built.meta,
        code: &image.bytes,
        ir: Some(&ir),
        params: source.as_ref().map(|s| s as &dyn rdc_runtime::weights::ParamSource),
    };
    artifact::write(path, &contents, &mut |done, total| {
        let percent = done * 100 / total.max(1);
        progress.stage(&format!("writing weights: {percent} % of {}", crate::table::bytes(total as usize)));
    })?;
    Ok(())
}

/// Where the parameters of a built text come from: its checkpoint, or draws.
fn source(built: &Built, seed: u64) -> Box<dyn ParamSource + '_> {
    match &built.checkpoint {
        Some(w) => Box::new(CheckpointSource::new(&w.checkpoint, w.names.clone())),
        None => Box::new(DrawnSource::new(&built.meta.params, seed)),
    }
}

/// A model in memory, with weights from the checkpoint or drawn.
pub fn in_memory(built: &Built, image: &CodeImage, seed: u64) -> Result<Model> {
    let code = Code::from_image(&image.bytes, built.meta.symbols.clone())?;
    Ok(Model::from_parts(built.meta.clone(), code, &*source(built, seed))?)
}

/// Compiles a text to an artifact file.
pub fn compile_to(text: Text, args: &ModelArgs, shapes: &Shapes, output: &Path, progress: &Progress) -> Result<()> {
    let (built, image) = compile(text, args, shapes, progress)?;
    write(&built, &image, output, progress)
}

/// Compiles a text and loads it, without a file.
pub fn compile_in_memory(
    text: Text,
    args: &ModelArgs,
    shapes: &Shapes,
    seed: u64,
    progress: &Progress,
) -> Result<Model> {
    let (built, image) = compile(text, args, shapes, progress)?;
    progress.stage("making weights");
    in_memory(&built, &image, seed)
}

/// Compiles a text for training and loads it, without a file.
pub fn compile_trainer(
    text: Text,
    args: &ModelArgs,
    shapes: &Shapes,
    seed: u64,
    threads: usize,
    progress: &Progress,
) -> Result<Trainer> {
    let (built, image) = compile(text, args, shapes, progress)?;
    progress.stage("making weights");
    let model = in_memory(&built, &image, seed)?;
    Ok(Trainer::new(model, threads, Some(&*source(&built, seed)))?)
}

fn compile(text: Text, args: &ModelArgs, shapes: &Shapes, progress: &Progress) -> Result<(Built, CodeImage)> {
    progress.stage("reading");
    let front = front(text, args, shapes)?;
    progress.stage("optimising");
    let mut built = build(front, &mut |_, _| ())?;
    let image = generate(&mut built, progress)?;
    Ok((built, image))
}
