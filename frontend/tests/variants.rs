//! Configurations, options and checkpoints other than those of the fixtures.
#![allow(clippy::unwrap_used)]
mod common;

use common::{config, example, lower};
use rdc_frontend::checkpoint::match_tensors;
use rdc_frontend::{Lowered, Options, compile, render};
use rdc_ir::program::KvPolicy;
use rdc_ir::{ArgRole, Init, Opcode, Type};

fn set(pairs: &[(&str, &str)]) -> Options {
    let overrides = pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Options { overrides, chunks: vec![3, 1], ..Options::default() }
}

fn tiny(pairs: &[(&str, &str)]) -> Options {
    Options { config: Some(config("huginn-tiny")), ..set(pairs) }
}

fn errors(name: &str, options: &Options) -> String {
    let source = example(name);
    let found = compile(name, &source, options).map(|l| l.sizes).unwrap_err();
    render(&found, name, &source)
}

/// The type of the first cache of a function.
fn cache(lowered: &Lowered, func: &str) -> Type {
    let f = lowered.module.func(func).unwrap();
    let i = f.args.iter().position(|a| a.role == ArgRole::Cache).unwrap();
    f.ty(f.regions[f.body].args[i]).clone()
}

fn size(lowered: &Lowered, name: &str) -> String {
    lowered.sizes.iter().find(|(n, _)| n == name).unwrap().1.clone()
}

#[test]
fn missing_config_fields_fall_back() {
    let mut config = config("huginn-tiny");
    for field in ["rope_base", "n_heads", "tie_word_embeddings", "tie_embeddings"] {
        config.as_object_mut().unwrap().remove(field);
    }
    let lowered = lower("huginn.rdm", &Options { config: Some(config), ..set(&[]) });
    assert_eq!(size(&lowered, "rope_base"), "50000");
    assert_eq!(size(&lowered, "heads"), "4");
    assert_eq!(lowered.module.param("transformer.wte.weight").unwrap().aliases, ["lm_head.weight"]);
}

#[test]
fn set_goes_over_config_goes_over_text() {
    let lowered = lower("huginn.rdm", &tiny(&[("inner", "100"), ("qk_bias", "false"), ("tied", "false")]));
    assert_eq!((size(&lowered, "inner"), size(&lowered, "dim")), ("100".into(), "64".into()));
    assert!(lowered.module.params.values().all(|p| !p.name.contains("qk_bias")));
    let head = lowered.module.param("lm_head.weight").unwrap();
    assert_eq!((head.ty.shape.as_slice(), head.decay, head.in_stack), ([256, 64].as_slice(), true, false));
}

#[test]
fn every_variant_of_the_structure_lowers() {
    for injection in ["linear", "add", "gate", "none"] {
        for (state, init) in [("zero", Init::Constant(0.0)), ("normal", Init::Normal { std: 1.0 })] {
            let options = tiny(&[("injection", injection), ("state_init", state), ("layers_core", "1")]);
            let lowered = lower("huginn.rdm", &options);
            let f = lowered.module.func("decode").unwrap();
            assert!(f.args.iter().any(|a| a.name == "initial_state" && a.role == ArgRole::State(init)));
            assert_eq!(lowered.module.param("transformer.adapter.weight").is_some(), injection == "linear");
        }
    }
    lower("huginn.rdm", &tiny(&[("adapter_bias", "true"), ("layers_prelude", "0"), ("layers_coda", "0")]));
    for norm in ["pre", "post"] {
        for act in ["relu", "gelu", "gelu_tanh"] {
            for coord in ["sinusoidal", "learned"] {
                let options = set(&[("norm", norm), ("act", act), ("coord", coord), ("layers", "2")]);
                lower("universal_transformer.rdm", &options);
            }
        }
    }
    lower("ouro.rdm", &set(&[("dim", "48"), ("heads", "4"), ("kv_heads", "2"), ("head_dim", "20"), ("tied", "true")]));
}

