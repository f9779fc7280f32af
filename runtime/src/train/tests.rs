//! The trainer and runs, on the program of [`super::testing`].
use super::testing::{self, DIM, FLOPS, MAX_GRAD, MAX_STEPS, SEQ, VOCABULARY};
use super::*;
use crate::Error;
use crate::random::Draws;
use rdc_ir::IGNORED_LABEL;
use rdc_ir::training::OptimizerKind;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Rows drawn under their number: labels follow from ids, every fourth position has none.
pub struct Drawn {
    pub rows: usize,
}

impl Batches for Drawn {
    fn fill(&mut self, index: u64, batch: &mut Batch) -> Result<(), Error> {
        (batch.ids, batch.labels) = (Vec::new(), Vec::new());
        for row in 0..self.rows as u64 {
            let mut draws = Draws::new(1, "rows", index * self.rows as u64 + row);
            for _ in 0..SEQ {
                let id = draws.below(VOCABULARY as u64) as i32;
                batch.ids.push(id);
                batch.labels.push(if draws.below(4) == 0 { IGNORED_LABEL } else { (id + 1) % VOCABULARY as i32 });
            }
        }
        Ok(())
    }
    fn describe(&self) -> String {
        "drawn rows".into()
    }
}

pub fn config(batch: usize, accumulate: usize, steps: u64) -> Config {
    Config::parse(&format!(
        "[recurrence]\nkind = 'poisson'\nmean = 4\nbackprop = 3\n[optimizer]\nlr = 0.05\n[schedule]\nkind = 'constant'\nwarmup = 3\n\
         [train]\nsteps = {steps}\nbatch = {batch}\nseq = {SEQ}\naccumulate = {accumulate}\nseed = 9\n\
         [validate]\nevery = 4\nsteps = [1, 8]\nbatches = 2\n[checkpoint]\nevery = 5\nkeep = 2"
    ))
    .unwrap()
}

pub fn parts(out: &Path, config: Config) -> Parts<'static> {
    let rows = config.train.batch;
    let mut validation = vec![Batch::default(); 2];
    for (i, batch) in validation.iter_mut().enumerate() {
        Drawn { rows }.fill(1000 + i as u64, batch).unwrap();
    }
    Parts {
        trainer: testing::trainer(rows, config.train.accumulate > 1),
        batches: Box::new(Drawn { rows }),
        validation,
        out: out.to_path_buf(),
        files: BTreeMap::from([("tokenizer.json".to_string(), b"{}".to_vec())]),
        config,
    }
}

