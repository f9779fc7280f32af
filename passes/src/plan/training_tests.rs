//! Functions of training: forward and reverse loops, sums in place, updates.
#![allow(clippy::unwrap_used)]
use super::check;
use super::testing::options;
use super::tests::kinds;
use crate::{Error, Options, Training};
use rdc_ir::interp::{self, Inputs, Tensor};
use rdc_ir::program::{LoopStep, Offset, Place, Program, Step};
use rdc_ir::testing::{convert, most_steps, random_inputs, random_loss};
use rdc_ir::training::Remat;
use rdc_ir::{ArgRole, Module};
use std::rc::Rc;

/// Runs an entry as planned and as the interpreter does. `steps` are the numbers of the step arguments, in order.
#[track_caller]
fn same(module: &Module, program: &Program, entry: &str, steps: &[i32]) {
    let func = module.func(entry).unwrap();
    let mut inputs: Inputs<f32> = convert(&random_inputs(module, entry, 7));
    let roles = [ArgRole::Steps, ArgRole::NoGradSteps, ArgRole::GradSteps];
    for (arg, &steps) in func.args.iter().filter(|a| roles.contains(&a.role)).zip(steps) {
        inputs.args.insert(arg.name.clone(), Rc::new(Tensor::int(steps)));
    }
    if entry == "update" {
        // Rates and second moments are not negative.
        for (_, tensor) in inputs.params.iter_mut().filter(|(name, _)| name.starts_with("exp_avg_sq")) {
            *tensor = Rc::new(Tensor::floats_of(tensor.ty.clone(), tensor.floats().iter().map(|x| x.abs()).collect()));
        }
        inputs.args.values_mut().for_each(|rate| *rate = Rc::new(Tensor::floats_of(rate.ty.clone(), vec![0.5])));
    }
    let want = interp::run(module, entry, &inputs, &mut interp::Options::default()).unwrap();
    let got = check::run(program, entry, &inputs.params, &inputs.args);
    for (output, (name, want)) in func.outputs.iter().zip(&want.tensors) {
        let got = if output.updates { got.updated.get(name) } else { got.outputs.get(name) };
        close(name, steps, got.unwrap(), want);
    }
    for (name, got) in &got.updated {
        if !func.outputs.iter().any(|o| o.updates && o.name == *name) {
            assert_eq!(got.floats(), inputs.params[name].floats(), "{name} changes");
        }
    }
}

#[track_caller]
fn close(name: &str, steps: &[i32], got: &Tensor<f32>, want: &Tensor<f32>) {
    let (got, want) = (got.to_f64(), want.to_f64());
    let largest = want.iter().fold(1f64, |m, x| m.max(x.abs()));
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 2e-5 * largest, "{name}[{i}] after {steps:?} steps: {got}, not {want}");
    }
}

/// Plans the functions of a text as they are.
#[track_caller]
fn planned(text: &str) -> (Module, Program) {
    let module = rdc_ir::parse(text).unwrap();
    assert_eq!(rdc_ir::verify::verify_text(&module), None);
    let program = super::testing::build(&module, &options()).unwrap();
    (module, program)
}

fn loops(steps: &[Step]) -> Vec<&LoopStep> {
    let mut loops = Vec::new();
    for step in steps {
        if let Step::Loop(inner) = step {
            loops.push(inner);
        }
    }
    loops
}

const SUM: &str = "module \"m\"
param \"w\": f32[4, 16] = normal(1.0)
param \"grad.w\": f32[4, 16] = constant(0.0) state
func \"grad\"(\"n\" no_grad_steps = %n: i32[], \"k\" grad_steps = %k: i32[], \"x\" input = %x: f32[4, 16]) {
  %w = param {name = \"w\"} : f32[4, 16]
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %zeros = broadcast %zero {shape = [4, 16]} : f32[4, 16]
  %s, %t = loop %n, %x {max_steps = 5, exit = false, stacked = 0, reverse = false} : f32[4, 16], i32[] {
    (%step: i32[], %last: bool[], %a: f32[4, 16])
    %b = mul %a, %w : f32[4, 16]
    %c = softmax %b : f32[4, 16]
    yield %c
  }
  %s1, %t1, %all = loop %k, %s {max_steps = 5, exit = false, stacked = 1, reverse = false} : f32[4, 16], i32[], f32[5, 4, 16] {
    (%step: i32[], %last: bool[], %a: f32[4, 16])
    %b = mul %a, %w : f32[4, 16]
    %c = softmax %b : f32[4, 16]
    yield %c, %a
  }
  %ds, %dw, %t2 = loop %t1, %s1, %zeros {max_steps = 5, exit = false, stacked = 0, reverse = true} : f32[4, 16], f32[4, 16], i32[] {
    (%step: i32[], %last: bool[], %d: f32[4, 16], %sum: f32[4, 16])
    %a = index %all, %step : f32[4, 16]
    %product = mul %d, %a : f32[4, 16]
    %next = add %sum, %product : f32[4, 16]
    %soft = softmax %product : f32[4, 16]
    %e = mul %soft, %w : f32[4, 16]
    yield %e, %next
  }
  yield \"loss\" = %ds, \"grad.w\" updates = %dw
}";

