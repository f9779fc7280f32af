//! The machines that code is generated for, and the shape of the matmul micro-kernel on each.
use crate::Error;
use rdc_passes::tile::Cpu;

/// What code is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name on the command line, one of [`TARGETS`].
    pub name: String,
    /// The machine, as passes see it.
    pub machine: Cpu,
    /// The instructions.
    pub isa: Isa,
}

/// An instruction set, as LLVM and whoever loads code know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isa {
    /// LLVM target triple.
    pub triple: String,
    /// LLVM processor name.
    pub cpu: String,
    /// LLVM feature string.
    pub features: String,
    /// CPU features that must be present to run the code, by their `std::arch` names (`avx2`, `fma`).
    pub requires: Vec<String>,
}

impl Isa {
    /// The architecture, by its name in `std::env::consts`.
    pub fn architecture(&self) -> &str {
        self.triple.split('-').next().unwrap_or_default()
    }
}

/// The names that [`target`] accepts.
pub const TARGETS: &[&str] = &["native", "x86-64-v3", "x86-64-v4", "aarch64"];

/// LLVM feature names and `std::arch` names of what x86-64-v3 code may use.
const V3: &[(&str, &str)] = &[
    ("sse3", "sse3"),
    ("ssse3", "ssse3"),
    ("sse4.1", "sse4.1"),
    ("sse4.2", "sse4.2"),
    ("popcnt", "popcnt"),
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("fma", "fma"),
    ("bmi", "bmi1"),
    ("bmi2", "bmi2"),
    ("lzcnt", "lzcnt"),
    ("movbe", "movbe"),
    ("f16c", "f16c"),
];
/// What x86-64-v4 code may use besides.
const V4: &[(&str, &str)] = &[
    ("avx512f", "avx512f"),
    ("avx512bw", "avx512bw"),
    ("avx512cd", "avx512cd"),
    ("avx512dq", "avx512dq"),
    ("avx512vl", "avx512vl"),
];

/// The target of that name. `native` looks at the machine: instruction set, scheduling model and cache sizes.
///
/// Features are listed in full, and the processor name only tunes, so [`Isa::requires`] is exactly what code may use.
///
/// # Errors
/// [`Error::UnknownTarget`], or [`Error::UnsupportedHost`] if `native` lacks AVX2 and FMA (x86-64) or is another
/// architecture than x86-64 and AArch64.
pub fn target(name: &str) -> Result<Target, Error> {
    match name {
        "x86-64-v3" => Ok(x86(name, "x86-64-v3", false)),
        "x86-64-v4" => Ok(x86(name, "x86-64-v4", true)),
        "aarch64" => Ok(aarch64(name, "generic")),
        "native" => native(),
        _ => Err(Error::UnknownTarget { name: name.into() }),
    }
}

/// 6 × 16 fills 12 of 16 registers with accumulators; with AVX-512, 12 × 32 fills 24 of 32 (LLVM spills some of the 28 of
/// 14 × 32).
fn x86(name: &str, cpu: &str, avx512: bool) -> Target {
    let features: Vec<_> = V3.iter().chain(if avx512 { V4 } else { &[] }).collect();
    let machine = match avx512 {
        true => Cpu { lanes: 16, mr: 12, nr: 32, l1: 32 << 10, l2: 1 << 20 },
        false => Cpu { lanes: 8, mr: 6, nr: 16, l1: 32 << 10, l2: 256 << 10 },
    };
    let isa = Isa {
        triple: "x86_64-unknown-linux-gnu".into(),
        cpu: cpu.into(),
        features: features.iter().map(|f| format!("+{}", f.0)).collect::<Vec<_>>().join(","),
        requires: features.iter().map(|f| f.1.to_string()).collect(),
    };
    Target { name: name.into(), machine, isa }
}

/// 6 × 16 fills 24 of 32 registers with accumulators.
fn aarch64(name: &str, cpu: &str) -> Target {
    let isa = Isa {
        triple: "aarch64-unknown-linux-gnu".into(),
        cpu: cpu.into(),
        features: "+neon".into(),
        requires: vec!["neon".into()],
    };
    Target { name: name.into(), machine: Cpu { lanes: 4, mr: 6, nr: 16, l1: 32 << 10, l2: 512 << 10 }, isa }
}

#[cfg(target_arch = "x86_64")]
fn native() -> Result<Target, Error> {
    use std::arch::is_x86_feature_detected as has;
    let v3 = has!("avx2") && has!("fma") && has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("movbe");
    if !v3 || !has!("f16c") || !has!("popcnt") {
        return Err(Error::UnsupportedHost { reason: "it lacks AVX2, FMA or another feature of x86-64-v3".into() });
    }
    let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    Ok(with_host(x86("native", "", avx512)))
}

#[cfg(target_arch = "aarch64")]
fn native() -> Result<Target, Error> {
    Ok(with_host(aarch64("native", "")))
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn native() -> Result<Target, Error> {
    Err(Error::UnsupportedHost { reason: format!("its architecture is {}", std::env::consts::ARCH) })
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn with_host(mut target: Target) -> Target {
    target.isa.cpu = inkwell::targets::TargetMachine::get_host_cpu_name().to_string_lossy().into_owned();
    let machine = &mut target.machine;
    machine.l1 = cache_bytes(1).unwrap_or(machine.l1);
    machine.l2 = cache_bytes(2).unwrap_or(machine.l2);
    target
}

/// Size of the first core's data or unified cache of a level, where the system tells.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn cache_bytes(level: usize) -> Option<usize> {
    let read = |index: usize, file: &str| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}")).ok()
    };
    for index in 0..8 {
        if read(index, "level")?.trim() != level.to_string() || read(index, "type")?.trim() == "Instruction" {
            continue;
        }
        let size = read(index, "size")?;
        return Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_target_exists_and_keeps_the_rules() {
        for name in TARGETS {
            let t = target(name).unwrap();
            assert_eq!(t.name, *name);
            let Cpu { lanes, nr, l1, l2, .. } = t.machine;
            assert_eq!(nr % (2 * lanes), 0, "{name}");
            assert!(l1 >= 16 << 10 && l2 > l1, "{name}");
            assert!(t.isa.triple.starts_with(t.isa.architecture()) && !t.isa.requires.is_empty(), "{name}");
        }
        assert!(matches!(target("z80"), Err(Error::UnknownTarget { .. })));
    }
}
