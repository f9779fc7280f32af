//! The canonical text of a module; [`parse`](crate::parse()) reads it back.
//!
//! # Grammar
//! ```text
//! module  := "module" STRING param* func*
//! param   := "param" STRING ":" type "=" init ("alias" STRING ("," STRING)*)? "decay"? "in_stack"? "state"? loc?
//! init    := "constant" "(" FLOAT ")" | "normal" "(" FLOAT ")" | "trunc_normal" "(" FLOAT "," FLOAT ")"
//! func    := "func" STRING "(" (arg ("," arg)*)? ")" "{" op* "yield" (output ("," output)*)? "}"
//! arg     := STRING role "=" VALUE ":" type
//! role    := "ids" | "labels" | "position" | "valid" | "steps" | "no_grad_steps" | "grad_steps" | "state" init | "cache" | "input"
//! output  := STRING ("stacked" | "updates")? "=" VALUE
//! op      := (VALUE ("," VALUE)* "=")? MNEMONIC (VALUE ("," VALUE)*)? ("{" attrs "}")? (":" type ("," type)*)? region* loc?
//! region  := "{" "(" (VALUE ":" type ("," VALUE ":" type)*)? ")" op* "yield" (VALUE ("," VALUE)*)? "}"
//! type    := "cache"? DTYPE "[" (INT ("," INT)*)? "]"
//! loc     := "@" INT ":" INT
//! ```
//! A comment goes from `;` to the end of the line. Attributes are written `name = value` in table order, all of
//! them but those that may be left out and are false.
//!
//! # Names
//! A value prints as `%name` if the model text gives it a name (characters other than letters, digits and `_` become `_`;
//! a repeated name gets a suffix `.1`, `.2` …, which is not part of the name), otherwise as `%0`, `%1` … in order of
//! definition. Floats print with the fewest digits that give the same bits back.
use crate::entity::{Entity, OpId, RegionId, ValueId};
use crate::float::Float;
use crate::module::{ArgRole, Func, Init, Loc, Module, Param};
use crate::ops::Attr;
use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};

/// A quoted string.
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(v) => write!(f, "{v}"),
            Attr::Float(v) => write!(f, "{v}"),
            Attr::Bool(v) => write!(f, "{v}"),
            Attr::Str(v) => write!(f, "{}", Quoted(v)),
            Attr::Ints(v) => {
                f.write_char('[')?;
                list(f, v.iter())?;
                f.write_char(']')
            }
            Attr::DType(v) => f.write_str(v.name()),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Init::Constant(v) => write!(f, "constant({})", Float(v)),
            Init::Normal { std } => write!(f, "normal({})", Float(std)),
            Init::TruncNormal { std, bound } => write!(f, "trunc_normal({}, {})", Float(std), Float(bound)),
        }
    }
}

impl fmt::Display for ArgRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArgRole::Ids => f.write_str("ids"),
            ArgRole::Position => f.write_str("position"),
            ArgRole::Valid => f.write_str("valid"),
            ArgRole::Steps => f.write_str("steps"),
            ArgRole::State(init) => write!(f, "state {init}"),
            ArgRole::Labels => f.write_str("labels"),
            ArgRole::NoGradSteps => f.write_str("no_grad_steps"),
            ArgRole::GradSteps => f.write_str("grad_steps"),
            ArgRole::Cache => f.write_str("cache"),
            ArgRole::Input => f.write_str("input"),
        }
    }
}

impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "param {}: {} = {}", Quoted(&self.name), self.ty, self.init)?;
        if !self.aliases.is_empty() {
            f.write_str(" alias ")?;
            list(f, self.aliases.iter().map(|a| Quoted(a)))?;
        }
        if self.decay {
            f.write_str(" decay")?;
        }
        if self.in_stack {
            f.write_str(" in_stack")?;
        }
        if self.state {
            f.write_str(" state")?;
        }
        loc(f, self.loc)
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "module {}", Quoted(&self.name))?;
        if !self.params.is_empty() {
            f.write_char('\n')?;
        }
        for param in self.params.values() {
            writeln!(f, "{param}")?;
        }
        for func in &self.funcs {
            write!(f, "\n{func}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Func {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer { func: self, names: Names::new(self), notes: &HashMap::new() }.function(f)
    }
}

