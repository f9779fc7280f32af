//! From the flags of training, and a configuration, to what a text is compiled for.
use crate::cli::{GRAD_STEPS, TrainFlags};
use crate::pipeline::Training;
use anyhow::{Result, ensure};
use rdc_runtime::train::{Config, OptimizerKind, Remat};

/// What the flags ask for, for `grad_steps` iterations with gradient at least.
pub fn of_flags(flags: &TrainFlags, grad_steps: Option<usize>) -> Result<Training> {
    let remat = flags.remat.map(Into::into).unwrap_or_default();
    ensure!(flags.memory.is_none() || remat == Remat::Auto, "--memory belongs to --remat auto");
    Ok(Training {
        losses: flags.loss.iter().cloned().collect(),
        seq: None,
        max_grad_steps: flags.max_grad_steps.or(grad_steps).unwrap_or(GRAD_STEPS).max(grad_steps.unwrap_or(1)),
        remat,
        memory: flags.memory,
        optimizer: Some(flags.optimizer.map_or(OptimizerKind::Adamw, Into::into)),
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
