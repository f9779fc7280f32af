//! Debian ships the MLIR C API only as static archives (`libMLIRCAPI*.a`), while mlir-sys in shared mode asks for
//! `-lMLIR-C`. This writes a linker script of that name which pulls the archives in and resolves the rest from
//! libMLIR.so and libLLVM.so, so that exactly one copy of each library is loaded.
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MLIR_SYS_220_PREFIX");
    let prefix = env::var("MLIR_SYS_220_PREFIX").unwrap_or_else(|_| "/usr/lib/llvm-22".into());
    let lib_dir = PathBuf::from(prefix).join("lib");
    let mut archives = Vec::new();
    for entry in fs::read_dir(&lib_dir).map_err(|e| format!("{}: {e} (run `make setup`)", lib_dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("libMLIRCAPI") && name.ends_with(".a") {
            archives.push(path.display().to_string());
        }
    }
    archives.sort();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let dir = lib_dir.display();
    fs::write(
        out.join("libMLIR-C.so"),
        format!("GROUP ( {} )\nINPUT ( {dir}/libMLIR.so {dir}/libLLVM.so )\n", archives.join(" ")),
    )?;
    println!("cargo:rustc-link-search=native={}", out.display());
    Ok(())
}
