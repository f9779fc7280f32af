//! A program of training built by hand, with kernels written here, to test the trainer without a compiler.
//!
//! The model is `h = w[id] / (1 + 0.1 n + 0.01 k) + b[0] x + b[1]`, with x the first column of the initial state; the loss is the mean of
//! `(h - label / V)^2 / 2` over the targets, and `correct` says where `|h - label / V| < 0.1`. The optimiser is AdamW.
use super::Trainer;
use crate::artifact::{LossInfo, Meta, ParamInfo, TrainMeta};
use crate::code::{Code, KernelFn};
use crate::exec::testing as plain;
use crate::model::Model;
use crate::weights::DrawnSource;
use rdc_ir::program::body::Generic;
use rdc_ir::program::*;
use rdc_ir::{ArgRole, Attr, DType, Func, Init, Loc, Opcode, Type};

pub const VOCABULARY: usize = 5;
pub const SEQ: usize = 3;
pub const DIM: usize = 2;
pub const MAX_GRAD: usize = 4;
pub const MAX_STEPS: usize = 16;
/// What every kernel claims to cost.
pub const FLOPS: u64 = 1000;

/// Elements `0..n` behind a pointer of a launch.
///
/// # Safety
/// The launch has that pointer, to so many elements, and no other reference is made to them.
unsafe fn slice<'a, T>(args: *const *mut u8, index: usize, n: usize) -> &'a mut [T] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(args.add(index).read().cast::<T>(), n) }
}

/// The loss and, if `grads` is given, its derivatives by w and b.
struct Tensors<'a> {
    w: &'a [f32],
    b: &'a [f32],
    ids: &'a [i32],
    labels: &'a [i32],
    state: &'a [f32],
}

fn forward(t: &Tensors, c: f32, correct: &mut [f32], mut grads: Option<(&mut [f32], &mut [f32])>) -> f32 {
    let count = t.labels.iter().filter(|l| **l >= 0).count().max(1) as f32;
    if let Some((w, b)) = &mut grads {
        w.fill(0.0);
        b.fill(0.0);
    }
    let mut loss = 0.0;
    for (i, (&id, &label)) in t.ids.iter().zip(t.labels).enumerate() {
        correct[i] = 0.0;
        if label < 0 {
            continue;
        }
        let x = t.state[i * DIM];
        let error = t.w[id as usize] * c + t.b[0] * x + t.b[1] - label as f32 / VOCABULARY as f32;
        loss += error * error / 2.0 / count;
        correct[i] = f32::from(u8::from(error.abs() < 0.1));
        if let Some((w, b)) = &mut grads {
            w[id as usize] += error * c / count;
            b[0] += error * x / count;
            b[1] += error / count;
        }
    }
    loss
}

unsafe extern "C" fn grad<const TOKENS: usize>(args: *const *mut u8, _: i64, _: i64, _: *mut u8) {
    // SAFETY: the order and sizes of `program`.
    unsafe {
        let (n, k) = (slice::<i32>(args, 5, 1)[0], slice::<i32>(args, 6, 1)[0]);
        let t = Tensors {
            w: slice(args, 0, VOCABULARY),
            b: slice(args, 1, 2),
            ids: slice(args, 2, TOKENS),
            labels: slice(args, 3, TOKENS),
            state: slice(args, 4, TOKENS * DIM),
        };
        let grads = (slice(args, 9, VOCABULARY), slice(args, 10, 2));
        let loss = forward(&t, 1.0 / (1.0 + 0.1 * n as f32 + 0.01 * k as f32), slice(args, 8, TOKENS), Some(grads));
        slice::<f32>(args, 7, 1)[0] = loss;
    }
}

unsafe extern "C" fn loss<const TOKENS: usize>(args: *const *mut u8, _: i64, _: i64, _: *mut u8) {
    // SAFETY: as above.
    unsafe {
        let r = slice::<i32>(args, 5, 1)[0];
        let t = Tensors {
            w: slice(args, 0, VOCABULARY),
            b: slice(args, 1, 2),
            ids: slice(args, 2, TOKENS),
            labels: slice(args, 3, TOKENS),
            state: slice(args, 4, TOKENS * DIM),
        };
        slice::<f32>(args, 6, 1)[0] = forward(&t, 1.0 / (1.0 + 0.1 * r as f32), slice(args, 7, TOKENS), None);
    }
}

