//! A program built by hand, with kernels written here, to test the executor and the session without a compiler.
//!
//! Prelude: `e[b, s, :] = table[ids[b, s], :] + 0.25 pos[b]`. Loop: `s' = s / 2 + e + scale * step`, in two launches (a static one with
//! the halving, a dynamic one with the sum), stacked copies of s', and, in the entries `*.exit`, an exit once `s'[0]`
//! passes a limit. Then `sum`, the sum over the valid entries of the stack.
use crate::artifact::{Isa, Meta, Readout};
use crate::code::{Code, KernelFn};
use crate::model::Model;
use crate::weights::DrawnSource;
use rdc_ir::positions::{self, Positions};
use rdc_ir::program::body::Generic;
use rdc_ir::program::*;
use rdc_ir::{ArgRole, Attr, DType, Func, Init, Loc, Opcode, Type};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const VOCABULARY: usize = 11;
pub const DIM: usize = 24;
pub const MAX_STEPS: usize = 6;
pub const CONTEXT: usize = 40;
pub const CHUNK: usize = 8;
/// `exit` entries stop once the first element passes this.
pub const LIMIT: f32 = 3.0;
/// Columns per task.
const GRAIN: usize = 4;

macro_rules! args {
    ($args:expr, $($name:ident: $ty:ty),*) => {
        let mut next = $args;
        $(
            // SAFETY: the launch gives one pointer per argument.
            let $name = unsafe { next.read() }.cast::<$ty>();
            // SAFETY: as above.
            next = unsafe { next.add(1) };
        )*
        let _ = next;
    };
}

pub(crate) use args;

unsafe extern "C" fn embed<const ROWS: usize>(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, table: f32, ids: i32, pos: i32, out: f32);
    for row in begin as usize..end as usize {
        for c in 0..DIM {
            // SAFETY: rows are below ROWS, ids below VOCABULARY (the session checks).
            unsafe {
                let id = ids.add(row).read() as usize;
                out.add(row * DIM + c)
                    .write(table.add(id * DIM + c).read() + 0.25 * pos.read() as f32 + 0.5 * row as f32 / ROWS as f32);
            }
        }
    }
}

unsafe extern "C" fn halve(args: *const *mut u8, begin: i64, end: i64, scratch: *mut u8) {
    args!(args, s: f32, out: f32);
    for i in begin as usize * GRAIN..end as usize * GRAIN {
        // SAFETY: within the tensors; the scratch has 64 bytes.
        unsafe {
            scratch.cast::<f32>().write(s.add(i).read() * 0.5);
            out.add(i).write(scratch.cast::<f32>().read());
        }
    }
}

/// Also writes the cache: slot of the step, one element per task.
unsafe extern "C" fn add(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, half: f32, e: f32, step: i32, last: u8, cache: f32, next: f32, stack: f32);
    for task in begin as usize..end as usize {
        for i in task * GRAIN..(task + 1) * GRAIN {
            // SAFETY: within the tensors.
            unsafe {
                let bonus = if last.read() == 1 { 1000.0 } else { 0.0 };
                let x = half.add(i).read() + e.add(i).read() + 0.125 * step.read() as f32;
                next.add(i).write(x);
                stack.add(i).write(x + bonus);
            }
        }
        // SAFETY: a slot has more elements than there are tasks.
        unsafe { cache.add(task).write(task as f32 + 1.0) };
    }
}

unsafe extern "C" fn test_exit(args: *const *mut u8, _: i64, _: i64, _: *mut u8) {
    args!(args, s: f32, done: u8);
    // SAFETY: both exist.
    unsafe { done.write(u8::from(s.read() > LIMIT)) };
}

unsafe extern "C" fn sum<const ROWS: usize>(args: *const *mut u8, begin: i64, end: i64, _: *mut u8) {
    args!(args, stack: f32, out: f32);
    for i in begin as usize..end as usize {
        // SAFETY: within the tensors.
        unsafe { out.add(i).write((0..MAX_STEPS).map(|r| stack.add(r * ROWS * DIM + i).read()).sum()) };
    }
}

