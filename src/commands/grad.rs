//! `rdc grad`: a loss and its gradient by every parameter.
use crate::cli::{GradArgs, ModelArgs};
use crate::pipeline::front::{Shapes, Text};
use crate::pipeline::text;
use crate::progress::Progress;
use crate::training::Training;
use anyhow::{Context, Result, ensure};
use rdc_ir::DType;
use rdc_runtime::threads::default_threads;
use rdc_runtime::train::{Batch, Depth, Draw};
use rdc_runtime::{Tensor, TensorMap, tensor};

/// Runs the subcommand.
pub fn run(args: &GradArgs, quiet: bool) -> Result<()> {
    let progress = Progress::start(quiet, "loading");
    let inputs = tensor::load(&args.input)?;
    let given = |name: &str| {
        let tensor = inputs.get(name);
        tensor.with_context(|| format!("{}: there is no input `{name}`", args.input.display()))
    };
    let (ids, labels) = (given("input_ids")?, given("labels")?);
    ensure!(ids.shape.len() == 2, "`input_ids` has shape {:?}; expected [batch, sequence]", ids.shape);
    ensure!(
        labels.shape == ids.shape,
        "`labels` has shape {:?}, not that of `input_ids`, {:?}",
        labels.shape,
        ids.shape
    );
    let integers = |name: &str, tensor: &Tensor| {
        let values =
            tensor.as_i32().with_context(|| format!("`{name}` holds {}, not integers", tensor.dtype.name()))?;
        anyhow::Ok(values.to_vec())
    };
    let depth = Depth { no_grad: args.no_grad_steps, grad: args.grad_steps };
    let shapes = Shapes {
        batch: Some(ids.shape[0]),
        training: Some(Training {
            seq: Some(ids.shape[1]),
            optimizer: None,
            evaluate: false,
            ..Training::of_flags(&args.training, Some(depth.grad))?
        }),
        ..Shapes::default()
    };
    let deepest = depth.no_grad.checked_add(depth.grad).context("too many iterations")?;
    let options = ModelArgs { max_steps: args.options.max_steps.or(Some(deepest.max(1))), ..args.options.clone() };
    let seed = args.seed.unwrap_or(0);
    let threads = args.threads.unwrap_or_else(default_threads);
    let mut trainer = text::trainer(Text::read(&args.model)?, &options, &shapes, seed, threads, &progress)?;
    progress.stage("running");
    let states = inputs
        .iter()
        .filter(|(name, _)| !["input_ids", "labels"].contains(&name.as_str()))
        .map(|(name, tensor)| {
            let values = tensor.as_f32().with_context(|| format!("`{name}` holds {}, not f32", tensor.dtype.name()))?;
            Ok((name.clone(), values.to_vec()))
        })
        .collect::<Result<_>>()?;
    let batch = Batch { ids: integers("input_ids", ids)?, labels: integers("labels", labels)?, states };
    let mut outputs = TensorMap::new();
    let result = trainer.grad(&batch, depth, args.training.loss.as_deref(), Draw { seed, step: 0, row: 0 })?;
    for (name, ty, _) in result.all() {
        if let Some(values) = result.get(name) {
            outputs.insert(name.to_string(), Tensor::from_f32(&ty.shape, values)?);
        }
    }
    let frozen = &trainer.train_meta().frozen;
    for param in trainer.meta().params.iter().filter(|p| !p.state && !frozen.contains(&p.name)) {
        // The loss does not depend on a parameter that the program has no gradient of.
        let gradient = match trainer.grad_of(&param.name) {
            Some(values) => Tensor::from_f32(&param.ty.shape, values)?,
            None => Tensor::zeros(DType::F32, &param.ty.shape)?,
        };
        outputs.insert(format!("grad.{}", param.name), gradient);
    }
    crate::interrupt::watch(&args.output);
    tensor::save(&args.output, &outputs)?;
    Ok(())
}
