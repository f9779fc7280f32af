//! Loops in reverse, loops over the trips of others, entries of stacks, and weights that entries update: with kernels written
//! here.
//!
//! `grad`: n iterations of `s' = s / 2 + w + step / 8`, then k more whose states before are stacked; then, over as many from the
//! last to the first, `g = (g + (step + 1) stack[step] + 100 if step is the last) / 2`, a sum in place in training state.
//! `again` does the last with a number of steps of its own. `update`: `w = w - rate g`, in place.
use super::testing::{args, input, kernel, launch, meta, output};
use super::*;
use crate::artifact::{Artifact, Contents, Meta, ParamInfo, Verify, write};
use crate::code::{Code, KernelFn};
use crate::weights::DrawnSource;
use rdc_ir::program::{
    Advance, Beyond, Buffer as Described, Dispatch, Entry, Exit, LoopStep, Offset, Place, Program, Step, Weight,
    WeightSource,
};
use rdc_ir::{ArgRole, DType, Init, Type};

const N: usize = 40;
const MAX: usize = 5;
const GRAIN: usize = 4;
const FIXED: Offset = Offset::Fixed(0);
const ENTRY: Offset = Offset::Step { stride: N * 4 };

fn columns(begin: i64, end: i64) -> std::ops::Range<usize> {
    begin as usize * GRAIN..end as usize * GRAIN
}

unsafe extern "C" fn advance(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, s: f32, w: f32, step: i32, next: f32);
    for i in columns(begin, end) {
        // SAFETY: within the tensors.
        unsafe { next.add(i).write(s.add(i).read() * 0.5 + w.add(i).read() + 0.125 * step.read() as f32) };
    }
}

unsafe extern "C" fn record(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, s: f32, entry: f32);
    for i in columns(begin, end) {
        // SAFETY: within the tensors.
        unsafe { entry.add(i).write(s.add(i).read()) };
    }
}

unsafe extern "C" fn collect(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, sum: f32, entry: f32, step: i32, last: u8, result: f32);
    for i in columns(begin, end) {
        // SAFETY: within the tensors; an element is read before it is written.
        unsafe {
            let bonus = if last.read() == 1 { 100.0 } else { 0.0 };
            result.add(i).write((sum.add(i).read() + entry.add(i).read() * (step.read() + 1) as f32 + bonus) * 0.5);
        }
    }
}

unsafe extern "C" fn descend(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, w: f32, g: f32, rate: f32, result: f32);
    for i in columns(begin, end) {
        // SAFETY: as above.
        unsafe { result.add(i).write(w.add(i).read() - rate.read() * g.add(i).read()) };
    }
}

fn vector() -> Type {
    Type::f32([N])
}

fn number() -> Type {
    Type::scalar(DType::I32)
}

#[derive(Default)]
struct Builder {
    buffers: Vec<Described>,
    arena: usize,
}

impl Builder {
    fn at(&mut self, ty: Type, place: Place) -> usize {
        self.buffers.push(Described { name: format!("b{}", self.buffers.len()), ty, pitch: None, place });
        self.buffers.len() - 1
    }
    fn arena(&mut self, ty: Type) -> usize {
        let at = self.arena;
        self.arena = (at + ty.bytes()).next_multiple_of(64);
        self.at(ty, Place::Arena(at))
    }
    /// A value that a loop carries, and its next.
    fn pair(&mut self, even: usize, odd: usize, trips: usize) -> [usize; 2] {
        [(even, odd), (odd, even)].map(|(even, odd)| self.at(vector(), Place::Pair { even, odd, trips }))
    }
    fn repeat(
        &mut self,
        (steps, trips): (usize, usize),
        reverse: bool,
        body: impl Fn(usize, usize) -> Vec<Step>,
    ) -> LoopStep {
        let step = self.at(number(), Place::Step);
        let is_last = self.at(Type::scalar(DType::Bool), Place::IsLast);
        let body = body(step, is_last);
        let advance = Advance { step, is_last, trips, exit: None };
        LoopStep { steps, max_steps: MAX, reverse, advance, body, carried: Vec::new() }
    }
    fn entry(self, name: &str, inputs: &[(ArgRole, usize)], outputs: &[usize], steps: Vec<Step>) -> Entry {
        let input = |(i, &(role, buffer)): (usize, &(ArgRole, usize))| input(&format!("i{i}"), role, buffer);
        let output = |&buffer: &usize| output(&format!("o{buffer}"), buffer, None);
        Entry {
            name: name.into(),
            inputs: inputs.iter().enumerate().map(input).collect(),
            outputs: outputs.iter().map(output).collect(),
            steps,
            buffers: self.buffers,
            live: self.arena,
            arena: self.arena,
        }
    }
}

