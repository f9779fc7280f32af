//! Gradients through loops against finite differences of the unrolled function.
use super::models::{MODELS, Model};
use super::support::{assert_close, differences, execute, run_gradient, with_gradient};
use rdc_passes::differentiate::Options;

fn check(model: &Model, seed: u64, n: usize, k: usize, max_grad_steps: usize) {
    let what = format!("{}, seed {seed}, n = {n}, k = {k}, K = {max_grad_steps}", model.name);
    let trips = if model.can_exit { model.trips(seed, k) } else { k };
    let (unrolled, unrolled_inputs) = model.unrolled(seed, n, k, trips);
    let (module, inputs) = model.looped(seed);
    let gradient = with_gradient(&module, &Options { max_grad_steps, ..Options::default() });
    let outputs = run_gradient(&gradient, &inputs, n, k);
    let loss = execute(&unrolled, "loss", &unrolled_inputs);
    let value = |o: &rdc_ir::interp::Outputs<f64>| o.get("loss").unwrap().floats().to_vec();
    assert_close(&value(&outputs), &value(&loss), 1e-12, &what);
    for param in module.params.values() {
        let expected = differences(&unrolled, "loss", &unrolled_inputs, &param.name);
        let found = outputs.get(&format!("grad.{}", param.name)).unwrap();
        assert_close(found.floats(), &expected, 1e-6, &format!("{what}, {}\n{gradient}", param.name));
    }
}

#[test]
fn gradients_of_all_steps() {
    for model in MODELS {
        for (k, max_grad_steps) in [(0, 3), (1, 4), (3, 4), (4, 4), (5, 9)] {
            (0..2).for_each(|seed| check(model, seed, 0, k, max_grad_steps));
        }
    }
}

#[test]
fn gradients_after_steps_without() {
    for model in MODELS.iter().filter(|m| !m.can_exit) {
        for (n, k, max_grad_steps) in [(3, 0, 2), (1, 1, 1), (2, 2, 2), (1, 3, 4), (4, 1, 5)] {
            (0..2).for_each(|seed| check(model, seed, n, k, max_grad_steps));
        }
    }
}

#[test]
fn halting_exits_early_in_some_cases_and_not_in_others() {
    let halting = MODELS.iter().find(|m| m.can_exit).unwrap();
    let early: Vec<bool> = (0..2).flat_map(|seed| [1, 3, 4, 5].map(|k| halting.trips(seed, k) < k)).collect();
    assert!(early.contains(&true) && early.contains(&false), "{early:?}");
}
