//! Where a row stands in the order in which a table is read.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::timestamp::Timestamp;

/// An order that an index of the source gives. The names are those of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyOrder {
    /// By `(created_at, id)`: a window is one stretch of the index.
    Time,
    /// Node executions by `(run's created_at, run's id, id)`: the nodes of the window's runs.
    ByRun,
    /// By primary key; the window is only a filter. Every version of Dify has that index.
    Walk,
    /// As `Walk`, but only node executions that `ByRun` does not reach.
    Rest,
}

impl KeyOrder {
    /// The word for it in the ledger and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::ByRun => "by-run",
            Self::Walk => "walk",
            Self::Rest => "rest",
        }
    }

    /// The order of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Time, Self::ByRun, Self::Walk, Self::Rest]
            .into_iter()
            .find(|order| order.name() == name)
    }
}

/// A place in an order; ranges lie between two of them. What an order does not use stays at its
/// lowest value, so keys of one order compare as the index does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// `Time`: the row's `created_at`; `ByRun`: the run's.
    pub at: Timestamp,
    /// `ByRun`: the run's id; else the row's.
    pub id: Uuid,
    /// `ByRun`: the row's id.
    pub node: Uuid,
}

impl Key {
    /// Before every row.
    pub const START: Self =
        Self { at: Timestamp::NEG_INFINITY, id: Uuid::nil(), node: Uuid::nil() };

    /// A key of `Time`.
    pub fn time(at: Timestamp, id: Uuid) -> Self {
        Self { at, id, node: Uuid::nil() }
    }

    /// A key of `Walk` or `Rest`.
    pub fn walk(id: Uuid) -> Self {
        Self { id, ..Self::START }
    }
}
