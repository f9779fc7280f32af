//! Row kernels against the interpreter.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

#[track_caller]
fn rows(text: &str, rows: usize) -> Case {
    let rows_per_task = 3;
    Case::new(text, (Family::Rows(rows), Tiling::Rows { rows_per_task }), rows.div_ceil(rows_per_task))
}

#[test]
fn operand_classes_and_tails() {
    for d in [1, 2, 7, 8, 12, 40, 67] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[2, 5, {d}], "w" input = %w: f32[{d}], "c" input = %c: f32[2, 5, 1],
            "s" input = %s: f32[], "m" input = %m: bool[2, 5, 1]) {{
            %a = mul %x, %w : f32[2, 5, {d}]
            %b = add %a, %c : f32[2, 5, {d}]
            %k = constant {{value = 0.5, dtype = f32}} : f32[]
            %e = mul %s, %k : f32[]
            %d = sub %e, %b : f32[2, 5, {d}]
            %y = select %m, %d, %x : f32[2, 5, {d}]
            %l = lt %y, %x : bool[2, 5, {d}]
            %n = not %l : bool[2, 5, {d}]
            %i = cast %n {{dtype = i32}} : i32[2, 5, {d}]
            yield "y" = %y, "n" = %n, "i" = %i, "d" = %d }}"#
        );
        rows(&text, 10).check();
    }
}

#[test]
fn rows_that_are_reduced_are_written_over() {
    for d in [2, 8, 13, 40, 300] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[7, {d}], "w" input = %w: f32[{d}]) {{
            %m = reduce_max %x {{axis = 1, keep = true}} : f32[7, 1]
            %l = sub %x, %m : f32[7, {d}]
            %e = exp %l : f32[7, {d}]
            %s = reduce_sum %e {{axis = 1, keep = true}} : f32[7, 1]
            %n = rms_norm %x, %w {{eps = 1e-6}} : f32[7, {d}]
            %p = div %e, %s : f32[7, {d}]
            %y = add %p, %n : f32[7, {d}]
            %o = mul %w, %w : f32[{d}]
            %z = add %y, %o : f32[7, {d}]
            yield "z" = %z }}"#
        );
        rows(&text, 7).in_place("z", "x").check();
    }
}

#[test]
fn blocks_of_rows_are_summed() {
    for (n, d) in [(1usize, 5), (2, 8), (7, 24), (13, 41), (30, 2)] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[1, {n}, {d}], "g" input = %g: f32[1, {n}, {d}], "w" input = %w: f32[{d}]) {{
            %r = rms_norm %x, %w {{eps = 1e-6}} : f32[1, {n}, {d}]
            %a = mul %r, %g : f32[1, {n}, {d}]
            %s = sum_blocks %a {{rows = 3}} : f32[{blocks}, {d}]
            %t = sum_blocks %g {{rows = 3}} : f32[{blocks}, {d}]
            %y = mul %a, %x : f32[1, {n}, {d}]
            yield "s" = %s, "a" = %a, "t" = %t, "y" = %y }}"#,
            blocks = n.div_ceil(3)
        );
        let case = rows(&text, n);
        case.check();
        case.compile_elsewhere();
    }
}

#[test]
fn a_task_that_cuts_a_block_is_refused() {
    let text = r#"func "f"("x" input = %x: f32[8, 5]) {
        %s = sum_blocks %x {rows = 2} : f32[4, 5]
        yield "s" = %s }"#;
    let case = rows(text, 8);
    let kernel = crate::testing::kernel("k", case.kind, case.func, 3);
    let error = super::mlir(&crate::target("x86-64-v3").unwrap().machine, &kernel).unwrap_err();
    assert_eq!(error.to_string(), "kernel k: sums of 2 rows in tasks of 3 is not supported on this target");
}

#[test]
fn every_target_compiles_rows() {
    let text = r#"func "f"("ids" ids = %ids: i32[3], "table" input = %table: bf16[2, 11, 32, 2], "w" input = %w: f32[21]) {
        %x = packed_gather %table, %ids {n = 64, k = 21, parts = 1} : f32[3, 21]
        %n = layer_norm %x, %w, %w {eps = 1e-6} : f32[3, 21]
        %g = gelu %n : f32[3, 21]
        %t = tanh %g : f32[3, 21]
        %l = log %t : f32[3, 21]
        %m = max %l, %x : f32[3, 21]
        %c = lt %m, %x : bool[3, 21]
        %s = select %c, %m, %x : f32[3, 21]
        %p = softmax %s : f32[3, 21]
        %i = cast %p {dtype = i32} : i32[3, 21]
        %b = cast %p {dtype = bf16} : bf16[3, 21]
        yield "i" = %i, "c" = %c, "b" = %b }"#;
    rows(text, 3).compile_elsewhere();
}

