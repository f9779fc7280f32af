//! Any bytes as an artifact: an error, or metadata. The code is never run.
#![no_main]
use libfuzzer_sys::fuzz_target;
use rdc_runtime::artifact::{Artifact, Verify};
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(data).is_ok() {
        let _ = Artifact::open(file.path(), Verify::All);
    }
});
