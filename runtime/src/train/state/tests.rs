//! Checkpoints that are whole whenever the process is killed, and that say what is wrong when they are not.
use super::*;
use crate::train::testing::{meta, trainer, trainer_of};
use crate::train::tests::config;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn state(trainer: &Trainer, step: u64) -> State {
    let mut config = config(2, 1, 20);
    // Infinity and a number that JSON might round.
    (config.optimizer.clip, config.optimizer.lr) = (f64::INFINITY, 0.1 + 0.2);
    State { step, smoothed: Some(0.1), ..State::new(trainer, &config, "data".into()) }
}

/// A trainer whose parameters and moments are all this number.
fn filled(value: f32) -> Trainer {
    let mut trainer = trainer(2, false);
    for name in ["w", "b", "exp_avg.w", "exp_avg.b", "exp_avg_sq.w", "exp_avg_sq.b"] {
        trainer.value_mut(name).unwrap().fill(value);
    }
    trainer
}

fn save(dir: &Path, step: u64) -> PathBuf {
    let trainer = filled(step as f32);
    Checkpoints::open(dir).unwrap().save(&trainer, &state(&trainer, step), &BTreeMap::new()).unwrap()
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(latest(&dir.path().join("absent")).unwrap(), None);
    let path = save(dir.path(), 7);
    assert_eq!(latest(dir.path()).unwrap(), Some(path.clone()));
    let read_state = read(&path).unwrap();
    let mut other = filled(0.0);
    load(&path, &read_state, &mut other).unwrap();
    assert!(other.params().chain(other.moments()).all(|(_, _, x)| x.iter().all(|x| *x == 7.0)));
    assert_eq!((other.params().count(), other.moments().count()), (2, 4));
    assert_eq!(State { files: BTreeMap::new(), ..read_state }, state(&other, 7));
    // The layout that other programs expect.
    let checkpoint = Checkpoint::open(&path.join(MODEL)).unwrap();
    assert_eq!(checkpoint.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "w"]);
    let config: serde_json::Value = serde_json::from_slice(&fs::read(path.join(CONFIG)).unwrap()).unwrap();
    assert_eq!((&config["dim"], &config["model_type"]), (&24.into(), &"test".into()));
    let again = Checkpoints::open(dir.path()).unwrap().save(&other, &state(&other, 7), &BTreeMap::new());
    assert!(again.unwrap_err().to_string().contains("of this step already"));
}

#[test]
fn old_ones_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    for step in [5, 10, 15, 20, 1_000_000] {
        save(dir.path(), step);
    }
    let steps = || list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(steps(), [5, 10, 15, 20, 1_000_000]);
    let checkpoints = Checkpoints::open(dir.path()).unwrap();
    checkpoints.prune(2, 10).unwrap();
    assert_eq!(steps(), [10, 20, 1_000_000]);
    checkpoints.prune(1, 0).unwrap();
    assert_eq!(steps(), [1_000_000]);
    checkpoints.prune(3, 0).unwrap();
    assert_eq!(steps(), [1_000_000]);
}

/// Whatever byte of whatever file is changed, cut or missing, the message names the file.
#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 3);
    for name in [MODEL, OPTIMIZER, CONFIG] {
        let file = path.join(name);
        let good = fs::read(&file).unwrap();
        let check = |part: &str| {
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(part), "{message}");
        };
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(&file, bad).unwrap();
        check("damaged");
        fs::write(&file, &good[..good.len() - 1]).unwrap();
        check("bytes, not");
        fs::remove_file(&file).unwrap();
        check("No such file");
        fs::write(&file, good).unwrap();
        read(&path).unwrap();
    }
    let file = path.join(TRAINER);
    let text = fs::read_to_string(&file).unwrap();
    for (text, part) in [
        (text.replace("\"version\": 1", "\"version\": 2"), "format is version 2"),
        (text.replace("\"step\"", "\"stop\""), "missing field `step`"),
        (text[..text.len() / 2].to_string(), "not the state of a run"),
        (text.replace("\"optimizer.safetensors\"", "\"other\""), "does not tell of optimizer.safetensors"),
    ] {
        fs::write(&file, text).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains(TRAINER), "{message}");
    }
}

