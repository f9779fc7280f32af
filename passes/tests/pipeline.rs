//! The whole pipeline on a recurrent model: prefill and decode, a split adapter, a tied head.
#![allow(clippy::unwrap_used)]
mod common;

use rdc_ir::cost::func_cost;
use rdc_ir::interp::{Inputs, Options, Outputs, Tensor, run};
use rdc_ir::packing::{quantize, row_scale};
use rdc_ir::program::WeightSource;
use rdc_ir::testing::{max_difference, random_inputs};
use rdc_ir::training::Remat;
use rdc_ir::{Module, parse};
use rdc_passes::{Error, POINTS, TRAINING_POINTS, Training, WeightType, compile, differentiate, optimise, optimizer};
use std::rc::Rc;

fn model() -> Module {
    parse(include_str!("pipeline/recurrent.rdir").split("; ---").next().unwrap()).unwrap()
}

fn execute(module: &Module, inputs: &Inputs<f64>) -> Outputs<f64> {
    run(module, "prefill", inputs, &mut Options::default()).unwrap()
}

#[test]
fn every_point_is_seen_in_order() {
    let mut seen = Vec::new();
    compile(model(), &common::options(WeightType::F32), &mut |point, stage| {
        assert_eq!(stage.program.is_some(), point == "plan");
        seen.push(point.to_string());
    })
    .unwrap();
    assert_eq!(seen, POINTS);
}

#[test]
fn hoisting_takes_half_of_the_adapter_out_of_the_iteration() {
    let mut flops = Vec::new();
    let mut observer = |point: &str, stage: rdc_passes::Stage<'_>| {
        if point == "lower" || point == "hoist" {
            flops.push(func_cost(&stage.module.funcs[0]).per_iteration().flops);
        }
    };
    optimise(model(), &common::options(WeightType::F32), &mut observer).unwrap();
    // 4 tokens, 16 by 16 weights of the embedding; one addition of the halves remains.
    assert_eq!(flops[0] - flops[1], 2 * 4 * 16 * 16 - 4 * 16);
}

#[test]
fn prefill_and_decode_share_every_weight() {
    for dtype in [WeightType::F32, WeightType::Bf16, WeightType::I8] {
        let (_, program) = compile(model(), &common::options(dtype), &mut |_, _| {}).unwrap();
        let packed = program.weights.iter().filter(|w| matches!(w.source, WeightSource::Packed { .. }));
        let elements: usize = packed.map(|w| w.ty.elements()).sum();
        // The table (also the head), the adapter's halves, and the core's four weights, once each.
        assert_eq!(elements, 32 * 16 + 16 * 32 + 48 * 16 + 16 * 16 + 48 * 16 + 16 * 24, "{dtype:?}");
    }
}

/// The parameters after a function of their rows.
fn map_params(inputs: &Inputs<f64>, rank2_only: bool, f: impl Fn(&mut [f64])) -> Inputs<f64> {
    let mut out = inputs.clone();
    for tensor in out.params.values_mut().filter(|t| !rank2_only || t.ty.rank() == 2) {
        let mut values = tensor.to_f64();
        values.chunks_mut(tensor.ty.last()).for_each(&f);
        *tensor = Rc::new(Tensor::floats_of(tensor.ty.clone(), values));
    }
    out
}

#[test]
fn bf16_means_that_every_parameter_is_rounded() {
    let inputs = random_inputs(&model(), "prefill", 1);
    let round = |v: f64| {
        // To nearest even on the upper half of the bits.
        let bits = (v as f32).to_bits();
        f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000) as f64
    };
    let rounded = map_params(&inputs, false, |row| row.iter_mut().for_each(|v| *v = round(*v)));
    let module = optimise(model(), &common::options(WeightType::Bf16), &mut |_, _| {}).unwrap();
    let (d, output) = max_difference(&execute(&model(), &rounded), &execute(&module, &inputs));
    assert!(d < 1e-12, "{output}: {d}");
}

