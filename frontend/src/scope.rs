//! Names and places, in every branch of a text: what evaluation for one configuration does not reach is checked here.
use crate::ast::*;
use crate::diagnostic::{Diagnostic, MOST, Span};
use std::collections::HashSet;

/// Where a statement stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Model,
    /// Within an `if` or `match` of the model.
    Branch,
    Layer,
    Section(SectionKind),
}

/// Reports statements in the wrong place, names that are declared nowhere, and settings that nothing mentions. The language has
/// these functions.
pub fn check(model: &Model, functions: &'static [&'static str]) -> Vec<Diagnostic> {
    let mut checker =
        Checker { functions, found: Vec::new(), names: HashSet::new(), layers: HashSet::new(), used: HashSet::new() };
    each(&model.items, &mut |stmt| checker.collect(stmt));
    checker.block(&model.items, Place::Model, &HashSet::new());
    for stmt in &model.items {
        let StmtKind::Setting { name, kind, .. } = &stmt.kind else { continue };
        // `context` is used by causal attention without being named.
        if name.text != "context" && !checker.used.contains(name.text.as_str()) {
            let message = format!("{} `{}` is never used", kind.word(), name.text);
            checker.found.push(Diagnostic::warning("unused-setting", message).at(name.span, "declared here"));
        }
    }
    checker.found
}

/// Calls `f` on statements and those within their branches, not on bodies of layers and sections.
fn each<'a>(block: &'a [Stmt], f: &mut impl FnMut(&'a Stmt)) {
    for stmt in block {
        f(stmt);
        match &stmt.kind {
            StmtKind::If { then, other, .. } => {
                each(then, f);
                each(other, f);
            }
            StmtKind::Match { arms, .. } => arms.iter().for_each(|a| each(&a.body, f)),
            _ => {}
        }
    }
}

/// Names of the layers that some part or stack is an instance of, in any branch and any layer.
pub fn instantiated(block: &[Stmt]) -> HashSet<&str> {
    let mut out = HashSet::new();
    each(block, &mut |stmt| match &stmt.kind {
        StmtKind::Part { layer, .. } => {
            out.insert(layer.text.as_str());
        }
        StmtKind::Layer(layer) => out.extend(instantiated(&layer.body)),
        _ => {}
    });
    out
}

/// Calls `f` on an expression and all within it.
pub fn walk<'a>(expr: &'a Expr, f: &mut impl FnMut(&'a Expr)) {
    f(expr);
    match &expr.kind {
        ExprKind::List(items) => items.iter().for_each(|e| walk(e, f)),
        ExprKind::Neg(a) | ExprKind::Not(a) => walk(a, f),
        ExprKind::Binary(_, a, b) | ExprKind::Index(a, b) => {
            walk(a, f);
            walk(b, f);
        }
        ExprKind::If(a, b, c) => [a, b, c].into_iter().for_each(|e| walk(e, f)),
        ExprKind::Match(a, arms) => {
            walk(a, f);
            arms.iter().for_each(|arm| walk(&arm.body, f));
        }
        ExprKind::Call(_, args) => args.iter().for_each(|a| walk(&a.value, f)),
        _ => {}
    }
}

/// Expressions that stand directly in a statement.
fn exprs(kind: &StmtKind) -> Vec<&Expr> {
    match kind {
        StmtKind::Setting { value, .. } | StmtKind::Collect { value, .. } => vec![value],
        StmtKind::Weight { shape, init, .. } => shape.iter().chain([init]).collect(),
        StmtKind::Part { args, count, .. } => args.iter().chain(count).collect(),
        StmtKind::State { ty, init, .. } => ty.shape.iter().chain([init]).collect(),
        StmtKind::Cache { arg, .. } => arg.iter().collect(),
        StmtKind::Require { cond, .. } => vec![cond],
        StmtKind::Let { values, .. } | StmtKind::Return(values) => values.iter().collect(),
        StmtKind::Exit(cond) | StmtKind::If { cond, .. } => vec![cond],
        StmtKind::Match { subject, .. } => vec![subject],
        _ => Vec::new(),
    }
}