pub fn kernel(name: &str, inputs: &[Type], results: &[Type], tasks: usize, dispatch: Dispatch) -> Kernel {
    let mut func = Func::new(name);
    for ty in inputs {
        func.add_arg(func.body, ty.clone(), None);
    }
    let loc = Loc::default();
    let op = func.make_op(Opcode::Param, vec![], vec![Attr::Str(name.into())], results.to_vec(), vec![], loc);
    let body = func.body;
    func.regions[body].ops.push(op);
    func.regions[body].yields = func.ops[op].results.clone();
    let (flops, bytes) = (1000, 100);
    let kind = KernelKind::Generic(Generic { op, in_place: vec![], rows: None });
    let (name, tiling, pointers) = (name.into(), Tiling::Whole, pointers(inputs, results, Access::Whole));
    Kernel { name, kind, tiling, func, pointers, tasks, dispatch, scratch: 64, flops, bytes }
}

/// The pointers of a kernel that reaches all of them in the same way.
pub fn pointers(inputs: &[Type], results: &[Type], access: Access) -> Vec<Pointer> {
    let pointer = |ty: &Type, written: bool| Pointer { ty: ty.clone(), access, pitch: None, written };
    let inputs = inputs.iter().map(|ty| pointer(ty, ty.cache && ty.rank() == 5));
    inputs.chain(results.iter().map(|ty| pointer(ty, true))).collect()
}

pub fn launch(kernel: usize, args: &[(usize, Offset)]) -> Step {
    let args = args.iter().map(|&(buffer, offset)| LaunchArg { buffer, offset }).collect();
    Step::Launch(Launch { kernel, args, waits: false, locs: vec![Loc { line: kernel as u32 + 1, col: 1 }] })
}

/// An input of ids is below [`VOCABULARY`].
pub fn input(name: &str, role: ArgRole, buffer: usize) -> Input {
    let vocabulary = (role == ArgRole::Ids).then_some(VOCABULARY);
    Input { name: name.into(), role, buffer, vocabulary }
}

pub fn output(name: &str, buffer: usize, sequence: Option<usize>) -> OutputBuffer {
    OutputBuffer { name: name.into(), buffer, stacked: false, sequence }
}

