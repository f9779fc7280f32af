#![allow(clippy::unwrap_used)]
use super::*;

const SAMPLE: &str = r#"module "m"

param "w.weight": f32[4, 4] = trunc_normal(0.03, 3.0) alias "head.weight", "x\"y" decay in_stack @3:5
param "g": f32[4] = constant(1.0)

func "prefill.act"(
  "input_ids" ids = %input_ids: i32[1, 2],
  "steps" steps = %steps: i32[],
  "s0" state normal(-0.0) = %s: f32[1, 2, 4],
  "kv" cache = %kv: cache f32[8, 1, 16, 2, 2]
) {
  %0 = param {name = "w.weight"} : f32[4, 4]
  %1 = constant {value = nan(0x7ff0000000000001), dtype = f32} : f32[] @12:7
  %s.1, %2, %kv.1, %trips = loop %steps, %s, %1, %kv {max_steps = 32, exit = true, stacked = 0, reverse = false} : f32[1, 2, 4], f32[], cache f32[8, 1, 16, 2, 2], i32[] {
    (%step: i32[], %is_last: bool[], %s.2: f32[1, 2, 4], %3: f32[], %kv.2: cache f32[8, 1, 16, 2, 2])
    %h = matmul %s.2, %0 {trans_a = false, trans_b = true} : f32[1, 2, 4]
    %4 = transpose %h {perm = [0, 1, 2]} : f32[1, 2, 4] @14:1
    yield %4, %3, %kv.2, %is_last
  } @13:1
  yield "latents" = %s.1, "kv" = %kv.1, "n" stacked = %trips
}
"#;

#[test]
fn sample_round_trips() {
    let module = parse(SAMPLE).unwrap();
    assert_eq!(module.to_string(), SAMPLE);
    assert_eq!(parse(&module.to_string()).unwrap(), module);
    let func = &module.funcs[0];
    assert_eq!(parse_func(&func.to_string()).unwrap(), *func);
    assert_eq!(module.params.values().next().unwrap().aliases[1], "x\"y");
}

#[test]
fn training_round_trips() {
    let text = r#"module "m"

param "w": f32[4] = normal(0.1) decay in_stack state @3:5
param "grad.w": f32[4] = constant(0.0) state

func "grad"(
  "labels" labels = %labels: i32[1, 2],
  "n" no_grad_steps = %n: i32[],
  "k" grad_steps = %k: i32[],
  "g" input = %g: f32[4]
) {
  %y, %0 = loop %k, %g {max_steps = 2, exit = false, stacked = 0, reverse = true} : f32[4], i32[] {
    (%step: i32[], %is_last: bool[], %1: f32[4])
    yield %1
  }
  yield "trips" = %0, "grad.w" updates = %y
}
"#;
    let module = parse(text).unwrap();
    assert_eq!(module.to_string(), text);
    assert_eq!(module.params.values().map(|p| p.state).collect::<Vec<_>>(), [true, true]);
    let func = &module.funcs[0];
    let roles: Vec<_> = func.args.iter().map(|a| a.role).collect();
    assert_eq!(roles, [ArgRole::Labels, ArgRole::NoGradSteps, ArgRole::GradSteps, ArgRole::Input]);
    assert_eq!(
        func.outputs.iter().map(|o| (o.stacked, o.updates)).collect::<Vec<_>>(),
        [(false, false), (false, true)]
    );
    assert_eq!(crate::verify::verify_text(&module), None);
}

#[track_caller]
fn error(body: &str, want: &str) {
    let text = format!("module \"m\" func \"f\"(\n\"a\" input = %a: f32[2]) {{\n{body}\nyield }}");
    assert_eq!(parse(&text).unwrap_err().to_string(), want);
}

#[test]
fn errors_say_where() {
    error("%b = neg %c : f32[2]", "3:10: `%c` is not defined here");
    error("%a = neg %a : f32[2]", "3:1: `%a` is defined twice");
    error("%b = nag %a : f32[2]", "3:6: unknown operation `nag`");
    error("%b = neg %a", "4:1: 1 results but 0 types");
    error("%b = slice %a {axis = 1.5} : f32[2]", "3:23: expected an integer, found `1.5`");
    error("%b = slice %a {start = 1} : f32[2]", "3:16: expected attribute `axis`, found `start`");
    error("%b = neg %a : f33[2]", "3:15: expected an element type, found `f33`");
    error("%b = param {name = \"x} : f32[2]", "3:20: this string has no end");
    error("%b = neg ! : f32[2]", "3:10: unexpected character '!'");
    error("neg {", "4:1: expected `(`, found `yield`");
    assert_eq!(parse("module 3").unwrap_err().to_string(), "1:8: expected a string, found `3`");
    assert_eq!(parse("").unwrap_err().to_string(), "1:1: expected `module`, found the end of the text");
}

#[test]
fn inner_names_end_with_their_region() {
    let text = SAMPLE.replace("\"latents\" = %s.1", "\"latents\" = %h");
    assert_eq!(parse(&text).unwrap_err().message, "`%h` is not defined here");
}

#[test]
fn deep_nesting_is_an_error() {
    let deep =
        "%x = loop %a {max_steps = 1, exit = false, stacked = 0, reverse = false} : i32[] { ()\n".repeat(100_000);
    let text = format!("module \"m\" func \"f\"(\"a\" input = %a: f32[2]) {{\n{deep}");
    assert!(parse(&text).unwrap_err().message.contains("nested"));
}
