//! Elementary functions against f64.
use crate::testing::{self, Runner, kernel};
use rdc_ir::program::Tiling;
use rdc_ir::{ArgRole, Builder, Func, Opcode, Type};
use rdc_passes::fuse::body::Family;

// SAFETY of the calls: `erf` of the C library is a pure function of one double.
unsafe extern "C" {
    fn erf(x: f64) -> f64;
}

/// Lanes to test, since some functions go another way on wide vectors; several registers hold what is wider than one.
const LANES: [usize; 3] = [4, 8, 16];

/// Each input and what comes of it, on vectors of one width after the other.
fn run(opcode: Opcode, inputs: &[f32]) -> Vec<(f32, f32)> {
    LANES.iter().flat_map(|&lanes| inputs.iter().copied().zip(run_on(lanes, opcode, inputs))).collect()
}

fn run_on(lanes: usize, opcode: Opcode, inputs: &[f32]) -> Vec<f32> {
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let x = b.arg("x", ArgRole::Input, Type::f32([1, inputs.len()]));
    let y = b.op(opcode, &[x], vec![]);
    b.output("y", y, false);
    let mut target = testing::target("x86-64-v3");
    target.machine.lanes = lanes;
    let kernel = kernel("k", (Family::Rows(1), Tiling::Rows { rows_per_task: 1 }), func, 1);
    let mut runner = Runner::new(&target, &kernel).unwrap();
    runner.args[0] = crate::testing::Aligned::from_f32(inputs);
    runner.run(0..1);
    runner.args[1].to_f32()
}

/// Every 4099th float between two magnitudes, of both signs.
fn samples(low: f32, high: f32) -> Vec<f32> {
    let positive = (low.to_bits()..high.to_bits()).step_by(4099).map(f32::from_bits);
    positive.flat_map(|v| [v, -v]).collect()
}

/// The largest error in units of the last place of the exact result, and where.
fn worst(opcode: Opcode, inputs: &[f32], exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for (x, y) in run(opcode, inputs) {
        let want = exact(f64::from(x));
        let near = want as f32;
        if near.abs() < f32::MIN_POSITIVE {
            assert!((f64::from(y) - want).abs() < 1.2e-38, "{opcode:?}({x}) = {y}, want {want}");
            continue;
        }
        if near.is_infinite() {
            assert!(y == near || y.abs() > 3.4e38, "{opcode:?}({x}) = {y}, want {want}");
            continue;
        }
        let ulp = f64::from(f32::from_bits(near.abs().to_bits() + 1)) - f64::from(near.abs());
        let error = (f64::from(y) - want).abs() / ulp;
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
        assert!(!error.is_nan(), "{opcode:?}({x}) = {y}, want {want}");
    }
    worst
}

