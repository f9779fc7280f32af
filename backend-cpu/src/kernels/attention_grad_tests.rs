//! Derivatives of attention against the interpreter.
use super::attention_tests::Size;
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

fn kind(q_rows: usize) -> (Family, Tiling) {
    (Family::AttentionGrad, Tiling::Queries { q_rows, kv_block: 128 })
}

fn grad(z: Size, pos: &[i32], causal: bool, q_rows: usize, results: &[&str]) -> Case {
    let Size { b, s, h, g, d, t } = z;
    let (q, k) = (format!("f32[{b}, {s}, {h}, {d}]"), format!("f32[{b}, {t}, {g}, {d}]"));
    let yields = results.iter().map(|r| format!(r#""{r}" = %{r}"#)).collect::<Vec<_>>().join(", ");
    let text = format!(
        r#"func "f"("q" input = %q: {q}, "k" input = %k: {k}, "v" input = %v: {k}, "pos" position = %pos: i32[{b}],
        "dout" input = %dout: {q}) {{
        %dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %dout {{causal = {causal}, scale = 0.7}} : {q}, {k}, {k}
        yield {yields} }}"#
    );
    Case { tolerance: 4e-6, ..Case::new(&text, kind(q_rows), b * g).int("pos", pos) }
}

const ALL: &[&str] = &["dq", "dk", "dv"];

#[test]
fn head_sizes() {
    let z = Size { b: 2, s: 37, h: 4, g: 2, d: 12, t: 37 };
    for d in [12, 16, 32, 48, 64, 96, 128, 6, 20] {
        grad(Size { d, ..z }, &[0, 0], true, 12, ALL).check();
    }
    for d in [7, 9, 3, 40] {
        grad(Size { d, ..z }, &[0, 0], true, 48, ALL).check();
        grad(Size { d, ..z }, &[0, 0], false, 48, ALL).check();
    }
}

#[test]
fn chunks_and_groups() {
    let z = Size { b: 2, s: 37, h: 4, g: 2, d: 12, t: 37 };
    // Several blocks, the last one ragged; more keys than one inner block; later chunks of a longer context.
    for (s, t, q_rows) in [(37, 37, 6), (50, 150, 12), (13, 300, 10), (100, 100, 48), (131, 131, 36)] {
        grad(Size { s, t, ..z }, &[0, 0], true, q_rows, ALL).check();
        grad(Size { s, t, ..z }, &[0, 0], false, q_rows, ALL).check();
        grad(Size { s, t, ..z }, &[(t - s) as i32, (t - s) as i32 / 2], true, q_rows, ALL).check();
    }
    for (h, g) in [(1, 1), (3, 1), (6, 3), (3, 3)] {
        grad(Size { h, g, ..z }, &[0, 0], true, 18, ALL).check();
    }
    grad(Size { b: 1, s: 7, t: 4096, ..z }, &[4089], true, 48, ALL).check();
    // Queries beyond the context see all of it.
    grad(Size { t: 16, ..z }, &[0, 10], true, 12, ALL).check();
    grad(Size { t: 3, d: 32, ..z }, &[1, 2], true, 12, ALL).check();
}

#[test]
fn one_key() {
    // With one key the weight is 1 whatever the score: dq and dk vanish, and nothing is NaN.
    let z = Size { b: 1, s: 1, h: 2, g: 1, d: 16, t: 1 };
    let vanish = |case: Case| Case { tolerance: 1e24, ..case };
    for case in [grad(z, &[0], true, 48, &["dq", "dk"]), grad(z, &[0], false, 48, &["dq", "dk"])] {
        // The interpreter's are 0 too, which the tolerance is relative to.
        vanish(case).check();
    }
    grad(z, &[0], true, 48, &["dv"]).check();
    grad(Size { s: 2, t: 2, ..z }, &[0], true, 48, ALL).check();
    grad(Size { s: 1, t: 9, ..z }, &[0], true, 48, &["dv"]).check();
}

#[test]
fn results_that_are_not_wanted() {
    let z = Size { b: 2, s: 14, h: 4, g: 2, d: 12, t: 14 };
    for results in [&["dq"][..], &["dk"], &["dv", "dq"], &["dv", "dk", "dq"]] {
        grad(z, &[0, 0], true, 12, results).check();
    }
}

#[test]
fn operands_that_are_columns_of_a_projection() {
    let (b, s, h, g, d) = (2, 21, 4, 2, 20);
    let (q, k) = (format!("f32[{b}, {s}, {h}, {d}]"), format!("f32[{b}, {s}, {g}, {d}]"));
    let columns = |name: &str, first: usize, heads: usize| {
        format!(
            "%{name}s = slice %x {{axis = 2, start = {}, end = {}}} : f32[{b}, {s}, {}]
            %{name} = reshape %{name}s {{shape = [{b}, {s}, {heads}, {d}]}} : f32[{b}, {s}, {heads}, {d}]\n",
            first * d,
            (first + heads) * d,
            heads * d
        )
    };
    let text = format!(
        r#"func "f"("x" input = %x: f32[{b}, {s}, {}], "pos" position = %pos: i32[{b}], "dout" input = %o: f32[{b}, {s}, {}]) {{
        {}{}{}%dout = reshape %o {{shape = [{b}, {s}, {h}, {d}]}} : {q}
        %dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %dout {{causal = true, scale = 0.7}} : {q}, {k}, {k}
        %r = reshape %dq {{shape = [{b}, {s}, {}]}} : f32[{b}, {s}, {}]
        yield "dv" = %dv, "dq" = %r, "dk" = %dk }}"#,
        (h + 2 * g) * d,
        h * d,
        columns("q", 0, h),
        columns("k", h, g),
        columns("v", h + g, g),
        h * d,
        h * d
    );
    let case = Case::new(&text, kind(12), b * g).int("pos", &[0, 0]);
    Case { tolerance: 4e-6, ..case }.check();
}

