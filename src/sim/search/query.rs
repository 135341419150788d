//! Reads SLS's search language, the part that is imitated: conditions on keys, `and`, `or`, `not`.
//!
//! ```text
//! or        = and { "or" and }
//! and       = not { ["and"] not }
//! not       = "not" not | "(" or ")" | "*" | condition
//! condition = key ":" value          key may be __tag__:name; both may stand in quotes
//!           | key (">" | ">=" | "<" | "<=" | "=") number
//!           | key "in" ("[" | "(") number number ("]" | ")")
//! ```

use std::cmp::Ordering;
use std::ops::Bound;

use crate::sim::answer::{Code, Refusal};

/// SLS takes this many conditions in one search (aliyun, limits of query and analysis).
const CONDITIONS_MAX: usize = 30;

/// How deep parentheses and `not` may be nested.
const DEPTH_MAX: usize = 30;

/// What a log must be like.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    All,
    Field { key: String, value: Value },
    Not(Box<Query>),
    And(Vec<Query>),
    Or(Vec<Query>),
}

/// What a field must be like.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `key: *`: the field is there.
    Any,
    /// `key: abc*`: a word begins so.
    Prefix(String),
    /// All words of the text are there.
    Words(String),
    /// The field is a number between these.
    Between(Bound<Number>, Bound<Number>),
}

/// A number as it was written: whole ones are compared to the last digit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Long(i64),
    Double(f64),
}

impl Number {
    pub fn parse(text: &str) -> Option<Self> {
        let double = || text.parse().ok().filter(|double: &f64| double.is_finite());
        text.parse().ok().map(Self::Long).or_else(|| double().map(Self::Double))
    }

    fn double(self) -> f64 {
        match self {
            Self::Long(long) => long as f64,
            Self::Double(double) => double,
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Long(one), Self::Long(other)) => Some(one.cmp(other)),
            (one, other) => one.double().partial_cmp(&other.double()),
        }
    }
}