#[test]
fn a_sum_over_a_reverse_loop_is_made_where_it_belongs() {
    let (module, program) = planned(SUM);
    for steps in [[0, 0], [0, 1], [2, 3], [1, 5]] {
        same(&module, &program, "grad", &steps);
    }
    let entry = &program.entries[0];
    let [_, forward, reverse] = loops(&entry.steps)[..] else { panic!("three loops") };
    assert!(reverse.reverse && !forward.reverse);
    assert_eq!(reverse.steps, forward.advance.trips);
    // The sum has one buffer, the parameter's, which is zeroed before; nothing is copied at the end.
    assert!(reverse.carried.iter().any(|&b| matches!(entry.buffers[b].place, Place::Weight(_))));
    assert!(matches!(entry.steps.last(), Some(Step::Loop(_))));
    // What the reverse loop reads, the forward loop has written at the same step.
    let moving = |inner: &LoopStep| -> Vec<usize> {
        let args =
            inner.body.iter().flat_map(|step| if let Step::Launch(launch) = step { &launch.args[..] } else { &[] });
        args.filter(|a| a.offset == Offset::Step { stride: 256 }).map(|a| a.buffer).collect()
    };
    assert_eq!((moving(forward).len(), moving(forward)), (1, moving(reverse)));
    assert_eq!(entry.outputs.len(), 1);
}

