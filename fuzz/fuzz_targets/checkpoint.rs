//! Any bytes as a safetensors file, or as the index of one: an error, or tensors that can be read.
#![no_main]
use libfuzzer_sys::fuzz_target;
use rdc_runtime::checkpoint::Checkpoint;
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    for suffix in [".safetensors", ".json"] {
        let Ok(mut file) = tempfile::Builder::new().suffix(suffix).tempfile() else { return };
        if file.write_all(data).is_ok()
            && let Ok(checkpoint) = Checkpoint::open(file.path())
        {
            let names: Vec<String> = checkpoint.tensors().map(|(name, _)| name.to_string()).collect();
            for name in &names {
                let _ = checkpoint.read(name, 0, &mut [0.0; 16]);
                let _ = checkpoint.read(name, usize::MAX, &mut [0.0; 16]);
            }
        }
    }
});
