//! Kernels of training against what the machine can do, one thread.
//!
//!     cargo run --release -p rdc-backend-cpu --features testing --example product_bench [-- asm]
use rdc_backend_cpu::testing::{Aligned, Runner, kernel, program, random};
use rdc_backend_cpu::{Error, Stage, emit_stage, target};
use rdc_ir::program::{Kernel, KernelKind, Target};
use rdc_ir::{ArgRole, Attr, Builder, Func, Opcode, Type};
use std::hint::black_box;

/// `acc + aᵀ b`, the accumulator in place.
fn case(target: &Target, (m, n, k): (usize, usize, usize), (rows, columns, inner): (usize, usize, usize)) -> Kernel {
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let left = b.arg("a", ArgRole::Input, Type::f32([k, m]));
    let right = b.arg("b", ArgRole::Input, Type::f32([k, n]));
    let sum = b.arg("c", ArgRole::Input, Type::f32([m, n]));
    let product = b.op(Opcode::Matmul, &[left, right], vec![Attr::Bool(true), Attr::Bool(false)]);
    let out = b.op(Opcode::Add, &[sum, product], vec![]);
    b.output("c", out, false);
    let rows_per_task = m.div_ceil(m.div_ceil(rows)).next_multiple_of(target.mr);
    let columns_per_task = n.div_ceil(n.div_ceil(columns)).next_multiple_of(target.nr);
    let kc = k.div_ceil(k.div_ceil(inner)).next_multiple_of(4);
    let kind = KernelKind::Product { m, n, k, rows_per_task, columns_per_task, kc };
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
    let best = time(|| unsafe { if target.lanes == 16 { wide(steps) } else { narrow(steps) } }, 9).0;
    (steps * 12 * target.lanes * 2) as f64 / best
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: &Target) -> f64 {
    f64::NAN
}

fn main() -> Result<(), Error> {
    let target = target("native")?;
    if std::env::args().nth(1).as_deref() == Some("asm") {
        let kernel = case(&target, (1024, 1024, 512), (96, 512, 256));
        let text = emit_stage(&program(&target, vec![kernel]), 0, Stage::Asm)?;
        println!("{}", String::from_utf8_lossy(&text));
        return Ok(());
    }
    for shape in [(1024, 1024, 512), (384, 2048, 1024), (128, 704, 4096)] {
        for tiles in
            [(96, 512, 256), (192, 256, 256), (192, 512, 192), (144, 384, 256), (256, 512, 256), (192, 512, 384)]
        {
            let kernel = case(&target, shape, tiles);
            let mut runner = Runner::new(&target, &kernel)?;
            for i in 0..3 {
                let count = runner.args[i].bytes().len() / 4;
                runner.args[i] = Aligned::from_f32(&random(count, i as u64 + 1));
            }
            runner.shared.push((3, 2));
            let flops = 2.0 * shape.0 as f64 * shape.1 as f64 * shape.2 as f64;
            let before = peak(&target);
            let (best, median) = time(|| runner.run(0..kernel.tasks), (4e9 / flops).clamp(5.0, 60.0) as usize);
            let peak = peak(&target).max(before);
            println!(
                "{shape:?} in {tiles:?}: best {:.1} median {:.1} GFLOP/s = {:.1} % and {:.1} % of {:.1}",
                flops / best / 1e9,
                flops / median / 1e9,
                100.0 * flops / best / peak,
                100.0 * flops / median / peak,
                peak / 1e9
            );
        }
    }
    Ok(())
}
