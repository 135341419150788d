//! A logstore as a table of SQLite, with the columns that its index makes.
//!
//! The table grows with the logstore and is made anew when the index changes or logs were edited. It holds every log
//! that the index knows; which of them a statement sees is decided for each statement, by their
//! places.

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, Result, Statement};
use serde_json::Value as Json;

use crate::sim::store::logstore::Index;
use crate::sim::store::place::Place;
use crate::sim::store::shard::Shard;
use crate::sim::switch::EmptyText;
use crate::wire::log_group::{LogGroupView, LogView};

/// How much of a text SQL sees (aliyun, configure indexes: 2,048 bytes unless `max_text_len`).
const TEXT_BYTES_DEFAULT: u64 = 2048;

/// The logs of a logstore for SQL.
pub struct Table {
    conn: Connection,
    index: Arc<Index>,
    /// As many edits of the logstore are in it.
    edits: u64,
    columns: Vec<Column>,
    text_bytes_max: usize,
    /// How many groups of each shard are in it.
    loaded: Vec<usize>,
}

struct Column {
    name: String,
    kind: Kind,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Long,
    Double,
}

/// Where a column's value comes from.
enum Origin {
    Time,
    Source,
    Topic,
    Tag(String),
    Field(String),
    /// A path into a field that is JSON.
    Path(String, Vec<String>),
}

impl Table {
    /// An empty table for the logs that `index` knows, of a logstore with so many edits.
    pub fn new(index: Arc<Index>, edits: u64) -> Result<Self> {
        let conn = Connection::open_in_memory()?;
        // A name in double quotes is never a text, as with Presto.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
        conn.pragma_update(None, "case_sensitive_like", true)?;
        let columns = columns(&index.json);
        let types: Vec<_> = columns
            .iter()
            .enumerate()
            .map(|(number, column)| format!(", c{number} {}", column.kind.sql_type()))
            .collect();
        // No logstore's name begins with an underscore.
        conn.execute_batch(&format!(
            "CREATE TABLE main.__logs (place INTEGER PRIMARY KEY{});
             CREATE TEMP TABLE __visible (place INTEGER PRIMARY KEY);",
            types.concat()
        ))?;
        let text_bytes = index.json["max_text_len"].as_u64().filter(|bytes| *bytes > 0);
        let text_bytes_max = text_bytes.unwrap_or(TEXT_BYTES_DEFAULT);
        let text_bytes_max = usize::try_from(text_bytes_max).unwrap_or(usize::MAX);
        Ok(Self { conn, index, edits, columns, text_bytes_max, loaded: Vec::new() })
    }

    /// Whether it was made for `index`, and no log in it was edited since.
    pub fn is_of(&self, index: &Arc<Index>, edits: u64) -> bool {
        Arc::ptr_eq(&self.index, index) && self.edits == edits
    }

    pub fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Takes over what came since the last time.
    pub fn refresh(&mut self, shards: &[Arc<Shard>]) -> Result<()> {
        let transaction = self.conn.unchecked_transaction()?;
        let places = vec!["?"; self.columns.len() + 1].join(", ");
        let insert = format!("INSERT INTO main.__logs VALUES ({places})");
        let mut insert = transaction.prepare(&insert)?;
        let mut loaded = self.loaded.clone();
        loaded.resize(shards.len(), 0);
        for (shard, done) in shards.iter().zip(&mut loaded) {
            while let Some((_, stored)) = shard.group(*done) {
                if stored.indexed_by == Some(self.index.generation) {
                    let group = LogGroupView::parse(&stored.raw);
                    let group = group.expect("PutLogs stores what it could parse");
                    for (log_number, log) in group.logs.iter().enumerate() {
                        let place = Place { shard: shard.id, group: *done, log: log_number };
                        self.insert(&mut insert, place, &group, log)?;
                    }
                }
                *done += 1;
            }
        }
        drop(insert);
        transaction.commit()?;
        self.loaded = loaded;
        Ok(())
    }

    fn insert(
        &self,
        insert: &mut Statement<'_>,
        place: Place,
        group: &LogGroupView<'_>,
        log: &LogView<'_>,
    ) -> Result<()> {
        insert.raw_bind_parameter(1, place.number())?;
        for (number, column) in self.columns.iter().enumerate() {
            insert.raw_bind_parameter(number + 2, self.value(column, group, log))?;
        }
        insert.raw_execute().map(drop)
    }

    fn value(&self, column: &Column, group: &LogGroupView<'_>, log: &LogView<'_>) -> Value {
        let field = |key: &str| {
            log.contents.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| *value)
        };
        let inner;
        let bytes = match &column.origin {
            Origin::Time => return Value::Integer(log.time.unwrap_or(0).into()),
            Origin::Source => Some(group.source.unwrap_or_default()),
            Origin::Topic => Some(group.topic.unwrap_or_default()),
            Origin::Tag(name) => group.tag(name),
            Origin::Field(key) => field(key),
            Origin::Path(key, path) => {
                inner = field(key).and_then(|json| follow(json, path));
                inner.as_deref().map(str::as_bytes)
            }
        };
        bytes.map_or(Value::Null, |bytes| column.kind.read(bytes, self.text_bytes_max))
    }

    /// Lets the next statement see the logs of `places` alone, as `log` and as `name`.
    pub fn show(&self, name: &str, places: &[Place], empty_text: EmptyText) -> Result<()> {
        let transaction = self.conn.unchecked_transaction()?;
        transaction.execute("DELETE FROM temp.__visible", [])?;
        let mut insert = transaction.prepare("INSERT INTO temp.__visible VALUES (?)")?;
        for place in places {
            insert.execute([place.number()])?;
        }
        drop(insert);
        let columns: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(number, column)| {
                let name = quoted(&column.name);
                if column.kind == Kind::Text && empty_text == EmptyText::Null {
                    format!("NULLIF(c{number}, '') AS {name}")
                } else {
                    format!("c{number} AS {name}")
                }
            })
            .collect();
        let names = HashSet::from(["log", name]);
        for name in names {
            let name = quoted(name);
            transaction.execute_batch(&format!(
                "DROP VIEW IF EXISTS temp.{name};
                 CREATE TEMP VIEW {name} AS SELECT {} FROM temp.__visible JOIN main.__logs \
                   ON __logs.place = __visible.place",
                columns.join(", ")
            ))?;
        }
        transaction.commit()
    }
}

