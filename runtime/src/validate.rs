//! Checks that a program holds together, so that running its schedule touches no memory but its own. What kernels do with
//! their pointers is the back end's word.
mod weight;

pub(crate) use weight::weight;

use crate::artifact::Meta;
use rdc_ir::entity::Entity;
use rdc_ir::program::{
    Advance, Buffer, Entry, Kernel, KvPolicy, Launch, LaunchArg, LoopStep, Offset, Place, Pointer, Program, Step,
    WeightSource,
};
use rdc_ir::{ArgRole, DType, Type, ValueDef};

/// Bytes of a tensor, if that is a number.
pub(crate) fn bytes(ty: &Type) -> Option<usize> {
    let total = ty.shape.iter().try_fold(ty.dtype.bytes(), |b, &n| b.checked_mul(n));
    total.filter(|&b| b <= isize::MAX as usize)
}

/// The same with rows so many bytes apart, if they do not overlap.
fn bytes_at(ty: &Type, pitch: Option<usize>) -> Option<usize> {
    let dense = bytes(ty)?;
    let Some(pitch) = pitch else { return Some(dense) };
    let total = ty.rows().checked_mul(pitch).filter(|_| pitch >= ty.row_bytes());
    total.filter(|&b| b <= isize::MAX as usize)
}

/// Checks metadata: its cache policy, its program, and that the parameters have what the weights take.
pub(crate) fn meta(meta: &Meta) -> Result<(), String> {
    if empty(meta.kv) {
        return Err(format!("the cache policy {:?} has no slot", meta.kv));
    }
    program(&meta.program)?;
    weight::params(meta)
}

/// Checks a program. The error says what is wrong, for people who write compilers.
pub(crate) fn program(program: &Program) -> Result<(), String> {
    for weight in &program.weights {
        self::weight(weight).map_err(|m| format!("weight {}: {m}", weight.name))?;
    }
    for kernel in &program.kernels {
        let values = kernel.func.values.len();
        let regions = kernel.func.regions.values();
        let ids = regions.flat_map(|r| r.args.iter().chain(&r.yields));
        let ops = kernel.func.ops.values();
        if ops.clone().any(|op| op.attrs.len() != op.opcode.info().attrs.len()) {
            return Err(format!(
                "kernel {} has an operation with other attributes than the op table says",
                kernel.name
            ));
        }
        let ids = ids.chain(ops.clone().flat_map(|o| o.operands.iter().chain(&o.results)));
        let makers = kernel.func.values.values().filter_map(|value| match value.def {
            ValueDef::Result(op, _) => Some(op),
            ValueDef::Arg(..) => None,
        });
        let listed = kernel.func.regions.values().flat_map(|r| r.ops.iter().copied());
        if ids.into_iter().any(|v| v.index() >= values)
            || makers.chain(listed).any(|op| op.index() >= ops.len())
            || kernel.func.regions.get(kernel.func.body).is_none()
        {
            return Err(format!("kernel {} refers to a value or operation that it does not have", kernel.name));
        }
        if kernel.tasks > u32::MAX as usize || kernel.scratch > isize::MAX as usize {
            return Err(format!("kernel {} is too large", kernel.name));
        }
    }
    program.entries.iter().try_for_each(|e| entry(program, e).map_err(|m| format!("entry {}: {m}", e.name)))
}

/// Whether a cache policy has no slot.
fn empty(policy: KvPolicy) -> bool {
    matches!(policy, KvPolicy::Modulo(0) | KvPolicy::Block(0))
}

