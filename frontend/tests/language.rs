//! Every snippet of docs/language.md, compiled; what it expects to be reported is written in it.
#![allow(clippy::unwrap_used)]
mod common;

use rdc_frontend::{Diagnostic, Options, Severity, compile, functions, render};

/// A fenced block: the line of the page it begins on, and its text.
fn snippets(page: &str) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut inside = false;
    for (i, line) in page.lines().enumerate() {
        match (inside, line) {
            (false, "```rdm") => out.push((i + 2, String::new())),
            (true, "```") => {}
            (true, line) => out.last_mut().unwrap().1 += &format!("{line}\n"),
            _ => continue,
        }
        inside = line != "```";
    }
    out
}

/// The whole text of a snippet, and how many lines stand before it.
fn whole(snippet: &str) -> (String, usize) {
    if snippet.starts_with("model") {
        return (snippet.to_string(), 0);
    }
    let mut text = String::from("model Doc {\n  size vocab = 32, dim = 8, heads = 2, context = 16\n");
    let before = text.lines().count();
    text += snippet;
    let has = |word: &str| snippet.lines().any(|l| l.trim_start().starts_with(word));
    if !has("prelude") {
        text += "  weight doc_embed: [vocab, dim] = 0\n  prelude (input_ids) -> h0 { let h0 = gather(doc_embed, input_ids) }\n";
    }
    if !has("core") {
        text += "  core (s = h0) -> s loop default 2 { let s = s }\n";
    }
    if !has("coda") {
        text += "  coda (s) -> y { let y = s }\n";
    }
    (text + "}\n", before)
}

fn options(snippet: &str) -> Options {
    let mut options = Options { chunks: vec![3, 1], ..Options::default() };
    for line in snippet.lines() {
        if let Some(json) = line.strip_prefix("# config: ") {
            options.config = Some(serde_json::from_str(json).unwrap());
        } else if let Some((name, value)) = line.strip_prefix("# set: ").and_then(|s| s.split_once('=')) {
            options.overrides.push((name.into(), value.into()));
        }
    }
    options
}

/// `(line, "error: id")` of what a text expects.
fn expected(text: &str) -> Vec<(usize, String)> {
    let of_line = |(i, line): (usize, &str)| {
        let (_, note) = line.split_once("  # ")?;
        (note.starts_with("error: ") || note.starts_with("warning: ")).then(|| (i + 1, note.to_string()))
    };
    text.lines().enumerate().filter_map(of_line).collect()
}

fn reported(text: &str, found: &[Diagnostic], first: usize, last: usize) -> Vec<(usize, String)> {
    let of = |d: &Diagnostic| {
        let line = text[..d.primary().unwrap().start as usize].matches('\n').count() + 1;
        let word = if d.severity == Severity::Error { "error" } else { "warning" };
        // What surrounds a snippet may go unused.
        (line > first && line <= last).then(|| (line, format!("{word}: {}", d.id)))
    };
    let mut out: Vec<_> = found.iter().filter_map(of).collect();
    out.dedup();
    out
}

#[test]
fn every_snippet_does_what_it_says() {
    let page = std::fs::read_to_string(common::root().join("docs/language.md")).unwrap();
    let snippets = snippets(&page);
    assert!(snippets.len() > 12);
    for (line, snippet) in snippets {
        let (text, before) = whole(&snippet);
        let (found, fine) = match compile("docs/language.md", &text, &options(&snippet)) {
            Ok(lowered) => (lowered.warnings, true),
            Err(found) => (found, false),
        };
        let want = expected(&text);
        let have = reported(&text, &found, before, before + snippet.lines().count());
        let rendered = render(&found, "docs/language.md", &text);
        assert_eq!(want, have, "the snippet at line {line} of docs/language.md:\n{rendered}");
        let errors = want.iter().any(|(_, w)| w.starts_with("error"));
        assert_eq!(fine, !errors, "the snippet at line {line} of docs/language.md:\n{rendered}");
    }
}

#[test]
fn every_function_is_documented() {
    let page = std::fs::read_to_string(common::root().join("docs/language.md")).unwrap();
    for signature in functions() {
        assert!(page.contains(&format!("`{signature}`")), "{signature}");
    }
}