/// Runs to the end, or until a step after which it is asked to stop. Returns the events without times and paths.
fn run(run: &mut Run, stop_at: Option<u64>) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    run.run(&mut |event| {
        let mut event = event.clone();
        let mut stop = false;
        match &mut event {
            Event::Step { step, seconds, .. } => {
                *seconds = 0.0;
                stop = stop_at == Some(*step);
            }
            Event::Checkpoint { path, .. } => *path = path.file_name().unwrap().into(),
            Event::Validation { .. } => {}
        }
        events.push(event);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(events)
}

/// All that a run leaves: bits of parameters and moments.
fn values(trainer: &Trainer) -> Vec<(String, Vec<u32>)> {
    let all = trainer.params().chain(trainer.moments());
    all.map(|(name, _, x)| (name.to_string(), x.iter().map(|x| x.to_bits()).collect())).collect()
}

fn losses(events: &[Event]) -> Vec<f32> {
    events.iter().filter_map(|e| if let Event::Step { loss, .. } = e { Some(*loss) } else { None }).collect()
}

fn batch(rows: usize, index: u64) -> Batch {
    let mut batch = Batch::default();
    Drawn { rows }.fill(index, &mut batch).unwrap();
    batch
}

const DEPTH: Depth = Depth { no_grad: 3, grad: 2 };

#[test]
fn gradients_are_those_of_the_loss() {
    let mut trainer = testing::trainer(2, false);
    let batch = batch(2, 0);
    let draw = Draw { seed: 1, step: 1, row: 0 };
    let output = trainer.grad(&batch, DEPTH, None, draw).unwrap();
    let (loss, correct) = (output.loss, output.get("correct").unwrap().to_vec());
    assert_eq!(correct.len(), 6);
    assert!(output.get("absent").is_none() && output.all().len() == 2);
    let gradient = trainer.grad_of("w").unwrap().to_vec();
    let whole = trainer.param("w").unwrap().to_vec();
    for i in 0..VOCABULARY {
        let mut at = |delta: f32| {
            let mut moved = whole.clone();
            moved[i] += delta;
            trainer.set("w", &moved).unwrap();
            f64::from(trainer.grad(&batch, DEPTH, Some("mse"), draw).unwrap().loss)
        };
        let slope = (at(0.01) - at(-0.01)) / 0.02;
        assert!((slope - f64::from(gradient[i])).abs() < 1e-4, "{slope} {gradient:?}");
    }
    trainer.set("w", &whole).unwrap();
    assert_eq!(trainer.grad(&batch, DEPTH, None, draw).unwrap().loss, loss);
    assert_ne!(trainer.grad(&batch, Depth { no_grad: 4, ..DEPTH }, None, draw).unwrap().loss, loss);
    assert_eq!(trainer.flops(DEPTH, None).unwrap(), [FLOPS; 3]);
    assert!(trainer.set("w", &whole[1..]).is_err() && trainer.set("v", &whole).is_err());
}

/// A row's state depends on seed, step, the row's number and position; a state that is given is taken.
#[test]
fn drawn_states() {
    let loss = |trainer: &mut Trainer, batch: &Batch, draw| trainer.loss(batch, 3, None, draw).unwrap().loss;
    let mut two = testing::trainer(2, false);
    let draw = Draw { seed: 1, step: 1, row: 0 };
    let one = batch(2, 3);
    let first = loss(&mut two, &one, draw);
    assert_eq!(loss(&mut two, &one, draw), first);
    for other in [Draw { seed: 2, ..draw }, Draw { step: 2, ..draw }, Draw { row: 2, ..draw }] {
        assert_ne!(loss(&mut two, &one, other), first);
    }
    // The second half of four rows has the states of rows 2 and 3.
    let mut four = testing::trainer(4, false);
    let mut whole = batch(4, 3);
    whole.labels[..2 * SEQ].fill(IGNORED_LABEL);
    let half = Batch { ids: whole.ids[2 * SEQ..].into(), labels: whole.labels[2 * SEQ..].into(), states: Vec::new() };
    assert_eq!(loss(&mut four, &whole, draw), loss(&mut two, &half, Draw { row: 2, ..draw }));
    let states = vec![("initial_state".to_string(), vec![0.0; 2 * SEQ * DIM])];
    let given = Batch { states, ..one.clone() };
    assert_ne!(loss(&mut two, &given, draw), first);
    assert_eq!(loss(&mut two, &given, draw), loss(&mut two, &given, Draw { seed: 7, ..draw }));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut trainer = testing::trainer(2, false);
    let good = batch(2, 0);
    let draw = Draw::default();
    let mut grad = |batch: &Batch, no_grad, grad| {
        trainer.grad(batch, Depth { no_grad, grad }, None, draw).map(|_| ()).unwrap_err().to_string()
    };
    let change = |ids: &[(usize, i32)], labels: &[(usize, i32)]| {
        let mut batch = good.clone();
        ids.iter().for_each(|&(i, id)| batch.ids[i] = id);
        labels.iter().for_each(|&(i, label)| batch.labels[i] = label);
        batch
    };
    for (batch, part) in [
        (batch(4, 0), "12 ids, but the model is compiled for 2 rows of 3"),
        (Batch { labels: vec![0; 5], ..good.clone() }, "5 labels"),
        (change(&[(4, 5)], &[]), "id 5 in row 1, position 1 is outside the vocabulary of 5"),
        (change(&[(0, -1)], &[]), "id -1"),
        (change(&[], &[(1, -1)]), "label -1 in row 0, position 1 is neither -100"),
        (change(&[], &[(1, 5)]), "label 5"),
        (Batch { states: vec![("initial_state".into(), vec![0.0])], ..good.clone() }, "`initial_state` has 1 elements"),
    ] {
        let message = grad(&batch, 1, 1);
        assert!(message.contains(part), "{message}");
    }
    assert!(grad(&good, 0, MAX_GRAD + 1).contains("--max-grad-steps 5"));
    assert!(grad(&good, MAX_STEPS, 1).contains("17 iterations are more than the 16"));
    assert!(grad(&good, usize::MAX, 1).contains("--max-steps"));
    assert!(trainer.loss(&good, MAX_STEPS + 1, None, draw).unwrap_err().to_string().contains("--max-steps"));
    assert!(trainer.loss(&good, 1, Some("other"), draw).unwrap_err().to_string().contains("compiled are: mse"));
    assert!(trainer.accumulate(0.0).unwrap_err().to_string().contains("--accumulate"));
    let mut meta = testing::meta(2, false);
    meta.train.as_mut().unwrap().losses[0].all_steps = true;
    let mut trainer = testing::trainer_of(meta, 5);
    assert!(trainer.grad(&good, DEPTH, None, draw).unwrap_err().to_string().contains("every iteration"));
    assert!(trainer.grad(&good, Depth { no_grad: 0, grad: 2 }, None, draw).is_ok());
}

/// A step over four rows is the same in one batch and in two, which have different numbers of targets.
#[test]
fn accumulated_gradients_are_those_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (batch, accumulate) in [(4, 1), (2, 2)] {
        let mut one = Run::start(parts(&dir.path().join(batch.to_string()), config(batch, accumulate, 20))).unwrap();
        let losses = losses(&run(&mut one, None).unwrap());
        results.push((losses, one.trainer().param("w").unwrap().to_vec()));
    }
    let [(losses, w), (losses_in_two, w_in_two)] = &results[..] else { unreachable!() };
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(losses.len() == 20 && near(losses, losses_in_two) && near(w, w_in_two), "{losses:?} {losses_in_two:?}");
    assert!(losses[19] < losses[0] / 2.0);
}