fn entry(program: &Program, entry: &Entry) -> Result<(), String> {
    let checker = Checker { program, entry };
    for (index, buffer) in entry.buffers.iter().enumerate() {
        let size = bytes_at(&buffer.ty, buffer.pitch).ok_or_else(|| format!("buffer {} is too large", buffer.name))?;
        // What is outside is seen by those who know nothing of the pitch.
        if buffer.pitch.is_some() && !matches!(buffer.place, Place::Arena(_) | Place::Pair { .. }) {
            return Err(format!("rows of buffer {} are apart", buffer.name));
        }
        let fits = match buffer.place {
            Place::Arena(offset) => offset % 64 == 0 && offset.checked_add(size).is_some_and(|end| end <= entry.arena),
            Place::Weight(w) => program.weights.get(w).is_some_and(|w| bytes(&w.ty) == Some(size)),
            Place::Input(i) => entry.inputs.get(i).is_some_and(|input| input.buffer == index),
            Place::Output(i) => entry
                .outputs
                .get(i)
                .and_then(|o| entry.buffers.get(o.buffer))
                .is_some_and(|o| bytes(&o.ty).is_some_and(|room| size <= room)),
            Place::Step | Place::Trips => buffer.ty == Type::scalar(DType::I32),
            Place::IsLast | Place::MayExit => buffer.ty == Type::scalar(DType::Bool),
            Place::Pair { even, odd, trips } => {
                let alike = |b: usize| {
                    let one = entry.buffers.get(b)?;
                    let is_memory = matches!(one.place, Place::Arena(_) | Place::Input(_) | Place::Output(_));
                    Some(is_memory && one.ty == buffer.ty && one.pitch == buffer.pitch)
                };
                let is_trips = entry.buffers.get(trips).is_some_and(|b| b.place == Place::Trips);
                alike(even) == Some(true) && alike(odd) == Some(true) && is_trips
            }
        };
        if !fits {
            return Err(format!("buffer {} ({}) does not fit its place {:?}", buffer.name, buffer.ty, buffer.place));
        }
    }
    if entry.arena > isize::MAX as usize {
        return Err("the arena is too large".into());
    }
    for (index, input) in entry.inputs.iter().enumerate() {
        if checker.place(input.buffer)? != Place::Input(index) {
            return Err(format!("input {} is not in the caller's memory", input.name));
        }
        let ty = &entry.buffers[input.buffer].ty;
        let role_fits = match input.role {
            ArgRole::Ids | ArgRole::Labels => ty.dtype == DType::I32 && ty.rank() == 2,
            ArgRole::Position | ArgRole::Valid => ty.dtype == DType::I32 && ty.rank() == 1,
            ArgRole::Steps | ArgRole::NoGradSteps | ArgRole::GradSteps => *ty == Type::scalar(DType::I32),
            ArgRole::State(_) => ty.dtype == DType::F32 && ty.rank() == 3,
            ArgRole::Cache => ty.rank() == 5,
            ArgRole::Input => true,
        };
        if !role_fits {
            return Err(format!("input {} has type {ty}, which does not fit its role", input.name));
        }
    }
    for output in &entry.outputs {
        if checker.buffer(output.buffer)?.pitch.is_some() {
            return Err(format!("rows of output {} are apart", output.name));
        }
    }
    checker.steps(&entry.steps, None)
}

struct Checker<'a> {
    program: &'a Program,
    entry: &'a Entry,
}

