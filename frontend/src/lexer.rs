//! Text to tokens. Never fails: a character that begins no token is reported and skipped.
use crate::diagnostic::{Diagnostic, Span};

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub enum Tok {
    /// A name or keyword.
    Word(String),
    /// A whole number.
    Int(i64),
    /// A number with a point or exponent.
    Float(f64),
    /// A string, escapes resolved.
    Str(String),
    /// Punctuation.
    Punct(&'static str),
    /// The end of the text.
    End,
}

impl Tok {
    /// The token as messages call it.
    pub fn describe(&self) -> String {
        match self {
            Tok::Word(w) => format!("`{w}`"),
            Tok::Int(n) => format!("`{n}`"),
            Tok::Float(n) => format!("`{n}`"),
            Tok::Str(s) => format!("{s:?}"),
            Tok::Punct(p) => format!("`{p}`"),
            Tok::End => "the end of the text".into(),
        }
    }
}

/// A token and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// What it is.
    pub tok: Tok,
    /// Where it is.
    pub span: Span,
}

// Longer ones first.
const PUNCTUATION: &[&str] = &[
    "->", "=>", "==", "!=", "<=", ">=", "{", "}", "(", ")", "[", "]", ",", ":", "=", "+", "-", "*", "/", "<", ">", "|",
];

/// The tokens of a text, the last being [`Tok::End`], and what was wrong.
pub fn lex(source: &str) -> (Vec<Token>, Vec<Diagnostic>) {
    let bytes = source.as_bytes();
    let (mut tokens, mut errors) = (Vec::new(), Vec::new());
    let run = |from: usize, f: &dyn Fn(u8) -> bool| from + bytes[from..].iter().take_while(|b| f(**b)).count();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    // Some editors begin a text with a byte order mark.
    let mut at = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    while at < bytes.len() {
        let start = at;
        let tok = match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'#' => {
                at = run(at, &|b| b != b'\n');
                continue;
            }
            b if b.is_ascii_alphabetic() || b == b'_' => {
                at = run(at, &word);
                Tok::Word(source[start..at].to_string())
            }
            b if b.is_ascii_digit() => {
                let digits = |b: u8| b.is_ascii_digit() || b == b'_';
                at = run(at, &digits);
                let mut float = false;
                if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
                    float = true;
                    at = run(at + 1, &digits);
                }
                if matches!(bytes.get(at), Some(b'e' | b'E')) {
                    let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
                    if bytes.get(at + 1 + sign).is_some_and(u8::is_ascii_digit) {
                        float = true;
                        at = run(at + 1 + sign, &digits);
                    }
                }
                let text = source[start..at].replace('_', "");
                let value = match float {
                    true => text.parse().ok().filter(|v: &f64| v.is_finite()).map(Tok::Float),
                    false => text.parse().ok().map(Tok::Int),
                };
                value.unwrap_or_else(|| {
                    let error = Diagnostic::error("number-too-large", format!("{text} does not fit into 64 bits"));
                    errors.push(error.at(Span::new(start, at), "too large"));
                    Tok::Int(1)
                })
            }
            b'"' => {
                let mut text = Vec::new();
                at += 1;
                loop {
                    match bytes.get(at) {
                        Some(b'"') => {
                            at += 1;
                            break;
                        }
                        None | Some(b'\n') => {
                            let error = Diagnostic::error("unclosed-string", "this string has no closing quote");
                            errors.push(error.at(Span::new(start, at), "begins here").help("add `\"`"));
                            break;
                        }
                        Some(b'\\') if matches!(bytes.get(at + 1), Some(b'"' | b'\\')) => {
                            text.push(bytes[at + 1]);
                            at += 2;
                        }
                        Some(&b) => {
                            text.push(b);
                            at += 1;
                        }
                    }
                }
                // Whole characters were copied, so this is UTF-8 again.
                Tok::Str(String::from_utf8_lossy(&text).into_owned())
            }
            _ => match PUNCTUATION.iter().find(|p| source[at..].starts_with(**p)) {
                Some(p) => {
                    at += p.len();
                    Tok::Punct(p)
                }
                None => {
                    let c = source[at..].chars().next().unwrap_or('?');
                    at += c.len_utf8();
                    let error = Diagnostic::error("unknown-character", format!("{c:?} begins no token"));
                    errors.push(error.at(Span::new(start, at), "not understood"));
                    continue;
                }
            },
        };
        tokens.push(Token { tok, span: Span::new(start, at) });
    }
    let end = bytes.len();
    tokens.push(Token { tok: Tok::End, span: Span::new(end, end) });
    (tokens, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_kind() {
        let (tokens, errors) = lex("size a = 65_536 from \"n\\\"x\" # note\n 1e-6 <= 2.5 -> 3");
        assert!(errors.is_empty());
        let shown: Vec<String> = tokens.iter().map(|t| t.tok.describe()).collect();
        assert_eq!(
            shown.join(" "),
            "`size` `a` `=` `65536` `from` \"n\\\"x\" `0.000001` `<=` `2.5` `->` `3` the end of the text"
        );
    }

    #[test]
    fn bad_text_is_reported_and_skipped() {
        let (tokens, errors) = lex("a ? \"open\n99999999999999999999 é b");
        let ids: Vec<&str> = errors.iter().map(|e| e.id).collect();
        assert_eq!(ids, ["unknown-character", "unclosed-string", "number-too-large", "unknown-character"]);
        assert_eq!(tokens.len(), 5);
    }
}
