//! How losses are compiled for training: from the flags or a configuration to what the passes and the artifact are told.
use crate::cli::{GRAD_STEPS, TrainFlags};
use anyhow::{Result, ensure};
use globset::{GlobBuilder, GlobMatcher};
use rdc_frontend::Lowered;
use rdc_ir::Module;
use rdc_ir::training::{OptimizerKind, Remat};
use rdc_runtime::artifact::{LossInfo, TrainMeta};
use rdc_runtime::train::{Bytes, Config};
use std::collections::BTreeSet;

/// How losses are compiled for training.
#[derive(Clone, Debug)]
pub struct Training {
    /// The losses; the text's first if there are none.
    pub losses: Vec<String>,
    /// Tokens of a row; the compiler's choice if absent.
    pub seq: Option<usize>,
    /// The most iterations with gradient.
    pub max_grad_steps: usize,
    /// What is kept for the backward pass.
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

impl Training {
    /// What the flags ask for, for `grad_steps` iterations with gradient at least.
    pub fn of_flags(flags: &TrainFlags, grad_steps: Option<usize>) -> Result<Training> {
        let remat = flags.remat.unwrap_or_default();
        ensure!(flags.memory.is_none() || remat == Remat::Auto, "--memory belongs to --remat auto");
        Ok(Training {
            losses: flags.loss.iter().cloned().collect(),
            seq: None,
            max_grad_steps: flags.max_grad_steps.or(grad_steps).unwrap_or(GRAD_STEPS).max(grad_steps.unwrap_or(1)),
            remat,
            memory: flags.memory,
            optimizer: Some(flags.optimizer.unwrap_or_default()),
            accumulate: flags.accumulate.is_some_and(|n| n > 1),
            freeze: flags.freeze.clone(),
            evaluate: true,
        })
    }
    /// What a configuration asks for.
    pub fn of_config(config: &Config) -> Result<Training> {
        let train = &config.train;
        let auto = train.remat == Remat::Auto;
        ensure!(train.memory.is_none() || auto, "train.memory belongs to train.remat = \"auto\"");
        Ok(Training {
            losses: config.model.loss.iter().cloned().collect(),
            seq: Some(train.seq),
            max_grad_steps: config.recurrence.max_grad().max(1),
            remat: train.remat,
            memory: train.memory,
            optimizer: Some(config.optimizer.kind),
            accumulate: train.accumulate > 1,
            freeze: config.model.freeze.clone(),
            evaluate: true,
        })
    }
    /// The parameters that are not trained: those whose names match one of the patterns, which fails for a pattern that matches none.
    pub fn frozen(&self, module: &Module) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for pattern in &self.freeze {
            let matcher = matcher(pattern)?;
            let mut found = module.params.values().filter(|p| matcher.is_match(&p.name)).peekable();
            ensure!(found.peek().is_some(), "--freeze {pattern}: no parameter has such a name");
            names.extend(found.map(|p| p.name.clone()));
        }
        Ok(names.into_iter().collect())
    }
    /// What the passes are to do.
    pub fn options(&self, frozen: Vec<String>) -> rdc_passes::Training {
        rdc_passes::Training {
            max_grad_steps: self.max_grad_steps,
            remat: self.remat,
            memory: self.memory.map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX)),
            optimizer: self.optimizer.map(|optimizer| rdc_passes::optimizer::Options {
                optimizer,
                accumulate: self.accumulate,
                ..Default::default()
            }),
            frozen,
            losses: self.evaluate,
        }
    }
    /// What an artifact says about it.
    pub fn meta(&self, lowered: &Lowered, frozen: &[String]) -> TrainMeta {
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
            max_grad_steps: self.max_grad_steps,
            remat: self.remat.name().into(),
            optimizer: self.optimizer.map_or("none", OptimizerKind::name).into(),
            accumulate: self.accumulate,
            frozen: frozen.to_vec(),
            config: lowered.config.iter().cloned().collect(),
        }
    }
}

/// What matches names: `*` stands for any characters, `?` for one, and all else for itself.
fn matcher(pattern: &str) -> Result<GlobMatcher> {
    let mut glob = String::new();
    for c in pattern.chars() {
        match c {
            // Next to each other they mean directories to globset.
            '*' if glob.ends_with('*') => continue,
            '[' | ']' | '{' | '}' | '\\' => glob.push('\\'),
            _ => {}
        }
        glob.push(c);
    }
    Ok(GlobBuilder::new(&glob).backslash_escape(true).build()?.compile_matcher())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stars_stand_for_any_characters_and_question_marks_for_one() {
        let matches = |pattern: &str, name: &str| matcher(pattern).unwrap().is_match(name);
        assert!(matches("*", "") && matches("core.*.w?", "core.0/attention.wq") && matches("**norm*", "core.norm"));
        assert!(!matches("core.*.w?", "core.0.w") && !matches("core", "core.w") && !matches("?", ""));
        assert!(matches("a[0]{b}\\*", "a[0]{b}\\c") && !matches("[ab]", "a") && !matches("{a,b}", "a"));
        // A matcher that tries every way to share the characters out would not come to an end.
        let name = "a".repeat(200);
        assert!(!matches(&format!("{}b", "a*".repeat(50)), &name));
    }
}
