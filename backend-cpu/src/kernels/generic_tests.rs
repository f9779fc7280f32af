//! Generic kernels against the interpreter, one operation each.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

const GENERIC: (Family, Tiling) = (Family::Generic, Tiling::Whole);

#[track_caller]
fn op(args: &str, body: &str) -> Case {
    let text = format!("func \"f\"({args}) {{\n%y = {body}\nyield \"y\" = %y }}");
    Case::new(&text, GENERIC, 1)
}

#[test]
fn elementwise_with_any_broadcast() {
    let args = r#""a" input = %a: f32[2, 1, 3], "b" input = %b: f32[4, 1], "c" input = %c: bool[2, 4, 3]"#;
    op(args, "add %a, %b : f32[2, 4, 3]").check();
    op(args, "select %c, %a, %b : f32[2, 4, 3]").check();
    op(args, "tanh %a : f32[2, 1, 3]").check();
    op(args, "broadcast %a {shape = [2, 4, 3]} : f32[2, 4, 3]").check();
    op(args, "not %c : bool[2, 4, 3]").check();
}

#[test]
fn shapes() {
    let args = r#""a" input = %a: f32[2, 3, 5], "b" input = %b: f32[2, 2, 5]"#;
    op(args, "transpose %a {perm = [2, 0, 1]} : f32[5, 2, 3]").check();
    op(args, "slice %a {axis = 1, start = 1, end = 3} : f32[2, 2, 5]").check();
    op(args, "concat %a, %b, %a {axis = 1} : f32[2, 8, 5]").check();
    op(args, "reshape %a {shape = [6, 5]} : f32[6, 5]").check();
}

