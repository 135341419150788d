//! The tokens of a statement, in Presto's eyes: which word is a name and which a keyword.
//!
//! Some words SQLite reserves and Presto does not: a column may be called `index`. Two of them are
//! keywords of Presto's SELECT all the same, `LIMIT` and `ALL`; there the place decides.

use crate::sim::answer::{Code, Refusal};

/// Words that SQLite does not take for a name, and Presto always, in a SELECT (SQLite 3.51, each of
/// its keywords tried; Presto's documentation, reserved keywords).
const NAMES: [&str; 22] = [
    "add",
    "autoincrement",
    "check",
    "collate",
    "commit",
    "default",
    "deferrable",
    "foreign",
    "index",
    "isnull",
    "nothing",
    "notnull",
    "primary",
    "raise",
    "references",
    "returning",
    "set",
    "to",
    "transaction",
    "unique",
    "update",
    // SQLite guesses by what follows it, and takes `ELSE window END AS a` for its clause.
    "window",
];

/// Reserved words of Presto behind which an operand or a name stands.
const BEFORE_OPERAND: [&str; 30] = [
    "and",
    "as",
    "between",
    "by",
    "case",
    "distinct",
    "else",
    "escape",
    "except",
    "exists",
    "from",
    "having",
    "in",
    "intersect",
    "is",
    "join",
    "like",
    "not",
    "on",
    "or",
    "recursive",
    "select",
    "then",
    "union",
    "using",
    "values",
    "when",
    "where",
    "with",
    "limit",
];

/// What ends an operand, so that an `ALL` before it is one.
const BEHIND_OPERAND: [&str; 24] = [
    "and",
    "as",
    "between",
    "end",
    "else",
    "escape",
    "except",
    "from",
    "group",
    "having",
    "in",
    "intersect",
    "is",
    "join",
    "like",
    "limit",
    "not",
    "on",
    "or",
    "order",
    "then",
    "union",
    "when",
    "where",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Word,
    /// A word that is a name here and that SQLite would not take for one.
    Name,
    Number,
    /// A text or a name in quotes.
    Quoted,
    Symbol(u8),
}

#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Where it begins.
    pub at: usize,
    /// How many parentheses are open around it.
    pub depth: usize,
}

impl Token<'_> {
    /// Whether it is keyword `word`.
    pub fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    pub fn is_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(word))
    }

    pub fn is_symbol(&self, symbol: u8) -> bool {
        self.kind == Kind::Symbol(symbol)
    }

    pub fn end(&self) -> usize {
        self.at + self.text.len()
    }
}

/// The tokens of `text`. A closing parenthesis has the depth of what is around the pair.
///
/// Fails if a quote is not closed, or a parenthesis not opened.
pub fn tokenise(text: &str) -> Result<Vec<Token<'_>>, Refusal> {
    let mut tokens = split(text)?;
    mark_names(&mut tokens);
    Ok(tokens)
}

