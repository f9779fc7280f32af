//! Splits IR text into tokens.
use super::ParseError;

/// A token's kind and content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A quoted string, unescaped.
    Str(String),
    /// `%name`, without the `%`.
    Value(String),
    /// A word.
    Word(String),
    /// A number as written.
    Number(String),
    /// A punctuation mark.
    Mark(char),
    /// The end of the text.
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Str(s) => write!(f, "{}", crate::print::Quoted(s)),
            Token::Value(s) => write!(f, "`%{s}`"),
            Token::Word(s) | Token::Number(s) => write!(f, "`{s}`"),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// A token with its place (line and column from 1, in characters).
#[derive(Clone, Debug)]
pub(super) struct Spanned {
    pub token: Token,
    pub line: u32,
    pub col: u32,
}

/// All tokens of a text, the last of which is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, ParseError> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1, col: 1 };
    let mut out = Vec::new();
    loop {
        lexer.skip_space();
        let (line, col) = (lexer.line, lexer.col);
        let token = lexer.token().map_err(|message| ParseError { line, col, message })?;
        let end = token == Token::End;
        out.push(Spanned { token, line, col });
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'t> {
    chars: std::iter::Peekable<std::str::Chars<'t>>,
    line: u32,
    col: u32,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            (self.line, self.col) = (self.line.saturating_add(1), 1);
        } else {
            self.col = self.col.saturating_add(1);
        }
        Some(c)
    }
    fn skip_space(&mut self) {
        while let Some(&c) = self.chars.peek() {
            if c == ';' {
                while self.chars.peek().is_some_and(|&c| c != '\n') {
                    self.next();
                }
            } else if c.is_whitespace() {
                self.next();
            } else {
                return;
            }
        }
    }
    fn take_while(&mut self, start: &str, ok: impl Fn(char, char) -> bool) -> String {
        let mut out = start.to_string();
        let mut last = start.chars().last().unwrap_or(' ');
        while let Some(&c) = self.chars.peek() {
            if !ok(last, c) {
                break;
            }
            out.push(c);
            last = c;
            self.next();
        }
        out
    }
    fn token(&mut self) -> Result<Token, String> {
        let Some(c) = self.next() else { return Ok(Token::End) };
        let word = |_, c: char| c.is_ascii_alphanumeric() || c == '_';
        match c {
            '"' => self.string(),
            '%' => {
                let name = self.take_while("", |_, c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
                if name.is_empty() { Err("`%` must be followed by a name".into()) } else { Ok(Token::Value(name)) }
            }
            c if c.is_ascii_digit() || c == '-' => {
                let more = |last: char, c: char| {
                    c.is_ascii_alphanumeric() || c == '.' || (matches!(c, '+' | '-') && matches!(last, 'e' | 'E'))
                };
                Ok(Token::Number(self.take_while(&c.to_string(), more)))
            }
            c if c.is_ascii_alphabetic() || c == '_' => Ok(Token::Word(self.take_while(&c.to_string(), word))),
            '(' | ')' | '{' | '}' | '[' | ']' | ',' | ':' | '=' | '@' => Ok(Token::Mark(c)),
            c => Err(format!("unexpected character {c:?}")),
        }
    }
    fn string(&mut self) -> Result<Token, String> {
        let unfinished = || "this string has no end".to_string();
        let mut out = String::new();
        loop {
            match self.next().ok_or_else(unfinished)? {
                '"' => return Ok(Token::Str(out)),
                '\n' => return Err(unfinished()),
                '\\' => match self.next().ok_or_else(unfinished)? {
                    'n' => out.push('\n'),
                    'u' => out.push(self.unicode()?),
                    c @ ('"' | '\\') => out.push(c),
                    c => return Err(format!("unknown escape \\{}", c.escape_default())),
                },
                c => out.push(c),
            }
        }
    }
    /// The rest of `\u{hex}` after the `u`.
    fn unicode(&mut self) -> Result<char, String> {
        let bad = || "an escape is written \\u{hex}".to_string();
        if self.next() != Some('{') {
            return Err(bad());
        }
        let hex = self.take_while("", |_, c| c.is_ascii_hexdigit());
        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32).ok_or_else(bad)?;
        if self.next() == Some('}') { Ok(code) } else { Err(bad()) }
    }
}
