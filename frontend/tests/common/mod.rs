//! Runs lowered examples through the reference interpreter against the golden fixtures.
#![allow(dead_code, clippy::unwrap_used)]
use rdc_frontend::{Lowered, Options, compile, render};
use rdc_ir::interp::{self, Inputs, Outputs, Tensor};
use rdc_ir::{ArgRole, DType};
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Tensors of a file by name: shape and values.
pub type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

pub fn example(name: &str) -> String {
    std::fs::read_to_string(root().join("examples").join(name)).unwrap()
}

pub fn config(folder: &str) -> serde_json::Value {
    let path = root().join("tests/fixtures").join(folder).join("config.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn fixture(folder: &str, file: &str) -> Tensors {
    let bytes = std::fs::read(root().join("tests/fixtures").join(folder).join(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::I64 => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
                Dtype::BF16 => data
                    .chunks_exact(2)
                    .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b.try_into().unwrap())) << 16))
                    .collect(),
                other => panic!("{other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        })
        .collect()
}

/// Compiles, and checks that the module verifies and that its text parses back.
#[track_caller]
pub fn lower(example_name: &str, options: &Options) -> Lowered {
    let source = example(example_name);
    let lowered = compile(example_name, &source, options)
        .unwrap_or_else(|errors| panic!("{}", render(&errors, example_name, &source)));
    assert!(lowered.warnings.is_empty(), "{}", render(&lowered.warnings, example_name, &source));
    assert_eq!(rdc_ir::verify::verify_text(&lowered.module), None);
    let text = lowered.module.to_string();
    assert_eq!(rdc_ir::parse::parse(&text).unwrap().to_string(), text);
    lowered
}

/// A model with its weights and caches.
pub struct Model {
    pub lowered: Lowered,
    params: HashMap<String, Rc<Tensor<f32>>>,
    caches: HashMap<String, Rc<Tensor<f32>>>,
}

impl Model {
    #[track_caller]
    pub fn new(lowered: Lowered, weights: &Tensors) -> Model {
        let names: Vec<(String, Vec<usize>)> = weights.iter().map(|(n, (s, _))| (n.clone(), s.clone())).collect();
        let matched = rdc_frontend::checkpoint::match_tensors(&lowered.module, &lowered.ignored, &names).unwrap();
        assert!(matched.unused.is_empty(), "{:?}", matched.unused);
        let params = lowered.module.params.values().zip(&matched.tensors).map(|(param, &i)| {
            let (shape, values) = &weights[&names[i].0];
            (param.name.clone(), Rc::new(Tensor::from_f32(shape.clone(), values)))
        });
        Model { params: params.collect(), lowered, caches: HashMap::new() }
    }
    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.caches.clear();
    }
    /// Runs one function on a chunk at a position; caches go on from the call before.
    #[track_caller]
    pub fn run(&mut self, func: &str, ids: &[f32], pos: usize, steps: usize, state: Option<&[f32]>) -> Outputs<f32> {
        let f = self.lowered.module.func(func).unwrap_or_else(|| panic!("no {func}"));
        let mut inputs = Inputs { params: self.params.clone(), args: HashMap::new() };
        for (arg, &value) in f.args.iter().zip(&f.regions[f.body].args) {
            let ty = f.ty(value);
            let tensor = match arg.role {
                ArgRole::Ids => {
                    let ids: Vec<i32> = ids.iter().map(|&v| v as i32).collect();
                    Tensor::from_i32(ty.shape.clone(), &ids)
                }
                ArgRole::Position => Tensor::from_i32(ty.shape.clone(), &vec![pos as i32; ty.elements()]),
                ArgRole::Valid => {
                    let valid = vec![(ids.len() / ty.elements()) as i32; ty.elements()];
                    Tensor::from_i32(ty.shape.clone(), &valid)
                }
                ArgRole::Steps => Tensor::int(steps as i32),
                ArgRole::State(_) => Tensor::from_f32(ty.shape.clone(), state.expect("needs a state")),
                ArgRole::Cache => match self.caches.remove(&arg.name) {
                    Some(cache) => {
                        inputs.args.insert(arg.name.clone(), cache);
                        continue;
                    }
                    None => Tensor::zeros(ty),
                },
                ArgRole::Input | ArgRole::Labels | ArgRole::NoGradSteps | ArgRole::GradSteps => {
                    panic!("unexpected input {}", arg.name)
                }
            };
            assert!(matches!(ty.dtype, DType::F32 | DType::I32));
            inputs.args.insert(arg.name.clone(), Rc::new(tensor));
        }
        let options = &mut interp::Options { record: true, ..Default::default() };
        let outputs = interp::run(&self.lowered.module, func, &inputs, options).unwrap();
        for (name, tensor) in &outputs.tensors {
            if tensor.ty.cache {
                self.caches.insert(name.clone(), tensor.clone());
            }
        }
        outputs
    }
}

/// Rows `[:, from..to]` of `[B, T, …]` values.
pub fn columns((shape, values): &(Vec<usize>, Vec<f32>), from: usize, to: usize) -> Vec<f32> {
    let inner: usize = shape[2..].iter().product();
    values.chunks_exact(shape[1] * inner).flat_map(|row| row[from * inner..to * inner].to_vec()).collect()
}

/// Asserts that two tensors agree to 2e-5 of the largest reference value.
#[track_caller]
pub fn close(what: &str, found: &[f32], want: &[f32]) {
    assert_eq!(found.len(), want.len(), "{what}: number of values");
    let largest = want.iter().fold(1e-30f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 2e-5 * largest, "{what}: differs by {worst:e} of {largest:e}");
}