#[test]
fn parameters_that_replace_each_other_are_read_before() {
    let text = "module \"m\"
param \"p\": f32[4, 16] = normal(1.0)
param \"q\": f32[4, 16] = normal(1.0)
param \"r\": f32[4, 16] = normal(1.0)
func \"f\"(\"x\" input = %x: f32[4, 16]) {
  %p = param {name = \"p\"} : f32[4, 16]
  %q = param {name = \"q\"} : f32[4, 16]
  %r = param {name = \"r\"} : f32[4, 16]
  %a = softmax %r : f32[4, 16]
  %b = add %r, %x : f32[4, 16]
  %c = mul %a, %p : f32[4, 16]
  yield \"p\" updates = %q, \"q\" updates = %p, \"r\" updates = %b, \"c\" = %c
}";
    let (module, program) = planned(text);
    same(&module, &program, "f", &[]);
}

#[test]
fn loops_in_loops_go_on_in_one_sum() {
    let text = "module \"m\"
param \"w\": f32[4, 16] = normal(1.0)
param \"grad.w\": f32[4, 16] = constant(0.0) state
func \"f\"(\"n\" steps = %n: i32[], \"x\" input = %x: f32[5, 3, 4, 16]) {
  %w = param {name = \"w\"} : f32[4, 16]
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %three = constant {value = 3.0, dtype = i32} : i32[]
  %zeros = broadcast %zero {shape = [4, 16]} : f32[4, 16]
  %sum, %t = loop %n, %zeros {max_steps = 5, exit = false, stacked = 0, reverse = false} : f32[4, 16], i32[] {
    (%step: i32[], %last: bool[], %a: f32[4, 16])
    %rows = index %x, %step : f32[3, 4, 16]
    %b, %u = loop %three, %a {max_steps = 3, exit = false, stacked = 0, reverse = true} : f32[4, 16], i32[] {
      (%inner: i32[], %il: bool[], %c: f32[4, 16])
      %row = index %rows, %inner : f32[4, 16]
      %d = mul %row, %w : f32[4, 16]
      %e = add %c, %d : f32[4, 16]
      yield %e
    }
    yield %b
  }
  yield \"grad.w\" updates = %sum
}";
    let (module, program) = planned(text);
    for steps in 0..=5 {
        same(&module, &program, "f", &[steps]);
    }
    let entry = &program.entries[0];
    let outer = loops(&entry.steps)[0];
    let inner = loops(&outer.body)[0];
    assert_eq!(outer.carried, inner.carried);
    assert!(matches!(entry.buffers[outer.carried[0]].place, Place::Weight(_)));
    assert!(matches!(entry.buffers[inner.steps].place, Place::Arena(_)), "the constant is in memory");
}

#[test]
fn loops_that_cannot_go_on_in_one_buffer_copy() {
    // The inner result is not what its own initial value becomes; the argument is read after.
    let text = "module \"m\"
func \"f\"(\"n\" steps = %n: i32[], \"x\" input = %x: f32[4, 16]) {
  %two = constant {value = 2.0, dtype = i32} : i32[]
  %sum, %t, %all = loop %n, %x {max_steps = 4, exit = false, stacked = 1, reverse = false} : f32[4, 16], i32[], f32[4, 4, 16] {
    (%step: i32[], %last: bool[], %a: f32[4, 16])
    %b, %u = loop %two, %a {max_steps = 2, exit = false, stacked = 0, reverse = false} : f32[4, 16], i32[] {
      (%inner: i32[], %il: bool[], %c: f32[4, 16])
      %e = softmax %c : f32[4, 16]
      %f = add %e, %a : f32[4, 16]
      yield %f
    }
    yield %b, %b
  }
  yield \"sum\" = %sum, \"all\" stacked = %all
}";
    let (module, program) = planned(text);
    for steps in 0..=4 {
        same(&module, &program, "f", &[steps]);
    }
}

#[test]
fn entries_at_other_places_than_the_step() {
    let text = "module \"m\"
param \"table\": f32[6, 2, 8] = normal(1.0)
func \"f\"(\"n\" no_grad_steps = %n: i32[], \"k\" grad_steps = %k: i32[], \"x\" input = %x: f32[6, 16]) {
  %table = param {name = \"table\"} : f32[6, 2, 8]
  %two = constant {value = 2.0, dtype = i32} : i32[]
  %far = constant {value = 9.0, dtype = i32} : i32[]
  %stack = reshape %x {shape = [6, 2, 8]} : f32[6, 2, 8]
  %third = index %stack, %two : f32[2, 8]
  %last = index %table, %far : f32[2, 8]
  %init = add %third, %last : f32[2, 8]
  %s, %t, %all = loop %k, %init {max_steps = 4, exit = false, stacked = 1, reverse = false} : f32[2, 8], i32[], f32[4, 2, 8] {
    (%step: i32[], %is_last: bool[], %a: f32[2, 8])
    %here = index %stack, %step : f32[2, 8]
    %row = index %table, %step : f32[2, 8]
    %at = add %step, %n : i32[]
    %there = index %stack, %at : f32[2, 8]
    %flat = reshape %here {shape = [16]} : f32[16]
    %back = reshape %flat {shape = [2, 8]} : f32[2, 8]
    %b = add %a, %back : f32[2, 8]
    %c = mul %b, %row : f32[2, 8]
    %d = add %c, %there : f32[2, 8]
    yield %d, %here
  }
  %again, %t2 = loop %n, %s {max_steps = 4, exit = false, stacked = 0, reverse = true} : f32[2, 8], i32[] {
    (%step: i32[], %is_last: bool[], %a: f32[2, 8])
    %e = index %all, %step : f32[2, 8]
    %b = add %a, %e : f32[2, 8]
    yield %b
  }
  yield \"y\" = %again, \"table\" updates = %table
}";
    let (module, program) = planned(text);
    for steps in [[0, 0], [1, 4], [3, 2], [4, 1]] {
        same(&module, &program, "f", &steps);
    }
}

#[test]
fn what_is_joined_is_made_in_its_parts() {
    let text = "module \"m\"
param \"p\": f32[6, 16] = constant(0.0) state
param \"q\": f32[4, 16] = constant(0.0) state
param \"r\": f32[4, 16] = constant(0.0) state
func \"f\"(\"n\" steps = %n: i32[], \"x\" input = %x: f32[2, 16]) {
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %zeros = broadcast %zero {shape = [2, 16]} : f32[2, 16]
  %s, %a, %b, %t = loop %n, %x, %zeros, %zeros {max_steps = 3, exit = false, stacked = 0, reverse = false} : f32[2, 16], f32[2, 16], f32[2, 16], i32[] {
    (%step: i32[], %last: bool[], %c: f32[2, 16], %d: f32[2, 16], %e: f32[2, 16])
    %f = softmax %c : f32[2, 16]
    %g = add %d, %f : f32[2, 16]
    %h = sub %e, %f : f32[2, 16]
    yield %f, %g, %h
  }
  %y = softmax %s : f32[2, 16]
  %z = rms_norm %s, %w {eps = 1e-6} : f32[2, 16]
  %w2 = add %s, %x : f32[2, 16]
  %p = concat %y, %z, %w2 {axis = 0} : f32[6, 16]
  %q = concat %a, %b {axis = 0} : f32[4, 16]
  %r = concat %a, %x {axis = 0} : f32[4, 16]
  yield \"p\" updates = %p, \"q\" updates = %q, \"r\" updates = %r
}";
    let text = text.replace("\"x\" input = %x", "\"w\" input = %w: f32[16], \"x\" input = %x");
    let (module, program) = planned(&text);
    for steps in 0..=3 {
        same(&module, &program, "f", &[steps]);
    }
    let entry = &program.entries[0];
    let zeros = entry.steps.iter().filter(|step| matches!(step, Step::Zero { .. })).count();
    assert_eq!(zeros, 1, "one for both sums");
    let concats = program.kernels.iter().filter(|k| k.name.contains("concat")).count();
    assert_eq!(concats, 1, "an argument is no part that can be made elsewhere");
}

