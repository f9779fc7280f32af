//! The order of the passes.
use crate::options::{Error, Options};
use crate::{cse, dce, hoist, layout, simplify};
use rdc_ir::program::Program;
use rdc_ir::{Func, Module, Opcode, RegionId, Type};
use std::time::{Duration, Instant};

/// The points at which an [`Observer`] sees the module, in order; each is the name of the pass before it. `lower` is the
/// module as given. At `plan` it sees the program.
pub const POINTS: &[&str] = &["lower", "simplify", "hoist", "cse", "dce", "layout", "hoist2", "cse2", "dce2", "plan"];

/// What there is after a pass.
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

/// Floating-point operations of one iteration of each loop of a function, in order. Loops inside count once per iteration of the
/// outer one. What depends on parameters only counts as well, as long as it stands in the loop.
pub fn iteration_flops(func: &Func) -> Vec<u64> {
    let loops = func.walk().into_iter().filter(|&(_, op)| func.ops[op].opcode == Opcode::Loop);
    loops.flat_map(|(_, op)| func.ops[op].regions.clone()).map(|body| region_flops(func, body)).collect()
}

fn region_flops(func: &Func, region: RegionId) -> u64 {
    let flops = func.regions[region].ops.iter().map(|&op| {
        let op = &func.ops[op];
        let operands: Vec<&Type> = op.operands.iter().map(|&v| func.ty(v)).collect();
        let results: Vec<&Type> = op.results.iter().map(|&v| func.ty(v)).collect();
        let own = (op.opcode.info().flops)(op, &operands, &results);
        op.regions.iter().fold(own, |sum, &inner| sum.saturating_add(region_flops(func, inner)))
    });
    flops.fold(0, u64::saturating_add)
}
