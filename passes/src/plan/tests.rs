#![allow(clippy::unwrap_used)]
use super::check::{self, Tensors};
use super::testing::{Sizes, function, module, options};
use crate::tile::{Around, Machine, Tiled};
use crate::{Error, Options, WeightType};
use rdc_ir::interp::{self, Inputs, Tensor};
use rdc_ir::program::{Dispatch, Entry, KernelKind, Place, Program, Step, Tiling};
use rdc_ir::testing::{Config, convert, max_difference, random_inputs, random_module};
use rdc_ir::{ArgRole, DType, Func, Module, Type};
use std::rc::Rc;
use std::sync::Arc;

/// Numbers between -1 and 1 that look random.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn params(module: &Module) -> Tensors {
    let tensor = |(i, p): (usize, &rdc_ir::Param)| {
        let values = Tensor::from_f32(p.ty.shape.clone(), &noise(i + 1, p.ty.elements()));
        (p.name.clone(), Rc::new(values))
    };
    module.params.values().enumerate().map(tensor).collect()
}

fn args(func: &Func, pos: i32, steps: i32) -> Tensors {
    let body = &func.regions[func.body];
    let values = func.args.iter().zip(&body.args).enumerate().map(|(i, (arg, &value))| {
        let ty = func.ty(value);
        let ints = |v: i32| Tensor::from_i32(ty.shape.clone(), &vec![v; ty.elements()]);
        let tensor = match arg.role {
            ArgRole::Ids => {
                let ids: Vec<i32> = (0..ty.elements()).map(|i| (i * 7 % 23) as i32).collect();
                Tensor::from_i32(ty.shape.clone(), &ids)
            }
            ArgRole::Position => ints(pos),
            ArgRole::Steps => Tensor::int(steps),
            _ if ty.dtype == DType::I32 => ints(3),
            _ => Tensor::floats_of(ty.clone(), noise(100 + i, ty.elements())),
        };
        (arg.name.clone(), Rc::new(tensor))
    });
    values.collect()
}

/// Plans a function and runs it both ways.
#[track_caller]
fn agrees(func: Func, pos: i32, steps: &[i32]) -> Program {
    agrees_with(&options(), func, pos, steps)
}

#[track_caller]
fn agrees_with(options: &Options, func: Func, pos: i32, steps: &[i32]) -> Program {
    let name = func.name.clone();
    let module = module(vec![func]);
    assert_eq!(rdc_ir::verify::verify_text(&module), None);
    let program = super::testing::build(&module, options).unwrap();
    let params = params(&module);
    for &steps in steps {
        let args = args(&module.funcs[0], pos, steps);
        let inputs = Inputs { params: params.clone(), args: args.clone() };
        let want =
            interp::run(&module, &name, &inputs, &mut interp::Options { record: true, ..Default::default() }).unwrap();
        let got = check::run(&program, &name, &params, &args);
        for (name, want) in &want.tensors {
            let got = got.outputs.get(name).or(got.caches.get(name)).unwrap_or_else(|| panic!("no output {name}"));
            same(name, steps, got, want);
        }
        let want: Vec<_> = want.loops.iter().flat_map(|l| &l.states).flatten().collect();
        let got: Vec<_> = got.states.iter().flatten().collect();
        assert_eq!(want.len(), got.len());
        want.iter().zip(got).for_each(|(want, got)| same("states", steps, got, want));
    }
    program
}

#[track_caller]
fn same(name: &str, steps: i32, got: &Tensor<f32>, want: &Tensor<f32>) {
    assert_eq!(got.ty.shape, want.ty.shape, "{name}");
    for (i, (got, want)) in got.to_f64().iter().zip(want.to_f64()).enumerate() {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{name}[{i}] after {steps} steps: {got}, not {want}");
    }
}