/// Arguments: the ten scalars, then for w and for b: gradient, parameter, moments. Results: the norm, then the new ones.
unsafe extern "C" fn update(args: *const *mut u8, _: i64, _: i64, _: *mut u8) {
    // SAFETY: as above; results are where the arguments are, so only these are touched.
    unsafe {
        let scalars: Vec<f32> = (0..10).map(|i| slice::<f32>(args, i, 1)[0]).collect();
        let [lr, decay, beta1, beta2, eps, clip, bias1, bias2, _, scale] = scalars[..] else { return };
        let sizes = [VOCABULARY, 2];
        let squares = |i: usize| slice::<f32>(args, 10 + 4 * i, sizes[i]).iter().map(|g| g * g).sum::<f32>();
        let norm = (squares(0) + squares(1)).sqrt() * scale;
        slice::<f32>(args, 18, 1)[0] = norm;
        if !norm.is_finite() {
            return;
        }
        let scale = scale * (clip / (norm + 1e-6)).min(1.0);
        for (i, n) in sizes.into_iter().enumerate() {
            let at = 10 + 4 * i;
            let (g, p) = (slice::<f32>(args, at, n), slice::<f32>(args, at + 1, n));
            let (m, v) = (slice::<f32>(args, at + 2, n), slice::<f32>(args, at + 3, n));
            for j in 0..n {
                let g = g[j] * scale;
                m[j] += (1.0 - beta1) * (g - m[j]);
                v[j] = beta2 * v[j] + (1.0 - beta2) * g * g;
                let kept = if i == 0 { p[j] * (1.0 - decay) } else { p[j] };
                p[j] = kept - lr / bias1 * m[j] / ((v[j] / bias2).sqrt() + eps);
            }
        }
    }
}

unsafe extern "C" fn accumulate(args: *const *mut u8, _: i64, _: i64, _: *mut u8) {
    // SAFETY: as above.
    unsafe {
        let keep = slice::<f32>(args, 0, 1)[0];
        for (i, n) in [VOCABULARY, 2].into_iter().enumerate() {
            let (g, sum) = (slice::<f32>(args, 1 + 2 * i, n), slice::<f32>(args, 2 + 2 * i, n));
            for (sum, g) in sum.iter_mut().zip(g) {
                *sum = if keep > 0.0 { keep * *sum } else { 0.0 } + *g;
            }
        }
    }
}

