//! Any JSON as config.json of a real text.
#![no_main]
use libfuzzer_sys::fuzz_target;

const TEXT: &str = include_str!("../../examples/huginn.rdm");

fuzz_target!(|data: &[u8]| {
    let Ok(config) = serde_json::from_slice(data) else { return };
    let options = rdc_frontend::Options { config: Some(config), chunks: vec![4, 1], ..Default::default() };
    let _ = rdc_frontend::compile("fuzz.rdm", TEXT, &options);
});
