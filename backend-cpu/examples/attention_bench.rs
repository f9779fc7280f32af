//! Attention kernels against what the machine can do: f32 multiply-adds per second for a chunk and for the derivative (of
//! the pairs that are seen), read bandwidth for one token.
//!
//!     cargo run --release -p rdc-backend-cpu --features testing --example attention_bench [-- chunk|grad|token|asm]
use rdc_backend_cpu::testing::{Aligned, Runner, kernel, program, random};
use rdc_backend_cpu::{Error, Stage, emit_stage, target};
use rdc_ir::program::{Kernel, Tiling};
use rdc_ir::{Func, Type};
use rdc_passes::fuse::body::Family;
use std::hint::black_box;
use std::io::Write;

/// Heads and their size.
const HEADS: usize = 4;

/// Whether keys and values lie in caches or side by side.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Cache,
    Plain,
}

fn chunk(
    (s, d): (usize, usize),
    causal: bool,
    keys: Keys,
    (q_rows, kv_block): (usize, usize),
) -> Result<Kernel, Box<dyn std::error::Error>> {
    let text = format!(
        r#"func "f"("q" input = %q: f32[1, {s}, {HEADS}, {d}], "k" input = %k: f32[1, {s}, {HEADS}, {d}],
        "v" input = %v: f32[1, {s}, {HEADS}, {d}], "pos" position = %pos: i32[1]) {{
        %a = attention %q, %k, %v, %pos {{causal = {causal}, scale = 0.125}} : f32[1, {s}, {HEADS}, {d}]
        yield "a" = %a }}"#
    );
    let mut func = rdc_ir::parse::parse_func(&text)?;
    if keys == Keys::Cache {
        views(&mut func);
    }
    let kind = (Family::Attention, Tiling::Queries { q_rows, kv_block });
    Ok(kernel("k", kind, func, HEADS * s.div_ceil(q_rows)))
}

fn grad((s, d): (usize, usize), causal: bool, q_rows: usize) -> Result<Kernel, Box<dyn std::error::Error>> {
    let ty = format!("f32[1, {s}, {HEADS}, {d}]");
    let text = format!(
        r#"func "f"("q" input = %q: {ty}, "k" input = %k: {ty}, "v" input = %v: {ty}, "dout" input = %o: {ty},
        "pos" position = %pos: i32[1]) {{
        %dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %o {{causal = {causal}, scale = 0.125}} : {ty}, {ty}, {ty}
        yield "dq" = %dq, "dk" = %dk, "dv" = %dv }}"#
    );
    let func = rdc_ir::parse::parse_func(&text)?;
    let kind = (Family::AttentionGrad, Tiling::Queries { q_rows, kv_block: 128 });
    Ok(kernel("k", kind, func, HEADS))
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
    Ok(kernel("k", (Family::DecodeAttention, Tiling::Whole), func, HEADS))
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
    let floats = kernel.func.args.len() - 1;
    for i in 0..floats {
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

/// Prints a kernel's rate for `products` products of all pairs of a query and a key that it sees.
fn report(name: &str, kernel: &Kernel, (s, d): (usize, usize), causal: bool, products: usize) -> Result<(), Error> {
    // The clock's speed wanders: the peak before and after.
    let before = peak();
    let seconds = time(kernel)?;
    let peak = before.max(peak());
    let pairs = if causal { s * (s + 1) / 2 } else { s * s };
    let rate = (HEADS * pairs * d * 2 * products) as f64 / seconds;
    println!(
        "{name} S {s} D {d} causal {causal}: {:.1} GFLOP/s, {:.0} % of peak {:.1}",
        rate / 1e9,
        100.0 * rate / peak,
        peak / 1e9
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let what = std::env::args().nth(1);
    let wanted = |name: &str| what.as_deref().is_none_or(|what| what == name);
    if what.as_deref() == Some("asm") {
        let program = program(vec![grad((512, 64), true, 48)?]);
        std::io::stdout().write_all(&emit_stage(&program, &target("native")?, 0, Stage::Asm)?)?;
        return Ok(());
    }
    let sizes = [(128, 32), (256, 32), (512, 32), (128, 64), (256, 64), (512, 64)];
    let masks =
        sizes.map(|size| (size, true)).into_iter().chain([((512, 64), false), ((512, 96), true), ((512, 128), true)]);
    for (size, causal) in masks {
        if wanted("chunk") {
            for tiles in [(48, 64), (96, 128)] {
                report(&format!("chunk {tiles:?}"), &chunk(size, causal, Keys::Cache, tiles)?, size, causal, 2)?;
            }
            report("chunk (96, 128), plain", &chunk(size, causal, Keys::Plain, (96, 128))?, size, causal, 2)?;
        }
        if wanted("grad") {
            for q_rows in [48, 96] {
                report(&format!("grad {q_rows}"), &grad(size, causal, q_rows)?, size, causal, 5)?;
            }
        }
    }
    if wanted("grad") {
        report("grad 48", &grad((4096, 64), true, 48)?, (4096, 64), true, 5)?;
    }
    for (t, d) in [(256, 64), (4096, 64), (4096, 96)] {
        if wanted("token") {
            let seconds = time(&token(t, d)?)?;
            let bytes = (2 * HEADS * t * d * 4) as f64;
            println!("one token, T {t} D {d}: {:.1} GB/s", bytes / seconds / 1e9);
        }
    }
    Ok(())
}
