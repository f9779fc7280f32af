//! The operations of training: results computed by hand, derivatives against central differences.
#![allow(clippy::unwrap_used)]
use super::tests::{T64, close, floats, results, try_results};
use super::*;
use crate::parse::parse;
use crate::testing::Rng;
use crate::verify::verify_text;

fn ints(shape: &[usize], values: &[i32]) -> T64 {
    Tensor::from_i32(shape, values)
}

fn random(rng: &mut Rng, shape: &[usize]) -> T64 {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.unit()).collect();
    floats(shape, &values)
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks `grad` against central differences of `<weights, the first result of body>` by argument `which`.
#[track_caller]
fn check_gradient(args: &[(&str, T64)], which: &str, body: &str, out: &str, weights: &[f64], grad: &[f64]) {
    const STEP: f64 = 1e-5;
    let at = args.iter().position(|(name, _)| *name == which).unwrap();
    let moved = |i: usize, by: f64| {
        let mut args = args.to_vec();
        let Data::Float(values) = &mut args[at].1.data else { panic!("{which} is not float") };
        values[i] += by;
        inner(&results(&args, body, out)[0], weights)
    };
    assert_eq!(grad.len(), args[at].1.data.len());
    for (i, &grad) in grad.iter().enumerate() {
        let difference = (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP);
        assert!((difference - grad).abs() < 1e-8, "d{which}[{i}] is {grad}, the difference {difference}");
    }
}