/// `grad`, or with `own` the entry `again`, whose last loop has its own number of steps.
fn grad(own: bool) -> Entry {
    let mut b = Builder::default();
    let [n, k, m] = [0, 1, 2].map(|i| b.at(number(), Place::Input(i)));
    let x = b.at(vector(), Place::Input(3));
    let [w, g] = [0, 1].map(|i| b.at(vector(), Place::Weight(i)));
    let [even, odd] = [b.at(vector(), Place::Output(0)), b.arena(vector())];
    let [other_even, other_odd] = [b.arena(vector()), b.arena(vector())];
    let stack = b.arena(Type::f32([MAX, N]));
    let trips = [0; 3].map(|_| b.at(number(), Place::Trips));
    let [s, next] = b.pair(even, odd, trips[0]);
    let [t, next_t] = b.pair(other_even, other_odd, trips[1]);
    let go = |step: usize, s: usize, next: usize| launch(0, &[(s, FIXED), (w, FIXED), (step, FIXED), (next, FIXED)]);
    let first = b.repeat((n, trips[0]), false, |step, _| vec![go(step, s, next), Step::Barrier]);
    // No barrier between: both only read t.
    let kept = |step: usize, _| vec![launch(1, &[(t, FIXED), (stack, ENTRY)]), go(step, t, next_t), Step::Barrier];
    let second = b.repeat((k, trips[1]), false, kept);
    let back = |step: usize, last: usize| {
        vec![launch(2, &[(g, FIXED), (stack, ENTRY), (step, FIXED), (last, FIXED), (g, FIXED)]), Step::Barrier]
    };
    let last = b.repeat((if own { m } else { trips[1] }, trips[2]), true, back);
    let steps = vec![
        Step::Zero { buffer: g, beyond: None },
        Step::Copy { dst: even, src: x },
        Step::Barrier,
        Step::Loop(first),
        Step::Copy { dst: other_even, src: s },
        Step::Barrier,
        Step::Loop(second),
        Step::Zero { buffer: stack, beyond: Some(Beyond { trips: trips[1], stride: N * 4 }) },
        Step::Barrier,
        Step::Loop(last),
    ];
    let roles = [(ArgRole::NoGradSteps, n), (ArgRole::GradSteps, k), (ArgRole::Steps, m), (ArgRole::Input, x)];
    b.entry(if own { "again" } else { "grad" }, &roles, &[t], steps)
}

fn update() -> Entry {
    let mut b = Builder::default();
    let rate = b.at(Type::f32([]), Place::Input(0));
    let [w, g] = [0, 1].map(|i| b.at(vector(), Place::Weight(i)));
    let steps = vec![launch(3, &[(w, FIXED), (g, FIXED), (rate, FIXED), (w, FIXED)]), Step::Barrier];
    b.entry("update", &[(ArgRole::Input, rate)], &[], steps)
}

fn program() -> Program {
    let kernel = |name: &str, inputs: &[Type], dispatch| kernel(name, inputs, &[vector()], N / GRAIN, dispatch);
    let kernels = vec![
        kernel("advance", &[vector(), vector(), number()], Dispatch::Dynamic),
        kernel("record", &[vector()], Dispatch::Static),
        kernel("collect", &[vector(), vector(), number(), Type::scalar(DType::Bool)], Dispatch::Dynamic),
        kernel("descend", &[vector(), vector(), Type::f32([])], Dispatch::Static),
    ];
    let weight = |name: &str, source| Weight { name: name.into(), ty: vector(), source };
    // The state comes first, so that its place is not the order's.
    let weights = vec![
        weight("w", WeightSource::Param { name: "w".into(), via_bf16: false }),
        weight("grad.w", WeightSource::State { name: "grad.w".into() }),
    ];
    let entries = vec![grad(false), grad(true), update()];
    Program { kernels, weights, entries, ..super::testing::program() }
}

fn described() -> Meta {
    let param = |name: &str, state: bool| ParamInfo {
        name: name.into(),
        aliases: Vec::new(),
        ty: vector(),
        init: Init::Normal { std: 1.0 },
        in_stack: false,
        decay: true,
        state,
    };
    Meta { params: vec![param("w", false), param("grad.w", true)], ..meta(program()) }
}

fn code() -> Code {
    let kernels: [(&str, KernelFn); 4] =
        [("advance", advance), ("record", record), ("collect", collect), ("descend", descend)];
    Code::Table(kernels.into_iter().map(|(name, kernel)| (name.to_string(), kernel)).collect())
}