/// The text of one function, with comments above some operations.
pub fn print_func_with(func: &Func, notes: &HashMap<OpId, String>) -> String {
    struct Noted<'f>(&'f Func, &'f HashMap<OpId, String>);
    impl fmt::Display for Noted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            Printer { func: self.0, names: Names::new(self.0), notes: self.1 }.function(f)
        }
    }
    Noted(func, notes).to_string()
}

/// The text of one function, as it stands in the text of its module.
pub fn print_func(func: &Func) -> String {
    func.to_string()
}

/// The text of one operation (without the regions of a `loop`), values named as in the text of its function.
pub fn print_op(func: &Func, op: OpId) -> String {
    let mut out = String::new();
    let notes = HashMap::new();
    let printer = Printer { func, names: Names::new(func), notes: &notes };
    // Writing into a String cannot fail.
    let _ = printer.op_line(&mut out, op);
    out
}

fn loc(f: &mut impl Write, loc: Loc) -> fmt::Result {
    if loc == Loc::default() { Ok(()) } else { write!(f, " @{loc}") }
}

fn list<T: fmt::Display>(f: &mut impl Write, items: impl Iterator<Item = T>) -> fmt::Result {
    for (i, item) in items.enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    Ok(())
}

/// The printed names of a function's values; computed once, in order of definition in the text.
pub struct Names {
    names: HashMap<ValueId, String>,
}

impl Names {
    /// The names of a function's values.
    pub fn new(func: &Func) -> Names {
        let mut namer =
            Namer { func, names: HashMap::new(), taken: HashMap::new(), anonymous: 0, seen: HashSet::new() };
        namer.region(func.body);
        Names { names: namer.names }
    }
    /// The name of a value with its `%`; `%?N` for a value that the function does not define.
    pub fn get(&self, value: ValueId) -> String {
        match self.names.get(&value) {
            Some(name) => format!("%{name}"),
            None => format!("%?{}", value.index()),
        }
    }
}

struct Namer<'f> {
    func: &'f Func,
    names: HashMap<ValueId, String>,
    taken: HashMap<String, usize>,
    anonymous: usize,
    seen: HashSet<RegionId>,
}

impl Namer<'_> {
    fn region(&mut self, region: RegionId) {
        // A malformed function may own a region twice; it is then named and printed once.
        let Some(data) = self.func.regions.get(region) else { return };
        if !self.seen.insert(region) {
            return;
        }
        data.args.iter().for_each(|&v| self.define(v));
        for op in data.ops.iter().filter_map(|&op| self.func.ops.get(op)) {
            op.results.iter().for_each(|&v| self.define(v));
            op.regions.iter().for_each(|&r| self.region(r));
        }
    }
    fn define(&mut self, value: ValueId) {
        if self.names.contains_key(&value) {
            return;
        }
        let given = self.func.values.get(value).and_then(|v| v.name.as_deref()).filter(|n| !n.is_empty());
        let name = match given {
            Some(name) => {
                let base = identifier(name);
                let count = self.taken.entry(base.clone()).or_default();
                let name = if *count == 0 { base } else { format!("{base}.{count}") };
                *count += 1;
                name
            }
            None => {
                self.anonymous += 1;
                (self.anonymous - 1).to_string()
            }
        };
        self.names.insert(value, name);
    }
}

/// The name as an identifier of IR text.
fn identifier(name: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let first = if name.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    first.chars().chain(name.chars().map(clean)).collect()
}

struct Printer<'f> {
    func: &'f Func,
    names: Names,
    /// Comments above operations.
    notes: &'f HashMap<OpId, String>,
}