fn entry(name: &str, rows: usize, kernels: usize, exit: bool) -> Entry {
    let (state, stack) = (Type::f32([1, rows, DIM]), Type::f32([MAX_STEPS, 1, rows, DIM]));
    let i32s = |shape: &[usize]| Type::new(DType::I32, shape);
    let cache = Type::cache(DType::F32, [MAX_STEPS, 1, CONTEXT, 2, 12]);
    let (mut buffers, mut arena): (Vec<Buffer>, usize) = (Vec::new(), 0);
    let mut buffer = |name: &str, ty: Type, place: Option<Place>| {
        let place = place.unwrap_or(Place::Arena(arena));
        if place == Place::Arena(arena) {
            arena += ty.bytes().next_multiple_of(64);
        }
        buffers.push(Buffer { name: name.into(), ty, pitch: None, place });
        buffers.len() - 1
    };
    let table = buffer("table", Type::f32([VOCABULARY, DIM]), Some(Place::Weight(0)));
    let ids = buffer("input_ids", i32s(&[1, rows]), Some(Place::Input(0)));
    let pos = buffer("pos", i32s(&[1]), Some(Place::Input(1)));
    let steps = buffer("steps", i32s(&[]), Some(Place::Input(2)));
    let initial = buffer("initial_state", state.clone(), Some(Place::Input(3)));
    let kv = buffer("kv", cache.clone(), Some(Place::Input(4)));
    let e = buffer("e", state.clone(), None);
    let (even, odd) = (buffer("even", state.clone(), Some(Place::Output(0))), buffer("odd", state.clone(), None));
    let half = buffer("half", state.clone(), None);
    let stacked = buffer("stack", stack.clone(), Some(Place::Output(1)));
    let total = buffer("sum", state.clone(), Some(Place::Output(2)));
    let step = buffer("step", i32s(&[]), Some(Place::Step));
    let last = buffer("is_last", Type::scalar(DType::Bool), Some(Place::IsLast));
    let trips = buffer("trips", i32s(&[]), Some(Place::Trips));
    let s = buffer("s", state.clone(), Some(Place::Pair { even, odd, trips }));
    let next = buffer("s'", state.clone(), Some(Place::Pair { even: odd, odd: even, trips }));
    let done = buffer("done", Type::scalar(DType::Bool), None);
    let allowed = buffer("may_exit", Type::scalar(DType::Bool), Some(Place::MayExit));
    let fixed = Offset::Fixed(0);
    let slot_bytes = CONTEXT * DIM * 4;
    let slot = Offset::Slot { policy: KvPolicy::Full, layer: 0, layers: 1, base: 0, stride: slot_bytes };
    let mut body = vec![
        launch(kernels + 1, &[(s, fixed), (half, fixed)]),
        Step::Barrier,
        launch(
            kernels + 2,
            &[
                (half, fixed),
                (e, fixed),
                (step, fixed),
                (last, fixed),
                (kv, slot),
                (next, fixed),
                (stacked, Offset::Step { stride: state.bytes() }),
            ],
        ),
        Step::Barrier,
    ];
    if exit {
        body.extend([launch(kernels + 3, &[(next, fixed), (done, fixed)]), Step::Barrier]);
    }
    let inner = LoopStep {
        reverse: false,
        steps,
        max_steps: MAX_STEPS,
        advance: Advance { step, is_last: last, trips, exit: exit.then_some(Exit { done, allowed }) },
        body,
        carried: vec![s],
    };
    Entry {
        name: name.into(),
        inputs: vec![
            input("input_ids", ArgRole::Ids, ids),
            input("pos", ArgRole::Position, pos),
            input("steps", ArgRole::Steps, steps),
            input("initial_state", ArgRole::State(Init::TruncNormal { std: 1.0, bound: 3.0 }), initial),
            input("kv", ArgRole::Cache, kv),
        ],
        outputs: vec![
            output("last", s, Some(1)),
            OutputBuffer { stacked: true, ..output("all", stacked, Some(2)) },
            output("sum", total, Some(1)),
            output("trips", trips, None),
        ],
        steps: vec![
            launch(kernels, &[(table, fixed), (ids, fixed), (pos, fixed), (e, fixed)]),
            Step::Copy { dst: even, src: initial },
            Step::Barrier,
            Step::Loop(inner),
            Step::Zero { buffer: stacked, beyond: Some(Beyond { trips, stride: state.bytes() }) },
            Step::Barrier,
            launch(kernels + 4, &[(stacked, fixed), (total, fixed)]),
            Step::Barrier,
        ],
        buffers,
        live: arena,
        arena,
    }
}

/// Functions `prefill` and `decode`, and both for the read-out `exit`.
pub fn program() -> Program {
    let (mut kernels, mut entries) = (Vec::new(), Vec::new());
    for (base, rows) in [("prefill", CHUNK), ("decode", 1)] {
        let first = kernels.len();
        let (state, scalar) = (Type::f32([1, rows, DIM]), Type::scalar);
        let stack = Type::f32([MAX_STEPS, 1, rows, DIM]);
        let cache = Type::cache(DType::F32, [1, 1, CONTEXT, 2, 12]);
        let tasks = rows * DIM / GRAIN;
        let (ids, pos) = (Type::new(DType::I32, [1, rows]), Type::new(DType::I32, [1]));
        let table = Type::f32([VOCABULARY, DIM]);
        let embed = kernel("embed", &[table, ids, pos], std::slice::from_ref(&state), rows, Dispatch::Dynamic);
        let adding = [&state, &state, &scalar(DType::I32), &scalar(DType::Bool), &cache].map(Type::clone);
        kernels.extend([
            embed,
            kernel("halve", std::slice::from_ref(&state), std::slice::from_ref(&state), tasks, Dispatch::Static),
            kernel("add", &adding, &[state.clone(), state.clone()], tasks, Dispatch::Dynamic),
            kernel("exit", std::slice::from_ref(&state), &[scalar(DType::Bool)], 1, Dispatch::Static),
            kernel("sum", &[stack], std::slice::from_ref(&state), rows * DIM, Dispatch::Dynamic),
        ]);
        for kernel in &mut kernels[first..] {
            kernel.name = format!("{}_{rows}", kernel.name);
        }
        entries.push(entry(base, rows, first, false));
        entries.push(entry(&format!("{base}.exit"), rows, first, true));
    }
    let source = WeightSource::Param { name: "table".into(), via_bf16: false };
    let weights = vec![Weight { name: "table".into(), ty: Type::f32([VOCABULARY, DIM]), source }];
    Program { name: "test".into(), target: "native".into(), weights, kernels, entries }
}

