//! The order of the passes.
use crate::options::{Error, Options};
use crate::{cse, dce, hoist, layout, plan, simplify};
use rdc_ir::Module;
use rdc_ir::program::Program;
use std::time::{Duration, Instant};

/// The points at which an [`Observer`] sees the module, in order; each is the name of the pass before it. `lower` is the
/// module as given. At `plan` it sees the program.
pub const POINTS: &[&str] = &["lower", "simplify", "hoist", "cse", "dce", "layout", "hoist2", "cse2", "dce2", "plan"];

/// What there is after a pass. What hoisting saves shows in `rdc_ir::cost::func_cost` at `lower` and `hoist`.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// The module.
    pub module: &'a Module,
    /// The program, after the last pass.
    pub program: Option<&'a Program>,
    /// How long the pass took.
    pub elapsed: Duration,
}

/// Called after each pass with the name of the point.
pub type Observer<'o> = dyn FnMut(&str, Stage<'_>) + 'o;

/// Compiles a module: optimises it, then fuses its operations into kernels and plans memory and schedule.
///
/// Returns the module as it was planned, and the program. Timings, and the module at every point, go to the observer.
///
/// # Errors
/// If the module breaks a rule of the IR or uses what cannot be compiled.
pub fn compile(module: Module, options: &Options, observer: &mut Observer<'_>) -> Result<(Module, Program), Error> {
    let module = optimise(module, options, observer)?;
    let start = Instant::now();
    let program = plan::build(&module, options)?;
    observer("plan", Stage { module: &module, program: Some(&program), elapsed: start.elapsed() });
    Ok((module, program))
}

/// Optimises a module, up to and including the layout of its weights. Timings, and the module at every point, go to the
/// observer.
///
/// # Errors
/// If the module breaks a rule of the IR.
pub fn optimise(module: Module, options: &Options, observer: &mut Observer<'_>) -> Result<Module, Error> {
    let trips = options.expected_trips;
    let nr = options.target.nr;
    let mut run = Run { module, observer };

    run.pass("lower", |_| ())?;
    run.pass("simplify", |m| simplify::run(m, trips))?;
    run.pass("hoist", hoist::run)?;
    run.pass("cse", cse::run)?;
    run.pass("dce", dce::run)?;
    run.pass("layout", |m| layout::run(m, options.dtype, nr))?;
    run.pass("hoist2", hoist::run)?;
    run.pass("cse2", cse::run)?;
    run.pass("dce2", dce::run)?;
    Ok(run.module)
}

struct Run<'a, 'o> {
    module: Module,
    observer: &'a mut Observer<'o>,
}

impl Run<'_, '_> {
    /// Runs a pass, verifies what it leaves, and shows it.
    fn pass(&mut self, name: &'static str, pass: impl FnOnce(&mut Module)) -> Result<(), Error> {
        let start = Instant::now();
        pass(&mut self.module);
        let elapsed = start.elapsed();
        match rdc_ir::verify::verify_text(&self.module) {
            Some(details) => Err(Error::Invalid { pass: name, details }),
            None => {
                (self.observer)(name, Stage { module: &self.module, program: None, elapsed });
                Ok(())
            }
        }
    }
}