#[test]
fn moves_and_sums() {
    let a = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let ids = ints(&[4], &[2, -1, 0, 3]);
    let i = ints(&[], &[1]);
    let out = results(
        &[("a", a), ("ids", ids), ("i", i)],
        "%p = pad %a {axis = 1, start = 1, size = 5} : f32[2, 5]\n%q = pad %a {axis = 0, start = 0, size = 3} : f32[3, 3]
         %e = index %a, %i : f32[3]\n%h = one_hot %ids {n = 3} : f32[4, 3]
         %r = sum_to %a {shape = [2, 1]} : f32[2, 1]\n%c = sum_to %a {shape = [3]} : f32[3]
         %s = sum_to %a {shape = []} : f32[]\n%n = sum_to %a {shape = [2, 3]} : f32[2, 3]\n%t = atan %a : f32[2, 3]
         %k = reshape %p {shape = [5, 1, 2]} : f32[5, 1, 2]\n%b = sum_blocks %k {rows = 2} : f32[3, 2]",
        "p q e h r c s n t b",
    );
    assert_eq!(out[0], [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 4.0, 5.0, 6.0, 0.0]);
    assert_eq!(out[1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
    assert_eq!(out[2], [4.0, 5.0, 6.0]);
    assert_eq!(out[3], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((&out[4][..], &out[5][..], &out[6][..]), (&[6.0, 15.0][..], &[5.0, 7.0, 9.0][..], &[21.0][..]));
    assert_eq!(out[7], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    close(&out[8][..1], &[std::f64::consts::FRAC_PI_4]);
    assert_eq!(out[9], [2.0, 4.0, 4.0, 5.0, 6.0, 0.0]);
}

#[test]
fn index_clamps_and_keeps_the_type() {
    for (i, want) in [(-5, 1.0), (0, 1.0), (1, 0.0), (2, 1.0), (7, 1.0)] {
        let body =
            "%z = constant {value = 0.0, dtype = f32} : f32[]\n%b = lt %z, %a : bool[3]\n%e = index %b, %i : bool[]";
        let a = floats(&[3], &[1.0, -1.0, 2.0]);
        assert_eq!(results(&[("a", a), ("i", ints(&[], &[i]))], body, "e")[0], [want], "{i}");
    }
}

#[test]
fn scatter_add_is_the_adjoint_of_gather() {
    let mut rng = Rng::new(1);
    let (table, rows, base) = (random(&mut rng, &[5, 3]), random(&mut rng, &[2, 3, 3]), random(&mut rng, &[5, 3]));
    // Some ids repeat; their rows add up.
    let ids = |last| ints(&[2, 3], &[4, 0, 4, 2, 0, last]);
    let args = |last| {
        let zero = floats(&[5, 3], &[0.0; 15]);
        let all = [("t", &table), ("r", &rows), ("b", &base), ("z", &zero), ("ids", &ids(last))];
        all.map(|(name, tensor)| (name, tensor.clone()))
    };
    let body = "%g = gather %t, %ids : f32[2, 3, 3]\n%s = scatter_add %z, %ids, %r : f32[5, 3]
         %o = scatter_add %b, %ids, %r : f32[5, 3]";
    let out = results(&args(4), body, "g s o");
    close(&[inner(&out[0], &rows.to_f64())], &[inner(&table.to_f64(), &out[1])]);
    let sum: Vec<f64> = base.to_f64().iter().zip(&out[1]).map(|(b, s)| b + s).collect();
    close(&out[2], &sum);
    for last in [-1, 5] {
        let message = try_results(&args(last), "%s = scatter_add %b, %ids, %r : f32[5, 3]", "s").unwrap_err().message;
        assert_eq!(message, format!("id {last} is outside 0..5"));
    }
}

#[test]
fn cross_entropy_by_hand() {
    let logits = floats(&[4, 3], &[1.0, 2.0, 0.5, 1.0, 2.0, 0.5, 700.0, 700.0, -900.0, 1.0, f32::NAN, 0.0]);
    let labels = |last| ints(&[4], &[1, 0, 1, last]);
    let body = "%n, %c = cross_entropy %x, %l {z_loss = 0.0} : f32[4], f32[4]
         %z, %d = cross_entropy %x, %l {z_loss = 0.5} : f32[4], f32[4]";
    let out = results(&[("x", logits.clone()), ("l", labels(-100))], body, "n c z d");
    let lse = (1f64.exp() + 2f64.exp() + 0.5f64.exp()).ln();
    let far = 700.0 + 2f64.ln();
    close(&out[0], &[lse - 2.0, lse - 1.0, far - 700.0, 0.0]);
    // Of equal logits each is the largest.
    assert_eq!((&out[1][..], &out[3]), (&[1.0, 0.0, 1.0, 0.0][..], &out[1]));
    let z: Vec<f64> = out[0].iter().zip([lse, lse, far, 0.0]).map(|(n, lse)| n + 0.5 * lse * lse).collect();
    assert!(z.iter().zip(&out[2]).all(|(a, b)| (a - b).abs() < 1e-9), "{z:?} {:?}", out[2]);
    let out = results(&[("x", logits.clone()), ("l", labels(0))], body, "n c");
    assert!(out[0][3].is_nan() && out[1][3] == 0.0);
    for label in [-1, 3, -99] {
        let message = try_results(&[("x", logits.clone()), ("l", labels(label))], body, "n").unwrap_err().message;
        assert_eq!(message, format!("label {label} is outside 0..3 and not -100"));
    }
}

#[test]
fn cross_entropy_grad_is_the_derivative() {
    let mut rng = Rng::new(2);
    let dnll = floats(&[2, 2], &[0.5, -2.0, f32::NAN, 1.5]);
    let args = [("x", random(&mut rng, &[2, 2, 5])), ("l", ints(&[2, 2], &[3, 0, -100, 4])), ("d", dnll)];
    for z_loss in [0.0, 0.3] {
        let forward = format!("%n, %c = cross_entropy %x, %l {{z_loss = {z_loss:?}}} : f32[2, 2], f32[2, 2]");
        let grad = format!("%g = cross_entropy_grad %x, %l, %d {{z_loss = {z_loss:?}}} : f32[2, 2, 5]");
        let grad = &results(&args, &grad, "g")[0];
        check_gradient(&args, "x", &forward, "n", &[0.5, -2.0, 0.0, 1.5], grad);
        assert_eq!(grad[10..15], [0.0; 5]);
    }
}

#[test]
fn linear_cross_entropy_is_that_of_the_logits() {
    let mut rng = Rng::new(3);
    let (x, w, b) = (random(&mut rng, &[2, 2, 3]), random(&mut rng, &[7, 3]), random(&mut rng, &[7]));
    let dnll = random(&mut rng, &[2, 2]);
    // The second label is ignored.
    let mut weights = dnll.to_f64();
    weights[1] = 0.0;
    let args = [("x", x), ("w", w), ("b", b), ("l", ints(&[2, 2], &[6, -100, 0, 2])), ("d", dnll)];
    for bias in [false, true] {
        let (b, db) = if bias { (", %b", ", f32[7]") } else { ("", "") };
        let forward = format!("%n, %c = linear_cross_entropy %x, %w, %l{b} {{z_loss = 0.1}} : f32[2, 2], f32[2, 2]");
        let y = if bias { "%y" } else { "%y0" };
        let plain = format!(
            "%y0 = matmul %x, %w {{trans_a = false, trans_b = true}} : f32[2, 2, 7]\n%y = add %y0, %b : f32[2, 2, 7]
             %n, %c = cross_entropy {y}, %l {{z_loss = 0.1}} : f32[2, 2], f32[2, 2]"
        );
        let (out, want) = (results(&args, &forward, "n c"), results(&args, &plain, "n c"));
        close(&out[0], &want[0]);
        assert_eq!(out[1], want[1]);
        let (names, yields) = if bias { ("%dx, %dw, %db", "dx dw db") } else { ("%dx, %dw", "dx dw") };
        let grad = format!(
            "{names} = linear_cross_entropy_grad %x, %w, %l, %d{b} {{z_loss = 0.1}} : f32[2, 2, 3], f32[7, 3]{db}"
        );
        for (grad, which) in results(&args, &grad, yields).iter().zip(["x", "w", "b"]) {
            check_gradient(&args, which, &forward, "n", &weights, grad);
        }
    }
}

#[test]
fn rope_grad_turns_back() {
    let mut rng = Rng::new(4);
    let (x, y) = (random(&mut rng, &[2, 3, 2, 4]), random(&mut rng, &[2, 3, 2, 4]));
    let args = [("x", x), ("y", y), ("pos", ints(&[2], &[3, 0]))];
    for layout in ["adjacent", "half"] {
        let body = format!(
            "%t = rope_table {{len = 6, dim = 4, base = 10.0}} : f32[6, 2, 2]
             %r = rope %x, %t, %pos {{layout = \"{layout}\"}} : f32[2, 3, 2, 4]
             %b = rope_grad %y, %t, %pos {{layout = \"{layout}\"}} : f32[2, 3, 2, 4]"
        );
        let out = results(&args, &body, "r b");
        check_gradient(&args, "x", &body, "r", &args[1].1.to_f64(), &out[1]);
    }
}

#[test]
fn attention_grad_is_the_derivative() {
    let mut rng = Rng::new(5);
    // (S, T, H, G, causal): grouped keys, chunks that end before and after the keys do.
    for (s, t, h, g, causal) in [(3, 3, 2, 2, true), (3, 3, 4, 2, false), (2, 5, 2, 1, true), (2, 3, 3, 1, true)] {
        let (q, k) = ([2, s, h, 4], [2, t, g, 4]);
        let dout = random(&mut rng, &q);
        let args = [
            ("q", random(&mut rng, &q)),
            ("k", random(&mut rng, &k)),
            ("v", random(&mut rng, &k)),
            ("pos", ints(&[2], &[0, 2])),
            ("d", dout.clone()),
        ];
        let attrs = format!("{{causal = {causal}, scale = 0.7}}");
        let forward = format!("%o = attention %q, %k, %v, %pos {attrs} : {}", dout.ty);
        let grad = format!(
            "%dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %d {attrs} : {}, {}, {}",
            args[0].1.ty, args[1].1.ty, args[2].1.ty
        );
        let grads = results(&args, &grad, "dq dk dv");
        assert!(grads.iter().all(|g| g.iter().any(|v| v.abs() > 1e-3)), "{grads:?}");
        for (grad, which) in grads.iter().zip(["q", "k", "v"]) {
            check_gradient(&args, which, &forward, "o", &dout.to_f64(), grad);
        }
    }
}

#[test]
fn loops_run_in_reverse() {
    let text = r#"module "m"
func "f"("steps" steps = %steps: i32[], "x" input = %x: f32[]) {
  %y, %trips, %all = loop %steps, %x {max_steps = 4, exit = false, stacked = 1, reverse = false} : f32[], i32[], f32[4] {
    (%step: i32[], %last: bool[], %s: f32[])
    %two = add %s, %s : f32[]
    yield %two, %s
  }
  %z, %again, %back, %steps2, %lasts = loop %trips, %x {max_steps = 4, exit = false, stacked = 3, reverse = true} : f32[], i32[], f32[4], i32[4], bool[4] {
    (%i: i32[], %is_last: bool[], %sum: f32[])
    %seen = index %all, %i : f32[]
    %ten = constant {value = 10.0, dtype = f32} : f32[]
    %shifted = mul %sum, %ten : f32[]
    %next = add %shifted, %seen : f32[]
    yield %next, %seen, %i, %is_last
  }
  yield "z" = %z, "again" = %again, "back" stacked = %back, "steps2" stacked = %steps2, "lasts" stacked = %lasts
}
"#;
    let module = parse(text).unwrap();
    assert_eq!(verify_text(&module), None);
    let check = |steps: i32, want: [&[f64]; 5]| {
        let args = [("steps", Tensor::int(steps)), ("x", floats(&[], &[1.0]))];
        let args = args.into_iter().map(|(n, t)| (n.to_string(), Rc::new(t))).collect();
        let mut seen: Vec<usize> = Vec::new();
        let observer: Observer<f64> = Box::new(|event| {
            if event.func.ops[event.op].opcode == Opcode::Index {
                seen.extend(event.steps);
            }
        });
        let mut options = Options { observer: Some(observer), ..Options::default() };
        let out = run(&module, "f", &Inputs { params: HashMap::new(), args }, &mut options).unwrap();
        drop(options);
        for ((name, tensor), want) in out.tensors.iter().zip(want) {
            assert_eq!(tensor.to_f64(), want, "{name}");
        }
        assert_eq!(seen, (0..steps as usize).rev().collect::<Vec<_>>());
    };
    let (none, steps) = ([0.0; 4], [0.0, 1.0, 2.0, 0.0]);
    check(3, [&[1421.0], &[3.0], &[1.0, 2.0, 4.0, 0.0], &steps, &[0.0, 0.0, 1.0, 0.0]]);
    check(1, [&[11.0], &[1.0], &[1.0, 0.0, 0.0, 0.0], &none, &[1.0, 0.0, 0.0, 0.0]]);
    check(0, [&[1.0], &[0.0], &none, &none, &none]);
}
