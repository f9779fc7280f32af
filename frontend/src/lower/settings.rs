//! Sizes, counts, constants, flags and strings: `--set` over config.json over the text.
use crate::ast::{Expr, ExprKind, Name, SettingKind};
use crate::diagnostic::{Diagnostic, Span};
use crate::lower::Lower;
use crate::value::{MAX_COUNT, MAX_SIZE, Val};
use serde_json::Value;

/// Where a setting has its value from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The default in the text.
    Text,
    /// A field of config.json.
    Config(String),
    /// `--set`, or a flag that stands for it (`--context`).
    Set,
}

/// A setting with its value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Val,
    /// Where that is from.
    pub origin: Origin,
    /// The fields of a config.json that give it a value.
    pub fields: Vec<String>,
    /// Where its name is declared.
    pub span: Span,
}

impl Setting {
    /// The fields of a config.json that say what the setting is.
    pub(crate) fn config(&self) -> Vec<(String, Value)> {
        let shown = self.value.show();
        let value = serde_json::from_str(&shown).unwrap_or(Value::String(shown));
        self.fields.iter().map(|field| (field.clone(), value.clone())).collect()
    }
    /// `dim = 64 (config.json: n_embd)`
    fn explain(&self) -> String {
        let from = match &self.origin {
            Origin::Text => String::new(),
            Origin::Config(field) => format!(" (config.json: {field})"),
            Origin::Set => " (set on the command line)".into(),
        };
        format!("{} = {}{from}", self.name, self.value.show())
    }
}