impl Checker<'_> {
    fn place(&self, buffer: usize) -> Result<Place, String> {
        Ok(self.buffer(buffer)?.place)
    }
    fn buffer(&self, buffer: usize) -> Result<&Buffer, String> {
        self.entry.buffers.get(buffer).ok_or_else(|| format!("there is no buffer {buffer}"))
    }
    fn steps(&self, steps: &[Step], around: Option<&LoopStep>) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Launch(launch) => {
                    let kernel = self.program.kernels.get(launch.kernel);
                    let kernel = kernel.ok_or_else(|| format!("there is no kernel {}", launch.kernel))?;
                    self.launch(kernel, launch, around)?;
                }
                Step::Copy { dst, src } => {
                    let (to, from) = (self.buffer(*dst)?, self.buffer(*src)?);
                    let size = |b: &Buffer| bytes_at(&b.ty, b.pitch);
                    if size(to) != size(from) || to.pitch != from.pitch || !self.writable(*dst)? {
                        return Err(format!("buffer {} cannot be copied to {}", from.name, to.name));
                    }
                }
                Step::Zero { buffer, beyond } => {
                    let is_trips = |cell| self.place(cell).map(|place| place == Place::Trips);
                    if !self.writable(*buffer)? || !beyond.map_or(Ok(true), |beyond| is_trips(beyond.trips))? {
                        return Err(format!("buffer {buffer} cannot be set to zero"));
                    }
                }
                Step::Barrier => {}
                Step::Loop(inner) => self.loop_step(inner)?,
            }
        }
        Ok(())
    }
    fn launch(&self, kernel: &Kernel, launch: &Launch, around: Option<&LoopStep>) -> Result<(), String> {
        let pointers = &kernel.pointers;
        if launch.args.len() != pointers.len() {
            return Err(format!(
                "kernel {} takes {} pointers, a launch gives {}",
                kernel.name,
                pointers.len(),
                launch.args.len()
            ));
        }
        for (arg, pointer) in launch.args.iter().zip(pointers) {
            self.argument(arg, pointer, around)?;
            // What an entry updates is what its results say, and a cache is no result.
            if pointer.ty.cache && matches!(self.place(arg.buffer)?, Place::Weight(_) | Place::Pair { .. }) {
                return Err(format!("kernel {} would use weight {} as a cache", kernel.name, arg.buffer));
            }
            if pointer.written && !self.writable(arg.buffer)? {
                return Err(format!("kernel {} would write buffer {}", kernel.name, arg.buffer));
            }
        }
        Ok(())
    }
    /// Whether kernels may write a buffer: memory of the schedule, a parameter as it is, or the caller's if it is a cache.
    fn writable(&self, buffer: usize) -> Result<bool, String> {
        Ok(match self.place(buffer)? {
            Place::Arena(_) | Place::Output(_) => true,
            Place::Input(i) => self.entry.inputs.get(i).is_some_and(|i| i.role == ArgRole::Cache),
            Place::Weight(w) => self.program.weights.get(w).is_some_and(|w| {
                matches!(w.source, WeightSource::Param { via_bf16: false, .. } | WeightSource::State { .. })
            }),
            Place::Pair { even, odd, .. } => self.writable(even)? && self.writable(odd)?,
            Place::Step | Place::IsLast | Place::Trips | Place::MayExit => false,
        })
    }
    /// Checks that what a kernel addresses by a pointer lies in the buffer in every step of the loop around.
    fn argument(&self, arg: &LaunchArg, pointer: &Pointer, around: Option<&LoopStep>) -> Result<(), String> {
        let (ty, pitch) = (&pointer.ty, pointer.pitch);
        let buffer = self.buffer(arg.buffer)?;
        if buffer.pitch != pitch {
            return Err(format!("rows of buffer {} are not as far apart as a kernel takes them", buffer.name));
        }
        let size = bytes_at(&buffer.ty, pitch).unwrap_or(0);
        let last_step = around.map_or(0, |l| l.max_steps.saturating_sub(1));
        // The largest offset.
        let reach = match arg.offset {
            Offset::Fixed(offset) => Some(offset),
            Offset::Step { stride } => last_step.checked_mul(stride),
            Offset::Slot { policy, layer, layers, base, stride } => {
                if layer >= layers || layers > u32::MAX as usize || empty(policy) {
                    return Err(format!("buffer {}: layer {layer} of {layers} under {policy:?}", buffer.name));
                }
                let last = policy.slots(last_step.saturating_add(1), layers).saturating_sub(1);
                base.checked_add(last).and_then(|slot| slot.checked_mul(stride))
            }
        };
        let end = reach.and_then(|offset| offset.checked_add(bytes_at(ty, pitch)?));
        if end.is_some_and(|end| end <= size) {
            Ok(())
        } else {
            Err(format!("{ty} at offset {:?} goes beyond buffer {} ({})", arg.offset, buffer.name, buffer.ty))
        }
    }
    fn loop_step(&self, inner: &LoopStep) -> Result<(), String> {
        let steps = self.buffer(inner.steps)?;
        let Advance { step, is_last, trips, exit } = inner.advance;
        let cells = [(step, Place::Step), (is_last, Place::IsLast), (trips, Place::Trips)];
        let allowed = exit.map(|exit| (exit.allowed, Place::MayExit));
        for (buffer, place) in cells.into_iter().chain(allowed) {
            if self.place(buffer)? != place {
                return Err(format!("buffer {buffer} of the loop is not a {place:?} cell"));
            }
        }
        if steps.ty != Type::scalar(DType::I32) || inner.max_steps > i32::MAX as usize {
            return Err("the loop's number of steps is not an i32".into());
        }
        if inner.reverse && exit.is_some() {
            return Err("a loop from the last step to the first cannot end early".into());
        }
        if let Some(exit) = exit
            && self.buffer(exit.done)?.ty != Type::scalar(DType::Bool)
        {
            return Err("the loop's exit is not a bool".into());
        }
        for &carried in &inner.carried {
            let buffer = self.buffer(carried)?;
            if buffer.pitch.is_some() {
                return Err(format!("rows of {}, which a loop carries, are apart", buffer.name));
            }
        }
        // Two executions of a launch have a barrier between them.
        let is_launch = |step: &Step| matches!(step, Step::Launch(_));
        if inner.body.iter().any(is_launch) && !inner.body.contains(&Step::Barrier) {
            return Err("a loop has no barrier".into());
        }
        self.steps(&inner.body, Some(inner))
    }
}
