//! `rdc inspect`: what a model is, what it costs and where its memory goes.
use crate::cli::InspectArgs;
use crate::kv;
use crate::pipeline::load;
use crate::report::{Report, Work};
use crate::table::{self, COUNT, SI, Table, grouped, percent, short};
use anyhow::Result;
use rdc_ir::ArgRole;
use rdc_ir::program::{Entry, Kernel, KvPolicy, Launch, LoopStep, Offset, Step};
use rdc_runtime::artifact::{Meta, Verify};
use serde::Serialize;

/// Everything that is shown, ready for JSON.
#[derive(Serialize)]
struct Facts {
    model: String,
    compiler: String,
    target: String,
    requires: Vec<String>,
    dtype: String,
    batch: usize,
    context: usize,
    chunks: Vec<usize>,
    readouts: Vec<String>,
    steps: usize,
    max_steps: usize,
    settings: std::collections::BTreeMap<String, String>,
    parameters: u64,
    looped_stack_parameters: u64,
    unrolled_parameters: u64,
    weight_bytes: usize,
    weights_in_artifact: Option<bool>,
    functions: Vec<Function>,
    kv: Option<Kv>,
    kernels: Vec<KernelFacts>,
}

/// A compiled function.
#[derive(Serialize)]
struct Function {
    name: String,
    arena_bytes: usize,
    input_output_bytes: usize,
    flops_once: u64,
    flops_per_iteration: u64,
    flops: u64,
    flops_removed_per_iteration: i64,
    launches_once: usize,
    launches_per_iteration: usize,
}

/// The KV cache under the chosen policy, and what others would take.
#[derive(Serialize)]
struct Kv {
    policy: String,
    bytes: usize,
    slots: usize,
    alternatives: Vec<(String, usize)>,
}

#[derive(Serialize)]
struct KernelFacts {
    name: String,
    launches_once: usize,
    launches_per_iteration: usize,
    tasks: usize,
    flops: u64,
    bytes: u64,
    flops_per_byte: f64,
    lines: Vec<u32>,
}

/// Runs the subcommand.
pub fn run(args: &InspectArgs, quiet: bool) -> Result<()> {
    let (meta, has_weights) = metadata(args, quiet)?;
    let steps = args.steps.unwrap_or(meta.default_steps);
    anyhow::ensure!(
        steps <= meta.max_steps,
        "--steps {steps} is more than the {} that --max-steps allows",
        meta.max_steps
    );
    let facts = facts(&meta, steps, has_weights);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&facts)?);
    } else {
        print(&facts);
    }
    Ok(())
}

fn metadata(args: &InspectArgs, quiet: bool) -> Result<(Meta, Option<bool>)> {
    if load::is_text(&args.file) {
        return text(args, quiet).map(|meta| (meta, None));
    }
    let verify = if args.verify { Verify::All } else { Verify::Fast };
    let artifact = load::artifact(&args.file, &args.options, verify)?;
    Ok((artifact.meta().clone(), Some(artifact.has_weights())))
}

#[cfg(feature = "compiler")]
fn text(args: &InspectArgs, quiet: bool) -> Result<Meta> {
    use crate::pipeline::build;
    use crate::pipeline::front::{self, Shapes, Text};
    let _progress = crate::progress::Progress::start(quiet, "planning");
    let front = front::lower(Text::read(&args.file)?, &args.options, &Shapes::default())?;
    Ok(build::program(front, &mut |_, _| ())?.meta)
}

#[cfg(not(feature = "compiler"))]
fn text(args: &InspectArgs, _: bool) -> Result<Meta> {
    Err(load::no_compiler(&args.file))
}

