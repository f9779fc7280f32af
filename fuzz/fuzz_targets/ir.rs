//! Any bytes as IR text: an error, or a module that prints to text that parses back to itself.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    if let Ok(module) = rdc_ir::parse(data) {
        let text = module.to_string();
        assert_eq!(rdc_ir::parse(&text).map(|m| m.to_string()).ok(), Some(text));
    }
});
