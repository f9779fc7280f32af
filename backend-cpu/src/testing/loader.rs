//! Code mapped executable, and buffers for it.
//!
//! `unsafe` here: code is mapped and called; pages of buffers are named to the system. The caller vouches that buffers fit the kernel's types ([`Loaded::run`]).
use crate::CodeImage;
use std::io;

/// A code image mapped executable.
pub struct Loaded {
    base: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the mapping is read-only and executable from `load` until `drop`.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// A kernel's entry point, see the calling convention in `rdc_ir::program`.
pub type Entry = unsafe extern "C" fn(args: *const *mut u8, begin: i64, end: i64, scratch: *mut u8);

impl Loaded {
    /// Maps an image.
    ///
    /// # Errors
    /// If the system refuses the mapping.
    pub fn load(image: &CodeImage) -> io::Result<Loaded> {
        let bytes = image.bytes.len().max(1);
        // SAFETY: a fresh anonymous mapping of `bytes` bytes, filled before it is made executable.
        unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let base = libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let loaded = Loaded { base, bytes };
            std::ptr::copy_nonoverlapping(image.bytes.as_ptr(), base.cast(), image.bytes.len());
            if libc::mprotect(base, bytes, libc::PROT_READ | libc::PROT_EXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(loaded)
        }
    }

    /// The entry point at an offset of the image.
    ///
    /// # Safety
    /// `offset` is a symbol's offset, the image is for this machine, and `self` outlives every call.
    pub unsafe fn entry(&self, offset: usize) -> Entry {
        // SAFETY: by the caller's word there is a function of this signature.
        unsafe { std::mem::transmute::<*const u8, Entry>(self.base.cast::<u8>().add(offset).cast_const()) }
    }

    /// Runs tasks `begin..end` of the kernel at an offset.
    ///
    /// # Safety
    /// As [`Loaded::entry`]; `args` has the bytes of the kernel's arguments and results in order, each of its type's size,
    /// and `scratch` at least [`rdc_ir::program::Kernel::scratch`] bytes.
    pub unsafe fn run(
        &self,
        offset: usize,
        args: &mut [Aligned],
        tasks: std::ops::Range<usize>,
        scratch: &mut Aligned,
    ) {
        // SAFETY: by the caller's word.
        unsafe { self.run_shared(offset, args, &[], tasks, scratch) }
    }

    /// As [`Loaded::run`], with memory in common: for each pair, the first pointer is the second.
    ///
    /// # Safety
    /// As [`Loaded::run`]; the pairs are places of `args` with as many bytes.
    pub unsafe fn run_shared(
        &self,
        offset: usize,
        args: &mut [Aligned],
        shared: &[(usize, usize)],
        tasks: std::ops::Range<usize>,
        scratch: &mut Aligned,
    ) {
        let mut pointers: Vec<*mut u8> = args.iter_mut().map(|a| a.bytes_mut().as_mut_ptr()).collect();
        for &(pointer, same) in shared {
            pointers[pointer] = pointers[same];
        }
        let scratch = scratch.bytes_mut().as_mut_ptr();
        // SAFETY: by the caller's word.
        unsafe { self.entry(offset)(pointers.as_ptr(), tasks.start as i64, tasks.end as i64, scratch) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `load`. Its failure would leak it, no more.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

/// Bytes of a large page.
const HUGE: usize = 2 << 20;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line {
    _bytes: [u8; 64],
}

/// Bytes aligned to a cache line.
#[derive(Clone)]
pub struct Aligned {
    lines: Vec<Line>,
    bytes: usize,
}

impl Aligned {
    /// Zeros.
    pub fn new(bytes: usize) -> Aligned {
        let count = bytes.div_ceil(64).max(1);
        let mut lines: Vec<Line> = Vec::with_capacity(count);
        // Large buffers in large pages where the system has them, as a session's memory is. A refusal changes nothing.
        // SAFETY: the vector's own memory, whose contents are not changed; only whole pages inside it are named.
        unsafe {
            let start = lines.as_mut_ptr().cast::<u8>();
            let skipped = start.align_offset(HUGE);
            if skipped + HUGE <= count * 64 {
                libc::madvise(start.add(skipped).cast(), (count * 64 - skipped) / HUGE * HUGE, libc::MADV_HUGEPAGE);
            }
        }
        lines.resize(count, Line { _bytes: [0; 64] });
        Aligned { lines, bytes }
    }
    /// A copy of floats.
    pub fn from_f32(values: &[f32]) -> Aligned {
        let mut out = Aligned::new(values.len() * 4);
        for (to, from) in out.bytes_mut().chunks_exact_mut(4).zip(values) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        out
    }
    /// A copy of bytes.
    pub fn from_bytes(values: &[u8]) -> Aligned {
        let mut out = Aligned::new(values.len());
        out.bytes_mut().copy_from_slice(values);
        out
    }
    /// The bytes as floats.
    pub fn to_f32(&self) -> Vec<f32> {
        self.bytes().chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `lines` holds at least `bytes` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.bytes) }
    }
    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.bytes) }
    }
}
