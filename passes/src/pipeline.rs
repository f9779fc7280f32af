//! The order of the passes.
use crate::differentiate;
use crate::fuse::FusedModule;
use crate::options::{Error, Options, Training, WeightType};
use crate::{cse, dce, expand, fuse, hoist, layout, optimizer, plan, simplify};
use rdc_ir::program::Program;
use rdc_ir::training::Remat;
use rdc_ir::{Loc, Module};
use std::time::{Duration, Instant};

/// The points at which an [`Observer`] sees the module, in order; each is the name of the pass before it. `lower` is the
/// module as given. At `fuse` it sees the kernels, at `plan` the program.
pub const POINTS: &[&str] =
    &["lower", "simplify", "hoist", "cse", "dce", "layout", "hoist2", "cse2", "dce2", "fuse", "plan"];

/// The points if the module is compiled for training.
pub const TRAINING_POINTS: &[&str] = &[
    "lower",
    "simplify",
    "hoist",
    "cse",
    "dce",
    "fuse_loss",
    "differentiate",
    "optimizer",
    "expand",
    "cse2",
    "hoist2",
    "dce2",
    "layout",
    "hoist3",
    "cse3",
    "dce3",
    "fuse",
    "plan",
];

/// Parts of what would be left for values that are kept, tried as budgets where they do not fit.
const BUDGETS: &[f64] = &[1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.15];

/// What is kept, and the bytes that [`Remat::Auto`] may keep.
#[derive(Clone, Copy)]
struct Keep {
    remat: Remat,
    budget: usize,
}

/// Keeps all that costs more to compute again.
const WORTH_IT: Keep = Keep { remat: Remat::Auto, budget: usize::MAX };
/// Keeps the least.
const LEAST: Keep = Keep { remat: Remat::Iteration, budget: usize::MAX };

/// What there is after a pass. What hoisting saves shows in `rdc_ir::cost::func_cost` at `lower` and `hoist`.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// The module.
    pub module: &'a Module,
    /// The kernels that its operations are grouped into, after `fuse`.
    pub fused: Option<&'a FusedModule>,
    /// The program, after the last pass.
    pub program: Option<&'a Program>,
    /// How long the pass took.
    pub elapsed: Duration,
}

/// Called after each pass with the name of the point.
pub type Observer<'o> = dyn FnMut(&str, Stage<'_>) + 'o;

/// Compiles a module: optimises it, for training differentiates it, then fuses its operations into kernels and plans memory and
/// schedule.
///
/// Returns the module as it was planned, and the program. Timings, and the module at every point, go to the observer.
///
/// # Errors
/// If the module breaks a rule of the IR or uses what cannot be compiled, or if a training step does not fit into the memory
/// that the options give it.
pub fn compile(module: Module, options: &Options, observer: &mut Observer<'_>) -> Result<(Module, Program), Error> {
    let module = optimise(module, options, observer)?;
    let start = Instant::now();
    let fused = fuse::run(&module, &*options.machine)?;
    observer("fuse", Stage { module: &module, fused: Some(&fused), program: None, elapsed: start.elapsed() });
    let start = Instant::now();
    let program = plan::build(fused, options)?;
    observer("plan", Stage { module: &module, fused: None, program: Some(&program), elapsed: start.elapsed() });
    Ok((module, program))
}

/// Optimises a module, up to and including the layout of its weights. Timings, and the module at every point, go to the
/// observer.
///
/// # Errors
/// As [`compile`].
pub fn optimise(module: Module, options: &Options, observer: &mut Observer<'_>) -> Result<Module, Error> {
    let trips = options.expected_trips;
    let mut run = Run { module, observer };

    run.pass("lower", |_| ())?;
    run.pass("simplify", |m| simplify::run(m, trips))?;
    run.pass("hoist", hoist::run)?;
    run.pass("cse", cse::run)?;
    run.pass("dce", dce::run)?;
    let Some(training) = &options.training else {
        run.pass("layout", |m| layout::run(m, options.dtype, options.machine.panel()))?;
        run.pass("hoist2", hoist::run)?;
        run.pass("cse2", cse::run)?;
        run.pass("dce2", dce::run)?;
        return Ok(run.module);
    };
    if options.dtype != WeightType::F32 {
        return Err(unsupported("training is in f32 only".into()));
    }
    run.pass("fuse_loss", expand::fuse_loss)?;
    let keep = match (training.remat, training.memory) {
        (Remat::Auto, Some(memory)) => what_fits(&run.module, options, training, memory)?,
        (remat, _) => Keep { remat, budget: usize::MAX },
    };
    run.train(options, training, keep)?;
    Ok(run.module)
}