impl Kind {
    fn sql_type(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Long => "INTEGER",
            Self::Double => "REAL",
        }
    }

    /// A field's value as the column's; what is no number is NULL in a column of numbers.
    fn read(self, bytes: &[u8], text_bytes_max: usize) -> Value {
        let text = String::from_utf8_lossy(bytes);
        let number = match self {
            Self::Text => {
                return Value::Text(text[..text.floor_char_boundary(text_bytes_max)].to_owned());
            }
            Self::Long => text.trim().parse().ok().map(Value::Integer),
            Self::Double => text.trim().parse().ok().map(Value::Real),
        };
        number.unwrap_or(Value::Null)
    }
}

/// The columns of SLS's own and those of the index, without names that differ by case alone.
fn columns(index: &Json) -> Vec<Column> {
    let own = [
        ("__time__", Kind::Long, Origin::Time),
        ("__source__", Kind::Text, Origin::Source),
        ("__topic__", Kind::Text, Origin::Topic),
    ];
    let mut columns: Vec<_> = own
        .map(|(name, kind, origin)| Column { name: name.to_owned(), kind, origin })
        .into_iter()
        .collect();
    for (key, config) in index["keys"].as_object().into_iter().flatten() {
        if !is_analysed(config) {
            continue;
        }
        let origin = match key.strip_prefix("__tag__:") {
            Some(tag) => Origin::Tag(tag.to_owned()),
            None => Origin::Field(key.clone()),
        };
        columns.push(Column { name: key.clone(), kind: kind(config), origin });
        for (path, config) in config["json_keys"].as_object().into_iter().flatten() {
            if is_analysed(config) {
                let name = format!("{key}.{path}");
                let path = path.split('.').map(str::to_owned).collect();
                let origin = Origin::Path(key.clone(), path);
                columns.push(Column { name, kind: kind(config), origin });
            }
        }
    }
    let mut seen = HashSet::new();
    columns.retain(|column| seen.insert(column.name.to_ascii_lowercase()));
    columns
}

/// Whether SQL sees the key: it must be asked for.
fn is_analysed(config: &Json) -> bool {
    config["doc_value"].as_bool().unwrap_or(false)
}

fn kind(config: &Json) -> Kind {
    match config["type"].as_str() {
        Some("long") => Kind::Long,
        Some("double") => Kind::Double,
        _ => Kind::Text,
    }
}

/// What stands at `path` in a text that is JSON; a text without its quotes.
fn follow(json: &[u8], path: &[String]) -> Option<String> {
    let json: Json = serde_json::from_slice(json).ok()?;
    let mut value = &json;
    for name in path {
        value = value.get(name)?;
    }
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_index_makes_the_columns() {
        let index = json!({"keys": {
            "id": {"type": "text", "doc_value": true},
            "ID": {"type": "text", "doc_value": true},
            "searched": {"type": "text"},
            "n": {"type": "long", "doc_value": true},
            "js": {"type": "json", "doc_value": true, "json_keys": {
                "a.b": {"type": "double", "doc_value": true}, "c": {"type": "text"}}},
            "__tag__:__batch__": {"type": "text", "doc_value": true},
        }});
        let names: Vec<_> = columns(&index)
            .into_iter()
            .map(|column| format!("{} {}", column.name, column.kind.sql_type()))
            .collect();
        let wanted = [
            "__time__ INTEGER",
            "__source__ TEXT",
            "__topic__ TEXT",
            "id TEXT",
            "n INTEGER",
            "js TEXT",
            "js.a.b REAL",
            "__tag__:__batch__ TEXT",
        ];
        assert_eq!(names, wanted);
    }

    #[test]
    fn paths_lead_into_json() {
        let path = |names: &str| names.split('.').map(str::to_owned).collect::<Vec<_>>();
        let json = br#"{"a": {"b": 1.5, "c": "x", "d": null}}"#;
        assert_eq!(follow(json, &path("a.b")).as_deref(), Some("1.5"));
        assert_eq!(follow(json, &path("a.c")).as_deref(), Some("x"));
        assert_eq!(follow(json, &path("a.d")), None);
        assert_eq!(follow(json, &path("b")), None);
        assert_eq!(follow(b"no json", &path("a")), None);
    }

    #[test]
    fn texts_are_cut_and_numbers_read() {
        assert_eq!(Kind::Text.read("a你".as_bytes(), 3), Value::Text("a".to_owned()));
        assert_eq!(Kind::Text.read("a你".as_bytes(), 4), Value::Text("a你".to_owned()));
        let version = 1_715_000_000_000_000_001;
        assert_eq!(Kind::Long.read(b"1715000000000000001", 3), Value::Integer(version));
        assert_eq!(Kind::Long.read(b"1.5", 9), Value::Null);
        assert_eq!(Kind::Double.read(b" 1e-05 ", 9), Value::Real(1e-5));
        assert_eq!(Kind::Double.read(b"", 9), Value::Null);
    }
}
