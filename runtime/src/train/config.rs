//! The configuration of a run: train.toml.
use super::{Optimizer, Recurrence, Schedule};
use crate::Error;
use crate::data::DataConfig;
use rdc_ir::training::Remat;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A whole configuration. Sections that are left out have their defaults; `[recurrence]` and `train.steps` must be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What of the model text is trained.
    #[serde(default)]
    pub model: ModelConfig,
    /// Where rows come from.
    #[serde(default)]
    pub data: DataConfig,
    /// How many iterations a step runs.
    pub recurrence: Recurrence,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// How its learning rate changes.
    #[serde(default)]
    pub schedule: Schedule,
    /// Sizes of the run.
    pub train: TrainConfig,
    /// Validation.
    #[serde(default)]
    pub validate: ValidateConfig,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

/// The section `[model]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Sizes and flags of the text that are set, by name.
    pub set: toml::Table,
    /// The loss of the text; by default its first.
    pub loss: Option<String>,
    /// A checkpoint that training starts from, instead of drawn parameters.
    pub finetune: Option<PathBuf>,
    /// Patterns of the names of parameters that are not trained; `*` stands for any characters, `?` for one.
    pub freeze: Vec<String>,
}

/// The section `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps of the run.
    pub steps: u64,
    /// Rows of a batch.
    pub batch: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Batches whose gradients are accumulated for one step.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Seed of everything that is random.
    #[serde(default)]
    pub seed: u64,
    /// Threads; by default as many as the process may use. Results do not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// What is kept for the derivative.
    #[serde(default)]
    pub remat: Remat,
    /// Memory that `remat = "auto"` may plan for, as `"2GB"` or in bytes; by default as much as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

fn one() -> usize {
    1
}

/// The section `[validate]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidateConfig {
    /// Steps between validations, which also happen at the end; 0 for none.
    pub every: u64,
    /// The numbers of iterations that it measures.
    pub steps: Vec<usize>,
    /// Batches, the same each time.
    pub batches: usize,
}

impl Default for ValidateConfig {
    fn default() -> ValidateConfig {
        ValidateConfig { every: 0, steps: vec![1, 4, 16], batches: 8 }
    }
}

/// The section `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints, which are also written at the end; 0 for the end only.
    pub every: u64,
    /// So many of the newest are kept.
    pub keep: usize,
    /// Those of steps divisible by this are kept for good; 0 for none.
    pub keep_every: u64,
}

impl Default for CheckpointConfig {
    fn default() -> CheckpointConfig {
        CheckpointConfig { every: 1000, keep: 2, keep_every: 0 }
    }
}

/// A number of bytes, written as `"2GB"`, `"512 MiB"` or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "u64")]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Bytes {
    type Error = String;
    fn try_from(written: Written) -> Result<Bytes, String> {
        match written {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Bytes, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let unit = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1048576.0,
            "gib" => 1073741824.0,
            "tib" => 1099511627776.0,
            _ => return Err(format!("`{text}` is no number of bytes: write it as 2GB, 512MiB or 1000000")),
        };
        match digits.trim().parse::<f64>() {
            Ok(number) if number >= 0.0 && number * unit < 9e18 => Ok(Bytes((number * unit) as u64)),
            _ => Err(format!("`{text}` is no number of bytes: write it as 2GB, 512MiB or 1000000")),
        }
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or has a field that is unknown, missing or out of range; the message shows the line.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Config::parse(&text).map_err(|m| Error::file(path, m))
    }
    /// A configuration from its text.
    ///
    /// # Errors
    /// As [`Config::load`], without the path.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_string())?;
        config.check()?;
        Ok(config)
    }
    /// What is wrong with the numbers, if something is; call it again after changing fields.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), String> {
        let train = &self.train;
        let at_least_one = [
            ("train.steps", train.steps),
            ("train.batch", train.batch as u64),
            ("train.seq", train.seq as u64),
            ("train.accumulate", train.accumulate as u64),
            ("checkpoint.keep", self.checkpoint.keep as u64),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0"));
        }
        if self.validate.every > 0 && (self.validate.steps.is_empty() || self.validate.batches == 0) {
            return Err("validate.every is set, but validate.steps is empty or validate.batches is 0".into());
        }
        self.optimizer.check()?;
        self.schedule.check()
    }
    /// The learning rate of a step, from 1.
    pub fn lr(&self, step: u64) -> f64 {
        self.optimizer.lr * self.schedule.factor(step, self.train.steps)
    }
    /// What differs from another configuration such that a resumed run would not continue it exactly: `field: old, now new`. The
    /// number of steps is not among it, so that a run can be made longer; a cooldown moves with it.
    pub fn differences(&self, old: &Config) -> Vec<String> {
        let essence = |config: &Config| {
            let mut value = serde_json::to_value(config).unwrap_or_default();
            if let Some(sections) = value.as_object_mut() {
                for section in ["validate", "checkpoint"] {
                    sections.remove(section);
                }
                if let Some(train) = sections.get_mut("train").and_then(|t| t.as_object_mut()) {
                    for field in ["steps", "threads", "remat", "memory"] {
                        train.remove(field);
                    }
                }
                if let Some(model) = sections.get_mut("model").and_then(|m| m.as_object_mut()) {
                    model.remove("finetune");
                }
            }
            value
        };
        let mut found = Vec::new();
        compare("", &essence(old), &essence(self), &mut found);
        found
    }
}