#[track_caller]
fn check(opcode: Opcode, inputs: &[f32], most: f64, exact: impl Fn(f64) -> f64) {
    let (error, at) = worst(opcode, inputs, exact);
    assert!(error <= most, "{opcode:?}({at}) is off by {error:.2} ulp");
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn exponential_and_logarithm() {
    check(Opcode::Exp, &samples(1e-8, 110.0), 1.5, f64::exp);
    let positive: Vec<f32> = samples(1e-44, 3e38).into_iter().filter(|x| *x > 0.0).collect();
    check(Opcode::Log, &positive, 1.5, f64::ln);
    check(Opcode::Rsqrt, &positive, 1.5, |x| 1.0 / x.sqrt());
    check(Opcode::Sqrt, &positive, 0.51, f64::sqrt);
}

#[test]
fn softmax_of_two() {
    let inputs: Vec<f32> = samples(1e-8, 110.0).into_iter().filter(|x| *x < 0.0).chain([f32::NEG_INFINITY]).collect();
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let x = b.arg("x", ArgRole::Input, Type::f32([inputs.len(), 2]));
    let y = b.op(Opcode::Softmax, &[x], vec![]);
    b.output("y", y, false);
    let kind = (Family::Rows(inputs.len()), Tiling::Rows { rows_per_task: inputs.len() });
    let mut runner = Runner::new(&testing::target("x86-64-v3"), &kernel("k", kind, func, 1)).unwrap();
    let pairs: Vec<f32> = inputs.iter().flat_map(|&x| [x, 0.0]).collect();
    runner.args[0] = crate::testing::Aligned::from_f32(&pairs);
    runner.run(0..1);
    for (&x, pair) in inputs.iter().zip(runner.args[1].to_f32().chunks_exact(2)) {
        let power = f64::from(x).exp();
        let want = power / (1.0 + power);
        let error = (f64::from(pair[0]) - want).abs();
        assert!(error <= 2.5e-7 * want || (x < -87.3 && error < 1.2e-38), "softmax({x}, 0) = {}, want {want}", pair[0]);
        assert!((f64::from(pair[1]) - 1.0 / (1.0 + power)).abs() < 1e-7);
        assert!(x > -88.0 || pair[0] == 0.0, "softmax({x}, 0) = {}", pair[0]);
    }
}

#[test]
fn activations() {
    let all = samples(1e-8, 80.0);
    check(Opcode::Tanh, &all, 2.0, f64::tanh);
    check(Opcode::Atan, &samples(1e-30, 1e30), 2.1, f64::atan);
    check(Opcode::Sigmoid, &samples(1e-8, 110.0), 3.5, sigmoid);
    check(Opcode::Silu, &all, 4.0, |x| x * sigmoid(x));
    // SAFETY: see above.
    check(Opcode::Erf, &all, 2.0, |x| unsafe { erf(x) });
    let gelu_tanh = |x: f64| x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x));
    // The argument's rounding is multiplied by up to 2|u|; where the result matters, |u| < 10.
    check(Opcode::GeluTanh, &samples(1e-8, 1.0), 4.0, gelu_tanh);
    let inputs = samples(1e-4, 20.0);
    for (opcode, exact) in [
        (Opcode::GeluTanh, &gelu_tanh as &dyn Fn(f64) -> f64),
        // SAFETY: see above.
        (Opcode::Gelu, &|x: f64| 0.5 * x * (1.0 + unsafe { erf(x / 2f64.sqrt()) })),
    ] {
        for (x, y) in run(opcode, &inputs) {
            let error = (f64::from(y) - exact(f64::from(x))).abs();
            assert!(error <= 1.5e-7 * f64::from(x.abs()), "{opcode:?}({x}) is off by {error:e}");
        }
    }
}

#[test]
fn special_values() {
    let inf = f32::INFINITY;
    let inputs = [0.0, -0.0, inf, -inf, f32::NAN, 1e-45, -1.0, 3e38];
    let expect = |opcode, wanted: [f32; 8]| {
        for ((x, y), want) in run(opcode, &inputs).into_iter().zip(wanted.into_iter().cycle()) {
            let same = y == want || (y.is_nan() && want.is_nan()) || (y - want).abs() <= 2e-7 * want.abs();
            assert!(same, "{opcode:?}({x}) = {y}, want {want}");
        }
    };
    let nan = f32::NAN;
    let e1 = (-1f32).exp();
    expect(Opcode::Exp, [1.0, 1.0, inf, 0.0, nan, 1.0, e1, inf]);
    expect(Opcode::Log, [-inf, -inf, inf, nan, nan, 1e-45f32.ln(), nan, 3e38f32.ln()]);
    let right = std::f32::consts::FRAC_PI_2;
    expect(Opcode::Atan, [0.0, -0.0, right, -right, nan, 1e-45, -std::f32::consts::FRAC_PI_4, right]);
    assert!(run(Opcode::Atan, &inputs)[1].1.is_sign_negative());
    expect(Opcode::Tanh, [0.0, 0.0, 1.0, -1.0, nan, 1e-45, (-1f32).tanh(), 1.0]);
    expect(Opcode::Erf, [0.0, 0.0, 1.0, -1.0, nan, 1e-45, -0.842_700_8, 1.0]);
    expect(Opcode::Sigmoid, [0.5, 0.5, 1.0, 0.0, nan, 0.5, 0.268_941_43, 1.0]);
    expect(Opcode::Relu, [0.0, 0.0, inf, 0.0, nan, 1e-45, 0.0, 3e38]);
    expect(Opcode::Sqrt, [0.0, 0.0, inf, nan, nan, 1e-45f32.sqrt(), nan, 3e38f32.sqrt()]);
    expect(Opcode::Rsqrt, [inf, -inf, 0.0, nan, nan, 1.0 / 1e-45f32.sqrt(), nan, 1.0 / 3e38f32.sqrt()]);
}
