//! Matmul kernels against plain loops in f64, with every prologue and epilogue that matters, in ragged shapes.
use crate::testing::{Aligned, Runner, kernel, pack, quantise, random, via_bf16};
use crate::{Options, Target, compile, target, testing};
use proptest::prelude::*;
use rdc_ir::program::{Kernel, Tiling};
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Opcode, Type, ValueId};
use rdc_passes::fuse::body::Family;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    /// The argument itself, seen as `[m, k]` through a reshape.
    Reshape,
    /// `rms_norm(x)`
    Norm,
    /// `h = x + x2` and `rms_norm(h)`, with `h` a result.
    SumAndNorm,
    /// `x * norm`; beside it `rms_norm(x)` is a result.
    BesideNorm,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    /// The product.
    Nothing,
    /// `relu(y + bias) * scalar + residual`, and the product itself.
    BiasReluResidual,
    /// `silu(gate) * up` on two parts.
    Gate,
    /// The same, and both parts themselves.
    GateAndParts,
    /// `y * column + y`, a factor for each row.
    Column,
    /// `y * silu(residual)`; beside it `silu(residual) * residual`.
    BesideActivation,
    /// `y * scalar` and `y + residual`, joined.
    Joined,
}

impl After {
    fn parts(self) -> usize {
        if matches!(self, After::Gate | After::GateAndParts) { 2 } else { 1 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    dtype: DType,
    before: Before,
    after: After,
    rows_per_task: usize,
    panels_per_task: usize,
    kc: usize,
    prefetch: usize,
}

impl Case {
    /// `n` is rounded up where the weight has parts. Rows that are normed have more than one element, as fusion
    /// sees to.
    fn new(target: &Target, (m, n, k): (usize, usize, usize), dtype: DType, before: Before, after: After) -> Case {
        let n = if after.parts() > 1 { n.next_multiple_of(target.machine.nr) } else { n };
        let k = if before == Before::Reshape { k } else { k.max(2) };
        Case {
            m,
            n,
            k,
            dtype,
            before,
            after,
            rows_per_task: 2 * target.machine.mr,
            panels_per_task: 2,
            kc: 64,
            prefetch: 0,
        }
    }

    fn kernel(&self, target: &Target) -> Kernel {
        let Case { m, n, k, .. } = *self;
        let mut func = Func::new("f");
        let mut b = Builder::new(&mut func);
        let ints = |v: &[usize]| Attr::Ints(v.iter().map(|&x| x as i64).collect());
        let input = |b: &mut Builder, name: &str, ty: Type| b.arg(name, ArgRole::Input, ty);
        let x_shape = if self.before == Before::Reshape { vec![1, m, k] } else { vec![m, k] };
        let x = input(&mut b, "x", Type::f32(x_shape));
        let (inner, pair) = if self.dtype == DType::BF16 { (k.div_ceil(2), 2) } else { (k, 1) };
        let w =
            input(&mut b, "w", Type::new(self.dtype, [n.div_ceil(target.machine.nr), inner, target.machine.nr, pair]));
        let scale = input(&mut b, "scale", Type::f32([n]));
        let norm = input(&mut b, "norm", Type::f32([k]));
        let x2 = input(&mut b, "x2", Type::f32([m, k]));
        let bias = input(&mut b, "bias", Type::f32([n]));
        let scalar = input(&mut b, "scalar", Type::f32([]));
        let residual = input(&mut b, "residual", Type::f32([m, n]));
        let column = input(&mut b, "column", Type::f32([m, 1]));
        let eps = || vec![Attr::float(1e-5)];
        let mut h = None;
        let left = match self.before {
            Before::Reshape => b.op(Opcode::Reshape, &[x], vec![ints(&[m, k])]),
            Before::Norm => b.op(Opcode::RmsNorm, &[x, norm], eps()),
            Before::SumAndNorm => {
                let sum = b.op(Opcode::Add, &[x, x2], vec![]);
                h = Some(sum);
                b.op(Opcode::RmsNorm, &[sum, norm], eps())
            }
            Before::BesideNorm => {
                h = Some(b.op(Opcode::RmsNorm, &[x, norm], eps()));
                b.op(Opcode::Mul, &[x, norm], vec![])
            }
        };
        let mut operands = vec![left, w];
        if self.dtype == DType::I8 {
            operands.push(scale);
        }
        let size = |v: usize| Attr::Int(v as i64);
        let y = b.op(Opcode::PackedMatmul, &operands, vec![size(n), size(k), size(self.after.parts())]);
        let out: Vec<ValueId> = match self.after {
            After::Nothing => vec![y],
            After::BiasReluResidual => {
                let biased = b.op(Opcode::Add, &[y, bias], vec![]);
                let positive = b.op(Opcode::Relu, &[biased], vec![]);
                let scaled = b.op(Opcode::Mul, &[positive, scalar], vec![]);
                vec![b.op(Opcode::Add, &[residual, scaled], vec![]), y]
            }
            After::Gate | After::GateAndParts => {
                let half = |b: &mut Builder, i| {
                    b.op(Opcode::Slice, &[y], vec![size(1), size(i * n / 2), size((i + 1) * n / 2)])
                };
                let (gate, up) = (half(&mut b, 0), half(&mut b, 1));
                let active = b.op(Opcode::Silu, &[gate], vec![]);
                let product = b.op(Opcode::Mul, &[active, up], vec![]);
                if self.after == After::Gate { vec![product] } else { vec![gate, product, up] }
            }
            After::Column => {
                let scaled = b.op(Opcode::Mul, &[y, column], vec![]);
                vec![b.op(Opcode::Add, &[scaled, y], vec![])]
            }
            After::BesideActivation => {
                let active = b.op(Opcode::Silu, &[residual], vec![]);
                let beside = b.op(Opcode::Mul, &[active, residual], vec![]);
                vec![b.op(Opcode::Mul, &[y, active], vec![]), beside]
            }
            After::Joined => {
                let scaled = b.op(Opcode::Mul, &[y, scalar], vec![]);
                let sum = b.op(Opcode::Add, &[y, residual], vec![]);
                vec![b.op(Opcode::Concat, &[scaled, sum], vec![size(1)])]
            }
        };
        for (i, &value) in h.iter().chain(&out).enumerate() {
            b.output(format!("out{i}"), value, false);
        }
        let Case { rows_per_task, panels_per_task, kc, prefetch, .. } = *self;
        // Of few rows, but not of few enough for sums in registers.
        let tiling = match m <= 4 {
            true => Tiling::Panels { panels_per_task },
            false => {
                let panels_together = if k > kc { panels_per_task } else { 1 };
                Tiling::PanelBlocks { rows_per_task, panels_per_task, kc, panels_together, prefetch }
            }
        };
        let row_blocks = m.div_ceil(tiling.rows_per_task(m));
        let tasks = row_blocks * n.div_ceil(target.machine.nr).div_ceil(panels_per_task);
        kernel("k", (Family::Matmul, tiling), func, tasks)
    }

    /// Runs the kernel, all tasks in `calls` calls, and compares each result with f64 loops.
    fn check(&self, target: &Target, calls: usize) {
        let Case { m, n, k, .. } = *self;
        let kernel = self.kernel(target);
        let mut runner = Runner::new(target, &kernel).unwrap();
        let data = |i: usize, count| random(count, 7 + i as u64);
        let (x, x2, norm) = (data(0, m * k), data(1, m * k), data(2, k));
        let (bias, residual, column) = (data(3, n), data(4, m * n), data(5, m));
        let mut weights = data(6, n * k);
        let mut scales = vec![1.0; n];
        match self.dtype {
            DType::BF16 => weights.iter_mut().for_each(|w| *w = via_bf16(*w)),
            DType::I8 => (weights, scales) = quantise(&weights, k),
            _ => {}
        }
        let packed = pack(&weights, (n, k), self.dtype, target.machine.nr, self.after.parts());
        assert_eq!(runner.args[1].bytes().len(), packed.len());
        let inputs = [&x, &vec![], &scales, &norm, &x2, &bias, &vec![0.5], &residual, &column];
        for (i, values) in inputs.into_iter().enumerate() {
            runner.args[i] = if i == 1 { Aligned::from_bytes(&packed) } else { Aligned::from_f32(values) };
        }
        for call in 0..calls {
            runner.run(kernel.tasks * call / calls..kernel.tasks * (call + 1) / calls);
        }

        let h: Vec<f64> = (0..m * k)
            .map(|i| if self.before == Before::SumAndNorm { f64::from(x[i] + x2[i]) } else { f64::from(x[i]) })
            .collect();
        let normed: Vec<f64> = h
            .chunks_exact(k)
            .flat_map(|row| {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / k as f64;
                let inverse = 1.0 / (mean + 1e-5).sqrt();
                row.iter().zip(&norm).map(move |(v, w)| v * inverse * f64::from(*w))
            })
            .collect();
        let (left, beside) = match self.before {
            Before::Reshape => (h, None),
            Before::Norm => (normed, None),
            Before::SumAndNorm => (normed, Some(h)),
            Before::BesideNorm => {
                (h.iter().enumerate().map(|(i, v)| v * f64::from(norm[i % k])).collect(), Some(normed))
            }
        };
        let (mut product, mut bound) = (vec![0.0; m * n], vec![0.0; m * n]);
        for i in 0..m {
            for j in 0..n {
                for c in 0..k {
                    let term = left[i * k + c] * f64::from(weights[j * k + c]) * f64::from(scales[j]);
                    product[i * n + j] += term;
                    bound[i * n + j] += term.abs();
                }
            }
        }
        let mut wanted: Vec<Vec<f64>> = beside.into_iter().collect();
        let each = |f: &dyn Fn(usize, usize) -> f64| (0..m * n).map(|i| f(i / n, i % n)).collect::<Vec<f64>>();
        match self.after {
            After::Nothing => wanted.push(product),
            After::BiasReluResidual => {
                let y = each(&|i, j| {
                    f64::from(residual[i * n + j]) + 0.5 * (product[i * n + j] + f64::from(bias[j])).max(0.0)
                });
                wanted.extend([y, product]);
            }
            After::Gate | After::GateAndParts => {
                let part =
                    |p: usize| (0..m * n / 2).map(|i| product[i / (n / 2) * n + i % (n / 2) + p * n / 2]).collect();
                let (gate, up): (Vec<f64>, Vec<f64>) = (part(0), part(1));
                let gated = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                wanted.extend(if self.after == After::Gate { vec![gated] } else { vec![gate, gated, up] });
            }
            After::Column => wanted.push(each(&|i, j| product[i * n + j] * (f64::from(column[i]) + 1.0))),
            After::BesideActivation => {
                let residual = |i, j| f64::from(residual[i * n + j]);
                let active = |i, j| residual(i, j) / (1.0 + (-residual(i, j)).exp());
                wanted.push(each(&|i, j| product[i * n + j] * active(i, j)));
                wanted.push(each(&|i, j| residual(i, j) * active(i, j)));
            }
            After::Joined => {
                let scaled = each(&|i, j| 0.5 * product[i * n + j]);
                let sum = each(&|i, j| product[i * n + j] + f64::from(residual[i * n + j]));
                wanted.push(scaled.chunks(n).zip(sum.chunks(n)).flat_map(|(a, b)| [a, b].concat()).collect());
            }
        }
        let tolerance = 2e-6 * bound.iter().fold(1.0, |a: f64, b| a.max(*b));
        let tolerance = if self.after.parts() > 1 { tolerance * 4.0 } else { tolerance };
        for (r, want) in wanted.iter().enumerate() {
            let got = runner.args[9 + r].to_f32();
            assert_eq!(got.len(), want.len());
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((f64::from(*g) - w).abs() <= tolerance, "{self:?}: result {r}[{i}] is {g}, not {w}");
            }
        }
    }
}

/// This machine with the vector and tile shapes of each family of targets: LLVM splits vectors that are too wide.
fn shapes() -> Vec<Target> {
    let native = testing::target("native");
    let mut out = vec![native.clone()];
    for name in ["x86-64-v3", "x86-64-v4", "aarch64"] {
        let machine = target(name).unwrap().machine;
        if machine.lanes != native.machine.lanes {
            out.push(Target { machine, ..native.clone() });
        }
    }
    out
}

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::I8];
const BEFORE: [Before; 4] = [Before::Reshape, Before::Norm, Before::SumAndNorm, Before::BesideNorm];
const AFTER: [After; 7] = [
    After::Nothing,
    After::BiasReluResidual,
    After::Gate,
    After::GateAndParts,
    After::Column,
    After::BesideActivation,
    After::Joined,
];