impl<'a> Lower<'a> {
    /// Gives a setting its value.
    pub(crate) fn declare_setting(&mut self, kind: SettingKind, name: &'a Name, value: &'a Expr, fields: &'a [Name]) {
        if matches!(name.text.as_str(), "B" | "S" | "step" | "is_last" | "trips") {
            let message = format!("`{}` has a meaning of its own", name.text);
            self.sink.push(
                Diagnostic::error("reserved-name", message)
                    .at(name.span, "choose another name")
                    .help("B is the batch, S the chunk length; step and is_last belong to the loop, trips to the coda"),
            );
            return;
        }
        if !self.claim(name) {
            return;
        }
        let (found, origin) = self.find(kind, name, fields).unwrap_or_else(|| (self.eval(value), Origin::Text));
        let names = if origin == Origin::Text { names_in(value) } else { Vec::new() };
        let span = if origin == Origin::Text { value.span } else { name.span };
        let value = match self.convert(kind, &name.text, &found) {
            Ok(value) => value,
            Err(None) => Val::Error,
            Err(Some((id, message))) => {
                let note = match &origin {
                    Origin::Text => format!("this is {}", found.show()),
                    Origin::Config(field) => format!("config.json says so in {field}"),
                    Origin::Set => "the command line says so".to_string(),
                };
                let error = Diagnostic::error(id, message).at(span, note);
                let error = self.blame(error, &names, span);
                self.sink.push(error);
                Val::Error
            }
        };
        self.set_global(&name.text, value.clone());
        let fields = fields.iter().map(|f| f.text.clone()).collect();
        self.settings.push(Setting { name: name.text.clone(), value, origin, fields, span: name.span });
    }
    /// The value of a setting from the command line or config.json, if there is one. Values that cannot be read are
    /// reported and give a mistake.
    fn find(&mut self, kind: SettingKind, name: &Name, fields: &[Name]) -> Option<(Val, Origin)> {
        let flag = match name.text.as_str() {
            "context" => self.options.context,
            "max_steps" => self.options.max_steps,
            _ => None,
        };
        if let Some(n) = flag {
            return Some((Val::int(i64::try_from(n).unwrap_or(i64::MAX)), Origin::Set));
        }
        if let Some((_, text)) = self.options.overrides.iter().rev().find(|(n, _)| *n == name.text) {
            return Some((self.read(kind, name, text), Origin::Set));
        }
        let config = self.options.config.as_ref()?;
        for field in fields {
            let origin = Origin::Config(field.text.clone());
            let val = match config.get(&field.text) {
                None | Some(Value::Null) => continue,
                Some(Value::Bool(b)) => Val::Bool(*b),
                Some(Value::String(s)) => Val::str(s),
                Some(Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
                    (Some(i), _) => Val::int(i),
                    (_, Some(x)) if x.fract() == 0.0 && x.abs() < 1e15 => Val::int(x as i64),
                    (_, Some(x)) => Val::Float(x),
                    _ => Val::Float(f64::NAN),
                },
                Some(Value::Array(_) | Value::Object(_)) => {
                    let message = format!("config.json has a list or an object in `{}`", field.text);
                    let error = Diagnostic::error("bad-config", message);
                    self.sink.push(error.at(field.span, format!("a {} is wanted here", kind.word())));
                    Val::Error
                }
            };
            return Some((val, origin));
        }
        None
    }
    /// A value written on the command line.
    fn read(&mut self, kind: SettingKind, name: &Name, text: &str) -> Val {
        let val = match kind {
            SettingKind::Size | SettingKind::Count => text.replace('_', "").parse().ok().map(Val::int),
            SettingKind::Const => text.parse().ok().map(Val::Float),
            SettingKind::Flag => text.parse().ok().map(Val::Bool),
            SettingKind::Str => Some(Val::str(text)),
        };
        val.unwrap_or_else(|| {
            let message = format!("--set {}={text}: that is not a {}", name.text, what(kind));
            let error = Diagnostic::error("bad-value", message);
            self.sink.push(error.at(name.span, format!("declared as a {}", kind.word())));
            Val::Error
        })
    }
    /// A value as the kind of setting wants it.
    fn convert(&self, kind: SettingKind, name: &str, val: &Val) -> Result<Val, Option<(&'static str, String)>> {
        let err = |id, message: String| Err(Some((id, message)));
        match (kind, val) {
            (_, Val::Error) => Err(None),
            (SettingKind::Size | SettingKind::Count, Val::Int(n, _)) => {
                let (least, most) = if kind == SettingKind::Size { (1, MAX_SIZE) } else { (0, MAX_COUNT) };
                if (least..=most).contains(n) {
                    return Ok(Val::Int(*n, Some(name.into())));
                }
                err("bad-size", format!("`{name}` must be between {least} and {most}, not {n}"))
            }
            (SettingKind::Size | SettingKind::Count, Val::Float(x)) => {
                err("not-whole", format!("`{name}` must be a whole number, not {x}"))
            }
            (SettingKind::Const, Val::Int(..) | Val::Float(_)) => match val.number() {
                Some(x) if x.is_finite() => Ok(Val::Float(x)),
                _ => err("bad-value", format!("`{name}` must be finite, not {}", val.show())),
            },
            (SettingKind::Flag, Val::Bool(_)) | (SettingKind::Str, Val::Str(_)) => Ok(val.clone()),
            _ => err("type-mismatch", format!("`{name}` must be a {}, not {}", what(kind), val.show())),
        }
    }
    /// Adds to an error where the settings of these names have their values from.
    pub(crate) fn blame(&self, error: Diagnostic, names: &[String], but: Span) -> Diagnostic {
        let mut error = error;
        for setting in self.settings.iter().filter(|s| names.contains(&s.name) && s.span != but) {
            error = error.at(setting.span, setting.explain());
        }
        error
    }
    /// Whether every setting has a value. Without them, shapes mean nothing.
    pub(crate) fn settings_are_fine(&self) -> bool {
        self.settings.iter().all(|s| !matches!(s.value, Val::Error))
    }
    /// Reports `--set` names that the text does not declare.
    pub(crate) fn check_overrides(&mut self) {
        let options = self.options;
        for (name, _) in &options.overrides {
            if !self.settings.iter().any(|s| s.name == *name) {
                let known: Vec<&str> = self.settings.iter().map(|s| s.name.as_str()).collect();
                let error = Diagnostic::error("unknown-setting", format!("--set {name}: the text has no such name"));
                let error = match crate::names::nearest(name, known.iter().copied()) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("it has {}", known.join(", "))),
                };
                self.sink.push(error);
            }
        }
    }
}

fn what(kind: SettingKind) -> &'static str {
    match kind {
        SettingKind::Size | SettingKind::Count => "whole number",
        SettingKind::Const => "number",
        SettingKind::Flag => "flag (true or false)",
        SettingKind::Str => "string",
    }
}

/// Names that an expression mentions.
pub(crate) fn names_in(expr: &Expr) -> Vec<String> {
    let mut out = Vec::new();
    crate::scope::walk(expr, &mut |e| {
        if let ExprKind::Name(name) = &e.kind {
            out.push(name.clone());
        }
    });
    out
}
