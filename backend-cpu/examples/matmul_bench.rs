//! Matmul kernels against what the machine can do: f32 multiply-adds per second for many rows, read bandwidth for few.
//!
//!     cargo run --release -p rdc-backend-cpu --features testing --example matmul_bench \
//!         [-- gemm | gemv | product | memory | compile | asm [TARGET]]
use rdc_backend_cpu::testing::{Aligned, Runner, kernel, pack, program, quantise, random};
use rdc_backend_cpu::{Error, Stage, Target, emit_stage, target};
use rdc_ir::program::{Kernel, Tiling};
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Opcode, Type};
use rdc_passes::fuse::body::Family;
use std::hint::black_box;
use std::time::Instant;

/// Longest inner block of a matmul, as the passes plan it.
const INNER: usize = 256;
/// The same of a product.
const INNER_OF_PRODUCT: usize = 128;

/// What surrounds the product in a case.
#[derive(Clone, Copy, PartialEq)]
enum Around {
    Nothing,
    /// RMS norm before, gate (silu, two parts) after.
    NormGate,
    /// RMS norm before.
    Norm,
    /// Residual addition after.
    Residual,
}

fn case(target: &Target, (m, n, k): (usize, usize, usize), dtype: DType, around: Around) -> Kernel {
    let parts = if around == Around::NormGate { 2 } else { 1 };
    let nr = target.machine.nr;
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let x = b.arg("x", ArgRole::Input, Type::f32([m, k]));
    let (inner, pair) = if dtype == DType::BF16 { (k.div_ceil(2), 2) } else { (k, 1) };
    let w = b.arg("w", ArgRole::Input, Type::new(dtype, [n.div_ceil(nr), inner, nr, pair]));
    let mut operands = vec![x, w];
    if matches!(around, Around::Norm | Around::NormGate) {
        let norm = b.arg("norm", ArgRole::Input, Type::f32([k]));
        operands[0] = b.op(Opcode::RmsNorm, &[x, norm], vec![Attr::float(1e-5)]);
    }
    if dtype == DType::I8 {
        operands.push(b.arg("scale", ArgRole::Input, Type::f32([n])));
    }
    let attrs = vec![Attr::Int(n as i64), Attr::Int(k as i64), Attr::Int(parts)];
    let y = b.op(Opcode::PackedMatmul, &operands, attrs);
    let half = |b: &mut Builder, i: usize| {
        let (start, end) = (i * n / 2, (i + 1) * n / 2);
        b.op(Opcode::Slice, &[y], vec![Attr::Int(1), Attr::Int(start as i64), Attr::Int(end as i64)])
    };
    let out = match around {
        Around::NormGate => {
            let (gate, up) = (half(&mut b, 0), half(&mut b, 1));
            let gate = b.op(Opcode::Silu, &[gate], vec![]);
            b.op(Opcode::Mul, &[gate, up], vec![])
        }
        Around::Residual => {
            let residual = b.arg("residual", ArgRole::Input, Type::f32([m, n]));
            b.op(Opcode::Add, &[residual, y], vec![])
        }
        _ => y,
    };
    b.output("y", out, false);
    let panels = n.div_ceil(nr);
    let (rows_per_task, panels_per_task) = match m {
        ..=4 => (m, 4.min(panels)),
        _ => ((target.machine.mr * (96 / target.machine.mr)).min(m), panels.min(24)),
    };
    let kc = k.div_ceil(k.div_ceil(INNER)).next_multiple_of(2);
    let panels_together = target.machine.panels_together(rows_per_task, (k, kc), panels_per_task);
    let prefetch =
        if k <= kc && panels_per_task == panels && m >= 16 * rows_per_task { target.machine.l2 / 4 } else { 0 };
    let tiling = match m {
        ..=4 => Tiling::Panels { panels_per_task },
        _ => Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch },
    };
    let tasks = m.div_ceil(rows_per_task) * panels.div_ceil(panels_per_task);
    kernel("k", (Family::Matmul, tiling), func, tasks)
}

fn runner(target: &Target, kernel: &Kernel) -> Result<Runner, Error> {
    let mut runner = Runner::new(target, kernel)?;
    let func = &kernel.func;
    let args = &func.regions[func.body].args;
    for (i, &arg) in args.iter().enumerate() {
        let ty = func.ty(arg);
        runner.args[i] = match ty.dtype {
            DType::F32 => Aligned::from_f32(&random(ty.elements(), i as u64 + 1)),
            _ => {
                let (n, k) = (ty.shape[0] * ty.shape[2], ty.shape[1] * ty.shape[3]);
                let mut rows = random(n * k, i as u64 + 1);
                if ty.dtype == DType::I8 {
                    rows = quantise(&rows, k).0;
                }
                Aligned::from_bytes(&pack(&rows, (n, k), ty.dtype, target.machine.nr, 1))
            }
        };
    }
    Ok(runner)
}

