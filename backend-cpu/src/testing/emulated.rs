//! Kernels for another machine, run by qemu-user in processes that stay open.
//!
//! Such a process does two things for whoever holds the other end of its standard input: system calls and calls of addresses. With these its
//! memory is mapped, filled, run and read back. The program is a few instructions that LLVM assembles, so no cross compiler is needed.
use super::Aligned;
use crate::CodeImage;
use crate::compile;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Reads requests of seven words: the number of a system call or an address (no number reaches 4096), and six arguments. Answers each with
/// what is returned, and ends with its input.
const SERVER: &[&str] = &[
    "sub sp, sp, #64",
    "0: mov x0, #0",
    "mov x1, sp",
    "mov x2, #56",
    "mov x3, #0x100", // MSG_WAITALL
    "mov x4, #0",
    "mov x5, #0",
    "mov x8, #207", // recvfrom
    "svc #0",
    "cmp x0, #56",
    "b.ne 3f",
    "ldp x8, x0, [sp]",
    "ldp x1, x2, [sp, #16]",
    "ldp x3, x4, [sp, #32]",
    "ldr x5, [sp, #48]",
    "cmp x8, #4096",
    "b.hs 1f",
    "svc #0",
    "b 2f",
    "1: blr x8",
    "2: str x0, [sp]",
    "mov x0, #0",
    "mov x1, sp",
    "mov x2, #8",
    "mov x8, #64", // write
    "svc #0",
    "b 0b",
    "3: mov x0, #0",
    "mov x8, #94", // exit_group
    "svc #0",
];

/// Numbers of system calls on aarch64.
const WRITE: u64 = 64;
const RECVFROM: u64 = 207;
const MUNMAP: u64 = 215;
const MMAP: u64 = 222;
const MPROTECT: u64 = 226;

/// Processes that nobody uses at the moment.
static IDLE: Mutex<Vec<Process>> = Mutex::new(Vec::new());

struct Process {
    child: Child,
    stream: UnixStream,
}

impl Process {
    fn start() -> Result<Process> {
        let body = format!("llvm.inline_asm has_side_effects \"{}\", \"\" : () -> ()", SERVER.join("\\0A"));
        let text = format!("module {{ llvm.func @server() {{ {body}\nllvm.unreachable }} }}");
        let image = compile::assemble("aarch64", "server", &text).map_err(Error::other)?;
        let path = write_executable(&image)?;
        let (stream, theirs) = UnixStream::pair()?;
        let child = Command::new("qemu-aarch64").arg(&path).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn();
        let process = child.map(|child| Process { child, stream });
        // The answer to a first request shows that the file is open.
        let process = process.and_then(|mut process| process.request(MUNMAP, &[0, 4096]).map(|_| process));
        std::fs::remove_file(&path)?;
        process
    }

    /// Asks for a system call or a call of an address.
    fn ask(&mut self, what: u64, arguments: &[u64]) -> Result<()> {
        let mut request = [0; 56];
        for (to, word) in request.chunks_exact_mut(8).zip(std::iter::once(&what).chain(arguments)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.stream.write_all(&request)
    }

    /// What the last request returned.
    fn answer(&mut self) -> Result<u64> {
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer)?;
        Ok(u64::from_le_bytes(answer))
    }

    fn request(&mut self, what: u64, arguments: &[u64]) -> Result<u64> {
        self.ask(what, arguments)?;
        self.answer()
    }

    /// A private mapping with these contents, readable and writable.
    fn place(&mut self, contents: &[u8]) -> Result<Mapping> {
        let bytes = contents.len().max(1) as u64;
        let address = self.request(MMAP, &[0, bytes, 3, 0x22, u64::MAX])?;
        self.fill(address, contents)?;
        Ok(Mapping { address, bytes })
    }

    fn fill(&mut self, address: u64, contents: &[u8]) -> Result<()> {
        self.ask(RECVFROM, &[0, address, contents.len() as u64, 0x100])?;
        self.stream.write_all(contents)?;
        expect(self.answer()?, contents.len() as u64)
    }

