//! Random functions: gradients against differences in a random direction, and policies against each other.
use super::support::{assert_close, execute, run_gradient, with_gradient};
use rdc_ir::interp::{Inputs, Tensor};
use rdc_ir::testing::{Rng, most_steps, random_inputs, random_loss};
use rdc_ir::training::Remat;
use rdc_passes::differentiate::Options;

const MODULES: u64 = 100;

/// The parameters, moved along a direction.
fn moved(inputs: &Inputs<f64>, direction: &[(String, Vec<f64>)], by: f64) -> Inputs<f64> {
    let mut inputs = inputs.clone();
    for (name, direction) in direction {
        let tensor = &inputs.params[name];
        let values = tensor.floats().iter().zip(direction).map(|(v, d)| v + by * d).collect();
        let tensor = Tensor::floats_of(tensor.ty.clone(), values);
        inputs.params.insert(name.clone(), tensor.into());
    }
    inputs
}

#[test]
fn gradients_are_slopes() {
    for seed in 0..MODULES {
        let module = random_loss(seed);
        let mut rng = Rng::new(seed);
        let gradient = with_gradient(&module, &Options { max_grad_steps: 9, ..Options::default() });
        for steps in [0, most_steps(&module)] {
            let mut inputs = random_inputs(&module, "loss", seed);
            inputs.args.insert("steps".into(), Tensor::int(steps as i32).into());
            let outputs = run_gradient(&gradient, &inputs, 0, steps);
            let direction: Vec<(String, Vec<f64>)> = module
                .params
                .values()
                .map(|p| (p.name.clone(), (0..p.ty.elements()).map(|_| rng.unit() as f64).collect()))
                .collect();
            let mut found = 0.0;
            for (name, direction) in &direction {
                let gradient = outputs.get(&format!("grad.{name}")).unwrap();
                found += gradient.floats().iter().zip(direction).map(|(g, d)| g * d).sum::<f64>();
            }
            let slope = |step: f64| {
                let at =
                    |by| execute(&module, "loss", &moved(&inputs, &direction, by)).get("loss").unwrap().floats()[0];
                (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step)
            };
            // A kink nearby disturbs the slope at one step width, not at a narrower one.
            let what = format!("seed {seed}, {steps} steps\n{module}\n{gradient}");
            let off = |step| (slope(step) - found).abs();
            assert!(
                [1e-4, 1e-5, 1e-6].into_iter().any(|s| off(s) <= 1e-5 * found.abs().max(1.0)),
                "{} {what}",
                off(1e-5)
            );
        }
    }
}

#[test]
fn policies_agree() {
    for seed in 0..MODULES {
        let module = random_loss(seed);
        let most = most_steps(&module);
        let mut inputs = random_inputs(&module, "loss", seed);
        inputs.args.remove("steps");
        let options = |remat, stack_weight_grads| Options {
            max_grad_steps: 3,
            remat,
            budget: 500,
            stack_weight_grads,
            ..Options::default()
        };
        let expected = with_gradient(&module, &options(Remat::None, None));
        for (n, k) in [(0, most.min(3)), (most / 2, (most - most / 2).min(2))] {
            let expected = run_gradient(&expected, &inputs, n, k);
            for remat in [Remat::Iteration, Remat::Auto] {
                let gradient = with_gradient(&module, &options(remat, Some(1 << 20)));
                let found = run_gradient(&gradient, &inputs, n, k);
                for ((name, f), (_, e)) in found.tensors.iter().zip(&expected.tensors) {
                    let what = format!("seed {seed}, {remat:?}, n = {n}, k = {k}, {name}\n{module}\n{gradient}");
                    assert_close(f.floats(), e.floats(), 1e-10, &what);
                }
            }
        }
    }
}