struct Checker<'a> {
    functions: &'static [&'static str],
    found: Vec<Diagnostic>,
    /// Names of the model: settings, weights, parts, states.
    names: HashSet<&'a str>,
    layers: HashSet<&'a str>,
    used: HashSet<&'a str>,
}

impl<'a> Checker<'a> {
    fn collect(&mut self, stmt: &'a Stmt) {
        match &stmt.kind {
            StmtKind::Setting { name, .. }
            | StmtKind::Weight { name, .. }
            | StmtKind::Tie { name, .. }
            | StmtKind::Part { name, .. }
            | StmtKind::State { name, .. } => {
                self.names.insert(&name.text);
            }
            StmtKind::Layer(layer) => {
                self.layers.insert(&layer.name.text);
            }
            _ => {}
        }
    }
    fn allowed(kind: &StmtKind, place: Place) -> bool {
        use StmtKind::*;
        match kind {
            Setting { .. } | Readout(_) | Cache { .. } => place == Place::Model,
            Tie { .. } | State { .. } | Ignore(_) | Layer(_) | Section(_) | Loss(_) => {
                matches!(place, Place::Model | Place::Branch)
            }
            Weight { .. } | Part { .. } => !matches!(place, Place::Section(_)),
            Let { .. } => matches!(place, Place::Layer | Place::Section(_)),
            Return(_) => place == Place::Layer,
            Collect { .. } | Exit(_) => place == Place::Section(SectionKind::Core),
            If { .. } | Match { .. } | Require { .. } => true,
        }
    }
    fn block(&mut self, block: &'a [Stmt], place: Place, locals: &HashSet<&'a str>) {
        for stmt in block {
            if !Self::allowed(&stmt.kind, place) {
                let (what, where_to) = home(&stmt.kind);
                let message = format!("{what} cannot stand here");
                let start = Span { end: stmt.span.start + 1, ..stmt.span };
                let span = if stmt.span.end > stmt.span.start { stmt.span } else { start };
                self.found.push(Diagnostic::error("misplaced-statement", message).at(span, "misplaced").help(where_to));
                continue;
            }
            exprs(&stmt.kind).into_iter().for_each(|e| self.expr(e, locals));
            let inner = if place == Place::Model { Place::Branch } else { place };
            match &stmt.kind {
                StmtKind::If { then, other, .. } => {
                    self.block(then, inner, locals);
                    self.block(other, inner, locals);
                }
                StmtKind::Match { arms, .. } => arms.iter().for_each(|a| self.block(&a.body, inner, locals)),
                StmtKind::Tie { target, .. } => self.name(&target.text, target.span, locals),
                StmtKind::Part { layer, .. } if !self.layers.contains(layer.text.as_str()) => {
                    let message = format!("there is no layer `{}`", layer.text);
                    let error = Diagnostic::error("unknown-layer", message).at(layer.span, "not known");
                    self.found.push(error.suggest(&layer.text, self.layers.iter().copied()));
                }
                StmtKind::Layer(layer) => {
                    self.unique(layer.statics.iter().chain(layer.params.iter().map(|(n, _)| n)));
                    let mut names: HashSet<&str> = ["B", "S"].into();
                    names.extend(layer.statics.iter().chain(layer.params.iter().map(|(n, _)| n)).map(|n| &*n.text));
                    names.extend(bound(&layer.body));
                    let types = layer.params.iter().map(|(_, t)| t).chain(&layer.results);
                    types.flat_map(|t| &t.shape).for_each(|e| self.expr(e, &names));
                    self.block(&layer.body, Place::Layer, &names);
                }
                StmtKind::Section(section) | StmtKind::Loss(Loss { section, .. }) => {
                    self.unique(section.params.iter().map(|p| &p.name));
                    self.unique(&section.results);
                    let mut names: HashSet<&str> = ["B", "S", "step", "is_last"].into();
                    names.extend(section.params.iter().map(|p| &*p.name.text));
                    names.extend(bound(&section.body));
                    for param in &section.params {
                        let shape = param.ty.iter().flat_map(|t| &t.shape);
                        shape.for_each(|e| self.expr(e, &names));
                        // Start values see what the prelude hands on, which evaluation knows.
                        param.init.iter().for_each(|e| self.mention(e));
                    }
                    let trips = section.trips.iter().flat_map(|t| std::iter::once(&t.default).chain(&t.max));
                    trips.for_each(|e| self.expr(e, &HashSet::new()));
                    self.block(&section.body, Place::Section(section.kind), &names);
                }
                _ => {}
            }
        }
    }
    /// Reports names that occur twice in one list.
    fn unique(&mut self, names: impl IntoIterator<Item = &'a Name>) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(&name.text) {
                let message = format!("`{}` is listed twice", name.text);
                self.found.push(Diagnostic::error("duplicate-name", message).at(name.span, "again here"));
            }
        }
    }
    fn mention(&mut self, expr: &'a Expr) {
        walk(expr, &mut |e| {
            if let ExprKind::Name(name) = &e.kind {
                self.used.insert(name);
            }
        });
    }
    fn expr(&mut self, expr: &'a Expr, locals: &HashSet<&'a str>) {
        let mut seen = Vec::new();
        walk(expr, &mut |e| seen.push(e));
        for e in seen {
            match &e.kind {
                ExprKind::Name(name) => self.name(name, e.span, locals),
                ExprKind::Call(name, _) => {
                    let text = name.text.as_str();
                    self.used.insert(text);
                    if self.found.len() < MOST
                        && !self.functions.contains(&text)
                        && !self.names.contains(text)
                        && !locals.contains(text)
                    {
                        let known = self
                            .functions
                            .iter()
                            .copied()
                            .chain(self.names.iter().copied())
                            .chain(locals.iter().copied());
                        let message = format!("there is no function or layer `{text}`");
                        let error = Diagnostic::error("unknown-function", message).at(name.span, "not known");
                        self.found.push(error.suggest(text, known));
                    }
                }
                _ => {}
            }
        }
    }
    fn name(&mut self, name: &'a str, span: Span, locals: &HashSet<&'a str>) {
        self.used.insert(name);
        if self.found.len() >= MOST || matches!(name, "B" | "S") || self.names.contains(name) || locals.contains(name) {
            return;
        }
        let known = self.names.iter().chain(locals).copied();
        let error = Diagnostic::error("unknown-name", format!("`{name}` is not known here")).at(span, "not known");
        self.found.push(error.suggest(name, known));
    }
}