/// `acc + aᵀ b`, or `acc + a b` if not transposed, the accumulator in place.
fn product_case(
    target: &Target,
    transposed: bool,
    (m, n, k): (usize, usize, usize),
    (rows, columns): (usize, usize),
) -> Kernel {
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let left = b.arg("a", ArgRole::Input, Type::f32(if transposed { [k, m] } else { [m, k] }));
    let right = b.arg("b", ArgRole::Input, Type::f32([k, n]));
    let sum = b.arg("c", ArgRole::Input, Type::f32([m, n]));
    let product = b.op(Opcode::Matmul, &[left, right], vec![Attr::Bool(transposed), Attr::Bool(false)]);
    let out = b.op(Opcode::Add, &[sum, product], vec![]);
    b.output("c", out, false);
    let rows_per_task = m.div_ceil(m.div_ceil(rows)).next_multiple_of(target.machine.mr);
    let columns_per_task = n.div_ceil(n.div_ceil(columns)).next_multiple_of(target.machine.nr);
    let inner = (target.machine.l1 / (8 * target.machine.nr)).min(INNER_OF_PRODUCT);
    let kc = k.div_ceil(k.div_ceil(inner)).next_multiple_of(4);
    let kind = (Family::Product, Tiling::Blocks { rows_per_task, columns_per_task, kc });
    kernel("k", kind, func, m.div_ceil(rows_per_task) * n.div_ceil(columns_per_task))
}

/// CPU time of this thread, which other work on the machine disturbs less than the clock on the wall.
fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Seconds of one call: the smallest and the median of several.
fn time(mut f: impl FnMut(), runs: usize) -> (f64, f64) {
    f();
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = cpu_seconds();
            f();
            cpu_seconds() - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[0], times[runs / 2])
}

/// Seconds of one launch: the sums over tasks of the smallest and of the median time of each. A task is short, so other
/// work on the machine spoils few of them.
fn time_tasks(runner: &mut Runner, tasks: usize, runs: usize) -> (f64, f64) {
    let mut times = vec![Vec::new(); tasks];
    for _ in 0..=runs {
        for (task, times) in times.iter_mut().enumerate() {
            let start = cpu_seconds();
            runner.run(task..task + 1);
            times.push(cpu_seconds() - start);
        }
    }
    let mut sums = (0.0, 0.0);
    for times in &mut times {
        times.sort_by(f64::total_cmp);
        sums = (sums.0 + times[0], sums.1 + times[runs / 2]);
    }
    sums
}

/// Multiply-adds that depend on nothing but 12 accumulators; floating-point operations per second.
#[cfg(target_arch = "x86_64")]
fn peak(target: &Target) -> f64 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    #[target_feature(enable = "avx2,fma")]
    fn narrow(steps: usize) {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx512f")]
    fn wide(steps: usize) {
        let mut sums = [_mm512_set1_ps(1.0); 12];
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    let steps = 400_000;
    // SAFETY: `target` was made for this machine, with AVX-512 iff it has 16 lanes.
    let best = time(|| unsafe { if target.machine.lanes == 16 { wide(steps) } else { narrow(steps) } }, 9).0;
    (steps * 12 * target.machine.lanes * 2) as f64 / best
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &Target) -> f64 {
    f64::NAN
}

/// Reads every byte once.
fn read(bytes: &[u8]) {
    let mut sums = [0u64; 32];
    for chunk in bytes.chunks_exact(256) {
        for (sum, word) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *sum ^= u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        }
    }
    black_box(sums);
}

