//! The index that Dify's extension makes for a logstore: without it no query of Dify finds a log.

use serde_json::{Map, Value, json};

use crate::record::table::{Column, ColumnKind, Table};

/// `DEFAULT_TOKEN_LIST` of Dify's `aliyun_logstore.py`.
const TOKENS: [&str; 20] = [
    ",", " ", "\"", ";", "=", "(", ")", "[", "]", "{", "}", "?", "@", "&", "<", ">", "/", ":",
    "\n", "\t",
];

/// SQL on SLS sees that many bytes of a text at most; SLS's own default is 2,048.
const TEXT_BYTES_MAX: u32 = 16_384;

/// The index of `table`'s logstore: a key for each column of the source, and for each field that
/// only the logs have.
pub fn index(table: Table, columns: &[Column]) -> Value {
    let mut keys = Map::new();
    for column in columns {
        keys.insert(column.name.clone(), key(column.kind));
    }
    keys.insert("log_version".to_owned(), key(ColumnKind::Int8));
    if table == Table::Runs {
        for name in ["error_message", "started_at"] {
            keys.insert(name.to_owned(), key(ColumnKind::Text));
        }
    }
    json!({
        "line": {"token": TOKENS, "caseSensitive": false, "chn": true},
        "keys": keys,
        "max_text_len": TEXT_BYTES_MAX,
        "log_reduce": false,
        "scan_index": true,
    })
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

    #[test]
    fn every_column_has_a_key_of_its_type() {
        let column = |name: &str, kind| Column { name: name.to_owned(), kind };
        let columns = [
            column("id", ColumnKind::Uuid),
            column("total_tokens", ColumnKind::Int4),
            column("elapsed_time", ColumnKind::Float8),
            column("created_at", ColumnKind::Timestamp),
        ];
        let of = |table| {
            let index = index(table, &columns);
            let types = index["keys"].as_object().unwrap().iter();
            types
                .map(|(name, key)| format!("{name} {}", key["type"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        let common = [
            "id text",
            "total_tokens long",
            "elapsed_time double",
            "created_at text",
            "log_version long",
        ];
        assert_eq!(of(Table::NodeExecutions), common);
        assert_eq!(of(Table::Runs)[5..], ["error_message text", "started_at text"]);
        assert_eq!(index(Table::Runs, &columns)["scan_index"], true);
    }
}