#[test]
fn element_types_and_ragged_shapes() {
    for (target, dtype) in shapes().iter().flat_map(|t| DTYPES.map(|d| (t, d))) {
        for shape in [(1, 33, 5), (2, 48, 131), (3, 16, 64), (4, 7, 130), (5, 33, 9), (31, 50, 131), (25, 16, 128)] {
            Case::new(target, shape, dtype, Before::Reshape, After::Nothing).check(target, 1);
        }
    }
}

#[test]
fn rows_that_would_fall_into_one_set_of_the_cache() {
    for target in shapes() {
        for m in [4, 5, 30] {
            Case::new(&target, (m, 40, 1024), DType::F32, Before::Reshape, After::BiasReluResidual).check(&target, 2);
        }
    }
}

#[test]
fn prologues_and_epilogues() {
    let target = testing::target("native");
    for m in [2, 27] {
        for before in BEFORE {
            for after in AFTER {
                for dtype in [DType::F32, DType::I8] {
                    Case::new(&target, (m, 80, 70), dtype, before, after).check(&target, 3);
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_how_tasks_are_cut() {
    let target = testing::target("native");
    for m in [3, 40] {
        let mut results = Vec::new();
        for (rows_per_task, panels_per_task, calls) in [(12, 1, 1), (7, 3, 2), (40, 9, 1), (13, 2, 5)] {
            let case = Case::new(&target, (m, 130, 200), DType::F32, Before::Norm, After::Nothing);
            let case = Case { rows_per_task, panels_per_task, ..case };
            let kernel = case.kernel(&target);
            let mut runner = Runner::new(&target, &kernel).unwrap();
            for (i, arg) in runner.args.iter_mut().enumerate() {
                *arg = Aligned::from_f32(&random(arg.bytes().len() / 4, i as u64));
            }
            for call in 0..calls {
                runner.run(kernel.tasks * call / calls..kernel.tasks * (call + 1) / calls);
            }
            results.push(runner.args[9].to_f32());
        }
        results.iter().for_each(|r| assert_eq!(*r, results[0]));
    }
}

#[test]
fn every_target_compiles_to_the_same_bytes_each_time() {
    for name in crate::TARGETS {
        let target = target(name).unwrap();
        let kernels: Vec<Kernel> = [(3, 40, 37), (31, 50, 130)]
            .into_iter()
            .enumerate()
            .flat_map(|(i, shape)| DTYPES.map(|dtype| (i, shape, dtype)))
            .map(|(i, shape, dtype)| {
                let mut kernel = Case::new(&target, shape, dtype, Before::Norm, After::Gate).kernel(&target);
                kernel.name = format!("k{i}_{}", dtype.name());
                kernel
            })
            .collect();
        let mut program = testing::program(kernels);
        let image = compile(&mut program, &target, &Options::default()).unwrap();
        assert_eq!(image.symbols.len(), 6, "{name}");
        assert_eq!(image, compile(&mut program, &target, &Options::default()).unwrap(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_and_cut(
        (m, n, k) in (1usize..60, 1usize..90, 1usize..200),
        (dtype, before, after) in (0usize..3, 0usize..4, 0usize..7),
        (rows_per_task, panels_per_task, kc) in (1usize..40, 1usize..5, 1usize..100),
        (calls, machine, prefetch) in (1usize..4, 0usize..3, 0usize..2),
    ) {
        let target = shapes().swap_remove(machine);
        let case = Case::new(&target, (m, n, k), DTYPES[dtype], BEFORE[before], AFTER[after]);
        Case { rows_per_task, panels_per_task, kc, prefetch: prefetch << 20, ..case }.check(&target, calls);
    }
}
