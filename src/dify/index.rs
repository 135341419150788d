//! The index that Dify's extension makes for a logstore: without it no query of Dify finds a log.

pub mod merge;

use serde_json::{Map, Value, json};

use crate::dify::fields::Fields;
use crate::record::table::{Column, ColumnKind};

/// `DEFAULT_TOKEN_LIST` of Dify's `aliyun_logstore.py`, which has the quotation mark twice.
const TOKENS: [&str; 20] = [
    ",", " ", "\"", ";", "=", "(", ")", "[", "]", "{", "}", "?", "@", "&", "<", ">", "/", ":",
    "\n", "\t",
];

/// SQL on SLS sees that many bytes of a text at most; SLS's own default is 2,048.
const TEXT_BYTES_MAX: u32 = 16_384;

/// The index of a logstore: a key for each of the source's `columns`, as Dify makes it, and one for
/// each of the `fields` of its logs that has no column (`log_version`, `error_message`,
/// `started_at`; in an old database also what newer versions of Dify have a column for).
pub fn index(columns: &[Column], fields: &Fields) -> Value {
    let mut keys = Map::new();
    for column in columns {
        keys.insert(column.name.clone(), key(column.kind));
    }
    for field in &fields.list {
        keys.entry(field.key.as_str()).or_insert_with(|| key(field.kind));
    }
    json!({
        "line": line(),
        "keys": keys,
        "max_text_len": TEXT_BYTES_MAX,
        "log_reduce": false,
        "scan_index": true,
    })
}

/// The full-text index of whole logs.
fn line() -> Value {
    json!({"token": TOKENS, "caseSensitive": false, "chn": true})
}

fn key(kind: ColumnKind) -> Value {
    let plain = |kind: &str| json!({"type": kind, "alias": "", "doc_value": true});
    match kind {
        ColumnKind::Int4 | ColumnKind::Int8 => plain("long"),
        ColumnKind::Float8 => plain("double"),
        ColumnKind::Uuid | ColumnKind::Text | ColumnKind::Timestamp => json!({
            "type": "text", "token": TOKENS, "caseSensitive": false, "chn": true, "alias": "",
            "doc_value": true,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dify::conversion::{Conversion, LogTime, RULES};
    use crate::record::table::Table;

    fn types(table: Table, columns: &[(&str, ColumnKind)]) -> Vec<String> {
        let columns: Vec<_> = columns
            .iter()
            .map(|(name, kind)| Column { name: (*name).to_owned(), kind: *kind })
            .collect();
        let conversion = Conversion {
            rules: RULES,
            table,
            columns: columns.clone(),
            put_graph: true,
            log_time: LogTime::FinishedAt,
            revision: 0,
        };
        let index = index(&columns, &Fields::of(&conversion).unwrap());
        assert_eq!(index["scan_index"], true);
        let keys = index["keys"].as_object().unwrap().iter();
        keys.map(|(name, key)| format!("{name} {}", key["type"].as_str().unwrap())).collect()
    }

    #[test]
    fn every_column_has_a_key_of_its_type_and_so_have_the_fields_of_the_logs_alone() {
        use ColumnKind::{Float8, Int4, Int8, Text, Timestamp, Uuid};
        let runs = [
            ("id", Uuid),
            ("tenant_id", Uuid),
            ("app_id", Uuid),
            ("workflow_id", Uuid),
            ("type", Text),
            ("triggered_from", Text),
            ("version", Text),
            ("graph", Text),
            ("inputs", Text),
            ("status", Text),
            ("outputs", Text),
            ("error", Text),
            ("elapsed_time", Float8),
            ("total_tokens", Int8),
            ("created_by_role", Text),
            ("created_by", Uuid),
            ("created_at", Timestamp),
            ("finished_at", Timestamp),
            ("sequence_number", Int4),
        ];
        let types = types(Table::Runs, &runs);
        for (at, (name, kind)) in runs.iter().enumerate() {
            let kind = match kind {
                Int4 | Int8 => "long",
                Float8 => "double",
                Text | Timestamp | Uuid => "text",
            };
            assert_eq!(types[at], format!("{name} {kind}"));
        }
        let only_in_logs = [
            "log_version long",
            "error_message text",
            "total_steps long",
            "exceptions_count long",
            "started_at text",
        ];
        assert_eq!(types[runs.len()..], only_in_logs);
    }
}
