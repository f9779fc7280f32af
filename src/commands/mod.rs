//! The subcommands, one file each, and what they share.
mod bench;
#[cfg(feature = "compiler")]
mod compile;
mod eval;
#[cfg(feature = "compiler")]
mod grad;
mod inspect;
mod run;
mod train;

use crate::cli::{Cli, Command};
use anyhow::Result;
use clap::CommandFactory;

/// Runs what the command line says.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(&args, cli.quiet),
        Command::Run(args) => run::run(&args, cli.quiet),
        #[cfg(feature = "compiler")]
        Command::Grad(args) => grad::run(&args, cli.quiet),
        Command::Train(args) => train::run(args, cli.quiet),
        Command::Eval(args) => eval::run(&args, cli.quiet),
        Command::Inspect(args) => inspect::run(&args, cli.quiet),
        Command::Bench(args) => bench::run(&args, cli.quiet),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rdc", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Ascending line numbers for people: `12, 14-17`.
fn line_ranges(lines: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &line in lines {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == line => *end = line,
            _ => ranges.push((line, line)),
        }
    }
    let show = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    ranges.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_join_into_ranges() {
        assert_eq!(line_ranges(&[3, 4, 5, 9, 11, 12]), "3-5, 9, 11-12");
        assert_eq!(line_ranges(&[]), "");
    }
}
