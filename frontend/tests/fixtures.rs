//! The examples, through the reference interpreter, give the authors' numbers.
#![allow(clippy::unwrap_used)]
mod common;

use common::{Model, close, columns, config, fixture, lower};
use rdc_frontend::Options;
use rdc_ir::program::KvPolicy;

fn options(folder: &str, batch: usize, chunks: &[usize]) -> Options {
    Options { config: Some(config(folder)), batch, chunks: chunks.to_vec(), ..Options::default() }
}

fn huginn_logits(folder: &str) {
    let (weights, cases) = (fixture(folder, "model.safetensors"), fixture(folder, "a_logits.safetensors"));
    for (tag, batch, len) in [("b2s12", 2, 12), ("b3s17", 3, 17), ("b1s1", 1, 1)] {
        let options = Options { max_steps: Some(32), ..options(folder, batch, &[len]) };
        let mut model = Model::new(lower("huginn.rdm", &options), &weights);
        let name = if len == 1 { "decode" } else { "prefill" };
        for r in [1, 2, 4, 8, 32] {
            model.reset();
            let (ids, s0) = (&cases[&format!("{tag}.ids")].1, &cases[&format!("{tag}.s0")].1);
            let out = model.run(name, ids, 0, r, Some(s0));
            for (ours, theirs) in [("logits", "logits"), ("latent_states", "latent")] {
                let key = format!("{tag}.r{r}.{theirs}");
                close(&format!("{folder} {key}"), out.get(ours).unwrap().floats(), &cases[&key].1);
            }
        }
    }
}

#[test]
fn huginn_tiny_logits() {
    huginn_logits("huginn-tiny");
}

#[test]
fn huginn_odd_logits() {
    huginn_logits("huginn-odd");
}

#[test]
fn huginn_states_of_every_iteration() {
    for folder in ["huginn-tiny", "huginn-odd"] {
        let b = fixture(folder, "b_states.safetensors");
        let options = Options { max_steps: Some(32), ..options(folder, 2, &[12]) };
        let mut model = Model::new(lower("huginn.rdm", &options), &fixture(folder, "model.safetensors"));
        let out = model.run("prefill", &b["ids"].1, 0, 32, Some(&b["s0"].1));
        for (t, state) in out.loops[0].states.iter().enumerate() {
            close(&format!("{folder} s{}", t + 1), state[0].floats(), &b[&format!("s{}", t + 1)].1);
        }
    }
}

#[test]
fn huginn_chunked_decode() {
    for folder in ["huginn-tiny", "huginn-odd"] {
        let c = fixture(folder, "c_decode.safetensors");
        let (ids, s0, want) = (&c["chunk.ids"], &c["chunk.s0"], &c["chunk.logits_r4"]);
        let lowered = lower("huginn.rdm", &options(folder, 3, &[5, 6, 1]));
        let mut model = Model::new(lowered, &fixture(folder, "model.safetensors"));
        let mut at = 0;
        for (func, len) in [("prefill", 5), ("prefill_6", 6), ("decode", 1), ("decode", 1), ("decode", 1)] {
            let ids: Vec<f32> = ids.1.chunks_exact(14).flat_map(|row| row[at..at + len].to_vec()).collect();
            let out = model.run(func, &ids, at, 4, Some(&columns(s0, at, at + len)));
            let logits = out.get("logits").unwrap().floats();
            close(&format!("{folder} at {at}"), logits, &columns(want, at, at + len));
            at += len;
        }
    }
}

