//! `rdc eval`: what more iterations are worth: loss and accuracy at several r, and how the state settles.
use crate::cli::EvalArgs;
use crate::pipeline::load;
use crate::plot::{Chart, Curve};
use crate::progress::Progress;
use crate::table::Table;
use anyhow::{Context, Result, ensure};
use rdc_ir::IGNORED_LABEL;
use rdc_runtime::artifact::Verify;
use rdc_runtime::data::tasks::Task;
use rdc_runtime::data::{Dataset, Generated};
use rdc_runtime::model::Model;
use rdc_runtime::threads::default_threads;
use rdc_runtime::train::Config;
use rdc_runtime::{RunOptions, Session, Tensor, TensorMap};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// What is measured at one number of iterations.
#[derive(Serialize, Clone, Debug, Default)]
struct Line {
    /// Size of the problems, if they are a task's.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    /// r.
    steps: usize,
    /// Mean negative log-likelihood of a target, in nats.
    loss: f64,
    /// e to the loss.
    perplexity: f64,
    /// Share of the targets that have the largest logit.
    accuracy: f64,
    /// Share of the rows whose every target has.
    exact: f64,
    /// Share of the rows whose last target has.
    last: f64,
    /// |s_r - s_(r-1)| / |s_r|, mean over positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<f64>,
}

/// Rows of one kind.
struct Rows {
    size: Option<usize>,
    length: usize,
    data: Box<dyn Dataset>,
    count: usize,
}

/// Runs the subcommand.
pub fn run(args: &EvalArgs, quiet: bool) -> Result<()> {
    ensure!(!args.steps.contains(&0), "--steps counts iterations from 1");
    let progress = Progress::start(quiet, "loading");
    let sets = rows(args)?;
    let longest = sets.iter().map(|s| s.length).max().unwrap_or(1);
    let most = args.steps.iter().copied().max().unwrap_or(1);
    let mut session = Session::new(Arc::new(model(args, longest, most, &progress)?), threads(args))?;
    let model = session.model().meta();
    ensure!(
        model.context == 0 || longest <= model.context,
        "rows of {longest} tokens, but the model is compiled for a context of {}: compile with --context {longest}",
        model.context
    );
    let mut lines = Vec::new();
    for set in &sets {
        for &steps in &args.steps {
            progress.stage(&format!("{steps} iterations{}", set.size.map_or(String::new(), |s| format!(", size {s}"))));
            lines.push(measure(&mut session, set, steps, args.seed)?);
        }
        let first = lines.len() - args.steps.len();
        progress.stage("the state");
        let changes = changes(&mut session, set, most, args.seed)?;
        for line in &mut lines[first..] {
            line.change = changes.get(line.steps - 1).copied();
        }
    }
    drop(progress);
    let about = sets.iter().map(|s| s.data.describe()).collect::<Vec<_>>().join("; ");
    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "data": about, "results": lines }))?);
    } else {
        println!("{about}\n{}", table(&lines));
    }
    let chart = chart(&lines, args.task.as_deref());
    if let Some(path) = &args.svg {
        crate::files::write(path, chart.svg()?.as_bytes())?;
    }
    if !args.json {
        print!("{}", chart.terminal(49, 13));
    }
    Ok(())
}

fn threads(args: &EvalArgs) -> usize {
    args.threads.unwrap_or_else(default_threads)
}

/// What is measured, from the flags.
fn rows(args: &EvalArgs) -> Result<Vec<Rows>> {
    if let Some(path) = &args.config {
        let config = Config::load(path)?;
        let base = path.parent().unwrap_or(Path::new("."));
        let split = config.data.open(base, config.train.seq, config.train.seed)?;
        let count = split.validation.rows().map_or(args.rows, |n| args.rows.min(n as usize));
        return Ok(vec![Rows { size: None, length: config.train.seq, data: split.validation, count }]);
    }
    let name = args.task.as_deref().context("say what to measure: --task NAME or --config train.toml")?;
    let task = Task::parse(name)?;
    let sizes = if args.size.is_empty() { vec![16] } else { args.size.clone() };
    sizes
        .into_iter()
        .map(|size| {
            ensure!(size <= task.largest(), "--size {size}: problems of {name} go to {}", task.largest());
            // A row is one problem; where problems differ in length, the longest of those measured.
            let longest = (0..args.rows as u64).map(|i| task.problem(size, args.seed, i).ids.len()).max();
            let data = Box::new(Generated::new(task, size, 0.0, args.seed));
            Ok(Rows { size: Some(size), length: longest.unwrap_or(1), data, count: args.rows })
        })
        .collect()
}