#[test]
fn caches_are_as_large_as_the_policy_says() {
    let slots = |kv: KvPolicy, most: usize| {
        let options = Options { kv: Some(kv), max_steps: Some(most), context: Some(32), ..tiny(&[]) };
        let lowered = lower("huginn.rdm", &options);
        assert_eq!(cache(&lowered, "prefill"), cache(&lowered, "decode"));
        let shape = cache(&lowered, "decode").shape;
        assert_eq!(shape[1..], [1, 32, 4, 16]);
        shape[0]
    };
    assert_eq!(slots(KvPolicy::Full, 32), 2 + 32 * 4 + 2);
    assert_eq!(slots(KvPolicy::Modulo(4), 32), 2 + 16 + 2);
    assert_eq!(slots(KvPolicy::Modulo(4), 2), 2 + 8 + 2);
    assert_eq!(slots(KvPolicy::Block(3), 32), 2 + 43 + 2);
    assert_eq!(slots(KvPolicy::Anchor, 32), 2 + 36 + 2);
}

#[test]
fn options_choose_functions() {
    let names = |l: &Lowered| l.module.funcs.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    let all = lower("ouro.rdm", &set(&[("layers", "1")]));
    assert_eq!(
        names(&all),
        ["prefill", "prefill.weighted", "prefill.exit", "decode", "decode.weighted", "decode.exit"]
    );
    let some = Options { readouts: Some(vec!["exit".into()]), chunks: vec![1], ..set(&[("layers", "1")]) };
    assert_eq!(names(&lower("ouro.rdm", &some)), ["decode.exit"]);
    let last = lower("huginn.rdm", &Options { last_only: true, ..tiny(&[]) });
    let f = last.module.func("prefill").unwrap();
    assert_eq!(f.ty(f.regions[f.body].yields[0]).shape, [1, 1, 256]);
    let few = lower("huginn.rdm", &Options { max_steps: Some(4), ..tiny(&[]) });
    assert_eq!((few.default_steps, few.max_steps), (4, 4));
    let message = errors("ouro.rdm", &Options { readouts: Some(vec!["wieghted".into()]), ..set(&[]) });
    assert!(message.contains("did you mean `weighted`?"), "{message}");
}

#[test]
fn attention_over_everything_has_no_cache_and_no_decode() {
    let text = "model Albert { size vocab = 16, dim = 8, heads = 2
      layer Block(x: [B, S, dim]) -> [B, S, dim] {
        let h = heads(x, heads)
        return x + merge(attention(h, h, h, causal = false))
      }
      weight embed: [vocab, dim] = normal(1)
      part block: Block
      prelude (input_ids) -> e { let e = gather(embed, input_ids) }
      core (s = e) -> s loop default 3 { let s = block(s) }
      coda (s) -> y { let y = s } }";
    for (chunks, func) in [(vec![1, 5], "prefill"), (vec![1], "prefill")] {
        let lowered = compile("albert.rdm", text, &Options { chunks, ..Options::default() }).unwrap();
        assert_eq!(lowered.module.funcs.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), [func]);
        let f = &lowered.module.funcs[0];
        assert!(f.args.iter().all(|a| a.role != ArgRole::Cache));
        assert!(f.ops.values().all(|op| op.opcode != Opcode::CacheUpdate));
    }
}

#[test]
fn bad_values_are_one_clear_error() {
    let pages = [
        errors("huginn.rdm", &tiny(&[("heads", "7")])),
        errors("huginn.rdm", &tiny(&[("dim", "0"), ("eps", "x"), ("haeds", "2")])),
        errors("huginn.rdm", &tiny(&[("injection", "liner")])),
        errors("ouro.rdm", &set(&[("heads", "6"), ("kv_heads", "4"), ("head_dim", "8")])),
    ];
    insta::assert_snapshot!("bad_values", pages.join("\n"));
}

#[test]
fn checkpoints_are_matched_by_name_and_shape() {
    let lowered = lower("huginn.rdm", &tiny(&[]));
    let params = lowered.module.params.values();
    let mut tensors: Vec<(String, Vec<usize>)> = params.map(|p| (p.name.clone(), p.ty.shape.clone())).collect();
    let matching = |tensors: &[(String, Vec<usize>)]| match_tensors(&lowered.module, &lowered.ignored, tensors);

    tensors.push(("lm_head.weight".into(), vec![256, 64]));
    tensors.push(("freqs_cis".into(), vec![1, 128, 1, 8, 2]));
    tensors.push(("extra".into(), vec![3]));
    let matched = matching(&tensors).unwrap();
    assert_eq!((matched.unused, matched.ignored), (vec!["extra".into()], vec!["freqs_cis".into()]));

    // The head stands for the embedding it is tied to.
    let without = tensors.iter().filter(|(n, _)| n != "transformer.wte.weight").cloned().collect::<Vec<_>>();
    assert!(matching(&without).is_ok());

    for (name, shape) in &mut tensors {
        match name.as_str() {
            "transformer.coda.0.norm_1.weight" => *name = "transformer.coda.0.norm1.weight".into(),
            "transformer.adapter.weight" => *shape = vec![64, 64],
            "transformer.prelude.1.mlp.fc.weight" => *name = "something.else".into(),
            _ => {}
        }
    }
    insta::assert_snapshot!("bad_checkpoint", render(&matching(&tensors).unwrap_err(), "", ""));
}