#[test]
fn huginn_kv_budgets() {
    let policies = |tag: &str, layers: usize| match tag {
        "full" => KvPolicy::Full,
        k => {
            assert!(layers > 0);
            KvPolicy::Modulo(k.parse().unwrap())
        }
    };
    for (folder, layers) in [("huginn-tiny", 4), ("huginn-odd", 2)] {
        let d = fixture(folder, "d_kv_budget.safetensors");
        let weights = fixture(folder, "model.safetensors");
        let mut cases: Vec<(String, usize, KvPolicy)> = Vec::new();
        for r in [8, 32] {
            for tag in ["full", "1", "2", "4"] {
                cases.push((format!("r{r}.budget_{tag}.logits"), r, policies(tag, layers)));
            }
        }
        if folder == "huginn-tiny" {
            cases.push(("r32.latest-m4-compress-r4.logits".into(), 32, KvPolicy::Block(4)));
            cases.push(("r32.latest-m4-compress-anchor.logits".into(), 32, KvPolicy::Anchor));
        }
        for (key, r, kv) in cases {
            let options = Options { max_steps: Some(32), kv: Some(kv), ..options(folder, 1, &[6, 1]) };
            let mut model = Model::new(lower("huginn.rdm", &options), &weights);
            let (ids, s0, want) = (&d["ids"].1, &d["s0"], &d[&key]);
            let out = model.run("prefill", &ids[..6], 0, r, Some(&columns(s0, 0, 6)));
            close(&key, out.get("logits").unwrap().floats(), &columns(want, 0, 6));
            for at in 6..20 {
                let out = model.run("decode", &ids[at..at + 1], at, r, Some(&columns(s0, at, at + 1)));
                close(
                    &format!("{folder} {key} at {at}"),
                    out.get("logits").unwrap().floats(),
                    &columns(want, at, at + 1),
                );
            }
        }
    }
}

#[test]
fn huginn_greedy_decode() {
    for (folder, depths) in [("huginn-tiny", vec![8, 32]), ("huginn-odd", vec![8])] {
        let c = fixture(folder, "c_decode.safetensors");
        let options = Options { max_steps: Some(32), last_only: true, ..options(folder, 1, &[7, 1]) };
        let mut model = Model::new(lower("huginn.rdm", &options), &fixture(folder, "model.safetensors"));
        for r in depths {
            model.reset();
            let (tokens, want) = (&c[&format!("r{r}.tokens")].1, &c[&format!("r{r}.step_logits")]);
            let mut out = model.run("prefill", &c["prompt"].1, 0, r, Some(&columns(&c["S0"], 0, 7)));
            for (at, &token) in tokens.iter().enumerate().skip(7) {
                let logits = out.get("logits").unwrap().floats();
                close(&format!("{folder} r{r} at {at}"), logits, &columns(want, at - 7, at - 6));
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                assert_eq!(best as f32, token);
                out = model.run("decode", &[best as f32], at, r, Some(&columns(&c["S0"], at, at + 1)));
            }
        }
    }
}

#[test]
fn ouro_read_outs() {
    let (weights, cases) =
        (fixture("ouro-tiny", "model.safetensors"), fixture("ouro-tiny", "a_forward_decode.safetensors"));
    for (tag, batch, len) in [("b2s12", 2, 12), ("b3s17", 3, 17), ("b1s1", 1, 1)] {
        let name = if len == 1 { "decode" } else { "prefill" };
        let ids = &cases[&format!("{tag}.ids")].1;
        let mut model = Model::new(lower("ouro.rdm", &options("ouro-tiny", batch, &[len])), &weights);
        let out = model.run(name, ids, 0, 4, None);
        for t in 0..4 {
            for (ours, theirs) in [("step_logits", "logits"), ("step_hidden", "hidden"), ("gate_logit", "gate_logit")] {
                let key = format!("{tag}.step{t}.{theirs}");
                close(&key, out.get(ours).unwrap().entry(t).floats(), &cases[&key].1);
            }
            let pdf: Vec<f32> = cases[&format!("{tag}.exit_pdf")].1.iter().skip(t).step_by(4).copied().collect();
            close(&format!("{tag} exit_pdf {t}"), out.get("exit_pdf").unwrap().entry(t).floats(), &pdf);
        }
        close(tag, out.get("logits").unwrap().floats(), &cases[&format!("{tag}.step3.logits")].1);
        model.reset();
        let out = model.run(&format!("{name}.weighted"), ids, 0, 4, None);
        close(tag, out.get("logits").unwrap().floats(), &cases[&format!("{tag}.weighted_logits")].1);
        for q in ["0.2", "0.4", "0.6", "0.8", "1.0"] {
            let mut options = options("ouro-tiny", batch, &[len]);
            options.overrides.push(("exit_threshold".into(), q.into()));
            let mut model = Model::new(lower("ouro.rdm", &options), &weights);
            let out = model.run(&format!("{name}.exit"), ids, 0, 4, None);
            let want: Vec<f32> = cases[&format!("{tag}.q{q}.steps")].1.iter().map(|t| t + 1.0).collect();
            assert_eq!(out.get("steps_taken").unwrap().floats(), want, "{tag} {q}");
            close(&format!("{tag} {q}"), out.get("logits").unwrap().floats(), &cases[&format!("{tag}.q{q}.logits")].1);
        }
    }
}

