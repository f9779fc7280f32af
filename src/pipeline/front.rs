//! The first stage: a text, with its config and checkpoint, is lowered for the shapes that the command line asks for.
use crate::cli::{Dtype, ModelArgs};
use crate::files;
use crate::fingerprint;
use crate::training::Training;
use anyhow::{Context, Result};
use rdc_frontend::checkpoint::match_tensors;
use rdc_frontend::{Diagnostic, LossSelection, Lowered};
use rdc_ir::DType;
use rdc_runtime::checkpoint::Checkpoint;
use rdc_runtime::weights::CheckpointSource;
use std::collections::BTreeMap;
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

/// A text, read and lowered, with its checkpoint.
pub struct Front {
    pub(super) text: Text,
    pub(super) lowered: Lowered,
    pub(super) checkpoint: Option<Weights>,
    pub(super) dtype: Dtype,
    pub(super) kv_dtype: DType,
    pub(super) target: String,
    pub(super) last_only: bool,
    pub(super) training: Option<Training>,
}

/// A checkpoint whose tensors fit the model.
pub(super) struct Weights {
    checkpoint: Checkpoint,
    /// Tensor names by parameter names.
    names: BTreeMap<String, String>,
    pub(super) fingerprint: String,
}

impl Weights {
    /// The parameters' values.
    pub(super) fn source(&self) -> CheckpointSource<'_> {
        CheckpointSource::new(&self.checkpoint, self.names.clone())
    }
}

/// Lowers a text with its config, and opens its checkpoint.
pub fn lower(text: Text, args: &ModelArgs, shapes: &Shapes) -> Result<Front> {
    let config = args.hf.as_deref().map(read_config).transpose()?;
    let kv_dtype = args.kv_dtype.unwrap_or(DType::F32);
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
        kv_dtype,
        readouts: None,
        last_only: args.last_only,
        losses: LossSelection::None,
        train_seq: None,
    };
    options.chunks.sort_unstable_by(|a, b| b.cmp(a));
    options.chunks.dedup();
    let lowered = |options: &rdc_frontend::Options| {
        rdc_frontend::compile(&text.name, &text.source, options)
            .map_err(|errors| rendered(&errors, &text.name, &text.source))
    };
    // Lowering costs next to nothing, and shows the read-outs and the losses.
    let probe = lowered(&options)?;
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
    let lowered = if shapes.training.is_none() && options.readouts.is_none() { probe } else { lowered(&options)? };
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
        kv_dtype,
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
