//! What decides a log's bytes, as the ledger keeps it.

use serde::{Deserialize, Serialize};

use crate::record::fingerprint::fingerprint;
use crate::record::table::{Column, Table};

/// The versions of the rules that this program converts by, the newest last. Whoever changes a byte
/// of any log adds one. None ever goes: logs of each are in SLS, and a row is purged only if its
/// batch's own conversion makes the same bytes of it.
pub const VERSIONS: [u32; 1] = [1];

/// The version that new passes convert by.
pub const RULES: u32 = VERSIONS[VERSIONS.len() - 1];

/// What decides the bytes of a pass's logs: two equal conversions give equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversion {
    /// The version of the rules, one of [`VERSIONS`].
    pub rules: u32,
    pub table: Table,
    /// The source's columns in the order in which cells arrive.
    pub columns: Vec<Column>,
    /// Whether a run's `graph` is written, as Dify's `LOGSTORE_ENABLE_PUT_GRAPH_FIELD` says; else
    /// it is `{}`.
    pub put_graph: bool,
    pub log_time: LogTime,
}

/// What a log's `__time__` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTime {
    /// The row's `finished_at`, as Dify's daily charts want it.
    FinishedAt,
    /// The time at which the batch is made, for a logstore that refuses old times.
    Ingest,
}

impl Conversion {
    /// A short name for it that says the same wherever it is kept: the tag `__conversion__`.
    pub fn fingerprint(&self) -> String {
        fingerprint(&serde_json::to_value(self).expect("it has nothing that JSON lacks"))
    }

    /// How `other` differs from this, one sentence each, for a person; empty when they are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.rules != other.rules {
            differences.push(format!("the rules are {}, not {}", other.rules, self.rules));
        }
        if self.table != other.table {
            differences.push(format!("the table is {}, not {}", other.table, self.table));
        }
        self.column_differences(other, &mut differences);
        if self.put_graph != other.put_graph {
            differences.push(match other.put_graph {
                true => "graph is written".to_owned(),
                false => "graph is not written".to_owned(),
            });
        }
        if self.log_time != other.log_time {
            differences.push(match other.log_time {
                LogTime::FinishedAt => "the log time is finished_at".to_owned(),
                LogTime::Ingest => "the log time is the time of sending".to_owned(),
            });
        }
        differences
    }

    fn column_differences(&self, other: &Self, differences: &mut Vec<String>) {
        let before = differences.len();
        for column in &other.columns {
            match self.columns.iter().find(|known| known.name == column.name) {
                None => differences.push(format!("column {} is new", column.name)),
                Some(known) if known.kind != column.kind => differences.push(format!(
                    "column {} is {:?}, not {:?}",
                    column.name, column.kind, known.kind
                )),
                Some(_) => {}
            }
        }
        for column in &self.columns {
            if !other.columns.iter().any(|known| known.name == column.name) {
                differences.push(format!("column {} is gone", column.name));
            }
        }
        if differences.len() == before && self.columns != other.columns {
            differences.push("the columns stand in another order".to_owned());
        }
    }

    /// Whether this program makes the same bytes by it from a source whose conversion is `now`: it
    /// knows the rules, and the source has the columns still. Rules that new passes do not convert
    /// by any more are known as well.
    pub fn can_be_repeated(&self, now: &Self) -> bool {
        VERSIONS.contains(&self.rules)
            && self.columns.iter().all(|column| now.columns.contains(column))
    }

    /// The columns whose value cannot be made again from the log. Of the others each is kept as it
    /// is, or normalised so that Dify reads the same (NULL and `""` of a JSON column become `{}`,
    /// NULL of a text becomes `""`, `end-user` becomes `end_user`).
    pub fn dropped_columns(&self) -> Vec<&str> {
        let dropped = |column: &&Column| {
            self.table == Table::Runs && !self.put_graph && column.name == "graph"
        };
        self.columns.iter().filter(dropped).map(|column| column.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::table::ColumnKind;

    fn column(name: &str, kind: ColumnKind) -> Column {
        Column { name: name.to_owned(), kind }
    }

    fn conversion() -> Conversion {
        Conversion {
            rules: RULES,
            table: Table::Runs,
            columns: vec![column("id", ColumnKind::Uuid), column("graph", ColumnKind::Text)],
            put_graph: true,
            log_time: LogTime::FinishedAt,
        }
    }

    #[test]
    fn the_ledger_can_read_it_back() {
        let json = serde_json::to_string(&conversion()).unwrap();
        assert_eq!(
            json,
            r#"{"rules":1,"table":"workflow_runs","columns":[{"name":"id","kind":"uuid"},"#
                .to_owned()
                + r#"{"name":"graph","kind":"text"}],"put_graph":true,"log_time":"finished_at"}"#
        );
        assert_eq!(serde_json::from_str::<Conversion>(&json).unwrap(), conversion());
    }

    #[test]
    fn every_difference_is_told() {
        assert_eq!(conversion().differences(&conversion()), Vec::<String>::new());
        type Change = fn(&mut Conversion);
        let changes: [(Change, &str); 8] = [
            (|other| other.rules = 7, "the rules are 7, not 1"),
            (
                |other| other.table = Table::NodeExecutions,
                "the table is workflow_node_executions, not workflow_runs",
            ),
            (
                |other| other.columns.push(column("task_id", ColumnKind::Uuid)),
                "column task_id is new",
            ),
            (|other| drop(other.columns.pop()), "column graph is gone"),
            (|other| other.columns[1].kind = ColumnKind::Int8, "column graph is Int8, not Text"),
            (|other| other.columns.reverse(), "the columns stand in another order"),
            (|other| other.put_graph = false, "graph is not written"),
            (|other| other.log_time = LogTime::Ingest, "the log time is the time of sending"),
        ];
        for (change, told) in changes {
            let mut other = conversion();
            change(&mut other);
            assert_eq!(conversion().differences(&other), [told]);
        }
        let mut doubled = conversion();
        doubled.columns.push(doubled.columns[0].clone());
        assert_eq!(conversion().differences(&doubled).len(), 1);
    }

    #[test]
    fn a_conversion_of_any_version_can_be_repeated_while_its_columns_are_there() {
        let mut now = conversion();
        now.columns.push(column("task_id", ColumnKind::Uuid));
        for rules in VERSIONS {
            let then = Conversion { rules, ..conversion() };
            assert!(then.can_be_repeated(&now));
            now.columns.reverse();
        }
        let unknown = Conversion { rules: RULES + 1, ..conversion() };
        assert!(!unknown.can_be_repeated(&now));
        now.columns.retain(|column| column.name != "graph");
        assert!(!conversion().can_be_repeated(&now));
    }

    #[test]
    fn only_a_graph_that_is_not_written_is_dropped() {
        let mut conversion = conversion();
        assert!(conversion.dropped_columns().is_empty());
        conversion.put_graph = false;
        assert_eq!(conversion.dropped_columns(), ["graph"]);
        conversion.table = Table::NodeExecutions;
        assert!(conversion.dropped_columns().is_empty());
    }
}
