//! Decides what becomes of an index that is there already: the rules of `_merge_index_configs` in
//! Dify's `aliyun_logstore.py`.
//!
//! What somebody has made by hand stays: keys that Dify does not know, how a key of the right type
//! is divided into words, `scan_index`, `max_text_len`. (Dify's own merge loses `max_text_len`,
//! because its SDK does not carry it.) Names in SLS differ by more than their case, so a key that
//! is written otherwise than Dify writes it makes room for Dify's.

use std::fmt;

use serde_json::{Map, Value};

use crate::dify::index::line;

/// What GetIndex tells beside the index, and UpdateIndex does not take.
const ONLY_TOLD: [&str; 3] = ["index_mode", "lastModifyTime", "storage"];

/// An index as it should be, and in what it differs from what is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    pub index: Value,
    /// Empty: nothing has to be done.
    pub changes: Vec<Change>,
    /// Keys that Dify does not know.
    pub custom_keys: usize,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key that was missing.
    Added(String),
    /// A key of another type.
    Retyped { key: String, from: String, to: String },
    /// A key whose name was written in another case.
    Renamed { from: String, to: String },
    /// The full-text index was missing. It is made only along with another change, as Dify does.
    Line,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(key) => write!(f, "{key} added"),
            Self::Retyped { key, from, to } => write!(f, "{key} {to} instead of {from}"),
            Self::Renamed { from, to } => write!(f, "{to} instead of {from}"),
            Self::Line => f.write_str("full-text index added"),
        }
    }
}

/// Merges what Dify needs, `required` (from [`crate::dify::index::index`]), into `existing`, an
/// answer of GetIndex.
pub fn merge(existing: &Value, required: &Value) -> Merged {
    let mut index = existing.as_object().cloned().unwrap_or_default();
    index.retain(|name, _| !ONLY_TOLD.contains(&name.as_str()));
    let mut keys = index.get("keys").and_then(Value::as_object).cloned().unwrap_or_default();
    let no_keys = Map::new();
    let required = required["keys"].as_object().unwrap_or(&no_keys);
    let mut changes = Vec::new();
    for (name, key) in required {
        let is_miswritten = |other: &String| other != name && other.eq_ignore_ascii_case(name);
        let miswritten: Vec<_> =
            keys.keys().filter(|other| is_miswritten(other)).cloned().collect();
        for from in &miswritten {
            keys.shift_remove(from);
            changes.push(Change::Renamed { from: from.clone(), to: name.clone() });
        }
        match keys.get(name).map(kind) {
            None if miswritten.is_empty() => changes.push(Change::Added(name.clone())),
            None => {}
            Some(found) if are_equal(found, kind(key)) => continue,
            Some(found) => changes.push(Change::Retyped {
                key: name.clone(),
                from: found.to_owned(),
                to: kind(key).to_owned(),
            }),
        }
        keys.insert(name.clone(), key.clone());
    }
    if !changes.is_empty() && !index.get("line").is_some_and(Value::is_object) {
        index.insert("line".to_owned(), line());
        changes.push(Change::Line);
    }
    let custom_keys = keys.len() - required.len();
    index.insert("keys".to_owned(), Value::Object(keys));
    Merged { index: Value::Object(index), changes, custom_keys }
}

/// The type of a key; SLS takes one without for a text.
fn kind(key: &Value) -> &str {
    key.get("type").and_then(Value::as_str).unwrap_or("text")
}

