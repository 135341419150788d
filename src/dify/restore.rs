//! From a log back to a row: what each column held, as a text that Postgres reads.
//!
//! Not everything comes back as it was: a log says `{}` for NULL, `""` and `{}` of a JSON column, `""`
//! for NULL and `""` of a text, and `end_user` for `end-user`; JSON comes back with `\uXXXX` escapes,
//! as Python's `json.dumps` writes it. What comes back makes the same log again: whoever restores
//! checks that by converting it.

use std::collections::HashMap;

use crate::dify::conversion::Conversion;
use crate::dify::fields::{Fields, Form, Null, UnfitColumns};
use crate::dify::json::Transcoder;

/// Turns logs back into rows of one [`Conversion`].
pub struct Restorer {
    fields: Fields,
    transcoder: Transcoder,
    columns: usize,
}

/// Why a log is no row of the conversion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARow {
    #[error("it has the field {0}, which no column of its conversion explains")]
    UnknownField(String),
    #[error("its field {0} is not UTF-8")]
    NotUtf8(String),
}

impl Restorer {
    /// Fails when the conversion is not one that this program knows.
    pub fn new(conversion: &Conversion) -> Result<Self, UnfitColumns> {
        Ok(Self {
            fields: Fields::of(conversion)?,
            transcoder: Transcoder::default(),
            columns: conversion.columns.len(),
        })
    }

    /// The values of the conversion's columns, in their order, from a log's fields. `None` is NULL.
    pub fn row(&mut self, log: &[(&[u8], &[u8])]) -> Result<Vec<Option<String>>, NotARow> {
        let mut left: HashMap<&[u8], &[u8]> = log.iter().copied().collect();
        let mut row = vec![None; self.columns];
        for field in &self.fields.list {
            let Some(value) = left.remove(field.key.as_bytes()) else { continue };
            let Some((_, at)) = &field.column else { continue };
            let text =
                std::str::from_utf8(value).map_err(|_| NotARow::NotUtf8(field.key.clone()))?;
            row[*at] = match field.form {
                Form::Value(Null::Empty) if text.is_empty() => None,
                Form::Json => Some(escaped(text, &mut self.transcoder)),
                // It says nothing of what the column held.
                Form::EmptyJson => None,
                _ => Some(text.to_owned()),
            };
        }
        match left.keys().next() {
            Some(key) => Err(NotARow::UnknownField(String::from_utf8_lossy(key).into_owned())),
            None => Ok(row),
        }
    }
}

/// The text with `\uXXXX` for what is not ASCII, if that reads as the same JSON; else as it is.
fn escaped(text: &str, transcoder: &mut Transcoder) -> String {
    if text.bytes().all(|byte| byte.is_ascii() && byte != 0x7f) {
        return text.to_owned();
    }
    let mut ascii = String::with_capacity(text.len() * 2);
    for char in text.chars() {
        if char.is_ascii() && char != '\u{7f}' {
            ascii.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            ascii += &format!("\\u{unit:04x}");
        }
    }
    let mut back = Vec::with_capacity(text.len());
    let is_json = transcoder.transcode(&ascii, &mut back);
    if is_json && back == text.as_bytes() { ascii } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_comes_back_as_python_writes_it() {
        let mut transcoder = Transcoder::default();
        let mut check = |text: &str, wanted: &str| {
            assert_eq!(escaped(text, &mut transcoder), wanted, "{text}");
        };
        check("{\"a\": \"你好 😀\"}", "{\"a\": \"\\u4f60\\u597d \\ud83d\\ude00\"}");
        check("{\"a\": \"\u{7f}\"}", "{\"a\": \"\\u007f\"}");
        check("{\"a\": 1}", "{\"a\": 1}");
        // No JSON: an escape would stay one.
        check("你好", "你好");
    }

    proptest! {
        #[test]
        fn what_comes_back_makes_the_same_log(text in "\\PC{0,40}", is_json: bool) {
            let mut transcoder = Transcoder::default();
            let text = match is_json {
                true => serde_json::to_string(&text).unwrap(),
                false => text,
            };
            let mut log = Vec::new();
            transcoder.transcode(&text, &mut log);
            let log = String::from_utf8(log).unwrap();
            let restored = escaped(&log, &mut transcoder);
            let mut again = Vec::new();
            transcoder.transcode(&restored, &mut again);
            prop_assert_eq!(String::from_utf8(again).unwrap(), log);
        }
    }
}