#[test]
fn every_target_compiles_the_derivative() {
    let z = Size { b: 2, s: 13, h: 4, g: 2, d: 20, t: 40 };
    grad(z, &[0, 0], true, 12, ALL).compile_elsewhere();
    grad(z, &[0, 0], false, 12, ALL).compile_elsewhere();
}

#[test]
fn derivatives_turned_back_and_in_joined_rows() {
    for (b, s, h, g, d, layout) in
        [(2, 21, 4, 2, 20, "adjacent"), (1, 50, 3, 3, 32, "half"), (2, 13, 2, 1, 6, "adjacent")]
    {
        let (q, k) = (format!("f32[{b}, {s}, {h}, {d}]"), format!("f32[{b}, {s}, {g}, {d}]"));
        let rows = |name: &str, of: &str, heads: usize| {
            let n = heads * d;
            format!("%{name} = reshape %{of} {{shape = [{b}, {s}, {n}]}} : f32[{b}, {s}, {n}]\n")
        };
        let turned = |name: &str, of: &str, ty: &str| {
            format!("%{name} = rope_grad %{of}, %table, %pos {{layout = \"{layout}\"}} : {ty}\n")
        };
        let width = (h + 2 * g) * d;
        let text = |join: &str, yields: &str| {
            format!(
                r#"func "f"("q" input = %q: {q}, "k" input = %k: {k}, "v" input = %v: {k}, "pos" position = %pos: i32[{b}],
                "dout" input = %dout: {q}, "table" input = %table: f32[{}, {}, 2]) {{
                %dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %dout {{causal = true, scale = 0.7}} : {q}, {k}, {k}
                {}{}{}{}{}{join}
                yield {yields} }}"#,
                s + 3,
                d / 2,
                turned("tq", "dq", &q),
                turned("tk", "dk", &k),
                rows("rq", "tq", h),
                rows("rk", "tk", g),
                rows("rv", "dv", g),
            )
        };
        let pos = if b == 2 { &[0, 3][..] } else { &[0] };
        for join in ["%rq, %rk, %rv", "%rv, %rq, %rk"] {
            let text = text(&format!("%y = concat {join} {{axis = 2}} : f32[{b}, {s}, {width}]"), r#""y" = %y"#);
            Case { tolerance: 4e-6, ..Case::new(&text, kind(12), b * g).int("pos", pos) }.check();
        }
        let text = text("", r#""k" = %tk, "v" = %rv, "q" = %rq"#);
        let case = Case { tolerance: 4e-6, ..Case::new(&text, kind(12), b * g).int("pos", pos) };
        case.check();
        case.compile_elsewhere();
    }
}
