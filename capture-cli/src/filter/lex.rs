//! Words, strings and signs of a filter.

use std::ops::Range;

use super::ast::Cmp;
use super::error::FilterError;

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Keyword, number, address, name.
    Word(String),
    /// Quoted: never a keyword.
    Quoted(String),
    Open,
    Close,
    And,
    Or,
    Not,
    Cmp(Cmp),
    End,
}

/// A token and the bytes it came from.
#[derive(Clone, Debug)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) span: Range<usize>,
}

/// Signs, longest first.
const SIGNS: [(&str, Token); 13] = [
    ("&&", Token::And),
    ("||", Token::Or),
    ("<=", Token::Cmp(Cmp::Le)),
    (">=", Token::Cmp(Cmp::Ge)),
    ("==", Token::Cmp(Cmp::Eq)),
    ("!=", Token::Cmp(Cmp::Ne)),
    ("<>", Token::Cmp(Cmp::Ne)),
    ("<", Token::Cmp(Cmp::Lt)),
    (">", Token::Cmp(Cmp::Gt)),
    ("=", Token::Cmp(Cmp::Eq)),
    ("!", Token::Not),
    ("(", Token::Open),
    (")", Token::Close),
];

/// Cuts a filter into tokens; the last is always [`Token::End`].
pub(super) fn tokens(filter: &str) -> Result<Vec<Lexeme>, FilterError> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(first) = filter[at..].chars().next() {
        let rest = &filter[at..];
        let (token, len) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if let Some((sign, token)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            (token.clone(), sign.len())
        } else if first == '"' || first == '\'' {
            let inside = &rest[1..];
            let Some(len) = inside.find(first) else {
                return Err(FilterError::new(at..filter.len(), "the quote is never closed"));
            };
            (Token::Quoted(inside[..len].to_owned()), len + 2)
        } else if first == '&' || first == '|' {
            let word = if first == '&' { "and" } else { "or" };
            return Err(FilterError::new(
                at..at + 1,
                format!("`{first}` alone means nothing here"),
            )
            .help(format!("write `{word}` or `{first}{first}`")));
        } else {
            let len = rest.find(ends_word).unwrap_or(rest.len());
            (word(&rest[..len]), len)
        };
        out.push(Lexeme { token, span: at..at + len });
        at += len;
    }
    out.push(Lexeme { token: Token::End, span: filter.len()..filter.len() });
    Ok(out)
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || "()!<>=&|\"'".contains(c)
}

fn word(text: &str) -> Token {
    match text.to_ascii_lowercase().as_str() {
        "and" => Token::And,
        "or" => Token::Or,
        "not" => Token::Not,
        // tcpdump's users write `proto \tcp` where the name is a keyword, too.
        _ => Token::Word(text.strip_prefix('\\').unwrap_or(text).to_owned()),
    }
}