fn model() -> Model {
    let meta = described();
    let params = DrawnSource::new(&meta.params, 5);
    Model::from_parts(meta, code(), &params).unwrap()
}

fn x() -> Vec<f32> {
    (0..N).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// The state after n + k iterations, and the gradient over `m` entries.
fn reference(w: &[f32], (n, k, m): (usize, usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let (mut s, mut g, mut stack) = (x(), vec![0f32; N], vec![vec![0f32; N]; MAX]);
    let advance = |step: usize, s: &mut Vec<f32>| {
        s.iter_mut().zip(w).for_each(|(s, w)| *s = *s * 0.5 + w + 0.125 * step as f32);
    };
    (0..n).for_each(|step| advance(step, &mut s));
    for (step, entry) in stack.iter_mut().enumerate().take(k) {
        entry.clone_from(&s);
        advance(step, &mut s);
    }
    for step in (0..m).rev() {
        let bonus = if step + 1 == m { 100.0 } else { 0.0 };
        g.iter_mut().zip(&stack[step]).for_each(|(g, e)| *g = (*g + e * (step + 1) as f32 + bonus) * 0.5);
    }
    (s, g)
}

fn call(executor: &mut Executor, entry: usize, inputs: &[&[u8]]) -> Result<Vec<f32>, Error> {
    let mut inputs: Vec<Buffer> = inputs.iter().map(|bytes| Buffer::copy_of(bytes).unwrap()).collect();
    let sizes = executor.output_bytes(entry);
    let mut outputs: Vec<Buffer> = sizes.into_iter().map(|bytes| Buffer::zeroed(bytes).unwrap()).collect();
    let mut pointers: Vec<&mut Buffer> = inputs.iter_mut().collect();
    executor.run(entry, &mut pointers, &mut outputs, None, AfterExit::Leave)?;
    Ok(outputs.iter().flat_map(|b| bytemuck::cast_slice::<u8, f32>(b).to_vec()).collect())
}

fn grad_call(executor: &mut Executor, entry: usize, (n, k, m): (usize, usize, usize)) -> Result<Vec<f32>, Error> {
    let [n, k, m] = [n, k, m].map(|steps| (steps as i32).to_le_bytes());
    call(executor, entry, &[&n, &k, &m, bytemuck::cast_slice(&x())])
}

fn weight(executor: &Executor, index: usize) -> Vec<f32> {
    bytemuck::cast_slice(executor.model().weight(index)).to_vec()
}

#[test]
fn a_reverse_loop_over_the_trips_of_another_updates_a_weight() {
    let cases = [(0, 0), (0, 1), (2, 3), (3, MAX), (MAX, 0)];
    for threads in [1, 2, 3] {
        let mut executor = Executor::new(model(), threads).unwrap();
        assert!(weight(&executor, 1).iter().all(|x| *x == 0.0), "training state is zero at first");
        for (n, k) in cases {
            let w = weight(&executor, 0);
            let (s, g) = reference(&w, (n, k, k));
            for _ in 0..20 {
                assert_eq!(grad_call(&mut executor, 0, (n, k, 0)).unwrap(), s, "{threads} threads, {n} + {k}");
                assert_eq!(weight(&executor, 1), g, "{threads} threads, {n} + {k}");
            }
            assert_eq!(weight(&executor, 0), w, "grad does not change the parameter");
            call(&mut executor, 2, &[&0.25f32.to_le_bytes()]).unwrap();
            let updated: Vec<f32> = w.iter().zip(&g).map(|(w, g)| w - 0.25 * g).collect();
            assert_eq!(weight(&executor, 0), updated);
        }
    }
}

#[test]
fn entries_that_no_iteration_wrote_are_zero() {
    for threads in [1, 3] {
        let mut executor = Executor::new(model(), threads).unwrap();
        // What it leaves in the arena must not show in the next.
        grad_call(&mut executor, 1, (0, MAX, MAX)).unwrap();
        for (n, k, m) in [(1, 2, MAX), (0, 0, 3), (2, 4, 1)] {
            grad_call(&mut executor, 1, (n, k, m)).unwrap();
            assert_eq!(weight(&executor, 1), reference(&weight(&executor, 0), (n, k, m)).1, "{n} {k} {m}");
        }
    }
}

#[test]
fn weights_are_written_by_name_and_only_by_their_owner() {
    let mut executor = Executor::new(model(), 1).unwrap();
    let index = executor.model().find_weight("w").unwrap();
    assert_eq!((index, executor.model().find_weight("grad.w"), executor.model().find_weight("v")), (0, Some(1), None));
    let bytes = executor.model_mut().unwrap().weight_mut(index).unwrap();
    bytemuck::cast_slice_mut::<u8, f32>(bytes).fill(0.5);
    let (s, _) = reference(&[0.5; N], (2, 1, 1));
    assert_eq!(grad_call(&mut executor, 0, (2, 1, 0)).unwrap(), s);
    // Who else holds the model may be reading its weights.
    let other = executor.model().clone();
    assert!(executor.model_mut().is_err());
    let error = grad_call(&mut executor, 0, (2, 1, 0)).unwrap_err();
    assert!(error.to_string().contains("in use elsewhere"), "{error}");
    drop(other);
    assert!(grad_call(&mut executor, 0, (2, 1, 0)).is_ok());
}

#[test]
fn a_file_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.rda");
    let mut meta = described();
    let symbols = ["advance", "record", "collect", "descend"].map(|name| (name.to_string(), 0));
    meta.symbols = symbols.into();
    let params = DrawnSource::new(&meta.params, 5);
    let contents = Contents { meta: &meta, code: &[0; 64], ir: None, params: Some(&params) };
    write(&path, &contents, &mut |_, _| ()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let artifact = Artifact::open(&path, Verify::All).unwrap();
    let sections = artifact.sections();
    let weights = sections.iter().find(|s| s.name == "weights").unwrap();
    assert_eq!(weights.size, vector().bytes() as u64, "training state is not in the file");
    let mut model = Model::load(&artifact, 0).unwrap();
    let expected = DrawnSource::new(&meta.params, 5);
    let mut w = vec![0.0; N];
    crate::weights::ParamSource::read(&expected, "w", 0, &mut w).unwrap();
    assert_eq!(bytemuck::cast_slice::<u8, f32>(model.weight(0)), w);
    assert!(model.weight(1).iter().all(|&b| b == 0));
    model.weight_mut(0).unwrap().fill(7);
    model.weight_mut(1).unwrap().fill(7);
    assert!(artifact.verify().is_ok() && std::fs::read(&path).unwrap() == before);

    // A program that updates nothing works on the mapping.
    let mut still = meta.clone();
    still.program.entries.clear();
    let contents = Contents { meta: &still, ..contents };
    write(&path, &contents, &mut |_, _| ()).unwrap();
    let mut mapped = Model::load(&Artifact::open(&path, Verify::All).unwrap(), 0).unwrap();
    assert!(mapped.weight_mut(0).is_err());
}

/// Breaks the program in one place at a time; none may be accepted.
#[test]
fn malformed_updates_are_refused() {
    fn repeat(p: &mut Program, index: usize) -> &mut LoopStep {
        match &mut p.entries[0].steps[[3, 6, 9][index]] {
            Step::Loop(inner) => inner,
            _ => unreachable!("the program has three loops"),
        }
    }
    fn arg(p: &mut Program, index: usize) -> &mut rdc_ir::program::LaunchArg {
        match &mut repeat(p, 2).body[0] {
            Step::Launch(launch) => &mut launch.args[index],
            _ => unreachable!("the last loop's body is a launch"),
        }
    }
    assert_eq!(crate::validate::program(&program()), Ok(()));
    let breakers: Vec<fn(&mut Program)> = vec![
        // Weights that are laid out or tables are not written.
        |p| p.weights[1].source = WeightSource::Param { name: "w".into(), via_bf16: true },
        |p| p.weights[1].source = WeightSource::Scales { pieces: Vec::new() },
        |p| p.entries[0].steps[0] = Step::Zero { buffer: 0, beyond: None },
        |p| p.entries[0].steps[0] = Step::Zero { buffer: 99, beyond: None },
        |p| p.entries[0].steps[0] = Step::Zero { buffer: 5, beyond: Some(Beyond { trips: 0, stride: 4 }) },
        |p| repeat(p, 2).advance.exit = Some(Exit { done: repeat(p, 2).advance.is_last, allowed: 0 }),
        |p| repeat(p, 2).max_steps = MAX + 1,
        |p| arg(p, 1).offset = Offset::Step { stride: N * 4 + 4 },
        |p| arg(p, 4).buffer = 3,
        |p| arg(p, 4).offset = ENTRY,
    ];
    for (index, breaker) in breakers.iter().enumerate() {
        let mut program = program();
        breaker(&mut program);
        assert!(crate::validate::program(&program).is_err(), "breaker {index}");
    }
}
