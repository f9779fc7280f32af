//! Random modules mean the same before and after each pass: to 1e-12 of the largest element in the f64 interpreter, for
//! several trip counts, among them 0. A failure prints the seed and the module.
mod random;

use rdc_ir::interp::{Inputs, Options, Outputs, Tensor, run};
use rdc_ir::testing::{Config, max_difference, random_inputs};
use rdc_ir::verify::verify_text;
use rdc_ir::{Module, Opcode};
use rdc_passes::tile::Cpu;
use rdc_passes::{WeightType, cse, dce, expand, hoist, layout, simplify};

type Pass = fn(&mut Module);

const PASSES: &[(&str, Pass)] = &[
    ("simplify", |m| simplify::run(m, 8)),
    ("hoist", hoist::run),
    ("cse", cse::run),
    ("dce", dce::run),
    ("layout", |m| layout::run(m, WeightType::F32, 4)),
    ("hoist2", hoist::run),
    ("cse2", cse::run),
    ("dce2", dce::run),
];

const CPU: Cpu = Cpu { lanes: 2, mr: 2, nr: 4, l1: 32 << 10, l2: 256 << 10 };

/// The passes of training after differentiation, and the one before it.
const TRAINING: &[(&str, Pass)] = &[
    ("simplify", |m| simplify::run(m, 8)),
    ("dce", dce::run),
    ("fuse_loss", expand::fuse_loss),
    ("expand", |m| expand::run(m, &CPU)),
    ("cse", cse::run),
    ("hoist", hoist::run),
    ("dce2", dce::run),
    ("layout", |m| layout::run_for_training(m, 4)),
    ("hoist2", hoist::run),
    ("cse2", cse::run),
    ("dce3", dce::run),
];

fn execute(module: &Module, inputs: &mut Inputs<f64>, steps: i32) -> Outputs<f64> {
    if inputs.args.contains_key("steps") {
        inputs.args.insert("steps".into(), Tensor::int(steps).into());
    }
    match run(module, "f", inputs, &mut Options::default()) {
        Ok(outputs) => outputs,
        Err(e) => panic!("{e}\n{module}"),
    }
}

/// Runs the passes one after the other and compares every state of the module with the first.
fn check(original: &Module, passes: &[(&str, Pass)], seed: u64) {
    assert_eq!(verify_text(original), None, "seed {seed}\n{original}");
    let mut inputs = random_inputs(original, "f", seed);
    let func = &original.funcs[0];
    let loops = func.walk().into_iter().map(|(_, op)| &func.ops[op]).filter(|op| op.opcode == Opcode::Loop);
    let most = loops.map(|op| op.int("max_steps") as i32).min().unwrap_or(1);
    let expected: Vec<(i32, Outputs<f64>)> =
        [0, 1, most].into_iter().map(|steps| (steps, execute(original, &mut inputs, steps))).collect();
    let mut module = original.clone();
    for (name, pass) in passes {
        let before = module.to_string();
        pass(&mut module);
        assert_eq!(verify_text(&module), None, "{name}, seed {seed}\n{before}\n{module}");
        for (steps, expected) in &expected {
            let found = execute(&module, &mut inputs, *steps);
            let (d, output) = max_difference(expected, &found);
            assert!(d <= 1e-12, "{name}, seed {seed}, {steps} steps, {output}: {d}\n{before}\n{module}");
        }
    }
}

#[test]
fn passes_keep_the_meaning_of_modules_full_of_rewrites() {
    (0..300).for_each(|seed| check(&random::module(seed), PASSES, seed));
}

#[test]
fn passes_keep_the_meaning_of_random_modules() {
    (0..200).for_each(|seed| check(&rdc_ir::testing::random_module(seed, &Config::default()), PASSES, seed));
}

#[test]
fn passes_of_training_keep_the_meaning_of_random_modules() {
    let config = Config { training: true, ..Config::default() };
    (0..200).for_each(|seed| check(&rdc_ir::testing::random_module(seed, &config), TRAINING, seed));
    (0..100).for_each(|seed| check(&random::module(seed), TRAINING, seed));
}

#[test]
fn passes_are_deterministic() {
    for seed in 0..40 {
        let original = random::module(seed);
        let optimised = || {
            let mut module = original.clone();
            PASSES.iter().for_each(|(_, pass)| pass(&mut module));
            module
        };
        let (a, b) = (optimised(), optimised());
        assert_eq!(a.to_string(), b.to_string());
        assert_eq!(a, b);
    }
}
