//! Tokens to tree. Never bails: what cannot be read is reported and skipped up to the next word that can begin a
//! statement, so that one run shows several mistakes.
mod expr;
mod stmt;

use crate::ast::{Model, Name};
use crate::diagnostic::{Diagnostic, Span};
use crate::lexer::{Tok, Token, lex};

/// Words that begin a statement.
pub const STATEMENTS: &[&str] = &[
    "size", "count", "const", "flag", "string", "weight", "tie", "part", "stack", "state", "ignore", "require",
    "readout", "cache", "layer", "prelude", "core", "coda", "loss", "let", "return", "collect", "exit", "if", "match",
];

/// Words that cannot be names.
pub const RESERVED: &[&str] = &["let", "return", "if", "else", "match", "and", "or", "not", "true", "false", "then"];

/// How deeply expressions and blocks may nest.
const DEEPEST: usize = 100;

/// The tree of a text and what was wrong with it. The tree is there even if the text is nonsense.
pub fn parse(source: &str) -> (Model, Vec<Diagnostic>) {
    let (tokens, errors) = lex(source);
    let mut parser = Parser { tokens, at: 0, depth: 0, errors };
    let model = parser.model();
    (model, parser.errors)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    errors: Vec<Diagnostic>,
}

/// What was expected is not there; the error is already reported.
struct Failed;
type Parsed<T> = Result<T, Failed>;

impl Parser {
    fn peek(&self) -> &Tok {
        &self.tokens[self.at].tok
    }
    fn peek_after(&self) -> &Tok {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].tok
    }
    fn span(&self) -> Span {
        self.tokens[self.at].span
    }
    /// The place of the token before.
    fn last(&self) -> Span {
        self.tokens[self.at.saturating_sub(1)].span
    }
    fn bump(&mut self) -> Tok {
        let tok = self.tokens[self.at].tok.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        tok
    }
    fn at_word(&self, word: &str) -> bool {
        matches!(self.peek(), Tok::Word(w) if w == word)
    }
    fn at_punct(&self, punct: &str) -> bool {
        matches!(self.peek(), Tok::Punct(p) if *p == punct)
    }
    fn eat_word(&mut self, word: &str) -> bool {
        let there = self.at_word(word);
        if there {
            self.bump();
        }
        there
    }
    fn eat(&mut self, punct: &str) -> bool {
        let there = self.at_punct(punct);
        if there {
            self.bump();
        }
        there
    }
    fn expected<T>(&mut self, what: &str) -> Parsed<T> {
        let found = self.peek().describe();
        let error = Diagnostic::error("syntax", format!("expected {what}, found {found}"));
        let error = error.at(self.span(), format!("expected {what}"));
        self.errors.push(match self.peek() {
            Tok::Word(w) if RESERVED.contains(&w.as_str()) && what.contains("name") => {
                error.help(format!("`{w}` is a reserved word"))
            }
            _ => error,
        });
        Err(Failed)
    }
    fn want(&mut self, punct: &str) -> Parsed<Span> {
        if self.eat(punct) { Ok(self.last()) } else { self.expected(&format!("`{punct}`")) }
    }
    fn name(&mut self) -> Parsed<Name> {
        match self.peek() {
            Tok::Word(w) if !RESERVED.contains(&w.as_str()) => {
                let text = w.clone();
                self.bump();
                Ok(Name { text, span: self.last() })
            }
            _ => self.expected("a name"),
        }
    }
    fn string(&mut self) -> Parsed<Name> {
        match self.peek() {
            Tok::Str(s) => {
                let text = s.clone();
                self.bump();
                Ok(Name { text, span: self.last() })
            }
            _ => self.expected("a string in quotes"),
        }
    }
    /// `item, item, …` up to a closing token, which is eaten; a comma may end the list.
    fn list<T>(&mut self, close: &str, item: impl Fn(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        while !self.eat(close) {
            items.push(item(self)?);
            if !self.eat(",") {
                self.want(close)?;
                break;
            }
        }
        Ok(items)
    }
    /// `item, item, …` without an end.
    fn series<T>(&mut self, item: impl Fn(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.eat(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }
    /// Runs `f` one level deeper, or reports that the text is nested too deeply.
    fn deeper<T>(&mut self, f: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        let depth = self.depth;
        let result = self.descend().and_then(|()| f(self));
        self.depth = depth;
        result
    }
    /// Counts one more level of the tree, up to the end of the enclosing [`Parser::deeper`].
    fn descend(&mut self) -> Parsed<()> {
        if self.depth >= DEEPEST {
            let error = Diagnostic::error("too-deep", format!("nested more than {DEEPEST} levels deep"));
            self.errors.push(error.at(self.span(), "here"));
            return Err(Failed);
        }
        self.depth += 1;
        Ok(())
    }
    /// Skips to a token that can begin a statement or close a block. Blocks on the way are skipped whole.
    fn recover(&mut self) {
        let mut open = 0usize;
        loop {
            match self.peek() {
                Tok::End => return,
                Tok::Punct("{") => open += 1,
                Tok::Punct("}") if open == 0 => return,
                Tok::Punct("}") => open -= 1,
                // A name may spell like a keyword; one that is followed by `=`, `)`, `,` or `{` is one.
                Tok::Word(w)
                    if open == 0
                        && STATEMENTS.contains(&w.as_str())
                        && !matches!(self.peek_after(), Tok::Punct("=" | ")" | "," | "{")) =>
                {
                    return;
                }
                _ => {}
            }
            self.bump();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn several_mistakes_in_one_run() {
        let text = "model M {\n size a = \n size b 3\n layer L(x: [a) -> [a] { return x }\n size c = 4\n let )\n}\n}";
        let (model, errors) = parse(text);
        assert!(errors.len() >= 4, "{errors:#?}");
        assert_eq!(model.name.text, "M");
        assert!(
            model
                .items
                .iter()
                .any(|i| matches!(&i.kind, crate::ast::StmtKind::Setting { name, .. } if name.text == "c"))
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let text = format!("model M {{ const a = {}1{} }}", "(".repeat(100_000), ")".repeat(100_000));
        let (_, errors) = parse(&text);
        assert_eq!(errors[0].id, "too-deep");
        let text = format!("model M {{ {}", "if true { ".repeat(100_000));
        assert!(!parse(&text).1.is_empty());
    }
}