#[test]
fn reductions() {
    let args = r#""a" input = %a: f32[2, 3, 5], "c" input = %c: bool[2, 3]"#;
    for axis in 0..3 {
        let mut shape = vec![2, 3, 5];
        shape.remove(axis);
        op(args, &format!("reduce_sum %a {{axis = {axis}, keep = false}} : f32{shape:?}")).check();
        shape.insert(axis, 1);
        op(args, &format!("reduce_max %a {{axis = {axis}, keep = true}} : f32{shape:?}")).check();
    }
    op(args, "all %c : bool[]").check();
    op(r#""c" input = %c: i32[2], "d" input = %d: i32[2]"#, "eq %c, %d : bool[2]").int("c", &[1, 2]).check();
}

#[test]
fn indexing() {
    let args = r#""t" input = %t: f32[5, 3], "i" ids = %i: i32[2, 2], "p" position = %p: i32[2]"#;
    op(args, "gather %t, %i : f32[2, 2, 3]").int("i", &[4, 0, 2, 2]).check();
    op(args, "positions %p {len = 3} : i32[2, 3]").int("p", &[7, 1]).check();
    for (policy, arg) in [("full", 0), ("modulo", 2), ("block", 3), ("anchor", 0)] {
        for step in [0, 3, 11] {
            let attrs = format!("policy = \"{policy}\", arg = {arg}, layer = 1, layers = 3, base = 5");
            op(r#""s" input = %s: i32[]"#, &format!("kv_slot %s {{{attrs}}} : i32[]")).int("s", &[step]).check();
        }
    }
}

#[test]
fn training() {
    let args = r#""a" input = %a: f32[2, 3, 5], "i" input = %i: i32[], "s" input = %s: i32[2, 3], "l" ids = %l: i32[2, 2],
        "t" input = %t: f32[4, 3], "r" input = %r: f32[2, 2, 3], "x" input = %x: f32[2, 3, 2, 6],
        "o" input = %o: f32[9, 3, 2], "p" position = %p: i32[2]"#;
    for i in [0, 1] {
        op(args, "index %a, %i : f32[3, 5]").int("i", &[i]).check();
        op(args, "index %s, %i : i32[3]").int("i", &[i]).check();
    }
    op(args, "pad %a {axis = 1, start = 2, size = 6} : f32[2, 6, 5]").check();
    op(args, "pad %a {axis = 0, start = 0, size = 2} : f32[2, 3, 5]").check();
    op(args, "one_hot %l {n = 4} : f32[2, 2, 4]").int("l", &[3, 0, -1, 4]).check();
    for shape in ["[5]", "[3, 1]", "[2, 1, 5]", "[1, 1, 1]", "[]", "[2, 3, 5]"] {
        op(args, &format!("sum_to %a {{shape = {shape}}} : f32{shape}")).check();
    }
    op(args, "sum_blocks %a {rows = 4} : f32[2, 5]").check();
    op(args, "sum_blocks %t {rows = 1} : f32[4, 3]").check();
    op(args, "scatter_add %t, %l, %r : f32[4, 3]").int("l", &[3, 0, 3, 1]).check();
    op(args, "scatter_add %t, %l, %r : f32[4, 3]").int("l", &[3, 0, 3, 1]).in_place("y", "t").check();
    op(args, "atan %a : f32[2, 3, 5]").check();
    op(args, "constant {value = 3.0, dtype = i32} : i32[]").check();
    for layout in ["adjacent", "half"] {
        op(args, &format!("rope_grad %x, %o, %p {{layout = \"{layout}\"}} : f32[2, 3, 2, 6]"))
            .int("p", &[0, 4])
            .check();
    }
}

#[test]
fn matmuls() {
    let args = r#""a" input = %a: f32[2, 3, 5], "b" input = %b: f32[5, 4], "c" input = %c: f32[2, 4, 3],
        "w" input = %w: f32[3, 5, 8, 1], "v" input = %v: i8[3, 5, 8, 1], "s" input = %s: f32[24]"#;
    op(args, "matmul %a, %b {trans_a = false, trans_b = false} : f32[2, 3, 4]").check();
    op(args, "matmul %a, %c {trans_a = true, trans_b = true} : f32[2, 5, 4]").check();
    op(args, "packed_matmul %a, %w {n = 24, k = 5, parts = 2} : f32[2, 3, 24]").check();
    op(args, "packed_matmul %a, %v, %s {n = 24, k = 5, parts = 1} : f32[2, 3, 24]").check();
}

#[test]
fn weights() {
    let args = r#""w" input = %w: f32[12, 5], "c" input = %c: i8[12, 5], "e" input = %e: bf16[12, 5]"#;
    op(args, "pack %w {nr = 8, parts = 1} : f32[2, 5, 8, 1]").check();
    op(args, "pack %w {nr = 4, parts = 2} : f32[3, 5, 4, 1]").check();
    op(args, "pack %c {nr = 8, parts = 1} : i8[2, 5, 8, 1]").check();
    let text = r#"func "f"("w" input = %w: f32[7, 9]) {
        %q, %s = quantize %w : i8[7, 9], f32[7]
        yield "q" = %q, "s" = %s }"#;
    Case::new(text, GENERIC, 1).check();
}

#[test]
fn last_axis() {
    let args = r#""a" input = %a: f32[2, 3, 5], "w" input = %w: f32[5]"#;
    op(args, "rms_norm %a, %w {eps = 1e-6} : f32[2, 3, 5]").check();
    op(args, "layer_norm %a, %w, %w {eps = 1e-6} : f32[2, 3, 5]").check();
    op(args, "softmax %a : f32[2, 3, 5]").check();
}

#[test]
fn attention() {
    let args = r#""q" input = %q: f32[2, 3, 4, 6], "k" input = %k: f32[2, 7, 2, 6], "v" input = %v: f32[2, 7, 2, 6],
        "t" input = %t: f32[9, 3, 2], "p" position = %p: i32[2]"#;
    for causal in [true, false] {
        let text = format!("attention %q, %k, %v, %p {{causal = {causal}, scale = 0.4}} : f32[2, 3, 4, 6]");
        op(args, &text).int("p", &[0, 4]).check();
        op(args, &text).int("p", &[0, 4]).view("k").view("v").check();
    }
    for layout in ["adjacent", "half"] {
        op(args, &format!("rope %q, %t, %p {{layout = \"{layout}\"}} : f32[2, 3, 4, 6]")).int("p", &[0, 4]).check();
    }
    let text = r#"func "f"("c" cache = %c: cache f32[3, 2, 5, 2, 4], "x" input = %x: f32[2, 2, 2, 4], "p" position = %p: i32[2], "s" input = %s: i32[]) {
        %d, %v = cache_update %c, %x, %p, %s : cache f32[3, 2, 5, 2, 4], f32[2, 5, 2, 4]
        yield "c" = %d }"#;
    Case::new(text, GENERIC, 1).int("p", &[1, 4]).int("s", &[2]).check();
}

#[test]
fn rows_of_one_element() {
    for op in ["softmax %x", "rms_norm %x, %w {eps = 1e-3}", "layer_norm %x, %w, %w {eps = 1e-3}"] {
        let text = format!(
            r#"func "f"("x" input = %x: f32[2, 3, 1], "w" input = %w: f32[1]) {{
            %y = {op} : f32[2, 3, 1]
            yield "y" = %y }}"#
        );
        Case::new(&text, GENERIC, 1).check();
    }
}