fn compare(path: &str, old: &serde_json::Value, new: &serde_json::Value, found: &mut Vec<String>) {
    match (old.as_object(), new.as_object()) {
        (Some(a), Some(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let null = serde_json::Value::Null;
                compare(&at, a.get(name).unwrap_or(&null), b.get(name).unwrap_or(&null), found);
            }
        }
        _ if old != new => found.push(format!("{path} was {old}, now {new}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
[model]
loss = "main"
freeze = ["wte.*", "*.norm.weight"]
set = { dim = 64, tied = true }
[data]
task = "parity"
restart = 0.1
[recurrence]
kind = "lognormal_poisson"
mean = 8
backprop = 4
[optimizer]
kind = "ellis-adam"
lr = 1e-3
betas = [0.9, 0.95]
weight_decay = 4e-5
clip = 1.0
[schedule]
kind = "trapezoid"
warmup = 100
cooldown = 0.4
[train]
steps = 1000
batch = 44
seq = 24
seed = 7
remat = "iteration"
memory = "2GB"
[validate]
every = 100
steps = [1, 8]
batches = 4
[checkpoint]
every = 100
keep = 3
"#;

    #[test]
    fn a_whole_configuration() {
        let config = Config::parse(WHOLE).unwrap();
        assert_eq!(config.train.memory, Some(Bytes(2_000_000_000)));
        assert_eq!((config.train.accumulate, config.train.threads), (1, None));
        assert_eq!(config.lr(1), 1e-5);
        assert_eq!((config.lr(600), config.lr(1000)), (1e-3, 1e-3 / 400.0));
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
        let least = "recurrence = { kind = 'fixed', k = 1 }\ntrain = { steps = 1, batch = 1, seq = 1 }";
        assert_eq!(Config::parse(least).unwrap().optimizer, Optimizer::default());
    }

    /// What is shipped can be read.
    #[test]
    fn the_examples_configurations() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let mut read = 0;
        for folder in std::fs::read_dir(examples).unwrap().flatten().filter(|e| e.path().is_dir()) {
            for file in std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()) {
                if file.extension().is_some_and(|e| e == "toml") {
                    Config::load(&file).unwrap();
                    read += 1;
                }
            }
        }
        assert!(read > 0);
        assert!(Config::load(Path::new("absent.toml")).unwrap_err().to_string().contains("absent.toml"));
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        let broken = |old: &str, new: &str| {
            assert!(WHOLE.contains(old));
            Config::parse(&WHOLE.replace(old, new)).unwrap_err()
        };
        for (old, new, parts) in [
            ("batch = 44", "batches = 44", ["unknown field `batches`", "line 25"]),
            ("steps = 1000\n", "", ["missing field `steps`", "train"]),
            ("mean = 8", "mean = 'many'", ["invalid type", "mean"]),
            ("\"lognormal_poisson\"", "\"lognormal\"", ["no kind of recurrence", "uniform"]),
            ("\"2GB\"", "\"2 parsecs\"", ["2 parsecs", "512MiB"]),
            ("remat = \"iteration\"", "remat = \"some\"", ["unknown variant `some`", "auto"]),
            ("steps = 1000", "steps = 0", ["train.steps", "0"]),
            ("keep = 3", "keep = 0", ["checkpoint.keep", "0"]),
            ("batches = 4\n", "batches = 0\n", ["validate", "batches"]),
            ("lr = 1e-3", "lr = -1", ["optimizer.lr", "-1"]),
            ("cooldown = 0.4", "cooldown = 4.5", ["schedule.cooldown", "4.5"]),
            ("clip = 1.0", "clip = 1.0.0", ["line 18", "clip"]),
        ] {
            let message = broken(old, new);
            assert!(parts.iter().all(|p| message.contains(p)), "{message}");
        }
    }

    #[test]
    fn differences_are_named() {
        let old = Config::parse(WHOLE).unwrap();
        let mut new = old.clone();
        (new.train.steps, new.train.threads, new.validate.every, new.checkpoint.keep) = (5, Some(3), 1, 9);
        (new.train.remat, new.train.memory) = (Remat::None, None);
        assert_eq!(new.differences(&old), Vec::<String>::new());
        new.optimizer.lr = 0.5;
        new.train.batch = 8;
        new.model.set.remove("dim");
        new.recurrence.curriculum = 10;
        assert_eq!(
            new.differences(&old),
            [
                "model.set.dim was 64, now null",
                "optimizer.lr was 0.001, now 0.5",
                "recurrence.curriculum was null, now 10",
                "train.batch was 44, now 8"
            ]
        );
    }

    #[test]
    fn numbers_of_bytes() {
        for (text, bytes) in [("512MiB", 512 << 20), ("1.5 kb", 1500), ("7", 7), ("2 GiB", 2 << 30)] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        }
        assert!(["", "GB", "-1", "1e30TB", "2XB"].iter().all(|t| t.parse::<Bytes>().is_err()));
    }
}
