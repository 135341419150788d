//! What is foreseen of a run: the numbers of each table, and what follows from them.

use crate::pipeline::plan::Seen;
use crate::pipeline::plan::forecast::{Forecast, Load, Means, forecast, with_more_shards};
use crate::pipeline::plan::prices::{Cost, Prices};
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// All tables.
pub struct Outlook {
    pub tables: Vec<TableOutlook>,
    pub is_exact: bool,
    /// Whether an SLS was asked about its logstores.
    pub has_sls: bool,
}

/// One table.
pub struct TableOutlook {
    pub table: Table,
    pub seen: Seen,
    pub batches: f64,
    pub means: Means,
    pub ttl_days: Option<i64>,
    /// On disk.
    pub total_bytes: u64,
    pub since: Option<Timestamp>,
    pub until: Timestamp,
}

impl TableOutlook {
    pub fn load(&self) -> Load {
        Load { rows: self.seen.tally.live, raw_bytes: self.seen.raw_bytes, batches: self.batches }
    }

    pub fn forecast(&self) -> Forecast {
        forecast(&self.load(), &self.means)
    }

    pub fn with_more_shards(&self) -> Vec<(u64, Forecast)> {
        with_more_shards(&self.load(), &self.means)
    }

    pub fn cost(&self, prices: &Prices) -> Cost {
        prices.cost(self.seen.raw_bytes, self.seen.body_bytes, self.batches)
    }

    /// Bytes on disk that a purge could make reusable.
    pub fn purgeable_bytes(&self) -> f64 {
        let tally = &self.seen.tally;
        let is_counted = tally.all_bytes >= 1.0;
        let share = match is_counted {
            true => tally.purgeable_bytes / tally.all_bytes,
            false => tally.purgeable / tally.seen.max(1.0),
        };
        self.total_bytes as f64 * share
    }

    /// Rows that are older than the logstore keeps logs.
    pub fn expired(&self) -> f64 {
        self.seen.tally.held.get(&HoldReason::Expired).copied().unwrap_or(0.0)
    }
}
