//! Whether somebody else writes into a logstore: Dify's own writer, for all that is known.
//!
//! What it has written from a row, nobody may send again: Dify's readers add up what is there. Search
//! finds its logs by their source, but only what is indexed; the tail reader meets every group that
//! was written since it began. So both are asked.

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
const AHEAD_S: i64 = 900;

/// A row's log comes to SLS when it finishes, from servers that are switched over one after the
/// other, and a run takes a while.
const MARGIN_S: i64 = 86_400;

/// What was found of other writers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveWriter {
    /// Nothing.
    None,
    /// Logs from that time on.
    Since(Timestamp),
    /// Nobody knows, for this reason.
    Unclear(String),
}

/// Rows that finished earlier were certainly not written by a writer whose oldest log is of `since`.
pub fn safe_before(since: Timestamp) -> Timestamp {
    since.plus_s(-MARGIN_S)
}

/// Looks for logs of other writers in the logstore of `table`.
pub async fn look(client: &Client, ledger: &Ledger, table: Table) -> anyhow::Result<LiveWriter> {
    let read = ledger.other_writer_since(table.logstore()).await?;
    let searched = match search(client, table).await {
        Ok(searched) => searched,
        Err(why) => return Ok(LiveWriter::Unclear(why)),
    };
    let since = [read, searched].into_iter().flatten().min();
    Ok(since.map_or(LiveWriter::None, |since| LiveWriter::Since(Timestamp::from_unix_s(since))))
}

/// The log time of the oldest log with another source that search finds, Unix seconds.
async fn search(client: &Client, table: Table) -> Result<Option<i64>, String> {
    let query = format!("not __source__: \"{LOG_SOURCE}\"");
    for _ in 0..SEARCHES_MAX {
        let to = client.now() + AHEAD_S;
        let oldest = with_retries(|| client.oldest(table.logstore(), to, &query)).await;
        let oldest = oldest.map_err(|failure| failure.to_string())?;
        if oldest.is_complete {
            return Ok(oldest.time_s);
        }
        tokio::time::sleep(SEARCH_EVERY).await;
    }
    Err(format!("SLS's search did not look through all logs, {SEARCHES_MAX} times in a row"))
}
