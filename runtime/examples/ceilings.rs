//! Prints this machine's ceilings and the cost of a barrier: `cargo run --release -p rdc-runtime --example ceilings`.
use rdc_runtime::barrier::Barrier;
use rdc_runtime::probe::{Ceilings, read_bandwidth};
use rdc_runtime::threads::{Pool, default_threads};
use std::sync::Mutex;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for threads in 1..=default_threads() {
        let ceilings = Ceilings::measure(threads)?;
        println!("{threads} threads: {:.1} GFLOP/s", ceilings.flops / 1e9);
        for read in &ceilings.reads {
            println!("  {:5} {:>10} bytes: {:.1} GB/s", read.level, read.footprint, read.bytes_per_second / 1e9);
        }
        println!("  15 MB: {:.1} GB/s", read_bandwidth(threads, 15 << 20)? / 1e9);
        let mut pool = Pool::new(threads)?;
        let (barrier, rounds) = (Barrier::new(threads), 200_000u32);
        let epochs: Vec<Mutex<u64>> = (0..threads).map(|_| Mutex::new(0)).collect();
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            pool.run(&|thread| {
                if let Ok(mut epoch) = epochs[thread].lock() {
                    (0..rounds).for_each(|_| barrier.wait(thread, &mut epoch));
                }
            });
            best = best.min(start.elapsed().as_secs_f64() / f64::from(rounds));
        }
        println!("  barrier: {:.0} ns", best * 1e9);
        let start = Instant::now();
        (0..2000).for_each(|_| pool.run(&|_| ()));
        println!("  pool call: {:.1} us", start.elapsed().as_secs_f64() / 2000.0 * 1e6);
    }
    Ok(())
}
