//! `rdc compile`: an artifact, or a look at a stage of the way there.
use crate::cli::{CompileArgs, Emit};
use crate::files;
use crate::pipeline::build::{self, Built};
use crate::pipeline::emit;
use crate::pipeline::front::{self, Shapes, Text};
use crate::progress::Progress;
use crate::table::{self, Table};
use crate::training::Training;
use anyhow::{Context, Result, bail, ensure};
use rdc_backend_cpu::Stage;
use rdc_passes::pipeline::{POINTS, TRAINING_POINTS};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs the subcommand.
pub fn run(args: &CompileArgs, quiet: bool) -> Result<()> {
    if let Some(after) = &args.after {
        ensure!(args.emit == Some(Emit::Ir), "--after belongs to --emit ir");
        let points = if args.train { TRAINING_POINTS } else { POINTS };
        if after == "help" {
            println!("{}", points.join("\n"));
            return Ok(());
        }
        ensure!(points.contains(&after.as_str()), "there is no pass `{after}`; there are {}", points.join(", "));
    }
    let progress = Progress::start(quiet, "reading");
    let output = args.output.clone().unwrap_or_else(|| args.model.with_extension("rda"));
    if args.emit.is_none() && output.is_dir() {
        bail!("{} is a folder; -o names the artifact", output.display());
    }
    let start = Instant::now();
    let mut times = vec![];
    let training = args.train.then(|| Training::of_flags(&args.training, None)).transpose()?;
    let shapes = Shapes { training, ..Shapes::default() };
    let front = front::lower(Text::read(&args.model)?, &args.options, &shapes)?;
    times.push(("front end".to_string(), start.elapsed()));
    progress.stage("optimising");
    let mut seen: Option<String> = None;
    let mut built = build::program(front, &mut |point, stage| {
        if args.after.as_deref() == Some(point) {
            seen = Some(stage.fused.map_or_else(|| stage.module.to_string(), ToString::to_string));
        }
        times.push((point.to_string(), stage.elapsed));
    })?;
    match args.emit {
        Some(stage) => {
            drop(progress);
            show(stage, &built, seen.as_deref(), args.output.as_deref())?;
        }
        None => {
            let generating = Instant::now();
            let image = emit::code(&mut built, &progress)?;
            times.push(("code".to_string(), generating.elapsed()));
            let writing = Instant::now();
            emit::write(&built, &image, &output, &progress)?;
            times.push(("weights".to_string(), writing.elapsed()));
        }
    }
    if args.timing {
        let mut table = Table::new(&["stage", "time"]);
        times.iter().for_each(|(name, time)| table.row(vec![name.clone(), table::seconds(time.as_secs_f64())]));
        table.row(vec!["total".into(), table::seconds(start.elapsed().as_secs_f64())]);
        eprint!("{table}");
    }
    Ok(())
}

/// Prints a stage, or writes one file per kernel into a folder.
fn show(emit: Emit, built: &Built, seen: Option<&str>, folder: Option<&Path>) -> Result<()> {
    let whole = match emit {
        Emit::Ir => Some(("ir", seen.map_or_else(|| built.module.to_string(), str::to_string))),
        Emit::Program => Some(("program", crate::listing::program(&built.meta.program))),
        _ => None,
    };
    if let Some((extension, text)) = whole {
        return match folder {
            None => print(text.as_bytes()),
            Some(folder) => files::write(&file(folder, &built.meta.program.name, extension)?, text.as_bytes()),
        };
    }
    let (stage, extension) = match emit {
        Emit::Mlir => (Stage::Mlir, "mlir"),
        Emit::Llvm => (Stage::Llvm, "ll"),
        Emit::Asm => (Stage::Asm, "s"),
        _ => (Stage::Obj, "o"),
    };
    let Some(folder) = folder else {
        ensure!(stage != Stage::Obj, "--emit obj needs -o FOLDER");
        for index in 0..built.meta.program.kernels.len() {
            print(&rdc_backend_cpu::emit_stage(&built.meta.program, &built.target, index, stage)?)?;
        }
        return Ok(());
    };
    for (index, kernel) in built.meta.program.kernels.iter().enumerate() {
        let bytes = rdc_backend_cpu::emit_stage(&built.meta.program, &built.target, index, stage)?;
        files::write(&file(folder, &kernel.name, extension)?, &bytes)?;
    }
    Ok(())
}

fn file(folder: &Path, name: &str, extension: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.join(format!("{name}.{extension}")))
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    if bytes.last() != Some(&b'\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}