/// The entries that the loop inside has not written are read as zeros one iteration later, from the other of two buffers.
#[test]
fn a_stack_that_a_loop_carries_ends_in_zeros() {
    let text = "module \"m\"
func \"f\"(\"n\" steps = %n: i32[], \"x\" input = %x: f32[4, 16]) {
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %two = constant {value = 2.0, dtype = i32} : i32[]
  %zeros = broadcast %zero {shape = [3, 4, 16]} : f32[3, 4, 16]
  %s, %all, %t = loop %n, %x, %zeros {max_steps = 5, exit = false, stacked = 0, reverse = false} : f32[4, 16], f32[3, 4, 16], i32[] {
    (%step: i32[], %last: bool[], %a: f32[4, 16], %h: f32[3, 4, 16])
    %m = reduce_sum %h {axis = 0, keep = false} : f32[4, 16]
    %b = add %a, %m : f32[4, 16]
    %c, %u, %stack = loop %two, %b {max_steps = 3, exit = false, stacked = 1, reverse = false} : f32[4, 16], i32[], f32[3, 4, 16] {
      (%inner: i32[], %il: bool[], %d: f32[4, 16])
      %e = softmax %d : f32[4, 16]
      yield %e, %d
    }
    yield %c, %stack
  }
  yield \"s\" = %s, \"all\" = %all
}";
    let (module, program) = planned(text);
    for steps in 0..=5 {
        same(&module, &program, "f", &[steps]);
    }
    let outer = loops(&program.entries[0].steps)[0];
    assert!(outer.body.iter().any(|step| matches!(step, Step::Zero { beyond: Some(_), .. })));
}

/// A whole model, differentiated, under each policy, with its optimiser.
#[test]
fn training_runs_as_planned() {
    for remat in [Remat::None, Remat::Iteration] {
        let training =
            Training { max_grad_steps: 4, remat, memory: None, optimizer: None, frozen: Vec::new(), losses: true };
        let options = Options { training: Some(training), ..options() };
        let text = include_str!("testdata/loss.rdir");
        let module = crate::optimise(rdc_ir::parse(text).unwrap(), &options, &mut |_, _| ()).unwrap();
        let program = super::testing::build(&module, &options).unwrap();
        for entry in &program.entries {
            let cases: &[[i32; 2]] =
                if entry.name == "loss" { &[[0, 0], [5, 0]] } else { &[[0, 0], [0, 1], [2, 3], [1, 4]] };
            cases.iter().for_each(|steps| same(&module, &program, &entry.name, steps));
            let fits = entry.arena as f64 <= 1.1 * entry.live as f64;
            assert!(fits, "{}: {} of {}", entry.name, entry.arena, entry.live);
        }
        let grad = program.entries.iter().find(|e| e.name == "grad").unwrap();
        let schedule = kinds(&program, &grad.steps);
        println!("{remat:?}: {schedule}");
        let updated = grad.updated(&program.kernels).len();
        assert_eq!(updated, 8, "{schedule}");
    }
}

