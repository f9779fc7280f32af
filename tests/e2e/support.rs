//! Running `rdc` and comparing tensors.
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

/// The relative difference allowed in f32.
pub const TOLERANCE: f64 = 2e-5;

/// Numbers with a shape; integers too are held as f64, which is exact for them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
    pub integer: bool,
}

pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    pub fn floats(shape: &[usize], data: Vec<f64>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { shape: shape.to_vec(), data, integer: false }
    }
    pub fn ids(shape: &[usize], data: Vec<f64>) -> Tensor {
        Tensor { integer: true, ..Tensor::floats(shape, data) }
    }
    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor::floats(shape, vec![0.0; shape.iter().product()])
    }
    /// Elements `start..end` of an axis.
    pub fn slice(&self, axis: usize, start: usize, end: usize) -> Tensor {
        let inner: usize = self.shape[axis + 1..].iter().product();
        let length = self.shape[axis] * inner;
        let data = self.data.chunks(length).flat_map(|c| c[start * inner..end * inner].to_vec()).collect();
        let mut shape = self.shape.clone();
        shape[axis] = end - start;
        Tensor { shape, data, integer: self.integer }
    }
    /// The index of the largest number of each row of the last axis.
    pub fn argmax(&self) -> Vec<usize> {
        let last = *self.shape.last().unwrap();
        self.data
            .chunks(last)
            .map(|row| (0..last).fold(0, |best, i| if row[i] > row[best] { i } else { best }))
            .collect()
    }
}

pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, tensor(&view))).collect()
}

fn tensor(view: &TensorView) -> Tensor {
    let bytes = view.data();
    let (data, integer) = match view.dtype() {
        Dtype::F32 => (numbers(bytes, |b| f32::from_le_bytes(b) as f64), false),
        Dtype::F64 => (numbers(bytes, f64::from_le_bytes), false),
        Dtype::BF16 => (numbers(bytes, |b| half::bf16::from_le_bytes(b).to_f64()), false),
        Dtype::I32 => (numbers(bytes, |b| i32::from_le_bytes(b) as f64), true),
        Dtype::I64 => (numbers(bytes, |b| i64::from_le_bytes(b) as f64), true),
        other => panic!("{other:?}"),
    };
    Tensor { shape: view.shape().to_vec(), data, integer }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|&c| read(c)).collect()
}