#[test]
fn norms_in_few_sweeps() {
    for d in [2, 12, 32, 40, 69, 320] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[1, 7, {d}], "r" input = %r: f32[1, 7, {d}], "w" input = %w: f32[{d}], "b" input = %b: f32[{d}]) {{
            %s = add %x, %r : f32[1, 7, {d}]
            %n = rms_norm %s, %w {{eps = 1e-6}} : f32[1, 7, {d}]
            %t = silu %n : f32[1, 7, {d}]
            %l = layer_norm %t, %w, %b {{eps = 1e-5}} : f32[1, 7, {d}]
            %u = add %l, %s : f32[1, 7, {d}]
            %p = softmax %u : f32[1, 7, {d}]
            %q = add %p, %l : f32[1, 7, {d}]
            yield "q" = %q, "n" = %n, "p" = %p }}"#
        );
        rows(&text, 7).check();
    }
}

#[test]
fn two_norms_in_a_row() {
    let text = r#"func "f"("x" input = %x: f32[5, 48], "w" input = %w: f32[48]) {
        %a = rms_norm %x, %w {eps = 1e-6} : f32[5, 48]
        %b = add %a, %x : f32[5, 48]
        %c = rms_norm %b, %w {eps = 1e-6} : f32[5, 48]
        %d = softmax %c : f32[5, 48]
        %e = softmax %d : f32[5, 48]
        yield "c" = %c, "e" = %e, "d" = %d, "d2" = %d }"#;
    rows(text, 5).check();
}

#[test]
fn reductions_to_columns() {
    for d in [3, 16, 70] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[2, 3, {d}], "y" input = %y: f32[2, 3, {d}]) {{
            %p = mul %x, %y : f32[2, 3, {d}]
            %s = reduce_sum %p {{axis = 2, keep = false}} : f32[2, 3]
            %m = reduce_max %p {{axis = 2, keep = true}} : f32[2, 3, 1]
            %t = sigmoid %s : f32[2, 3]
            %z = constant {{value = 0.3, dtype = f32}} : f32[]
            %d = le %t, %z : bool[2, 3]
            %q = sub %p, %m : f32[2, 3, {d}]
            %e = exp %q : f32[2, 3, {d}]
            yield "t" = %t, "d" = %d, "e" = %e, "m" = %m }}"#
        );
        rows(&text, 6).check();
    }
}

#[test]
fn slices_and_concats() {
    let text = r#"func "f"("x" input = %x: f32[4, 50], "y" input = %y: f32[4, 20], "w" input = %w: f32[39]) {
        %a = slice %x {axis = 1, start = 0, end = 19} : f32[4, 19]
        %b = slice %x {axis = 1, start = 31, end = 50} : f32[4, 19]
        %g = silu %a : f32[4, 19]
        %m = mul %g, %b : f32[4, 19]
        %c = concat %m, %y {axis = 1} : f32[4, 39]
        %n = rms_norm %c, %w {eps = 1e-6} : f32[4, 39]
        %t = slice %n {axis = 1, start = 5, end = 8} : f32[4, 3]
        yield "m" = %m, "c" = %c, "n" = %n, "t" = %t, "c2" = %c }"#;
    rows(text, 4).check();
}

#[test]
fn gathers_and_positions() {
    let text = r#"func "f"("ids" ids = %ids: i32[2, 3], "table" input = %table: f32[9, 20], "pos" position = %pos: i32[2], "pe" input = %pe: f32[16, 20]) {
        %g = gather %table, %ids : f32[2, 3, 20]
        %k = constant {value = 4.5, dtype = f32} : f32[]
        %h = mul %g, %k : f32[2, 3, 20]
        %p = positions %pos {len = 3} : i32[2, 3]
        %q = gather %pe, %p : f32[2, 3, 20]
        %y = add %h, %q : f32[2, 3, 20]
        yield "y" = %y, "p" = %p }"#;
    rows(text, 6).int("ids", &[0, 8, 3, 1, 2, 7]).int("pos", &[0, 11]).check();
}

#[test]
fn one_row_for_a_scalar_index() {
    let text = r#"func "f"("step" input = %i: i32[], "table" input = %table: f32[9, 20], "x" input = %x: f32[5, 20]) {
        %g = gather %table, %i : f32[20]
        %y = add %x, %g : f32[5, 20]
        yield "y" = %y }"#;
    rows(text, 5).int("step", &[4]).check();
    let text = r#"func "f"("step" input = %i: i32[], "table" input = %table: f32[9, 20]) {
        %g = gather %table, %i : f32[20]
        yield "y" = %g }"#;
    rows(text, 1).int("step", &[4]).check();
}

