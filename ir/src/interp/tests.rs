#![allow(clippy::unwrap_used)]
use super::*;
use crate::parse::parse;
use crate::verify::verify_text;

pub(super) type T64 = Tensor<f64>;

/// Runs one function with arguments a, b, c …; all its results as numbers.
#[track_caller]
pub(super) fn results(args: &[(&str, T64)], body: &str, yields: &str) -> Vec<Vec<f64>> {
    try_results(args, body, yields).unwrap()
}

/// [`results`], or what the interpreter complains about.
#[track_caller]
pub(super) fn try_results(args: &[(&str, T64)], body: &str, yields: &str) -> Result<Vec<Vec<f64>>, InterpError> {
    let list: Vec<String> = args.iter().map(|(n, t)| format!("\"{n}\" input = %{n}: {}", t.ty)).collect();
    let outputs: Vec<String> = yields.split(' ').map(|v| format!("\"{v}\" = %{v}")).collect();
    let list = list.join(", ");
    let text = format!("module \"m\" func \"f\"({list}) {{\n{body}\nyield {}\n}}", outputs.join(", "));
    let module = parse(&text).unwrap();
    assert_eq!(verify_text(&module), None);
    let args = args.iter().map(|(n, t)| (n.to_string(), Rc::new(t.clone()))).collect();
    let out = run(&module, "f", &Inputs { params: HashMap::new(), args }, &mut Options::default())?;
    Ok(out.tensors.iter().map(|(_, t)| t.to_f64()).collect())
}

pub(super) fn floats(shape: &[usize], values: &[f32]) -> T64 {
    Tensor::from_f32(shape, values)
}

#[track_caller]
pub(super) fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} is not {b:?}");
}

