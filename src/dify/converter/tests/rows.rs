//! Rows for tests: of every shape of the tables, in Postgres's binary format.

use uuid::Uuid;

use crate::dify::conversion::{Conversion, LogTime, RULES};
use crate::dify::converter::{Converted, Converter, ReadRow, Verdict};
use crate::dify::eligibility::Bounds;
use crate::record::digest::Digest;
use crate::record::hold::HoldReason;
use crate::record::table::{Column, ColumnKind, Table};
use crate::record::timestamp::Timestamp;
use crate::wire::log_group::{LogGroupView, LogGroupWriter};

/// A row that owns its values, in Postgres's binary format.
#[derive(Clone)]
pub(crate) struct OwnedRow {
    pub(crate) columns: Vec<Column>,
    pub(crate) cells: Vec<Option<Vec<u8>>>,
}

impl OwnedRow {
    pub(crate) fn new() -> Self {
        Self { columns: Vec::new(), cells: Vec::new() }
    }

    /// Sets a column from its text in Postgres, adding it at the end if the row lacks it.
    pub(crate) fn set(&mut self, name: &str, kind: ColumnKind, text: Option<&str>) {
        let cell = text.map(|text| encode(kind, text));
        match self.columns.iter().position(|column| column.name == name) {
            Some(at) => {
                self.columns[at].kind = kind;
                self.cells[at] = cell;
            }
            None => {
                self.columns.push(Column { name: name.to_owned(), kind });
                self.cells.push(cell);
            }
        }
    }

    /// Sets a column that the row has.
    pub(crate) fn put(&mut self, name: &str, text: Option<&str>) {
        let kind = self.columns.iter().find(|column| column.name == name).unwrap().kind;
        self.set(name, kind, text);
    }

    pub(crate) fn with(mut self, name: &str, text: Option<&str>) -> Self {
        self.put(name, text);
        self
    }

    pub(crate) fn conversion(&self, table: Table) -> Conversion {
        let columns = self.columns.clone();
        Conversion { rules: RULES, table, columns, put_graph: true, log_time: LogTime::FinishedAt }
    }

    pub(crate) fn convert(&self, conversion: &Conversion, group: &mut LogGroupWriter) -> Verdict {
        let cells: Vec<_> = self.cells.iter().map(Option::as_deref).collect();
        let row = ReadRow { cells: &cells, is_offloaded: false };
        Converter::new(conversion).unwrap().convert(row, &settled(), INGEST, group)
    }

    /// The verdict and the log's fields, read from the group's bytes.
    pub(crate) fn log_by(&self, conversion: &Conversion) -> (Converted, Vec<(String, String)>) {
        let mut group = LogGroupWriter::default();
        match self.convert(conversion, &mut group) {
            Verdict::Log(converted) => {
                assert_eq!(group.logs(), 1);
                assert_eq!(group.bytes().len(), converted.size);
                let view = LogGroupView::parse(group.bytes()).unwrap();
                assert_eq!(view.logs[0].time, Some(converted.time));
                let mut contents = view.logs[0].contents.clone();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let fields = contents.iter().map(|(key, value)| (text(key), text(value))).collect();
                assert_eq!(converted.digest, Digest::of_log(converted.time, &mut contents));
                (converted, fields)
            }
            Verdict::Hold { reason, detail, .. } => panic!("held {reason:?}: {detail}"),
        }
    }

    pub(crate) fn log(&self, table: Table) -> Vec<(String, String)> {
        self.log_by(&self.conversion(table)).1
    }

    /// Why the row is held; the group must be as it was.
    pub(crate) fn held(&self, table: Table) -> (HoldReason, String) {
        let mut group = LogGroupWriter::default();
        let other = newest(Table::Runs);
        other.convert(&other.conversion(Table::Runs), &mut group);
        let before = group.bytes().to_vec();
        match self.convert(&self.conversion(table), &mut group) {
            Verdict::Hold { row_id, reason, detail, .. } => {
                assert_eq!(row_id.to_string(), ID);
                assert_eq!((group.logs(), group.bytes()), (1, before.as_slice()));
                (reason, detail)
            }
            Verdict::Log(_) => panic!("not held"),
        }
    }
}

/// Everything in the vectors finished before.
const SETTLED: &str = "2027-01-01 00:00:00";

/// Rows that finished before [`SETTLED`] may go.
pub(crate) fn settled() -> Bounds {
    Bounds { settled_before: time(SETTLED), ..Bounds::NONE }
}
pub(crate) const INGEST: u32 = 1_800_000_000;
pub(crate) const ID: &str = "0199ab00-0000-7000-8000-00000000beef";