#[test]
fn packed_gathers() {
    for (pack, kind) in [("f32[3, 13, 16, 1]", ""), ("i8[3, 13, 16, 1]", ", %s")] {
        let text = format!(
            r#"func "f"("ids" ids = %ids: i32[2, 3], "w" input = %w: {pack}, "s" input = %s: f32[40]) {{
            %g = packed_gather %w, %ids{kind} {{n = 40, k = 13, parts = 1}} : f32[2, 3, 13]
            %h = add %g, %g : f32[2, 3, 13]
            yield "h" = %h, "g" = %g }}"#
        );
        rows(&text, 6).int("ids", &[0, 39, 17, 16, 2, 15]).check();
    }
    let text = r#"func "f"("ids" ids = %ids: i32[4], "w" input = %w: f32[4, 13, 16, 1]) {
        %g = packed_gather %w, %ids {n = 64, k = 13, parts = 2} : f32[4, 13]
        yield "g" = %g }"#;
    rows(text, 4).int("ids", &[0, 33, 31, 63]).check();
}

#[test]
fn a_row_vector_of_as_many_columns_as_rows() {
    let text = r#"func "f"("x" input = %x: f32[6, 6], "w" input = %w: f32[6], "c" input = %c: f32[6, 1]) {
        %v = exp %w : f32[6]
        %y = mul %x, %v : f32[6, 6]
        %z = add %y, %c : f32[6, 6]
        yield "z" = %z }"#;
    rows(text, 6).check();
}

#[test]
fn through_bf16() {
    let text = r#"func "f"("x" input = %x: f32[3, 21]) {
        %b = cast %x {dtype = bf16} : bf16[3, 21]
        %y = cast %b {dtype = f32} : f32[3, 21]
        %i = cast %y {dtype = i32} : i32[3, 21]
        yield "y" = %y, "b" = %b, "i" = %i }"#;
    rows(text, 3).check();
}

#[test]
fn heads_are_rotated_by_rows() {
    for (layout, d) in [("adjacent", 16), ("half", 16), ("adjacent", 6), ("half", 6), ("half", 24), ("adjacent", 2)] {
        for op in ["rope", "rope_grad"] {
            let wide = 3 * d;
            let attrs = format!("{{layout = \"{layout}\"}}");
            let text = format!(
                r#"func "f"("x" input = %x: f32[2, 5, 3, {d}], "p" input = %p: f32[10, {}], "b" input = %b: f32[3, {d}],
                "t" input = %t: f32[12, {}, 2], "pos" position = %pos: i32[2]) {{
                %r = {op} %x, %t, %pos {attrs} : f32[2, 5, 3, {d}]
                %s = slice %p {{axis = 1, start = {d}, end = {}}} : f32[10, {wide}]
                %h = reshape %s {{shape = [2, 5, 3, {d}]}} : f32[2, 5, 3, {d}]
                %q = {op} %h, %t, %pos {attrs} : f32[2, 5, 3, {d}]
                %y = add %h, %b : f32[2, 5, 3, {d}]
                %k = {op} %y, %t, %pos {attrs} : f32[2, 5, 3, {d}]
                %m = mul %k, %r : f32[2, 5, 3, {d}]
                %n = reshape %m {{shape = [10, {wide}]}} : f32[10, {wide}]
                %c = concat %n, %s {{axis = 1}} : f32[10, {}]
                yield "r" = %r, "q" = %q, "k" = %k, "c" = %c }}"#,
                5 * d,
                d / 2,
                4 * d,
                6 * d
            );
            rows(&text, 10).int("pos", &[0, 7]).check();
        }
    }
}

#[test]
fn heads_from_norms() {
    let text = r#"func "f"("x" input = %x: f32[6, 32], "w" input = %w: f32[32], "t" input = %t: f32[9, 4, 2], "pos" position = %pos: i32[2]) {
        %n = rms_norm %x, %w {eps = 1e-6} : f32[6, 32]
        %h = reshape %n {shape = [2, 3, 4, 8]} : f32[2, 3, 4, 8]
        %q = rope %h, %t, %pos {layout = "half"} : f32[2, 3, 4, 8]
        %f = reshape %q {shape = [6, 32]} : f32[6, 32]
        %p = softmax %f : f32[6, 32]
        yield "p" = %p, "n" = %n }"#;
    rows(text, 6).int("pos", &[6, 1]).check();
}

