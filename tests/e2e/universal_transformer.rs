//! Universal Transformer: fixed depth and adaptive computation time.
use crate::support::*;

const UT: Model = Model { text: "examples/universal_transformer.rdm", hf: "tests/fixtures/ut-tiny" };

fn reference() -> Tensors {
    fixture("ut-tiny/a_forward_decode.safetensors")
}

#[test]
fn fixed_depth() {
    let reference = reference();
    for tag in ["b1s1", "b2s12", "b3s17"] {
        let inputs = inputs(&reference[&format!("{tag}.ids")], None);
        for steps in ["1", "2", "6"] {
            UT.both(&inputs, 12, &[], &["--steps", steps], |way, out| {
                let expected = &reference[&format!("{tag}.r{steps}.logits")];
                assert_close(&format!("{tag} r={steps} through {way}"), &out["logits"], expected, TOLERANCE);
            });
        }
    }
}

#[test]
fn states_of_every_step() {
    let reference = reference();
    let inputs = inputs(&reference["b2s12.ids"], None);
    UT.both(&inputs, 12, &[], &["--steps", "6", "--states"], |way, out| {
        for step in 1..=6 {
            let expected = &reference[&format!("b2s12.state{step}")];
            assert_close(&format!("state {step} through {way}"), &out[&format!("state_{step}")], expected, TOLERANCE);
        }
    });
}

#[test]
fn adaptive_computation_time() {
    let reference = reference();
    for tag in ["b1s1", "b2s12", "b3s17"] {
        let inputs = inputs(&reference[&format!("{tag}.ids")], None);
        let length = inputs["input_ids"].shape[1];
        // The loop ends when every token of the call has halted; padding and pieces change nothing for those that have.
        let pieces = [chunks(length, length), chunks(1, length)];
        for (seq, pieces) in [(length, &pieces[0]), (20, &pieces[0]), (20, &pieces[1])] {
            UT.both(&inputs, seq, &[], &["--readout", "act", "--chunks", pieces], |way, out| {
                let what = format!("{tag} in pieces of {pieces} through {way}, compiled for {seq}");
                assert_eq!(out["steps_taken"].data, reference[&format!("{tag}.act.n")].data, "{what}");
                assert_close(&what, &out["logits"], &reference[&format!("{tag}.act.logits")], TOLERANCE);
                assert_close(&what, &out["remainder"], &reference[&format!("{tag}.act.remainder")], TOLERANCE);
            });
        }
    }
}

#[test]
fn states_end_with_the_loop() {
    let reference = reference();
    let inputs = inputs(&reference["b2s12.ids"], None);
    UT.both(&inputs, 12, &[], &["--readout", "act", "--states"], |_, out| {
        let steps = reference["b2s12.act.p"].shape[2];
        assert!(out.contains_key(&format!("state_{steps}")) && !out.contains_key(&format!("state_{}", steps + 1)));
    });
}

#[test]
fn cached_decoding() {
    let reference = reference();
    let inputs = inputs(&reference["decode.ids"], None);
    UT.both(&inputs, 6, &[], &["--chunks", &chunks(6, 20)], |way, out| {
        assert_close(&format!("decode through {way}"), &out["logits"], &reference["decode.logits"], TOLERANCE);
    });
}

#[test]
fn greedy_decoding() {
    let reference = reference();
    let tokens = &reference["greedy.tokens"];
    let fed = tokens.shape[1] - 1;
    let inputs = inputs(&tokens.slice(1, 0, fed), None);
    UT.both(&inputs, 6, &[], &["--chunks", &chunks(5, fed)], |_, out| {
        let next: Vec<f64> = out["logits"].slice(1, 4, fed).argmax().into_iter().map(|t| t as f64).collect();
        assert_eq!(next, tokens.data[5..]);
    });
}
