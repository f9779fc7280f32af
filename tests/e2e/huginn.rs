//! The reference model: logits, latents, states, decode, KV budgets, weight types.
use crate::support::*;
use std::path::Path;

const TINY: Model = Model { text: "examples/huginn.rdm", hf: "tests/fixtures/huginn-tiny" };
const ODD: Model = Model { text: "examples/huginn.rdm", hf: "tests/fixtures/huginn-odd" };

fn of(model: &Model, file: &str) -> Tensors {
    read(&repository(model.hf).join(file))
}

fn logits_and_latents(model: &Model) {
    let reference = of(model, "a_logits.safetensors");
    for tag in ["b1s1", "b2s12", "b3s17"] {
        let inputs = inputs(&reference[&format!("{tag}.ids")], Some(&reference[&format!("{tag}.s0")]));
        for steps in ["1", "2", "4", "8", "32"] {
            model.both(&inputs, 12, &[], &["--steps", steps], |way, out| {
                for (output, name) in [("logits", "logits"), ("latent_states", "latent")] {
                    let what = format!("{tag} r={steps} {output} through {way}");
                    assert_close(&what, &out[output], &reference[&format!("{tag}.r{steps}.{name}")], TOLERANCE);
                }
            });
        }
    }
    let alternative = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0_alt"]));
    model.both(&alternative, 12, &[], &["--steps", "32"], |way, out| {
        let what = format!("second start through {way}");
        assert_close(&what, &out["logits"], &reference["b2s12.r32.logits_alt_state"], TOLERANCE);
    });
}

#[test]
fn tiny_logits_and_latents() {
    logits_and_latents(&TINY);
}

#[test]
fn odd_logits_and_latents() {
    logits_and_latents(&ODD);
}

#[test]
fn states_of_every_iteration() {
    for model in [&TINY, &ODD] {
        let reference = of(model, "b_states.safetensors");
        let inputs = inputs(&reference["ids"], Some(&reference["s0"]));
        model.both(&inputs, 12, &[], &["--steps", "32", "--states"], |way, out| {
            for step in 1..=32 {
                let state = &out[&format!("state_{step}")];
                assert_close(&format!("s{step} through {way}"), state, &reference[&format!("s{step}")], TOLERANCE);
            }
            assert!(!out.contains_key("state_33"));
        });
    }
}

#[test]
fn zero_iterations_decode_the_initial_state() {
    let reference = of(&TINY, "b_states.safetensors");
    let inputs = |name: &str| inputs(&reference["ids"], Some(&reference[name]));
    let text = repository(TINY.text);
    let flags = ["--hf", TINY.hf, "--steps"];
    let whole = run(&text, &inputs("s0"), &[&flags[..], &["4"]].concat());
    let rest = run(&text, &inputs("s4"), &[&flags[..], &["0"]].concat());
    assert_close("coda of s4", &rest["logits"], &whole["logits"], TOLERANCE);
    assert_close("latent of s4", &rest["latent_states"], &whole["latent_states"], TOLERANCE);
}

fn greedy(model: &Model, steps: &str) {
    let reference = of(model, "c_decode.safetensors");
    let tokens = &reference[&format!("r{steps}.tokens")];
    let fed = tokens.shape[1] - 1;
    let inputs = inputs(&tokens.slice(1, 0, fed), Some(&reference["S0"].slice(1, 0, fed)));
    model.both(&inputs, 7, &[], &["--steps", steps, "--chunks", &chunks(7, fed)], |way, out| {
        let logits = out["logits"].slice(1, 6, fed);
        let expected = &reference[&format!("r{steps}.step_logits")];
        assert_close(&format!("cached r={steps} through {way}"), &logits, expected, TOLERANCE);
        let next: Vec<f64> = logits.argmax().into_iter().map(|t| t as f64).collect();
        assert_eq!(next, tokens.data[7..], "greedy tokens");
    });
    let whole = run(&repository(model.text), &inputs, &["--hf", model.hf, "--steps", steps]);
    let expected = &reference[&format!("r{steps}.full_logits")];
    assert_close("without a cache", &whole["logits"].slice(1, 6, fed), expected, TOLERANCE);
}

#[test]
fn greedy_decoding() {
    greedy(&TINY, "8");
    greedy(&TINY, "32");
    greedy(&ODD, "8");
}

#[test]
fn greedy_decoding_from_a_zero_state() {
    for model in [&TINY, &ODD] {
        let tokens = &of(model, "c_decode.safetensors")["zero_state.tokens_r8"];
        let dim = of(model, "c_decode.safetensors")["S0"].shape[2];
        let fed = tokens.shape[1] - 1;
        let inputs = inputs(&tokens.slice(1, 0, fed), Some(&Tensor::zeros(&[1, fed, dim])));
        model.both(&inputs, 7, &[], &["--steps", "8", "--chunks", &chunks(7, fed)], |_, out| {
            let next: Vec<f64> = out["logits"].slice(1, 6, fed).argmax().into_iter().map(|t| t as f64).collect();
            assert_eq!(next, tokens.data[7..]);
        });
    }
}

