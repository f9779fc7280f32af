//! Matmuls with row operations on their complete rows, against the interpreter.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

/// Rows per task.
const ROWS: usize = 12;

fn kind(k: usize, panels_per_task: usize) -> (Family, Tiling) {
    let (kc, panels_together, prefetch) = (10, if k > 10 { panels_per_task.min(8) } else { 1 }, 0);
    let tiling = Tiling::PanelBlocks { rows_per_task: ROWS, panels_per_task, kc, panels_together, prefetch };
    (Family::Matmul, tiling)
}

/// `[m, k] x [k, n]`, whose result is `%y: f32[b, s, n]` for `m = b * s`; `after` makes the yields of it.
#[track_caller]
fn matmul((b, s, n, k): (usize, usize, usize, usize), args: &str, after: &str, yields: &str) -> Case {
    // The tiles of `x86-64-v3`, which the cases run with.
    let (m, panels) = (b * s, n.div_ceil(16));
    let text = format!(
        r#"func "f"("x" input = %x: f32[{b}, {s}, {k}], "w" input = %w: f32[{panels}, {k}, 16, 1], "norm" input = %norm: f32[{k}]{args}) {{
        %left = rms_norm %x, %norm {{eps = 1e-5}} : f32[{b}, {s}, {k}]
        %y = packed_matmul %left, %w {{n = {n}, k = {k}, parts = 1}} : f32[{b}, {s}, {n}]
        {after}
        yield {yields} }}"#
    );
    Case { tolerance: 1e-5, ..Case::new(&text, kind(k, panels), m.div_ceil(ROWS)) }
}

#[test]
fn heads_are_cut_out_biased_and_rotated() {
    let (b, s, h, d) = (2, 11, 2, 6);
    let (n, w) = (3 * h * d, h * d);
    let part = |name: &str, i: usize| {
        format!("%{name} = slice %y {{axis = 2, start = {}, end = {}}} : f32[{b}, {s}, {w}]\n", i * w, (i + 1) * w)
    };
    let turned = |name: &str, of: &str| {
        format!(
            "%{name}b = add %{of}, %bias : f32[{b}, {s}, {w}]
            %{name}h = reshape %{name}b {{shape = [{b}, {s}, {h}, {d}]}} : f32[{b}, {s}, {h}, {d}]
            %{name} = rope %{name}h, %table, %pos {{layout = \"adjacent\"}} : f32[{b}, {s}, {h}, {d}]\n"
        )
    };
    let args = format!(
        r#", "bias" input = %bias: f32[{w}], "table" input = %table: f32[{}, {}, 2], "pos" position = %pos: i32[{b}]"#,
        s + 4,
        d / 2
    );
    let after = [part("a", 0), part("c", 1), part("v", 2), turned("q", "a"), turned("k", "c")].concat();
    for k in [9, 24] {
        let case = matmul((b, s, n, k), &args, &after, r#""q" = %q, "k" = %k, "v" = %v, "left" = %left"#);
        let case = case.int("pos", &[0, 4]);
        case.check();
        case.compile_elsewhere();
    }
}

#[test]
fn rows_are_normed_and_reduced() {
    for (s, n, k) in [(5usize, 33, 7), (30, 48, 24), (13, 16, 40)] {
        let after = format!(
            "%sum = add %y, %residual : f32[1, {s}, {n}]
            %normed = rms_norm %sum, %scale {{eps = 1e-5}} : f32[1, {s}, {n}]
            %max = reduce_max %y {{axis = 2, keep = true}} : f32[1, {s}, 1]
            %less = sub %y, %max : f32[1, {s}, {n}]
            %power = exp %less : f32[1, {s}, {n}]
            %total = reduce_sum %power {{axis = 2, keep = true}} : f32[1, {s}, 1]"
        );
        let args = format!(r#", "residual" input = %residual: f32[1, {s}, {n}], "scale" input = %scale: f32[{n}]"#);
        matmul((1, s, n, k), &args, &after, r#""n" = %normed, "t" = %total, "m" = %max"#).check();
        let blocks = format!(
            "{after}\n%along = mul %normed, %y : f32[1, {s}, {n}]
            %b = sum_blocks %along {{rows = 6}} : f32[{}, {n}]",
            s.div_ceil(6)
        );
        matmul((1, s, n, k), &args, &blocks, r#""b" = %b, "n" = %normed"#).check();
        let case = matmul((1, s, n, k), &args, &after, r#""n" = %normed, "s" = %sum"#);
        case.in_place("s", "residual").check();
    }
}

#[test]
fn parts_of_rows_are_refused() {
    let after = "%max = reduce_max %y {axis = 2, keep = true} : f32[1, 9, 1]";
    let case = matmul((1, 9, 40, 8), "", after, r#""m" = %max"#);
    let streams = (Family::Matmul, Tiling::Panels { panels_per_task: 3 });
    for (kind, what) in [(kind(8, 1), "but on whole rows"), (streams, "of few rows")] {
        let kernel = crate::testing::kernel("k", kind, case.func.clone(), 3);
        let error = super::mlir(&crate::target("x86-64-v3").unwrap().machine, &kernel).unwrap_err();
        let wanted = format!("kernel k: row operations after a matmul {what} is not supported on this target");
        assert_eq!(error.to_string(), wanted);
    }
}
