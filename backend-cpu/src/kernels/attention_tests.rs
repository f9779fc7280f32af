//! Attention kernels against the interpreter.
use super::oracle::Case;
use rdc_ir::program::Tiling;
use rdc_passes::fuse::body::Family;

/// Sizes of an attention.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub b: usize,
    pub s: usize,
    pub h: usize,
    pub g: usize,
    pub d: usize,
    pub t: usize,
}

/// The chain of one operand: columns `start..` of the projection, bias and rope if asked for.
fn chain(z: Size, name: &str, heads: usize, start: usize, layout: Option<&str>) -> String {
    let Size { b, s, d, .. } = z;
    let (end, all) = (start + heads * d, (z.h + 2 * z.g) * d);
    let ty = format!("f32[{b}, {s}, {heads}, {d}]");
    let mut text = format!(
        "%{name}s = slice %x {{axis = 2, start = {start}, end = {end}}} : f32[{b}, {s}, {}]
        %{name}h = reshape %{name}s {{shape = [{b}, {s}, {heads}, {d}]}} : {ty}\n",
        heads * d
    );
    assert!(end <= all);
    match layout {
        Some(layout) => {
            text += &format!(
                "%{name}b = add %{name}h, %bias{name} : {ty}
                %{name} = rope %{name}b, %table, %pos {{layout = \"{layout}\"}} : {ty}\n"
            );
        }
        None => text += &format!("%{name} = reshape %{name}h {{shape = [{b}, {s}, {heads}, {d}]}} : {ty}\n"),
    }
    text
}

fn head(z: Size, caches: &str) -> String {
    let Size { b, s, h, g, d, t } = z;
    let all = (h + 2 * g) * d;
    format!(
        r#"func "f"("x" input = %x: f32[{b}, {s}, {all}], "pos" position = %pos: i32[{b}],
        "table" input = %table: f32[{}, {}, 2], "bq" input = %biasq: f32[{h}, {d}], "bk" input = %biask: f32[1, {g}, {d}], {caches}) {{
        "#,
        t + s,
        d / 2
    )
}

fn kv_write(z: Size, layout: Option<&str>, pos: &[i32]) -> Case {
    let Size { b, s, g, d, t, h } = z;
    let cache = format!("cache f32[1, {b}, {t}, {g}, {d}]");
    let text = head(z, &format!(r#""ck" cache = %ck: {cache}, "cv" cache = %cv: {cache}"#))
        + &chain(z, "k", g, h * d, layout)
        + &chain(z, "v", g, (h + g) * d, None)
        + &format!(
            r#"%zero = constant {{value = 0.0, dtype = i32}} : i32[]
            %ck1, %vk = cache_update %ck, %k, %pos, %zero : {cache}, f32[{b}, {t}, {g}, {d}]
            %cv1, %vv = cache_update %cv, %v, %pos, %zero : {cache}, f32[{b}, {t}, {g}, {d}]
            yield "ck" = %ck1, "cv" = %cv1 }}"#
        );
    let tokens = b * s;
    let kind = (Family::KvWrite, Tiling::Rows { rows_per_task: 2 });
    Case::new(&text, kind, tokens.div_ceil(2)).int("pos", pos)
}

#[test]
fn keys_and_values_are_written() {
    let z = Size { b: 2, s: 5, h: 4, g: 2, d: 12, t: 9 };
    kv_write(z, Some("adjacent"), &[0, 3]).check();
    kv_write(z, Some("half"), &[2, 4]).check();
    kv_write(z, None, &[1, 0]).check();
    // The last positions do not fit.
    kv_write(z, Some("half"), &[7, 9]).check();
    kv_write(Size { d: 64, ..z }, Some("adjacent"), &[7, 9]).check();
    kv_write(Size { d: 64, ..z }, Some("half"), &[0, 0]).check();
    kv_write(Size { d: 6, ..z }, Some("half"), &[0, 0]).check();
    kv_write(Size { d: 7, ..z }, None, &[0, 0]).check();
}

fn decode(z: Size, layout: Option<&str>, pos: &[i32], causal: bool) -> Case {
    let Size { b, g, d, t, h, .. } = z;
    let cache = format!("cache f32[1, {b}, {t}, {g}, {d}]");
    let view = format!("f32[{b}, {t}, {g}, {d}]");
    let text = head(z, &format!(r#""ck" cache = %ck: {cache}, "cv" cache = %cv: {cache}"#))
        + &chain(z, "q", h, 0, layout)
        + &chain(z, "k", g, h * d, layout)
        + &chain(z, "v", g, (h + g) * d, None)
        + &format!(
            r#"%zero = constant {{value = 0.0, dtype = i32}} : i32[]
            %ck1, %vk = cache_update %ck, %k, %pos, %zero : {cache}, {view}
            %cv1, %vv = cache_update %cv, %v, %pos, %zero : {cache}, {view}
            %a = attention %q, %vk, %vv, %pos {{causal = {causal}, scale = 0.7}} : f32[{b}, 1, {h}, {d}]
            %r = reshape %a {{shape = [{b}, 1, {}]}} : f32[{b}, 1, {}]
            yield "r" = %r, "ck" = %ck1, "cv" = %cv1 }}"#,
            h * d,
            h * d
        );
    Case::new(&text, (Family::DecodeAttention, Tiling::Whole), b * g).int("pos", pos)
}

#[test]
fn decode_attention() {
    let z = Size { b: 2, s: 1, h: 4, g: 2, d: 12, t: 33 };
    for d in [12, 16, 48, 64, 96, 128, 6] {
        decode(Size { d, ..z }, Some("adjacent"), &[0, 32], true).check();
        decode(Size { d, ..z }, Some("half"), &[17, 8], true).check();
    }
    for d in [7, 9, 3] {
        decode(Size { d, ..z }, None, &[4, 30], true).check();
    }
    decode(Size { h: 2, ..z }, Some("half"), &[5, 31], true).check();
    decode(Size { h: 12, ..z }, Some("half"), &[5, 31], true).check();
    decode(Size { h: 3, g: 3, d: 64, ..z }, Some("adjacent"), &[15, 16], false).check();
}

fn prefill(z: Size, layout: Option<&str>, pos: &[i32], causal: bool, q_rows: usize, kv_block: usize) -> Case {
    let Size { b, s, g, d, t, h } = z;
    let view = format!("f32[{b}, {t}, {g}, {d}]");
    let text = head(z, &format!(r#""k" input = %k: {view}, "v" input = %v: {view}"#))
        + &chain(z, "q", h, 0, layout)
        + &format!(
            r#"%a = attention %q, %k, %v, %pos {{causal = {causal}, scale = 0.7}} : f32[{b}, {s}, {h}, {d}]
            yield "a" = %a }}"#
        );
    let tasks = b * h * s.div_ceil(q_rows);
    let kind = (Family::Attention, Tiling::Queries { q_rows, kv_block });
    Case::new(&text, kind, tasks).int("pos", pos).view("k").view("v")
}

#[test]
fn prefill_attention() {
    let z = Size { b: 2, s: 13, h: 4, g: 2, d: 12, t: 40 };
    for d in [12, 16, 48, 64, 96, 128, 6, 20] {
        prefill(Size { d, ..z }, Some("adjacent"), &[0, 21], true, 6, 16).check();
        prefill(Size { d, ..z }, Some("half"), &[3, 27], true, 8, 32).check();
    }
    for d in [7, 9, 3] {
        prefill(Size { d, ..z }, None, &[4, 20], true, 5, 24).check();
    }
    prefill(z, Some("half"), &[0, 0], false, 4, 16).check();
    prefill(Size { h: 2, t: 37, ..z }, Some("half"), &[0, 9], false, 64, 64).check();
    prefill(Size { h: 2, t: 37, ..z }, Some("half"), &[0, 24], true, 64, 13).check();
    // Queries beyond the context see all of it.
    prefill(Size { t: 16, ..z }, None, &[0, 10], true, 6, 16).check();
}

/// An attention whose keys and values are plain tensors, or columns of the projection that the queries come from.
fn plain(z: Size, joined: bool, pos: &[i32], causal: bool, q_rows: usize, kv_block: usize) -> Case {
    let Size { b, s, g, d, t, h } = z;
    let view = format!("f32[{b}, {t}, {g}, {d}]");
    let text = head(z, &format!(r#""k" input = %ka: {view}, "v" input = %va: {view}"#))
        + &chain(z, "q", h, 0, Some("half"))
        + &chain(z, "kj", g, h * d, None)
        + &chain(z, "vj", g, (h + g) * d, None)
        + &format!(
            r#"%a = attention %q, {}, %pos {{causal = {causal}, scale = 0.7}} : f32[{b}, {s}, {h}, {d}]
            yield "a" = %a }}"#,
            if joined { "%kj, %vj" } else { "%ka, %va" }
        );
    let tasks = b * h * s.div_ceil(q_rows);
    Case::new(&text, (Family::Attention, Tiling::Queries { q_rows, kv_block }), tasks).int("pos", pos)
}

#[test]
fn plain_keys_and_values() {
    let z = Size { b: 2, s: 13, h: 4, g: 2, d: 12, t: 40 };
    for d in [12, 32, 6, 20] {
        plain(Size { d, ..z }, false, &[0, 21], true, 6, 16).check();
        plain(Size { d, ..z }, false, &[0, 0], false, 6, 24).check();
        plain(Size { d, t: 13, ..z }, true, &[0, 0], true, 6, 16).check();
    }
    plain(Size { g: 1, ..z }, false, &[3, 4], true, 64, 64).check();
    plain(Size { g: 4, t: 13, ..z }, true, &[0, 0], false, 64, 64).check();
}

#[test]
fn every_target_compiles_attention() {
    let z = Size { b: 2, s: 13, h: 4, g: 2, d: 20, t: 40 };
    for layout in [Some("adjacent"), Some("half"), None] {
        kv_write(z, layout, &[0, 0]).compile_elsewhere();
        decode(Size { s: 1, d: 22, ..z }, layout, &[0, 0], true).compile_elsewhere();
        prefill(z, layout, &[0, 0], true, 6, 64).compile_elsewhere();
    }
}
