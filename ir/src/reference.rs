//! The manual of the IR as Markdown, made of the documentation in this crate and the op table. `docs/ir.md` holds it; a
//! test compares, and rewrites the file if `BLESS=1` is set.
use crate::ops::{AttrKind, AttrSpec, OpInfo, Opcode};
use std::fmt::Write;

fn kind_name(kind: AttrKind) -> &'static str {
    match kind {
        AttrKind::Int => "int",
        AttrKind::Float => "float",
        AttrKind::Bool => "bool",
        AttrKind::Str => "str",
        AttrKind::Ints => "ints",
        AttrKind::DType => "dtype",
    }
}

/// `mnemonic operands {attributes}`, as in IR text.
fn signature(info: &OpInfo) -> String {
    let mut operands: Vec<String> = info.operands.iter().map(|o| o.to_string()).collect();
    if let (Some(last), true) = (operands.last_mut(), info.variadic) {
        last.push('…');
    }
    let required = operands.len() - info.optional.min(operands.len());
    for operand in &mut operands[required..] {
        *operand = format!("[{operand}]");
    }
    let attr = |a: &AttrSpec| match (a.name, kind_name(a.kind)) {
        (name, kind) if a.optional => format!("[{name}: {kind}]"),
        (name, kind) => format!("{name}: {kind}"),
    };
    let attrs: Vec<String> = info.attrs.iter().map(attr).collect();
    let mut text = info.mnemonic.to_string();
    if !operands.is_empty() {
        text += &format!(" {}", operands.join(", "));
    }
    if !attrs.is_empty() {
        text += &format!(" {{{}}}", attrs.join(", "));
    }
    text
}

/// A Markdown list of all operations: signature and meaning, in table order.
pub fn op_reference() -> String {
    let mut out = String::new();
    for op in Opcode::ALL {
        let info = op.info();
        let doc: Vec<&str> = info.doc.lines().map(str::trim).collect();
        // Writing into a String cannot fail.
        let _ = writeln!(out, "- `{}`  \n  {}", signature(info), doc.join("\n  "));
    }
    out
}

/// The module documentation of a source file as Markdown: headings two levels down, links to items as plain code.
fn prose(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines().map_while(|l| l.strip_prefix("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        if line.starts_with("# ") {
            out += "##";
        }
        let mut rest = line;
        // `[x](crate::y)` and [`x`] both become x.
        while let Some((before, after)) = rest.split_once("](crate") {
            out += &before.replacen("[", "", 1);
            rest = after.split_once(')').map_or("", |(_, after)| after);
        }
        out += &rest.replace("[`", "`").replace("`]", "`");
        out.push('\n');
    }
    out
}

/// The whole manual: what a program is, its text, what the verifier checks, the operations.
pub fn manual() -> String {
    let mut out = String::from(
        "# The intermediate representation\n\n<!-- Made from the documentation of the crate rdc-ir: run `BLESS=1 cargo test -p rdc-ir manual` after changing it. -->\n\n",
    );
    out += "## Programs\n\n";
    out += &prose(include_str!("lib.rs"));
    out += "\n## Text\n\n";
    out += &prose(include_str!("print.rs"));
    out += "\n## Verifier\n\n";
    out += &prose(include_str!("verify/mod.rs"));
    out += "\n## Operations\n\nOperands and truth attributes in brackets may be left out; `…` marks an operand that may be repeated. Attributes are given with their kinds.\n\n";
    out += &op_reference();
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn manual_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ir.md");
        let manual = super::manual();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &manual).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == manual, "docs/ir.md is out of date: run `BLESS=1 cargo test -p rdc-ir manual`");
    }
}
