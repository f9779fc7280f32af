//! From kernels to a code image: see the crate documentation.
mod image;
mod llvm;
mod mlir;

use crate::{Error, Isa, Target, kernels};
use rayon::prelude::*;
use rdc_ir::program::{Kernel, Program};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use image::{CodeImage, Symbol};

/// What [`emit_stage`] prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The MLIR module as the kernel families write it (text).
    Mlir,
    /// The LLVM module after optimisation (text).
    Llvm,
    /// Assembly (text).
    Asm,
    /// A relocatable ELF object (bytes).
    Obj,
}

/// A kernel has been compiled.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Kernels compiled so far, this one included.
    pub done: usize,
    /// Kernels in all.
    pub total: usize,
    /// The name of this one.
    pub kernel: &'a str,
}

/// How to compile.
#[derive(Default)]
pub struct Options<'a> {
    /// Called after each kernel, from any thread.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// Compiles every kernel of a program, in parallel on rayon's current pool, into one image, and sets the scratch of each
/// kernel ([`Kernel::scratch`]) to what its code needs. The image depends on the program and the target, which
/// must be the one whose machine the program was made for, only.
///
/// # Errors
/// [`Error::Emit`] for a kernel that no family has code for, [`Error::Lowering`] and [`Error::Layout`] for mistakes of
/// this back end.
pub fn compile(program: &mut Program, target: &Target, options: &Options) -> Result<CodeImage, Error> {
    for kernel in &mut program.kernels {
        kernel.scratch = kernels::scratch_bytes(kernel, &target.machine);
    }
    let done = AtomicUsize::new(0);
    let objects = program
        .kernels
        .par_iter()
        .map(|kernel| {
            let object = stage(target, kernel, Stage::Obj)?;
            if let Some(progress) = options.progress {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                progress(Progress { done, total: program.kernels.len(), kernel: &kernel.name });
            }
            Ok(object)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    image::layout(program.kernels.iter().map(|k| k.name.as_str()).zip(objects.iter().map(Vec::as_slice)))
}

/// One kernel at a stage of its compilation: text for all stages but [`Stage::Obj`].
///
/// # Errors
/// As [`compile`], and [`Error::NoSuchKernel`].
pub fn emit_stage(program: &Program, target: &Target, kernel: usize, at: Stage) -> Result<Vec<u8>, Error> {
    let Some(k) = program.kernels.get(kernel) else {
        return Err(Error::NoSuchKernel { index: kernel, count: program.kernels.len() });
    };
    stage(target, k, at)
}

fn stage(target: &Target, kernel: &Kernel, at: Stage) -> Result<Vec<u8>, Error> {
    let text = kernels::mlir(&target.machine, kernel)?;
    if at == Stage::Mlir {
        return Ok(text.into_bytes());
    }
    lower(&target.isa, &text, at).map_err(|(stage, message)| Error::Lowering {
        kernel: kernel.name.clone(),
        stage,
        message,
    })
}

/// An image of one function in MLIR text, for a named target.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn assemble(target: &str, name: &str, text: &str) -> Result<CodeImage, Error> {
    let object = lower(&crate::target(target)?.isa, text, Stage::Obj).map_err(|(stage, message)| Error::Lowering {
        kernel: name.into(),
        stage,
        message,
    })?;
    image::layout(std::iter::once((name, object.as_slice())))
}

/// Which step failed, and what the library said.
type Failure = (&'static str, String);

fn lower(isa: &Isa, text: &str, at: Stage) -> Result<Vec<u8>, Failure> {
    let context = inkwell::context::Context::create();
    let module = mlir::translate(text, &context)?;
    let machine = llvm::Machine::new(isa)?;
    machine.optimise(&module)?;
    match at {
        Stage::Mlir | Stage::Llvm => Ok(module.print_to_string().to_string().into_bytes()),
        Stage::Asm => machine.assembly(&module),
        Stage::Obj => machine.object(&module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        emit::{Emitter, Val},
        target,
        testing::{Aligned, Loaded},
    };

    /// A kernel that adds the constants 1, 2, … (which lie in read-only data) to a vector.
    fn add_ramp(lanes: usize, address: impl FnOnce(&mut Emitter) -> Val) -> String {
        let mut e = Emitter::new("ramp", 2, lanes);
        let from = address(&mut e);
        let x = e.load_raw(from, crate::emit::Ty::f32(lanes));
        let one = e.f32(1.0, 1);
        let two = e.f32(2.0, 1);
        let (one, two) = (e.splat(one, lanes), e.splat(two, lanes));
        let pattern: Vec<usize> = (0..lanes).map(|i| if i % 2 == 0 { i } else { lanes + i }).collect();
        let ramp = e.shuffle(one, two, &pattern);
        let sum = e.add(x, ramp);
        e.store_raw(e.arg(1), sum);
        e.finish()
    }

    fn object(name: &str, text: &str) -> Vec<u8> {
        lower(&target(name).unwrap().isa, text, Stage::Obj).unwrap()
    }

    #[test]
    fn images_run_and_constants_are_found() {
        let target = target("native").unwrap();
        let text = add_ramp(target.machine.lanes, |e| e.arg(0));
        let object = object("native", &text);
        // Two objects, so that sections of the second are moved.
        let other = self::object("native", &text.replace("@ramp", "@other"));
        let image = image::layout([("other", other.as_slice()), ("ramp", object.as_slice())].into_iter()).unwrap();
        let loaded = Loaded::load(&image).unwrap();
        for name in ["ramp", "other"] {
            let mut args =
                [Aligned::from_f32(&vec![0.5; target.machine.lanes]), Aligned::new(4 * target.machine.lanes)];
            // SAFETY: two buffers of one vector each.
            unsafe { loaded.run(image.offset(name).unwrap(), &mut args, 0..1, &mut Aligned::new(0)) };
            let want: Vec<f32> = (0..target.machine.lanes).map(|i| if i % 2 == 0 { 1.5 } else { 2.5 }).collect();
            assert_eq!(args[1].to_f32(), want);
        }
    }

    #[test]
    fn every_target_assembles() {
        for name in crate::TARGETS {
            let lanes = target(name).unwrap().machine.lanes;
            let object = object(name, &add_ramp(lanes, |e| e.arg(0)));
            assert!(image::layout([("ramp", object.as_slice())].into_iter()).is_ok(), "{name}");
        }
    }

    #[test]
    fn aarch64_addresses_of_constants_are_resolved() {
        let object = object("aarch64", &add_ramp(4, |e| e.arg(0)));
        let image = image::layout([("ramp", object.as_slice())].into_iter()).unwrap();
        let word = |at: usize| u32::from_le_bytes(image.bytes[at..at + 4].try_into().unwrap());
        let mut found = 0;
        for at in (0..image.bytes.len() / 4 * 4).step_by(4).filter(|&at| word(at) & 0x9f00_0000 == 0x9000_0000) {
            // `adrp x, page` and, soon after, `ldr q, [x, offset]` of the same register.
            let (page, register) = (word(at), word(at) & 31);
            let load = (at + 4..at + 40).step_by(4).map(word);
            let load = load.into_iter().find(|w| w & 0xffc0_0000 == 0x3dc0_0000 && w >> 5 & 31 == register).unwrap();
            let pages = (page >> 29 & 3) | (page >> 5 & 0x7_ffff) << 2;
            let address = at / 4096 * 4096 + pages as usize * 4096 + (load >> 10 & 0xfff) as usize * 16;
            let constant: Vec<u8> = [1f32, 2.0, 1.0, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(image.bytes[address..address + 16], constant);
            found += 1;
        }
        assert_eq!(found, 1);
    }

    #[test]
    fn calls_of_libraries_are_refused() {
        let text = "module { llvm.func @cosf(f32) -> f32
            func.func @k(%p: !llvm.ptr, %b: i64, %e: i64, %s: !llvm.ptr) {
              %x = llvm.load %p : !llvm.ptr -> f32
              %y = llvm.call @cosf(%x) : (f32) -> f32
              llvm.store %y, %p : f32, !llvm.ptr
              return } }";
        let object = object("native", text);
        let error = image::layout([("k", object.as_slice())].into_iter()).unwrap_err();
        assert!(error.to_string().contains("cosf"), "{error}");
    }

    #[test]
    fn mistakes_are_reported_with_their_reason() {
        let target = target("native").unwrap();
        let (stage, message) = lower(&target.isa, "module { arith.nonsense }", Stage::Obj).unwrap_err();
        assert_eq!(stage, "parsing MLIR");
        assert!(message.contains("nonsense"), "{message}");
    }
}
