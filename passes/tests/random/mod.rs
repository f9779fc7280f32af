//! Random modules in which the rewrites find something to do: few shapes, many slices, products with parameters.
use rdc_ir::testing::Rng;
use rdc_ir::{ArgRole, Attr, Builder, DType, Func, Init, Loc, Module, Opcode, Param, Type, ValueId};

const PARAMS: &[(&str, &[usize])] = &[
    ("square", &[6, 6]),
    ("wide", &[6, 12]),
    ("tall", &[12, 6]),
    ("tall2", &[12, 6]),
    ("table", &[10, 6]),
    ("row", &[6]),
    ("row2", &[6]),
    ("bias", &[2, 3]),
    ("stack", &[2, 1, 6]),
];

const MAX_STEPS: usize = 4;

/// A module with one function `f`.
pub fn module(seed: u64) -> Module {
    let rng = &mut Rng::new(seed);
    let mut module = Module { name: "random".into(), ..Module::default() };
    for (name, shape) in PARAMS {
        let init = Init::Normal { std: 0.5 };
        let param = Param {
            state: false,
            name: (*name).into(),
            aliases: vec![],
            ty: Type::f32(*shape),
            init,
            decay: false,
            in_stack: false,
            loc: Loc::default(),
        };
        module.params.push(param);
    }
    let mut func = Func::new("f");
    let mut b = Builder::new(&mut func);
    let mut pool = vec![
        b.arg("x", ArgRole::Input, Type::f32([1, 4, 6])),
        b.arg("e", ArgRole::Input, Type::f32([1, 4, 6])),
        b.arg("m", ArgRole::Input, Type::f32([4, 6])),
        b.arg("ids", ArgRole::Ids, Type::new(DType::I32, [1, 4])),
        b.arg("pos", ArgRole::Position, Type::new(DType::I32, [1])),
        b.arg("flag", ArgRole::Input, Type::scalar(DType::Bool)),
    ];
    let steps = b.arg("steps", ArgRole::Steps, Type::scalar(DType::I32));
    let mut cache = b.arg("cache", ArgRole::Cache, Type::cache(DType::F32, [2, 1, 8, 2, 3]));
    for (name, shape) in PARAMS {
        pool.push(b.param(name, Type::f32(*shape)));
    }
    pool.push(b.constant(0.0, DType::F32));
    pool.push(b.constant(1.0, DType::F32));
    pool.push(b.constant(1.0, DType::Bool));
    fill(rng, &mut b, &mut pool, &mut cache, steps, 0);
    let candidates: Vec<ValueId> = pool[8..].to_vec();
    for i in 0..4 {
        let value = rng.pick(&candidates);
        b.output(format!("out{i}"), value, false);
    }
    b.output("cache", cache, false);
    module.funcs.push(func);
    module
}

fn fill(rng: &mut Rng, b: &mut Builder, pool: &mut Vec<ValueId>, cache: &mut ValueId, steps: ValueId, depth: usize) {
    for _ in 0..8 + rng.below(20) {
        if depth < 2 && rng.below(10) == 0 {
            random_loop(rng, b, pool, cache, steps, depth);
        } else if rng.below(12) == 0 {
            write_cache(rng, b, pool, cache);
        } else {
            let (opcode, operands, attrs) = random_op(rng, b.func, pool);
            pool.extend(b.try_op(opcode, &operands, attrs).unwrap_or_default());
        }
    }
}

fn of_type(func: &Func, pool: &[ValueId], accept: impl Fn(&Type) -> bool) -> Vec<ValueId> {
    pool.iter().copied().filter(|&v| accept(func.ty(v))).collect()
}

fn floats(func: &Func, pool: &[ValueId]) -> Vec<ValueId> {
    of_type(func, pool, |t| t.dtype == DType::F32 && t.elements() <= 200)
}

