//! The settings of the example texts that no checkpoint of the fixtures has, with random weights: what the binary computes
//! against the interpreter on the IR as the text says it.
use crate::support::*;
use rdc_ir::interp::{self, Inputs, Outputs};
use rdc_ir::{ArgRole, DType};
use std::collections::HashMap;
use std::rc::Rc;

const BATCH: usize = 2;
/// A prompt and one token.
const CHUNKS: [usize; 2] = [5, 1];
const CONTEXT: usize = 12;
const STEPS: usize = 3;

/// Numbers that let every part of the model matter: matrices keep the size of what they multiply, biases are not zero.
fn weights(module: &rdc_ir::Module, rng: &mut Rng) -> Tensors {
    let mut tensor = |param: &rdc_ir::Param| {
        let shape = &param.ty.shape;
        let one_of_norm = matches!(param.init, rdc_ir::Init::Constant(c) if c == 1.0);
        let (centre, spread) = match shape[..] {
            [_, inner] => (0.0, (3.0 / inner as f64).sqrt()),
            _ => (one_of_norm as u8 as f64, 0.3),
        };
        let data = (0..param.ty.elements()).map(|_| (centre + spread * rng.uniform()) as f32 as f64).collect();
        (param.name.clone(), Tensor::floats(shape, data))
    };
    module.params.iter().map(|(_, param)| tensor(param)).collect()
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
    /// From -1 to 1; exact in f32.
    fn uniform(&mut self) -> f64 {
        self.below(1 << 20) as f64 / (1 << 19) as f64 - 1.0
    }
}

fn value(tensor: &Tensor) -> Rc<interp::Tensor<f64>> {
    Rc::new(match tensor.integer {
        true => interp::Tensor::from_i32(&tensor.shape[..], &tensor.data.iter().map(|&x| x as i32).collect::<Vec<_>>()),
        false => interp::Tensor::floats_of(rdc_ir::Type::f32(&tensor.shape[..]), tensor.data.clone()),
    })
}

/// The logits of the chunks one after the other, in f64.
fn interpreted(module: &rdc_ir::Module, weights: &Tensors, given: &Tensors) -> Vec<Tensor> {
    let params = weights.iter().map(|(name, tensor)| (name.clone(), value(tensor))).collect();
    let mut inputs = Inputs { params, args: HashMap::new() };
    let mut start = 0;
    let mut logits = Vec::new();
    for (name, length) in ["prefill", "decode"].into_iter().zip(CHUNKS) {
        let func = module.func(name).unwrap();
        for (arg, &id) in func.args.iter().zip(&func.regions[func.body].args) {
            let tensor = match arg.role {
                ArgRole::Position => value(&Tensor::ids(&[BATCH], vec![start as f64; BATCH])),
                ArgRole::Steps => Rc::new(interp::Tensor::int(STEPS as i32)),
                ArgRole::Cache if start > 0 => continue,
                ArgRole::Cache => Rc::new(interp::Tensor::zeros(func.ty(id))),
                _ => value(&given[&arg.name].slice(1, start, start + length)),
            };
            inputs.args.insert(arg.name.clone(), tensor);
        }
        let Outputs { tensors, .. } = interp::run(module, name, &inputs, &mut interp::Options::default()).unwrap();
        for (name, tensor) in tensors {
            if name == "logits" {
                logits.push(Tensor::floats(&tensor.ty.shape, tensor.to_f64()));
            }
            inputs.args.insert(name, tensor);
        }
        start += length;
    }
    logits
}

fn check(text: &str, sizes: &[&str], variant: &[&str]) {
    check_cached(text, sizes, variant, DType::F32);
}

