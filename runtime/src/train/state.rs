//! Checkpoints of a run, in the layout of Hugging Face, so that other programs read the parameters.
//!
//! `DIR/step-000123/` holds `model.safetensors` (parameters), `optimizer.safetensors` (moments), `config.json` and what other
//! files the run was given, and `trainer.json` ([`State`]) with the digests of the others. A checkpoint is written to a
//! hidden folder, each file synced, then renamed: a folder of that name is always whole, whenever the process is killed. One
//! that is dropped is renamed to a hidden name first. What a killed process leaves hidden, the next one removes.
use super::{Config, Trainer};
use crate::Error;
use crate::checkpoint::{self, Checkpoint, Digest, Named};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file with the parameters.
pub const MODEL: &str = "model.safetensors";
/// The file with the moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// The file with the state of the run.
pub const TRAINER: &str = "trainer.json";
/// The file with the model's sizes.
pub const CONFIG: &str = "config.json";

/// The format that this crate writes, and the newest that it reads.
const VERSION: u32 = 1;

/// What a run needs, beside parameters and moments, to go on as if it had not stopped. Depths, batches and draws follow from the
/// seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the format.
    pub version: u32,
    /// Steps that are done.
    pub step: u64,
    /// Updates that are done: the optimiser's own count.
    pub updates: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// The smoothed loss.
    pub smoothed: Option<f32>,
    /// The model's name in its text.
    pub model: String,
    /// The model's sizes, constants and flags.
    pub sizes: BTreeMap<String, String>,
    /// What the data said it is.
    pub data: String,
    /// The configuration of the run. As TOML, which holds every number exactly, infinity too.
    #[serde(with = "as_toml")]
    pub config: Config,
    /// The other files of the checkpoint.
    #[serde(default)]
    pub files: BTreeMap<String, Digest>,
}

/// A configuration as a string of TOML.
mod as_toml {
    use super::Config;
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub fn serialize<S: Serializer>(config: &Config, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&toml::to_string(config).map_err(ser::Error::custom)?)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Config, D::Error> {
        toml::from_str(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

impl State {
    /// The state before the first step.
    pub fn new(trainer: &Trainer, config: &Config, data: String) -> State {
        let meta = trainer.meta();
        State {
            version: VERSION,
            step: 0,
            updates: 0,
            tokens: 0,
            seconds: 0.0,
            smoothed: None,
            model: meta.program.name.clone(),
            sizes: meta.sizes.clone(),
            data,
            config: config.clone(),
            files: BTreeMap::new(),
        }
    }
}

/// The config.json of a model: the fields that its text reads.
pub fn config_json(trainer: &Trainer) -> Vec<u8> {
    let mut config = trainer.train_meta().config.clone();
    config.entry("model_type").or_insert_with(|| trainer.meta().program.name.as_str().into());
    config.insert("torch_dtype".into(), "float32".into());
    format!("{:#}\n", serde_json::Value::Object(config)).into_bytes()
}

/// The folder of a run's checkpoints. While it is open no other process opens it.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl Checkpoints {
    /// Opens a folder, made if absent, and removes what a killed process has left half-done.
    ///
    /// # Errors
    /// If it cannot be made or written, or a run is using it.
    pub fn open(dir: &Path) -> Result<Checkpoints, Error> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let lock = dir.join(".lock");
        let file = File::create(&lock).map_err(Error::io(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::file(dir, "another run is writing into this folder"));
            }
            // A file system without locks.
            Err(fs::TryLockError::Error(_)) => {}
        }
        for entry in fs::read_dir(dir).map_err(Error::io(dir))?.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(HIDDEN) {
                fs::remove_dir_all(entry.path()).map_err(Error::io(&entry.path()))?;
            }
        }
        Ok(Checkpoints { dir: dir.to_path_buf(), _lock: file })
    }
    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Writes a checkpoint. `files` are further files by name. Nothing is copied in memory.
    ///
    /// # Errors
    /// If a file cannot be written, there is a checkpoint of that step, or a parameter is not finite.
    pub fn save(&self, trainer: &Trainer, state: &State, files: &BTreeMap<String, Vec<u8>>) -> Result<PathBuf, Error> {
        let path = self.dir.join(name_of(state.step));
        if path.exists() {
            return Err(Error::file(&path, "there is a checkpoint of this step already"));
        }
        let hidden = self.dir.join(format!("{HIDDEN}{}", state.step));
        let result = write(&hidden, trainer, state, files)
            .and_then(|()| fs::rename(&hidden, &path).map_err(Error::io(&path)))
            .and_then(|()| sync(&self.dir));
        if result.is_err() {
            let _ = fs::remove_dir_all(&hidden);
        }
        result.map(|()| path)
    }
    /// Removes checkpoints but for the `keep` newest and those of steps divisible by `keep_every` (if that is not 0).
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn prune(&self, keep: usize, keep_every: u64) -> Result<(), Error> {
        let all = list(&self.dir)?;
        for (step, path) in &all[..all.len().saturating_sub(keep)] {
            if keep_every > 0 && step % keep_every == 0 {
                continue;
            }
            let hidden = self.dir.join(format!("{HIDDEN}{step}"));
            fs::rename(path, &hidden).map_err(Error::io(path))?;
            fs::remove_dir_all(&hidden).map_err(Error::io(&hidden))?;
        }
        Ok(())
    }
}