struct Run<'a, 'o> {
    module: Module,
    observer: &'a mut Observer<'o>,
}

impl Run<'_, '_> {
    /// Runs a pass, verifies what it leaves, and shows it.
    fn pass(&mut self, name: &'static str, pass: impl FnOnce(&mut Module)) -> Result<(), Error> {
        self.try_pass(name, |module| {
            pass(module);
            Ok(())
        })
    }
    fn try_pass(
        &mut self,
        name: &'static str,
        pass: impl FnOnce(&mut Module) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        pass(&mut self.module)?;
        let elapsed = start.elapsed();
        match rdc_ir::verify::verify_text(&self.module) {
            Some(details) => Err(Error::Invalid { pass: name, details }),
            None => {
                (self.observer)(name, Stage { module: &self.module, fused: None, program: None, elapsed });
                Ok(())
            }
        }
    }
    /// The passes of training from differentiation to the layout of weights.
    fn train(&mut self, options: &Options, training: &Training, keep: Keep) -> Result<(), Error> {
        let of_gradients = gradients(&self.module, options, training, keep);
        self.try_pass("differentiate", |m| {
            differentiate::run(m, &of_gradients)?;
            if !training.losses {
                m.funcs.retain(|f| differentiate::loss_suffix(&f.name).is_none());
            }
            Ok(())
        })?;
        self.pass("optimizer", |m| {
            if let Some(options) = &training.optimizer {
                let frozen = [&options.frozen[..], &training.frozen].concat();
                optimizer::add(m, &optimizer::Options { frozen, ..options.clone() });
            }
        })?;
        self.pass("expand", |m| expand::run(m, &*options.machine))?;
        self.pass("cse2", cse::run)?;
        self.pass("hoist2", hoist::run)?;
        self.pass("dce2", dce::run)?;
        self.pass("layout", |m| layout::run_for_training(m, options.machine.panel()))?;
        self.pass("hoist3", hoist::run)?;
        self.pass("cse3", cse::run)?;
        self.pass("dce3", dce::run)
    }
}

/// Options of differentiation. One product over all iterations, instead of a sum in the loop, trades memory for time: where
/// memory is no matter, up to a quarter of what the weights themselves take.
fn gradients(module: &Module, options: &Options, training: &Training, keep: Keep) -> differentiate::Options {
    let weights: usize = module.params.values().filter(|p| !p.state).map(|p| p.ty.bytes()).sum();
    differentiate::Options {
        max_grad_steps: training.max_grad_steps,
        remat: keep.remat,
        budget: keep.budget,
        frozen: training.frozen.clone(),
        backward: options.machine.backward(),
        stack_weight_grads: (keep.remat == Remat::None).then_some(weights / 4),
    }
}

/// The policy that computes the least again of those whose program fits into that many bytes.
fn what_fits(module: &Module, options: &Options, training: &Training, memory: usize) -> Result<Keep, Error> {
    let bytes = |keep: Keep| -> Result<usize, Error> {
        let mut run = Run { module: module.clone(), observer: &mut |_, _| {} };
        run.train(options, training, keep)?;
        // Of no threads: their scratch is known after code generation only.
        Ok(plan::build(fuse::run(&run.module, &*options.machine)?, options)?.memory(0))
    };
    let all = bytes(WORTH_IT)?;
    if all <= memory {
        return Ok(WORTH_IT);
    }
    let everything = gradients(module, options, training, WORTH_IT);
    let losses = module.funcs.iter().filter(|f| differentiate::loss_suffix(&f.name).is_some());
    let kept = losses.map(|f| Ok(differentiate::kept(module, f, &everything)?.bytes()));
    let kept = kept.collect::<Result<Vec<usize>, Error>>()?.into_iter().max().unwrap_or(0);
    // What would remain for values that are kept if the rest took no less.
    let left = kept.saturating_sub(all - memory);
    for part in BUDGETS {
        let keep = Keep { budget: (left as f64 * part) as usize, ..WORTH_IT };
        if left > 0 && bytes(keep)? <= memory {
            return Ok(keep);
        }
    }
    let least = bytes(LEAST)?;
    if least <= memory {
        return Ok(LEAST);
    }
    let message =
        format!("a training step takes at least {least} bytes of weights and buffers, more than the {memory} allowed");
    Err(unsupported(message))
}

fn unsupported(message: String) -> Error {
    Error::Unsupported { message, loc: Loc::default() }
}
