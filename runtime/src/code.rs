//! Machine code and its entry points.
//!
//! `unsafe` here: bytes are mapped executable and their addresses become function pointers. The invariant: an image is code that a
//! back end generated for this machine, with a kernel at each symbol's offset, and it stays mapped as long as the [`Code`].
//! Whoever loads an artifact trusts it as native code (docs/artifact.md).
use crate::Error;
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::collections::BTreeMap;
use std::fs::File;

/// A kernel: see the calling convention in [`rdc_ir::program`].
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, begin: i64, end: i64, scratch: *mut u8);

/// The kernels of a program, by name.
#[derive(Debug)]
pub enum Code {
    /// A position-independent image and the offsets of its kernels.
    Image {
        /// The executable mapping.
        map: Mmap,
        /// Offset of each kernel.
        symbols: BTreeMap<String, u64>,
    },
    /// Functions of this process.
    Table(BTreeMap<String, KernelFn>),
}

impl Code {
    /// Copies an image into executable memory.
    ///
    /// # Errors
    /// If the system gives no executable memory.
    pub fn from_image(image: &[u8], symbols: BTreeMap<String, u64>) -> Result<Code, Error> {
        let failed = |e| Error::Program(format!("executable memory: {e}"));
        let mut map = MmapMut::map_anon(image.len().max(1)).map_err(failed)?;
        map[..image.len()].copy_from_slice(image);
        Ok(Code::Image { map: map.make_exec().map_err(failed)?, symbols })
    }
    /// Maps an image that lies in a file, readable and executable; copies it where the file system forbids that.
    ///
    /// # Errors
    /// As [`Code::from_image`].
    pub fn from_file(file: &File, offset: u64, image: &[u8], symbols: BTreeMap<String, u64>) -> Result<Code, Error> {
        // SAFETY: the mapping is never written; that the file is not shortened meanwhile is the caller's to keep,
        // as for every mapping of the artifact.
        match unsafe { MmapOptions::new().offset(offset).len(image.len().max(1)).map_exec(file) } {
            Ok(map) => Ok(Code::Image { map, symbols }),
            Err(_) => Code::from_image(image, symbols),
        }
    }
    /// The kernel of that name, if its offset lies in the image.
    pub fn kernel(&self, name: &str) -> Option<KernelFn> {
        match self {
            Code::Table(table) => table.get(name).copied(),
            Code::Image { map, symbols } => {
                let code = map.get(usize::try_from(*symbols.get(name)?).ok()?..)?;
                // SAFETY: a symbol's offset is where a kernel starts (the invariant of this file); the caller keeps `self`
                // alive as long as it calls.
                (!code.is_empty()).then(|| unsafe { std::mem::transmute::<*const u8, KernelFn>(code.as_ptr()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn runs_an_image() {
        // mov rax, [rdi]; mov [rax], rsi; ret
        let image = [0x90, 0x48, 0x8b, 0x07, 0x48, 0x89, 0x30, 0xc3];
        let symbols = BTreeMap::from([("k".to_string(), 1), ("outside".to_string(), 9999)]);
        let code = Code::from_image(&image, symbols).unwrap();
        let mut x = 0i64;
        let args = [std::ptr::from_mut(&mut x).cast::<u8>()];
        // SAFETY: the code above stores its second argument where its first points to.
        unsafe { code.kernel("k").unwrap()(args.as_ptr(), 42, 43, std::ptr::null_mut()) };
        assert_eq!(x, 42);
        assert!(code.kernel("absent").is_none() && code.kernel("outside").is_none());
    }
}