fn facts(meta: &Meta, steps: usize, weights_in_artifact: Option<bool>) -> Facts {
    let report = Report::of(meta);
    let program = &meta.program;
    let parameters: u64 = meta.params.iter().fold(0, |n: u64, p| n.saturating_add(p.ty.elements() as u64));
    let looped = report.looped_stack_parameters;
    let functions = program.entries.iter().map(|e| function(e, report.functions.get(&e.name), steps)).collect();
    Facts {
        model: program.name.clone(),
        compiler: meta.compiler.clone(),
        target: program.target.clone(),
        requires: meta.isa.requires.clone(),
        dtype: meta.dtype.clone(),
        batch: meta.batch,
        context: meta.context,
        chunks: meta.chunks.clone(),
        readouts: meta.readouts.iter().map(|r| r.name.clone()).collect(),
        steps,
        max_steps: meta.max_steps,
        settings: meta.sizes.clone(),
        parameters,
        looped_stack_parameters: looped,
        unrolled_parameters: (parameters - looped.min(parameters)).saturating_add(looped.saturating_mul(steps as u64)),
        weight_bytes: total(program.weights.iter().map(|w| w.ty.bytes())),
        weights_in_artifact,
        functions,
        kv: program.entries.first().and_then(|e| cache(e, meta)),
        kernels: program.kernels.iter().enumerate().map(|(i, k)| kernel(i, k, &program.entries)).collect(),
    }
}

fn function(entry: &Entry, work: Option<&Work>, steps: usize) -> Function {
    let work = work.copied().unwrap_or_default();
    let (once, looped) = launches(&entry.steps);
    Function {
        name: entry.name.clone(),
        arena_bytes: entry.arena,
        input_output_bytes: entry.outside(),
        flops_once: work.once,
        flops_per_iteration: work.iteration,
        flops: work.once.saturating_add(work.iteration.saturating_mul(steps as u64)),
        flops_removed_per_iteration: (work.iteration_written as i64).saturating_sub(work.iteration as i64),
        launches_once: once.len(),
        launches_per_iteration: looped.len(),
    }
}

/// A sum of sizes. An artifact may claim any; those past all memory are shown as the largest number.
fn total(sizes: impl Iterator<Item = usize>) -> usize {
    sizes.fold(0, usize::saturating_add)
}

/// The launches outside and inside loops.
fn launches(steps: &[Step]) -> (Vec<&Launch>, Vec<&Launch>) {
    let (mut once, mut looped) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Launch(launch) => once.push(launch),
            Step::Copy { .. } | Step::Zero { .. } | Step::Barrier => {}
            Step::Loop(inner) => {
                let (outer, inner) = launches(&inner.body);
                looped.extend(outer);
                looped.extend(inner);
            }
        }
    }
    (once, looped)
}

fn loops(steps: &[Step]) -> impl Iterator<Item = &LoopStep> {
    steps.iter().filter_map(|s| if let Step::Loop(inner) = s { Some(inner) } else { None })
}

fn cache(entry: &Entry, meta: &Meta) -> Option<Kv> {
    let caches = || entry.inputs.iter().filter(|i| i.role == ArgRole::Cache).map(|i| &entry.buffers[i.buffer].ty);
    let bytes = total(caches().map(|ty| ty.bytes()));
    let slots = total(caches().map(|ty| ty.shape.first().copied().unwrap_or(0)));
    if slots == 0 {
        return None;
    }
    let slot_bytes = bytes / slots;
    // Slots of layers outside the loop do not depend on the policy.
    let looped: Vec<(usize, usize)> = loops(&entry.steps)
        .flat_map(|l| launches(&l.body).0.into_iter().map(|launch| (l.max_steps, launch)))
        .flat_map(|(max, launch)| launch.args.iter().map(move |arg| (max, arg)))
        .filter_map(|(max, arg)| match arg.offset {
            Offset::Slot { layers, .. } => Some((max, layers)),
            _ => None,
        })
        .collect();
    let (max, layers) = looped.first().copied().unwrap_or((0, 0));
    let in_loop = |policy: KvPolicy| if layers == 0 { 0 } else { policy.slots(max, layers) };
    let per_cache = slots / count_caches(entry).max(1);
    let outside = per_cache.saturating_sub(in_loop(meta.kv));
    let bytes_for = |slots: usize| slots.saturating_mul(count_caches(entry)).saturating_mul(slot_bytes);
    let policies = [
        KvPolicy::Full,
        KvPolicy::Modulo(1),
        KvPolicy::Modulo(4),
        KvPolicy::Modulo(16),
        KvPolicy::Block(4),
        KvPolicy::Anchor,
    ];
    let alternatives = policies
        .into_iter()
        .map(|policy| (kv::name(policy), bytes_for(outside.saturating_add(in_loop(policy)))))
        .collect();
    Some(Kv { policy: kv::name(meta.kv), bytes, slots, alternatives })
}

