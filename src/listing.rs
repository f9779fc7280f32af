//! A program as text: weights, kernels with what they compute, and each function's memory and schedule.
use crate::kv;
use rdc_ir::program::{Advance, Beyond, Entry, LaunchArg, LoopStep, Offset, Place, Program, Step, WeightSource};
use std::fmt::Write;

/// The text of a program.
pub fn program(program: &Program) -> String {
    let mut out = format!("program {} for {}\n", program.name, program.target);
    for (index, weight) in program.weights.iter().enumerate() {
        line(&mut out, 0, format!("weight {index} {}: {} = {}", weight.name, weight.ty, source(&weight.source)));
    }
    for kernel in &program.kernels {
        out.push('\n');
        line(&mut out, 0, format!("kernel {}: {}", kernel.name, kernel.kind.name()));
        let (tasks, dispatch, tiling) = (kernel.tasks, kernel.dispatch, kernel.tiling);
        let work = format!("{} FLOP, {} bytes, {} bytes of scratch", kernel.flops, kernel.bytes, kernel.scratch);
        line(&mut out, 1, format!("{tasks} tasks of {tiling:?}, {dispatch:?}; {work}"));
        for (index, pointer) in kernel.pointers.iter().enumerate() {
            let pitch = pointer.pitch.map_or(String::new(), |pitch| format!(", rows {pitch} bytes apart"));
            let written = if pointer.written { ", written" } else { "" };
            line(&mut out, 1, format!("pointer {index}: {}, {:?}{pitch}{written}", pointer.ty, pointer.access));
        }
        kernel.func.to_string().lines().for_each(|text| line(&mut out, 1, text.to_string()));
    }
    for e in &program.entries {
        out.push('\n');
        line(&mut out, 0, format!("function {}: arena of {} bytes", e.name, e.arena));
        for (index, buffer) in e.buffers.iter().enumerate() {
            let rows = buffer.pitch.map_or(String::new(), |pitch| format!(", rows {pitch} bytes apart,"));
            line(&mut out, 1, format!("%{index} {}: {}{rows} in {}", buffer.name, buffer.ty, place(buffer.place, e)));
        }
        steps(&mut out, 1, &e.steps, program);
    }
    out
}

fn line(out: &mut String, depth: usize, text: String) {
    // Writing into a String cannot fail.
    let _ = writeln!(out, "{}{text}", "  ".repeat(depth));
}

fn source(source: &WeightSource) -> String {
    let piece =
        |p: &rdc_ir::program::Piece| format!("{}[{}..{}, {}..{}]", p.param, p.rows.0, p.rows.1, p.cols.0, p.cols.1);
    let pieces = |list: &[rdc_ir::program::Piece]| list.iter().map(piece).collect::<Vec<_>>().join(" + ");
    match source {
        WeightSource::Param { name, via_bf16: false } | WeightSource::State { name } => name.clone(),
        WeightSource::Param { name, via_bf16: true } => format!("bf16({name})"),
        WeightSource::Packed { pieces: list, nr, parts, .. } => {
            format!("pack({}, nr {nr}, parts {parts})", pieces(list))
        }
        WeightSource::Scales { pieces: list } => format!("scales({})", pieces(list)),
        WeightSource::RopeTable { len, dim, base } => format!("rope_table({len}, {dim}, {base})"),
        WeightSource::SinusoidTable { len, dim, base } => format!("sinusoid_table({len}, {dim}, {base})"),
    }
}

fn place(place: Place, entry: &Entry) -> String {
    match place {
        Place::Arena(offset) => format!("arena + {offset}"),
        Place::Weight(index) => format!("weight {index}"),
        Place::Input(index) => format!("input {}", entry.inputs.get(index).map_or("?", |i| &i.name)),
        Place::Output(index) => format!("output {}", entry.outputs.get(index).map_or("?", |o| &o.name)),
        Place::Step => "the step".into(),
        Place::IsLast => "whether the step is the last".into(),
        Place::Trips => "the steps taken".into(),
        Place::MayExit => "whether loops may end early".into(),
        Place::Pair { even, odd, trips } => format!("%{even} if %{trips} is even, else %{odd}"),
    }
}

fn steps(out: &mut String, depth: usize, list: &[Step], program: &Program) {
    for step in list {
        match step {
            Step::Launch(launch) => {
                let name = program.kernels.get(launch.kernel).map_or("?", |k| &k.name);
                let args: Vec<String> = launch.args.iter().map(argument).collect();
                let lines: Vec<String> = launch.locs.iter().map(|l| l.line.to_string()).collect();
                let waits = if launch.waits { "; waits" } else { "" };
                line(out, depth, format!("{name}({}){waits}  # lines {}", args.join(", "), lines.join(", ")));
            }
            Step::Copy { dst, src } => line(out, depth, format!("%{dst} := %{src}")),
            Step::Zero { buffer, beyond: None } => line(out, depth, format!("%{buffer} := 0")),
            Step::Zero { buffer, beyond: Some(Beyond { trips, stride }) } => {
                line(out, depth, format!("%{buffer} from %{trips} * {stride} on := 0"));
            }
            Step::Barrier => line(out, depth, "barrier".into()),
            Step::Loop(inner) => loop_step(out, depth, inner, program),
        }
    }
}

fn loop_step(out: &mut String, depth: usize, inner: &LoopStep, program: &Program) {
    let Advance { step, is_last, trips, exit } = inner.advance;
    let exit = exit.map_or(String::new(), |exit| format!(", until %{} if %{}", exit.done, exit.allowed));
    let order = if inner.reverse { ", last step first" } else { "" };
    line(out, depth, format!("loop %{} times, at most {}{exit}{order}:", inner.steps, inner.max_steps));
    steps(out, depth + 1, &inner.body, program);
    line(out, depth + 1, format!("advance %{step}, %{is_last}, %{trips}"));
}

fn argument(arg: &LaunchArg) -> String {
    let buffer = arg.buffer;
    match arg.offset {
        Offset::Fixed(0) => format!("%{buffer}"),
        Offset::Fixed(bytes) => format!("%{buffer} + {bytes}"),
        Offset::Step { stride } => format!("%{buffer} + step * {stride}"),
        Offset::Slot { policy, layer, layers, base, stride } => {
            let slot = format!("{}(step, layer {layer} of {layers})", kv::name(policy));
            format!("%{buffer} + ({base} + {slot}) * {stride}")
        }
    }
}
