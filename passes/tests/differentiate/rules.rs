//! Every VJP rule on random shapes against finite differences.
use super::support::{Build, assert_close, differences, int, ints, loss, with_gradient};
use rdc_ir::{Attr, DType, Opcode, ValueId};
use rdc_passes::differentiate::{Options, rules::has_rule};

/// Operations whose derivative is zero, or which a loss cannot contain, with the reason.
const WITHOUT_RULE: &[(Opcode, &str)] = &[
    (Opcode::Param, "a leaf"),
    (Opcode::Constant, "a leaf"),
    (Opcode::RopeTable, "a leaf"),
    (Opcode::SinusoidTable, "a leaf"),
    (Opcode::Lt, "a truth value"),
    (Opcode::Le, "a truth value"),
    (Opcode::Eq, "a truth value"),
    (Opcode::And, "a truth value"),
    (Opcode::Or, "a truth value"),
    (Opcode::Not, "a truth value"),
    (Opcode::All, "a truth value"),
    (Opcode::OneHot, "of integers"),
    (Opcode::Positions, "of integers"),
    (Opcode::KvSlot, "of integers"),
    (Opcode::StopGradient, "zero by definition"),
    (Opcode::CrossEntropyGrad, "a derivative"),
    (Opcode::LinearCrossEntropyGrad, "a derivative"),
    (Opcode::RopeGrad, "a derivative"),
    (Opcode::AttentionGrad, "a derivative"),
    (Opcode::SumBlocks, "made after differentiation"),
    (Opcode::CacheUpdate, "caches are for inference"),
    (Opcode::Quantize, "made after differentiation"),
    (Opcode::Pack, "made after differentiation"),
    (Opcode::PackedMatmul, "made after differentiation"),
    (Opcode::PackedGather, "made after differentiation"),
    (Opcode::Loop, "differentiated as a whole: see the tests of loops"),
];

const SEEDS: u64 = 6;

/// A random rank up to 3 and a shape.
fn shape(c: &mut Build<'_>) -> Vec<usize> {
    (0..c.rng.below(4)).map(|_| c.size(4)).collect()
}

/// Two shapes that broadcast.
fn two_shapes(c: &mut Build<'_>) -> (Vec<usize>, Vec<usize>) {
    let full: Vec<usize> = (0..1 + c.rng.below(3)).map(|_| c.size(4)).collect();
    let vary = |c: &mut Build<'_>| {
        let skip = c.rng.below(full.len() + 1);
        let sizes: Vec<usize> = full[skip..].to_vec();
        sizes.into_iter().map(|n| if c.rng.one_in(3) { 1 } else { n }).collect::<Vec<usize>>()
    };
    let (a, b) = (vary(c), vary(c));
    (a, b)
}

/// A result of the operation for the seed, or `None` if there is no case for it.
fn result(opcode: Opcode, c: &mut Build<'_>) -> Option<ValueId> {
    let (big, positive) = ((-1.5, 1.5), (0.5, 2.0));
    Some(match opcode {
        Opcode::Add | Opcode::Sub | Opcode::Mul | Opcode::Max | Opcode::Min | Opcode::Div => {
            let (a, b) = two_shapes(c);
            let (a, b) = (c.param(&a), c.param_in(&b, if opcode == Opcode::Div { positive } else { big }));
            c.map(opcode, &[a, b])
        }
        Opcode::Select => {
            let (a, b) = two_shapes(c);
            let (a, b) = (c.param(&a), c.param(&b));
            let (x, zero) = (c.input(&[1]), c.number(0.0));
            let sum = c.map(Opcode::Add, &[a, b]);
            let x = c.map(Opcode::Mul, &[sum, x]);
            let cond = c.map(Opcode::Lt, &[x, zero]);
            c.map(opcode, &[cond, a, b])
        }
        Opcode::Log | Opcode::Sqrt | Opcode::Rsqrt => {
            let shape = shape(c);
            let a = c.param_in(&shape, positive);
            c.map(opcode, &[a])
        }
        Opcode::Neg
        | Opcode::Abs
        | Opcode::Exp
        | Opcode::Atan
        | Opcode::Tanh
        | Opcode::Erf
        | Opcode::Sigmoid
        | Opcode::Relu
        | Opcode::Silu
        | Opcode::Gelu
        | Opcode::GeluTanh => {
            let shape = shape(c);
            let a = c.param_in(&shape, (-3.0, 3.0));
            c.map(opcode, &[a])
        }
        Opcode::Cast => {
            let shape = shape(c);
            let a = c.param(&shape);
            c.op(opcode, &[a], vec![Attr::DType(DType::F32)])
        }
        _ => return moving(opcode, c).or_else(|| heavy(opcode, c)),
    })
}

