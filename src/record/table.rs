//! The two tables, their columns, and a row as Postgres sends it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two tables that this tool moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Table {
    #[serde(rename = "workflow_runs")]
    Runs,
    #[serde(rename = "workflow_node_executions")]
    NodeExecutions,
}

impl Table {
    pub const ALL: [Self; 2] = [Self::Runs, Self::NodeExecutions];

    /// Its name in Postgres.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runs => "workflow_runs",
            Self::NodeExecutions => "workflow_node_executions",
        }
    }

    /// The logstore that Dify writes it to; the name is a constant in Dify's extension.
    pub fn logstore(self) -> &'static str {
        match self {
            Self::Runs => "workflow_execution",
            Self::NodeExecutions => "workflow_node_execution",
        }
    }

    /// The table of that name in Postgres.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A column that exists in the source, and how its values arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub kind: ColumnKind,
}

/// The form in which a column's values arrive: Postgres's binary format of that type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// 16 bytes.
    Uuid,
    /// The bytes of `text` or `varchar`; also of any type we do not know, selected as text.
    Text,
    /// 4 bytes, big-endian.
    Int4,
    /// 8 bytes, big-endian.
    Int8,
    /// `double precision`: 8 bytes, big-endian.
    Float8,
    /// `timestamp without time zone`: microseconds since 2000-01-01, 8 bytes, big-endian.
    Timestamp,
}

/// A row's values in the order of its columns, borrowed from the buffer they arrived in.
/// `None` is NULL.
pub type Cells<'a> = [Option<&'a [u8]>];
