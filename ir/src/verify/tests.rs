#![allow(clippy::unwrap_used)]
use super::*;
use crate::parse::parse;

const CACHED: &str = r#"module "m"
param "w": f32[4, 4] = normal(0.1)
func "decode"(
  "pos" position = %pos: i32[1], "steps" steps = %steps: i32[],
  "s0" state normal(1.0) = %s: f32[1, 1, 2, 2], "kv" cache = %kv: cache f32[3, 1, 8, 2, 2]
) {
  %zero = constant {value = 0.0, dtype = i32} : i32[]
  %kv.1, %v0 = cache_update %kv, %s, %pos, %zero : cache f32[3, 1, 8, 2, 2], f32[1, 8, 2, 2]
  %a = attention %s, %v0, %v0, %pos {causal = true, scale = 0.5} : f32[1, 1, 2, 2]
  %out, %kv.2, %trips = loop %steps, %a, %kv.1 {max_steps = 2, exit = true, stacked = 0, reverse = false} : f32[1, 1, 2, 2], cache f32[3, 1, 8, 2, 2], i32[] {
    (%step: i32[], %last: bool[], %x: f32[1, 1, 2, 2], %c: cache f32[3, 1, 8, 2, 2])
    %slot = kv_slot %step {policy = "full", arg = 0, layer = 0, layers = 1, base = 1} : i32[]
    %c.1, %view = cache_update %c, %x, %pos, %slot : cache f32[3, 1, 8, 2, 2], f32[1, 8, 2, 2]
    %y = attention %x, %view, %view, %pos {causal = true, scale = 0.5} : f32[1, 1, 2, 2] @7:3
    yield %y, %c.1, %last
  }
  yield "out" = %out, "kv" = %kv.2
}
"#;

/// Replaces `from` by `to` in a well-formed module and compares the complaints.
#[track_caller]
fn broken(from: &str, to: &str, want: &[&str]) {
    assert!(CACHED.contains(from), "{from}");
    let module = parse(&CACHED.replacen(from, to, 1)).unwrap();
    let errors: Vec<String> = verify(&module).err().unwrap_or_default().iter().map(|e| e.to_string()).collect();
    assert_eq!(errors.len(), want.len(), "{errors:#?}");
    for (error, want) in errors.iter().zip(want) {
        assert!(error.contains(want), "{error}\ndoes not say\n{want}");
    }
}

#[test]
fn well_formed() {
    assert_eq!(verify_text(&parse(CACHED).unwrap()), None);
}

#[test]
fn types_and_attributes() {
    broken(
        "{causal = true, scale = 0.5} : f32[1, 1, 2, 2] @7:3",
        "{causal = true, scale = 0.5} : f32[1, 1, 2, 3] @7:3",
        &[
            "carried and done yields are (f32[1, 1, 2, 2],",
            "in decode: `%y = attention %x, %view, %view, %pos {causal = true, scale = 0.5} : f32[1, 1, 2, 3]` at 7:3: \
             the results are (f32[1, 1, 2, 2]), not (f32[1, 1, 2, 3])",
        ],
    );
    broken("value = 0.0, dtype = i32", "value = 0.5, dtype = i32", &["not one of its type"]);
    broken("f32[4, 4]", "f32[0, 4]", &["parameter \"w\": f32[0, 4] has a size outside"]);
    broken("f32[4, 4]", "f32[4000000000, 4000000000]", &["too large"]);
    broken("normal(0.1)", "normal(nan)", &["cannot draw from"]);
    broken("steps = %steps: i32[]", "steps = %steps: i32[1]", &["is steps: it cannot be i32[1]", "the trip count is"]);
    broken("layers = 1", "layers = 0", &["layer 0 of 0"]);
}