/// A parameter that no function uses is in checkpoints; an alias stands for a parameter.
#[test]
fn all_parameters_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut changed = meta(2, false);
    let extra = crate::artifact::ParamInfo { name: "unused".into(), ..changed.params[1].clone() };
    changed.params.insert(0, extra);
    changed.params[1].aliases = vec!["tied".into()];
    let mut trainer = trainer_of(changed.clone(), 1);
    assert_ne!(trainer.param("unused").unwrap(), trainer.param("b").unwrap());
    trainer.set("unused", &[0.25, -4.0]).unwrap();
    let path = Checkpoints::open(dir.path()).unwrap().save(&trainer, &state(&trainer, 1), &BTreeMap::new()).unwrap();
    let mut other = trainer_of(changed, 2);
    load(&path, &read(&path).unwrap(), &mut other).unwrap();
    assert_eq!(other.param("unused").unwrap(), [0.25, -4.0]);
    let file = dir.path().join("tied.safetensors");
    checkpoint::write(&file, &[("tied", &[5, 1], &[7.0; 5]), ("b", &[1, 2], &[1.0; 2])]).unwrap();
    let file = Checkpoint::open(&file).unwrap();
    other.read_from("w", &file).unwrap();
    assert_eq!(other.param("w").unwrap(), [7.0; 5]);
    assert!(other.read_from("b", &file).unwrap_err().to_string().contains("[1, 2] in the checkpoint"));
    assert!(other.read_from("unused", &file).unwrap_err().to_string().contains("no tensor named unused"));
    assert!(other.read_from("absent", &file).unwrap_err().to_string().contains("no parameter absent"));
}

#[test]
fn another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 3);
    let state = read(&path).unwrap();
    let refused = |change: &dyn Fn(&mut crate::artifact::Meta)| {
        let mut meta = meta(2, false);
        change(&mut meta);
        load(&path, &state, &mut trainer_of(meta, 1)).unwrap_err().to_string()
    };
    assert!(refused(&|m| m.program.name = "other".into()).contains("of the model test, not of other"));
    let message = refused(&|m| drop(m.sizes.insert("dim".into(), "48".into())));
    assert!(message.contains("the model's dim was 24, now 48"), "{message}");
    let message = refused(&|m| drop(m.sizes.insert("heads".into(), "2".into())));
    assert!(message.contains("the model's heads was absent, now 2"), "{message}");
}

const CHILD: &str = "RDC_TEST_CHECKPOINTS";

/// The process that is killed below: it writes checkpoints and drops old ones for ever.
fn write_for_ever(dir: &Path) {
    let checkpoints = Checkpoints::open(dir).unwrap();
    let first = list(dir).unwrap().last().map_or(1, |(step, _)| step + 1);
    for step in first.. {
        let trainer = filled(step as f32);
        checkpoints.save(&trainer, &state(&trainer, step), &BTreeMap::new()).unwrap();
        checkpoints.prune(2, 0).unwrap();
    }
}

/// `kill -9` at any moment leaves a checkpoint that loads, no older than the newest that was there before. The process that is
/// killed is this test again, with [`CHILD`] set.
#[test]
fn a_killed_process_leaves_whole_checkpoints() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut newest, mut hidden) = (0, 0);
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::state::tests::a_killed_process_leaves_whole_checkpoints", "--test-threads", "1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Until it has written something in this round, then a while that differs.
        let started = Instant::now();
        while list(dir.path()).unwrap().last().is_none_or(|(step, _)| *step <= newest) {
            assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 1237 % 9001));
        child.kill().unwrap();
        child.wait().unwrap();
        let all = list(dir.path()).unwrap();
        for (step, path) in &all {
            let mut other = filled(0.0);
            load(path, &read(path).unwrap(), &mut other).unwrap();
            assert!(other.params().chain(other.moments()).all(|(_, _, x)| x.iter().all(|x| *x == *step as f32)));
        }
        let (last, _) = all.last().unwrap();
        assert!(*last > newest, "{all:?} after {newest}");
        newest = *last;
        let names = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name());
        hidden += usize::from(names.into_iter().any(|n| n.to_string_lossy().starts_with(HIDDEN)));
        drop(Checkpoints::open(dir.path()).unwrap());
        let names = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name());
        assert!(names.into_iter().all(|n| !n.to_string_lossy().starts_with(HIDDEN)));
    }
    // Otherwise the process was never killed at work.
    assert!(hidden > 0, "no kill came in the middle of a checkpoint");
}