/// Postgres's binary format of a value, given as Postgres prints it.
fn encode(kind: ColumnKind, text: &str) -> Vec<u8> {
    match kind {
        ColumnKind::Text => text.as_bytes().to_vec(),
        ColumnKind::Uuid => text.parse::<Uuid>().unwrap().as_bytes().to_vec(),
        ColumnKind::Int4 => text.parse::<i32>().unwrap().to_be_bytes().to_vec(),
        ColumnKind::Int8 => text.parse::<i64>().unwrap().to_be_bytes().to_vec(),
        ColumnKind::Float8 => text.parse::<f64>().unwrap().to_be_bytes().to_vec(),
        ColumnKind::Timestamp => time(text).to_postgres().to_be_bytes().to_vec(),
    }
}

/// A time as Postgres prints it.
pub(crate) fn time(text: &str) -> Timestamp {
    match text {
        "infinity" => Timestamp::INFINITY,
        "-infinity" => Timestamp::NEG_INFINITY,
        _ => {
            let time: jiff::civil::DateTime = text.parse().unwrap();
            let utc = time.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
            Timestamp::from_unix_us(utc.timestamp().as_microsecond())
        }
    }
}

/// The columns of a table as one of the schemas in `tests/data/ddl` leaves them, in physical order.
pub(crate) fn columns_of(ddl: &str, table: Table) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    let mut in_table = false;
    let altering = format!("ALTER TABLE {table} ");
    for line in ddl.lines().map(str::trim) {
        let words: Vec<_> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
        if let Some(change) = line.strip_prefix(&altering) {
            let column = |name: &str| columns.iter().position(|column| column.name == name);
            match (&words[3..6], change) {
                (["ADD", "COLUMN", name], _) => {
                    columns.push(Column { name: (*name).to_owned(), kind: kind_of(words[6]) });
                }
                (["DROP", "COLUMN", name], _) => drop(columns.remove(column(name).unwrap())),
                (["ALTER", "COLUMN", name], _) => {
                    let at = column(name).unwrap();
                    columns[at].kind = kind_of(words[7]);
                }
                _ => panic!("what does this change? {change}"),
            }
        } else if line.starts_with(&format!("CREATE TABLE {table} (")) {
            in_table = true;
        } else if line.starts_with(')') || line.starts_with("CONSTRAINT") {
            in_table = false;
        } else if in_table {
            let name = words[0].trim_matches('"').to_owned();
            columns.push(Column { name, kind: kind_of(words[1]) });
        }
    }
    columns
}

fn kind_of(type_name: &str) -> ColumnKind {
    match type_name {
        "uuid" => ColumnKind::Uuid,
        "text" | "varchar(255)" => ColumnKind::Text,
        "integer" => ColumnKind::Int4,
        "bigint" => ColumnKind::Int8,
        "double" => ColumnKind::Float8,
        "timestamp" => ColumnKind::Timestamp,
        _ => panic!("what is {type_name}?"),
    }
}

pub(crate) const SHAPES: [(&str, &str); 5] = [
    ("0.6", include_str!("../../../../tests/data/ddl/dify-0.6.sql")),
    ("0.15", include_str!("../../../../tests/data/ddl/dify-0.15.sql")),
    ("1.10", include_str!("../../../../tests/data/ddl/dify-1.10.sql")),
    ("1.12", include_str!("../../../../tests/data/ddl/dify-1.12.sql")),
    ("newest", include_str!("../../../../tests/data/ddl/dify-newest.sql")),
];

/// A finished row with a value in every column, text columns holding `{column}`.
pub(crate) fn filled(columns: Vec<Column>) -> OwnedRow {
    let mut row = OwnedRow::new();
    for Column { name, kind } in columns {
        let text = match (name.as_str(), kind) {
            ("id", _) => ID.to_owned(),
            ("created_at", _) => "2026-03-01 10:00:00".to_owned(),
            ("finished_at", _) => "2026-03-01 10:00:02.5".to_owned(),
            ("status", _) => "succeeded".to_owned(),
            ("graph" | "inputs" | "outputs" | "process_data" | "execution_metadata", _) => {
                format!(r#"{{"{name}": "\u4e2d"}}"#)
            }
            (_, ColumnKind::Uuid) => "11111111-2222-3333-4444-555555555555".to_owned(),
            (_, ColumnKind::Text) => format!("{{{name}}}"),
            (_, ColumnKind::Int4 | ColumnKind::Int8) => "42".to_owned(),
            (_, ColumnKind::Float8) => "1e-05".to_owned(),
            (_, ColumnKind::Timestamp) => "2026-03-01 10:00:01".to_owned(),
        };
        row.set(&name, kind, Some(&text));
    }
    row
}

/// A finished row of the newest shape.
pub(crate) fn newest(table: Table) -> OwnedRow {
    filled(columns_of(SHAPES[4].1, table))
}

pub(crate) fn value<'a>(log: &'a [(String, String)], key: &str) -> Option<&'a str> {
    log.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}