#[test]
fn packed_parts() {
    let text = |parts: usize| {
        format!(
            "module \"m\" func \"f\"(\"x\" input = %x: f32[1, 2], \"w\" input = %w: f32[2, 2, 4, 1]) {{
               %y = packed_matmul %x, %w {{n = 8, k = 2, parts = {parts}}} : f32[1, 8] yield \"y\" = %y }}"
        )
    };
    for (parts, ok) in [(0, false), (1, true), (2, true), (3, false), (4, true), (8, false)] {
        assert_eq!(verify(&parse(&text(parts)).unwrap()).is_ok(), ok, "{parts}");
    }
}

#[test]
fn caches_are_linear() {
    broken("\"kv\" = %kv.2", "\"kw\" = %kv.2", &["no argument of that name", "is not handed back"]);
    broken(
        "loop %steps, %a, %kv.1",
        "loop %steps, %a, %kv",
        &["%kv must have", "%kv.1 must have exactly one use, not 0"],
    );
    broken("max_steps = 2", "max_steps = 3", &["the cache has 3 slots, but slot 3 can occur"]);
    broken("cache_update %c, %x, %pos, %slot", "cache_update %c, %x, %pos, %step", &["the slot must be a constant"]);
    broken("cache_update %c, %x, %pos, %slot", "cache_update %c, %x, %pos, %x", &["slot must be i32"]);
    broken("attention %x, %view, %view", "attention %x, %view, %v0", &["the view %v0 is used in an inner region"]);
    broken(
        "  yield \"out\"",
        "  %late = neg %v0 : f32[1, 8, 2, 2]\n  yield \"out\"",
        &["the view %v0 is used after the cache has been handed on"],
    );
}

#[test]
fn loops() {
    broken("exit = true", "exit = false", &["1 stacked yields, not 0"]);
    broken("stacked = 0", "stacked = 1", &["0 stacked yields, not 1"]);
    broken("max_steps = 2", "max_steps = 0", &["max_steps cannot be 0"]);
    broken("reverse = false", "reverse = true", &["a loop in reverse cannot end early"]);
    broken("%last: bool[]", "%last: i32[]", &["the region's arguments are", "carried and done yields are"]);
}

#[test]
fn roles_and_updates() {
    let second = "\"pos\" position = %pos: i32[1], ";
    for role in ["steps", "labels", "no_grad_steps", "grad_steps"] {
        let ty = if role == "labels" { "i32[1, 1]" } else { "i32[]" };
        let two = format!("{second}\"a\" {role} = %l1: {ty}, \"b\" {role} = %l2: {ty},");
        broken(second, &two, &[&format!("more than one argument of role {role}")]);
    }
    broken(second, "\"pos\" position = %pos: i32[1], \"a\" labels = %l: i32[1],", &["is labels: it cannot be i32[1]"]);
    let update = |name: &str, kind: &str, value: &str| {
        format!("  %p = param {{name = \"w\"}} : f32[4, 4]\n  yield \"{name}\" {kind} = {value}, \"out\"")
    };
    broken("  yield \"out\"", &update("w", "updates", "%p"), &[]);
    broken("  yield \"out\"", &update("v", "updates", "%p"), &["output \"v\" updates a parameter, but there is none"]);
    broken("  yield \"out\"", &update("w", "updates", "%a"), &["is f32[1, 1, 2, 2], the parameter f32[4, 4]"]);
    broken("  yield \"out\"", &update("w", "stacked updates", "%p"), &["it cannot be stacked"]);
    let twice = update("w", "updates", "%p, \"w\" updates = %p");
    broken("  yield \"out\"", &twice, &["two outputs are named \"w\""]);
}

#[test]
fn structure() {
    let mut module = parse(CACHED).unwrap();
    let func = &mut module.funcs[0];
    let body = func.body;
    func.regions[body].ops.swap(0, 2);
    let text = verify_text(&module).unwrap();
    assert!(text.contains("%v0 is not defined before this use"), "{text}");
    let mut module = parse(CACHED).unwrap();
    let op = module.funcs[0].regions[body].ops[0];
    module.funcs[0].regions[body].ops.push(op);
    module.funcs[0].outputs.pop();
    let text = verify_text(&module).unwrap();
    assert!(text.contains("stands in two places") && text.contains("2 yields"), "{text}");
}
