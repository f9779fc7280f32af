//! Statements and declarations.
use super::expr::SUM_LEVEL;
use super::{Failed, Parsed, Parser, STATEMENTS};
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Span};
use crate::lexer::Tok;
use crate::names::nearest;

impl Parser {
    pub(super) fn model(&mut self) -> Model {
        let mut model = Model { name: Name { text: "model".into(), span: Span::default() }, items: Vec::new() };
        let head: Parsed<()> = (|| {
            if !self.eat_word("model") {
                return self.expected("`model NAME {`");
            }
            model.name = self.name()?;
            self.want("{")?;
            Ok(())
        })();
        if head.is_err() {
            self.recover();
        }
        loop {
            self.statements(&mut model.items);
            if !self.eat("}") {
                let _: Parsed<()> = self.expected("`}` to close the model");
                break;
            }
            if matches!(self.peek(), Tok::End) {
                break;
            }
            let _: Parsed<()> = self.expected("the end of the text after the model's `}`");
            // One `}` too many is likelier than text that belongs nowhere: read on as if it were not there.
            self.recover();
        }
        model
    }

    /// Statements up to a `}` or the end.
    fn statements(&mut self, out: &mut Block) {
        while !matches!(self.peek(), Tok::End | Tok::Punct("}")) {
            let start = self.span();
            let before = self.at;
            match self.statement(out) {
                Ok(()) => {}
                Err(Failed) => {
                    if self.at == before {
                        self.bump();
                    }
                    self.recover();
                }
            }
            let end = self.last();
            if let Some(stmt) = out.last_mut().filter(|s| s.span == start) {
                stmt.span = start.to(end);
            }
        }
    }

    fn block(&mut self) -> Parsed<Block> {
        self.want("{")?;
        self.deeper(|p| {
            let mut block = Vec::new();
            p.statements(&mut block);
            p.want("}")?;
            Ok(block)
        })
    }

