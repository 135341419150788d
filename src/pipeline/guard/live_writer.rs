//! Whether somebody else writes into a logstore: Dify's own writer, for all that is known.
//!
//! What it has written from a row, nobody may send again: Dify's readers add up what is there. Search
//! finds its logs by their source, but only what is indexed; the tail reader meets every group that
//! was written since it began. So both are asked. Rows of its time are then looked up one by one
//! ([`crate::pipeline::read::live_look`]).

use std::time::Duration;

use crate::ledger::Ledger;
use crate::pipeline::retry::with_retries;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::sls::tags::LOG_SOURCE;

/// So often is an answer from a part of the logs asked for anew (the documents name ten for tens of
/// billions of logs).
const SEARCHES_MAX: u32 = 10;

const SEARCH_EVERY: Duration = Duration::from_millis(500);

/// Clocks of writers may be ahead; SLS itself takes logs up to so far in the future (s).
pub const AHEAD_S: i64 = 900;

/// A row's log comes to SLS when it finishes, from servers whose clocks differ.
const MARGIN_S: i64 = 86_400;

/// What was found of other writers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveWriter {
    /// Nothing.
    None,
    /// Logs, so that rows of this period may be among them.
    Writes(LivePeriod),
    /// Nobody knows, for this reason.
    Unclear(String),
}

/// The time in which another writer may have stored rows when they finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivePeriod {
    /// The log time of the oldest log that is not ours.
    pub oldest: Timestamp,
    /// Whether search finds any of these logs. What the reader alone has met cannot be asked for.
    pub is_searchable: bool,
}

impl LivePeriod {
    /// Rows that finished earlier were certainly not written by that writer.
    pub fn since(&self) -> Timestamp {
        self.oldest.plus_s(-MARGIN_S)
    }
}

/// Looks for logs of other writers in the logstore of `table`, which keeps logs since `kept_since`
/// (`None`: for ever, for all that is known).
pub async fn look(
    client: &Client,
    ledger: &Ledger,
    table: Table,
    kept_since: Option<Timestamp>,
) -> anyhow::Result<LiveWriter> {
    let read = ledger.other_writer_since(table.logstore()).await?.map(Timestamp::from_unix_s);
    // What the TTL is over for is not found any more, and need not be.
    let read = read.filter(|read| kept_since.is_none_or(|since| *read >= since));
    let searched = match search(client, table).await {
        Ok(searched) => searched.map(Timestamp::from_unix_s),
        Err(why) => return Ok(LiveWriter::Unclear(why)),
    };
    let oldest = [read, searched].into_iter().flatten().min();
    let is_searchable = searched.is_some();
    Ok(oldest.map_or(LiveWriter::None, |oldest| {
        LiveWriter::Writes(LivePeriod { oldest, is_searchable })
    }))
}

/// The log time of the oldest log with another source that search finds, Unix seconds.
async fn search(client: &Client, table: Table) -> Result<Option<i64>, String> {
    let query = format!("not __source__: \"{LOG_SOURCE}\"");
    // The same question each time: SLS goes on with it where it has stopped.
    let to = client.now() + AHEAD_S;
    for _ in 0..SEARCHES_MAX {
        let oldest = with_retries(|| client.oldest(table.logstore(), to, &query)).await;
        let oldest = oldest.map_err(|failure| failure.to_string())?;
        if oldest.is_complete {
            return Ok(oldest.time_s);
        }
        tokio::time::sleep(SEARCH_EVERY).await;
    }
    Err(format!("SLS's search did not look through all logs, {SEARCHES_MAX} times in a row"))
}
