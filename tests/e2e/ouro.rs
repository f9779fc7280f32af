//! LoopLM: per-step read-outs, the exit gate, grouped read-outs, decode.
use crate::support::*;

const OURO: Model = Model { text: "examples/ouro.rdm", hf: "tests/fixtures/ouro-tiny" };

/// Entry `step` of a stacked output.
fn at(out: &Tensors, name: &str, step: usize) -> Tensor {
    let mut entry = out[name].slice(0, step, step + 1);
    entry.shape.remove(0);
    entry
}

#[test]
fn every_step_and_the_gate() {
    let reference = fixture("ouro-tiny/a_forward_decode.safetensors");
    for tag in ["b1s1", "b2s12", "b3s17"] {
        let inputs = inputs(&reference[&format!("{tag}.ids")], None);
        OURO.both(&inputs, 12, &[], &[], |way, out| {
            for step in 0..4 {
                let expected = |what: &str| &reference[&format!("{tag}.step{step}.{what}")];
                let what = |name: &str| format!("{tag} step {step} {name} through {way}");
                assert_close(&what("logits"), &at(out, "step_logits", step), expected("logits"), TOLERANCE);
                assert_close(&what("hidden"), &at(out, "step_hidden", step), expected("hidden"), TOLERANCE);
                assert_close(&what("gate"), &at(out, "gate_logit", step), expected("gate_logit"), TOLERANCE);
                let mut pdf = reference[&format!("{tag}.exit_pdf")].slice(2, step, step + 1);
                pdf.shape.pop();
                assert_close(&what("pdf"), &at(out, "exit_pdf", step), &pdf, TOLERANCE);
            }
            assert_close("last", &out["logits"], &reference[&format!("{tag}.step3.logits")], TOLERANCE);
        });
    }
}

#[test]
fn fewer_steps_stop_earlier() {
    let reference = fixture("ouro-tiny/a_forward_decode.safetensors");
    let inputs = inputs(&reference["b2s12.ids"], None);
    for steps in [1, 2, 3] {
        OURO.both(&inputs, 12, &[], &["--steps", &steps.to_string()], |_, out| {
            assert_close("logits", &out["logits"], &reference[&format!("b2s12.step{}.logits", steps - 1)], TOLERANCE);
            assert_eq!(out["step_logits"].shape[0], steps);
        });
    }
}

#[test]
fn weighted_read_out() {
    let reference = fixture("ouro-tiny/a_forward_decode.safetensors");
    for tag in ["b1s1", "b2s12", "b3s17"] {
        let inputs = inputs(&reference[&format!("{tag}.ids")], None);
        OURO.both(&inputs, 12, &[], &["--readout", "weighted"], |way, out| {
            let expected = &reference[&format!("{tag}.weighted_logits")];
            assert_close(&format!("{tag} through {way}"), &out["logits"], expected, TOLERANCE);
        });
    }
}

#[test]
fn exit_read_out() {
    let reference = fixture("ouro-tiny/a_forward_decode.safetensors");
    for quantile in ["0.2", "0.4", "0.6", "0.8", "1.0"] {
        let set = format!("exit_threshold={quantile}");
        for tag in ["b1s1", "b2s12", "b3s17"] {
            let inputs = inputs(&reference[&format!("{tag}.ids")], None);
            OURO.both(&inputs, 12, &["--set", &set], &["--readout", "exit"], |way, out| {
                let what = format!("{tag} q={quantile} through {way}");
                let expected = |name: &str| &reference[&format!("{tag}.q{quantile}.{name}")];
                // The reference counts from 0.
                let steps: Vec<f64> = expected("steps").data.iter().map(|step| step + 1.0).collect();
                assert_eq!(out["steps_taken"].data, steps, "{what}");
                assert_close(&what, &out["logits"], expected("logits"), TOLERANCE);
            });
        }
    }
}

fn greedy(name: &str, compile: &[&str], args: &[&str]) {
    let reference = fixture("ouro-tiny/a_forward_decode.safetensors");
    let tokens = &reference[&format!("{name}.tokens")];
    let fed = tokens.shape[1] - 1;
    let inputs = inputs(&tokens.slice(1, 0, fed), None);
    OURO.both(&inputs, 7, compile, &[args, &["--chunks", &chunks(7, fed)]].concat(), |way, out| {
        let logits = out["logits"].slice(1, 6, fed);
        assert_close(&format!("{name} through {way}"), &logits, &reference[&format!("{name}.step_logits")], TOLERANCE);
        let next: Vec<f64> = logits.argmax().into_iter().map(|t| t as f64).collect();
        assert_eq!(next, tokens.data[7..]);
    });
}

#[test]
fn greedy_decoding() {
    greedy("decode", &[], &[]);
}

#[test]
fn greedy_decoding_of_the_exit_read_out() {
    greedy("decode_q0.6", &["--set", "exit_threshold=0.6"], &["--readout", "exit"]);
}

#[test]
fn bf16_weights() {
    let reference = fixture("ouro-tiny/k_bf16.safetensors");
    let inputs = inputs(&reference["ids"], None);
    OURO.both(&inputs, 12, &["--dtype", "bf16"], &[], |way, out| {
        let expected = &reference["logits_f32_math_on_bf16_weights"];
        assert_close(&format!("bf16 through {way}"), &out["logits"], expected, TOLERANCE);
    });
}