/// What a value of an entry is.
enum What {
    Input(ArgRole),
    Weight,
    Output,
    Updates(&'static str),
}

/// One entry of one launch of one kernel of the same name.
fn entry(program: &mut Program, name: &str, values: &[(&str, Type, What)]) {
    let mut func = Func::new(name);
    let (mut buffers, mut inputs, mut outputs, mut results) = (vec![], vec![], vec![], vec![]);
    let mut types = Vec::new();
    for (value, ty, what) in values {
        let index = buffers.len();
        let weight = |name: &str| Place::Weight(program.weights.iter().position(|w| w.name == name).unwrap());
        let place = match what {
            What::Input(role) => {
                // Ids are looked up in the table, the first weight.
                let vocabulary = (*role == ArgRole::Ids).then(|| program.weights[0].ty.shape[0]);
                let (name, role) = ((*value).into(), *role);
                inputs.push(Input { name, role, buffer: index, vocabulary });
                Place::Input(inputs.len() - 1)
            }
            What::Output => {
                let name = (*value).into();
                outputs.push(OutputBuffer { name, buffer: index, stacked: false, sequence: None });
                Place::Output(outputs.len() - 1)
            }
            What::Weight => weight(value),
            What::Updates(name) => weight(name),
        };
        match what {
            What::Input(_) | What::Weight => {
                types.push(ty.clone());
                func.add_arg(func.body, ty.clone(), None);
            }
            What::Output | What::Updates(_) => results.push(ty.clone()),
        }
        buffers.push(Buffer { name: (*value).into(), ty: ty.clone(), pitch: None, place });
    }
    let (loc, body) = (Loc::default(), func.body);
    let pointers = plain::pointers(&types, &results, Access::Whole);
    let op = func.make_op(Opcode::Param, vec![], vec![Attr::Str(name.into())], results, vec![], loc);
    func.regions[body].ops.push(op);
    func.regions[body].yields = func.ops[op].results.clone();
    program.kernels.push(Kernel {
        name: name.into(),
        kind: KernelKind::Generic(Generic { op, in_place: vec![], rows: None }),
        tiling: Tiling::Whole,
        pointers,
        func,
        tasks: 1,
        dispatch: Dispatch::Static,
        scratch: 0,
        flops: FLOPS,
        bytes: 0,
    });
    let args = (0..buffers.len()).map(|buffer| LaunchArg { buffer, offset: Offset::Fixed(0) }).collect();
    let launch = Launch { kernel: program.kernels.len() - 1, args, waits: false, locs: vec![loc] };
    program.entries.push(Entry {
        name: name.into(),
        buffers,
        inputs,
        outputs,
        steps: vec![Step::Launch(launch), Step::Barrier],
        arena: 0,
        live: 0,
    });
}

/// The metadata of the program, for batches of so many rows.
pub fn meta(batch: usize, accumulates: bool) -> Meta {
    let mut meta = plain::meta(plain::program());
    let (w, b) = (Type::f32([VOCABULARY, 1]), Type::f32([2]));
    meta.params.clear();
    let mut program = Program { weights: vec![], kernels: vec![], entries: vec![], ..meta.program };
    for prefix in ["", "grad.", "exp_avg.", "exp_avg_sq.", "sum."] {
        for (name, ty) in [("w", &w), ("b", &b)] {
            let (name, state) = (format!("{prefix}{name}"), !prefix.is_empty());
            let source = if state {
                WeightSource::State { name: name.clone() }
            } else {
                WeightSource::Param { name: name.clone(), via_bf16: false }
            };
            program.weights.push(Weight { name: name.clone(), ty: ty.clone(), source });
            let init = if state { Init::Constant(0.0) } else { Init::Normal { std: 0.5 } };
            let (aliases, ty) = (Vec::new(), ty.clone());
            meta.params.push(ParamInfo { name, aliases, ty, init, in_stack: false, decay: true, state });
        }
    }
    let scalar = || Type::scalar(DType::F32);
    let (tokens, steps) = (Type::new(DType::I32, [batch, SEQ]), || Type::scalar(DType::I32));
    let state = Type::f32([batch, SEQ, DIM]);
    let state_role = ArgRole::State(Init::TruncNormal { std: 1.0, bound: 3.0 });
    let common = || {
        vec![
            ("w", w.clone(), What::Weight),
            ("b", b.clone(), What::Weight),
            ("input_ids", tokens.clone(), What::Input(ArgRole::Ids)),
            ("labels", tokens.clone(), What::Input(ArgRole::Labels)),
            ("initial_state", state.clone(), What::Input(state_role)),
        ]
    };
    let results = || vec![("loss", scalar(), What::Output), ("correct", Type::f32([batch, SEQ]), What::Output)];
    let mut values = common();
    values.push(("no_grad_steps", steps(), What::Input(ArgRole::NoGradSteps)));
    values.push(("grad_steps", steps(), What::Input(ArgRole::GradSteps)));
    values.extend(results());
    values.push(("grad.w", w.clone(), What::Updates("grad.w")));
    values.push(("grad.b", b.clone(), What::Updates("grad.b")));
    entry(&mut program, "grad", &values);
    let mut values = common();
    values.push(("steps", steps(), What::Input(ArgRole::Steps)));
    values.extend(results());
    entry(&mut program, "loss", &values);
    let scalars = ["lr", "decay", "beta1", "beta2", "eps", "clip", "bias1", "bias2", "first", "grad_scale"];
    let mut values: Vec<_> = scalars.map(|name| (name, scalar(), What::Input(ArgRole::Input))).into();
    let (gw, gb) = if accumulates { ("sum.w", "sum.b") } else { ("grad.w", "grad.b") };
    for (ty, names) in [(&w, [gw, "w", "exp_avg.w", "exp_avg_sq.w"]), (&b, [gb, "b", "exp_avg.b", "exp_avg_sq.b"])] {
        values.extend(names.map(|name| (name, ty.clone(), What::Weight)));
    }
    values.push(("grad_norm", scalar(), What::Output));
    for (ty, names) in [(&w, ["w", "exp_avg.w", "exp_avg_sq.w"]), (&b, ["b", "exp_avg.b", "exp_avg_sq.b"])] {
        values.extend(names.map(|name| (name, ty.clone(), What::Updates(name))));
    }
    entry(&mut program, "update", &values);
    if accumulates {
        let mut values = vec![("keep", scalar(), What::Input(ArgRole::Input))];
        for (ty, names) in [(&w, ["grad.w", "sum.w"]), (&b, ["grad.b", "sum.b"])] {
            values.extend(names.map(|name| (name, ty.clone(), What::Weight)));
        }
        values.push(("sum.w", w.clone(), What::Updates("sum.w")));
        values.push(("sum.b", b.clone(), What::Updates("sum.b")));
        entry(&mut program, "accumulate", &values);
    }
    (meta.batch, meta.max_steps) = (batch, MAX_STEPS);
    meta.train = Some(TrainMeta {
        losses: vec![LossInfo {
            products: None,
            name: "mse".into(),
            suffix: String::new(),
            outputs: vec!["loss".into(), "correct".into()],
            all_steps: false,
        }],
        batch,
        seq: SEQ,
        max_grad_steps: MAX_GRAD,
        remat: "none".into(),
        optimizer: "adamw".into(),
        accumulate: accumulates,
        frozen: Vec::new(),
        config: [("dim".to_string(), 24.into())].into_iter().collect(),
    });
    Meta { program, ..meta }
}

/// The kernels, for batches of 2 or 4 rows.
fn code(batch: usize) -> Code {
    let grads: [KernelFn; 2] = if batch == 2 { [grad::<6>, loss::<6>] } else { [grad::<12>, loss::<12>] };
    let [grad, loss] = grads;
    let named: [(&str, KernelFn); 4] = [("grad", grad), ("loss", loss), ("update", update), ("accumulate", accumulate)];
    Code::Table(named.map(|(name, f)| (name.to_string(), f)).into())
}

/// A trainer with parameters drawn under a seed.
pub fn trainer_of(meta: Meta, seed: u64) -> Trainer {
    let params = DrawnSource::new(&meta.params, seed);
    let code = code(meta.batch);
    Trainer::new(Model::from_parts(meta, code, &params).unwrap(), 2, Some(&params)).unwrap()
}

/// A trainer for batches of 2 or 4 rows.
pub fn trainer(batch: usize, accumulates: bool) -> Trainer {
    trainer_of(meta(batch, accumulates), 5)
}
