//! Product kernels against the interpreter.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

struct Shape {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    rows_per_task: usize,
    columns_per_task: usize,
    kc: usize,
}

impl Shape {
    fn kernel(&self, (trans_a, trans_b): (bool, bool), args: &str, after: &str) -> Case {
        let Shape { batch, m, n, k, rows_per_task, columns_per_task, kc } = *self;
        let shape = |rows: usize, columns: usize| match batch {
            1 => format!("[{rows}, {columns}]"),
            _ => format!("[{batch}, {rows}, {columns}]"),
        };
        let (a, b) = (if trans_a { shape(k, m) } else { shape(m, k) }, if trans_b { shape(n, k) } else { shape(k, n) });
        let p = shape(m, n);
        let text = format!(
            "func \"f\"(\"a\" input = %a: f32{a}, \"b\" input = %b: f32{b}{args}) {{
            %p = matmul %a, %b {{trans_a = {trans_a}, trans_b = {trans_b}}} : f32{p}
            {after} }}"
        );
        let tasks = batch * m.div_ceil(rows_per_task) * n.div_ceil(columns_per_task);
        let tiling = Tiling::Blocks { rows_per_task, columns_per_task, kc };
        Case::new(&text, (Family::Product, tiling), tasks)
    }
}

#[test]
fn ragged_shapes_of_every_transposition() {
    for (m, n, k) in [(1, 1, 1), (6, 16, 8), (5, 33, 70), (31, 50, 131), (25, 7, 64), (13, 40, 37)] {
        for transposed in [(true, false), (false, false), (true, true), (false, true)] {
            let shape = Shape { batch: 1, m, n, k, rows_per_task: 12, columns_per_task: 32, kc: 32 };
            shape.kernel(transposed, "", "yield \"p\" = %p").check();
        }
    }
}

#[test]
fn rows_that_fall_on_each_other_in_the_cache() {
    for (m, n, kc) in [(25, 40, 128), (25, 40, 1024), (3, 20, 100)] {
        for batch in [1, 2] {
            let shape = Shape { batch, m, n, k: 1024, rows_per_task: 18, columns_per_task: 32, kc };
            shape.kernel((false, false), "", "yield \"p\" = %p").check();
        }
    }
}

#[test]
fn every_matrix_of_a_batch() {
    for (m, n, k) in [(5, 33, 70), (25, 7, 64), (12, 32, 131)] {
        for transposed in [(true, false), (false, false), (true, true), (false, true)] {
            let shape = Shape { batch: 3, m, n, k, rows_per_task: 12, columns_per_task: 32, kc: 32 };
            shape.kernel(transposed, "", "yield \"p\" = %p").check();
        }
        let shape = Shape { batch: 2, m, n, k, rows_per_task: 12, columns_per_task: 16, kc: 32 };
        let args = format!(", \"c\" input = %c: f32[2, {m}, {n}]");
        let after = format!("%d = add %c, %p : f32[2, {m}, {n}]\nyield \"d\" = %d");
        shape.kernel((true, false), &args, &after).in_place("d", "c").check();
    }
}

#[test]
fn tiles_that_fit_nothing() {
    for (rows_per_task, columns_per_task, kc) in [(1, 1, 1), (7, 19, 5), (100, 100, 100), (13, 5, 33), (4, 24, 64)] {
        let shape = Shape { batch: 1, m: 29, n: 43, k: 66, rows_per_task, columns_per_task, kc };
        shape.kernel((true, false), "", "yield \"p\" = %p").check();
    }
}

#[test]
fn sums_are_updated_in_place() {
    for (m, n, k, kc) in [(25, 35, 70, 32), (25, 35, 30, 32)] {
        let shape = Shape { batch: 1, m, n, k, rows_per_task: 12, columns_per_task: 32, kc };
        let args = format!(", \"c\" input = %c: f32[{m}, {n}], \"s\" input = %s: f32[], \"w\" input = %w: f32[{n}]");
        let after = format!(
            "%q = mul %p, %s : f32[{m}, {n}]
            %d = sub %c, %q : f32[{m}, {n}]
            %r = mul %c, %w : f32[{m}, {n}]
            yield \"d\" = %d, \"r\" = %r, \"p\" = %p"
        );
        shape.kernel((true, false), &args, &after).in_place("d", "c").check();
        shape.kernel((true, false), &args, &after).in_place("r", "c").check();
        let after = format!("%d = add %c, %p : f32[{m}, {n}]\nyield \"d\" = %d");
        shape.kernel((true, false), &args, &after).in_place("d", "c").check();
    }
}

#[test]
fn results_do_not_depend_on_how_tasks_are_cut() {
    let target = crate::testing::target("native");
    let mut results = Vec::new();
    for (rows_per_task, columns_per_task) in [(12, 32), (7, 19), (100, 100), (1, 3)] {
        let shape = Shape { batch: 1, m: 29, n: 43, k: 150, rows_per_task, columns_per_task, kc: 64 };
        let case = shape.kernel((true, false), "", "yield \"p\" = %p");
        let kernel = crate::testing::kernel("k", case.kind, case.func, case.tasks);
        let mut runner = crate::testing::Runner::new(&target, &kernel).unwrap();
        for (i, arg) in runner.args.iter_mut().enumerate() {
            *arg = crate::testing::Aligned::from_f32(&crate::testing::random(arg.bytes().len() / 4, i as u64));
        }
        runner.run(0..case.tasks);
        results.push(runner.args[2].to_f32());
    }
    results.iter().for_each(|r| assert_eq!(*r, results[0]));
}

#[test]
fn every_target_compiles_products() {
    let shape = Shape { batch: 1, m: 31, n: 50, k: 131, rows_per_task: 28, columns_per_task: 40, kc: 64 };
    for transposed in [(true, false), (false, true)] {
        shape.kernel(transposed, "", "yield \"p\" = %p").compile_elsewhere();
    }
}
