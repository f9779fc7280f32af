//! Attention kernels against what the machine can do: f32 multiply-adds per second for a chunk, read bandwidth for one
//! token.
//!
//!     cargo run --release -p rdc-backend-cpu --features testing --example attention_bench [-- asm]
use rdc_backend_cpu::testing::{Aligned, Runner, kernel, program, random};
use rdc_backend_cpu::{Error, Stage, emit_stage, target};
use rdc_ir::program::{Kernel, KernelKind};
use rdc_ir::{Func, Type};
use std::hint::black_box;
use std::io::Write;

/// Heads and their size.
const HEADS: usize = 4;

fn chunk(
    s: usize,
    d: usize,
    causal: bool,
    (q_rows, kv_block): (usize, usize),
) -> Result<Kernel, Box<dyn std::error::Error>> {
    let text = format!(
        r#"func "f"("q" input = %q: f32[1, {s}, {HEADS}, {d}], "k" input = %k: f32[1, {s}, {HEADS}, {d}],
        "v" input = %v: f32[1, {s}, {HEADS}, {d}], "pos" position = %pos: i32[1]) {{
        %a = attention %q, %k, %v, %pos {{causal = {causal}, scale = 0.125}} : f32[1, {s}, {HEADS}, {d}]
        yield "a" = %a }}"#
    );
    let mut func = rdc_ir::parse::parse_func(&text)?;
    views(&mut func);
    let kind = KernelKind::Attention { q_rows, kv_block };
    Ok(kernel("k", kind, func, HEADS * s.div_ceil(q_rows)))
}

fn token(t: usize, d: usize) -> Result<Kernel, Box<dyn std::error::Error>> {
    let text = format!(
        r#"func "f"("q" input = %q: f32[1, 1, {HEADS}, {d}], "k" input = %k: f32[1, {t}, {HEADS}, {d}],
        "v" input = %v: f32[1, {t}, {HEADS}, {d}], "pos" position = %pos: i32[1]) {{
        %a = attention %q, %k, %v, %pos {{causal = false, scale = 0.125}} : f32[1, 1, {HEADS}, {d}]
        yield "a" = %a }}"#
    );
    let mut func = rdc_ir::parse::parse_func(&text)?;
    views(&mut func);
    Ok(kernel("k", KernelKind::DecodeAttention, func, HEADS))
}

/// Keys and values lie in caches.
fn views(func: &mut Func) {
    let args = func.regions[func.body].args.clone();
    for &view in &args[1..3] {
        func.values[view].ty = Type { cache: true, ..func.values[view].ty.clone() };
    }
}

/// CPU time of this thread in seconds: other work on the machine does not count.
fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Seconds of a launch: the fastest run of each task.
fn time(kernel: &Kernel) -> Result<f64, Error> {
    let mut runner = Runner::new(&target("native")?, kernel)?;
    for i in 0..3 {
        let n = runner.args[i].bytes().len() / 4;
        runner.args[i] = Aligned::from_f32(&random(n, i as u64 + 1));
    }
    let mut best = vec![f64::INFINITY; kernel.tasks];
    let start = cpu_seconds();
    while start + 0.2 > cpu_seconds() {
        for (task, best) in best.iter_mut().enumerate() {
            let launch = cpu_seconds();
            runner.run(task..task + 1);
            *best = best.min(cpu_seconds() - launch);
        }
    }
    Ok(best.iter().sum())
}

/// Multiply-adds per second that depend on nothing but registers.
#[cfg(target_arch = "x86_64")]
fn peak() -> f64 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    #[target_feature(enable = "avx2,fma")]
    fn run(steps: usize) {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    let steps = 100_000;
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = cpu_seconds();
        // SAFETY: `native` is an error without AVX2 and FMA, and every run begins with a kernel for it.
        unsafe { run(steps) };
        best = best.min(cpu_seconds() - start);
    }
    (steps * 12 * 16) as f64 / best
}

#[cfg(not(target_arch = "x86_64"))]
fn peak() -> f64 {
    f64::NAN
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("asm") {
        let program = program(&target("native")?, vec![chunk(512, 64, true, (48, 64))?]);
        std::io::stdout().write_all(&emit_stage(&program, 0, Stage::Asm)?)?;
        return Ok(());
    }
    for (s, d, causal) in
        [(256, 64, true), (512, 64, true), (512, 64, false), (512, 96, true), (512, 128, true), (256, 32, true)]
    {
        for tiles in [(32, 64), (64, 64), (48, 128), (96, 128)] {
            let seconds = time(&chunk(s, d, causal, tiles)?)?;
            let pairs = if causal { s * (s + 1) / 2 } else { s * s };
            let flops = (HEADS * pairs * d * 4) as f64;
            println!(
                "S {s} D {d} causal {causal} tiles {tiles:?}: {:.1} GFLOP/s, {:.0} % of peak",
                flops / seconds / 1e9,
                100.0 * flops / seconds / peak()
            );
        }
    }
    for (t, d) in [(256, 64), (4096, 64), (4096, 96)] {
        let seconds = time(&token(t, d)?)?;
        let bytes = (2 * HEADS * t * d * 4) as f64;
        println!("one token, T {t} D {d}: {:.1} GB/s", bytes / seconds / 1e9);
    }
    Ok(())
}
