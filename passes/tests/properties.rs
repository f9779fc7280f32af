//! Random modules mean the same before and after each pass: to 1e-12 of the largest element in the f64 interpreter, for
//! several trip counts, among them 0. A failure prints the seed and the module.
mod random;

use random::{Rng, random_inputs, random_module};
use rdc_ir::Module;
use rdc_ir::interp::{Inputs, Options, Outputs, Tensor, run};
use rdc_ir::verify::verify_text;
use rdc_passes::{WeightType, cse, dce, hoist, layout, simplify};

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

fn execute(module: &Module, inputs: &Inputs<f64>, replay: Vec<usize>) -> Outputs<f64> {
    let mut options = Options { replay, ..Options::default() };
    match run(module, "f", inputs, &mut options) {
        Ok(outputs) => outputs,
        Err(e) => panic!("{e}\n{module}"),
    }
}

/// The largest difference of two runs, relative to the largest element of each tensor (at least 1).
fn difference(a: &Outputs<f64>, b: &Outputs<f64>) -> f64 {
    let mut worst = 0.0f64;
    for ((name, x), (other, y)) in a.tensors.iter().zip(&b.tensors) {
        assert_eq!((name, &x.ty), (other, &y.ty));
        let (x, y) = (x.to_f64(), y.to_f64());
        let scale = x.iter().filter(|v| v.is_finite()).fold(1.0f64, |m, v| m.max(v.abs()));
        for (p, q) in x.iter().zip(&y) {
            if p.is_finite() || q.is_finite() {
                let d = (p - q).abs() / scale;
                worst = if d.is_nan() { f64::INFINITY } else { worst.max(d) };
            }
        }
    }
    worst
}

#[test]
fn passes_keep_the_meaning_of_random_modules() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let original = random_module(&mut rng);
        assert_eq!(verify_text(&original), None, "seed {seed}\n{original}");
        let mut inputs = random_inputs(&mut rng, &original);
        let runs: Vec<(i32, Outputs<f64>)> = [0, 1, 3]
            .into_iter()
            .map(|steps| {
                inputs.args.insert("steps".into(), Tensor::int(steps).into());
                (steps, execute(&original, &inputs, vec![]))
            })
            .collect();
        let mut module = original.clone();
        for (name, pass) in PASSES {
            let before = module.to_string();
            pass(&mut module);
            assert_eq!(verify_text(&module), None, "{name}, seed {seed}\n{before}\n{module}");
            for (steps, expected) in &runs {
                inputs.args.insert("steps".into(), Tensor::int(*steps).into());
                // Trips are replayed only if no pass has removed a loop: the list is in order of execution.
                let found = execute(&module, &inputs, vec![]);
                let d = difference(expected, &found);
                assert!(d <= 1e-12, "{name}, seed {seed}, {steps} steps: {d}\n{before}\n{module}");
            }
        }
    }
}

#[test]
fn passes_are_deterministic() {
    for seed in 0..40 {
        let original = random_module(&mut Rng::new(seed));
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
