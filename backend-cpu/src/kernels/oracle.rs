//! Compares kernels with the reference interpreter in f64.
use crate::testing::{self, Aligned, Runner, kernel, program, random};
use rdc_ir::interp::{self, Data, Inputs, Tensor};
use rdc_ir::program::{Kernel, Reach, Tiling};
use rdc_ir::{DType, Func, Module, Opcode, Type, ValueId};
use rdc_passes::fuse::body::Family;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// A kernel to check.
pub struct Case {
    /// What it computes, as the interpreter runs it.
    pub func: Func,
    /// Its kind and tiling.
    pub kind: (Family, Tiling),
    /// Its number of tasks.
    pub tasks: usize,
    /// Largest error, relative to the largest element of a result.
    pub tolerance: f64,
    /// Integer arguments by name; others are drawn.
    pub ints: Vec<(&'static str, Vec<i32>)>,
    /// Names of arguments that are views of caches, laid out head-major.
    pub views: Vec<&'static str>,
    /// Results that use the memory of an argument, by name.
    pub in_place: Vec<(&'static str, &'static str)>,
    /// Bytes between the rows of arguments and results whose rows do not follow each other, by name.
    pub pitches: Vec<(&'static str, usize)>,
}

impl Case {
    /// A kernel of a function in IR text.
    #[track_caller]
    pub fn new(text: &str, kind: (Family, Tiling), tasks: usize) -> Case {
        let func = rdc_ir::parse::parse_func(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let (ints, views, in_place, pitches) = (vec![], vec![], vec![], vec![]);
        Case { func, kind, tasks, tolerance: 2e-6, ints, views, in_place, pitches }
    }
    /// Sets an integer argument.
    pub fn int(mut self, name: &'static str, values: &[i32]) -> Case {
        self.ints.push((name, values.to_vec()));
        self
    }
    /// Marks an argument as a view of a cache.
    pub fn view(mut self, name: &'static str) -> Case {
        self.views.push(name);
        self
    }

    /// Lets a result use the memory of an argument.
    pub fn in_place(mut self, result: &'static str, argument: &'static str) -> Case {
        self.in_place.push((result, argument));
        self
    }

    /// Puts the rows of an argument or result so many bytes apart.
    pub fn pitch(mut self, name: &'static str, bytes: usize) -> Case {
        self.pitches.push((name, bytes));
        self
    }

    /// Compiles the kernel for the targets that this machine need not be.
    #[track_caller]
    pub fn compile_elsewhere(&self) {
        for name in ["x86-64-v4", "aarch64"] {
            let target = crate::target(name).unwrap();
            let mut program = program(vec![kernel("k", self.kind, self.kernel_func(), self.tasks)]);
            crate::compile(&mut program, &target, &crate::Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    /// The function as a kernel has it: views are caches.
    fn kernel_func(&self) -> Func {
        let mut func = self.func.clone();
        let args = func.regions[func.body].args.clone();
        for (arg, &value) in self.func.args.iter().zip(&args) {
            if self.views.iter().any(|v| *v == arg.name) {
                func.values[value].ty.cache = true;
            }
        }
        func
    }

    fn argument(&self, index: usize, ty: &Type) -> Tensor<f64> {
        let name = &self.func.args[index].name;
        let n = ty.elements();
        let numbers = random(n, index as u64 + 1);
        let data = match ty.dtype {
            DType::F32 | DType::BF16 => Data::Float(numbers.iter().map(|&v| f64::from(v)).collect()),
            DType::Bool => Data::Bool(numbers.iter().map(|&v| v > 0.0).collect()),
            DType::I8 => Data::Byte(numbers.iter().map(|&v| (v * 127.0) as i8).collect()),
            DType::I32 => match self.ints.iter().find(|(n, _)| n == name) {
                Some((_, values)) => Data::Int(values.clone()),
                None => Data::Int(numbers.iter().map(|&v| (v.abs() * 3.0) as i32).collect()),
            },
        };
        Tensor { ty: ty.clone(), data }
    }

    /// Runs the kernel in one call and task by task, backwards, and compares both with the interpreter.
    #[track_caller]
    pub fn check(&self) {
        let kernel_func = self.kernel_func();
        let args = kernel_func.regions[kernel_func.body].args.clone();
        let tensors: Vec<Tensor<f64>> =
            args.iter().enumerate().map(|(i, &v)| self.argument(i, self.func.ty(v))).collect();
        let mut inputs = Inputs::default();
        for (arg, tensor) in self.func.args.iter().zip(&tensors) {
            inputs.args.insert(arg.name.clone(), Rc::new(tensor.clone()));
        }
        let module = Module { name: "test".into(), funcs: vec![self.func.clone()], ..Module::default() };
        let outputs = interp::run(&module, &self.func.name, &inputs, &mut interp::Options::default()).unwrap();
        let target = testing::target("x86-64-v3");
        let mut kernel = kernel("k", self.kind, kernel_func, self.tasks);
        let pointers = self.pointers(&kernel.func);
        for &(name, bytes) in &self.pitches {
            let argument = kernel.func.args.iter().position(|a| a.name == name);
            let result = kernel.func.outputs.iter().position(|o| o.name == name).map(|o| pointers[o]);
            kernel.pointers[argument.or(result).unwrap()].pitch = Some(bytes);
        }
        let mut runner = Runner::new(&target, &kernel).unwrap_or_else(|e| panic!("{e}"));
        for &(result, argument) in &self.in_place {
            let result = kernel.func.outputs.iter().position(|o| o.name == result).unwrap();
            let argument = kernel.func.args.iter().position(|a| a.name == argument).unwrap();
            runner.shared.push((pointers[result], argument));
        }
        let set = |runner: &mut Runner| {
            for (i, (&value, tensor)) in args.iter().zip(&tensors).enumerate() {
                runner.args[i] = memory(kernel.func.ty(value), kernel.pointers[i].pitch, tensor);
            }
            // Results that are not written must show.
            for result in &mut runner.args[args.len()..] {
                result.bytes_mut().fill(0x7f);
            }
        };
        set(&mut runner);
        runner.run(0..self.tasks);
        let whole: Vec<Aligned> = runner.args.clone();
        set(&mut runner);
        for task in (0..self.tasks).rev() {
            runner.run(task..task + 1);
        }
        for (a, b) in whole.iter().zip(&runner.args) {
            assert!(a.bytes() == b.bytes(), "the result depends on how tasks are split");
        }
        set(&mut runner);
        check_reaches(&kernel, &mut runner, &whole);
        for ((name, want), (&value, pointer)) in
            outputs.tensors.iter().zip(kernel.func.regions[kernel.func.body].yields.iter().zip(pointers))
        {
            let pointer = runner.shared.iter().find(|s| s.0 == pointer).map_or(pointer, |s| s.1);
            let got = numbers(kernel.func.ty(value), kernel.pointers[pointer].pitch, &whole[pointer]);
            compare(name, &got, &want.to_f64(), self.tolerance);
        }
    }

    /// The pointer of each result; a cache is its argument.
    fn pointers(&self, func: &Func) -> Vec<usize> {
        let body = &func.regions[func.body];
        let mut next = body.args.len();
        let origin: HashMap<ValueId, ValueId> = body
            .ops
            .iter()
            .map(|&o| &func.ops[o])
            .filter(|o| o.opcode == Opcode::CacheUpdate)
            .map(|o| (o.results[0], o.operands[0]))
            .collect();
        let place = |v: ValueId| body.args.iter().position(|&a| Some(&a) == origin.get(&v));
        body.yields
            .iter()
            .map(|&v| {
                place(v).unwrap_or_else(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect()
    }
}

/// Runs task by task with everything else than what the task is said to reach spoilt: that must not matter, nor change.
#[track_caller]
fn check_reaches(kernel: &Kernel, runner: &mut Runner, whole: &[Aligned]) {
    let shared = runner.shared.clone();
    let memory = |pointer: usize| shared.iter().find(|s| s.0 == pointer).map_or(pointer, |s| s.1);
    let mut image: Vec<Aligned> = runner.args.clone();
    let pointers: Vec<(usize, bool, Reach)> = kernel
        .pointers
        .iter()
        .zip(kernel.reaches())
        .enumerate()
        .map(|(index, (pointer, reach))| (memory(index), pointer.written, reach))
        .collect();
    for task in 0..kernel.tasks {
        runner.args.clone_from(&image);
        let within = |at: usize, reach: &Reach| reach.of(&(task..task + 1), image[at].bytes().len());
        for (at, _, reach) in &pointers {
            let within = within(*at, reach);
            let bytes = runner.args[*at].bytes_mut();
            bytes[..within.start].fill(0xff);
            bytes[within.end..].fill(0xff);
        }
        let before = runner.args.clone();
        runner.run(task..task + 1);
        let reached: Vec<(usize, Range<usize>)> =
            pointers.iter().filter(|p| p.1).map(|(at, _, reach)| (*at, within(*at, reach))).collect();
        for (at, within) in reached {
            let (old, new) = (before[at].bytes(), runner.args[at].bytes());
            let same = old[..within.start] == new[..within.start] && old[within.end..] == new[within.end..];
            assert!(same, "task {task} writes beyond {within:?} of pointer {at}");
            image[at].bytes_mut()[within.clone()].copy_from_slice(&new[within]);
        }
    }
    for (at, _, _) in pointers.iter().filter(|p| p.1) {
        assert!(image[*at].bytes() == whole[*at].bytes(), "pointer {at}: tasks read more than they are said to reach");
    }
}

/// The byte at which element `i` of a row-major tensor lies: caches are head-major.
fn place(ty: &Type, pitch: Option<usize>, i: usize) -> usize {
    let size = ty.dtype.bytes();
    if let Some(pitch) = pitch {
        return i / ty.last() * pitch + i % ty.last() * size;
    }
    if !ty.cache {
        return i * size;
    }
    let [.., t, h, d] = ty.shape[..] else { return i * size };
    let (outer, t_at, h_at, d_at) = (i / (t * h * d), i / (h * d) % t, i / d % h, i % d);
    (((outer * h + h_at) * t + t_at) * d + d_at) * size
}

fn memory(ty: &Type, pitch: Option<usize>, tensor: &Tensor<f64>) -> Aligned {
    let mut out = Aligned::new(ty.bytes_at(pitch));
    let size = ty.dtype.bytes();
    for (i, v) in tensor.to_f64().into_iter().enumerate() {
        let to = &mut out.bytes_mut()[place(ty, pitch, i)..][..size];
        match ty.dtype {
            DType::F32 => to.copy_from_slice(&(v as f32).to_ne_bytes()),
            DType::I32 => to.copy_from_slice(&(v as i32).to_ne_bytes()),
            DType::Bool => to[0] = u8::from(v != 0.0),
            DType::I8 => to[0] = (v as i8).cast_unsigned(),
            DType::BF16 => to.copy_from_slice(&(((v as f32).to_bits() >> 16) as u16).to_ne_bytes()),
        }
    }
    out
}

fn numbers(ty: &Type, pitch: Option<usize>, memory: &Aligned) -> Vec<f64> {
    let size = ty.dtype.bytes();
    (0..ty.elements())
        .map(|i| {
            let b = &memory.bytes()[place(ty, pitch, i)..][..size];
            match ty.dtype {
                DType::F32 => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]).into(),
                DType::I32 => i32::from_ne_bytes([b[0], b[1], b[2], b[3]]).into(),
                DType::Bool | DType::I8 => b[0].cast_signed().into(),
                DType::BF16 => f32::from_bits(u32::from(u16::from_ne_bytes([b[0], b[1]])) << 16).into(),
            }
        })
        .collect()
}

#[track_caller]
fn compare(name: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let largest = want.iter().fold(0f64, |m, v| m.max(v.abs())).max(1e-30);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * largest, "{name}[{i}] = {g}, want {w}; largest {largest}");
    }
}
