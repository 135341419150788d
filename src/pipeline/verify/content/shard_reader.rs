//! Pulls the shards of a logstore, several beside each other, and writes down what is found under
//! each tag.
//!
//! Memory: of each shard that is read, one page is summed up while the next is on its way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::verification::{FoundPage, ShardSpan, Verification};
use crate::pipeline::progress::Progress;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::digest::{LogHasher, Sum};
use crate::sls::client::Client;
use crate::sls::pull::Pulled;
use crate::sls::tag_sums::sum_up_tags;

/// Shards that are read at the same time: two pages each are in memory.
const SHARDS_AT_ONCE: usize = 4;

/// Pages are sized to come near it; a larger one costs memory, a smaller one time.
const PAGE_BYTES: usize = 4 << 20;

/// What is needed to read.
#[derive(Clone)]
pub struct ReaderParts {
    pub client: Client,
    pub ledger: Ledger,
    pub verification: Arc<Verification>,
    pub progress: Arc<Progress>,
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadTally {
    pub logs: u64,
    /// Logs without a tag: Dify's own, or anybody's.
    pub untagged_logs: u64,
}

/// A page of a shard as it came.
struct Page {
    cursor: String,
    pulled: Pulled,
    /// When SLS received its first group; Unix seconds.
    received: i64,
}

/// A page summed up, and not written down yet: the next page tells when it was received.
struct SummedPage {
    cursor: String,
    next_cursor: String,
    received: i64,
    sums: Vec<(Uuid, Uuid, Sum)>,
}

/// Reads all of `spans`; `None` when asked to stop.
pub async fn read(
    parts: &ReaderParts,
    spans: Vec<ShardSpan>,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<ReadTally>> {
    let mut waiting = spans.into_iter();
    let (mut reading, mut all) = (JoinSet::new(), ReadTally::default());
    loop {
        while reading.len() < SHARDS_AT_ONCE
            && let Some(span) = waiting.next()
        {
            reading.spawn(read_shard(parts.clone(), span, shutdown.clone()));
        }
        let Some(read) = reading.join_next().await else { break };
        let read = read.context("read a shard")??;
        all.logs += read.logs;
        all.untagged_logs += read.untagged_logs;
    }
    Ok((!shutdown.is_asked()).then_some(all))
}

async fn read_shard(
    parts: ReaderParts,
    span: ShardSpan,
    shutdown: Shutdown,
) -> anyhow::Result<ReadTally> {
    let (mut tally, mut hasher) = (ReadTally::default(), LogHasher::default());
    let mut groups_max = 1;
    let mut pending: Option<SummedPage> = None;
    let mut next = fetch(&parts, &span, span.cursor.clone(), groups_max);
    while let Some(fetching) = next.take() {
        let page = fetching.await.context("read a shard")??;
        let Page { cursor, pulled, received } = page;
        if let Some(summed) = pending.take() {
            write_down(&parts, &span, &summed, received).await?;
        }
        if pulled.next_cursor == cursor || shutdown.is_asked() {
            break;
        }
        groups_max = page_groups(&pulled, groups_max);
        next = fetch(&parts, &span, pulled.next_cursor.clone(), groups_max);
        let shard = span.shard;
        let sums = sum_up_tags(&pulled.raw, &parts.ledger.seal, &mut hasher)
            .with_context(|| format!("read shard {shard} at {cursor}"))?;
        anyhow::ensure!(
            sums.groups == pulled.groups,
            "shard {shard} at {cursor}: SLS says that it gave {} log groups, but gave {}",
            pulled.groups,
            sums.groups
        );
        let tagged = sums.tagged_logs();
        tally.logs += tagged;
        tally.untagged_logs += sums.untagged_logs;
        parts.progress.seen.fetch_add(tagged, Ordering::Relaxed);
        parts.progress.raw_bytes.fetch_add(pulled.raw.len() as u64, Ordering::Relaxed);
        let sums = sums.batches.into_iter().map(|(name, sum)| (name.ledger_id, name.batch_id, sum));
        let (sums, next_cursor) = (sums.collect(), pulled.next_cursor);
        pending = Some(SummedPage { cursor, next_cursor, received, sums });
    }
    if let Some(fetching) = next {
        fetching.abort();
    }
    if let Some(summed) = pending {
        write_down(&parts, &span, &summed, parts.client.now()).await?;
    }
    Ok(tally)
}

/// Begins to pull the page at `cursor`; `None` at the end of the span.
fn fetch(
    parts: &ReaderParts,
    span: &ShardSpan,
    cursor: String,
    groups_max: u32,
) -> Option<JoinHandle<anyhow::Result<Page>>> {
    if cursor == span.end_cursor {
        return None;
    }
    let (client, logstore) = (parts.client.clone(), parts.verification.table.logstore());
    let (shard, end) = (span.shard, span.end_cursor.clone());
    Some(tokio::spawn(async move {
        let pull = || client.pull_until(logstore, shard, &cursor, Some(&end), groups_max);
        let time = || client.cursor_time(logstore, shard, &cursor);
        let (pulled, received) = tokio::try_join!(with_retries(pull), with_retries(time))
            .with_context(|| format!("pull shard {shard} of {logstore}"))?;
        Ok(Page { cursor, pulled, received })
    }))
}

async fn write_down(
    parts: &ReaderParts,
    span: &ShardSpan,
    summed: &SummedPage,
    received_last: i64,
) -> anyhow::Result<()> {
    let page = FoundPage {
        shard: span.shard,
        cursor: &summed.cursor,
        next_cursor: &summed.next_cursor,
        received: (summed.received, received_last.max(summed.received)),
        sums: &summed.sums,
    };
    parts.ledger.add_found(&parts.verification, &page).await
}

/// How many groups the next page is to have: more where they are small (Dify writes one log a
/// group), fewer where they are large.
pub fn page_groups(pulled: &Pulled, groups_max: u32) -> u32 {
    let groups = pulled.groups.max(1);
    let fit = PAGE_BYTES / (pulled.raw.len() / groups as usize).max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, (groups_max * 2).min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_care_and_shrink_at_once() {
        let pulled = |groups: u32, bytes: usize| Pulled {
            raw: vec![0; bytes].into(),
            groups,
            next_cursor: String::new(),
        };
        assert_eq!(page_groups(&pulled(1, 100), 1), 2);
        assert_eq!(page_groups(&pulled(2, 200), 2), 4);
        assert_eq!(page_groups(&pulled(4, 8 << 20), 4), 2);
        assert_eq!(page_groups(&pulled(1, 10 << 20), 4), 1);
        assert_eq!(page_groups(&pulled(1000, 1000), 1000), 1000);
        assert_eq!(page_groups(&pulled(0, 0), 1), 2);
    }
}
