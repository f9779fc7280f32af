//! The IR of the examples at small sizes.
mod common;

use common::lower;
use rdc_frontend::Options;
use rdc_ir::program::KvPolicy;

fn small(sets: &[(&str, &str)], chunks: &[usize], kv: Option<KvPolicy>) -> Options {
    let overrides = sets.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Options { overrides, chunks: chunks.to_vec(), context: Some(16), kv, ..Options::default() }
}

#[test]
fn huginn() {
    let sets = [("vocab", "32"), ("dim", "8"), ("heads", "2"), ("inner", "12"), ("steps", "2"), ("max_steps", "4")];
    let layers = [("layers_prelude", "1"), ("layers_core", "1"), ("layers_coda", "1")];
    let options = small(&[sets.as_slice(), &layers].concat(), &[3], Some(KvPolicy::Modulo(2)));
    insta::assert_snapshot!(lower("huginn.rdm", &options).module.to_string());
}

#[test]
fn ouro() {
    let sets = [("vocab", "32"), ("dim", "8"), ("heads", "4"), ("kv_heads", "2"), ("head_dim", "4"), ("inner", "12")];
    let options = small(&[sets.as_slice(), &[("layers", "1")]].concat(), &[3, 1], None);
    let lowered = lower("ouro.rdm", &Options { readouts: Some(vec!["last".into(), "exit".into()]), ..options });
    insta::assert_snapshot!(lowered.module.to_string());
}

#[test]
fn universal_transformer() {
    let sets = [("vocab", "32"), ("dim", "8"), ("heads", "2"), ("inner", "12"), ("norm", "pre"), ("act", "gelu_tanh")];
    let options = small(&[sets.as_slice(), &[("coord", "learned")]].concat(), &[3], None);
    insta::assert_snapshot!(lower("universal_transformer.rdm", &options).module.to_string());
}
