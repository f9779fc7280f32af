//! Renders diagnostics for people.
use crate::diagnostic::{Diagnostic, Severity};
use ariadne::{Color, Config, IndexType, Label, Report, ReportKind, Source};

/// The diagnostics as text, without colours. `name` is what the text is called (its path).
pub fn render(diagnostics: &[Diagnostic], name: &str, source: &str) -> String {
    render_with(diagnostics, name, source, false)
}

/// The diagnostics as text, with terminal colours if asked for.
pub fn render_with(diagnostics: &[Diagnostic], name: &str, source: &str, color: bool) -> String {
    let mut out = Vec::new();
    for d in diagnostics {
        let (kind, word, hue) = match d.severity {
            Severity::Error => (ReportKind::Error, "error", Color::Red),
            Severity::Warning => (ReportKind::Warning, "warning", Color::Yellow),
        };
        let Some(primary) = d.primary() else {
            out.extend(format!("{word}[{}]: {}\n", d.id, d.message).bytes());
            out.extend(d.help.iter().flat_map(|h| format!("  help: {h}\n").into_bytes()));
            continue;
        };
        let range = |span: crate::Span| {
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
        let _ = report.finish().write((name, Source::from(source)), &mut out);
    }
    String::from_utf8_lossy(&out).lines().map(|l| format!("{}\n", l.trim_end())).collect()
}