fn moving(opcode: Opcode, c: &mut Build<'_>) -> Option<ValueId> {
    let shape: Vec<usize> = (0..1 + c.rng.below(3)).map(|_| c.size(4)).collect();
    let axis = c.rng.below(shape.len());
    Some(match opcode {
        Opcode::Reshape => {
            let a = c.param(&shape);
            c.op(opcode, &[a], vec![ints(&[1, shape.iter().product()])])
        }
        Opcode::Transpose => {
            let a = c.param(&shape);
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            perm.rotate_left(axis);
            c.op(opcode, &[a], vec![ints(&perm)])
        }
        Opcode::Slice => {
            // Slices that overlap, of a value that is also used whole.
            let a = c.param(&shape);
            let mut sum = c.weighted_sum(a);
            for _ in 0..2 {
                let start = c.rng.below(shape[axis]);
                let end = start + c.size(shape[axis] - start);
                let part = c.op(opcode, &[a], vec![int(axis), int(start), int(end)]);
                let part = c.weighted_sum(part);
                sum = c.map(Opcode::Add, &[sum, part]);
            }
            sum
        }
        Opcode::Concat => {
            let parts: Vec<ValueId> = (0..1 + c.rng.below(3))
                .map(|_| {
                    let mut shape = shape.clone();
                    shape[axis] = c.size(3);
                    if c.rng.one_in(4) { c.input(&shape) } else { c.param(&shape) }
                })
                .collect();
            c.op(opcode, &parts, vec![int(axis)])
        }
        Opcode::Broadcast => {
            let small: Vec<usize> = shape.iter().map(|&n| if c.rng.one_in(2) { 1 } else { n }).collect();
            let a = c.param(&small);
            let full: Vec<usize> = [2].into_iter().chain(shape).collect();
            c.op(opcode, &[a], vec![ints(&full)])
        }
        Opcode::Pad => {
            let a = c.param(&shape);
            let start = c.rng.below(3);
            let size = shape[axis] + start + c.rng.below(2);
            c.op(opcode, &[a], vec![int(axis), int(start), int(size)])
        }
        Opcode::Index => {
            let a = c.param(&shape);
            let i = c.ids(&[], shape[0] + 1);
            c.op(opcode, &[a, i], vec![])
        }
        Opcode::Gather => {
            let (rows, columns) = (c.size(4), c.size(3));
            let (table, other) = (c.param(&[rows, columns]), c.input(&[rows, columns]));
            let ids = c.ids(&shape, rows);
            let product = c.map(Opcode::Mul, &[table, other]);
            let product = c.weighted_sum(product);
            let y = c.op(opcode, &[table, ids], vec![]);
            c.map(Opcode::Add, &[y, product])
        }
        Opcode::ScatterAdd => {
            let (rows, columns) = (c.size(4), c.size(3));
            let base = c.param(&[rows, columns]);
            let ids = c.ids(&shape, rows);
            let shape: Vec<usize> = shape.iter().copied().chain([columns]).collect();
            let rows = c.param(&shape);
            c.map(opcode, &[base, ids, rows])
        }
        Opcode::ReduceSum | Opcode::ReduceMax => {
            let a = c.param(&shape);
            let keep = c.rng.one_in(2);
            c.op(opcode, &[a], vec![int(axis), Attr::Bool(keep)])
        }
        Opcode::SumTo => {
            let small: Vec<usize> = shape.iter().map(|&n| if c.rng.one_in(2) { 1 } else { n }).collect();
            let full: Vec<usize> = [2].into_iter().chain(shape).collect();
            let a = c.param(&full);
            c.op(opcode, &[a], vec![ints(&small)])
        }
        _ => return None,
    })
}