/// The kinds of the kernels launched, loop bodies in brackets.
pub fn kinds(program: &Program, steps: &[Step]) -> String {
    let word = |step: &Step| match step {
        Step::Copy { .. } => "copy".to_string(),
        Step::Barrier => unreachable!("only launches, copies, zeros and loops have a kind"),
        Step::Zero { .. } => "zero".to_string(),
        Step::Loop(inner) => format!("[{}]", kinds(program, &inner.body)),
        Step::Launch(launch) => match program.kernels[launch.kernel].kind {
            KernelKind::Rows(_) => "rows",
            KernelKind::Matmul(_) => "matmul",
            KernelKind::KvWrite(_) => "kv",
            KernelKind::Attention(_) => "attention",
            KernelKind::DecodeAttention(_) => "decode",
            KernelKind::Product(_) => "product",
            KernelKind::Pack(_) => "pack",
            KernelKind::Columns(_) => "columns",
            KernelKind::ScatterAdd(_) => "scatter",
            KernelKind::AttentionGrad(_) => "attention_grad",
            KernelKind::Generic(_) => "generic",
        }
        .to_string(),
    };
    steps.iter().filter(|step| **step != Step::Barrier).map(word).collect::<Vec<_>>().join(" ")
}

fn schedule(program: &Program) -> String {
    let Entry { steps, .. } = &program.entries[0];
    kinds(program, steps)
}

#[test]
fn prefill_takes_six_launches_a_block() {
    let program = agrees(function("prefill", &Sizes::default()), 0, &[0, 1, 2, 4]);
    assert_eq!(
        schedule(&program),
        "rows matmul kv attention matmul matmul matmul matmul copy [matmul matmul kv attention matmul matmul matmul \
         matmul kv attention matmul matmul matmul rows] matmul generic"
    );
}

#[test]
fn decode_takes_five_launches_a_block() {
    let sizes = Sizes { s: 1, ..Sizes::default() };
    let program = agrees(function("decode", &sizes), 3, &[0, 1, 3, 4]);
    assert_eq!(
        schedule(&program),
        "rows matmul decode matmul matmul matmul matmul copy [matmul matmul decode matmul matmul matmul \
         matmul decode matmul matmul matmul rows] matmul generic"
    );
}

#[test]
fn every_policy_addresses_its_slots() {
    for policy in [("full", 0), ("modulo", 2), ("block", 3), ("anchor", 0)] {
        for s in [1, 3] {
            let sizes = Sizes { s, policy, max_steps: 10, groups: 2, ..Sizes::default() };
            agrees(function("f", &sizes), 2, &[0, 10]);
        }
    }
}

#[test]
fn batches_exits_and_weight_types() {
    for (dtype, exit, b) in [(DType::BF16, true, 2), (DType::I8, false, 3), (DType::F32, true, 1)] {
        for s in [1, 4] {
            agrees(function("f", &Sizes { dtype, exit, b, s, ..Sizes::default() }), 1, &[0, 1, 4]);
        }
    }
}

#[test]
fn attention_without_caches_writes_its_own() {
    for b in [1, 2] {
        let program = agrees(function("f", &Sizes { cached: false, b, ..Sizes::default() }), 0, &[0, 2]);
        assert!(schedule(&program).contains("kv attention"));
    }
}

#[test]
fn equal_layers_share_kernels() {
    let of = |layers, max_steps| {
        let func = function("f", &Sizes { layers, max_steps, ..Sizes::default() });
        super::testing::build(&module(vec![func]), &options()).unwrap()
    };
    let (two, five) = (of(2, 4), of(5, 30));
    assert_eq!(two.kernels.len(), five.kernels.len());
    assert_eq!(two.entries[0].arena, five.entries[0].arena, "memory depends on neither layers nor steps");
}

#[test]
fn a_program_is_the_same_each_time() {
    let build = || super::testing::build(&module(vec![function("f", &Sizes::default())]), &options()).unwrap();
    assert_eq!(build(), build());
    let types: Vec<Type> = build().weights.iter().map(|w| w.ty.clone()).collect();
    assert!(types.iter().all(|ty| ty.elements() > 0));
}