#[cfg(feature = "compiler")]
fn model(args: &EvalArgs, length: usize, steps: usize, progress: &Progress) -> Result<Model> {
    use crate::pipeline::front::{Shapes, Text};
    if !load::is_text(&args.file) {
        return artifact(args);
    }
    ensure!(
        args.options.hf.is_some() || args.options.weights.is_some(),
        "a model text has no weights to measure: give --hf DIR or --weights FILE"
    );
    let options = crate::cli::ModelArgs { max_steps: args.options.max_steps.or(Some(steps)), ..args.options.clone() };
    let shapes = Shapes {
        batch: options.batch.is_none().then_some(16),
        chunks: Some(vec![length]),
        readout: Some(None),
        training: None,
    };
    crate::pipeline::text::model(Text::read(&args.file)?, &options, &shapes, args.seed, progress)
}

#[cfg(not(feature = "compiler"))]
fn model(args: &EvalArgs, _: usize, _: usize, _: &Progress) -> Result<Model> {
    if load::is_text(&args.file) {
        return Err(load::no_compiler(&args.file));
    }
    artifact(args)
}

fn artifact(args: &EvalArgs) -> Result<Model> {
    let artifact = load::artifact(&args.file, &args.options, Verify::Auto)?;
    ensure!(
        artifact.meta().train.is_none(),
        "{} is compiled for training: measure its checkpoints with the model text and --hf",
        args.file.display()
    );
    Ok(Model::load(&artifact, args.seed)?)
}

/// Rows `first ..` as a batch; rows beyond the last repeat it, and are not counted.
fn batch(set: &Rows, first: usize, size: usize) -> Result<(Vec<i32>, Vec<i32>)> {
    let (mut ids, mut labels) = (vec![0; size * set.length], vec![0; size * set.length]);
    let rows = ids.chunks_exact_mut(set.length).zip(labels.chunks_exact_mut(set.length));
    for (i, (ids, labels)) in rows.enumerate() {
        set.data.row((first + i).min(set.count - 1) as u64, ids, labels)?;
    }
    Ok((ids, labels))
}

fn measure(session: &mut Session, set: &Rows, steps: usize, seed: u64) -> Result<Line> {
    let size = session.model().meta().batch;
    let (mut nll, mut targets, mut right, mut exact, mut last) = (0.0, 0usize, 0usize, 0usize, 0usize);
    for first in (0..set.count).step_by(size) {
        let (ids, labels) = batch(set, first, size)?;
        let inputs: TensorMap = [("input_ids".into(), Tensor::from_i32(&[size, set.length], &ids)?)].into();
        let options = RunOptions { steps: Some(steps), seed: seed.wrapping_add(first as u64), ..RunOptions::default() };
        let output = session.run(&inputs, &options)?;
        let logits = output.outputs.get("logits").context("the model has no output `logits` to compare with labels")?;
        let (Some(values), Some(&vocabulary)) = (logits.as_f32(), logits.shape.last()) else {
            anyhow::bail!("`logits` are not numbers per id");
        };
        for row in 0..size.min(set.count - first) {
            let (mut all, mut final_one) = (true, false);
            for position in row * set.length..(row + 1) * set.length {
                let label = labels[position];
                if label == IGNORED_LABEL {
                    continue;
                }
                ensure!(
                    usize::try_from(label).is_ok_and(|l| l < vocabulary),
                    "label {label}, but the model has {vocabulary} ids"
                );
                let scores = &values[position * vocabulary..][..vocabulary];
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = scores.iter().map(|&x| f64::from(x - max).exp()).sum();
                nll += sum.ln() + f64::from(max - scores[label as usize]);
                final_one = scores[label as usize] >= max;
                right += usize::from(final_one);
                all &= final_one;
                targets += 1;
            }
            exact += usize::from(all);
            last += usize::from(final_one);
        }
    }
    ensure!(targets > 0, "no row has a target");
    let share = |n: usize, of: usize| n as f64 / of as f64;
    let loss = nll / targets as f64;
    Ok(Line {
        size: set.size,
        steps,
        loss,
        perplexity: loss.exp(),
        accuracy: share(right, targets),
        exact: share(exact, set.count),
        last: share(last, set.count),
        change: None,
    })
}