#[test]
fn ouro_decode() {
    let (weights, cases) =
        (fixture("ouro-tiny", "model.safetensors"), fixture("ouro-tiny", "a_forward_decode.safetensors"));
    for (key, readout, q, n) in [("decode", "", "1.0", 32), ("decode_q0.6", ".exit", "0.6", 16)] {
        let mut options = Options { last_only: true, ..options("ouro-tiny", 1, &[7, 1]) };
        options.overrides.push(("exit_threshold".into(), q.into()));
        let mut model = Model::new(lower("ouro.rdm", &options), &weights);
        let (tokens, want) = (&cases[&format!("{key}.tokens")].1, &cases[&format!("{key}.step_logits")]);
        let mut out = model.run(&format!("prefill{readout}"), &cases["decode.prompt"].1, 0, 4, None);
        for at in 7..7 + n {
            close(&format!("{key} at {at}"), out.get("logits").unwrap().floats(), &columns(want, at - 7, at - 6));
            out = model.run(&format!("decode{readout}"), &tokens[at..at + 1], at, 4, None);
        }
    }
}

#[test]
fn universal_transformer_fixed_and_act() {
    let (weights, cases) =
        (fixture("ut-tiny", "model.safetensors"), fixture("ut-tiny", "a_forward_decode.safetensors"));
    for (tag, batch, len) in [("b2s12", 2, 12), ("b3s17", 3, 17), ("b1s1", 1, 1)] {
        let name = if len == 1 { "decode" } else { "prefill" };
        let ids = &cases[&format!("{tag}.ids")].1;
        let mut model = Model::new(lower("universal_transformer.rdm", &options("ut-tiny", batch, &[len])), &weights);
        for r in [1, 2, 6] {
            model.reset();
            let out = model.run(name, ids, 0, r, None);
            let key = format!("{tag}.r{r}.logits");
            close(&key, out.get("logits").unwrap().floats(), &cases[&key].1);
            if (tag, r) == ("b2s12", 6) {
                for (t, state) in out.loops[0].states.iter().enumerate() {
                    close(&format!("state{}", t + 1), state[0].floats(), &cases[&format!("b2s12.state{}", t + 1)].1);
                }
            }
        }
        model.reset();
        let out = model.run(&format!("{name}.act"), ids, 0, 6, None);
        close(tag, out.get("logits").unwrap().floats(), &cases[&format!("{tag}.act.logits")].1);
        assert_eq!(out.get("steps_taken").unwrap().floats(), cases[&format!("{tag}.act.n")].1);
        close(tag, out.get("remainder").unwrap().floats(), &cases[&format!("{tag}.act.remainder")].1);
        let per_token = cases[&format!("{tag}.act.p")].0[2];
        assert_eq!(out.trips[0], per_token, "the loop ends when all tokens have halted");
    }
}

#[test]
fn universal_transformer_decode() {
    let (weights, cases) =
        (fixture("ut-tiny", "model.safetensors"), fixture("ut-tiny", "a_forward_decode.safetensors"));
    let (ids, want) = (&cases["decode.ids"].1, &cases["decode.logits"]);
    let mut model = Model::new(lower("universal_transformer.rdm", &options("ut-tiny", 2, &[1])), &weights);
    for at in 0..20 {
        let out = model.run("decode", &[ids[at], ids[20 + at]], at, 6, None);
        close(&format!("at {at}"), out.get("logits").unwrap().floats(), &columns(want, at, at + 1));
    }
}

#[test]
fn full_size_parameter_count() {
    let lowered = lower("huginn.rdm", &Options { chunks: vec![64, 1], ..Options::default() });
    let count: usize = lowered.module.params.values().map(|p| p.ty.elements()).sum();
    assert_eq!(count, 3_564_976_800);
    assert_eq!((lowered.default_steps, lowered.max_steps, lowered.context), (32, 64, 4096));
}
