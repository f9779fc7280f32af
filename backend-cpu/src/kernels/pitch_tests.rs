//! Kernels whose rows lie apart in memory, against the interpreter.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

/// A case with the rows of these arguments and results so many bytes longer than they are.
fn apart(case: Case, names: &[(&'static str, usize)], more: usize) -> Case {
    names.iter().fold(case, |case, &(name, columns)| case.pitch(name, columns * 4 + more))
}

#[test]
fn rows() {
    for d in [2, 40, 1024] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[7, {d}], "y" input = %y: f32[7, {d}], "w" input = %w: f32[{d}], "c" input = %c: f32[7, 1]) {{
            %n = rms_norm %x, %w {{eps = 1e-6}} : f32[7, {d}]
            %a = mul %y, %c : f32[7, {d}]
            %s = add %a, %n : f32[7, {d}]
            %m = reduce_max %s {{axis = 1, keep = true}} : f32[7, 1]
            %j = concat %s, %y {{axis = 1}} : f32[7, {}]
            yield "n" = %n, "s" = %s, "m" = %m, "j" = %j }}"#,
            2 * d
        );
        let kind = (Family::Rows(7), Tiling::Rows { rows_per_task: 3 });
        let all = [("x", d), ("y", d), ("n", d), ("s", d), ("j", 2 * d)];
        for names in [&all[..], &[("x", d)], &[("s", d), ("j", 2 * d)]] {
            apart(Case::new(&text, kind, 3), names, 64).check();
        }
        apart(Case::new(&text, kind, 3), &all, 64).in_place("n", "x").check();
    }
}

#[test]
fn columns() {
    let text = r#"func "f"("x" input = %x: f32[9, 40], "y" input = %y: f32[9, 40], "acc" input = %acc: f32[40]) {
        %p = mul %x, %y : f32[9, 40]
        %s = sum_to %p {shape = [40]} : f32[40]
        %t = add %acc, %s : f32[40]
        yield "t" = %t }"#;
    let kind = (Family::Columns, Tiling::Columns { columns_per_task: 16 });
    apart(Case::new(text, kind, 3), &[("x", 40), ("y", 40)], 128).check();
}

#[test]
fn products() {
    for transposed in [(true, false), (false, false), (true, true), (false, true)] {
        for (batch, m, n, k, more) in [(1, 25, 40, 70, 64), (2, 13, 33, 37, 12), (1, 12, 32, 1024, 64)] {
            let shape = |flipped, rows: usize, columns: usize| match flipped {
                true => (format!("f32[{batch}, {columns}, {rows}]"), rows),
                false => (format!("f32[{batch}, {rows}, {columns}]"), columns),
            };
            let (a, of_a) = shape(transposed.0, m, k);
            let (b, of_b) = shape(transposed.1, k, n);
            let c = format!("f32[{batch}, {m}, {n}]");
            let text = format!(
                r#"func "f"("a" input = %a: {a}, "b" input = %b: {b}, "c" input = %c: {c}) {{
                %p = matmul %a, %b {{trans_a = {}, trans_b = {}}} : {c}
                %d = add %c, %p : {c}
                yield "d" = %d }}"#,
                transposed.0, transposed.1
            );
            let tiling = Tiling::Blocks { rows_per_task: 12, columns_per_task: 32, kc: 32 };
            let kind = (Family::Product, tiling);
            let case = || Case::new(&text, kind, batch * m.div_ceil(12) * n.div_ceil(32));
            let all = [("a", of_a), ("b", of_b), ("c", n), ("d", n)];
            for names in [&all[..], &all[..1], &all[1..2], &all[2..]] {
                apart(case(), names, more).check();
            }
            apart(case(), &all, more).in_place("d", "c").check();
        }
    }
}

/// `[30, k] x [k, 48]` with panels of 16, in blocks of 12 rows.
fn matmul(k: usize, left: &str, after: &str, yields: &str) -> Case {
    let text = format!(
        r#"func "f"("x" input = %x: f32[30, {k}], "w" input = %w: f32[3, {k}, 16, 1], "norm" input = %norm: f32[{k}], "r" input = %r: f32[30, 48]) {{
        %left = {left} : f32[30, {k}]
        %p = packed_matmul %left, %w {{n = 48, k = {k}, parts = 1}} : f32[30, 48]
        {after}
        yield {yields} }}"#
    );
    let panels_together = if k > 100 { 3 } else { 1 };
    let tiling = Tiling::PanelBlocks { rows_per_task: 12, panels_per_task: 3, kc: 100, panels_together, prefetch: 0 };
    Case { tolerance: 1e-5, ..Case::new(&text, (Family::Matmul, tiling), 3) }
}

#[test]
fn matmuls() {
    for k in [40, 1024] {
        let epilogue = "%y = add %p, %r : f32[30, 48]
            %z = mul %p, %r : f32[30, 48]
            %j = concat %y, %z {axis = 1} : f32[30, 96]";
        let row_epilogue = "%y = add %p, %r : f32[30, 48]
            %m = reduce_max %y {axis = 1, keep = true} : f32[30, 1]
            %j = sub %y, %m : f32[30, 48]";
        for (after, yields, joined) in
            [(epilogue, r#""j" = %j, "y" = %y"#, 96), (row_epilogue, r#""j" = %j, "y" = %y, "m" = %m"#, 48)]
        {
            let all = [("x", k), ("r", 48), ("y", 48), ("j", joined)];
            let plain = format!("reshape %x {{shape = [30, {k}]}}");
            for left in [plain.as_str(), "rms_norm %x, %norm {eps = 1e-5}"] {
                apart(matmul(k, left, after, yields), &all, 64).check();
                apart(matmul(k, left, after, yields), &all[..1], 64).check();
                apart(matmul(k, left, after, yields), &all[3..], 4).check();
            }
            let yields = format!("{yields}, \"left\" = %left");
            let case = matmul(k, "rms_norm %x, %norm {eps = 1e-5}", after, &yields);
            apart(case, &[("left", k), ("y", 48)], 64).in_place("y", "r").pitch("r", 256).check();
        }
    }
}
