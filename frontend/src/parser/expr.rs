//! Expressions, by precedence climbing.
use super::{Parsed, Parser};
use crate::ast::{Arg, Arm, BinaryOp, Expr, ExprKind};
use crate::lexer::Tok;

const NOT_LEVEL: u8 = 3;
const UNARY_LEVEL: u8 = 7;
/// Binds tighter than comparisons: in `<…>` a `>` closes the list.
pub(super) const SUM_LEVEL: u8 = 5;

impl Parser {
    pub(super) fn expr(&mut self) -> Parsed<Expr> {
        self.expr_at(1)
    }
    /// An expression of operators that bind at least as tightly as `level`.
    pub(super) fn expr_at(&mut self, level: u8) -> Parsed<Expr> {
        self.deeper(|p| {
            let mut left = p.prefix()?;
            while let Some(op) = p.binary().filter(|op| op.level() >= level) {
                // A chain of operators leans to the left: every link is one level of the tree.
                p.descend()?;
                p.bump();
                let right = p.expr_at(op.level() + 1)?;
                let span = left.span.to(right.span);
                left = Expr { kind: ExprKind::Binary(op, Box::new(left), Box::new(right)), span };
            }
            Ok(left)
        })
    }
    fn binary(&self) -> Option<BinaryOp> {
        use BinaryOp::*;
        let word = match self.peek() {
            Tok::Punct(p) => p,
            Tok::Word(w) => w.as_str(),
            _ => return None,
        };
        [Or, And, Eq, Ne, Lt, Le, Gt, Ge, Add, Sub, Mul, Div].into_iter().find(|op| op.word() == word)
    }
    fn prefix(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let kind = if self.eat("-") {
            ExprKind::Neg(Box::new(self.expr_at(UNARY_LEVEL)?))
        } else if self.eat_word("not") {
            ExprKind::Not(Box::new(self.expr_at(NOT_LEVEL)?))
        } else {
            return self.postfix();
        };
        Ok(Expr { kind, span: start.to(self.last()) })
    }
    fn postfix(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let mut base = self.atom()?;
        while self.at_punct("[") {
            self.descend()?;
            self.bump();
            let index = self.expr()?;
            self.want("]")?;
            base = Expr { kind: ExprKind::Index(Box::new(base), Box::new(index)), span: start.to(self.last()) };
        }
        Ok(base)
    }
    fn atom(&mut self) -> Parsed<Expr> {
        let start = self.span();
        let kind = match self.peek().clone() {
            Tok::Int(n) => {
                self.bump();
                ExprKind::Int(n)
            }
            Tok::Float(n) => {
                self.bump();
                ExprKind::Float(n)
            }
            Tok::Str(s) => {
                self.bump();
                ExprKind::Str(s)
            }
            Tok::Punct("(") => {
                self.bump();
                let inner = self.expr()?;
                self.want(")")?;
                return Ok(Expr { span: start.to(self.last()), ..inner });
            }
            Tok::Punct("[") => {
                self.bump();
                ExprKind::List(self.list("]", Parser::expr)?)
            }
            Tok::Word(w) if w == "true" || w == "false" => {
                self.bump();
                ExprKind::Bool(w == "true")
            }
            Tok::Word(w) if w == "if" => {
                self.bump();
                let cond = self.expr()?;
                if !self.eat_word("then") {
                    return self.expected("`then`");
                }
                let then = self.expr()?;
                if !self.eat_word("else") {
                    return self.expected("`else`");
                }
                let other = self.expr()?;
                ExprKind::If(Box::new(cond), Box::new(then), Box::new(other))
            }
            Tok::Word(w) if w == "match" => {
                self.bump();
                let subject = self.expr()?;
                self.want("{")?;
                let arms = self.list("}", |p| {
                    let patterns = p.patterns()?;
                    p.want("=>")?;
                    Ok(Arm { patterns, body: p.expr()? })
                })?;
                ExprKind::Match(Box::new(subject), arms)
            }
            Tok::Word(_) => {
                let name = self.name()?;
                if !self.eat("(") {
                    ExprKind::Name(name.text)
                } else {
                    let args = self.list(")", |p| {
                        let named = matches!(p.peek(), Tok::Word(_)) && matches!(p.peek_after(), Tok::Punct("="));
                        let name = if named { Some(p.name()?) } else { None };
                        if named {
                            p.want("=")?;
                        }
                        Ok(Arg { name, value: p.expr()? })
                    })?;
                    ExprKind::Call(name, args)
                }
            }
            _ => return self.expected("an expression"),
        };
        Ok(Expr { kind, span: start.to(self.last()) })
    }
    /// The strings of an arm; none for `else`.
    pub(super) fn patterns(&mut self) -> Parsed<Vec<crate::ast::Name>> {
        if self.eat_word("else") {
            return Ok(Vec::new());
        }
        let mut patterns = vec![self.string()?];
        while self.eat("|") {
            patterns.push(self.string()?);
        }
        Ok(patterns)
    }
}