    fn fetch(&mut self, address: u64, contents: &mut [u8]) -> Result<()> {
        self.ask(WRITE, &[0, address, contents.len() as u64])?;
        self.stream.read_exact(contents)?;
        expect(self.answer()?, contents.len() as u64)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends when the stream does, or has ended by a fault; either way there is nothing to report.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
struct Mapping {
    address: u64,
    bytes: u64,
}

fn expect(returned: u64, wanted: u64) -> Result<()> {
    if returned == wanted {
        return Ok(());
    }
    Err(Error::other(format!(
        "a system call of the emulated process returned {}, not {wanted}",
        returned.cast_signed()
    )))
}

/// A static ELF executable of an image: one segment, right after the headers.
fn write_executable(image: &CodeImage) -> Result<PathBuf> {
    const BASE: u64 = 1 << 20;
    const HEADERS: usize = 64 + 56;
    let size = (HEADERS + image.bytes.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    let word = |file: &mut Vec<u8>, words: &[u32]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    let long = |file: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    half(&mut file, &[2, 183]); // An executable for AArch64.
    word(&mut file, &[1]);
    long(&mut file, &[BASE + (HEADERS + image.symbols[0].offset) as u64, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    word(&mut file, &[1, 5]); // To be loaded, readable and executable.
    long(&mut file, &[0, BASE, BASE, size, size, 1 << 16]);
    file.extend(&image.bytes);
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("rdc-server-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?.write_all(&file)?;
    Ok(path)
}

/// A kernel in a process of its own while it lives.
pub struct Emulated {
    process: Option<Process>,
    code: Mapping,
    /// The table of pointers, then the arguments, then the scratch, each at a cache line.
    data: Mapping,
    entry: u64,
    /// Where each argument begins in `data`.
    places: Vec<Range<usize>>,
}

impl Emulated {
    /// Loads a kernel for aarch64, with memory for these arguments and this scratch.
    ///
    /// # Errors
    /// If there is no qemu-user.
    pub fn load(image: &CodeImage, offset: usize, args: &[Aligned], scratch: &Aligned) -> Result<Emulated> {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut process = idle.map_or_else(Process::start, Ok)?;
        let code = process.place(&image.bytes)?;
        expect(process.request(MPROTECT, &[code.address, code.bytes, 5])?, 0)?;
        let mut end = args.len() * 8;
        let mut place = |bytes: usize| {
            let start = end.next_multiple_of(64);
            end = start + bytes;
            start..end
        };
        let places: Vec<Range<usize>> = args.iter().map(|arg| place(arg.bytes().len())).collect();
        let scratch_at = place(scratch.bytes().len());
        let mut contents = vec![0; scratch_at.end];
        contents[scratch_at].copy_from_slice(scratch.bytes());
        let data = process.place(&contents)?;
        Ok(Emulated { process: Some(process), code, data, entry: code.address + offset as u64, places })
    }

    /// Runs tasks on a copy of the arguments, and copies them back.
    ///
    /// # Errors
    /// If the process ended: by a fault of the kernel.
    pub fn run(&mut self, args: &mut [Aligned], shared: &[(usize, usize)], tasks: Range<usize>) -> Result<()> {
        let Some(process) = &mut self.process else { return Err(ErrorKind::BrokenPipe.into()) };
        let data = self.data.address;
        let mut pointers: Vec<u64> = self.places.iter().map(|place| data + place.start as u64).collect();
        for &(pointer, same) in shared {
            pointers[pointer] = pointers[same];
        }
        let mut contents = vec![0; self.places.last().map_or(0, |place| place.end)];
        for (to, pointer) in contents.chunks_exact_mut(8).zip(&pointers) {
            to.copy_from_slice(&pointer.to_le_bytes());
        }
        for (arg, place) in args.iter().zip(&self.places) {
            contents[place.clone()].copy_from_slice(arg.bytes());
        }
        process.fill(data, &contents)?;
        let scratch = contents.len().next_multiple_of(64) as u64;
        process.request(self.entry, &[data, tasks.start as u64, tasks.end as u64, data + scratch])?;
        process.fetch(data, &mut contents)?;
        for (arg, place) in args.iter_mut().zip(&self.places) {
            arg.bytes_mut().copy_from_slice(&contents[place.clone()]);
        }
        Ok(())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // A process that does not answer is not used again.
        let unmapped = [self.code, self.data].map(|m| process.request(MUNMAP, &[m.address, m.bytes]).is_ok());
        if unmapped == [true; 2] {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Runner, kernel};
    use rdc_ir::program::Tiling;
    use rdc_passes::fuse::body::Family;

    #[test]
    fn kernels_for_aarch64_run_one_after_the_other_in_one_process() {
        if Command::new("qemu-aarch64").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("RDC_RUNTIME_ONLY").is_none(), "`make setup` installs qemu-user");
            println!("qemu-user is not installed: no kernel is run for aarch64");
            return;
        }
        for (rows, op) in [(2, "neg"), (3, "exp"), (2, "neg")] {
            let text = format!(
                r#"func "f"("x" input = %x: f32[{rows}, 5]) {{
                %y = {op} %x : f32[{rows}, 5]
                yield "y" = %y }}"#
            );
            let func = rdc_ir::parse::parse_func(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let kind = (Family::Rows(rows), Tiling::Rows { rows_per_task: 1 });
            let mut runner = Runner::new(&crate::target("aarch64").unwrap(), &kernel("k", kind, func, rows)).unwrap();
            runner.args[0] = Aligned::from_f32(&vec![-1.0; rows * 5]);
            runner.run(1..2);
            let mut want = vec![0.0; rows * 5];
            want[5..10].fill(if op == "neg" { 1.0 } else { (-1f32).exp() });
            let got = runner.args[1].to_f32();
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
        }
    }
}