fn gemm(target: &Target) -> Result<(), Error> {
    let shapes = [
        ((512, 512, 512), Around::Nothing),
        ((256, 1152, 384), Around::Nothing),
        ((256, 1152, 384), Around::Norm),
        ((256, 2048, 384), Around::NormGate),
        ((256, 384, 1024), Around::Residual),
        ((512, 5632, 1024), Around::Nothing),
        ((512, 5632, 1024), Around::NormGate),
        ((512, 1024, 2816), Around::Residual),
        ((4096, 704, 128), Around::Nothing),
        ((4096, 704, 128), Around::Norm),
        ((4096, 704, 128), Around::NormGate),
        ((4096, 128, 128), Around::Nothing),
        ((4096, 128, 128), Around::Residual),
    ];
    for dtype in [DType::F32, DType::BF16, DType::I8] {
        for (shape, around) in shapes {
            let kernel = case(target, shape, dtype, around);
            let mut runner = match runner(target, &kernel) {
                Ok(runner) => runner,
                Err(e) => {
                    println!("{e}");
                    continue;
                }
            };
            let flops = 2.0 * shape.0 as f64 * shape.1 as f64 * shape.2 as f64;
            let before = peak(target);
            let runs = (3e10 / flops).clamp(5.0, 60.0) as usize;
            let (best, median) = time_tasks(&mut runner, kernel.tasks, runs);
            let peak = peak(target).max(before);
            let around = match around {
                Around::Nothing => "plain",
                Around::NormGate => "norm, gate",
                Around::Norm => "norm",
                Around::Residual => "residual",
            };
            println!("{:4} {shape:?} {around}: {}", dtype.name(), rates(flops, (best, median), peak));
        }
    }
    Ok(())
}

/// Best and median rate of seconds for so many operations, and their shares of a peak.
fn rates(flops: f64, (best, median): (f64, f64), peak: f64) -> String {
    let (best, median) = (flops / best, flops / median);
    format!(
        "best {:.1} median {:.1} GFLOP/s = {:.1} % and {:.1} % of {:.1}",
        best / 1e9,
        median / 1e9,
        100.0 * best / peak,
        100.0 * median / peak,
        peak / 1e9
    )
}

fn product(target: &Target) -> Result<(), Error> {
    let cases = [
        (true, (1024, 1024, 512)),
        (true, (384, 2048, 1024)),
        (true, (128, 704, 4096)),
        (true, (1024, 2816, 2048)),
        (false, (512, 1024, 5632)),
        (false, (512, 1024, 3072)),
    ];
    for (transposed, shape) in cases {
        for tiles in [(96, 512), (192, 512), (256, 1024)] {
            let kernel = product_case(target, transposed, shape, tiles);
            let mut runner = runner(target, &kernel)?;
            runner.shared.push((3, 2));
            let flops = 2.0 * shape.0 as f64 * shape.1 as f64 * shape.2 as f64;
            let before = peak(target);
            let (best, median) = time_tasks(&mut runner, kernel.tasks, (1e10 / flops).clamp(5.0, 20.0) as usize);
            let peak = peak(target).max(before);
            let left = if transposed { "aᵀ" } else { "a" };
            println!("product {left} b {shape:?}, tasks of {tiles:?}: {}", rates(flops, (best, median), peak));
        }
    }
    Ok(())
}

fn gemv(target: &Target) -> Result<(), Error> {
    // Weights of 128 KiB to 128 MiB.
    for dtype in [DType::F32, DType::BF16, DType::I8] {
        for (m, n, k, name) in [
            (1, 512, 256, "L2"),
            (1, 2048, 1024, "L3"),
            (1, 16384, 2048, "DRAM"),
            (2, 2048, 1024, "L3"),
            (4, 2048, 1024, "L3"),
        ] {
            let kernel = case(target, (m, n, k), dtype, Around::Nothing);
            let mut runner = runner(target, &kernel)?;
            let bytes = runner.args[1].bytes().len();
            let repeat = ((64 << 20) / bytes).clamp(1, 200);
            let weights = runner.args[1].clone();
            let run = time(|| (0..repeat).for_each(|_| runner.run(0..kernel.tasks)), 9);
            let floor = time(|| (0..repeat).for_each(|_| read(weights.bytes())), 9);
            println!(
                "{:4} m = {m}, {n} x {k} ({name}, {} KiB): best {:.1} median {:.1} GB/s = {:.0} % and {:.0} % of reading",
                dtype.name(),
                bytes >> 10,
                (bytes * repeat) as f64 / run.0 / 1e9,
                (bytes * repeat) as f64 / run.1 / 1e9,
                100.0 * floor.0 / run.0,
                100.0 * floor.1 / run.1
            );
        }
    }
    Ok(())
}