/// Random modules, before and after layout: the plan means the same, or there is an error that says why there is none.
#[test]
fn random_modules_run_as_planned() {
    let mut planned = 0;
    for seed in 0..200 {
        let training = seed % 5 == 4;
        let config =
            Config { packed: seed % 2 == 0, caches: seed % 3 != 0 && !training, training, ..Config::default() };
        let mut module = random_module(seed, &config);
        if seed % 4 < 2 {
            module = crate::optimise(module, &options(), &mut |_, _| ()).unwrap();
        }
        let text = format!("seed {seed}\n{module}");
        let program = match super::testing::build(&module, &options()) {
            Ok(program) => program,
            Err(Error::Unsupported { .. }) => continue,
            Err(e) => panic!("{e}\n{text}"),
        };
        planned += 1;
        let inputs: Inputs<f32> = convert(&random_inputs(&module, "f", seed));
        let want = interp::run(&module, "f", &inputs, &mut interp::Options::default()).unwrap();
        let run = || check::run(&program, "f", &inputs.params, &inputs.args);
        let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| panic!("{text}"));
        let tensors = want.tensors.iter().map(|(name, want)| {
            let got = got.outputs.get(name).or(got.caches.get(name)).or(got.updated.get(name)).unwrap();
            (name.clone(), Rc::new(Tensor { ty: want.ty.clone(), data: got.data.clone() }))
        });
        let got = interp::Outputs { tensors: tensors.collect(), trips: Vec::new(), loops: Vec::new() };
        let (difference, name) = max_difference(&want, &got);
        assert!(difference <= 1e-5, "{name}: {difference}\n{text}");
    }
    assert!(planned > 150, "only {planned} were planned");
}

/// Lowered models with a read-out for every exit policy: normed state fed back and an exit gate; halting per token.
#[test]
fn models_that_leave_early() {
    let texts = [include_str!("testdata/exit_gate.rdir"), include_str!("testdata/halting.rdir")];
    let mut schedules = Vec::new();
    for (text, dtype) in texts.iter().flat_map(|t| [(t, WeightType::F32), (t, WeightType::Bf16), (t, WeightType::I8)]) {
        let options = Options { dtype, ..options() };
        let module = crate::optimise(rdc_ir::parse(text).unwrap(), &options, &mut |_, _| ()).unwrap();
        let program = super::testing::build(&module, &options).unwrap();
        for entry in &program.entries {
            let inputs: Inputs<f32> = convert(&random_inputs(&module, &entry.name, 5));
            let want = interp::run(&module, &entry.name, &inputs, &mut interp::Options::default()).unwrap();
            let got = check::run(&program, &entry.name, &inputs.params, &inputs.args);
            for (name, want) in &want.tensors {
                same(name, 0, got.outputs.get(name).or(got.caches.get(name)).unwrap(), want);
            }
            if dtype == WeightType::F32 {
                schedules.push(format!("{}: {}", entry.name, kinds(&program, &entry.steps)));
            }
        }
    }
    let expected = [
        "prefill: rows rows [matmul kv attention matmul matmul matmul matmul rows matmul] matmul",
        "prefill.exit: rows rows copy zero zero copy [matmul kv attention matmul matmul matmul rows matmul rows] matmul",
        "decode: rows generic [matmul decode matmul matmul matmul matmul matmul] matmul",
        "decode.exit: rows generic copy zero zero copy [matmul decode matmul matmul matmul rows matmul] matmul",
        "prefill: rows rows [matmul kv attention matmul matmul matmul] matmul",
        "prefill.act: rows rows zero zero zero zero [matmul kv attention matmul matmul matmul rows matmul generic] matmul",
    ];
    assert_eq!(schedules, expected);
}

/// A machine of another family, that answers what it must and nothing else.
#[derive(Debug)]
struct Plain;

impl Machine for Plain {
    fn panel(&self) -> usize {
        16
    }
    fn tile(&self, kernel: &KernelKind) -> Tiled {
        let (rows, tiling) = match kernel {
            KernelKind::Rows(body) => (body.graph.rows, Tiling::Rows { rows_per_task: 3 }),
            KernelKind::Matmul(body) => {
                assert_eq!(Around::of(body), Around { before: 0, whole: false, block: 1 }, "{kernel:?}");
                (body.m, Tiling::Blocks { rows_per_task: 3, columns_per_task: body.n, kc: 16 })
            }
            _ => (1, Tiling::Whole),
        };
        Tiled { tiling, tasks: rows.div_ceil(3), dispatch: Dispatch::Dynamic }
    }
    fn loss_tokens(&self, _: usize) -> usize {
        64
    }
}

