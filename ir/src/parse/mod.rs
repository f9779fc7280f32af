//! Reads the text of a module; the grammar is that of [`crate::print`].
//!
//! The parser resolves names (a value must be defined above its use, in the same region or one around it), operation
//! mnemonics and attributes; everything else is the verifier's. Result types are taken as written.
mod lexer;

use crate::entity::{RegionId, ValueId};
use crate::module::{Arg, ArgRole, Func, Init, Loc, Module, Output, Param};
use crate::ops::{Attr, AttrKind, AttrSpec, Opcode};
use crate::types::{DType, Type};
use lexer::{Spanned, Token};
use std::collections::HashMap;

/// Regions may not be nested deeper than this.
pub const MAX_DEPTH: usize = 64;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{col}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
    /// What is wrong.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// The module of a text, or the first error in it.
pub fn parse(text: &str) -> Result<Module> {
    let mut parser = Parser { tokens: lexer::tokens(text)?, at: 0 };
    let module = parser.module()?;
    match parser.peek() {
        Token::End => Ok(module),
        _ => parser.expected("`param` or `func`"),
    }
}

/// The function of a text that holds one `func` and nothing else, or the first error in it.
pub fn parse_func(text: &str) -> Result<Func> {
    let mut parser = Parser { tokens: lexer::tokens(text)?, at: 0 };
    parser.word("func")?;
    let func = parser.func()?;
    match parser.peek() {
        Token::End => Ok(func),
        _ => parser.expected("the end of the text"),
    }
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is `End`, and `next` never moves past it.
        &self.tokens[self.at].token
    }
    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].token.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }
    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        self.error_at(self.at, message)
    }
    fn error_at<T>(&self, at: usize, message: impl Into<String>) -> Result<T> {
        let Spanned { line, col, .. } = self.tokens[at];
        Err(ParseError { line, col, message: message.into() })
    }
    fn expected<T>(&self, what: &str) -> Result<T> {
        self.error(format!("expected {what}, found {}", self.peek()))
    }
    fn is_mark(&self, mark: char) -> bool {
        *self.peek() == Token::Mark(mark)
    }
    fn eat(&mut self, mark: char) -> bool {
        let found = self.is_mark(mark);
        if found {
            self.next();
        }
        found
    }
    fn mark(&mut self, mark: char) -> Result<()> {
        if self.eat(mark) { Ok(()) } else { self.expected(&format!("`{mark}`")) }
    }
    fn eat_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        if found {
            self.next();
        }
        found
    }
    fn word(&mut self, word: &str) -> Result<()> {
        if self.eat_word(word) { Ok(()) } else { self.expected(&format!("`{word}`")) }
    }
    fn string(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Str(s) => {
                self.next();
                Ok(s)
            }
            _ => self.expected("a string"),
        }
    }
    fn value_name(&mut self) -> Result<String> {
        match self.peek().clone() {
            Token::Value(name) => {
                self.next();
                Ok(name)
            }
            _ => self.expected("a value"),
        }
    }
    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T> {
        let number = match self.peek() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(n) => {
                self.next();
                Ok(n)
            }
            None => self.expected(what),
        }
    }
    fn float(&mut self) -> Result<f64> {
        if self.eat_word("inf") {
            return Ok(f64::INFINITY);
        }
        if self.eat_word("nan") {
            if !self.eat('(') {
                return Ok(f64::NAN);
            }
            let bits = match self.peek() {
                Token::Number(text) => text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()),
                _ => None,
            };
            let Some(value) = bits.map(f64::from_bits).filter(|v| v.is_nan()) else {
                return self.expected("the bits of a NaN, 0x…");
            };
            self.next();
            self.mark(')')?;
            return Ok(value);
        }
        self.number("a float")
    }
    /// Items separated by commas up to a closing mark, which is taken.
    fn until<T>(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() {
                self.mark(',')?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
    fn ty(&mut self) -> Result<Type> {
        let cache = self.eat_word("cache");
        let dtype = self.dtype()?;
        self.mark('[')?;
        let shape = self.until(']', |p| p.number("a size"))?;
        Ok(Type { dtype, shape, cache })
    }
    fn dtype(&mut self) -> Result<DType> {
        let dtype = match self.peek() {
            Token::Word(word) => DType::parse(word),
            _ => None,
        };
        match dtype {
            Some(dtype) => {
                self.next();
                Ok(dtype)
            }
            None => self.expected("an element type"),
        }
    }
    fn loc(&mut self) -> Result<Loc> {
        if !self.eat('@') {
            return Ok(Loc::default());
        }
        let line = self.number("a line")?;
        self.mark(':')?;
        Ok(Loc { line, col: self.number("a column")? })
    }
    fn init(&mut self) -> Result<Init> {
        let at = self.at;
        let Token::Word(kind) = self.next() else {
            self.at = at;
            return self.expected("an initialiser");
        };
        self.mark('(')?;
        let init = match kind.as_str() {
            "constant" => Init::Constant(self.float()?),
            "normal" => Init::Normal { std: self.float()? },
            "trunc_normal" => {
                let std = self.float()?;
                self.mark(',')?;
                Init::TruncNormal { std, bound: self.float()? }
            }
            _ => return self.error_at(at, format!("unknown initialiser `{kind}`")),
        };
        self.mark(')')?;
        Ok(init)
    }
    fn module(&mut self) -> Result<Module> {
        self.word("module")?;
        let mut module = Module { name: self.string()?, ..Module::default() };
        loop {
            if self.eat_word("param") {
                let param = self.param()?;
                module.params.push(param);
            } else if self.eat_word("func") {
                module.funcs.push(self.func()?);
            } else {
                return Ok(module);
            }
        }
    }
    fn param(&mut self) -> Result<Param> {
        let name = self.string()?;
        self.mark(':')?;
        let ty = self.ty()?;
        self.mark('=')?;
        let init = self.init()?;
        let mut aliases = Vec::new();
        if self.eat_word("alias") {
            aliases.push(self.string()?);
            while self.eat(',') {
                aliases.push(self.string()?);
            }
        }
        let decay = self.eat_word("decay");
        let (in_stack, state) = (self.eat_word("in_stack"), self.eat_word("state"));
        Ok(Param { name, aliases, ty, init, decay, in_stack, state, loc: self.loc()? })
    }
    fn role(&mut self) -> Result<ArgRole> {
        let role = match self.peek() {
            Token::Word(word) => word.clone(),
            _ => String::new(),
        };
        let role = match role.as_str() {
            "ids" => ArgRole::Ids,
            "position" => ArgRole::Position,
            "valid" => ArgRole::Valid,
            "steps" => ArgRole::Steps,
            "labels" => ArgRole::Labels,
            "no_grad_steps" => ArgRole::NoGradSteps,
            "grad_steps" => ArgRole::GradSteps,
            "cache" => ArgRole::Cache,
            "input" => ArgRole::Input,
            "state" => {
                self.next();
                return Ok(ArgRole::State(self.init()?));
            }
            _ => return self.expected("the role of the argument"),
        };
        self.next();
        Ok(role)
    }
    fn func(&mut self) -> Result<Func> {
        let mut func = Func::new(self.string()?);
        let mut scope = Scope::default();
        self.mark('(')?;
        let args = self.until(')', |p| {
            let (name, role) = (p.string()?, p.role()?);
            p.mark('=')?;
            let at = p.at;
            let value = p.value_name()?;
            p.mark(':')?;
            Ok((Arg { name, role }, at, value, p.ty()?))
        })?;
        for (arg, at, name, ty) in args {
            func.args.push(arg);
            let value = func.add_arg(func.body, ty, given_name(&name));
            self.define(&mut scope, at, name, value)?;
        }
        self.mark('{')?;
        let body = func.body;
        self.ops(&mut func, body, &mut scope, 0)?;
        let outputs = self.until('}', |p| {
            let name = p.string()?;
            let (stacked, updates) = (p.eat_word("stacked"), p.eat_word("updates"));
            p.mark('=')?;
            Ok((Output { name, stacked, updates }, p.operand(&scope)?))
        })?;
        for (output, value) in outputs {
            func.outputs.push(output);
            func.regions[body].yields.push(value);
        }
        Ok(func)
    }
    fn define(&self, scope: &mut Scope, at: usize, name: String, value: ValueId) -> Result<()> {
        if scope.find(&name).is_some() {
            return self.error_at(at, format!("`%{name}` is defined twice"));
        }
        scope.define(name, value);
        Ok(())
    }
    fn operand(&mut self, scope: &Scope) -> Result<ValueId> {
        let at = self.at;
        let name = self.value_name()?;
        match scope.find(&name) {
            Some(value) => Ok(value),
            None => self.error_at(at, format!("`%{name}` is not defined here")),
        }
    }
    /// Operations up to and with the word `yield`.
    fn ops(&mut self, func: &mut Func, region: RegionId, scope: &mut Scope, depth: usize) -> Result<()> {
        while !self.eat_word("yield") {
            self.op(func, region, scope, depth)?;
        }
        Ok(())
    }
    fn op(&mut self, func: &mut Func, region: RegionId, scope: &mut Scope, depth: usize) -> Result<()> {
        let mut names = Vec::new();
        if matches!(self.peek(), Token::Value(_)) {
            loop {
                names.push((self.at, self.value_name()?));
                if !self.eat(',') {
                    break;
                }
            }
            self.mark('=')?;
        }
        let Token::Word(mnemonic) = self.peek().clone() else {
            return self.expected("an operation or `yield`");
        };
        let Some(opcode) = Opcode::parse(&mnemonic) else {
            return self.error(format!("unknown operation `{mnemonic}`"));
        };
        self.next();
        let mut operands = Vec::new();
        if matches!(self.peek(), Token::Value(_)) && self.operand_follows() {
            operands.push(self.operand(scope)?);
            while self.eat(',') {
                operands.push(self.operand(scope)?);
            }
        }
        let attrs = self.attrs(opcode.info().attrs)?;
        let mut types = Vec::new();
        let types_at = self.at;
        if self.eat(':') {
            types.push(self.ty()?);
            while self.eat(',') {
                types.push(self.ty()?);
            }
        }
        if types.len() != names.len() {
            return self.error_at(types_at, format!("{} results but {} types", names.len(), types.len()));
        }
        let mut regions = Vec::new();
        while self.is_mark('{') {
            regions.push(self.region(func, scope, depth + 1)?);
        }
        let loc = self.loc()?;
        let op = func.make_op(opcode, operands, attrs, types, regions, loc);
        func.regions[region].ops.push(op);
        for ((at, name), value) in names.into_iter().zip(func.ops[op].results.clone()) {
            func.values[value].name = given_name(&name);
            self.define(scope, at, name, value)?;
        }
        Ok(())
    }
    /// Whether the value here is an operand, not the first result of the next operation (of an op without operands).
    fn operand_follows(&self) -> bool {
        let mut at = self.at;
        while let Some(Spanned { token: Token::Value(_), .. }) = self.tokens.get(at) {
            match self.tokens.get(at + 1).map(|t| &t.token) {
                Some(Token::Mark(',')) => at += 2,
                Some(Token::Mark('=')) => return false,
                _ => return true,
            }
        }
        true
    }
    fn attrs(&mut self, specs: &[AttrSpec]) -> Result<Vec<Attr>> {
        let mut attrs = Vec::new();
        if specs.is_empty() {
            return Ok(attrs);
        }
        self.mark('{')?;
        for (i, spec) in specs.iter().enumerate() {
            if spec.optional && self.is_mark('}') {
                attrs.push(Attr::Bool(false));
                continue;
            }
            if i > 0 {
                self.mark(',')?;
            }
            if !self.eat_word(spec.name) {
                return self.expected(&format!("attribute `{}`", spec.name));
            }
            self.mark('=')?;
            attrs.push(self.attr(spec.kind)?);
        }
        self.mark('}')?;
        Ok(attrs)
    }
    fn attr(&mut self, kind: AttrKind) -> Result<Attr> {
        Ok(match kind {
            AttrKind::Int => Attr::Int(self.number("an integer")?),
            AttrKind::Float => Attr::float(self.float()?),
            AttrKind::Bool if self.eat_word("true") => Attr::Bool(true),
            AttrKind::Bool if self.eat_word("false") => Attr::Bool(false),
            AttrKind::Bool => return self.expected("`true` or `false`"),
            AttrKind::Str => Attr::Str(self.string()?),
            AttrKind::Ints => {
                self.mark('[')?;
                Attr::Ints(self.until(']', |p| p.number("an integer"))?)
            }
            AttrKind::DType => Attr::DType(self.dtype()?),
        })
    }
    fn region(&mut self, func: &mut Func, scope: &mut Scope, depth: usize) -> Result<RegionId> {
        if depth > MAX_DEPTH {
            return self.error(format!("regions are nested more than {MAX_DEPTH} deep"));
        }
        self.mark('{')?;
        let region = func.regions.push(Default::default());
        scope.enter();
        self.mark('(')?;
        let args = self.until(')', |p| {
            let at = p.at;
            let name = p.value_name()?;
            p.mark(':')?;
            Ok((at, name, p.ty()?))
        })?;
        for (at, name, ty) in args {
            let value = func.add_arg(region, ty, given_name(&name));
            self.define(scope, at, name, value)?;
        }
        self.ops(func, region, scope, depth)?;
        let yields = self.until('}', |p| p.operand(scope))?;
        func.regions[region].yields = yields;
        scope.leave();
        Ok(region)
    }
}

/// The name for readers in a printed name: none for a number, and without the suffix that made it unique.
fn given_name(printed: &str) -> Option<String> {
    let base = match printed.rsplit_once('.') {
        Some((base, suffix)) if suffix.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => printed,
    };
    if base.starts_with(|c: char| c.is_ascii_digit()) || base.is_empty() { None } else { Some(base.to_string()) }
}

/// The values that can be named at a place: those of the open regions.
#[derive(Default)]
struct Scope {
    names: HashMap<String, ValueId>,
    /// Names defined in each open inner region.
    inner: Vec<Vec<String>>,
}

impl Scope {
    fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }
    fn define(&mut self, name: String, value: ValueId) {
        if let Some(inner) = self.inner.last_mut() {
            inner.push(name.clone());
        }
        self.names.insert(name, value);
    }
    fn enter(&mut self) {
        self.inner.push(Vec::new());
    }
    fn leave(&mut self) {
        for name in self.inner.pop().unwrap_or_default() {
            self.names.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests;