#[test]
fn i8_means_that_weights_of_products_are_quantised_by_whole_rows() {
    let inputs = random_inputs(&model(), "prefill", 2);
    // All parameters of rank 2 are weights of products here; the adapter's rows span both of its halves.
    let quantised = map_params(&inputs, true, |row| {
        let numbers: Vec<f32> = row.iter().map(|&v| v as f32).collect();
        let scale = row_scale(&numbers);
        row.iter_mut().zip(&numbers).for_each(|(v, &x)| *v = quantize(x, scale) as f64 * scale as f64);
    });
    let module = optimise(model(), &common::options(WeightType::I8), &mut |_, _| {}).unwrap();
    let (d, output) = max_difference(&execute(&model(), &quantised), &execute(&module, &inputs));
    assert!(d < 1e-12, "{output}: {d}");
}

#[test]
fn an_invalid_module_is_an_error() {
    let mut module = model();
    module.funcs[0].outputs.pop();
    let error = optimise(module, &common::options(WeightType::F32), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().starts_with("the module is not valid after lower: "), "{error}");
}

/// A recurrent model with a loss.
fn loss() -> Module {
    parse(include_str!("../src/plan/testdata/loss.rdir")).unwrap()
}

fn training(remat: Remat) -> rdc_passes::Options {
    let optimizer = Some(optimizer::Options::default());
    let training =
        Training { max_grad_steps: 4, remat, memory: None, optimizer, frozen: vec!["unused".into()], losses: false };
    rdc_passes::Options { training: Some(training), ..common::options(WeightType::F32) }
}

#[test]
fn every_point_of_training_is_seen_in_order() {
    let mut seen = Vec::new();
    let (module, program) =
        compile(loss(), &training(Remat::None), &mut |point, _| seen.push(point.to_string())).unwrap();
    assert_eq!(seen, TRAINING_POINTS);
    let entries: Vec<&str> = program.entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(entries, ["grad", "update"], "the loss is not asked for");
    assert!(module.param("grad.table").is_some() && module.param("grad.unused").is_none());
}

#[test]
fn training_keeps_the_gradients_of_differentiation() {
    let mut plain = loss();
    let options = differentiate::Options { max_grad_steps: 4, ..differentiate::Options::default() };
    differentiate::run(&mut plain, &options).unwrap();
    for remat in [Remat::None, Remat::Iteration] {
        let mut options = training(remat);
        options.training.as_mut().unwrap().frozen.clear();
        let module = optimise(loss(), &options, &mut |_, _| {}).unwrap();
        for (seed, (n, k)) in [(0, 1), (0, 4), (2, 3), (3, 0)].into_iter().enumerate() {
            let mut inputs = random_inputs(&plain, "grad", seed as u64);
            for (name, count) in [("no_grad_steps", n), ("grad_steps", k)] {
                assert!(inputs.args.insert(name.into(), Tensor::int(count).into()).is_some());
            }
            let [expected, found] =
                [&plain, &module].map(|m| run::<f64>(m, "grad", &inputs, &mut Options::default()).unwrap());
            let (d, output) = max_difference(&expected, &found);
            assert!(d < 1e-12, "{remat:?}, {n} and {k} steps, {output}: {d}");
        }
    }
}

#[test]
fn auto_takes_the_first_policy_that_fits() {
    let bytes_of = |options| compile(loss(), &options, &mut |_, _| {}).map(|(_, program)| program.memory(0));
    let bytes = |remat| bytes_of(training(remat));
    let within = |memory| {
        let mut options = training(Remat::Auto);
        options.training.as_mut().unwrap().memory = Some(memory);
        bytes_of(options)
    };
    let (all, least) = (bytes(Remat::None).unwrap(), bytes(Remat::Iteration).unwrap());
    let worth_it = bytes(Remat::Auto).unwrap();
    assert!(least < worth_it && worth_it < all);
    for memory in [all, worth_it] {
        assert_eq!(within(memory), Ok(worth_it));
    }
    for memory in [(worth_it + least) / 2, least] {
        assert!(within(memory).unwrap() <= memory);
    }
    let Err(Error::Unsupported { message, .. }) = within(least / 2) else { panic!() };
    assert!(message.contains(&format!("at least {least} bytes")), "{message}");
}

#[test]
fn training_is_in_f32() {
    let options = rdc_passes::Options { dtype: WeightType::Bf16, ..training(Remat::None) };
    let error = optimise(loss(), &options, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "training is in f32 only");
}