#[test]
fn chunked_prefill_of_a_batch() {
    for model in [&TINY, &ODD] {
        let reference = of(model, "c_decode.safetensors");
        let inputs = inputs(&reference["chunk.ids"], Some(&reference["chunk.s0"]));
        model.both(&inputs, 12, &[], &["--steps", "4", "--chunks", "5,6,1,1,1"], |way, out| {
            assert_close(&format!("chunks through {way}"), &out["logits"], &reference["chunk.logits_r4"], TOLERANCE);
        });
    }
}

#[test]
fn kv_budgets() {
    let cases = [
        ("full", "budget_full"),
        ("modulo:1", "budget_1"),
        ("modulo:2", "budget_2"),
        ("modulo:4", "budget_4"),
        ("block:4", "latest-m4-compress-r4"),
        ("anchor", "latest-m4-compress-anchor"),
    ];
    for (model, budgets) in [(&TINY, 10), (&ODD, 8)] {
        let mut seen = 0;
        let reference = of(model, "d_kv_budget.safetensors");
        let inputs = inputs(&reference["ids"], Some(&reference["s0"]));
        for (policy, name) in cases {
            for steps in ["8", "32"] {
                let Some(expected) = reference.get(&format!("r{steps}.{name}.logits")) else { continue };
                seen += 1;
                let args = ["--steps", steps, "--chunks", &chunks(6, 20)];
                model.both(&inputs, 6, &["--kv", policy], &args, |way, out| {
                    assert_close(&format!("{policy} r={steps} through {way}"), &out["logits"], expected, TOLERANCE);
                });
            }
        }
        assert_eq!(seen, budgets, "{}: cases of the fixture", model.hf);
    }
}

/// Half the memory, and logits that stay near those of f32 caches: within twice what docs/numerics.md measures.
#[test]
fn bf16_caches() {
    let bytes = |args: &[&str]| {
        let facts: serde_json::Value =
            serde_json::from_str(&ok(&[&["inspect", TINY.text, "--json"], args].concat())).unwrap();
        facts["kv"]["bytes"].as_u64().unwrap()
    };
    let hf = ["--hf", TINY.hf];
    assert_eq!(bytes(&hf), 2 * bytes(&[&hf[..], &["--kv-dtype", "bf16"]].concat()));
    for model in [&TINY, &ODD] {
        let reference = of(model, "d_kv_budget.safetensors");
        let inputs = inputs(&reference["ids"], Some(&reference["s0"]));
        for steps in ["8", "32"] {
            let args = ["--steps", steps, "--chunks", &chunks(6, 20)];
            model.both(&inputs, 6, &["--kv-dtype", "bf16"], &args, |way, out| {
                let expected = &reference[&format!("r{steps}.budget_full.logits")];
                assert_close(&format!("bf16 caches r={steps} through {way}"), &out["logits"], expected, 5e-3);
                let exact = std::panic::catch_unwind(|| assert_close("", &out["logits"], expected, TOLERANCE));
                assert!(exact.is_err(), "the caches are not rounded");
            });
        }
    }
}

#[test]
fn bf16_weights() {
    for model in [&TINY, &ODD] {
        let reference = of(model, "k_bf16.safetensors");
        let inputs = inputs(&reference["ids"], Some(&reference["s0_bf16"]));
        for steps in ["1", "4", "32"] {
            model.both(&inputs, 12, &["--dtype", "bf16"], &["--steps", steps], |way, out| {
                let expected = &reference[&format!("r{steps}.logits_f32_math_on_bf16_weights")];
                assert_close(&format!("bf16 r={steps} through {way}"), &out["logits"], expected, TOLERANCE);
            });
        }
    }
}

/// Rounds every matrix as `--dtype i8` does: per row, to multiples of max |row| / 127.
fn dequantised(weights: &mut Tensors) {
    for tensor in weights.values_mut().filter(|t| t.shape.len() == 2) {
        for row in tensor.data.chunks_mut(tensor.shape[1]) {
            let largest = row.iter().fold(0.0f32, |m, &x| m.max((x as f32).abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
            for x in row {
                *x = ((*x as f32 / scale).round_ties_even() * scale) as f64;
            }
        }
    }
}

#[test]
fn i8_weights_equal_f32_on_dequantised_weights() {
    for model in [&TINY, &ODD] {
        let reference = of(model, "a_logits.safetensors");
        let inputs = inputs(&reference["b2s12.ids"], Some(&reference["b2s12.s0"]));
        let folder = folder();
        let mut weights = of(model, "model.safetensors");
        dequantised(&mut weights);
        write(&folder.path().join("model.safetensors"), &weights);
        std::fs::copy(repository(model.hf).join("config.json"), folder.path().join("config.json")).unwrap();
        let hf = folder.path().to_str().unwrap();
        for steps in ["1", "8"] {
            let expected = run(Path::new(model.text), &inputs, &["--hf", hf, "--steps", steps, "--no-cache"]);
            model.both(&inputs, 12, &["--dtype", "i8"], &["--steps", steps], |way, out| {
                assert_close(&format!("i8 r={steps} through {way}"), &out["logits"], &expected["logits"], TOLERANCE);
            });
        }
    }
}