fn check_cached(text: &str, sizes: &[&str], variant: &[&str], kv_dtype: DType) {
    let settings: Vec<&str> = [sizes, variant].concat();
    let overrides = settings.iter().map(|s| s.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.into())).collect();
    let options = rdc_frontend::Options {
        overrides,
        batch: BATCH,
        chunks: CHUNKS.to_vec(),
        context: Some(CONTEXT),
        kv_dtype,
        ..rdc_frontend::Options::default()
    };
    let source = std::fs::read_to_string(repository(text)).unwrap();
    let module = rdc_frontend::compile(text, &source, &options).unwrap().module;

    let rng = &mut Rng(settings.iter().flat_map(|s| s.bytes()).map(u64::from).sum());
    let weights = weights(&module, rng);
    let length: usize = CHUNKS.iter().sum();
    let ids = Tensor::ids(&[BATCH, length], (0..BATCH * length).map(|_| rng.below(40) as f64).collect());
    let state = (0..BATCH * length * 32).map(|_| rng.uniform()).collect();
    let state = Tensor::floats(&[BATCH, length, 32], state);
    let has_state = module.funcs[0].args.iter().any(|a| a.name == "initial_state");
    let given = inputs(&ids, has_state.then_some(&state));

    let folder = folder();
    let file = folder.path().join("weights.safetensors");
    write(&file, &weights);
    let settings: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
    let (context, steps) = (CONTEXT.to_string(), STEPS.to_string());
    let args = ["--weights", file.to_str().unwrap(), "--context", &context, "--steps", &steps, "--no-cache"];
    let args = [&args[..], &["--kv-dtype", kv_dtype.name()]].concat();
    let out = run(&repository(text), &given, &[&settings[..], &args, &["--chunks", "5,1"]].concat());
    let mut start = 0;
    for (expected, length) in interpreted(&module, &weights, &given).iter().zip(CHUNKS) {
        let what = format!("{text} {variant:?} {} from token {start}", kv_dtype.name());
        assert_close(&what, &out["logits"].slice(1, start, start + length), expected, TOLERANCE);
        start += length;
    }
}

#[test]
fn universal_transformer() {
    let sizes = ["dim=32", "heads=2", "inner=48", "vocab=40", "positions_learned=16", "steps=4"];
    for (norm, act, coord) in [
        ("pre", "relu", "sinusoidal"),
        ("post", "gelu", "learned"),
        ("pre", "gelu_tanh", "learned"),
        ("post", "relu", "learned"),
    ] {
        let variant = [format!("norm={norm}"), format!("act={act}"), format!("coord={coord}")];
        check("examples/universal_transformer.rdm", &sizes, &variant.each_ref().map(String::as_str));
    }
}

#[test]
fn ouro() {
    let sizes = ["dim=32", "heads=4", "inner=48", "vocab=40", "layers=2"];
    check("examples/ouro.rdm", &sizes, &["kv_heads=2"]);
    check("examples/ouro.rdm", &sizes, &["kv_heads=1", "head_dim=16", "tied=true"]);
}

#[test]
fn huginn() {
    let sizes = ["dim=32", "heads=2", "inner=48", "vocab=40", "layers_prelude=1", "layers_core=2", "layers_coda=1"];
    for variant in [
        &["injection=add", "tied=false"][..],
        &["injection=gate", "qk_bias=false"],
        &["injection=none"],
        &["injection=linear", "adapter_bias=true", "qk_bias=false", "tied=false"],
    ] {
        check("examples/huginn.rdm", &sizes, variant);
    }
}

/// The interpreter rounds keys that it computes in f64, the binary those that it computes in f32: here none of them to another side,
/// which would show at 1e-3.
#[test]
fn bf16_caches() {
    let sizes = ["dim=32", "heads=2", "inner=48", "vocab=40", "layers_prelude=1", "layers_core=2", "layers_coda=1"];
    check_cached("examples/huginn.rdm", &sizes, &["injection=linear"], DType::BF16);
    let sizes = ["dim=32", "heads=4", "inner=48", "vocab=40", "layers=2"];
    check_cached("examples/ouro.rdm", &sizes, &["kv_heads=2"], DType::BF16);
}