/// Metadata around a program.
pub fn meta(program: Program) -> Meta {
    let readout = |name: &str| Readout { name: name.into(), outputs: vec!["last".into()] };
    let axis = |name: &str, axis| (name.to_string(), positions::Place::Axis { axis, outer: 1 });
    let outputs = BTreeMap::from([axis("last", 1), axis("all", 2), axis("sum", 1)]);
    let positions = Positions { whole: None, outputs, carried_second: true };
    Meta {
        compiler: "test".into(),
        sizes: BTreeMap::from([("dim".into(), DIM.to_string())]),
        default_steps: 3,
        max_steps: MAX_STEPS,
        context: CONTEXT,
        batch: 1,
        chunks: vec![CHUNK, 1],
        readouts: vec![readout("fixed"), readout("exit")],
        shapes: BTreeMap::new(),
        positions: program.entries.iter().map(|e| (e.name.clone(), positions.clone())).collect(),
        dtype: "f32".into(),
        kv: KvPolicy::Full,
        params: vec![crate::artifact::ParamInfo {
            name: "table".into(),
            aliases: Vec::new(),
            ty: Type::f32([VOCABULARY, DIM]),
            init: Init::Normal { std: 0.5 },
            in_stack: false,
            decay: true,
            state: false,
        }],
        train: None,
        options: BTreeMap::new(),
        report: serde_json::Value::Null,
        symbols: BTreeMap::new(),
        isa: Isa { architecture: std::env::consts::ARCH.into(), requires: Vec::new() },
        program,
    }
}

/// The kernels above.
pub fn code() -> Code {
    let pairs: [(&str, KernelFn, KernelFn); 5] = [
        ("embed", embed::<CHUNK>, embed::<1>),
        ("halve", halve, halve),
        ("add", add, add),
        ("exit", test_exit, test_exit),
        ("sum", sum::<CHUNK>, sum::<1>),
    ];
    let named = pairs.iter().flat_map(|(n, p, d)| [(format!("{n}_{CHUNK}"), *p), (format!("{n}_1"), *d)]);
    Code::Table(named.collect())
}

/// The model, with the weights that a seed gives.
pub fn model(seed: u64) -> Arc<Model> {
    let meta = meta(program());
    let params = DrawnSource::new(&meta.params, seed);
    Arc::new(Model::from_parts(meta, code(), &params).unwrap())
}

/// What the program should compute, one position after another: the state after each step.
pub fn reference(model: &Model, ids: &[i32], initial: &[f32], piece: (usize, usize), steps: usize) -> Vec<Vec<f32>> {
    let table: &[f32] = bytemuck::cast_slice(model.weight(0));
    let (start, chunk) = piece;
    let mut s = initial.to_vec();
    let mut states = vec![s.clone()];
    for step in 0..steps {
        for (i, x) in s.iter_mut().enumerate() {
            let (row, c) = (i / DIM, i % DIM);
            let e = table[ids[row] as usize * DIM + c] + 0.25 * start as f32 + 0.5 * row as f32 / chunk as f32;
            *x = *x * 0.5 + e + 0.125 * step as f32;
        }
        states.push(s.clone());
    }
    states
}
