//! Kernels of training against the interpreter: packs, column sums and scattered additions.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

#[track_caller]
fn columns(text: &str, columns: usize, columns_per_task: usize) -> Case {
    // The sum of a single column is the sum of one row.
    let kind = match columns {
        1 => (Family::Rows(1), Tiling::Rows { rows_per_task: 1 }),
        _ => (Family::Columns, Tiling::Columns { columns_per_task }),
    };
    Case::new(text, kind, columns.div_ceil(columns_per_task))
}

#[test]
fn column_sums_of_elementwise_operations() {
    for (r, d, per_task) in [(9, 40, 16), (4, 8, 8), (1, 7, 3), (23, 67, 64), (6, 6, 4), (3, 2, 5)] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[{r}, {d}], "y" input = %y: f32[{r}, {d}], "c" input = %c: f32[{r}, 1],
            "w" input = %w: f32[{d}], "s" input = %s: f32[], "acc" input = %acc: f32[{d}], "bias" input = %bias: f32[{d}]) {{
            %a = mul %x, %y : f32[{r}, {d}]
            %b = mul %a, %c : f32[{r}, {d}]
            %e = sub %b, %w : f32[{r}, {d}]
            %g = mul %e, %s : f32[{r}, {d}]
            %n = sum_to %g {{shape = [{d}]}} : f32[{d}]
            %m = sum_to %x {{shape = [1, {d}]}} : f32[1, {d}]
            %f = reshape %m {{shape = [{d}]}} : f32[{d}]
            %p = add %acc, %n : f32[{d}]
            %q = mul %f, %bias : f32[{d}]
            %t = sub %q, %n : f32[{d}]
            yield "p" = %p, "t" = %t, "n" = %n }}"#
        );
        columns(&text, d, per_task).check();
        columns(&text, d, per_task).in_place("p", "acc").in_place("t", "bias").check();
    }
}

#[test]
fn columns_over_several_axes() {
    let text = r#"func "f"("x" input = %x: f32[2, 3, 4, 5], "b" input = %b: f32[4, 5], "c" input = %c: f32[2, 3, 1, 1]) {
        %a = mul %x, %b : f32[2, 3, 4, 5]
        %e = mul %a, %c : f32[2, 3, 4, 5]
        %n = sum_to %e {shape = [4, 5]} : f32[4, 5]
        %y = mul %n, %b : f32[4, 5]
        yield "y" = %y }"#;
    columns(text, 20, 8).check();
}

#[test]
fn sums_of_one_column() {
    for r in [1, 2, 7, 8, 67, 300] {
        for to in ["[1]", "[]"] {
            let text = format!(
                r#"func "f"("x" input = %x: f32[{r}, 1], "y" input = %y: f32[{r}, 1], "s" input = %s: f32[], "acc" input = %acc: f32{to}) {{
                %a = mul %x, %y : f32[{r}, 1]
                %b = mul %a, %s : f32[{r}, 1]
                %n = sum_to %b {{shape = {to}}} : f32{to}
                %p = add %acc, %n : f32{to}
                yield "p" = %p }}"#
            );
            columns(&text, 1, 1).check();
            columns(&text, 1, 1).in_place("p", "acc").check();
        }
    }
}

#[test]
fn scattered_rows_are_added_in_order() {
    for d in [1, 5, 16, 43] {
        let text = format!(
            r#"func "f"("t" input = %t: f32[11, {d}], "i" ids = %i: i32[2, 4], "r" input = %r: f32[2, 4, {d}]) {{
            %y = scatter_add %t, %i, %r : f32[11, {d}]
            yield "y" = %y }}"#
        );
        for rows_per_task in [1, 4, 11, 20] {
            let kind = (Family::ScatterAdd, Tiling::Rows { rows_per_task });
            let case = || Case::new(&text, kind, 11usize.div_ceil(rows_per_task)).int("i", &[7, 0, 7, 10, 3, 7, 0, 2]);
            case().check();
            case().in_place("y", "t").check();
        }
    }
}

#[test]
fn packs_of_every_shape() {
    for (n, k, nr, parts) in [
        (16, 8, 16, 1),
        (33, 7, 16, 1),
        (5, 40, 16, 1),
        (32, 37, 16, 2),
        (48, 17, 8, 2),
        (64, 9, 16, 4),
        (160, 21, 16, 1),
    ] {
        let panels = usize::div_ceil(n, nr);
        let packed = format!("f32[{panels}, {k}, {nr}, 1]");
        for panels_per_task in [1, 3, 16] {
            let kind = (Family::Pack, Tiling::Panels { panels_per_task });
            let tasks = panels.div_ceil(panels_per_task);
            let plain = format!(
                r#"func "f"("w" input = %w: f32[{n}, {k}]) {{
                %p = pack %w {{nr = {nr}, parts = {parts}}} : {packed}
                yield "p" = %p }}"#
            );
            Case::new(&plain, kind, tasks).check();
            let flipped = format!(
                r#"func "f"("w" input = %w: f32[{k}, {n}]) {{
                %t = transpose %w {{perm = [1, 0]}} : f32[{n}, {k}]
                %p = pack %t {{nr = {nr}, parts = {parts}}} : {packed}
                yield "p" = %p }}"#
            );
            Case::new(&flipped, kind, tasks).check();
        }
    }
}

#[test]
fn every_target_compiles_kernels_of_training() {
    let text = r#"func "f"("x" input = %x: f32[9, 43], "acc" input = %acc: f32[43]) {
        %n = sum_to %x {shape = [43]} : f32[43]
        %p = add %acc, %n : f32[43]
        yield "p" = %p }"#;
    columns(text, 43, 16).compile_elsewhere();
    let text = r#"func "f"("w" input = %w: f32[70, 37]) {
        %p = pack %w {nr = 32, parts = 1} : f32[3, 37, 32, 1]
        yield "p" = %p }"#;
    Case::new(text, (Family::Pack, Tiling::Panels { panels_per_task: 2 }), 2).compile_elsewhere();
    let text = r#"func "f"("t" input = %t: f32[11, 21], "i" ids = %i: i32[8], "r" input = %r: f32[8, 21]) {
        %y = scatter_add %t, %i, %r : f32[11, 21]
        yield "y" = %y }"#;
    Case::new(text, (Family::ScatterAdd, Tiling::Rows { rows_per_task: 4 }), 3).compile_elsewhere();
}

#[test]
fn sums_of_some_columns() {
    for (r, d, start, n, per_task) in [(9, 40, 16, 24, 16), (6, 12, 3, 7, 4), (5, 9, 0, 4, 8)] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[{r}, {d}], "c" input = %c: f32[{r}, 1], "acc" input = %acc: f32[{n}]) {{
            %part = slice %x {{axis = 1, start = {start}, end = {}}} : f32[{r}, {n}]
            %a = mul %part, %c : f32[{r}, {n}]
            %s = sum_to %a {{shape = [{n}]}} : f32[{n}]
            %p = add %acc, %s : f32[{n}]
            yield "p" = %p }}"#,
            start + n
        );
        columns(&text, n, per_task).check();
    }
}
