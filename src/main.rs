//! The command line of rdc. It only calls: compiling is `rdc-frontend`, `rdc-passes` and `rdc-backend-cpu`; artifacts and
//! running them are `rdc-runtime`.
#[cfg(feature = "compiler")]
mod cache;
mod cli;
mod commands;
mod files;
mod fingerprint;
mod interrupt;
mod kv;
#[cfg(feature = "compiler")]
mod listing;
mod pipeline;
mod plot;
mod progress;
mod report;
mod table;
#[cfg(feature = "compiler")]
mod training;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let what = info.payload_as_str().unwrap_or("unknown").lines().next().unwrap_or_default();
        eprintln!("error: this is a bug in rdc{place}: {what}");
    }));
    interrupt::install();
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// One message on stderr: the error and what it came from. Diagnostics of a model text are already rendered.
fn report(error: &anyhow::Error) {
    #[cfg(feature = "compiler")]
    if let Some(rendered) = error.downcast_ref::<pipeline::front::Rendered>() {
        eprint!("{rendered}");
        return;
    }
    eprintln!("error: {error:#}");
}