fn count_caches(entry: &Entry) -> usize {
    entry.inputs.iter().filter(|i| i.role == ArgRole::Cache).count()
}

fn kernel(index: usize, kernel: &Kernel, entries: &[Entry]) -> KernelFacts {
    let (mut once, mut looped, mut lines) = (0, 0, Vec::new());
    for entry in entries {
        let (outer, inner) = launches(&entry.steps);
        let mine = |l: &&&Launch| l.kernel == index;
        once += outer.iter().filter(mine).count();
        looped += inner.iter().filter(mine).count();
        lines.extend(outer.iter().chain(&inner).filter(mine).flat_map(|l| l.locs.iter().map(|loc| loc.line)));
    }
    lines.sort_unstable();
    lines.dedup();
    lines.retain(|&line| line > 0);
    KernelFacts {
        name: kernel.name.clone(),
        launches_once: once,
        launches_per_iteration: looped,
        tasks: kernel.tasks,
        flops: kernel.flops,
        bytes: kernel.bytes,
        flops_per_byte: kernel.flops as f64 / kernel.bytes.max(1) as f64,
        lines,
    }
}

fn print(facts: &Facts) {
    let count = |n: u64| format!("{} ({})", grouped(n), short(n as f64, &COUNT));
    let flops = |n: u64| format!("{}FLOP", short(n as f64, &SI));
    println!("{} for {} ({})", facts.model, facts.target, facts.requires.join(", "));
    println!("  settings            {}", pairs(&facts.settings));
    println!(
        "  specialised for     batch {}, chunks {}, context {}, up to {} steps, {} weights",
        facts.batch,
        facts.chunks.iter().map(usize::to_string).collect::<Vec<_>>().join(" and "),
        facts.context,
        facts.max_steps,
        facts.dtype
    );
    println!("  parameters          {}", count(facts.parameters));
    println!("  unrolled at r = {:<3} {}", facts.steps, count(facts.unrolled_parameters));
    let stored = match facts.weights_in_artifact {
        Some(false) => ", drawn when loaded",
        _ => "",
    };
    println!("  weights             {}{stored}", table::bytes(facts.weight_bytes));
    if let Some(kv) = &facts.kv {
        println!("  KV cache            {} ({}, {} slots)", table::bytes(kv.bytes), kv.policy, kv.slots);
        let others: Vec<String> =
            kv.alternatives.iter().map(|(name, bytes)| format!("{name} {}", table::bytes(*bytes))).collect();
        println!("    by policy         {}", others.join(", "));
    }
    println!();
    let at = format!("at r = {}", facts.steps);
    let mut functions =
        Table::new(&["function", "arena", "once", "per iteration", "hoisted away", &at, "kernels once", "in the loop"]);
    for f in &facts.functions {
        let written = (f.flops_per_iteration as i64).saturating_add(f.flops_removed_per_iteration);
        let share = f.flops_removed_per_iteration as f64 / (written.max(1)) as f64;
        functions.row(vec![
            f.name.clone(),
            table::bytes(f.arena_bytes),
            flops(f.flops_once),
            flops(f.flops_per_iteration),
            format!("{} ({})", flops(f.flops_removed_per_iteration.max(0) as u64), percent(share.max(0.0))),
            flops(f.flops),
            f.launches_once.to_string(),
            f.launches_per_iteration.to_string(),
        ]);
    }
    print!("{functions}");
    println!();
    let mut kernels = Table::new(&["kernel", "once", "in the loop", "tasks", "work", "bytes", "FLOP/byte", "lines"]);
    for k in &facts.kernels {
        kernels.row(vec![
            k.name.clone(),
            k.launches_once.to_string(),
            k.launches_per_iteration.to_string(),
            k.tasks.to_string(),
            flops(k.flops),
            table::bytes(k.bytes as usize),
            format!("{:.2}", k.flops_per_byte),
            super::line_ranges(&k.lines),
        ]);
    }
    print!("{kernels}");
}

fn pairs(settings: &std::collections::BTreeMap<String, String>) -> String {
    settings.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}