/// Whether Dify can live with `found`. A person may have chosen json for a text that holds it.
fn are_equal(found: &str, required: &str) -> bool {
    let is_text = |kind| matches!(kind, "json" | "text");
    found == required || (is_text(found) && is_text(required))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TYPES: [&str; 4] = ["text", "long", "double", "json"];

    fn required() -> Value {
        json!({
            "line": line(),
            "keys": {
                "status": {"type": "text", "token": [","], "doc_value": true},
                "total_tokens": {"type": "long", "doc_value": true},
            },
            "max_text_len": 16_384,
            "scan_index": true,
        })
    }

    fn with_keys(keys: Value) -> Value {
        json!({"line": {"token": ["x"]}, "keys": keys, "max_text_len": 2048, "scan_index": false,
               "index_mode": "v2", "lastModifyTime": 1, "storage": "pg", "ttl": 30,
               "log_reduce": true, "log_reduce_white_list": ["a"]})
    }

    /// Whatever is there, the result has Dify's keys in a type that Dify can live with, keeps all
    /// else, and has nothing left to merge.
    fn check(existing: &Value) -> Merged {
        let required = required();
        let merged = merge(existing, &required);
        let before = existing["keys"].as_object().cloned().unwrap_or_default();
        let after = merged.index["keys"].as_object().unwrap();
        for (name, key) in required["keys"].as_object().unwrap() {
            assert!(are_equal(kind(&after[name]), kind(key)), "{name} in {after:?}");
        }
        let is_known = |name: &str| ["status", "total_tokens"].contains(&&*name.to_lowercase());
        for (name, key) in before.iter().filter(|(name, _)| !is_known(name)) {
            assert_eq!(after.get(name), Some(key), "{name} is not Dify's");
        }
        for name in ["scan_index", "max_text_len", "log_reduce", "log_reduce_white_list", "ttl"] {
            assert_eq!(merged.index.get(name), existing.get(name), "{name}");
        }
        for name in ONLY_TOLD {
            assert_eq!(merged.index.get(name), None);
        }
        let again = merge(&merged.index, &required);
        assert_eq!((again.changes, again.index), (vec![], merged.index.clone()), "idempotent");
        merged
    }

    #[test]
    fn every_small_index_is_merged() {
        // Each of Dify's two keys: missing, or of any type, in the right case or another; with a
        // key of one's own or without.
        let mut ways: Vec<Option<(bool, &str)>> = vec![None];
        ways.extend(TYPES.iter().flat_map(|kind| [Some((true, *kind)), Some((false, *kind))]));
        for status in &ways {
            for tokens in &ways {
                for custom in [false, true] {
                    let mut keys = Map::new();
                    let mut expected = Vec::new();
                    for (name, way) in [("status", status), ("total_tokens", tokens)] {
                        let wanted = if name == "status" { "text" } else { "long" };
                        match way {
                            None => expected.push(Change::Added(name.to_owned())),
                            Some((true, found)) => {
                                keys.insert(name.to_owned(), json!({"type": found, "mine": 1}));
                                if !are_equal(found, wanted) {
                                    expected.push(Change::Retyped {
                                        key: name.to_owned(),
                                        from: (*found).to_owned(),
                                        to: wanted.to_owned(),
                                    });
                                }
                            }
                            Some((false, found)) => {
                                let from = name.replace('t', "T");
                                keys.insert(from.clone(), json!({"type": found}));
                                let to = name.to_owned();
                                expected.push(Change::Renamed { from, to });
                            }
                        }
                    }
                    if custom {
                        keys.insert("mine".to_owned(), json!({"type": "json", "index_all": true}));
                    }
                    let merged = check(&with_keys(Value::Object(keys.clone())));
                    assert_eq!(merged.changes, expected, "{keys:?}");
                    assert_eq!(merged.custom_keys, usize::from(custom));
                    let kept = merged.index["keys"]["status"].get("mine").is_some();
                    let is_right = matches!(status, Some((true, "text" | "json")));
                    assert_eq!(kept, is_right, "a key of the right type stays as it is");
                }
            }
        }
    }

    #[test]
    fn json_and_text_are_equal_and_no_other_two_types() {
        for found in TYPES {
            for required in TYPES {
                let both_text = found != "long" && found != "double" && required != "long";
                let expected = found == required || (both_text && required != "double");
                assert_eq!(are_equal(found, required), expected, "{found} {required}");
            }
        }
    }

    #[test]
    fn a_missing_full_text_index_is_made_only_along_with_a_key() {
        let keys = required()["keys"].clone();
        assert_eq!(check(&json!({"keys": keys})).changes, []);
        let merged = check(&json!({"keys": {"status": {"type": "text"}}}));
        assert_eq!(merged.changes, [Change::Added("total_tokens".to_owned()), Change::Line]);
        assert_eq!(merged.index["line"], line());
        let bare = check(&json!({"line": {"token": ["x"]}}));
        assert_eq!(bare.changes.len(), 2);
        assert_eq!(bare.index["line"], json!({"token": ["x"]}));
    }
}
