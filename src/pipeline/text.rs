//! All the stages on end: from a text to a model in memory.
use super::build::{self, Built};
use super::emit;
use super::front::{self, Shapes, Text};
use crate::cli::ModelArgs;
use crate::progress::Progress;
use crate::{cache, files};
use anyhow::Result;
use rdc_backend_cpu::CodeImage;
use rdc_runtime::artifact::{Artifact, Verify};
use rdc_runtime::code::Code;
use rdc_runtime::model::Model;
use rdc_runtime::train::Trainer;
use rdc_runtime::weights::{DrawnSource, ParamSource};
use std::path::Path;

/// Compiles a text and loads it, without a file; weights without a checkpoint are drawn.
pub fn model(text: Text, args: &ModelArgs, shapes: &Shapes, seed: u64, progress: &Progress) -> Result<Model> {
    let (built, image) = compile(text, args, shapes, progress)?;
    progress.stage("making weights");
    in_memory(&built, &image, &*source(&built, seed))
}

/// Compiles a text for training and loads it, without a file.
pub fn trainer(
    text: Text,
    args: &ModelArgs,
    shapes: &Shapes,
    seed: u64,
    threads: usize,
    progress: &Progress,
) -> Result<Trainer> {
    let (built, image) = compile(text, args, shapes, progress)?;
    progress.stage("making weights");
    let source = source(&built, seed);
    let model = in_memory(&built, &image, &*source)?;
    Ok(Trainer::new(model, threads, Some(&*source))?)
}

/// Like [`model`], but takes the artifact of an earlier call from the cache, or leaves one there.
pub fn cached(
    path: &Path,
    args: &ModelArgs,
    shapes: &Shapes,
    seed: u64,
    verify: Verify,
    progress: &Progress,
) -> Result<Model> {
    let entry = cache_key(path, args, shapes)?.path();
    if let Some(entry) = entry.as_deref().filter(|e| e.exists()) {
        // An entry that cannot be loaded (of another rdc, cut off by a full disk) is made anew.
        if let Ok(model) = Artifact::open(entry, verify).and_then(|a| Model::load(&a, seed)) {
            cache::touch(entry);
            return Ok(model);
        }
    }
    let Some(entry) = entry.filter(|e| cache::prepare(e).is_ok()) else {
        return model(Text::read(path)?, args, shapes, seed, progress);
    };
    let (built, image) = compile(Text::read(path)?, args, shapes, progress)?;
    emit::write(&built, &image, &entry, progress)?;
    cache::trim(&entry);
    Ok(Model::load(&Artifact::open(&entry, Verify::Fast)?, seed)?)
}

/// What an artifact of a text depends on.
fn cache_key(text: &Path, args: &ModelArgs, shapes: &Shapes) -> Result<cache::Key> {
    let mut key = cache::Key::new();
    key.add(files::read_text(text)?);
    key.add(format!("{:?}\n{shapes:?}", args));
    for path in args.hf.iter().chain(&args.weights) {
        match path.parent() {
            _ if path.is_dir() => key.add_folder(path),
            // An index names files beside it.
            Some(folder) if path.extension().is_some_and(|e| e == "json") => key.add_folder(folder),
            _ => key.add_file(path),
        }
    }
    Ok(key)
}

fn compile(text: Text, args: &ModelArgs, shapes: &Shapes, progress: &Progress) -> Result<(Built, CodeImage)> {
    progress.stage("reading");
    let front = front::lower(text, args, shapes)?;
    progress.stage("optimising");
    let mut built = build::program(front, &mut |_, _| ())?;
    let image = emit::code(&mut built, progress)?;
    Ok((built, image))
}

/// Where the parameters come from: the checkpoint, or draws.
fn source(built: &Built, seed: u64) -> Box<dyn ParamSource + '_> {
    match built.checkpoint() {
        Some(checkpoint) => Box::new(checkpoint),
        None => Box::new(DrawnSource::new(&built.meta.params, seed)),
    }
}

fn in_memory(built: &Built, image: &CodeImage, source: &dyn ParamSource) -> Result<Model> {
    let code = Code::from_image(&image.bytes, built.meta.symbols.clone())?;
    Ok(Model::from_parts(built.meta.clone(), code, source)?)
}
