//! Page-aligned memory.
//!
//! `unsafe` here: [`Shared`] hands the address of a buffer to several threads. The buffer itself is a private anonymous mapping
//! that lives, at one address, as long as its [`Buffer`].
use crate::Error;
use memmap2::MmapMut;

/// Zero-filled memory at a page boundary. Pages exist from their first use on, so a large buffer that is used in part costs
/// that part only.
#[derive(Debug)]
pub struct Buffer {
    /// Absent where nothing was ever asked for.
    map: Option<MmapMut>,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// If the system does not give that much address space.
    pub fn zeroed(len: usize) -> Result<Buffer, Error> {
        let map = MmapMut::map_anon(len.max(1)).map_err(|e| Error::Program(format!("{len} bytes of memory: {e}")))?;
        // Fewer TLB misses; a kernel without huge pages refuses, which costs nothing but them.
        #[cfg(target_os = "linux")]
        if len >= 2 << 20 {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Buffer { map: Some(map), len })
    }
    /// No bytes and no memory.
    pub fn empty() -> Buffer {
        Buffer { map: None, len: 0 }
    }
    /// A copy of some bytes.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Buffer, Error> {
        let mut buffer = Buffer::zeroed(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }
    /// Keeps the first `len` bytes (all, if there are fewer).
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// Its address, for kernels.
    pub(crate) fn shared(&mut self) -> Shared {
        Shared(self.map.as_mut().map_or(std::ptr::null_mut(), |map| map.as_mut_ptr()))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| &map[..self.len])
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.map.as_mut().map_or(&mut [], |map| &mut map[..self.len])
    }
}

/// The address of memory that kernels on several threads read and write. Who holds one must know that the memory lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Shared(pub *mut u8);

// SAFETY: an address may travel between threads; every access through it is `unsafe` and justified where it happens.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_of_its_length() {
        for len in [0, 1, 4097, 3 << 20] {
            let buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&b| b == 0));
            assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        }
        assert!(Buffer::zeroed(usize::MAX / 2).is_err());
    }
}
