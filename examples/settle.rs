//! The demonstration: runs a compiled model at r = 1, 2, 4, … on prompts with known answers, and shows how its predictions
//! settle. Uses the runtime as a library.
//!
//!     settle MODEL.rda PROMPTS.jsonl
//!
//! Each line of the prompts has `ids`, `labels` (the right next tokens; -100 where there is none) and `text`.
use anyhow::{Context, Result, ensure};
use rdc_ir::ArgRole;
use rdc_runtime::{RunOptions, Session, SessionOptions, Tensor, TensorMap};
use serde::Deserialize;
use std::path::Path;

/// A prompt with the right answers.
#[derive(Deserialize)]
struct Prompt {
    ids: Vec<i32>,
    labels: Vec<i32>,
    text: String,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [artifact, prompts] = &args[..] else { anyhow::bail!("usage: settle MODEL.rda PROMPTS.jsonl") };
    let text = std::fs::read_to_string(prompts).with_context(|| format!("cannot read {prompts}"))?;
    let mut session = Session::open(Path::new(artifact), &SessionOptions::default())?;
    let batch = session.model().meta().batch;
    let prompts: Vec<Prompt> =
        text.lines().take(batch).map(serde_json::from_str).collect::<Result<_, _>>().context("a prompt")?;
    ensure!(prompts.len() == batch, "the artifact has batch {batch}, but there are {} prompts", prompts.len());
    let length = prompts[0].ids.len();
    ensure!(prompts.iter().all(|p| p.ids.len() == length && p.labels.len() == length), "prompts differ in length");

    let ids: Vec<i32> = prompts.iter().flat_map(|p| p.ids.clone()).collect();
    let mut inputs = TensorMap::from([("input_ids".to_string(), Tensor::from_i32(&[batch, length], &ids)?)]);
    // From a zero state the answers are the same in every run.
    let entry = &session.model().program().entries[0];
    if let Some(state) = entry.inputs.iter().find(|i| matches!(i.role, ArgRole::State(_))) {
        let dim = entry.buffers[state.buffer].ty.last();
        let zeros = vec![0.0; batch * length * dim];
        inputs.insert(state.name.clone(), Tensor::from_f32(&[batch, length, dim], &zeros)?);
    }

    println!("{batch} prompts of {length} tokens; the first is {}", prompts[0].text);
    println!();
    println!("  r  accuracy  answers to the first prompt (x: wrong)");
    let mut steps = 1;
    while steps <= session.model().meta().max_steps {
        let options = RunOptions { steps: Some(steps), ..RunOptions::default() };
        let result = session.run(&inputs, &options)?;
        let logits = result.outputs.get("logits").and_then(Tensor::as_f32).context("the model has no logits")?;
        let vocabulary = logits.len() / (batch * length);
        let answers: Vec<i32> = logits.chunks(vocabulary).map(argmax).collect();
        let labels: Vec<i32> = prompts.iter().flat_map(|p| p.labels.clone()).collect();
        let asked: Vec<(i32, i32)> = answers.into_iter().zip(labels).filter(|(_, label)| *label >= 0).collect();
        let right = asked.iter().filter(|(answer, label)| answer == label).count();
        let first = prompts[0].labels.iter().filter(|l| **l >= 0).count();
        let marks: String = asked[..first].iter().map(|(a, l)| if a == l { '.' } else { 'x' }).collect();
        println!("{steps:>3}  {:>6.1} %  {marks}", 100.0 * right as f64 / asked.len() as f64);
        steps *= 2;
    }
    Ok(())
}

fn argmax(row: &[f32]) -> i32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as i32
}
