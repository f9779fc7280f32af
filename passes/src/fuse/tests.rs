//! Which operations become one kernel.
#![allow(clippy::unwrap_used)]
use super::normalise::{normalise, remove_unused};
use super::{GroupKind, groups};
use crate::plan::testing::CPU;
use crate::uses::Uses;
use crate::weights::{Weights, leaves};

/// The kernels of the body of the function `f`, one a line: the kind, then the operations.
fn kernels(body: &str) -> String {
    let module = rdc_ir::parse(&format!("module \"m\"\n{body}")).unwrap();
    assert_eq!(rdc_ir::verify::verify_text(&module), None);
    let mut func = normalise(&module.funcs[0], &CPU);
    remove_unused(&mut func);
    let uses = Uses::new(&func);
    let leaves = leaves(&func, &uses, &Weights::new(&module));
    let groups = groups(&func, &uses, &leaves, func.body, &CPU).into_iter().filter(|g| g.kind != GroupKind::Alias);
    let lines = groups.map(|group| {
        let kind = format!("{:?}", group.kind);
        let words = group.ops.iter().map(|&op| func.ops[op].opcode.info().mnemonic);
        let words: Vec<&str> = words.filter(|w| *w != "reshape").collect();
        format!("{}: {}", kind.split('(').next().unwrap(), words.join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A function whose arguments are f32 tensors and which yields the values named.
fn func(args: &[(&str, &str)], body: &str, yields: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|(name, ty)| format!("\"{name}\" input = %{name}: {ty}")).collect();
    let yields: Vec<String> = yields.iter().map(|name| format!("\"{name}\" = %{name}")).collect();
    format!("func \"f\"({}) {{\n{body}\nyield {}\n}}", args.join(", "), yields.join(", "))
}

const W: &str = "f32[1, 8, 16, 1]";

#[test]
fn what_rows_compute_is_no_epilogue() {
    // The derivative of a norm whose cotangent comes out of a product and is needed by others too.
    let body = "
  %dy = packed_matmul %g, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %scaled = mul %dy, %scale : f32[6, 8]
  %along = mul %scaled, %x : f32[6, 8]
  %sum = reduce_sum %along {axis = 1, keep = true} : f32[6, 1]
  %part = mul %x, %sum : f32[6, 8]
  %dx = sub %scaled, %part : f32[6, 8]";
    let args = [("g", "f32[6, 8]"), ("w", W), ("scale", "f32[8]"), ("x", "f32[6, 8]")];
    assert_eq!(kernels(&func(&args, body, &["dx", "dy"])), "Matmul: packed_matmul\nRows: mul mul reduce_sum mul sub");
}

#[test]
fn an_epilogue_takes_what_only_it_needs() {
    let body = "
  %gate = slice %both {axis = 1, start = 0, end = 8} : f32[6, 8]
  %slope = sigmoid %gate : f32[6, 8]
  %dy = packed_matmul %g, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %dgate = mul %dy, %slope : f32[6, 8]";
    let args = [("g", "f32[6, 8]"), ("w", W), ("both", "f32[6, 16]")];
    assert_eq!(kernels(&func(&args, body, &["dgate"])), "Matmul: slice sigmoid packed_matmul mul");
    assert_eq!(
        kernels(&func(&args, body, &["dgate", "slope"])),
        "Rows: slice sigmoid\nMatmul: packed_matmul mul",
        "what others need too is computed once"
    );
}

#[test]
fn a_sum_of_the_left_operand_is_a_result_of_its_product() {
    let body = "
  %dx = mul %g, %scale : f32[6, 8]
  %sum = add %acc, %dx : f32[6, 8]
  %ds = packed_matmul %dx, %w {n = 8, k = 8, parts = 1} : f32[6, 8]";
    let args = [("g", "f32[6, 8]"), ("w", W), ("scale", "f32[8]"), ("acc", "f32[6, 8]")];
    assert_eq!(kernels(&func(&args, body, &["ds", "sum"])), "Matmul: mul add packed_matmul");
}

#[test]
fn a_gradient_is_added_where_it_is_computed() {
    let body = "
  %dw = matmul %dy, %x {trans_a = true, trans_b = false} : f32[8, 4]
  %tall = reshape %dw {shape = [2, 4, 4]} : f32[2, 4, 4]
  %sum = add %acc, %tall : f32[2, 4, 4]";
    let args = [("dy", "f32[6, 8]"), ("x", "f32[6, 4]"), ("acc", "f32[2, 4, 4]")];
    assert_eq!(kernels(&func(&args, body, &["sum"])), "Product: matmul add");
}

#[test]
fn a_column_sum_computes_what_it_sums() {
    // The normed value is a row kernel's too; computed again from x and one number per row it needs no memory.
    let body = "
  %square = mul %x, %x : f32[2, 3, 8]
  %r = reduce_sum %square {axis = 2, keep = true} : f32[2, 3, 1]
  %normed = mul %x, %r : f32[2, 3, 8]
  %along = mul %dy, %normed : f32[2, 3, 8]
  %mean = reduce_sum %along {axis = 2, keep = true} : f32[2, 3, 1]
  %part = mul %normed, %mean : f32[2, 3, 8]
  %dx = sub %dy, %part : f32[2, 3, 8]
  %product = mul %dy, %normed : f32[2, 3, 8]
  %rows = reshape %product {shape = [6, 8]} : f32[6, 8]
  %dscale = sum_to %rows {shape = [8]} : f32[8]
  %sum = add %acc, %dscale : f32[8]";
    let args = [("x", "f32[2, 3, 8]"), ("dy", "f32[2, 3, 8]"), ("acc", "f32[8]")];
    assert_eq!(
        kernels(&func(&args, body, &["dx", "sum"])),
        "Rows: mul reduce_sum mul mul reduce_sum mul sub\nColumns: mul mul sum_to add"
    );
}

#[test]
fn kernels_of_one_operation() {
    let body = "
  %t = transpose %w {perm = [1, 0]} : f32[8, 4]
  %p = pack %t {nr = 16, parts = 1} : f32[1, 4, 16, 1]
  %table = scatter_add %w, %ids, %rows : f32[4, 8]";
    let args = [("w", "f32[4, 8]"), ("ids", "i32[3]"), ("rows", "f32[3, 8]")];
    assert_eq!(kernels(&func(&args, body, &["p", "table"])), "Pack: transpose pack\nScatterAdd: scatter_add");
}

#[test]
fn heads_are_rows_of_tokens() {
    // Keys that the derivative needs as well lie in memory as they are; the bias is added before the split.
    let body = "
  %key = slice %qkv {axis = 2, start = 0, end = 8} : f32[2, 3, 8]
  %split = reshape %key {shape = [2, 3, 2, 4]} : f32[2, 3, 2, 4]
  %biased = add %split, %bias : f32[2, 3, 2, 4]
  %k = rope %biased, %angles, %pos {layout = \"half\"} : f32[2, 3, 2, 4]
  %out = attention %q, %k, %k, %pos {causal = true, scale = 0.5} : f32[2, 3, 2, 4]
  %dq, %dk, %dv = attention_grad %q, %k, %k, %pos, %out {causal = true, scale = 0.5} : f32[2, 3, 2, 4], f32[2, 3, 2, 4], f32[2, 3, 2, 4]";
    let args = [
        ("qkv", "f32[2, 3, 16]"),
        ("bias", "f32[2, 4]"),
        ("angles", "f32[8, 2, 2]"),
        ("pos", "i32[2]"),
        ("q", "f32[2, 3, 2, 4]"),
    ];
    assert_eq!(
        kernels(&func(&args, body, &["dq", "dk", "dv"])),
        "Rows: slice add rope\nAttention: attention\nAttentionGrad: attention_grad"
    );
}

#[test]
fn a_one_hot_needs_no_memory() {
    let body = "
  %hit = one_hot %ids {n = 8} : f32[6, 8]
  %a = mul %hit, %x : f32[6, 8]
  %sum = reduce_sum %a {axis = 1, keep = true} : f32[6, 1]
  %y = packed_matmul %z, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %b = sub %y, %hit : f32[6, 8]
  %c = reduce_max %b {axis = 1, keep = true} : f32[6, 1]";
    let args = [("ids", "i32[6]"), ("x", "f32[6, 8]"), ("z", "f32[6, 8]"), ("w", W)];
    let found = kernels(&func(&args, body, &["sum", "c"]));
    assert_eq!(found.matches("one_hot").count(), 2, "{found}");
    assert!(found.contains("Rows: one_hot mul reduce_sum"), "{found}");
}

#[test]
fn what_is_computed_again_for_a_product_is_computed_beside_its_derivative() {
    let gated = "
  %active = silu %gate : f32[6, 8]
  %again = mul %active, %up : f32[6, 8]
  %d = packed_matmul %g, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %dup = mul %d, %active : f32[6, 8]
  %slope = sigmoid %gate : f32[6, 8]
  %along = mul %d, %up : f32[6, 8]
  %dgate = mul %along, %slope : f32[6, 8]
  %dw = matmul %g, %again {trans_a = true, trans_b = false} : f32[8, 8]";
    let args = [("gate", "f32[6, 8]"), ("up", "f32[6, 8]"), ("g", "f32[6, 8]"), ("w", W)];
    assert_eq!(
        kernels(&func(&args, gated, &["dup", "dgate", "dw"])),
        "Matmul: silu mul packed_matmul mul sigmoid mul mul\nProduct: matmul"
    );
    let normed = "
  %normed = rms_norm %x, %scale {eps = 1e-6} : f32[6, 8]
  %dx = mul %x, %g : f32[6, 8]
  %d = packed_matmul %dx, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %dw = matmul %g, %normed {trans_a = true, trans_b = false} : f32[8, 8]";
    let args = [("x", "f32[6, 8]"), ("scale", "f32[8]"), ("g", "f32[6, 8]"), ("w", W)];
    assert_eq!(kernels(&func(&args, normed, &["d", "dw"])), "Matmul: rms_norm mul packed_matmul\nProduct: matmul");
    assert_eq!(
        kernels(&func(&args, normed, &["d", "dw", "normed"])),
        "Rows: rms_norm\nMatmul: mul packed_matmul\nProduct: matmul",
        "what others need too is a kernel of its own"
    );
}

/// The derivative of a norm by its operand, `%dx`, and by its weight, `%dscale`, for `%dy` and `%x: f32[66, 8]`.
const NORM_DERIVATIVE: &str = "
  %square = mul %x, %x : f32[66, 8]
  %sum = reduce_sum %square {axis = 1, keep = true} : f32[66, 1]
  %inverse = rsqrt %sum : f32[66, 1]
  %unit = mul %x, %inverse : f32[66, 8]
  %scaled = mul %dy, %scale : f32[66, 8]
  %along = mul %scaled, %unit : f32[66, 8]
  %dot = reduce_sum %along {axis = 1, keep = true} : f32[66, 1]
  %part = mul %unit, %dot : f32[66, 8]
  %less = sub %scaled, %part : f32[66, 8]
  %dx = mul %less, %inverse : f32[66, 8]
  %each = mul %dy, %unit : f32[66, 8]
  %dscale = sum_to %each {shape = [8]} : f32[8]";

#[test]
fn a_row_kernel_sums_blocks_for_a_column_sum() {
    let args = [("x", "f32[66, 8]"), ("scale", "f32[8]"), ("w", W), ("g", "f32[66, 8]"), ("dy", "f32[66, 8]")];
    assert_eq!(
        kernels(&func(&args, NORM_DERIVATIVE, &["dx", "dscale"])),
        "Rows: mul reduce_sum rsqrt mul mul mul reduce_sum mul sub mul mul sum_blocks\nColumns: sum_to"
    );
    // Before the matmul that takes the derivative, and after the matmul whose result it is of, which gives that alone.
    let body = format!(
        "%dy = packed_matmul %g, %w {{n = 8, k = 8, parts = 1}} : f32[66, 8]{NORM_DERIVATIVE}
        %dz = packed_matmul %dx, %w {{n = 8, k = 8, parts = 1}} : f32[66, 8]"
    );
    assert_eq!(
        kernels(&func(&args[..4], &body, &["dz", "dscale"])),
        "Matmul: packed_matmul\n\
        Matmul: mul reduce_sum rsqrt mul mul mul reduce_sum mul sub mul mul sum_blocks packed_matmul\nColumns: sum_to"
    );
    // Nothing reduces the rows, or they are few.
    let plain = "%each = mul %x, %dy : f32[66, 8]\n%dscale = sum_to %each {shape = [8]} : f32[8]";
    assert_eq!(kernels(&func(&args, plain, &["dscale"])), "Columns: mul sum_to");
    let few = func(&args, NORM_DERIVATIVE, &["dx", "dscale"]).replace("f32[66, ", "f32[6, ");
    assert!(!kernels(&few).contains("sum_blocks"));
}

#[test]
fn an_epilogue_ends_at_a_loop() {
    let body = "
  %y = packed_matmul %x, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %now = silu %y : f32[6, 8]
  %last, %trips = loop %r, %now {max_steps = 4, exit = false, stacked = 0, reverse = false} : f32[6, 8], i32[] {
    (%step: i32[], %end: bool[], %s: f32[6, 8])
    %next = sigmoid %s : f32[6, 8]
    yield %next
  }
  %again = silu %y : f32[6, 8]
  %out = mul %again, %last : f32[6, 8]";
    let args = [("x", "f32[6, 8]"), ("w", W), ("r", "i32[]")];
    assert_eq!(kernels(&func(&args, body, &["out"])), "Matmul: packed_matmul silu\nLoop: loop\nRows: silu mul");
}

#[test]
fn rows_that_a_matmul_completes_go_on_within_it() {
    let body = "
  %y = packed_matmul %x, %w {n = 8, k = 8, parts = 1} : f32[6, 8]
  %a = slice %y {axis = 1, start = 0, end = 4} : f32[6, 4]
  %p = add %a, %bias : f32[6, 4]
  %q = rms_norm %p, %bias {eps = 1e-6} : f32[6, 4]
  %b = slice %y {axis = 1, start = 4, end = 8} : f32[6, 4]";
    let args = [("x", "f32[6, 8]"), ("w", W), ("bias", "f32[4]")];
    assert_eq!(kernels(&func(&args, body, &["q", "b"])), "Matmul: packed_matmul slice add rms_norm slice");
    // The result itself is needed, or there are few rows.
    let apart = "Matmul: packed_matmul\nRows: slice add rms_norm\nRows: slice";
    assert_eq!(kernels(&func(&args, body, &["q", "b", "y"])), apart);
    let few = |text: &str| text.replace("f32[6, ", "f32[4, ");
    let args = [("x", "f32[4, 8]"), ("w", W), ("bias", "f32[4]")];
    assert_eq!(kernels(&func(&args, &few(body), &["q", "b"])), apart);
}

#[test]
fn derivatives_of_an_attention_leave_it_in_joined_rows() {
    let heads = "f32[2, 3, 2, 4]";
    let turned =
        |part: &str| format!("%t{part} = rope_grad %d{part}, %table, %pos {{layout = \"adjacent\"}} : {heads}");
    let rows = |part: &str, of: &str| format!("%r{part} = reshape %{of} {{shape = [2, 3, 8]}} : f32[2, 3, 8]");
    let body = [
        format!("%dq, %dk, %dv = attention_grad %q, %k, %v, %pos, %o {{causal = true, scale = 0.5}} : {heads}, {heads}, {heads}"),
        turned("k"),
        "%m = reshape %tk {shape = [6, 8]} : f32[6, 8]\n%bias = sum_to %m {shape = [8]} : f32[8]".to_string(),
        rows("k", "tk"),
        turned("q"),
        rows("q", "tq"),
        rows("v", "dv"),
        "%rows = concat %rq, %rk, %rv {axis = 2} : f32[2, 3, 24]".to_string(),
    ]
    .join("\n");
    let args = [("q", heads), ("k", heads), ("v", heads), ("o", heads), ("table", "f32[3, 2, 2]")];
    let text =
        func(&args, &body, &["rows", "bias"]).replace("func \"f\"(", "func \"f\"(\"pos\" position = %pos: i32[2], ");
    let joined = "AttentionGrad: attention_grad rope_grad rope_grad concat\nColumns: slice sum_to";
    assert_eq!(kernels(&text), joined);
    // Where something else takes the heads as they are, they have memory of their own.
    let text = text.replace("\"bias\" = %bias", "\"bias\" = %bias, \"heads\" = %tk");
    let apart = "AttentionGrad: attention_grad rope_grad rope_grad\nRows: concat\nColumns: sum_to";
    assert_eq!(kernels(&text), apart);
}

#[test]
fn sums_over_all_rows_come_where_threads_would_wait() {
    let heads = "f32[2, 3, 2, 4]";
    let product = |name: &str, rows: &str| {
        format!("%{name} = matmul %{rows}, %x {{trans_a = true, trans_b = false}} : f32[8, 8]\n")
    };
    let dense =
        |to: &str, from: &str| format!("%{to} = packed_matmul %{from}, %w {{n = 8, k = 8, parts = 1}} : f32[6, 8]\n");
    let body = [
        dense("a", "x"),
        product("pa", "a"),
        dense("b", "a"),
        product("pb", "b"),
        format!("%q = reshape %b {{shape = [2, 3, 2, 4]}} : {heads}\n"),
        format!("%o = attention %q, %q, %q, %pos {{causal = true, scale = 0.5}} : {heads}\n"),
        "%t = reshape %o {shape = [6, 8]} : f32[6, 8]\n".to_string(),
        dense("c", "t"),
        product("pc", "c"),
        dense("d", "c"),
        dense("e", "d"),
        dense("f", "e"),
        dense("g", "f"),
    ];
    let text = func(&[("x", "f32[6, 8]"), ("w", W)], &body.concat(), &["pa", "pb", "pc", "g"]);
    let text = text.replace("func \"f\"(", "func \"f\"(\"pos\" position = %pos: i32[2], ");
    // The first while all rows of the second matmul are waited for, the second while the cache's are; the third not for ever.
    let order = "Rows Matmul Matmul Product KvWrite Product Attention Matmul Matmul Matmul Matmul Product Matmul";
    let kinds: Vec<String> = kernels(&text).lines().filter_map(|l| l.split(':').next().map(String::from)).collect();
    assert_eq!(kinds.join(" "), order);
}