fn random_op(rng: &mut Rng, func: &Func, pool: &[ValueId]) -> (Opcode, Vec<ValueId>, Vec<Attr>) {
    use Opcode::*;
    let floats = floats(func, pool);
    let x = rng.pick(&floats);
    let y = rng.pick(&floats);
    let ty = func.ty(x).clone();
    let rank = ty.rank();
    let axis = rng.below(rank.max(1));
    let size = ty.shape.get(axis).copied().unwrap_or(1);
    let int = |n: usize| Attr::Int(n as i64);
    match rng.below(24) {
        0..=2 => (rng.pick(&[Add, Add, Sub, Mul]), vec![x, y], vec![]),
        3 => (rng.pick(&[Max, Min]), vec![x, y], vec![]),
        4 => (rng.pick(&[Tanh, Sigmoid, Silu, Neg, Neg, Gelu]), vec![x], vec![]),
        5..=7 => {
            let start = rng.below(size);
            let end = start + 1 + rng.below(size - start);
            (Slice, vec![x], vec![int(axis), int(start), int(end)])
        }
        8..=9 => {
            let same = of_type(func, &floats, |t| t.rank() == rank && rank > 0);
            let parts = if same.is_empty() { vec![x] } else { vec![x, rng.pick(&same)] };
            (Concat, parts, vec![int(axis)])
        }
        10..=11 => {
            let shapes: &[&[i64]] =
                &[&[1, 4, 6], &[4, 6], &[1, 4, 2, 3], &[24], &[6], &[2, 3], &[1, 6], &[2, 6], &[4, 2, 3]];
            (Reshape, vec![x], vec![Attr::Ints(rng.pick(shapes).to_vec())])
        }
        12 => {
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            if rank > 1 {
                perm.swap(rank - 1, rng.below(rank));
            }
            (Transpose, vec![x], vec![Attr::Ints(perm)])
        }
        13..=16 => {
            let weights = of_type(func, &floats, |t| t.rank() == 2 && t.shape.contains(&ty.last()));
            let w = if weights.is_empty() { y } else { rng.pick(&weights) };
            let trans = func.ty(w).last() == ty.last() && rng.below(5) > 0;
            (Matmul, vec![x, w], vec![Attr::Bool(rng.below(8) == 0), Attr::Bool(trans)])
        }
        17 => {
            let rows = of_type(func, &floats, |t| t.rank() == 1 && t.last() == ty.last());
            let w = if rows.is_empty() { y } else { rng.pick(&rows) };
            match rng.below(3) {
                0 => (RmsNorm, vec![x, w], vec![Attr::float(1e-2)]),
                1 => (LayerNorm, vec![x, w, w], vec![Attr::float(1e-2)]),
                _ => (Softmax, vec![x], vec![]),
            }
        }
        18 => {
            let tables = of_type(func, &floats, |t| t.rank() == 2 && t.shape[0] == 10);
            let ids = of_type(func, pool, |t| t.dtype == DType::I32 && t.rank() == 2);
            (Gather, vec![*tables.first().unwrap_or(&x), rng.pick(&ids)], vec![])
        }
        19 => {
            let flags = of_type(func, pool, |t| t.dtype == DType::Bool);
            (Select, vec![rng.pick(&flags), x, y], vec![])
        }
        20 => match rng.below(3) {
            0 => (Lt, vec![x, y], vec![]),
            1 => (Not, vec![rng.pick(&of_type(func, pool, |t| t.dtype == DType::Bool))], vec![]),
            _ => (ReduceSum, vec![x], vec![int(axis), Attr::Bool(rng.below(2) == 0)]),
        },
        21 => (Broadcast, vec![x], vec![Attr::Ints(vec![1, 4, 6])]),
        22 => {
            let heads = of_type(func, &floats, |t| t.shape == [1, 4, 2, 3]);
            match heads.is_empty() {
                true => (Reshape, vec![x], vec![Attr::Ints(vec![1, 4, 2, 3])]),
                false => {
                    let q = rng.pick(&heads);
                    let keys = of_type(func, &floats, |t| t.shape == [1, 4, 2, 3] || t.shape == [1, 4, 1, 3]);
                    let k = rng.pick(&keys);
                    (Attention, vec![q, k, k, pool[4]], vec![Attr::Bool(rng.below(2) == 0), Attr::float(0.5)])
                }
            }
        }
        _ => (Constant, vec![], vec![Attr::float(rng.pick(&[0.0, 1.0, -1.0, 0.5])), Attr::DType(DType::F32)]),
    }
}

/// Writes one slot and reads it by an attention at once: the view dies with the next write.
fn write_cache(rng: &mut Rng, b: &mut Builder, pool: &mut Vec<ValueId>, cache: &mut ValueId) {
    let heads = of_type(b.func, pool, |t| *t == Type::f32([1, 4, 2, 3]));
    if heads.is_empty() {
        return;
    }
    let (q, x) = (rng.pick(&heads), rng.pick(&heads));
    let slot = b.constant(rng.below(2) as f64, DType::I32);
    let Ok(results) = b.try_op(Opcode::CacheUpdate, &[*cache, x, pool[4], slot], vec![]) else { return };
    *cache = results[0];
    let attrs = vec![Attr::Bool(true), Attr::float(0.5)];
    pool.push(b.op(Opcode::Attention, &[q, results[1], results[1], pool[4]], attrs));
}

fn random_loop(
    rng: &mut Rng,
    b: &mut Builder,
    pool: &mut Vec<ValueId>,
    cache: &mut ValueId,
    steps: ValueId,
    depth: usize,
) {
    let mut init = vec![*cache];
    for _ in 0..1 + rng.below(3) {
        init.push(rng.pick(&floats(b.func, pool)));
    }
    let (region, _, last, args) = b.begin_loop(&init);
    let outer = b.enter(region);
    let mut inner = pool.clone();
    inner.push(last);
    inner.extend(&args[1..]);
    let mut inner_cache = args[0];
    fill(rng, b, &mut inner, &mut inner_cache, steps, depth + 1);
    let mut carried = vec![inner_cache];
    for &arg in &args[1..] {
        let ty = b.func.ty(arg).clone();
        let next = rng.pick(&of_type(b.func, &inner, |t| *t == ty));
        // Bounded, so that iterations neither blow up nor lose the digits that are compared.
        carried.push(if rng.below(4) == 0 { next } else { b.op(Opcode::Tanh, &[next], vec![]) });
    }
    let stacked: Vec<ValueId> = (0..rng.below(2)).map(|_| rng.pick(&floats(b.func, &inner))).collect();
    let done = (rng.below(3) == 0).then(|| {
        let x = rng.pick(&floats(b.func, &inner));
        let zero = b.constant(-0.1, DType::F32);
        let less = b.op(Opcode::Lt, &[x, zero], vec![]);
        b.op(Opcode::All, &[less], vec![])
    });
    b.enter(outer);
    let results = b.end_loop(region, steps, &init, &carried, done, &stacked, MAX_STEPS);
    *cache = results[0];
    pool.extend(&results[1..]);
}