#[test]
fn a_resumed_run_is_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    for accumulate in [1, 2] {
        let at = |name: &str| dir.path().join(format!("{name}{accumulate}"));
        let mut unbroken = Run::start(parts(&at("unbroken"), config(2, accumulate, 20))).unwrap();
        let events = run(&mut unbroken, None).unwrap();
        assert_eq!(losses(&events).len(), 20);
        // Stopped twice, once between checkpoints; the parameters that the new process starts with do not matter.
        let mut all = Vec::new();
        for (resumed, stop) in [(false, Some(7)), (true, Some(10)), (true, None)] {
            let mut parts = parts(&at("broken"), config(2, accumulate, 20));
            parts.trainer.set("w", &[resumed as u8 as f32; VOCABULARY]).unwrap();
            if !resumed {
                parts.trainer = testing::trainer(2, accumulate > 1);
            }
            let mut part = if resumed { Run::resume(parts, false) } else { Run::start(parts) }.unwrap();
            all.extend(run(&mut part, stop).unwrap());
            if stop.is_none() {
                assert_eq!(values(part.trainer()), values(unbroken.trainer()));
                assert_eq!(part.state().smoothed, unbroken.state().smoothed);
                assert_eq!(part.state().tokens, 20 * (2 * SEQ * accumulate) as u64);
            }
        }
        let saved = |e: &&Event| !matches!(e, Event::Checkpoint { .. });
        assert!(all.iter().filter(saved).eq(events.iter().filter(saved)));
        let names: Vec<_> = state::list(&at("broken")).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(names, [15, 20]);
        for name in ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"] {
            let read = |run: &str| std::fs::read(at(run).join("step-000020").join(name)).unwrap();
            assert_eq!(read("broken"), read("unbroken"), "{name}");
        }
        // A further resume has nothing to do, or goes on.
        let mut done = Run::resume(parts(&at("broken"), config(2, accumulate, 20)), false).unwrap();
        assert_eq!(run(&mut done, None).unwrap(), []);
        drop(done);
        let mut longer = Run::resume(parts(&at("broken"), config(2, accumulate, 22)), false).unwrap();
        assert_eq!(losses(&run(&mut longer, None).unwrap()).len(), 2);
    }
}