/// What a text has to do with positions, of each function: the line that mixes them, or where they are in the outputs.
#[test]
fn texts_that_mix_positions_are_known() {
    let of = |core: &str, coda: &str, chunks: &[usize]| {
        let text = format!(
            "model M {{ size vocab = 16, dim = 8, context = 32, max_steps = 4\n weight embed: [vocab, dim] = normal(1)\n \
             prelude (input_ids) -> h0 {{ let h0 = gather(embed, input_ids) }}\n \
             core (h = h0, h0, n: [B, S] = 0) -> h, n loop default 2 max max_steps {{\n{core}\n }}\n \
             coda (h, n) -> y {{ let y = {coda} }}\n}}"
        );
        let options = Options { chunks: chunks.to_vec(), ..Options::default() };
        let lowered = compile("m.rdm", &text, &options).unwrap_or_else(|e| panic!("{}", render(&e, "m.rdm", &text)));
        let lines = lowered.positions.iter().map(|(name, p)| {
            let p = p.whole.as_ref().map_or(p.to_string(), |w| format!("line {}: {}", w.loc.line, w.what));
            format!("{name}: {}", p.trim_end().replace('\n', ", "))
        });
        lines.collect::<Vec<_>>().join("; ")
    };
    // Zeros that stay the same for all may be of positions or not.
    let plain = "decode: \"y\": axis 1; prefill: \"y\": axis 1";
    let carried = "decode: \"y\": axis 1, carried: axis 1; prefill: \"y\": axis 1, carried: axis 1";
    assert_eq!(of("let h = tanh(h + h0)\n let n = n + mean(h, axis = 2)", "h", &[4, 1]), carried);
    assert_eq!(of("let h = tanh(h + h0)", "h", &[4, 1]), plain);
    // Sizes are no numbers.
    assert_eq!(of("let h = reshape(reshape(h, [B * S, dim]), shape = [B, S, dim])", "h", &[4, 1]), plain);
    assert_eq!(of("let n = n + 1\n exit when all(n > f32(step)) or step == 3", "h", &[4, 1]), plain);
    // One position shows nothing: a longer chunk does.
    assert_eq!(of("let h = tanh(h)", "reshape(h, [B * S, dim])", &[1]), "decode: \"y\": axis 0");
    // Those that mix have one function, which is not of one token among others.
    for (core, wanted) in [
        ("let h = h + mean(h, axis = 1, keep = true)", "line 5: a sum over positions"),
        ("let h = concat(slice(h, 1, 0, 1), slice(h, 1, 0, 3), axis = 1)", "line 5: a slice of positions"),
        ("let h = h / S", "line 5: `S`, the number of positions of a call, as a number"),
        ("let h = if S == 1 then h else h + h0", "line 5: `S`, the number of positions of a call, as a number"),
        ("let h = h * max(S, 9)", "line 5: `S`, the number of positions of a call, as a number"),
        ("let h = h * sum(broadcast(1, [B, S]))", "line 5: the number of positions of a call"),
        ("let h = h + sinusoid_table(S, dim, 100)", "line 5: an entry for each position of a call"),
        ("exit when all(transpose(h, [0, 2, 1]) > 0)", "line 5: `all` over positions that are not the second axis"),
        ("let n = mean(h, axis = 2)\n exit when reduce_max(n) > 3", "line 6: a maximum over positions"),
        ("let n = n + select(all(n > 1), 1, 0)", "line 5: `all` over positions, for more than the end of the loop"),
    ] {
        assert_eq!(of(core, "h", &[4, 1]), format!("prefill: {wanted}"), "{core}");
    }
    assert!(of("let h = h / S", "h", &[1]).starts_with("prefill: line 5: `S`"));
}
