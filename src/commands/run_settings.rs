//! What `run` needs to know, checked.

use std::path::PathBuf;
use std::time::Duration;

use crate::commands::output::Format;
use crate::commands::page::PageWish;
use crate::commands::setup::{PostgresSettings, SlsSettings};
use crate::dify::conversion::LogTime;
use crate::pipeline::guard::pace::Rates;
use crate::pipeline::read::batching::BatchLimits;
use crate::pipeline::read::window::Wish;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::send::canary::CanarySettings;
use crate::record::table::Table;

/// How the upload is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    None,
    /// Every batch is pulled back, its count and digest compared with the ledger.
    Tags,
}

/// How many batches are prepared and sent at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    pub at_first: u32,
    /// More are added up to this while SLS's answers are what is waited for.
    pub at_most: u32,
}

impl Workers {
    /// Where nobody says how many.
    pub const BY_NEED: Self = Self { at_first: 8, at_most: 64 };

    /// Always so many.
    pub fn exactly(workers: u32) -> Self {
        Self { at_first: workers, at_most: workers }
    }
}

/// What `run` needs to know.
pub struct RunSettings {
    pub postgres: PostgresSettings,
    /// `None` in a dry run.
    pub sls: Option<SlsSettings>,
    pub tables: Vec<Table>,
    pub wish: Wish,
    pub rows_max: Option<u64>,
    pub workers: Workers,
    /// At most so many connections to both databases; `None`: by what the servers have left.
    pub connections: Option<u32>,
    /// Split each logstore into so many shards first.
    pub split_shards: Option<u32>,
    pub rates: Rates,
    /// How far a replica of the source may be behind; `None`: as far as it likes.
    pub replica_lag_max_s: Option<u32>,
    /// How often progress is logged where there are no bars.
    pub progress_every: Duration,
    pub limits: BatchLimits,
    /// A row whose text is larger is held without being read.
    pub row_bytes_max: u64,
    pub memory_bytes: u64,
    /// About how many rows a range has.
    pub range_rows: u32,
    pub settle_s: i64,
    /// Rows that have run for longer are looked at again only in turn.
    pub abandoned_after_s: i64,
    /// So many held rows of a table at most take their turn.
    pub held_rows_max: u32,
    pub timings: Timings,
    pub put_graph: bool,
    pub log_time: LogTime,
    /// Send also rows that are older than their logstore keeps logs.
    pub beyond_ttl: bool,
    pub canary: CanarySettings,
    /// Send again what SLS has acknowledged and certainly does not keep.
    pub resend_unkept: bool,
    /// Go on with an open pass although the conversion has changed.
    pub new_conversion: bool,
    pub verify: Verify,
    /// Send rows although another writer may have stored them.
    pub beside_live_writer: bool,
    /// Send the rows of batches again that were in SLS and are not there any more.
    pub resend_lost: bool,
    /// Dify's database has moved since the last run.
    pub new_source: bool,
    pub join: bool,
    pub dry_run: bool,
    /// Whether to probe by itself where no probe was made yet.
    pub probe: bool,
    pub allow_fsync_off: bool,
    /// Where to write the rows that need attention.
    pub rejects: Option<PathBuf>,
    /// A rejects file whose rows are to be tried again.
    pub retry: Option<PathBuf>,
    pub format: Format,
    /// A page beside what a dry run or a plan prints.
    pub page: Option<PageWish>,
}
