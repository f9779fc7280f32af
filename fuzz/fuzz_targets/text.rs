//! Any bytes as a model text: diagnostics or a module that verifies, never a panic.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let options = rdc_frontend::Options { chunks: vec![4, 1], context: Some(8), ..Default::default() };
    if let Ok(lowered) = rdc_frontend::compile("fuzz.rdm", data, &options) {
        assert!(rdc_ir::verify(&lowered.module).is_ok());
    }
});