pub fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|t| match t.integer {
            true => t.data.iter().flat_map(|&x| (x as i64).to_le_bytes()).collect(),
            false => t.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, t), bytes)| {
        let dtype = if t.integer { Dtype::I64 } else { Dtype::F32 };
        (name, TensorView::new(dtype, t.shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Fails unless max |a - b| <= tolerance * max |b|.
#[track_caller]
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.shape, expected.shape, "shape of {what}");
    let largest = expected.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let (mut worst, mut place) = (0.0, 0);
    for (i, (a, b)) in actual.data.iter().zip(&expected.data).enumerate() {
        let difference = if a.is_finite() { (a - b).abs() } else { f64::INFINITY };
        if difference > worst {
            (worst, place) = (difference, i);
        }
    }
    assert!(
        worst <= tolerance * largest,
        "{what}: differs by {worst:e} at element {place} ({} instead of {}); largest {largest}, relative {:e}",
        actual.data[place],
        expected.data[place],
        worst / largest
    );
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A tensor file of a fixture.
pub fn fixture(path: &str) -> Tensors {
    read(&repository("tests/fixtures").join(path))
}

/// A folder for one test's files, removed with the value.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rdc-test-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The `rdc` command with a compile cache of its own.
pub fn rdc(args: &[&str]) -> Output {
    rdc_of(Path::new(env!("CARGO_BIN_EXE_rdc")), args)
}

/// Any build of rdc.
pub fn rdc_of(binary: &Path, args: &[&str]) -> Output {
    output(&mut Command::new(binary), args)
}

fn output(command: &mut Command, args: &[&str]) -> Output {
    command
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .output()
        .unwrap()
}

/// Runs `rdc`, which must succeed; returns stdout.
#[track_caller]
pub fn ok(args: &[&str]) -> String {
    succeeds(&mut Command::new(env!("CARGO_BIN_EXE_rdc")), args)
}

#[track_caller]
fn succeeds(command: &mut Command, args: &[&str]) -> String {
    let output = output(command, args);
    assert!(output.status.success(), "rdc {}\n{}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `rdc`, which must fail by an error of its own, not a panic; returns stderr.
#[track_caller]
pub fn fails(args: &[&str]) -> String {
    let output = rdc(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)), "rdc {}: {:?}\n{errors}", args.join(" "), output.status);
    assert!(!errors.contains("panicked") && !errors.contains("bug in rdc"), "{errors}");
    errors
}

/// The flags for the smallest size that speed is measured at.
pub fn tiny() -> Vec<&'static str> {
    let sizes = ["dim=128", "heads=4", "inner=352", "vocab=1024", "layers_prelude=1", "layers_core=1", "layers_coda=1"];
    sizes.into_iter().flat_map(|size| ["--set", size]).collect()
}

/// An artifact for these arguments of `rdc compile`, compiled once per test binary.
pub fn artifact(args: &[&str]) -> PathBuf {
    type Slot = Arc<OnceLock<PathBuf>>;
    static MADE: LazyLock<Mutex<HashMap<Vec<String>, Slot>>> = LazyLock::new(Default::default);
    let key: Vec<String> = args.iter().map(|a| a.to_string()).collect();
    let (slot, index) = {
        let mut made = MADE.lock().unwrap();
        let index = made.len();
        (made.entry(key).or_default().clone(), index)
    };
    slot.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("e2e-{}-{index}.rda", std::process::id()));
        ok(&[&["compile"], args, &["-o", path.to_str().unwrap()]].concat());
        path
    })
    .clone()
}

/// `rdc run FILE` on these inputs; returns the outputs.
#[track_caller]
pub fn run(file: &Path, inputs: &Tensors, args: &[&str]) -> Tensors {
    run_by(&mut Command::new(env!("CARGO_BIN_EXE_rdc")), file, inputs, args)
}

/// As [`run`], by any command that takes rdc's arguments.
#[track_caller]
pub fn run_by(command: &mut Command, file: &Path, inputs: &Tensors, args: &[&str]) -> Tensors {
    let folder = folder();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    write(&input, inputs);
    let file = file.to_str().unwrap();
    let paths = ["run", file, "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    succeeds(command, &[&paths, args].concat());
    read(&output)
}

/// Inputs of the usual names.
pub fn inputs(ids: &Tensor, state: Option<&Tensor>) -> Tensors {
    let state = state.map(|s| ("initial_state".to_string(), s.clone()));
    [("input_ids".to_string(), ids.clone())].into_iter().chain(state).collect()
}

/// A prompt of `first` tokens and then single ones.
pub fn chunks(first: usize, total: usize) -> String {
    std::iter::once(first)
        .chain(std::iter::repeat_n(1, total - first))
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// One model with one checkpoint, run both ways: through its text, and through an artifact compiled before.
pub struct Model {
    /// The text.
    pub text: &'static str,
    /// The checkpoint's folder.
    pub hf: &'static str,
}

impl Model {
    /// Runs the inputs through the text (`.rdm`, compiled for their shapes) and through an artifact with prefill chunks of
    /// `seq`; calls `check` with each result. `compile` are flags of both, `args` of the run.
    #[track_caller]
    pub fn both(&self, inputs: &Tensors, seq: usize, compile: &[&str], args: &[&str], check: impl Fn(&str, &Tensors)) {
        let text = repository(self.text);
        let flags = [&["--hf", self.hf], compile].concat();
        check("rdm", &run(&text, inputs, &[&flags, args].concat()));
        let (batch, seq) = (inputs["input_ids"].shape[0].to_string(), seq.to_string());
        let artifact = artifact(&[&[self.text, "--batch", &batch, "--seq", &seq], &flags[..]].concat());
        check("rda", &run(&artifact, inputs, args));
    }
}
