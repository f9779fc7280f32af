//! Launches without barriers between them, whose tasks wait for each other.
use super::order::{Phased, Spaces};
use super::testing::{args, input, kernel, launch, meta, output, pointers, program};
use super::{AfterExit, Executor};
use crate::code::{Code, KernelFn};
use crate::memory::Buffer;
use crate::model::Model;
use crate::weights::DrawnSource;
use rdc_ir::program::body::Rows;
use rdc_ir::program::rows::RowGraph;
use rdc_ir::program::{
    self as p, Access, Advance, Dispatch, Entry, Kernel, KernelKind, Launch, LoopStep, Offset, Place, Program, Step,
    Tiling,
};
use rdc_ir::{ArgRole, DType, Type};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ROWS: usize = 24;
const WIDTH: usize = 16;
const MAX: usize = 6;
const FIXED: Offset = Offset::Fixed(0);

/// Every few tasks one takes long, another one each time.
fn stumble() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    if CALLS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) >> 5 & 15 == 0 {
        std::thread::sleep(Duration::from_micros(60));
    }
}

/// The rows that tasks add one to.
///
/// # Safety
/// As a kernel's.
unsafe fn add_one(from: *const f32, to: *mut f32, rows: std::ops::Range<usize>) {
    for i in rows.start * WIDTH..rows.end * WIDTH {
        // SAFETY: within the tensors.
        unsafe { to.add(i).write(from.add(i).read() + 1.0) };
    }
}

unsafe extern "C" fn advance(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, from: f32, to: f32);
    for row in begin as usize..end as usize {
        stumble();
        // SAFETY: rows are below ROWS.
        unsafe { add_one(from, to, row..row + 1) };
    }
}

/// The sums of columns, one a task.
unsafe extern "C" fn total(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, from: f32, sums: f32, to: f32);
    for c in begin as usize..end as usize {
        stumble();
        // SAFETY: within the tensors.
        unsafe { to.add(c).write(sums.add(c).read() + (0..ROWS).map(|r| from.add(r * WIDTH + c).read()).sum::<f32>()) };
    }
}

static SIGNALLED: AtomicBool = AtomicBool::new(false);

/// The first row takes until a later launch has come to the last row.
unsafe extern "C" fn hold(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, from: f32, to: f32);
    let start = Instant::now();
    while begin == 0 && !SIGNALLED.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    // SAFETY: rows are below ROWS.
    unsafe { add_one(from, to, begin as usize..end as usize) };
}

unsafe extern "C" fn signal(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, from: f32, to: f32);
    // SAFETY: rows are below ROWS.
    unsafe { add_one(from, to, begin as usize..end as usize) };
    if end as usize == ROWS {
        SIGNALLED.store(true, Ordering::Release);
    }
}

fn rows() -> Type {
    Type::f32([ROWS, WIDTH])
}

fn kernels() -> Vec<Kernel> {
    let by_rows = |name: &str, dispatch| {
        let graph = RowGraph { rows: ROWS, nodes: vec![] };
        let (kind, tiling) = (KernelKind::Rows(Rows { graph, results: vec![] }), Tiling::Rows { rows_per_task: 1 });
        let pointers = pointers(&[rows()], &[rows()], Access::Rows(WIDTH));
        Kernel { kind, tiling, pointers, ..kernel(name, &[rows()], &[rows()], ROWS, dispatch) }
    };
    let sums = Type::f32([WIDTH]);
    vec![
        by_rows("advance", Dispatch::Dynamic),
        kernel("total", &[rows(), sums.clone()], &[sums], WIDTH, Dispatch::Static),
        by_rows("hold", Dispatch::Dynamic),
        by_rows("signal", Dispatch::Dynamic),
    ]
}

/// A launch that waits.
fn waiting(kernel: usize, args: &[usize]) -> Step {
    let args: Vec<(usize, Offset)> = args.iter().map(|&buffer| (buffer, FIXED)).collect();
    let Step::Launch(one) = launch(kernel, &args) else { unreachable!("a launch is a launch") };
    Step::Launch(Launch { waits: true, ..one })
}