#[test]
fn a_plain_machine_fuses_elementwise_operations_only() {
    let options = Options { machine: Arc::new(Plain), ..options() };
    let program = agrees_with(&options, function("f", &Sizes::default()), 2, &[0, 3]);
    assert!(program.kernels.iter().flat_map(|kernel| &kernel.pointers).all(|pointer| pointer.pitch.is_none()));
    let wanted = "rows matmul kv attention matmul rows matmul matmul rows matmul copy [matmul rows matmul kv attention matmul rows";
    let found = kinds(&program, &program.entries[0].steps);
    assert!(found.starts_with(wanted), "{found}");
}

/// Whether running a changed program is caught.
fn is_caught(change: impl Fn(&mut Entry)) -> bool {
    let module = module(vec![function("f", &Sizes::default())]);
    let mut program = super::testing::build(&module, &options()).unwrap();
    change(&mut program.entries[0]);
    let (params, args) = (params(&module), args(&module.funcs[0], 0, 2));
    std::panic::catch_unwind(|| check::run(&program, "f", &params, &args)).is_err()
}

#[test]
fn the_check_sees_bad_plans() {
    assert!(!is_caught(|_| ()));
    // Without each of the barriers, and where a launch waits without that.
    let (mut missed, mut index, mut orders) = (Vec::new(), 0, 1);
    while index < orders {
        let seen = std::cell::Cell::new(0);
        let is_next = || seen.replace(seen.get() + 1) == index;
        fn drop_one(steps: &mut Vec<Step>, is_next: &dyn Fn() -> bool) {
            steps.retain(|step| *step != Step::Barrier || !is_next());
            for step in steps {
                match step {
                    Step::Launch(launch) => launch.waits = launch.waits && !is_next(),
                    Step::Loop(inner) => drop_one(&mut inner.body, is_next),
                    Step::Copy { .. } | Step::Zero { .. } | Step::Barrier => {}
                }
            }
        }
        if !is_caught(|entry| drop_one(&mut entry.steps, &is_next)) {
            missed.push(index);
        }
        (index, orders) = (index + 1, seen.get());
    }
    // Nothing comes after the last of the body.
    assert_eq!((orders, missed), (24, vec![2]));
    assert!(is_caught(|entry| {
        let in_arena = entry.buffers.iter_mut().filter(|b| matches!(b.place, Place::Arena(_)));
        in_arena.for_each(|b| b.place = Place::Arena(0));
    }));
}

#[test]
fn callers_are_told_of_ids_and_of_the_sequence() {
    for (s, exit) in [(4, true), (1, false)] {
        let program = agrees(function("f", &Sizes { s, exit, ..Sizes::default() }), 0, &[2]);
        let entry = &program.entries[0];
        let vocabulary = |role: ArgRole| entry.inputs.iter().find(|i| i.role == role).unwrap().vocabulary;
        assert_eq!((vocabulary(ArgRole::Ids), vocabulary(ArgRole::Position)), (Some(super::testing::VOCAB), None));
        assert_eq!(entry.outputs.iter().map(|o| o.sequence).collect::<Vec<_>>(), [Some(1), Some(2), None]);
        // What lets a loop end early is a cell, and there is none where no loop may.
        assert_eq!(entry.buffers.iter().filter(|b| b.place == Place::MayExit).count(), usize::from(exit));
    }
}

#[test]
fn weights_are_shared() {
    let sizes = Sizes::default();
    let decode = function("decode", &Sizes { s: 1, ..sizes.clone() });
    let both = module(vec![function("prefill", &sizes), decode.clone()]);
    let one = module(vec![decode]);
    let count = |module: &Module| super::testing::build(module, &options()).unwrap().weights.len();
    assert_eq!(count(&both), count(&one));

    // Layout leaves no such weight; if it did, it would be packed at run time.
    let text = "module \"m\"\nparam \"w\": f32[16, 16] = normal(1.0)
        func \"f\"(\"x\" input = %x: f32[2, 16]) {
          %w = param {name = \"w\"} : f32[16, 16]
          %t = transpose %w {perm = [1, 0]} : f32[16, 16]
          %p = pack %t {nr = 16, parts = 1} : f32[1, 16, 16, 1] @3:7
          %y = packed_matmul %x, %p {n = 16, k = 16, parts = 1} : f32[2, 16]
          yield \"y\" = %y
        }";
    let program = agrees(rdc_ir::parse(text).unwrap().funcs.remove(0), 0, &[0]);
    assert_eq!(schedule(&program), "pack matmul");
}