#[test]
fn random_functions_train_as_planned() {
    let mut planned = 0;
    for seed in 0..60 {
        let remat = [Remat::None, Remat::Iteration][seed as usize % 2];
        let optimizer = (seed % 5 == 0).then(Default::default);
        let training =
            Training { max_grad_steps: 3, remat, memory: None, optimizer, frozen: Vec::new(), losses: false };
        let options = Options { training: Some(training), ..options() };
        let module = random_loss(seed);
        let most = most_steps(&module) as i32;
        let text = module.to_string();
        let module = match crate::optimise(module, &options, &mut |_, _| ()) {
            Ok(module) => module,
            Err(Error::Unsupported { .. }) => continue,
            Err(e) => panic!("seed {seed}: {e}\n{text}"),
        };
        let program = super::testing::build(&module, &options).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{module}"));
        planned += 1;
        for entry in &program.entries {
            for steps in [[0, 0], [0, most.min(3)], [most / 2, (most - most / 2).min(2)]] {
                let run = || same(&module, &program, &entry.name, &steps);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                result.unwrap_or_else(|_| panic!("seed {seed}, {} after {steps:?}\n{module}", entry.name));
            }
        }
    }
    assert!(planned > 50, "only {planned} were planned");
}

/// Rows of `h` are 4 KiB long: so are those of a stack of them, of a value that is an output, and of one that the loop carries.
const WIDE: &str = "module \"m\"
param \"w\": f32[1024, 8] = normal(1.0)
param \"grad.w\": f32[1024, 8] = constant(0.0) state
func \"grad\"(\"k\" grad_steps = %k: i32[], \"x\" input = %x: f32[6, 8], \"y\" input = %y: f32[6, 1024]) {
  %w = param {name = \"w\"} : f32[1024, 8]
  %zero = constant {value = 0.0, dtype = f32} : f32[]
  %zeros = broadcast %zero {shape = [1024, 8]} : f32[1024, 8]
  %s, %c, %t, %all = loop %k, %x, %y {max_steps = 3, exit = false, stacked = 1, reverse = false} : f32[6, 8], f32[6, 1024], i32[], f32[3, 6, 1024] {
    (%step: i32[], %last: bool[], %a: f32[6, 8], %b: f32[6, 1024])
    %h = matmul %a, %w {trans_a = false, trans_b = true} : f32[6, 1024]
    %r = tanh %h : f32[6, 1024]
    %n = matmul %r, %w {trans_a = false, trans_b = false} : f32[6, 8]
    %u = tanh %n : f32[6, 8]
    %v = softmax %b : f32[6, 1024]
    yield %u, %v, %h
  }
  %ds, %dw, %t2 = loop %t, %s, %zeros {max_steps = 3, exit = false, stacked = 0, reverse = true} : f32[6, 8], f32[1024, 8], i32[] {
    (%step: i32[], %last: bool[], %d: f32[6, 8], %sum: f32[1024, 8])
    %h = index %all, %step : f32[6, 1024]
    %product = matmul %h, %d {trans_a = true, trans_b = false} : f32[1024, 8]
    %next = add %sum, %product : f32[1024, 8]
    %e = matmul %h, %w {trans_a = false, trans_b = false} : f32[6, 8]
    %u = tanh %e : f32[6, 8]
    yield %u, %next
  }
  %o = matmul %ds, %w {trans_a = false, trans_b = true} : f32[6, 1024]
  yield \"loss\" = %ds, \"carried\" = %c, \"o\" = %o, \"grad.w\" updates = %dw
}";

#[test]
fn rows_that_fall_on_each_other_lie_apart() {
    let (module, program) = planned(WIDE);
    for steps in 0..4 {
        same(&module, &program, "grad", &[steps]);
    }
    let entry = &program.entries[0];
    let apart: Vec<usize> = (0..entry.buffers.len()).filter(|&b| entry.buffers[b].pitch.is_some()).collect();
    let shapes: Vec<&[usize]> = apart.iter().map(|&b| &entry.buffers[b].ty.shape[..]).collect();
    assert_eq!(shapes, [&[3, 6, 1024][..], &[6, 1024]], "the stack and what is made of an entry");
    assert!(apart.iter().all(|&b| entry.buffers[b].pitch == Some(4160)));
    let [forward, reverse] = loops(&entry.steps)[..] else { panic!("two loops") };
    for inner in [forward, reverse] {
        let mut launches = inner.body.iter().filter_map(|step| match step {
            Step::Launch(launch) => Some(launch),
            _ => None,
        });
        let stride = 6 * 4160;
        assert!(launches.any(|l| l.args.iter().any(|a| a.offset == Offset::Step { stride })));
    }
}
