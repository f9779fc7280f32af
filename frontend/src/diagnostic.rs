//! Diagnostics as data. How they look is the business of [`crate::render`].
use std::collections::HashSet;

/// A range of bytes of the model text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes `start..end`.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }
    /// From the start of this span to the end of the other.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start, end: other.end.max(self.start) }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is compiled.
    Error,
    /// The text compiles, but something in it is surely not meant.
    Warning,
}

/// A place in the text and what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What to say there; may be empty.
    pub message: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// A stable, searchable name: `shape-mismatch`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence that stands alone.
    pub message: String,
    /// Places; the first one is where the mistake is. Empty if it is not in the text (an unknown `--set` name).
    pub labels: Vec<Label>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(id: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { id, severity: Severity::Error, message: message.into(), labels: Vec::new(), help: None }
    }
    /// A warning without a place.
    pub fn warning(id: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(id, message) }
    }
    /// Adds a place; the first one added is the primary one.
    pub fn at(mut self, span: Span, message: impl Into<String>) -> Diagnostic {
        self.labels.push(Label { span, message: message.into() });
        self
    }
    /// Says what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
    /// Suggests the nearest of the known names, if one is near.
    pub fn suggest<'a>(self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        match crate::names::nearest(name, known) {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }
    /// The place of the mistake.
    pub fn primary(&self) -> Option<Span> {
        self.labels.first().map(|l| l.span)
    }
}

/// How many findings are reported of one text.
pub const MOST: usize = 100;

/// Collects diagnostics; a finding with an id already reported at the same place is dropped, because bodies of layers are
/// evaluated once per call.
#[derive(Debug, Default)]
pub struct Sink {
    items: Vec<Diagnostic>,
    seen: HashSet<(&'static str, Option<Span>, Option<String>)>,
}

impl Sink {
    /// Whether there are so many findings that more would not help.
    pub fn is_full(&self) -> bool {
        self.items.len() >= MOST
    }
    /// Adds a finding.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            return;
        }
        let place = diagnostic.primary();
        let text = place.is_none().then(|| diagnostic.message.clone());
        if self.seen.insert((diagnostic.id, place, text)) {
            self.items.push(diagnostic);
        }
    }
    /// Adds several findings.
    pub fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics.into_iter().for_each(|d| self.push(d));
    }
    /// Whether there is an error among them.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }
    /// All findings in the order of the text; warnings only if there is no error.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        if self.has_errors() {
            self.items.retain(|d| d.severity == Severity::Error);
        }
        self.items.sort_by_key(|d| d.primary().map_or(0, |s| s.start));
        self.items
    }
}
