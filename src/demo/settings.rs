//! Which history to make, and how much of it was made.

use crate::record::timestamp::Timestamp;

/// Which history to make. The same settings make the same rows, byte for byte.
#[derive(Debug, Clone)]
pub struct HistorySettings {
    /// How many rows `workflow_node_executions` gets; `workflow_runs` gets about an eighth of it.
    pub node_rows: u64,
    pub seed: u64,
    /// When the history ends: its last rows are minutes older. It must not be an infinity.
    pub now: Timestamp,
    /// How long before `now` it begins.
    pub days: u32,
    pub profile: Profile,
}

/// How large the rows are. Bytes are those of the row's text columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As an installation has them: half under 1.5 KB, 4 KB on average, one in a thousand over
    /// half a megabyte; runs carry their graph.
    Mixed,
    /// For measuring: node rows of 4 KB on average, none over 200 KB; runs are small.
    Bench,
}

impl Default for HistorySettings {
    /// 20,000 node executions of the 30 days before the start of 2026.
    fn default() -> Self {
        Self {
            node_rows: 20_000,
            seed: 1,
            now: Timestamp::from_unix_s(1_767_225_600),
            days: 30,
            profile: Profile::Mixed,
        }
    }
}

/// What was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistorySummary {
    pub runs: u64,
    pub node_executions: u64,
    /// Those of them that no run reaches: steps tried alone, without a run's id.
    pub single_steps: u64,
    /// Those of them whose run is not there.
    pub orphans: u64,
    /// Bytes in the text columns of both tables.
    pub bytes: u64,
}
