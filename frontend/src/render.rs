//! Renders diagnostics for people.
use crate::diagnostic::{Diagnostic, Severity, Span};
use ariadne::{Color, Config, IndexType, Label, Report, ReportKind, Source};

/// The longest line of which excerpts are drawn, in bytes.
const LONGEST_LINE: usize = 2000;

/// The diagnostics as text, without colours. `name` is what the text is called (its path).
pub fn render(diagnostics: &[Diagnostic], name: &str, source: &str) -> String {
    render_with(diagnostics, name, source, false)
}

/// The diagnostics as text, with terminal colours if asked for.
pub fn render_with(diagnostics: &[Diagnostic], name: &str, source: &str, color: bool) -> String {
    let mut out = Vec::new();
    // No one reads an excerpt of such a line, and drawing it takes long.
    let excerpts = source.lines().all(|l| l.len() <= LONGEST_LINE);
    let mut text = (name, Source::from(source));
    for d in diagnostics {
        let (kind, word, hue) = match d.severity {
            Severity::Error => (ReportKind::Error, "error", Color::Red),
            Severity::Warning => (ReportKind::Warning, "warning", Color::Yellow),
        };
        let Some(primary) = d.primary().filter(|_| excerpts) else {
            let place = |s: Span| format!("{name}:{}", line_and_column(source, s.start as usize));
            let mut lines = vec![format!("{word}[{}]: {}", d.id, d.message)];
            lines.extend(d.labels.iter().map(|l| format!("  at {}: {}", place(l.span), l.message)));
            lines.extend(d.help.iter().map(|h| format!("  help: {h}")));
            out.extend(format!("{}\n", lines.join("\n")).bytes());
            continue;
        };
        let range = |span: Span| {
            let end = (span.end as usize).min(source.len());
            let start = (span.start as usize).min(end);
            (name, start..end.max((start + 1).min(source.len())))
        };
        let config = Config::default().with_color(color).with_index_type(IndexType::Byte);
        let mut report =
            Report::build(kind, range(primary)).with_config(config).with_code(d.id).with_message(&d.message);
        for (i, label) in d.labels.iter().enumerate() {
            let mut shown = Label::new(range(label.span)).with_color(if i == 0 { hue } else { Color::Blue });
            if !label.message.is_empty() {
                shown = shown.with_message(&label.message);
            }
            report = report.with_label(shown.with_order(i as i32));
        }
        if let Some(help) = &d.help {
            report = report.with_help(help);
        }
        // Writing into a vector cannot fail.
        let _ = report.finish().write(&mut text, &mut out);
    }
    String::from_utf8_lossy(&out).lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// `3:14` for a byte of the text; both count from 1.
fn line_and_column(source: &str, at: usize) -> String {
    let before = &source.as_bytes()[..at.min(source.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    format!("{line}:{}", before.len() - start + 1)
}