    fn statement(&mut self, out: &mut Block) -> Parsed<()> {
        let span = self.span();
        let Tok::Word(word) = self.peek().clone() else { return self.expected("a statement") };
        if !STATEMENTS.contains(&word.as_str()) {
            let known = STATEMENTS.iter().copied();
            let error = Diagnostic::error("unknown-statement", format!("`{word}` begins no statement"));
            let error = error.at(span, "not a keyword");
            self.errors.push(match nearest(&word, known) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help("a value is bound by `let NAME = …` and handed on by `return`"),
            });
            return Err(Failed);
        }
        self.bump();
        let kind = match word.as_str() {
            "size" => return self.settings(SettingKind::Size, span, out),
            "count" => return self.settings(SettingKind::Count, span, out),
            "const" => return self.settings(SettingKind::Const, span, out),
            "flag" => return self.settings(SettingKind::Flag, span, out),
            "string" => return self.settings(SettingKind::Str, span, out),
            "part" => return self.parts(false, span, out),
            "stack" => return self.parts(true, span, out),
            "weight" => self.weight()?,
            "tie" => {
                let name = self.name()?;
                self.want("=")?;
                let target = self.name()?;
                let at = if self.eat_word("at") { Some(self.string()?) } else { None };
                StmtKind::Tie { name, target, at }
            }
            "state" => {
                let name = self.name()?;
                self.want(":")?;
                let ty = self.type_expr()?;
                self.want("=")?;
                StmtKind::State { name, ty, init: self.expr()? }
            }
            "require" => StmtKind::Require { cond: self.expr()?, message: self.string()? },
            "ignore" => StmtKind::Ignore(self.series(Parser::string)?),
            "readout" => StmtKind::Readout(self.series(Parser::name)?),
            "cache" => {
                let policy = self.name()?;
                let arg = if self.eat("(") { Some(self.expr()?) } else { None };
                if arg.is_some() {
                    self.want(")")?;
                }
                StmtKind::Cache { policy, arg }
            }
            "layer" => StmtKind::Layer(self.layer()?),
            "prelude" => StmtKind::Section(self.section(SectionKind::Prelude, span)?),
            "core" => StmtKind::Section(self.section(SectionKind::Core, span)?),
            "coda" => StmtKind::Section(self.section(SectionKind::Coda, span)?),
            "loss" => StmtKind::Loss(self.loss(span)?),
            "let" => {
                let names = self.series(Parser::name)?;
                self.want("=")?;
                StmtKind::Let { names, values: self.series(Parser::expr)? }
            }
            "return" => StmtKind::Return(self.series(Parser::expr)?),
            "collect" => {
                let name = self.name()?;
                self.want("=")?;
                StmtKind::Collect { name, value: self.expr()? }
            }
            "exit" => {
                if !self.eat_word("when") {
                    return self.expected("`when`");
                }
                StmtKind::Exit(self.expr()?)
            }
            "if" => self.if_stmt()?,
            _ => {
                let subject = self.expr()?;
                self.want("{")?;
                let mut arms = Vec::new();
                while !self.eat("}") {
                    let patterns = self.patterns()?;
                    self.want("=>")?;
                    arms.push(Arm { patterns, body: self.block()? });
                    self.eat(",");
                }
                StmtKind::Match { subject, arms }
            }
        };
        out.push(Stmt { kind, span });
        Ok(())
    }

    fn if_stmt(&mut self) -> Parsed<StmtKind> {
        let cond = self.expr()?;
        let then = self.block()?;
        let span = self.span();
        let other = if !self.eat_word("else") {
            Vec::new()
        } else if self.eat_word("if") {
            let kind = self.deeper(Parser::if_stmt)?;
            vec![Stmt { kind, span: span.to(self.last()) }]
        } else {
            self.block()?
        };
        Ok(StmtKind::If { cond, then, other })
    }

    /// `a = 1 from "x" | "y", b = 2`
    fn settings(&mut self, kind: SettingKind, span: Span, out: &mut Block) -> Parsed<()> {
        loop {
            let name = self.name()?;
            self.want("=")?;
            let value = self.expr()?;
            let mut fields = Vec::new();
            if self.eat_word("from") {
                fields.push(self.string()?);
                while self.eat("|") {
                    fields.push(self.string()?);
                }
            }
            out.push(Stmt { kind: StmtKind::Setting { kind, name, value, fields }, span });
            if !self.eat(",") {
                return Ok(());
            }
        }
    }

    /// `a: L<n> at "a", b: L<n>`, or with `[count]` for a stack.
    fn parts(&mut self, stack: bool, span: Span, out: &mut Block) -> Parsed<()> {
        loop {
            let name = self.name()?;
            self.want(":")?;
            let layer = self.name()?;
            let args = if self.eat("<") { self.list(">", |p| p.expr_at(SUM_LEVEL))? } else { Vec::new() };
            let count = if stack {
                self.want("[")?;
                let count = self.expr()?;
                self.want("]")?;
                Some(count)
            } else {
                None
            };
            let at = if self.eat_word("at") { Some(self.string()?) } else { None };
            out.push(Stmt { kind: StmtKind::Part { name, layer, args, count, at }, span });
            if !self.eat(",") {
                return Ok(());
            }
        }
    }

    fn weight(&mut self) -> Parsed<StmtKind> {
        let name = self.name()?;
        self.want(":")?;
        self.want("[")?;
        let shape = self.list("]", Parser::expr)?;
        self.want("=")?;
        let init = self.expr()?;
        let (mut decay, mut at) = (true, None);
        loop {
            if self.eat_word("no_decay") {
                decay = false;
            } else if self.eat_word("at") {
                at = Some(self.string()?);
            } else {
                return Ok(StmtKind::Weight { name, shape, init, decay, at });
            }
        }
    }

    fn layer(&mut self) -> Parsed<Layer> {
        let name = self.name()?;
        let statics = if self.eat("<") { self.list(">", Parser::name)? } else { Vec::new() };
        self.want("(")?;
        let params = self.list(")", |p| {
            let name = p.name()?;
            p.want(":")?;
            Ok((name, p.type_expr()?))
        })?;
        self.want("->")?;
        let results = self.series(Parser::type_expr)?;
        Ok(Layer { name, statics, params, results, body: self.block()? })
    }

    fn section(&mut self, kind: SectionKind, start: Span) -> Parsed<Section> {
        let readouts = if self.at_punct("(") { Vec::new() } else { self.series(Parser::name)? };
        let params = self.section_params(true)?;
        self.want("->")?;
        let results = self.series(Parser::name)?;
        let head = start.to(self.last());
        let trips = if self.eat_word("loop") {
            if !self.eat_word("default") {
                return self.expected("`default`");
            }
            let default = self.expr()?;
            let max = if self.eat_word("max") { Some(self.expr()?) } else { None };
            Some(Trips { default, max })
        } else {
            None
        };
        Ok(Section { kind, readouts, params, results, trips, body: self.block()?, head })
    }

    /// `NAME (values) for READOUT -> loss, others { … }`
    fn loss(&mut self, start: Span) -> Parsed<Loss> {
        let name = self.name()?;
        let params = self.section_params(false)?;
        let readout = if self.eat_word("for") { Some(self.name()?) } else { None };
        self.want("->")?;
        let results = self.series(Parser::name)?;
        let head = start.to(self.last());
        let (kind, readouts, body) = (SectionKind::Loss, Vec::new(), self.block()?);
        Ok(Loss { name, readout, section: Section { kind, readouts, params, results, trips: None, body, head } })
    }

    /// `(a, b: [B, S] = 0)`; starts only where values are carried.
    fn section_params(&mut self, starts: bool) -> Parsed<Vec<SectionParam>> {
        self.want("(")?;
        self.list(")", |p| {
            let name = p.name()?;
            let ty = if p.eat(":") { Some(p.type_expr()?) } else { None };
            let init = if starts && p.eat("=") { Some(p.expr()?) } else { None };
            Ok(SectionParam { name, ty, init })
        })
    }

    fn type_expr(&mut self) -> Parsed<TypeExpr> {
        let start = self.span();
        let dtype = if self.at_punct("[") { None } else { Some(self.name()?) };
        self.want("[")?;
        let shape = self.list("]", Parser::expr)?;
        Ok(TypeExpr { dtype, shape, span: start.to(self.last()) })
    }
}
