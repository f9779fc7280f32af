//! Random changes of the examples, of config.json and of `--set`: errors or IR that verifies, never a panic, never long.
#![allow(clippy::unwrap_used)]
mod common;

use common::{config, example};
use proptest::prelude::*;
use rdc_frontend::{LossSelection, Options, compile, render};

const EXAMPLES: [(&str, &str); 3] =
    [("huginn.rdm", "huginn-tiny"), ("ouro.rdm", "ouro-tiny"), ("universal_transformer.rdm", "ut-tiny")];

const WORDS: &[&str] = &[
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ",",
    "=",
    "->",
    "=>",
    "|",
    ":",
    "0",
    "-1",
    "99999999999",
    "1e308",
    "0.5",
    "\"x\"",
    "\"",
    "let",
    "if",
    "else",
    "match",
    "weight",
    "part",
    "stack",
    "layer",
    "core",
    "coda",
    "return",
    "size",
    "dim",
    "x",
    "S",
    "step",
    "collect z = x",
    "exit when is_last",
    "loss x (labels) -> loss { let loss = mean(counted(labels)) }",
    "labels",
    "not",
    "and",
    "/",
    "*",
    "é",
    "#",
    "4096",
    "heads",
    "split",
    "at \"\"",
];

/// One change: where (in thousandths of the text), how, how long.
type Change = (usize, u8, usize, usize);

fn change(text: &mut String, (at, how, len, word): Change) {
    let clamp = |mut i: usize| {
        i = i.min(text.len());
        while !text.is_char_boundary(i) {
            i -= 1;
        }
        i
    };
    let start = clamp(text.len() * at / 1000);
    let end = clamp(start + len);
    let word = WORDS[word % WORDS.len()];
    match how % 5 {
        0 => text.replace_range(start..end, ""),
        1 => text.insert_str(start, &format!(" {word} ")),
        2 => text.replace_range(start..end, word),
        3 => {
            let piece = text[start..end].to_string();
            let to = clamp(text.len() * ((at * 7 + len) % 1000) / 1000);
            text.insert_str(to, &piece);
        }
        // One token replaced by another word.
        _ => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let from = text[start..].find(is_word).map_or(start, |i| start + i);
            let to = text[from..].find(|c| !is_word(c)).map_or(text.len(), |i| from + i);
            text.replace_range(from..to, word);
        }
    }
}

/// Compiles and renders; what comes out verified inside `compile`.
fn survives(text: &str, options: &Options) {
    let options = &Options { losses: LossSelection::All, ..options.clone() };
    if let Err(errors) = compile("mutated.rdm", text, options) {
        assert!(!errors.is_empty());
        assert!(errors.iter().all(|e| e.id != "invalid-ir"), "{}\n{text}", render(&errors, "m", text));
        assert!(!render(&errors, "mutated.rdm", text).is_empty());
    }
}

/// Few on every run; more with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn mutated_texts(
        which in 0usize..3,
        changes in prop::collection::vec((0usize..1000, any::<u8>(), 0usize..120, any::<usize>()), 1..5),
        with_config: bool,
        batch in 1usize..3,
    ) {
        let (name, folder) = EXAMPLES[which];
        let mut text = example(name);
        for c in changes {
            change(&mut text, c);
        }
        let config = with_config.then(|| config(folder));
        survives(&text, &Options { config, batch, chunks: vec![3, 1], ..Options::default() });
    }

    #[test]
    fn mutated_settings(
        which in 0usize..3,
        field in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(serde_json::Value::Null), any::<bool>().prop_map(Into::into), any::<i64>().prop_map(Into::into),
            (-3i64..200).prop_map(Into::into), any::<f64>().prop_map(Into::into), "[a-z]{0,5}".prop_map(Into::into),
            Just(serde_json::json!([1])), Just(serde_json::json!({"a": 1})),
        ],
        set in any::<prop::sample::Index>(),
        text in prop_oneof![any::<i64>().prop_map(|n| n.to_string()), (0i64..70000).prop_map(|n| n.to_string()), "\\PC{0,6}"],
    ) {
        let (name, folder) = EXAMPLES[which];
        let mut config = config(folder);
        let map = config.as_object_mut().unwrap();
        let field = map.keys().nth(field.index(map.len())).unwrap().clone();
        map.insert(field, value);
        let source = example(name);
        let known = compile(name, &source, &Options { chunks: vec![2], ..Options::default() }).unwrap().sizes;
        let overrides = vec![(known[set.index(known.len())].0.clone(), text)];
        survives(&source, &Options { config: Some(config.clone()), chunks: vec![3, 1], ..Options::default() });
        survives(&source, &Options { config: Some(config), overrides, chunks: vec![3, 1], ..Options::default() });
    }

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        survives(&text, &Options::default());
    }
}

#[test]
fn hostile_texts_end_soon() {
    let shell = |body: &str| {
        format!(
            "model M {{ size dim = 8  size context = 8\n{body}\n weight w: [dim, dim] = 0\n\
             prelude (input_ids) -> h {{ let h = gather(w, input_ids) }}\n\
             core (s = h) -> s loop default 2 max 4 {{ let s = f(s) }}\n coda (s) -> y {{ let y = s }} }}"
        )
    };
    let layer = "(x: [B, S, dim]) -> [B, S, dim]";
    let mut nested = format!("layer L0{layer} {{ return x }}\n");
    for i in 1..8 {
        nested += &format!("layer L{i}{layer} {{ stack a: L{}[4096] return a(x) }}\n", i - 1);
    }
    let texts = [
        shell(&format!("layer F{layer} {{ part g: F return g(x) }} part f: F")),
        shell(&format!("{nested} stack f: L7[4096]")),
        shell(&format!("layer F{layer} {{ let y = {} return y }} part f: F", vec!["x"; 5000].join(" + "))),
        shell(&format!("layer F{layer} {{ let y = x{} return y }} part f: F", "[0]".repeat(5000))),
        shell(&format!("layer F{layer} {{ {} return x }} part f: F", "let q = nothing ".repeat(20_000))),
        shell(&format!("layer F{layer} {{ return reshape(x, [{}]) }} part f: F", vec!["S"; 5000].join(", "))),
        shell(&format!("layer F{layer} {{ weight big: [16777216, 16777216] = 0 return x }} part f: F")),
        shell("size f = 16777216 * 16777216 * 16777216"),
        shell(
            &(0..5000).map(|i| format!("loss l{i} (y, labels) -> loss {{ let loss = mean(y) }}")).collect::<String>(),
        ),
        format!("model M {{ {}", "if true { ".repeat(50_000)),
        format!("model M {{ size a = {} }}", "-".repeat(100_000)),
        "size ".repeat(50_000),
    ];
    let start = std::time::Instant::now();
    for text in &texts {
        let errors = compile("hostile.rdm", text, &Options::default()).unwrap_err();
        assert!(errors.iter().all(|e| e.id != "invalid-ir"));
        render(&errors, "hostile.rdm", text);
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