/// How the names of unfinished and of dropped checkpoints begin.
const HIDDEN: &str = ".step-";

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// The checkpoints of a folder with their steps, the oldest first.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse::<u64>().ok());
        if let Some(step) = step
            && entry.path().is_dir()
        {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint of a folder, if there is one.
///
/// # Errors
/// If the folder cannot be read.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>, Error> {
    if !dir.exists() {
        return Ok(None);
    }
    Ok(list(dir)?.pop().map(|(_, path)| path))
}

/// Reads the state of a checkpoint and checks that its files are what was written.
///
/// # Errors
/// If a file is missing, damaged or of a newer format; the message names it.
pub fn read(path: &Path) -> Result<State, Error> {
    let file = path.join(TRAINER);
    let text = fs::read_to_string(&file).map_err(Error::io(&file))?;
    let damaged = |e: serde_json::Error| Error::file(&file, format!("not the state of a run: {e}"));
    let value: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
    match value["version"].as_u64() {
        Some(version) if version > u64::from(VERSION) => {
            return Err(Error::file(&file, format!("its format is version {version}; this rdc reads up to {VERSION}")));
        }
        _ => {}
    }
    let state: State = serde_json::from_value(value).map_err(damaged)?;
    for name in [MODEL, OPTIMIZER] {
        if !state.files.contains_key(name) {
            return Err(Error::file(&file, format!("it does not tell of {name}")));
        }
    }
    for (name, written) in &state.files {
        let file = path.join(name);
        let found = Digest::of(&file)?;
        if found.bytes != written.bytes {
            return Err(Error::file(&file, format!("it has {} bytes, not {}", found.bytes, written.bytes)));
        }
        if found.crc != written.crc {
            return Err(Error::file(&file, "it is damaged: its checksum is not the one that was written"));
        }
    }
    Ok(state)
}

/// Takes parameters and moments from a checkpoint that [`read`] has checked.
///
/// # Errors
/// If the model is another one, or a tensor is missing or of another shape.
pub fn load(path: &Path, state: &State, trainer: &mut Trainer) -> Result<(), Error> {
    let meta = trainer.meta();
    if meta.program.name != state.model {
        return Err(Error::file(path, format!("it is of the model {}, not of {}", state.model, meta.program.name)));
    }
    for name in state.sizes.keys().chain(meta.sizes.keys()) {
        let (then, now) = (state.sizes.get(name), meta.sizes.get(name));
        if then != now {
            let text = |value: Option<&String>| value.cloned().unwrap_or_else(|| "absent".into());
            return Err(Error::file(path, format!("the model's {name} was {}, now {}", text(then), text(now))));
        }
    }
    let names = |tensors: &mut dyn Iterator<Item = Named>| tensors.map(|t| t.0.to_string()).collect::<Vec<_>>();
    let (params, moments) = (names(&mut trainer.params()), names(&mut trainer.moments()));
    for (file, names) in [(MODEL, params), (OPTIMIZER, moments)] {
        let file = path.join(file);
        let checkpoint = Checkpoint::open(&file)?;
        for name in names {
            trainer.read_from(&name, &checkpoint).map_err(|e| Error::file(&file, e.to_string()))?;
        }
    }
    Ok(())
}

/// Writes all files of a checkpoint into a new folder, and syncs them and it.
fn write(dir: &Path, trainer: &Trainer, state: &State, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).map_err(Error::io(dir))?;
    let mut state = State { files: BTreeMap::new(), ..state.clone() };
    let params: Vec<_> = trainer.params().collect();
    let moments: Vec<_> = trainer.moments().collect();
    for (name, _, values) in params.iter().chain(&moments) {
        if !values.iter().all(|x| x.is_finite()) {
            return Err(Error::file(&dir.with_file_name(name_of(state.step)), format!("{name} is not finite")));
        }
    }
    for (file, tensors) in [(MODEL, params), (OPTIMIZER, moments)] {
        state.files.insert(file.into(), checkpoint::write(&dir.join(file), &tensors)?);
    }
    let own = (!files.contains_key(CONFIG)).then(|| (CONFIG.to_string(), config_json(trainer)));
    for (name, bytes) in files.iter().chain(own.as_ref().map(|(name, bytes)| (name, bytes))) {
        let digest = Digest { bytes: bytes.len() as u64, crc: crc32fast::hash(bytes) };
        write_file(&dir.join(name), bytes)?;
        state.files.insert(name.clone(), digest);
    }
    let path = dir.join(TRAINER);
    let text = serde_json::to_string_pretty(&state).map_err(|e| Error::file(&path, e.to_string()))?;
    write_file(&path, text.as_bytes())?;
    sync(dir)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(path))
}

/// Makes the names in a folder durable; some file systems cannot.
fn sync(dir: &Path) -> Result<(), Error> {
    let file = File::open(dir).map_err(Error::io(dir))?;
    let _ = file.sync_all();
    Ok(())
}

#[cfg(test)]
mod tests;