/// Kernels of training that only move and add, in bytes read and written per second beside reading.
fn memory(target: &Target) -> Result<(), Error> {
    let nr = target.machine.nr;
    for flipped in [false, true] {
        let (n, k) = (2816, 1024);
        let mut func = Func::new("f");
        let mut b = Builder::new(&mut func);
        let mut w = b.arg("w", ArgRole::Input, Type::f32(if flipped { [k, n] } else { [n, k] }));
        if flipped {
            w = b.op(Opcode::Transpose, &[w], vec![Attr::Ints(vec![1, 0])]);
        }
        let packed = b.op(Opcode::Pack, &[w], vec![Attr::Int(nr as i64), Attr::Int(1)]);
        b.output("p", packed, false);
        let panels = n / nr;
        let kind = (Family::Pack, Tiling::Panels { panels_per_task: 8 });
        moved(target, if flipped { "pack, transposed" } else { "pack" }, kernel("k", kind, func, panels.div_ceil(8)))?;
    }
    for columns in [1024, 384] {
        let rows = 4096;
        let mut func = Func::new("f");
        let mut b = Builder::new(&mut func);
        let x = b.arg("x", ArgRole::Input, Type::f32([rows, columns]));
        let y = b.arg("y", ArgRole::Input, Type::f32([rows, columns]));
        let c = b.arg("c", ArgRole::Input, Type::f32([rows, 1]));
        let product = b.op(Opcode::Mul, &[x, y], vec![]);
        let scaled = b.op(Opcode::Mul, &[product, c], vec![]);
        let sum = b.op(Opcode::SumTo, &[scaled], vec![Attr::Ints(vec![columns as i64])]);
        b.output("s", sum, false);
        for columns_per_task in [64, columns / 2] {
            let kind = (Family::Columns, Tiling::Columns { columns_per_task });
            let name = format!("columns of {columns}, {columns_per_task} per task");
            moved(target, &name, kernel("k", kind, func.clone(), columns / columns_per_task))?;
        }
    }
    let (rows, columns, count) = (32768, 384, 4096);
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let table = b.arg("t", ArgRole::Input, Type::f32([rows, columns]));
    let ids = b.arg("i", ArgRole::Ids, Type::new(DType::I32, [count]));
    let terms = b.arg("r", ArgRole::Input, Type::f32([count, columns]));
    let sum = b.op(Opcode::ScatterAdd, &[table, ids, terms], vec![]);
    b.output("t", sum, false);
    let kind = (Family::ScatterAdd, Tiling::Rows { rows_per_task: rows / 32 });
    moved(target, "scatter_add, copying", kernel("k", kind, func, 32))
}

fn moved(target: &Target, name: &str, kernel: Kernel) -> Result<(), Error> {
    let mut runner = Runner::new(target, &kernel)?;
    for arg in &mut runner.args {
        // As integers these are ids far outside a table, which are clamped; the cost is the same.
        *arg = Aligned::from_f32(&random(arg.bytes().len() / 4, 1));
    }
    let bytes: usize = runner.args.iter().map(|a| a.bytes().len()).sum();
    let run = time(|| runner.run(0..kernel.tasks), 9);
    let floor = time(|| runner.args.iter().for_each(|a| read(a.bytes())), 9);
    println!(
        "{name}: best {:.1} median {:.1} GB/s = {:.0} % and {:.0} % of reading",
        bytes as f64 / run.0 / 1e9,
        bytes as f64 / run.1 / 1e9,
        100.0 * floor.0 / run.0,
        100.0 * floor.1 / run.1
    );
    Ok(())
}

/// Prints the assembly of a kernel.
fn assembly(target: &Target) -> Result<(), Error> {
    let kernel = case(target, (512, 512, 512), DType::F32, Around::Nothing);
    let text = emit_stage(&program(vec![kernel]), target, 0, Stage::Asm)?;
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}

fn compile(target: &Target) -> Result<(), Error> {
    for (shape, around) in
        [((512, 512, 512), Around::Nothing), ((250, 1150, 385), Around::Nothing), ((1, 512, 512), Around::Nothing)]
    {
        let kernel = case(target, shape, DType::F32, around);
        for _ in 0..3 {
            let start = Instant::now();
            Runner::new(target, &kernel)?;
            println!("compiling {shape:?}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let target = target(args.next().as_deref().unwrap_or("native"))?;
    if what == "asm" {
        assembly(&target)?;
    }
    if what.is_empty() || what == "compile" {
        compile(&target)?;
    }
    if what.is_empty() || what == "gemm" {
        gemm(&target)?;
    }
    if what.is_empty() || what == "product" {
        product(&target)?;
    }
    if what.is_empty() || what == "memory" {
        memory(&target)?;
    }
    if what.is_empty() || what == "gemv" {
        gemv(&target)?;
    }
    Ok(())
}