fn heavy(opcode: Opcode, c: &mut Build<'_>) -> Option<ValueId> {
    let (rows, columns) = ([c.size(3), c.size(3)], 1 + c.size(4));
    let x_shape = [rows[0], rows[1], columns];
    Some(match opcode {
        Opcode::Matmul => {
            let [m, k, n] = [c.size(4), c.size(4), 2 * c.size(2)];
            let (ta, tb) = (c.rng.one_in(2), c.rng.one_in(2));
            let leading = c.rng.below(3);
            let (mut a, mut b) = (if ta { vec![k, m] } else { vec![m, k] }, if tb { vec![n, k] } else { vec![k, n] });
            if leading > 0 && (leading == 2 || !ta) {
                a.insert(0, 2);
            }
            if leading == 2 {
                b.insert(0, 2);
            }
            let (a, b) = (c.param(&a), c.param(&b));
            let y = c.op(opcode, &[a, b], vec![Attr::Bool(ta), Attr::Bool(tb)]);
            if c.rng.one_in(2) {
                return Some(y);
            }
            // Used through two halves, as a gated MLP.
            let axis = c.shape(y).len() - 1;
            let mut half = |i: usize| c.op(Opcode::Slice, &[y], vec![int(axis), int(i * n / 2), int((i + 1) * n / 2)]);
            let (gate, up) = (half(0), half(1));
            let gate = c.map(Opcode::Silu, &[gate]);
            c.map(Opcode::Mul, &[gate, up])
        }
        Opcode::RmsNorm => {
            let (x, w) = (c.param(&x_shape), c.param(&[columns]));
            c.op(opcode, &[x, w], vec![Attr::float(1e-2)])
        }
        Opcode::LayerNorm => {
            let (x, w, b) = (c.param(&x_shape), c.param(&[columns]), c.param(&[columns]));
            c.op(opcode, &[x, w, b], vec![Attr::float(1e-2)])
        }
        Opcode::Softmax => {
            let x = c.param(&x_shape);
            c.map(opcode, &[x])
        }
        Opcode::CrossEntropy => {
            let x = c.param(&x_shape);
            let labels = labels(c, &rows, columns);
            c.op(opcode, &[x, labels], vec![Attr::float(1e-2)])
        }
        Opcode::LinearCrossEntropy => {
            let vocabulary = 1 + c.size(5);
            let (x, w) = (c.param(&x_shape), c.param(&[vocabulary, columns]));
            let labels = labels(c, &rows, vocabulary);
            let mut operands = vec![x, w, labels];
            if c.rng.one_in(2) {
                operands.push(c.param(&[vocabulary]));
            }
            c.op(opcode, &operands, vec![Attr::float(1e-2)])
        }
        Opcode::Rope => {
            let [batch, seq, heads, half] = [c.size(2), c.size(3), c.size(2), c.size(2)];
            let x = c.param(&[batch, seq, heads, 2 * half]);
            let table = c.op(Opcode::RopeTable, &[], vec![int(8), int(2 * half), Attr::float(100.0)]);
            let pos = c.ids(&[batch], 4);
            let layout = c.rng.pick(&["adjacent", "half"]);
            c.op(opcode, &[x, table, pos], vec![Attr::Str(layout.into())])
        }
        Opcode::Attention => {
            let [batch, seq, groups, each, dim] = [c.size(2), c.size(3), c.size(2), c.size(2), c.size(3)];
            let causal = c.rng.one_in(2);
            let keys = if causal { seq + 1 } else { c.size(4) };
            let q = c.param(&[batch, seq, groups * each, dim]);
            let (k, v) = (c.param(&[batch, keys, groups, dim]), c.param(&[batch, keys, groups, dim]));
            let pos = c.ids(&[batch], 2);
            c.op(opcode, &[q, k, v, pos], vec![Attr::Bool(causal), Attr::float(0.7)])
        }
        _ => return None,
    })
}

/// Labels below a number, one of which is ignored.
fn labels(c: &mut Build<'_>, shape: &[usize], below: usize) -> ValueId {
    let count: usize = shape.iter().product();
    let mut values: Vec<i32> = (0..count).map(|_| c.rng.below(below) as i32).collect();
    if count > 1 {
        values[c.rng.below(count)] = -100;
    }
    c.argument(rdc_ir::interp::Tensor::from_i32(shape, &values))
}

#[test]
fn every_rule_is_the_derivative() {
    for &opcode in Opcode::ALL {
        let listed = WITHOUT_RULE.iter().find(|(o, _)| *o == opcode);
        assert_eq!(has_rule(opcode).is_err(), listed.is_some(), "{opcode:?}: {:?}", has_rule(opcode));
        if listed.is_some() {
            continue;
        }
        for seed in 0..SEEDS {
            let (module, inputs) = loss(seed, |c| {
                let value = result(opcode, c).unwrap_or_else(|| panic!("{opcode:?} has a rule, but no test"));
                c.weighted_sum(value)
            });
            let func = &module.funcs[0];
            assert!(func.walk().iter().any(|&(_, op)| func.ops[op].opcode == opcode), "{opcode:?} is not in its test");
            let gradient = with_gradient(&module, &Options::default());
            let outputs = super::support::execute(&gradient, "grad", &inputs);
            for param in module.params.values() {
                let expected = differences(&module, "loss", &inputs, &param.name);
                let found = outputs.get(&format!("grad.{}", param.name)).unwrap();
                let what = format!("{opcode:?}, seed {seed}, {}\n{gradient}", param.name);
                assert_close(found.floats(), &expected, 1e-6, &what);
            }
        }
    }
}