/// r times: five additions of one, over two buffers in turn and the state itself, and the sums of the columns after the second.
/// Then what [`hold`] and [`signal`] make of the state.
fn entry() -> Entry {
    let mut buffers = Vec::new();
    let mut arena = 0;
    let mut buffer = |ty: Type, place: Option<Place>| {
        let place = place.unwrap_or(Place::Arena(arena));
        if place == Place::Arena(arena) {
            arena += ty.bytes().next_multiple_of(64);
        }
        buffers.push(p::Buffer { name: "b".into(), ty, pitch: None, place });
        buffers.len() - 1
    };
    let number = || Type::scalar(DType::I32);
    let steps = buffer(number(), Some(Place::Input(0)));
    let x = buffer(rows(), Some(Place::Input(1)));
    let [step, trips] = [Place::Step, Place::Trips].map(|place| buffer(number(), Some(place)));
    let is_last = buffer(Type::scalar(DType::Bool), Some(Place::IsLast));
    let [a, b] = [buffer(rows(), None), buffer(rows(), None)];
    let (even, odd) = (buffer(rows(), Some(Place::Output(0))), buffer(rows(), None));
    let s = buffer(rows(), Some(Place::Pair { even, odd, trips }));
    let next = buffer(rows(), Some(Place::Pair { even: odd, odd: even, trips }));
    let sums = buffer(Type::f32([WIDTH]), Some(Place::Output(1)));
    let held = buffer(rows(), Some(Place::Output(2)));
    let body = vec![
        waiting(0, &[s, a]),
        waiting(0, &[a, b]),
        waiting(1, &[b, sums, sums]),
        // Over what the second reads, and over what the sums read.
        waiting(0, &[b, a]),
        waiting(0, &[a, b]),
        waiting(0, &[b, next]),
        Step::Barrier,
    ];
    let inner = LoopStep {
        reverse: false,
        steps,
        max_steps: MAX,
        advance: Advance { step, is_last, trips, exit: None },
        body,
        carried: vec![s],
    };
    let steps_of = vec![
        Step::Zero { buffer: sums, beyond: None },
        Step::Copy { dst: even, src: x },
        Step::Barrier,
        Step::Loop(inner),
        waiting(2, &[s, a]),
        waiting(3, &[a, held]),
        Step::Barrier,
    ];
    Entry {
        name: "chain".into(),
        inputs: vec![input("steps", ArgRole::Steps, steps), input("x", ArgRole::Input, x)],
        outputs: vec![output("s", s, None), output("sums", sums, None), output("held", held, None)],
        steps: steps_of,
        buffers,
        live: arena,
        arena,
    }
}

fn model() -> Model {
    let program = Program { kernels: kernels(), weights: vec![], entries: vec![entry()], ..program() };
    let meta = crate::artifact::Meta { params: vec![], ..meta(program) };
    let functions: [(&str, KernelFn); 4] = [("advance", advance), ("total", total), ("hold", hold), ("signal", signal)];
    let code = Code::Table(functions.into_iter().map(|(name, function)| (name.to_string(), function)).collect());
    let params = DrawnSource::new(&meta.params, 1);
    Model::from_parts(meta, code, &params).unwrap()
}

fn run(executor: &mut Executor, steps: usize) -> [Vec<f32>; 3] {
    let x: Vec<f32> = (0..ROWS * WIDTH).map(|i| (i % 31) as f32).collect();
    let mut inputs =
        [Buffer::copy_of(&(steps as i32).to_le_bytes()).unwrap(), Buffer::copy_of(bytemuck::cast_slice(&x)).unwrap()];
    let mut outputs: Vec<Buffer> =
        executor.output_bytes(0).into_iter().map(|bytes| Buffer::zeroed(bytes).unwrap()).collect();
    let mut pointers: Vec<&mut Buffer> = inputs.iter_mut().collect();
    executor.run(0, &mut pointers, &mut outputs, None, AfterExit::Leave).unwrap();
    [0, 1, 2].map(|i| bytemuck::cast_slice(&outputs[i]).to_vec())
}

#[test]
fn tasks_wait_for_what_they_touch_and_for_nothing_else() {
    let x = |i: usize| (i % 31) as f32;
    for threads in [1usize, 2, 3, 5] {
        let mut executor = Executor::new(model(), threads).unwrap();
        for round in 0..60 {
            let steps = round % (MAX + 1);
            // One thread alone does the first row first.
            SIGNALLED.store(threads == 1, Ordering::Release);
            let start = Instant::now();
            let [s, sums, held] = run(&mut executor, steps);
            assert!(start.elapsed() < Duration::from_secs(10), "the last row waits for the first");
            let added = (5 * steps) as f32;
            assert!((0..ROWS * WIDTH).all(|i| s[i] == x(i) + added && held[i] == x(i) + added + 2.0), "{threads}");
            let sum = |c: usize| {
                let column = |step: usize| (0..ROWS).map(|r| x(r * WIDTH + c) + (5 * step + 2) as f32).sum::<f32>();
                (0..steps).map(column).sum::<f32>()
            };
            assert!((0..WIDTH).all(|c| sums[c] == sum(c)), "{threads} threads, {steps} steps");
        }
    }
}

#[test]
fn a_run_waits_for_the_fewest_that_imply_the_rest() {
    let (entry, kernels) = (entry(), kernels());
    let Step::Loop(inner) = &entry.steps[3] else { unreachable!("the fourth step is the loop") };
    let phase: Vec<Phased> = inner
        .body
        .iter()
        .filter_map(|step| match step {
            Step::Launch(launch) => Some(Phased {
                launch,
                kernel: &kernels[launch.kernel],
                // Halves; of the sums one run.
                runs: if launch.kernel == 1 { std::iter::once(0..WIDTH).collect() } else { vec![0..12, 12..24] },
            }),
            _ => None,
        })
        .collect();
    let mut next = 100;
    let orders = Spaces::new(&entry).order(&phase, &mut next);
    let after: Vec<Vec<Vec<usize>>> =
        orders.iter().map(|order| order.after.iter().map(|run| run.to_vec()).collect()).collect();
    let firsts: Vec<usize> = orders.iter().map(|order| order.first).collect();
    assert_eq!((firsts, next), (vec![100, 102, 104, 105, 107, 109], 111));
    let expected = [
        vec![vec![], vec![]],
        vec![vec![100], vec![101]],
        vec![vec![102, 103]],
        // Rows of b, and of a through those.
        vec![vec![102], vec![103]],
        // The sums read all of b.
        vec![vec![105, 104], vec![106, 104]],
        vec![vec![107], vec![108]],
    ];
    assert_eq!(after, expected);
}
