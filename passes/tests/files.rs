//! File tests: every `.rdir` file below this folder holds a module and, after a line `; ---`, what the pass named by the
//! folder makes of it; in `positions`, what the analysis of that name says of each function. `BLESS=1 cargo test -p rdc-passes --test
//! files` writes what comes out into the files.
//!
//! A first line `; dtype bf16` or `; dtype i8` chooses the type of the weights, `; operands bf16` that of what contractions take. Loops
//! are expected to run 8 times and panels are 4 wide.
#![allow(clippy::unwrap_used)]
mod common;

use rdc_ir::Module;
use rdc_ir::positions::analyse;
use rdc_passes::{
    OperandType, Options, WeightType, cse, dce, differentiate, expand, fuse, hoist, layout, narrow, optimise, simplify,
};
use std::path::{Path, PathBuf};

const SEPARATOR: &str = "; ---\n";

fn options(text: &str) -> Options {
    let dtype = match text.lines().next() {
        Some("; dtype bf16") => WeightType::Bf16,
        Some("; dtype i8") => WeightType::I8,
        _ => WeightType::F32,
    };
    let operands = match text.lines().next() {
        Some("; operands bf16") => OperandType::Bf16,
        _ => OperandType::F32,
    };
    Options { operands, ..common::options(dtype) }
}

fn apply(pass: &str, mut module: Module, options: &Options) -> String {
    match pass {
        "simplify" => {
            simplify::run(&mut module, options.expected_trips);
            dce::run(&mut module);
        }
        "hoist" => hoist::run(&mut module),
        "cse" => cse::run(&mut module),
        "dce" => dce::run(&mut module),
        "differentiate" => gradient(&mut module, rdc_ir::training::Remat::None),
        "differentiate_iteration" => gradient(&mut module, rdc_ir::training::Remat::Iteration),
        "fuse_loss" => {
            expand::fuse_loss(&mut module);
            dce::run(&mut module);
        }
        "expand" => {
            expand::run(&mut module, &*options.machine);
            cse::run(&mut module);
            dce::run(&mut module);
        }
        "narrow" => narrow::run(&mut module),
        "layout" => {
            layout::run(&mut module, options.dtype, options.machine.panel());
            dce::run(&mut module);
        }
        "layout_training" => {
            layout::run_for_training(&mut module, options.machine.panel());
            dce::run(&mut module);
        }
        "fuse" => return fuse::run(&module, &*options.machine).unwrap().to_string(),
        "pipeline" => module = optimise(module, options, &mut |_, _| {}).unwrap(),
        other => panic!("no pass is called {other}"),
    }
    module.to_string()
}

/// The gradient without the loss function, for four steps with gradient at most.
fn gradient(module: &mut Module, remat: rdc_ir::training::Remat) {
    let options = differentiate::Options { max_grad_steps: 4, remat, ..Default::default() };
    differentiate::run(module, &options).unwrap();
    module.funcs.retain(|f| f.name.starts_with("grad"));
    dce::run(module);
}

fn files() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files = Vec::new();
    for folder in std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let pass = folder.file_name().unwrap().to_string_lossy().into_owned();
        let entries = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
        files.extend(entries.filter(|p| p.extension().is_some_and(|e| e == "rdir")).map(|p| (pass.clone(), p)));
    }
    files.sort();
    files
}

#[test]
fn passes_give_the_text_in_the_files() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for (pass, path) in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let (input, expected) = text.split_once(SEPARATOR).unwrap_or((&text, ""));
        let module = rdc_ir::parse(input).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(rdc_ir::verify::verify_text(&module), None, "{}: the input is not valid", path.display());
        let found = if pass == "positions" {
            let line = |f: &rdc_ir::Func| {
                format!("{}: {}\n", f.name, analyse(f, false).to_string().trim_end().replace('\n', "\n  "))
            };
            module.funcs.iter().map(line).collect()
        } else {
            let found = apply(&pass, module, &options(input));
            let module = rdc_ir::parse(&found).unwrap_or_else(|e| panic!("{}: {e}\n{found}", path.display()));
            assert_eq!(rdc_ir::verify::verify_text(&module), None, "{}: invalid result:\n{found}", path.display());
            found
        };
        if bless {
            std::fs::write(&path, format!("{input}{SEPARATOR}{found}")).unwrap();
        } else if found != expected {
            wrong.push(format!("{}: found\n{found}\nexpected\n{expected}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