#[test]
fn elementwise_broadcasts() {
    let a = floats(&[2, 1], &[1.0, 2.0]);
    let b = floats(&[3], &[1.0, f32::NAN, 3.0]);
    let out = results(
        &[("a", a), ("b", b)],
        "%s = add %a, %b : f32[2, 3]\n%m = max %a, %b : f32[2, 3]\n%l = lt %a, %b : bool[2, 3]
         %x = select %l, %a, %b : f32[2, 3]\n%i = cast %a {dtype = i32} : i32[2, 1]\n%g = gelu %a : f32[2, 1]",
        "s m l x i g",
    );
    assert_eq!((out[0][0], out[0][5]), (2.0, 5.0));
    assert!(out[1][1].is_nan() && out[1][4].is_nan());
    assert_eq!(out[2], [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    assert_eq!((out[3][2], out[3][3], out[3][5]), (1.0, 1.0, 2.0));
    assert_eq!(out[4], [1.0, 2.0]);
    close(&out[5], &[0.841344746068543, 1.954499736103642]);
}

#[test]
fn bf16_caches_hold_what_rounding_leaves() {
    let text = |cache: &str, k: &str, view: &str| {
        format!(
            r#"func "f"("q" input = %q: f32[1, 2, 2, 2], "k" input = %x: f32[1, 2, 1, 2], "pos" position = %pos: i32[1],
              "kv" cache = %kv: cache {cache}[1, 1, 4, 1, 2]) {{
              %k = {k} : f32[1, 2, 1, 2]
              %zero = constant {{value = 0.0, dtype = i32}} : i32[]
              %kv.1, %v = cache_update %kv, %k, %pos, %zero : cache {cache}[1, 1, 4, 1, 2], {view}[1, 4, 1, 2]
              %o = attention %q, %v, %v, %pos {{causal = true, scale = 0.5}} : f32[1, 2, 2, 2]
              yield "o" = %o, "kv" = %kv.1
            }}"#
        )
    };
    let run = |text: String| {
        let module = crate::parse(&format!("module \"m\"\n{text}")).unwrap();
        assert_eq!(crate::verify::verify_text(&module), None);
        let mut inputs = crate::testing::random_inputs(&module, "f", 3);
        // The same in both, and of bf16.
        let empty = Tensor { ty: inputs.args["kv"].ty.clone(), data: Data::Float(vec![0.5; 8]) };
        inputs.args.insert("kv".into(), empty.into());
        run(&module, "f", &inputs, &mut Options::default()).unwrap()
    };
    let narrow = run(text("bf16", "stop_gradient %x", "bf16"));
    let rounded = text("f32", "cast %h {dtype = f32}", "f32")
        .replace("%k = cast", "%h = cast %x {dtype = bf16} : bf16[1, 2, 1, 2]\n%k = cast");
    let wide = run(rounded);
    for (a, b) in narrow.tensors.iter().zip(&wide.tensors) {
        assert_eq!(a.1.floats(), b.1.floats(), "{}", a.0);
    }
    assert_ne!(narrow.tensors[0].1.floats(), run(text("f32", "stop_gradient %x", "f32")).tensors[0].1.floats());
}

#[test]
fn casts_round_to_bf16() {
    for (value, want) in [(1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.015625), (1.003906250001, 1.0078125)] {
        assert_eq!(Real::to_bf16(value), want);
    }
    assert_eq!(Real::to_bf16(1.0f32 + 1.0 / 256.0), 1.0);
    assert_eq!(Real::to_bf16(1e300f64), f64::INFINITY);
    assert_eq!(Real::to_bf16(-1e-300f64), 0.0);
}

#[test]
fn shapes() {
    let a = floats(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let out = results(
        &[("a", a)],
        "%t = transpose %a {perm = [1, 0]} : f32[3, 2]\n%s = slice %a {axis = 1, start = 1, end = 3} : f32[2, 2]
         %c = concat %s, %a {axis = 1} : f32[2, 5]\n%r = reduce_sum %a {axis = 0, keep = true} : f32[1, 3]
         %m = reduce_max %a {axis = 1, keep = false} : f32[2]\n%b = broadcast %m {shape = [2, 2]} : f32[2, 2]",
        "t s c r m b",
    );
    assert_eq!(out[0], [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(out[1], [1.0, 2.0, 4.0, 5.0]);
    assert_eq!(out[2], [1.0, 2.0, 0.0, 1.0, 2.0, 4.0, 5.0, 3.0, 4.0, 5.0]);
    assert_eq!(out[3], [3.0, 5.0, 7.0]);
    assert_eq!(out[4], [2.0, 5.0]);
    assert_eq!(out[5], [2.0, 5.0, 2.0, 5.0]);
}

#[test]
fn matmuls_agree_with_each_other() {
    let x = floats(&[1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let w = floats(&[4, 3], &[1.0, 0.0, -1.0, 2.0, 0.5, 1.0, -2.0, 1.0, 0.25, 3.0, 3.0, 1.0]);
    let body = "%p = matmul %x, %w {trans_a = false, trans_b = true} : f32[1, 2, 4]
         %wt = transpose %w {perm = [1, 0]} : f32[3, 4]
         %q = matmul %x, %wt {trans_a = false, trans_b = false} : f32[1, 2, 4]
         %k = pack %w {nr = 4, parts = 2} : f32[1, 3, 4, 1]
         %r = packed_matmul %x, %k {n = 4, k = 3, parts = 2} : f32[1, 2, 4]
         %i, %s = quantize %w : i8[4, 3], f32[4]
         %ki = pack %i {nr = 3, parts = 1} : i8[2, 3, 3, 1]
         %z = packed_matmul %x, %ki, %s {n = 4, k = 3, parts = 1} : f32[1, 2, 4]
         %xb = concat %x, %x {axis = 0} : f32[2, 2, 3]
         %g = matmul %xb, %xb {trans_a = true, trans_b = false} : f32[2, 3, 3]";
    let out = results(&[("x", x), ("w", w)], body, "p q r z g");
    close(&out[0], &[-2.0, 6.0, 0.75, 12.0, -2.0, 16.5, -1.5, 33.0]);
    close(&out[1], &out[0]);
    close(&out[2], &out[0]);
    assert!(out[3].iter().zip(&out[0]).all(|(a, b)| (a - b).abs() < 0.2), "{:?}", out[3]);
    close(&out[4][9..], &[17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
}

#[test]
fn norms_rope_and_gather() {
    let x = floats(&[1, 2], &[3.0, 4.0]);
    let w = floats(&[2], &[1.0, 2.0]);
    let q = floats(&[1, 1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let pos = Tensor::from_i32([1], &[1]);
    let out = results(
        &[("x", x), ("w", w), ("q", q), ("pos", pos)],
        "%n = rms_norm %x, %w {eps = 0.0} : f32[1, 2]\n%l = layer_norm %x, %w, %w {eps = 0.0} : f32[1, 2]
         %t = rope_table {len = 4, dim = 4, base = 100.0} : f32[4, 2, 2]
         %a = rope %q, %t, %pos {layout = \"adjacent\"} : f32[1, 1, 1, 4]
         %h = rope %q, %t, %pos {layout = \"half\"} : f32[1, 1, 1, 4]
         %p = positions %pos {len = 2} : i32[1, 2]\n%e = sinusoid_table {len = 4, dim = 2, base = 10.0} : f32[4, 2]
         %g = gather %e, %p : f32[1, 2, 2]",
        "n l a h g",
    );
    let rms = 12.5f64.sqrt();
    close(&out[0], &[3.0 / rms, 8.0 / rms]);
    close(&out[1], &[0.0, 4.0]);
    let (c, s, c1, s1) = (1f32.cos() as f64, 1f32.sin() as f64, 0.1f32.cos() as f64, 0.1f32.sin() as f64);
    close(&out[2], &[c - 2.0 * s, 2.0 * c + s, 3.0 * c1 - 4.0 * s1, 4.0 * c1 + 3.0 * s1]);
    close(&out[3], &[c - 3.0 * s, 2.0 * c1 - 4.0 * s1, 3.0 * c + s, 4.0 * c1 + 2.0 * s1]);
    close(&out[4], &[1f32.sin() as f64, 1f32.cos() as f64, 2f32.sin() as f64, 2f32.cos() as f64]);
}

#[test]
fn attention_yields_its_log_sum_exp() {
    let q = floats(&[1, 2, 2, 1], &[1.0, -2.0, 0.5, 3.0]);
    let k = floats(&[1, 2, 1, 1], &[0.5, -1.0]);
    let pos = Tensor::from_i32([1], &[0]);
    let body = "%o, %l = attention %q, %k, %k, %pos {causal = true, scale = 2.0, lse = true} : f32[1, 2, 2, 1], f32[1, 2, 2]
         %p = attention %q, %k, %k, %pos {causal = true, scale = 2.0} : f32[1, 2, 2, 1]
         %a, %b, %c = attention_grad %q, %k, %k, %pos, %p {causal = true, scale = 2.0} : f32[1, 2, 2, 1], f32[1, 2, 1, 1], f32[1, 2, 1, 1]
         %d, %e, %f = attention_grad %q, %k, %k, %pos, %p, %l {causal = true, scale = 2.0} : f32[1, 2, 2, 1], f32[1, 2, 1, 1], f32[1, 2, 1, 1]";
    let out = results(&[("q", q), ("k", k), ("pos", pos)], body, "o p l a d b e c f");
    let lse = |scores: &[f64]| scores.iter().map(|s| s.exp()).sum::<f64>().ln();
    close(&out[2], &[1.0, -2.0, lse(&[0.5, -1.0]), lse(&[3.0, -6.0])]);
    for pair in [[0, 1], [3, 4], [5, 6], [7, 8]] {
        close(&out[pair[0]], &out[pair[1]]);
    }
}

const DECODE: &str = r#"module "m"
func "f"("pos" position = %pos: i32[1], "x" input = %x: f32[1, 2, 2, 2], "kv" cache = %kv: cache f32[1, 1, 4, 1, 2]) {
  %zero = constant {value = 0.0, dtype = i32} : i32[]
  %k = slice %x {axis = 2, start = 0, end = 1} : f32[1, 2, 1, 2]
  %kv.1, %v = cache_update %kv, %k, %pos, %zero : cache f32[1, 1, 4, 1, 2], f32[1, 4, 1, 2]
  %a = attention %x, %v, %v, %pos {causal = true, scale = 0.5} : f32[1, 2, 2, 2]
  yield "a" = %a, "kv" = %kv.1
}
"#;

#[test]
fn chunks_through_the_cache_equal_the_whole() {
    // Two chunks of two tokens against attention computed by hand over all four keys.
    let module = parse(DECODE).unwrap();
    assert_eq!(verify_text(&module), None);
    let x: Vec<f32> = (0..16).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
    let mut cache = Rc::new(T64::zeros(&Type::cache(crate::DType::F32, [1, 1, 4, 1, 2])));
    let mut got = Vec::new();
    for chunk in 0..2 {
        let args = [
            ("pos", Tensor::from_i32([1], &[chunk * 2])),
            ("x", floats(&[1, 2, 2, 2], &x[chunk as usize * 8..][..8])),
            ("kv", (*cache).clone()),
        ];
        let args = args.into_iter().map(|(n, t)| (n.to_string(), Rc::new(t))).collect();
        let out = run(&module, "f", &Inputs { params: HashMap::new(), args }, &mut Options::default()).unwrap();
        got.extend(out.get("a").unwrap().to_f64());
        cache = out.tensors[1].1.clone();
    }
    let key = |t: usize| [x[t * 4] as f64, x[t * 4 + 1] as f64];
    for (i, got) in got.chunks(2).enumerate() {
        let q = [x[i * 2] as f64, x[i * 2 + 1] as f64];
        let weights: Vec<f64> = (0..=i / 2).map(|t| ((q[0] * key(t)[0] + q[1] * key(t)[1]) * 0.5).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let want = [0, 1].map(|d| weights.iter().enumerate().map(|(t, w)| w * key(t)[d]).sum::<f64>() / sum);
        close(got, &want);
    }
}

const LOOP: &str = r#"module "m"
param "limit": f32[] = constant(10.0)
func "f"("steps" steps = %steps: i32[], "x" input = %x: f32[]) {
  %limit = param {name = "limit"} : f32[]
  %y, %trips, %all, %lasts = loop %steps, %x {max_steps = 4, exit = true, stacked = 2, reverse = false} : f32[], i32[], f32[4], bool[4] {
    (%step: i32[], %last: bool[], %s: f32[])
    %two = add %s, %s : f32[]
    %done = lt %limit, %two : bool[]
    yield %two, %done, %two, %last
  }
  yield "y" = %y, "trips" = %trips, "all" stacked = %all, "lasts" stacked = %lasts
}
"#;

fn run_loop(steps: i32, x: f32, replay: Vec<usize>) -> Result<Outputs<f32>, InterpError> {
    let module = parse(LOOP).unwrap();
    assert_eq!(verify_text(&module), None);
    let tensor = |t| Rc::new(t);
    let inputs = Inputs {
        params: HashMap::from([("limit".to_string(), tensor(Tensor::from_f32([], &[10.0])))]),
        args: HashMap::from([
            ("steps".to_string(), tensor(Tensor::int(steps))),
            ("x".to_string(), tensor(Tensor::from_f32([], &[x]))),
        ]),
    };
    let mut seen = 0;
    let mut options = Options { record: true, replay, observer: Some(Box::new(|event| seen += event.steps.len())) };
    let out = run(&module, "f", &inputs, &mut options)?;
    drop(options);
    assert_eq!(seen, 2 * out.trips[0]);
    assert_eq!(out.loops[0].states.len(), out.trips[0]);
    Ok(out)
}

#[test]
fn loops_stop_and_stack() {
    let check = |out: Outputs<f32>, want: [&[f64]; 4]| {
        for ((_, tensor), want) in out.tensors.iter().zip(want) {
            assert_eq!(tensor.to_f64(), want);
        }
    };
    let out = |steps, x, replay| run_loop(steps, x, replay).unwrap();
    check(out(4, 1.0, vec![]), [&[16.0], &[4.0], &[2.0, 4.0, 8.0, 16.0], &[0.0, 0.0, 0.0, 1.0]]);
    check(out(3, 4.0, vec![]), [&[16.0], &[2.0], &[8.0, 16.0, 0.0, 0.0], &[0.0; 4]]);
    check(out(3, 4.0, vec![3]), [&[32.0], &[3.0], &[8.0, 16.0, 32.0, 0.0], &[0.0, 0.0, 1.0, 0.0]]);
    check(out(0, 4.0, vec![]), [&[4.0], &[0.0], &[0.0; 4], &[0.0; 4]]);
    let message = run_loop(5, 1.0, vec![]).unwrap_err().to_string();
    assert!(message.ends_with("5 steps, but max_steps is 4"), "{message}");
    assert!(run_loop(-1, 1.0, vec![]).is_err());
}

#[test]
fn rows_at_their_own_steps_give_what_they_give_alone() {
    // Two rows of caches with 5 slots; alone, each has its step as the only one.
    let text = |rows: usize, steps: &str| {
        let (x, cache, view) = (
            format!("f32[{rows}, 1, 1, 2]"),
            format!("cache f32[5, {rows}, 3, 1, 2]"),
            format!("f32[{rows}, 3, 1, 2]"),
        );
        let attrs = "policy = \"modulo\", arg = 2, layer = 1, layers = 2, base = 1";
        format!(
            r#"module "m" func "f"("x" input = %x: {x}, "pos" position = %pos: i32[{rows}], "step" input = %step: i32{steps},
              "table" input = %table: f32[4, {rows}, 2], "kv" cache = %kv: {cache}) {{
              %slot = kv_slot %step {{{attrs}}} : i32{steps}
              %kv.1, %v = cache_update %kv, %x, %pos, %slot : {cache}, {view}
              %o = attention %x, %v, %v, %pos {{causal = true, scale = 0.5}} : {x}
              %i = index %table, %step : f32[{rows}, 2]
              yield "o" = %o, "i" = %i, "kv" = %kv.1
            }}"#
        )
    };
    let row = |t: &T64, axis: usize, row: usize| {
        let (outer, inner) = (t.ty.shape[..axis].iter().product(), t.ty.shape[axis + 1..].iter().product::<usize>());
        let at = |o: usize| t.to_f64()[(o * t.ty.shape[axis] + row) * inner..][..inner].to_vec();
        (0..outer).flat_map(at).collect::<Vec<f64>>()
    };
    let module = |text: String| {
        let module = parse(&text).unwrap();
        // A scalar step that is no loop's is nothing a compiler knows an address for.
        assert_eq!(verify_text(&module).is_some(), text.contains("i32[],"));
        module
    };
    let both = module(text(2, "[2]"));
    let mut inputs = crate::testing::random_inputs(&both, "f", 5);
    inputs.args.insert("step".into(), Tensor::from_i32([2], &[0, 3]).into());
    inputs.args.insert("pos".into(), Tensor::from_i32([2], &[2, 0]).into());
    let together = run(&both, "f", &inputs, &mut Options::default()).unwrap();
    for (alone, step) in [0, 3].into_iter().enumerate() {
        for steps in ["[]", "[1]"] {
            let single = module(text(1, steps));
            let args = single.funcs[0].args.iter().zip(&single.funcs[0].regions[single.funcs[0].body].args);
            let args = args.map(|(arg, &value)| {
                let (ty, whole) = (single.funcs[0].ty(value).clone(), &inputs.args[&arg.name]);
                let axis = usize::from(["table", "kv"].contains(&arg.name.as_str()));
                let data = match &whole.data {
                    Data::Float(_) => Data::Float(row(whole, axis, alone)),
                    _ if arg.name == "step" => Data::Int(vec![step]),
                    _ => Data::Int(vec![whole.ints()[alone]]),
                };
                (arg.name.clone(), Rc::new(Tensor { ty, data }))
            });
            let inputs = Inputs { params: HashMap::new(), args: args.collect() };
            let out = run(&single, "f", &inputs, &mut Options::default()).unwrap();
            for (name, axis) in [("o", 0), ("i", 0), ("kv", 1)] {
                assert_eq!(out.get(name).unwrap().to_f64(), row(together.get(name).unwrap(), axis, alone), "{name}");
            }
        }
    }
    inputs.args.insert("step".into(), Tensor::from_i32([2], &[0, -1]).into());
    assert!(run(&both, "f", &inputs, &mut Options::default()).unwrap_err().message.contains("step -1 is negative"));
}
