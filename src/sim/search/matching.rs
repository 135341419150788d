//! Decides whether a log matches a query, by the words that the index makes of its fields.
//!
//! SLS cuts a text field at the index's delimiters and finds words, not substrings. A key that the
//! index does not name cannot be searched.

use std::ops::{Bound, RangeBounds as _};

use serde_json::Value as Json;

use crate::sim::answer::{Code, Refusal};
use crate::sim::search::query::{Number, Query, Value};
use crate::wire::log_group::{LogGroupView, LogView};

/// What cuts fields into words whose index names no delimiters (aliyun, configure indexes: the
/// default delimiters).
const DELIMITERS_DEFAULT: &str = ", '\";=()[]{}?@&<>/:\n\t\r";

/// How much of a value search sees (aliyun, limits of query and analysis: 512 KB).
const VALUE_BYTES_MAX: usize = 512 * 1024;

/// A query, made ready for one index.
pub struct Matcher {
    condition: Condition,
}

enum Condition {
    All,
    Field(Field),
    Not(Box<Condition>),
    And(Vec<Condition>),
    Or(Vec<Condition>),
}

struct Field {
    key: String,
    delimiters: Vec<char>,
    case_sensitive: bool,
    wanted: Wanted,
}

enum Wanted {
    Any,
    Prefix(String),
    Words(Vec<String>),
    /// A field of type long or double between these.
    Between(Bound<Number>, Bound<Number>),
}

impl Matcher {
    /// Fails with `ParameterInvalid` if `index` does not have a key of `query`.
    pub fn new(query: &Query, index: &Json) -> Result<Self, Refusal> {
        Ok(Self { condition: condition(query, index)? })
    }

    pub fn matches(&self, group: &LogGroupView<'_>, log: &LogView<'_>) -> bool {
        holds(&self.condition, group, log)
    }
}

fn condition(query: &Query, index: &Json) -> Result<Condition, Refusal> {
    let all = |parts: &[Query]| {
        parts.iter().map(|part| condition(part, index)).collect::<Result<Vec<_>, _>>()
    };
    Ok(match query {
        Query::All => Condition::All,
        Query::Not(inner) => Condition::Not(Box::new(condition(inner, index)?)),
        Query::And(parts) => Condition::And(all(parts)?),
        Query::Or(parts) => Condition::Or(all(parts)?),
        Query::Field { key, value } => Condition::Field(field(key, value, index)?),
    })
}

fn field(key: &str, value: &Value, index: &Json) -> Result<Field, Refusal> {
    let invalid = |message| Refusal::new(Code::ParameterInvalid, message);
    let config = &index["keys"][key];
    let is_own = key == "__source__" || key == "__topic__" || key.starts_with("__tag__:");
    if config.is_null() && !is_own {
        return Err(invalid(format!(
            "key ({key}) is not config as key value config,if symbol : is in your log,please wrap \
             : with quotation mark \""
        )));
    }
    let delimiters: Vec<char> = match config["token"].as_array() {
        Some(tokens) => tokens.iter().filter_map(Json::as_str).flat_map(str::chars).collect(),
        // SLS's own fields are one word (aliyun, reserved fields).
        None if config.is_null() => Vec::new(),
        None => DELIMITERS_DEFAULT.chars().collect(),
    };
    let case_sensitive = config["caseSensitive"].as_bool().unwrap_or(false);
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let is_number = matches!(config["type"].as_str(), Some("long" | "double"));
    let wanted = match value {
        Value::Any => Wanted::Any,
        Value::Words(text) if is_number => {
            let number = Number::parse(text);
            let number = number.ok_or_else(|| invalid(format!("{key}: {text} is not a number")))?;
            Wanted::Between(Bound::Included(number), Bound::Included(number))
        }
        Value::Between(low, high) if is_number => Wanted::Between(*low, *high),
        Value::Between(..) => {
            return Err(invalid(format!("{key} is a text: it cannot be compared with a number")));
        }
        Value::Prefix(_) if is_number => {
            return Err(invalid(format!("{key} is a number: it has no prefix")));
        }
        Value::Prefix(prefix) => Wanted::Prefix(fold(prefix)),
        Value::Words(text) => {
            let words = text.split(delimiters.as_slice()).filter(|word| !word.is_empty());
            Wanted::Words(words.map(fold).collect())
        }
    };
    Ok(Field { key: key.to_owned(), delimiters, case_sensitive, wanted })
}

fn holds(condition: &Condition, group: &LogGroupView<'_>, log: &LogView<'_>) -> bool {
    match condition {
        Condition::All => true,
        Condition::Not(inner) => !holds(inner, group, log),
        Condition::And(parts) => parts.iter().all(|part| holds(part, group, log)),
        Condition::Or(parts) => parts.iter().any(|part| holds(part, group, log)),
        Condition::Field(field) => {
            find(&field.key, group, log).is_some_and(|value| field.matches(value))
        }
    }
}

