//! The same bits from any number of threads, run after run, and the same bytes from every compilation.
use crate::support::*;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

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

/// Weights of each type, one token at a time behind a cache, and a loop that ends by itself.
#[test]
fn decode_weight_types_and_exits_do_not_depend_on_threads() {
    let reference = fixture("huginn-odd/a_logits.safetensors");
    let given = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"]));
    for dtype in ["f32", "bf16", "i8"] {
        let artifact = artifact(&[TEXT, "--batch", "2", "--seq", "12", "--hf", HF, "--dtype", dtype]);
        same_of_any_threads(&artifact, &given, &["--steps", "4", "--chunks", &chunks(8, 12)]);
    }
    let reference = fixture("ut-tiny/a_forward_decode.safetensors");
    let given = inputs(&reference["b3s17.ids"], None);
    let (text, hf) = ("examples/universal_transformer.rdm", "tests/fixtures/ut-tiny");
    let artifact = artifact(&[text, "--batch", "3", "--seq", "17", "--hf", hf]);
    same_of_any_threads(&artifact, &given, &["--readout", "act", "--states"]);
}

fn same_of_any_threads(artifact: &Path, given: &Tensors, args: &[&str]) {
    let of = |threads| run(artifact, given, &[args, &["--threads", threads]].concat());
    let one = of("1");
    for threads in ["2", "3"] {
        assert!(of(threads) == one, "{} {args:?}: {threads} threads differ", artifact.display());
    }
}

/// The second run takes the first one's artifact; a damaged one is made anew.
#[test]
fn the_compile_cache_gives_the_same_and_is_used() {
    let reference = fixture("huginn-odd/a_logits.safetensors");
    let given = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"]));
    let text = repository(TEXT);
    let args = ["--hf", HF, "--steps", "2"];
    let fresh = run(&text, &given, &[&args[..], &["--no-cache"]].concat());

    let folder = folder();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    write(&input, &given);
    let cached = || {
        let status = Command::new(env!("CARGO_BIN_EXE_rdc"))
            .args(["run", TEXT, "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()])
            .args(args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("XDG_CACHE_HOME", folder.path())
            .status()
            .unwrap();
        assert!(status.success());
        assert!(read(&output) == fresh);
        let entries: Vec<_> =
            std::fs::read_dir(folder.path().join("rdc")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [entry] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(entry.extension().unwrap(), "rda");
        entry.clone()
    };
    // A file that is written anew is another one, moved into place; a hit only changes the time.
    let file = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let entry = cached();
    let (first, bytes) = (file(&entry), std::fs::read(&entry).unwrap());
    assert_eq!((cached(), file(&entry)), (entry.clone(), first), "the second run compiled again");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    std::fs::write(&entry, damaged).unwrap();
    assert_eq!(cached(), entry);
    assert!(std::fs::read(&entry).unwrap() == bytes, "a damaged entry stays");
}