fn mark_names(tokens: &mut [Token<'_>]) {
    let mut wants_operand = true;
    for at in 0..tokens.len() {
        let token = tokens[at];
        let is_name = token.is_any(&NAMES)
            || (token.is("limit") && wants_operand)
            || (token.is("all") && wants_operand && is_operand_all(tokens, at));
        if is_name {
            tokens[at].kind = Kind::Name;
        }
        wants_operand = match tokens[at].kind {
            Kind::Name | Kind::Number | Kind::Quoted | Kind::Symbol(b')') => false,
            // As an operand it means every column, else it multiplies.
            Kind::Symbol(b'*') => !wants_operand,
            Kind::Symbol(_) => true,
            Kind::Word => token.is("all") || token.is_any(&BEFORE_OPERAND),
        };
    }
}

/// Whether the `ALL` at `at`, where an operand may stand, is one: it can only belong to what follows
/// in `UNION ALL`, `SELECT ALL a`, `count(ALL a)` and `= ALL (…)`.
fn is_operand_all(tokens: &[Token<'_>], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|before| &tokens[before]) else { return true };
    if before.is_any(&["union", "intersect", "except"]) {
        return false;
    }
    let is_symbol = matches!(before.kind, Kind::Symbol(symbol) if symbol != b'.');
    let can_qualify = before.is("select") || is_symbol;
    let Some(next) = tokens.get(at + 1).filter(|_| can_qualify) else { return true };
    match next.kind {
        Kind::Word => next.is_any(&BEHIND_OPERAND),
        Kind::Symbol(symbol) => !matches!(symbol, b'(' | b'*'),
        _ => false,
    }
}

fn split(text: &str) -> Result<Vec<Token<'_>>, Refusal> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (0, 0usize);
    while at < bytes.len() {
        let byte = bytes[at];
        let rest = &bytes[at..];
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
        let word_length = || rest.iter().position(|byte| !is_word(byte)).unwrap_or(rest.len());
        let (kind, length) = match byte {
            _ if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if rest.starts_with(b"--") => {
                at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                continue;
            }
            b'\'' | b'"' => {
                let length =
                    quoted_length(rest).ok_or_else(|| syntax(text, at, "unclosed string quote"))?;
                (Kind::Quoted, length)
            }
            b'0'..=b'9' => (Kind::Number, word_length()),
            _ if is_word(&byte) => (Kind::Word, word_length()),
            _ => (Kind::Symbol(byte), 1),
        };
        if byte == b')' {
            let error = || syntax(text, at, "extraneous input ')'");
            depth = depth.checked_sub(1).ok_or_else(error)?;
        }
        tokens.push(Token { kind, text: &text[at..at + length], at, depth });
        if byte == b'(' {
            depth += 1;
        }
        at += length;
    }
    Ok(tokens)
}

/// How long a text in quotes is, with them; a doubled quote stands for itself.
fn quoted_length(bytes: &[u8]) -> Option<usize> {
    let quote = bytes[0];
    let mut at = 1;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == quote)? + 1;
        if bytes.get(at) != Some(&quote) {
            return Some(at);
        }
        at += 1;
    }
}

/// Line and column, both from 1, of byte `offset` of `text`.
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let head = text.as_bytes();
    let head = &head[..offset.min(head.len())];
    let line_start = head.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    (lines + 1, head.len() - line_start + 1)
}

/// SLS's words for a statement that cannot be read (aliyun, FAQ on query and analysis errors).
pub fn syntax(text: &str, at: usize, message: &str) -> Refusal {
    let (line, column) = line_and_column(text, at);
    let message = format!(
        "ErrorType:SyntaxError.ErrorPosition,line:{line},column:{column}.\
         ErrorMessage:line {line}:{column}: {message}"
    );
    Refusal::new(Code::ParameterInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that Presto sees where SQLite sees keywords, and how many keywords are left.
    fn names(text: &str) -> Vec<&str> {
        let tokens = tokenise(text).unwrap();
        tokens.iter().filter(|token| token.kind == Kind::Name).map(|token| token.text).collect()
    }

    #[test]
    fn limit_and_all_are_names_where_an_operand_stands() {
        for (text, wanted) in [
            ("select limit from log limit 5", vec!["limit"]),
            ("select * from log limit 5", vec![]),
            ("select 2 * limit, t.limit from t where limit > 1 order by limit limit 1, 2", {
                vec!["limit"; 4]
            }),
            ("select count(limit) from log group by a, limit limit 5", vec!["limit"; 2]),
            ("select a from log where b is not null limit 5", vec![]),
            ("select case when a then 1 end limit 5", vec![]),
            ("select f(a) limit 5", vec![]),
            ("select a order by b desc limit 5", vec![]),
            ("with limit as (select 1) select * from limit limit 1", vec!["limit"; 2]),
            ("select all from log", vec!["all"]),
            ("select all id from log", vec![]),
            ("select all * from log", vec![]),
            ("select count(all id), count(all), max(all)", vec!["all"; 2]),
            ("select a union all select b", vec![]),
            ("select a, all where all = 'x' and b = all order by all, t.all desc", vec!["all"; 5]),
            ("select Index as \"index\", x.INDEX, 'index'", vec!["Index", "INDEX"]),
        ] {
            assert_eq!(names(text), wanted, "{text}");
        }
    }
}