#[test]
fn pads_and_one_hots() {
    for (d, start, size) in [(5, 2, 9), (8, 0, 16), (8, 8, 16), (1, 3, 4), (12, 0, 12), (7, 9, 40)] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[4, {d}], "y" input = %y: f32[4, {size}], "i" ids = %i: i32[4], "k" input = %k: i32[]) {{
            %e = exp %x : f32[4, {d}]
            %p = pad %e {{axis = 1, start = {start}, size = {size}}} : f32[4, {size}]
            %s = add %p, %y : f32[4, {size}]
            %h = one_hot %i {{n = {size}}} : f32[4, {size}]
            %m = mul %h, %s : f32[4, {size}]
            %o = reduce_sum %m {{axis = 1, keep = true}} : f32[4, 1]
            %q = sub %h, %o : f32[4, {size}]
            %r = one_hot %k {{n = {size}}} : f32[{size}]
            %z = add %q, %r : f32[4, {size}]
            yield "p" = %p, "s" = %s, "o" = %o, "z" = %z }}"#
        );
        rows(&text, 4).int("i", &[0, -3, 3, 100]).int("k", &[2]).check();
    }
}

#[test]
fn losses_of_rows() {
    for v in [9, 64] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[6, {v}], "l" ids = %l: i32[6], "d" input = %d: f32[6, 1]) {{
            %max = reduce_max %x {{axis = 1, keep = true}} : f32[6, 1]
            %s = sub %x, %max : f32[6, {v}]
            %e = exp %s : f32[6, {v}]
            %sum = reduce_sum %e {{axis = 1, keep = true}} : f32[6, 1]
            %log = log %sum : f32[6, 1]
            %lse = add %log, %max : f32[6, 1]
            %lo = constant {{value = 0.0, dtype = i32}} : i32[]
            %at = max %l, %lo : i32[6]
            %hit = one_hot %at {{n = {v}}} : f32[6, {v}]
            %prod = mul %hit, %x : f32[6, {v}]
            %own = reduce_sum %prod {{axis = 1, keep = true}} : f32[6, 1]
            %nll = sub %lse, %own : f32[6, 1]
            %ign = constant {{value = -100.0, dtype = i32}} : i32[]
            %lc = reshape %l {{shape = [6, 1]}} : i32[6, 1]
            %is = eq %lc, %ign : bool[6, 1]
            %zero = constant {{value = 0.0, dtype = f32}} : f32[]
            %loss = select %is, %zero, %nll : f32[6, 1]
            %dn = select %is, %zero, %d : f32[6, 1]
            %fac = div %dn, %sum : f32[6, 1]
            %sp = mul %e, %fac : f32[6, {v}]
            %ho = mul %hit, %dn : f32[6, {v}]
            %g = sub %sp, %ho : f32[6, {v}]
            %right = le %max, %own : bool[6, 1]
            %c = cast %right {{dtype = f32}} : f32[6, 1]
            yield "loss" = %loss, "g" = %g, "c" = %c }}"#
        );
        let case = || rows(&text, 6).int("l", &[3, -100, 8, 0, -100, 1]);
        case().check();
        case().in_place("g", "x").check();
    }
}

#[test]
fn results_in_place() {
    for d in [1, 7, 40] {
        let text = format!(
            r#"func "f"("p" input = %p: f32[5, {d}], "m" input = %m: f32[5, {d}], "g" input = %g: f32[5, {d}], "c" input = %c: f32[5, 1]) {{
            %k = constant {{value = 0.9, dtype = f32}} : f32[]
            %c2 = mul %c, %k : f32[5, 1]
            %s = mul %g, %c : f32[5, {d}]
            %km = mul %m, %k : f32[5, {d}]
            %n = add %km, %s : f32[5, {d}]
            %u = mul %n, %p : f32[5, {d}]
            %q = sub %p, %u : f32[5, {d}]
            yield "c2" = %c2, "n" = %n, "q" = %q }}"#
        );
        rows(&text, 5).in_place("q", "p").in_place("n", "m").in_place("c2", "c").check();
        rows(&text, 5).in_place("n", "p").in_place("q", "m").in_place("c2", "c").check();
    }
    let text = r#"func "f"("a" input = %a: f32[5, 40], "b" input = %b: f32[5, 40]) {
        %t = exp %a : f32[5, 40]
        %r = reduce_sum %b {axis = 1, keep = true} : f32[5, 1]
        %s = mul %t, %r : f32[5, 40]
        %y = add %s, %a : f32[5, 40]
        yield "y" = %y, "r" = %r }"#;
    rows(text, 5).in_place("y", "a").check();
}