/// The text of `key`; only UTF-8 is ever stored.
fn find<'a>(key: &str, group: &LogGroupView<'a>, log: &LogView<'a>) -> Option<&'a str> {
    let bytes = match key {
        "__source__" => group.source?,
        "__topic__" => group.topic?,
        _ => match key.strip_prefix("__tag__:") {
            Some(name) => group.tag(name)?,
            None => log.contents.iter().find(|(k, _)| *k == key.as_bytes())?.1,
        },
    };
    let text = std::str::from_utf8(bytes).ok()?;
    Some(&text[..text.floor_char_boundary(VALUE_BYTES_MAX)])
}

impl Field {
    fn matches(&self, text: &str) -> bool {
        match &self.wanted {
            Wanted::Any => true,
            Wanted::Between(low, high) => {
                Number::parse(text.trim()).is_some_and(|number| (*low, *high).contains(&number))
            }
            Wanted::Prefix(prefix) => self.any_word(text, |word| word.starts_with(prefix.as_str())),
            // Without a word in it, as an empty text, nothing is found.
            Wanted::Words(wanted) => {
                let is_there = |wanted: &String| self.any_word(text, |word| word == wanted);
                !wanted.is_empty() && wanted.iter().all(is_there)
            }
        }
    }

    /// Whether a word of `text` is `wanted`, in the case that counts.
    fn any_word(&self, text: &str, wanted: impl Fn(&str) -> bool) -> bool {
        let mut words = text.split(self.delimiters.as_slice()).filter(|word| !word.is_empty());
        words.any(
            |word| if self.case_sensitive { wanted(word) } else { wanted(&word.to_lowercase()) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::search::query::parse;
    use crate::wire::log_group::LogGroupWriter;
    use serde_json::json;

    #[test]
    fn fields_are_found_by_their_words() {
        let mut writer = LogGroupWriter::default();
        writer.begin_log(1, 0);
        writer.field("id", b"0190-ab CD");
        writer.field("Case", b"Ab");
        writer.field("tokens", b"12");
        writer.field("empty", b"");
        writer.field("hidden", b"x");
        writer.field("version", b"1715000000000000001");
        let long = format!("begin {} end", "x".repeat(VALUE_BYTES_MAX));
        writer.field("long", long.as_bytes());
        writer.end_log();
        writer.finish(Some("top"), Some("dify"), &[("__batch__", "7/8")]);
        let group = LogGroupView::parse(writer.bytes()).unwrap();
        let index = json!({"keys": {
            "id": {"type": "text", "token": [" ", "\n"]},
            "Case": {"type": "text", "caseSensitive": true},
            "tokens": {"type": "long"},
            "empty": {"type": "text"},
            "version": {"type": "long"},
            "long": {"type": "text", "token": [" "]},
        }});
        for (query, wanted) in [
            ("*", true),
            ("id: 0190-ab", true),
            ("id: cd", true),
            ("id: \"cd 0190-AB\"", true),
            ("id: 0190", false),
            ("id: 019*", true),
            ("id: 90*", false),
            ("Case: Ab", true),
            ("Case: ab", false),
            ("tokens: 12", true),
            ("tokens: 12.0", true),
            ("tokens: 1", false),
            ("tokens >= 12", true),
            ("tokens > 12", false),
            ("tokens < 12.5", true),
            ("tokens in [1 12]", true),
            ("tokens in (12 20]", false),
            ("version = 1715000000000000001", true),
            ("version = 1715000000000000000", false),
            ("not version > -1000000", false),
            ("long: begin", true),
            ("long: end", false),
            ("empty: *", true),
            ("empty: \"\"", false),
            ("__source__: dify", true),
            ("__topic__: nope", false),
            ("__tag__:__batch__: \"7/8\"", true),
            ("__tag__:__batch__: \"7/9\"", false),
            ("__tag__:__batch__: 7", false),
            ("__tag__:__batch__: \"8/7\"", false),
            ("__tag__:__batch__: 7*", true),
            ("__source__: DIFY", true),
            ("__tag__:other: x", false),
            ("not id: cd", false),
            ("not id: zz and tokens: 12", true),
            ("id: zz or tokens: 12", true),
        ] {
            let matcher = Matcher::new(&parse(query).unwrap(), &index).unwrap();
            assert_eq!(matcher.matches(&group, &group.logs[0]), wanted, "{query}");
        }
        for query in ["hidden: x", "tokens: many", "tokens: 1*", "id > 3"] {
            let refusal = Matcher::new(&parse(query).unwrap(), &index).err().unwrap();
            assert_eq!(refusal.code, "ParameterInvalid", "{query}");
        }
    }
}
