//! Any bytes as an artifact: an error, or metadata. The code is never run. The input's checksums are made right first, or none would
//! get past the header; its layout is in docs/artifact.md.
#![no_main]
use libfuzzer_sys::fuzz_target;
use rdc_runtime::artifact::{Artifact, MAGIC, VERSION, Verify};
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    mend(&mut bytes);
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(&bytes).is_ok()
        && let Ok(artifact) = Artifact::open(file.path(), Verify::All)
    {
        let meta = artifact.meta();
        let _ = meta.kv.slots(meta.max_steps, usize::MAX);
    }
});

/// Puts in the magic, the version, the file's size and every checksum, as far as there is room.
fn mend(bytes: &mut [u8]) -> Option<()> {
    let size = bytes.len() as u64;
    bytes.get_mut(..8)?.copy_from_slice(&MAGIC);
    bytes.get_mut(8..12)?.copy_from_slice(&VERSION.to_le_bytes());
    bytes.get_mut(16..24)?.copy_from_slice(&size.to_le_bytes());
    let header = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?) as usize;
    bytes.get(..header)?;
    for line in (32..header).step_by(40).take_while(|line| line + 40 <= header) {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize);
        let (start, size) = (number(line + 16)?, number(line + 24)?);
        if let Some(content) = start.checked_add(size).and_then(|end| bytes.get(start..end)) {
            let crc = crc32fast::hash(content);
            bytes[line + 32..line + 36].copy_from_slice(&crc.to_le_bytes());
        }
    }
    bytes.get_mut(28..32)?.fill(0);
    let crc = crc32fast::hash(bytes.get(..header)?);
    bytes.get_mut(28..32)?.copy_from_slice(&crc.to_le_bytes());
    Some(())
}
