//! The second stage: the passes make a program of a lowered text, and the metadata of its artifact.
use super::front::{Front, Weights};
use crate::cli::Dtype;
use crate::kv;
use crate::report::{Report, Work};
use anyhow::Result;
use rdc_backend_cpu::Target;
use rdc_ir::program::Program;
use rdc_ir::{Func, Module, Opcode, Type};
use rdc_passes::{Observer, WeightType};
use rdc_runtime::artifact::{Isa, Meta, ParamInfo, Readout};
use rdc_runtime::weights::CheckpointSource;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A text up to the program.
pub struct Built {
    /// The metadata, without symbols.
    pub meta: Meta,
    /// The module after the last pass.
    pub module: Module,
    /// What code is to be generated for.
    pub target: Target,
    checkpoint: Option<Weights>,
}

impl Built {
    /// The parameters' values that the text came with, if any.
    pub fn checkpoint(&self) -> Option<CheckpointSource<'_>> {
        self.checkpoint.as_ref().map(Weights::source)
    }
}

/// Runs the passes. The observer sees the module after each; see [`rdc_passes::POINTS`].
pub fn program(front: Front, observer: &mut Observer<'_>) -> Result<Built> {
    let Front { text, lowered, checkpoint, dtype, kv_dtype, target, last_only, training } = front;
    let target = rdc_backend_cpu::target(&target)?;
    let frozen = training.as_ref().map(|t| t.frozen(&lowered.module)).transpose()?.unwrap_or_default();
    let train = training.as_ref().map(|t| t.meta(&lowered, &frozen));
    let options = rdc_passes::Options {
        target: target.name.clone(),
        machine: Arc::new(target.machine),
        dtype: match dtype {
            Dtype::F32 => WeightType::F32,
            Dtype::Bf16 => WeightType::Bf16,
            Dtype::I8 => WeightType::I8,
        },
        operands: rdc_passes::OperandType::F32,
        expected_trips: lowered.default_steps.max(1),
        training: training.as_ref().map(|t| t.options(frozen)),
    };
    let written: Vec<(String, [u64; 2])> = lowered.module.funcs.iter().map(|f| (f.name.clone(), flops(f))).collect();
    let looped_stack_parameters = looped_stack_parameters(&lowered.module);
    let compiled = rdc_passes::compile(lowered.module, &options, observer);
    let (module, program) = compiled.map_err(|error| match error {
        rdc_passes::Error::Unsupported { message, loc } if loc.line > 0 => {
            let line = text.source.lines().nth(loc.line as usize - 1).unwrap_or_default().trim();
            anyhow::anyhow!("{}:{}:{}: {message}\n  {line}", text.name, loc.line, loc.col)
        }
        error => anyhow::anyhow!("{}: {error}", text.name),
    })?;
    // Those of the text, then the state of training.
    let params: Vec<ParamInfo> = module.params.values().map(ParamInfo::from).collect();
    let functions = written
        .into_iter()
        .map(|(name, [once_written, iteration_written])| {
            let [once, iteration] = module.func(&name).map_or([0, 0], flops);
            (name, Work { once_written, iteration_written, once, iteration })
        })
        .collect();
    let report = Report { looped_stack_parameters, functions };
    let mut options = BTreeMap::from([
        ("target".to_string(), program.target.clone()),
        ("batch".to_string(), lowered.batch.to_string()),
        ("context".to_string(), lowered.context.to_string()),
        ("max-steps".to_string(), lowered.max_steps.to_string()),
        ("kv".to_string(), kv::name(lowered.kv)),
        ("kv-dtype".to_string(), kv_dtype.name().to_string()),
        ("dtype".to_string(), dtype.name().to_string()),
        ("last-only".to_string(), last_only.to_string()),
    ]);
    if let Some(weights) = &checkpoint {
        options.insert("weights".to_string(), weights.fingerprint.clone());
    }
    let meta = Meta {
        compiler: env!("CARGO_PKG_VERSION").to_string(),
        sizes: lowered.sizes.into_iter().collect(),
        default_steps: lowered.default_steps,
        max_steps: lowered.max_steps,
        context: lowered.context,
        batch: lowered.batch,
        chunks: lowered.chunks,
        readouts: match training {
            Some(_) => Vec::new(),
            None => readouts(&lowered.default_readout, &lowered.readouts, &program),
        },
        shapes: module.funcs.iter().filter(|f| lowered.positions.contains_key(&f.name)).map(output_shapes).collect(),
        positions: lowered.positions,
        dtype: dtype.name().to_string(),
        kv: lowered.kv,
        params,
        train,
        options,
        report: serde_json::to_value(report)?,
        symbols: BTreeMap::new(),
        isa: isa(&target),
        program,
    };
    Ok(Built { meta, module, target, checkpoint })
}

/// The shapes of a function's outputs less caches, by name, with the function's name.
fn output_shapes(func: &Func) -> (String, BTreeMap<String, Vec<usize>>) {
    let outputs = func.outputs.iter().zip(&func.regions[func.body].yields).filter(|(_, v)| !func.ty(**v).cache);
    (func.name.clone(), outputs.map(|(o, v)| (o.name.clone(), func.ty(*v).shape.clone())).collect())
}

/// What a loader must know of a target's code.
pub fn isa(target: &Target) -> Isa {
    Isa { architecture: target.isa.architecture().into(), requires: target.isa.requires.clone() }
}

/// The default read-out first, then the others that are compiled.
fn readouts(default: &str, compiled: &[String], program: &Program) -> Vec<Readout> {
    let names = std::iter::once(default).chain(compiled.iter().map(String::as_str).filter(|n| *n != default));
    names
        .map(|name| {
            let suffix = if name == default { None } else { Some(name) };
            let entry = program.entries.iter().find(|e| e.name.split_once('.').map(|(_, s)| s) == suffix);
            let outputs = entry.into_iter().flat_map(|e| e.outputs.iter().map(|o| o.name.clone())).collect();
            Readout { name: name.to_string(), outputs }
        })
        .collect()
}

/// Operations of a function outside its loops, and of one iteration of its loops.
fn flops(func: &Func) -> [u64; 2] {
    let mut total = [0u64; 2];
    for (region, op) in func.walk() {
        let op = &func.ops[op];
        let types = |values: &[rdc_ir::ValueId]| values.iter().map(|&v| func.ty(v)).collect::<Vec<&Type>>();
        let cost = (op.opcode.info().flops)(op, &types(&op.operands), &types(&op.results));
        let part = &mut total[usize::from(region != func.body)];
        *part = part.saturating_add(cost);
    }
    total
}

/// Parameters of layer stacks that are used inside a loop.
fn looped_stack_parameters(module: &Module) -> u64 {
    let mut names = BTreeSet::new();
    for func in &module.funcs {
        for (region, op) in func.walk() {
            let op = &func.ops[op];
            if op.opcode != Opcode::Param {
                continue;
            }
            // A parameter read outside the loop counts if the loop captures it.
            let inside = region != func.body || {
                let captured = |(r, user): (rdc_ir::RegionId, rdc_ir::OpId)| {
                    r != func.body && func.ops[user].operands.iter().any(|v| op.results.contains(v))
                };
                func.walk().into_iter().any(captured)
            };
            if inside {
                names.insert(op.text("name").to_string());
            }
        }
    }
    let looped = module.params.values().filter(|p| p.in_stack && names.contains(&p.name));
    looped.map(|p| p.ty.elements() as u64).sum()
}