/// Names that statements of a body bind, in any branch.
pub fn bound(body: &[Stmt]) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    each(body, &mut |stmt| match &stmt.kind {
        StmtKind::Let { names, .. } => out.extend(names.iter().map(|n| &*n.text)),
        StmtKind::Weight { name, .. } | StmtKind::Part { name, .. } | StmtKind::Collect { name, .. } => {
            out.push(&name.text);
        }
        _ => {}
    });
    out
}

/// What a statement is called and where it belongs.
fn home(kind: &StmtKind) -> (&'static str, &'static str) {
    use StmtKind::*;
    match kind {
        Setting { .. } => ("a setting", "settings stand at the top of the model; within a layer use `let`"),
        Readout(_) | Cache { .. } => ("this declaration", "it stands at the top of the model"),
        Tie { .. } | State { .. } | Ignore(_) | Layer(_) | Section(_) | Loss(_) => {
            ("this declaration", "it stands in the model")
        }
        Weight { .. } | Part { .. } => ("this declaration", "it stands in the model or in a layer"),
        Let { .. } => ("`let`", "it stands in a layer or a section; a named number of the model is `const` or `size`"),
        Return(_) => ("`return`", "a section hands on the names after its `->`; only layers return"),
        Collect { .. } | Exit(_) => ("this statement", "it stands in a `core`, not in a layer"),
        If { .. } | Match { .. } | Require { .. } => ("this", ""),
    }
}
