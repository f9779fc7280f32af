//! What a function is taken apart into, and how its pointers are reached.
#![allow(clippy::unwrap_used)]
use super::{Family, accesses, take_apart};
use rdc_ir::program::Access;

fn found(text: &str, family: Family) -> Vec<Access> {
    let func = rdc_ir::parse_func(text).unwrap();
    let kind = take_apart(&func, family).unwrap();
    accesses(&kind, func.args.len() + func.outputs.len())
}

#[track_caller]
fn refused(text: &str, family: Family, wanted: &str) {
    let func = rdc_ir::parse_func(text).unwrap();
    assert_eq!(take_apart(&func, family), Err(wanted.into()));
}

#[test]
fn rows_reach_their_own_and_what_all_share() {
    // As many columns as rows, so that a row of one operand could be a column of another.
    let text = r#"func "k"("x" input = %x: f32[2, 3, 6], "row" input = %row: f32[6], "first" input = %first: f32[1, 6],
      "column" input = %column: f32[2, 3, 1], "table" input = %table: f32[7, 6], "ids" input = %ids: i32[2, 3]) {
      %a = add %x, %row : f32[2, 3, 6]
      %b = mul %a, %first : f32[2, 3, 6]
      %c = mul %b, %column : f32[2, 3, 6]
      %d = gather %table, %ids : f32[2, 3, 6]
      %e = add %c, %d : f32[2, 3, 6]
      %f = sum_blocks %e {rows = 2} : f32[3, 6]
      yield "e" = %e, "f" = %f
    }"#;
    let (table, blocks) = (Access::Table { elements: 36 }, Access::Blocks { rows: 2, columns: 6 });
    let expected =
        [Access::Rows(6), Access::Row, Access::Row, Access::Rows(1), table, Access::Rows(1), Access::Rows(6), blocks];
    assert_eq!(found(text, Family::Rows(6)), expected);
}

#[test]
fn a_pointer_that_is_reached_in_two_ways_may_be_reached_anywhere() {
    let text = r#"func "k"("x" input = %x: f32[4, 4], "ids" input = %ids: i32[4]) {
      %d = gather %x, %ids : f32[4, 4]
      %e = add %x, %d : f32[4, 4]
      yield "e" = %e
    }"#;
    assert_eq!(found(text, Family::Rows(4)), [Access::Whole, Access::Rows(1), Access::Rows(4)]);
}

#[test]
fn matmuls_reach_rows_and_a_weight() {
    let text = r#"func "k"("x" input = %x: f32[8, 4], "w" input = %w: f32[8, 4, 1, 1], "y" input = %y: f32[8, 8]) {
      %z = packed_matmul %x, %w {n = 8, k = 4, parts = 1} : f32[8, 8]
      %r = add %z, %y : f32[8, 8]
      %both = concat %r, %z {axis = 1} : f32[8, 16]
      yield "r" = %r, "both" = %both
    }"#;
    let expected = [Access::Rows(4), Access::Weight, Access::Rows(8), Access::Rows(8), Access::Rows(16)];
    assert_eq!(found(text, Family::Matmul), expected);
}

#[test]
fn attentions_reach_their_sequences_and_products_their_matrices() {
    let heads = "f32[3, 4, 2, 5]";
    let text = format!(
        r#"func "k"("q" input = %q: f32[3, 4, 10], "k" input = %k: {heads}, "v" input = %v: {heads},
          "bias" input = %bias: f32[2, 5], "pos" input = %pos: i32[3]) {{
          %a = reshape %q {{shape = [3, 4, 2, 5]}} : {heads}
          %b = add %a, %bias : {heads}
          %o = attention %b, %k, %v, %pos {{causal = true, scale = 1.0}} : {heads}
          yield "o" = %o
        }}"#
    );
    let expected = [Access::Batch, Access::Batch, Access::Batch, Access::Row, Access::Whole, Access::Batch];
    assert_eq!(found(&text, Family::Attention), expected);
    let product = |lead: &str, transposed: bool| {
        let (left, trans_a) = if transposed { ("6, 3", true) } else { ("3, 6", false) };
        let text = format!(
            r#"func "k"("a" input = %a: f32[{lead}{left}], "b" input = %b: f32[{lead}6, 5], "c" input = %c: f32[{lead}3, 5]) {{
              %y = matmul %a, %b {{trans_a = {trans_a}, trans_b = false}} : f32[{lead}3, 5]
              %r = add %y, %c : f32[{lead}3, 5]
              yield "r" = %r
            }}"#
        );
        found(&text, Family::Product)
    };
    let (rows, matrix) = (Access::Rows, Access::Matrix);
    assert_eq!(product("", false), [rows(6), matrix(5), rows(5), rows(5)]);
    assert_eq!(product("", true), [matrix(3), matrix(5), rows(5), rows(5)], "its rows are summed over");
    assert_eq!(product("2, ", true), [matrix(3), matrix(5), matrix(5), matrix(5)]);
}

#[test]
fn what_a_family_does_not_compute_is_refused() {
    let text = r#"func "f"("x" input = %x: f32[3, 3]) {
        %y = transpose %x {perm = [1, 0]} : f32[3, 3]
        yield "y" = %y }"#;
    refused(text, Family::Rows(3), "transpose of f32[3, 3] as Rows(3) over 3 rows");
    // Heads of a token are not one row here.
    let text = r#"func "f"("x" input = %x: f32[2, 3, 4, 5]) {
        %s = sum_blocks %x {rows = 3} : f32[8, 5]
        yield "s" = %s }"#;
    refused(text, Family::Rows(6), "sums of blocks of f32[2, 3, 4, 5] over 6 rows");
    let text = r#"func "f"("x" input = %x: f32[4, 4]) {
        %n = sum_to %x {shape = [4, 1]} : f32[4, 1]
        yield "n" = %n }"#;
    refused(text, Family::Columns, "a sum of f32[4, 4] to f32[4, 1] as column sums");
    let text = r#"func "f"("a" input = %a: f32[8, 4], "b" input = %b: f32[8, 6]) {
        %c = exp %a : f32[8, 4]
        %p = matmul %c, %b {trans_a = true, trans_b = false} : f32[4, 6]
        yield "p" = %p }"#;
    refused(text, Family::Product, "operands that are not matrices in memory");
    let text = "func \"f\"() {\n%y = rope_table {len = 4, dim = 4, base = 10.0} : f32[4, 2, 2]\nyield \"y\" = %y }";
    refused(text, Family::Generic, "rope_table in a kernel");
}