/// The relative change of the first carried state by each iteration, of the first batch.
fn changes(session: &mut Session, set: &Rows, steps: usize, seed: u64) -> Result<Vec<f64>> {
    let size = session.model().meta().batch;
    let (ids, _) = batch(set, 0, size)?;
    let inputs: TensorMap = [("input_ids".into(), Tensor::from_i32(&[size, set.length], &ids)?)].into();
    let options = RunOptions { steps: Some(steps), seed, states: true, ..RunOptions::default() };
    let output = session.run(&inputs, &options)?;
    let mut changes = vec![f64::NAN];
    for step in 2..=steps {
        let state = |s: usize| output.outputs.get(&format!("state_{s}"));
        let (Some(before), Some(after)) = (state(step - 1), state(step)) else { break };
        let (Some(a), Some(b), Some(&dim)) = (before.as_f32(), after.as_f32(), after.shape.last()) else { break };
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let rows = a.chunks_exact(dim).zip(b.chunks_exact(dim));
        let relative = rows.map(|(a, b)| {
            let change = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(b) - f64::from(a)));
            change / norm(&mut b.iter().map(|&b| f64::from(b))).max(f64::MIN_POSITIVE)
        });
        let (sum, count) = relative.fold((0.0, 0), |(s, n), r| (s + r, n + 1));
        changes.push(sum / f64::from(count.max(1)));
    }
    Ok(changes)
}

fn table(lines: &[Line]) -> Table {
    let sized = lines.iter().any(|l| l.size.is_some());
    let mut headings = vec!["r", "loss", "perplexity", "accuracy", "exact", "last", "change of state"];
    if sized {
        headings.insert(0, "size");
    }
    let mut table = Table::new(&headings);
    for l in lines {
        let mut cells = vec![
            l.steps.to_string(),
            format!("{:.4}", l.loss),
            format!("{:.3}", l.perplexity),
            format!("{:.3}", l.accuracy),
            format!("{:.3}", l.exact),
            format!("{:.3}", l.last),
            l.change.filter(|c| c.is_finite()).map_or("-".into(), |c| format!("{c:.1e}")),
        ];
        if let Some(size) = l.size {
            cells.insert(0, size.to_string());
        }
        table.row(cells);
    }
    table
}

/// Accuracy for a task, loss otherwise.
fn chart(lines: &[Line], task: Option<&str>) -> Chart<'static> {
    let mut sizes: Vec<Option<usize>> = lines.iter().map(|l| l.size).collect();
    sizes.dedup();
    let of = |l: &Line| if task.is_some() { l.last } else { l.loss };
    let curve = |size: &Option<usize>| Curve {
        name: size.map_or(String::new(), |s| format!("size {s}")),
        points: lines.iter().filter(|l| l.size == *size).map(|l| (l.steps as f64, of(l))).collect(),
    };
    Chart {
        title: if task.is_some() { "accuracy of the last target" } else { "loss" },
        x: "iterations",
        y: if task.is_some() { "share" } else { "nats" },
        doubling: true,
        range: task.map(|_| (0.0, 1.0)),
        curves: sizes.iter().map(curve).collect(),
    }
}
