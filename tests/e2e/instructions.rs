//! Instruction counts of the key kernels under callgrind: where clocks are noisy, a slower kernel still shows.
//!
//! A count is that of (many launches) - (one launch), so starting up and loading do not matter. What a process takes beside
//! its launches differs by some thousand instructions from run to run (seeds of hash maps, malloc's bins), so small kernels
//! are launched more often. The expected counts lie in instructions.txt; `make bless` rewrites them.
use crate::support::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fewest launches beyond the first.
const LAUNCHES: u64 = 2;
/// Instructions of all launches together beyond which two processes differ by less than one in a hundred.
const ENOUGH: u64 = 1_000_000;
/// How far a count may rise above the expected one.
const SLACK: f64 = 1.03;

/// The runtime-only build if there is one: it starts faster.
fn binary() -> PathBuf {
    std::env::var_os("RDC_RUNTIME_ONLY").map_or_else(|| env!("CARGO_BIN_EXE_rdc").into(), PathBuf::from)
}

fn count(artifact: &Path, kernel: &str, launches: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary())
        .args(["bench", artifact.to_str().unwrap(), "--threads", "1", "--kernel", kernel])
        .args(["--repeat", &launches.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let collected = text.lines().find_map(|l| l.split("Collected : ").nth(1)).unwrap();
    collected.trim().parse().unwrap()
}

#[test]
fn key_kernels_take_no_more_instructions() {
    if !cfg!(target_arch = "x86_64") {
        println!("this is no x86-64: instruction counts are not checked");
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        assert!(std::env::var_os("RDC_RUNTIME_ONLY").is_none(), "`make setup` installs valgrind");
        println!("valgrind is not installed: instruction counts are not checked");
        return;
    }
    // Valgrind knows no AVX-512.
    let fixed = ["examples/huginn.rdm", "--target", "x86-64-v3", "--context", "128", "--seq", "64", "--max-steps", "4"];
    let path = repository("tests/e2e/instructions.txt");
    let mut found = BTreeMap::new();
    for (dtype, kernels) in [
        ("f32", &["matmul_f32_64x", "matmul_f32_1x", "_attention_1x64", "decode_attention", "kv_write"][..]),
        ("bf16", &["matmul_bf16_64x", "matmul_bf16_1x"]),
        ("i8", &["matmul_i8_64x", "matmul_i8_1x"]),
    ] {
        let artifact = artifact(&[&fixed[..], &["--dtype", dtype], &tiny()].concat());
        let artifact = &artifact;
        let per_launch = move |kernel: &&str| {
            let one = count(artifact, kernel, 1);
            let of = |launches: u64| count(artifact, kernel, 1 + launches).saturating_sub(one) / launches;
            let rough = of(LAUNCHES);
            let launches = ENOUGH / rough.max(1_000);
            (kernel.to_string(), if launches > LAUNCHES { of(launches) } else { rough })
        };
        std::thread::scope(|scope| {
            let counts: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || per_launch(kernel))).collect();
            found.extend(counts.into_iter().map(|c| c.join().unwrap()));
        });
    }
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        let lines: String = found.iter().map(|(kernel, count)| format!("{kernel} {count}\n")).collect();
        std::fs::write(&path, lines).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(expected.lines().count(), found.len(), "kernels in instructions.txt: `make bless`");
    for line in expected.lines() {
        let (kernel, count) = line.rsplit_once(' ').unwrap();
        let (count, now): (u64, u64) = (count.parse().unwrap(), found[kernel]);
        assert!(now as f64 <= count as f64 * SLACK, "{kernel}: {now} instructions per launch, expected {count}");
    }
}