/// A run that is killed between checkpoints has metrics that the next one writes again.
#[test]
fn metrics_are_those_of_an_unbroken_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(METRICS);
    let mut first = Run::start(parts(dir.path(), config(2, 1, 12))).unwrap();
    run(&mut first, None).unwrap();
    drop(first);
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        lines.iter_mut().for_each(|l| drop(l.as_object_mut().unwrap().remove("seconds")));
        lines
    };
    let whole = lines();
    assert_eq!(whole.len(), 12 + 2 * 3);
    assert_eq!(whole[0]["event"], "step");
    // As if it had been killed after step 12, before its last checkpoint.
    std::fs::remove_dir_all(dir.path().join("step-000012")).unwrap();
    let mut second = Run::resume(parts(dir.path(), config(2, 1, 12)), false).unwrap();
    assert_eq!(lines().len(), 10 + 2 * 2);
    run(&mut second, None).unwrap();
    assert_eq!(lines(), whole);
}

#[test]
fn a_loss_that_is_not_finite_names_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut good = Run::start(parts(dir.path(), config(2, 1, 5))).unwrap();
    run(&mut good, None).unwrap();
    drop(good);
    let mut wild = config(2, 1, 20);
    wild.optimizer.lr = 1e30;
    let refused = Run::resume(parts(dir.path(), wild.clone()), false).err().unwrap().to_string();
    assert!(refused.contains("optimizer.lr was 0.05, now 1e+30"), "{refused}");
    let mut bad = Run::resume(parts(dir.path(), wild.clone()), true).unwrap();
    let message = run(&mut bad, None).unwrap_err().to_string();
    assert!(message.contains("step 7 ") && message.contains("the loss is inf"), "{message}");
    assert!(message.contains("last good checkpoint is") && message.contains("step-000005"), "{message}");
    drop(bad);
    assert_eq!(state::latest(dir.path()).unwrap().unwrap(), dir.path().join("step-000005"));
    // Parameters that are not finite are not written either.
    wild.optimizer.lr = f64::from(f32::MAX) * 10.0;
    let other = tempfile::tempdir().unwrap();
    wild.checkpoint.every = 1;
    let mut bad = Run::start(parts(other.path(), wild)).unwrap();
    let message = run(&mut bad, None).unwrap_err().to_string();
    assert!(message.contains("is not finite; there is no checkpoint yet"), "{message}");
    assert_eq!(state::list(other.path()).unwrap(), []);
}

#[test]
fn configurations_that_do_not_fit_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let change = |change: &dyn Fn(&mut Config)| {
        let mut config = config(2, 1, 5);
        change(&mut config);
        let mut parts = parts(dir.path(), super::tests::config(2, 1, 5));
        parts.config = config;
        Run::start(parts).err().unwrap().to_string()
    };
    let poisson = |mean, backprop| Recurrence::new(Kind::Poisson { mean, backprop });
    type Change<'a> = (&'a dyn Fn(&mut Config), &'a str);
    let changes: [Change; 8] = [
        (&|c| c.train.batch = 4, "compile with --batch"),
        (&|c| c.train.seq = 4, "compile with --seq"),
        (&|c| c.train.accumulate = 2, "--accumulate 2"),
        (&|c| c.optimizer.kind = OptimizerKind::EllisAdam, "adamw, not ellis-adam"),
        (&|c| c.model.loss = Some("other".into()), "not compiled with the loss"),
        (&|c| c.recurrence = poisson(9, 5), "--max-grad-steps 5"),
        (&|c| c.validate.steps.push(17), "validate.steps has 17"),
        (&|c| c.train.steps = 0, "train.steps is 0"),
    ];
    for (f, part) in changes {
        let message = change(f);
        assert!(message.contains(part), "{message}");
    }
    // A folder that is in use, one that holds a run, one that holds none.
    let mut first = Run::start(parts(dir.path(), config(2, 1, 1))).unwrap();
    let busy = Run::start(parts(dir.path(), config(2, 1, 1))).err().unwrap().to_string();
    assert!(busy.contains("another run is writing"), "{busy}");
    run(&mut first, None).unwrap();
    drop(first);
    assert!(Run::start(parts(dir.path(), config(2, 1, 1))).err().unwrap().to_string().contains("holds a run already"));
    let empty = tempfile::tempdir().unwrap();
    let none = Run::resume(parts(empty.path(), config(2, 1, 1)), false).err().unwrap().to_string();
    assert!(none.contains("no checkpoint to resume from"), "{none}");
}
