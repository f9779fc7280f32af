//! Prefill and one-token decode of the standard model.
use super::measure::{Label, Line, Need, measure};
use super::sizes::Size;
use crate::cli::{BenchArgs, Dtype, GRAD_STEPS, ModelArgs, Work};
use crate::pipeline;
use crate::pipeline::front::{Shapes, Text};
use crate::progress::Progress;
use crate::training::Training;
use anyhow::Result;
use rdc_runtime::{RunOptions, Session, Tensor, TensorMap};
use std::sync::Arc;

/// The standard model.
const TEXT: &str = include_str!("../../../examples/huginn.rdm");

fn text() -> Text {
    Text { name: "the standard model".into(), source: TEXT.into() }
}

/// What a size is compiled with, for whatever work.
fn options(size: &Size, max_steps: usize) -> ModelArgs {
    ModelArgs { set: size.settings(), context: Some(size.seq), max_steps: Some(max_steps), ..ModelArgs::default() }
}

fn most_steps(args: &BenchArgs) -> usize {
    args.steps.iter().copied().max().unwrap_or(0).max(1)
}

/// Measures a size; lines go to `add` as they come.
pub fn measure_size(
    args: &BenchArgs,
    size: &Size,
    dtype: Dtype,
    threads: &[usize],
    progress: &Progress,
    add: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let options = ModelArgs { dtype: Some(dtype), last_only: true, ..options(size, most_steps(args)) };
    let shapes = Shapes { chunks: Some(vec![size.seq, 1]), ..Shapes::default() };
    let model = Arc::new(pipeline::text::model(text(), &options, &shapes, args.seed, progress)?);
    for &threads in threads {
        let mut session = Session::new(model.clone(), threads)?;
        for &steps in &args.steps {
            let at = |work: &str, need: &Need, session: &mut Session, position: usize, tokens: usize| {
                progress.stage(&format!("{work} {} {} r={steps}", size.name, dtype.name()));
                let inputs = inputs(size, position + tokens, tokens)?;
                let options = RunOptions { steps: Some(steps), ..RunOptions::default() };
                let mut state = session.new_state();
                let label = Label { work, size: size.name, dtype: dtype.name(), steps, threads };
                measure(&label, args.seconds, need, || {
                    state.position = position;
                    session.run_from(&mut state, &inputs, &options)?;
                    Ok(())
                })
            };
            if args.work.contains(&Work::Prefill) {
                let need = Need { flops: size.flops_prefill(steps), reads: Vec::new() };
                add(at("prefill", &need, &mut session, 0, size.seq)?)?;
            }
            if args.work.contains(&Work::Decode) {
                add(at("decode", &decode_need(size, steps, dtype), &mut session, size.seq - 1, 1)?)?;
            }
        }
    }
    Ok(())
}

/// Measures training steps of a size.
pub fn measure_training(
    args: &BenchArgs,
    size: &Size,
    threads: usize,
    progress: &Progress,
    add: &mut dyn FnMut(Line) -> Result<()>,
) -> Result<()> {
    let most = most_steps(args);
    let options = ModelArgs { batch: Some(size.train_batch), seq: Some(size.seq), ..options(size, most) };
    let training = Training::of_flags(&args.training, Some(GRAD_STEPS.min(most)))?;
    let shapes = Shapes { training: Some(training), ..Shapes::default() };
    let mut trainer = pipeline::text::trainer(text(), &options, &shapes, args.seed, threads, progress)?;
    super::train::measure_trainer(args, &mut trainer, size.name, threads, progress, add)
}

/// The core's weights come from wherever they fit, read r times; the rest from wherever all of it fits.
fn decode_need(size: &Size, steps: usize, dtype: Dtype) -> Need {
    let bytes = size.bytes_decode(
        steps,
        match dtype {
            Dtype::F32 => 4.0,
            Dtype::Bf16 => 2.0,
            Dtype::I8 => 1.0,
        },
    );
    let all = bytes.core + bytes.once + bytes.kv;
    Need {
        flops: size.flops_decode(steps),
        reads: vec![(bytes.core_all, bytes.core as usize), (bytes.once + bytes.kv, all as usize)],
    }
}

/// Token ids, and an initial state for every position up to the last, so that no time goes into drawing it.
fn inputs(size: &Size, positions: usize, tokens: usize) -> Result<TensorMap> {
    let ids: Vec<i32> = (0..tokens).map(|i| ((i * 7919 + 13) % size.vocab) as i32).collect();
    let state: Vec<f32> =
        (0..positions * size.dim).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
    Ok(TensorMap::from([
        ("input_ids".to_string(), Tensor::from_i32(&[1, tokens], &ids)?),
        ("initial_state".to_string(), Tensor::from_f32(&[1, positions, size.dim], &state)?),
    ]))
}
