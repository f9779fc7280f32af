//! The same bits from any number of threads, run after run, and the same bytes from every compilation.
use crate::support::*;

const TEXT: &str = "examples/huginn.rdm";
const HF: &str = "tests/fixtures/huginn-odd";

#[test]
fn results_do_not_depend_on_threads_or_repetition() {
    let reference = fixture("huginn-odd/a_logits.safetensors");
    let given = inputs(&reference["b3s17.ids"], Some(&reference["b3s17.s0"]));
    let artifact = artifact(&[TEXT, "--batch", "3", "--seq", "12", "--hf", HF]);
    let args = ["--steps", "8", "--states", "--threads"];
    let one = run(&artifact, &given, &[&args[..], &["1"]].concat());
    for threads in ["1", "2", "3", "7"] {
        assert!(run(&artifact, &given, &[&args[..], &[threads]].concat()) == one, "{threads} threads differ");
    }
}

#[test]
fn rows_do_not_depend_on_each_other() {
    let reference = fixture("huginn-odd/a_logits.safetensors");
    let (ids, state) = (&reference["b3s17.ids"], &reference["b3s17.s0"]);
    let artifact = artifact(&[TEXT, "--batch", "3", "--seq", "12", "--hf", HF]);
    let before = run(&artifact, &inputs(ids, Some(state)), &["--steps", "4"]);
    let mut changed = ids.clone();
    changed.data[17..34].fill(3.0);
    let after = run(&artifact, &inputs(&changed, Some(state)), &["--steps", "4"]);
    for (row, same) in [(0, true), (1, false), (2, true)] {
        let rows = |t: &Tensors| t["logits"].slice(0, row, row + 1);
        assert_eq!(rows(&before) == rows(&after), same, "row {row}");
    }
}

#[test]
fn draws_depend_on_the_seed_and_nothing_else() {
    let ids = fixture("huginn-odd/a_logits.safetensors")["b3s17.ids"].clone();
    let artifact = artifact(&[TEXT, "--batch", "3", "--seq", "12", "--hf", HF]);
    let states = |args: &[&str]| {
        run(&artifact, &inputs(&ids, None), &[&["--steps", "1", "--states"], args].concat())["state_1"].clone()
    };
    let zero = states(&["--seed", "0"]);
    assert!(states(&[]) == zero);
    assert!(states(&["--seed", "1"]) != zero);
    assert_close("chunked", &states(&["--chunks", "1,5,1,10"]), &zero, TOLERANCE);
}

#[test]
fn compiling_twice_gives_the_same_bytes() {
    let folder = folder();
    let compile = |name: &str| {
        let path = folder.path().join(name);
        ok(&["compile", TEXT, "--hf", HF, "-o", path.to_str().unwrap()]);
        std::fs::read(path).unwrap()
    };
    assert!(compile("a.rda") == compile("b.rda"));
}

#[test]
fn the_compile_cache_gives_the_same_and_is_used() {
    let reference = fixture("huginn-odd/a_logits.safetensors");
    let given = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"]));
    let text = repository(TEXT);
    let args = ["--hf", HF, "--steps", "2"];
    let fresh = run(&text, &given, &[&args[..], &["--no-cache"]].concat());
    assert!(run(&text, &given, &args) == fresh);
    let start = std::time::Instant::now();
    assert!(run(&text, &given, &args) == fresh);
    assert!(start.elapsed().as_secs_f64() < 1.0, "the second run took {:?}", start.elapsed());
}
