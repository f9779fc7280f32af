//! Which checkpoint an artifact was made from, independent of where it lies.
use rdc_runtime::checkpoint::Checkpoint;

/// Numbers sampled from the start of each tensor.
const SAMPLE: usize = 256;

/// A hash (FNV-1a, 64 bits) of the names, shapes and first numbers of all tensors. It tells apart checkpoints that a person may
/// confuse; it is no proof of equality.
pub fn of(checkpoint: &Checkpoint) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    let mut tensors: Vec<_> = checkpoint.tensors().collect();
    tensors.sort_by_key(|(name, _)| *name);
    for (name, info) in tensors {
        add(name.as_bytes());
        info.shape.iter().for_each(|n| add(&(*n as u64).to_le_bytes()));
        let mut sample = vec![0.0; info.shape.iter().product::<usize>().min(SAMPLE)];
        // A tensor of another kind than the weights' (integers, say) is known by its name and shape.
        if checkpoint.read(name, 0, &mut sample).is_ok() {
            sample.iter().for_each(|x| add(&x.to_le_bytes()));
        }
    }
    format!("{hash:016x}")
}