/// Reads `text`. What is not imitated is refused with `ParameterInvalid`.
pub fn parse(text: &str) -> Result<Query, Refusal> {
    let tokens = tokenise(text)?;
    if tokens.is_empty() {
        return Ok(Query::All);
    }
    let mut parser = Parser { tokens: &tokens, conditions: 0 };
    let query = parser.or(0)?;
    match parser.tokens.first() {
        None => Ok(query),
        Some(token) => Err(invalid(format!("unexpected {token:?} in the query"))),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Colon,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    /// `<`, `<=`, `>`, `>=` or `=`.
    Compare(&'static str),
}

fn tokenise(text: &str) -> Result<Vec<Token>, Refusal> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let token = match char {
            _ if char.is_whitespace() => continue,
            ':' => Token::Colon,
            '(' => Token::Open,
            ')' => Token::Close,
            '|' => return Err(invalid("unexpected | in the query")),
            '[' => Token::OpenBracket,
            ']' => Token::CloseBracket,
            '=' => Token::Compare("="),
            '<' if chars.next_if_eq(&'=').is_some() => Token::Compare("<="),
            '<' => Token::Compare("<"),
            '>' if chars.next_if_eq(&'=').is_some() => Token::Compare(">="),
            '>' => Token::Compare(">"),
            '"' => {
                let mut quoted = String::new();
                loop {
                    match chars.next().ok_or_else(|| invalid("a quote is not closed"))? {
                        '"' => break Token::Quoted(quoted),
                        '\\' => quoted.extend(chars.next()),
                        char => quoted.push(char),
                    }
                }
            }
            _ => {
                let mut word = String::from(char);
                let ends = |char: char| char.is_whitespace() || ":()|<>=[]\"".contains(char);
                while let Some(char) = chars.next_if(|char| !ends(*char)) {
                    word.push(char);
                }
                Token::Word(word)
            }
        };
        tokens.push(token);
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    conditions: usize,
}

impl Parser<'_> {
    fn or(&mut self, depth: usize) -> Result<Query, Refusal> {
        let mut parts = vec![self.and(depth)?];
        while self.take_operator("or") {
            parts.push(self.and(depth)?);
        }
        Ok(one_or(parts, Query::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Query, Refusal> {
        let mut parts = vec![self.not(depth)?];
        loop {
            let explicit = self.take_operator("and");
            let ends = match self.tokens.first() {
                None | Some(Token::Close) => true,
                Some(token) => is_operator(token, "or"),
            };
            if ends && !explicit {
                return Ok(one_or(parts, Query::And));
            }
            parts.push(self.not(depth)?);
        }
    }

    fn not(&mut self, depth: usize) -> Result<Query, Refusal> {
        if depth > DEPTH_MAX {
            return Err(invalid(format!("a query nests at most {DEPTH_MAX} deep")));
        }
        if self.take_operator("not") {
            return Ok(Query::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.take(&Token::Open) {
            let query = self.or(depth + 1)?;
            if !self.take(&Token::Close) {
                return Err(invalid("a parenthesis is not closed"));
            }
            return Ok(query);
        }
        if self.take(&Token::Word("*".to_owned())) {
            return Ok(Query::All);
        }
        self.condition()
    }

    fn condition(&mut self) -> Result<Query, Refusal> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            let count = self.conditions;
            return Err(refused(format!("condition number {count} is more than {CONDITIONS_MAX}")));
        }
        let mut key = self.text()?;
        if let Some(value) = self.between()? {
            return Ok(Query::Field { key, value });
        }
        self.colon(&key)?;
        if key == "__tag__" {
            key = format!("__tag__:{}", self.text()?);
            self.colon(&key)?;
        }
        let value = match self.tokens.first() {
            Some(Token::Word(word)) => word_value(word)?,
            Some(Token::Quoted(text)) => Value::Words(text.clone()),
            _ => return Err(invalid(format!("{key}: has no value"))),
        };
        self.tokens = &self.tokens[1..];
        Ok(Query::Field { key, value })
    }

    /// A comparison or `in`, if that is what stands behind the key.
    fn between(&mut self) -> Result<Option<Value>, Refusal> {
        use Bound::{Excluded, Included, Unbounded};
        if let Some((Token::Compare(operator), rest)) = self.tokens.split_first() {
            self.tokens = rest;
            let number = self.number()?;
            let (low, high) = match *operator {
                "<" => (Unbounded, Excluded(number)),
                "<=" => (Unbounded, Included(number)),
                ">" => (Excluded(number), Unbounded),
                ">=" => (Included(number), Unbounded),
                _ => (Included(number), Included(number)),
            };
            return Ok(Some(Value::Between(low, high)));
        }
        let opens = matches!(self.tokens.get(1), Some(Token::Open | Token::OpenBracket));
        if !(opens && self.take_operator("in")) {
            return Ok(None);
        }
        let includes_low = self.take(&Token::OpenBracket);
        if !includes_low {
            self.take(&Token::Open);
        }
        let (low, high) = (self.number()?, self.number()?);
        let includes_high = self.take(&Token::CloseBracket);
        if !includes_high && !self.take(&Token::Close) {
            return Err(invalid("a range is not closed"));
        }
        let bound = |number, included| if included { Included(number) } else { Excluded(number) };
        Ok(Some(Value::Between(bound(low, includes_low), bound(high, includes_high))))
    }

    fn number(&mut self) -> Result<Number, Refusal> {
        let number = match self.tokens.split_first() {
            Some((Token::Word(word), rest)) => Number::parse(word).map(|number| (number, rest)),
            _ => None,
        };
        let (number, rest) = number.ok_or_else(|| invalid("a number is missing"))?;
        self.tokens = rest;
        Ok(number)
    }

    fn text(&mut self) -> Result<String, Refusal> {
        let Some((Token::Word(text) | Token::Quoted(text), rest)) = self.tokens.split_first()
        else {
            return Err(invalid("a condition is missing"));
        };
        self.tokens = rest;
        Ok(text.clone())
    }

    fn colon(&mut self, key: &str) -> Result<(), Refusal> {
        if self.take(&Token::Colon) {
            return Ok(());
        }
        Err(invalid(format!("{key} has no colon: full-text search is not imitated")))
    }

    fn take(&mut self, token: &Token) -> bool {
        let takes = self.tokens.first() == Some(token);
        if takes {
            self.tokens = &self.tokens[1..];
        }
        takes
    }

    fn take_operator(&mut self, name: &str) -> bool {
        let takes = self.tokens.first().is_some_and(|token| is_operator(token, name));
        if takes {
            self.tokens = &self.tokens[1..];
        }
        takes
    }
}

fn is_operator(token: &Token, name: &str) -> bool {
    matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(name))
}

fn word_value(word: &str) -> Result<Value, Refusal> {
    let prefix = word.strip_suffix('*');
    if prefix.unwrap_or(word).contains(['*', '?']) {
        return Err(refused("only support * or ? in the middle or end of the query"));
    }
    Ok(match prefix {
        None => Value::Words(word.to_owned()),
        Some("") => Value::Any,
        Some(prefix) => Value::Prefix(prefix.to_owned()),
    })
}

fn one_or(mut parts: Vec<Query>, many: impl FnOnce(Vec<Query>) -> Query) -> Query {
    if parts.len() == 1 { parts.remove(0) } else { many(parts) }
}

/// SLS's words for a query that cannot be read (aliyun, FAQ on query and analysis errors).
fn invalid(message: impl std::fmt::Display) -> Refusal {
    refused(format!("ErrorType:QueryParseError.ErrorMessage:syntax error: {message}"))
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Bound::{Excluded, Included, Unbounded};
    use Number::{Double, Long};
    use proptest::prelude::*;

    fn words(key: &str, value: &str) -> Query {
        Query::Field { key: key.to_owned(), value: Value::Words(value.to_owned()) }
    }

    #[test]
    fn the_imitated_part_is_read() {
        let (a, b, c) = (words("a", "1"), words("b", "2"), words("c", "3"));
        let not = |query: &Query| Query::Not(Box::new(query.clone()));
        let and = |parts: &[&Query]| Query::And(parts.iter().map(|q| (*q).clone()).collect());
        let or = |parts: &[&Query]| Query::Or(parts.iter().map(|q| (*q).clone()).collect());
        let field = |key: &str, value| Query::Field { key: key.to_owned(), value };
        for (text, wanted) in [
            ("", Query::All),
            (" * ", Query::All),
            ("a: 1", a.clone()),
            ("a:1 and b:2", and(&[&a, &b])),
            ("a:1 b:2 AND c:3", and(&[&a, &b, &c])),
            ("a:1 or b:2 and c:3", or(&[&a, &and(&[&b, &c])])),
            ("(a:1 or b:2) and c:3", and(&[&or(&[&a, &b]), &c])),
            ("not a:1 not b:2", and(&[&not(&a), &not(&b)])),
            ("* and a:1", and(&[&Query::All, &a])),
            (r#"a: "x: (y) | \"z\"""#, words("a", r#"x: (y) | "z""#)),
            (r#""a b": 1"#, words("a b", "1")),
            (r#"__tag__:__batch__: "1/2""#, words("__tag__:__batch__", "1/2")),
            (r#""__tag__:__batch__": x"#, words("__tag__:__batch__", "x")),
            ("a: *", field("a", Value::Any)),
            ("a: x*", field("a", Value::Prefix("x".to_owned()))),
            ("a >= 3", field("a", Value::Between(Included(Long(3)), Unbounded))),
            ("a>3 b:2", and(&[&field("a", Value::Between(Excluded(Long(3)), Unbounded)), &b])),
            ("a < -1.5", field("a", Value::Between(Unbounded, Excluded(Double(-1.5))))),
            ("a<=3", field("a", Value::Between(Unbounded, Included(Long(3))))),
            ("a = 3", field("a", Value::Between(Included(Long(3)), Included(Long(3))))),
            ("a in [1 3]", field("a", Value::Between(Included(Long(1)), Included(Long(3))))),
            ("a in (1 3]", field("a", Value::Between(Excluded(Long(1)), Included(Long(3))))),
            ("a in [1 3)", field("a", Value::Between(Included(Long(1)), Excluded(Long(3))))),
            ("in: 1", words("in", "1")),
        ] {
            assert_eq!(parse(text), Ok(wanted), "{text}");
        }
        assert_eq!(parse(r#""and": 1"#), Ok(words("and", "1")));
    }

    #[test]
    fn the_rest_is_refused() {
        let deep = format!("{}a:1{}", "(".repeat(40), ")".repeat(40));
        let long = "a:1 ".repeat(31);
        for text in [
            "* | select 1",
            "a:1 |",
            "word",
            "a:",
            "a:1 and",
            "or a:1",
            "(a:1",
            "a:1)",
            "a > b",
            "a >",
            "a in [1]",
            "a in [1 2",
            "a in 1 2",
            "a: [1 2]",
            "a: \"x",
            "a: x*y",
            "a: ?",
            "__tag__:x",
            "not",
            &deep,
            &long,
        ] {
            assert_eq!(parse(text).err().unwrap().code, "ParameterInvalid", "{text}");
        }
        let many = parse(&long).err().unwrap();
        assert_eq!(many.message, "condition number 31 is more than 30");
    }

    #[test]
    fn whole_numbers_are_compared_to_the_last_digit() {
        let number = |text: &str| Number::parse(text).unwrap();
        assert!(number("1715000000000000001") > number("1715000000000000000"));
        assert!(number("2.5") > number("2") && number("-1e3") < number("-999"));
        assert_eq!(Number::parse("x"), None);
        assert_eq!(Number::parse("inf"), None);
    }

    proptest! {
        #[test]
        fn no_query_panics(text in r#"( |and|or|not|in|1|[a-c:"()*\\|<>=\[\]]|__tag__){0,60}"#) {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
