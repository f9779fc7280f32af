//! Entries of stacks that no iteration writes read as zeros.
//!
//! A loop that takes fewer steps than it may leaves the last entries of its stacked results unwritten. Where a step may read those, they
//! are set to zero after the loop. A result that only the caller sees needs no zeros: it is cut to the trips; nor does one that
//! another loop of as many steps reads entry by entry.
use rdc_ir::program::{Beyond, Entry, Kernel, LoopStep, Offset, Step};

/// Inserts the steps that set such entries to zero.
pub fn clear(entry: &mut Entry, kernels: &[Kernel]) {
    let steps = entry.steps.clone();
    entry.steps = cleared(steps, entry, kernels);
}

fn cleared(steps: Vec<Step>, entry: &Entry, kernels: &[Kernel]) -> Vec<Step> {
    let mut out = Vec::with_capacity(steps.len());
    for step in steps {
        let Step::Loop(mut inner) = step else {
            out.push(step);
            continue;
        };
        let trips = inner.advance.trips;
        let mut zeros = Vec::new();
        for (buffer, stride) in stacks(&inner, kernels) {
            let same = |other: usize| entry.behind(other).any(|b| entry.behind(buffer).any(|stack| stack == b));
            if reads_beyond(&entry.steps, &inner, &same, None) {
                zeros.push(Step::Zero { buffer, beyond: Some(Beyond { trips, stride }) });
            }
        }
        inner.body = cleared(inner.body, entry, kernels);
        out.push(Step::Loop(inner));
        out.append(&mut zeros);
    }
    out
}

/// The stacked results of a loop: each one's buffer and the bytes of an entry.
fn stacks(inner: &LoopStep, kernels: &[Kernel]) -> Vec<(usize, usize)> {
    let mut stacks: Vec<(usize, usize)> = Vec::new();
    for step in &inner.body {
        let Step::Launch(launch) = step else { continue };
        for arg in kernels[launch.kernel].results().map(|result| &launch.args[result]) {
            if let Offset::Step { stride } = arg.offset
                && !stacks.iter().any(|stack| stack.0 == arg.buffer)
            {
                stacks.push((arg.buffer, stride));
            }
        }
    }
    stacks
}

/// Whether steps may read entries of a stack, which buffers may stand for, that a loop did not write: as a whole, or step by step in
/// a loop (`around`) that may take more steps.
fn reads_beyond(steps: &[Step], of: &LoopStep, is_stack: &dyn Fn(usize) -> bool, around: Option<&LoopStep>) -> bool {
    let as_many = |other: &LoopStep| {
        let trips = of.advance.trips;
        other.advance.trips == trips || other.steps == trips || other.steps == of.steps && of.advance.exit.is_none()
    };
    steps.iter().any(|step| match step {
        Step::Launch(launch) => launch.args.iter().filter(|arg| is_stack(arg.buffer)).any(|arg| match arg.offset {
            Offset::Fixed(_) => true,
            Offset::Step { .. } => !around.is_some_and(as_many),
            Offset::Slot { .. } => false,
        }),
        Step::Copy { src, .. } => is_stack(*src),
        Step::Zero { .. } | Step::Barrier => false,
        Step::Loop(inner) => reads_beyond(&inner.body, of, is_stack, Some(inner)),
    })
}