impl Printer<'_> {
    fn function(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let func = self.func;
        write!(f, "func {}(", Quoted(&func.name))?;
        let Some(body) = func.regions.get(func.body) else { return f.write_str(") {}\n") };
        let mut separator = "\n";
        for (arg, &value) in func.args.iter().zip(&body.args) {
            write!(f, "{separator}  {} {} = {}", Quoted(&arg.name), arg.role, self.names.get(value))?;
            self.type_of(f, value)?;
            separator = ",\n";
        }
        f.write_str(if separator == "\n" { ") {\n" } else { "\n) {\n" })?;
        let mut open = HashSet::from([func.body]);
        for &op in &body.ops {
            self.op(f, op, 1, &mut open)?;
        }
        f.write_str("  yield")?;
        let mut separator = " ";
        for (output, &value) in func.outputs.iter().zip(&body.yields) {
            let kind = match output {
                output if output.updates => " updates",
                output if output.stacked => " stacked",
                _ => "",
            };
            write!(f, "{separator}{}{kind} = {}", Quoted(&output.name), self.names.get(value))?;
            separator = ", ";
        }
        f.write_str("\n}\n")
    }
    fn type_of(&self, f: &mut impl Write, value: ValueId) -> fmt::Result {
        match self.func.values.get(value) {
            Some(v) => write!(f, ": {}", v.ty),
            None => f.write_str(": ?"),
        }
    }
    fn op_line(&self, f: &mut impl Write, op: OpId) -> fmt::Result {
        let Some(op) = self.func.ops.get(op) else { return write!(f, "?{}", op.index()) };
        if !op.results.is_empty() {
            list(f, op.results.iter().map(|&v| self.names.get(v)))?;
            f.write_str(" = ")?;
        }
        let info = op.opcode.info();
        f.write_str(info.mnemonic)?;
        if !op.operands.is_empty() {
            f.write_char(' ')?;
            list(f, op.operands.iter().map(|&v| self.names.get(v)))?;
        }
        if !op.attrs.is_empty() {
            f.write_str(" {")?;
            let spec = |i: usize| info.attrs.get(i);
            let said = |&(i, attr): &(usize, &Attr)| *attr != Attr::Bool(false) || spec(i).is_none_or(|s| !s.optional);
            let named = op.attrs.iter().enumerate().filter(said);
            list(f, named.map(|(i, attr)| format!("{} = {attr}", spec(i).map_or("?", |s| s.name))))?;
            f.write_char('}')?;
        }
        if !op.results.is_empty() {
            f.write_str(" : ")?;
            let types =
                op.results.iter().map(|&v| self.func.values.get(v).map_or("?".to_string(), |v| v.ty.to_string()));
            list(f, types)?;
        }
        Ok(())
    }
    fn op(&self, f: &mut fmt::Formatter<'_>, id: OpId, depth: usize, open: &mut HashSet<RegionId>) -> fmt::Result {
        let pad = "  ".repeat(depth);
        for line in self.notes.get(&id).into_iter().flat_map(|note| note.lines()) {
            writeln!(f, "{pad}; {line}")?;
        }
        f.write_str(&pad)?;
        self.op_line(f, id)?;
        let Some(op) = self.func.ops.get(id) else { return f.write_char('\n') };
        for &region in &op.regions {
            let data = self.func.regions.get(region).filter(|_| open.insert(region));
            let Some(data) = data else {
                write!(f, " {{ ?{} }}", region.index())?;
                continue;
            };
            f.write_str(" {\n")?;
            write!(f, "{pad}  (")?;
            for (i, &arg) in data.args.iter().enumerate() {
                write!(f, "{}{}", if i == 0 { "" } else { ", " }, self.names.get(arg))?;
                self.type_of(f, arg)?;
            }
            f.write_str(")\n")?;
            for &inner in &data.ops {
                self.op(f, inner, depth + 1, open)?;
            }
            write!(f, "{pad}  yield")?;
            if !data.yields.is_empty() {
                f.write_char(' ')?;
                list(f, data.yields.iter().map(|&v| self.names.get(v)))?;
            }
            write!(f, "\n{pad}}}")?;
        }
        loc(f, op.loc)?;
        f.write_char('\n')
    }
}
