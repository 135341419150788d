//! The tail reader at work: pulls what is stored, beside the upload, and lets the ledger compare.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::ledger::Ledger;
use crate::ledger::sighting::{AddedPage, Comparison, Page};
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::answer::Failure;
use crate::sls::client::Client;
use crate::sls::pull::{Pulled, sum_up};

/// How long to wait when nothing new was found.
const IDLE: Duration = Duration::from_millis(500);

/// Pages are sized to come near it; a larger one costs memory, a smaller one time.
const PAGE_BYTES: usize = 4 << 20;

/// A stored log group can be pulled after seconds; what is not there after that is missing.
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);

/// Whether SLS knows the logstore, but no such cursor or shard in it.
fn is_about_a_place(failure: &Failure) -> bool {
    ["InvalidCursor", "ParameterInvalid", "ShardNotExist"].iter().any(|code| failure.is(code))
}

/// Reads one logstore's shards from where the ledger says.
#[derive(Clone)]
pub struct TailReader {
    client: Client,
    ledger: Ledger,
    table: Table,
    /// Which creation of the logstore it reads.
    generation: i32,
    groups_max: u32,
}

impl TailReader {
    /// Begins to read: whatever is written from now on will be read. Must come before the first
    /// intent for the logstore.
    pub async fn begin(client: &Client, ledger: &Ledger, table: Table) -> anyhow::Result<Self> {
        let logstore = table.logstore();
        let generation = ledger.generation(logstore).await?;
        let known = ledger.read_positions(logstore, generation).await?;
        if known.is_empty() {
            let mut cursors = Vec::new();
            let shards = with_retries(|| client.shards(logstore)).await;
            for shard in shards.with_context(|| format!("list the shards of {logstore}"))? {
                let cursor = with_retries(|| client.cursor(logstore, shard.id, "end"))
                    .await
                    .with_context(|| format!("find the end of shard {}", shard.id))?;
                cursors.push((shard.id, cursor));
            }
            ledger.begin_reading_all(logstore, generation, &cursors).await?;
        }
        for (shard, cursor) in &known {
            let pulled = with_retries(|| client.pull(logstore, *shard, cursor, 1)).await;
            match pulled {
                Ok(_) => {}
                // No refusal of the key or of the whole logstore: it does not know this place in it.
                Err(failure) if is_about_a_place(&failure) => {
                    let because = format!(
                        "logstore {logstore} cannot be read on where the last run stopped (shard \
                         {shard}: {failure}): it was deleted and made again, or keeps logs for a \
                         shorter time than has gone by"
                    );
                    return Err(ledger.stop(&because).await?.into());
                }
                Err(failure) => {
                    return Err(failure)
                        .with_context(|| format!("read on in shard {shard} of {logstore}"));
                }
            }
        }
        let (client, ledger) = (client.clone(), ledger.clone());
        Ok(Self { client, ledger, table, generation, groups_max: 1 })
    }

    /// Follows until asked to stop.
    pub async fn follow(mut self, mut shutdown: Shutdown) -> anyhow::Result<()> {
        while !shutdown.is_asked() {
            let groups = self.catch_up(&shutdown).await?;
            if groups == 0 {
                shutdown.or(tokio::time::sleep(IDLE)).await;
            }
        }
        Ok(())
    }

    /// Reads on until everything that the ledger now calls stored was found, or should have been;
    /// gives the comparison.
    pub async fn finish(&mut self, shutdown: &Shutdown) -> anyhow::Result<Comparison> {
        let moment = self.ledger.moment().await?;
        self.catch_up(shutdown).await?;
        let caught_up = Instant::now();
        loop {
            let comparison = self.ledger.compare(self.table, moment).await?;
            let is_short =
                comparison.differences.iter().any(|difference| difference.found < difference.rows);
            if !is_short || caught_up.elapsed() > VISIBLE_WITHIN || shutdown.is_asked() {
                return Ok(comparison);
            }
            tokio::time::sleep(IDLE).await;
            self.catch_up(shutdown).await?;
        }
    }

    /// Reads every shard, read-only ones too, to its end, which is one later than the call began,
    /// unless asked to stop; gives how many log groups there were.
    pub async fn catch_up(&mut self, shutdown: &Shutdown) -> anyhow::Result<u64> {
        let logstore = self.table.logstore();
        let shards = with_retries(|| self.client.shards(logstore))
            .await
            .with_context(|| format!("list the shards of {logstore}"))?;
        let mut positions = self.ledger.read_positions(logstore, self.generation).await?;
        let mut groups = 0;
        for shard in shards {
            let cursor = match positions.remove(&shard.id) {
                Some(cursor) => cursor,
                // A shard that was split off since we began: it holds nothing older than that.
                None => self.begin_shard(shard.id).await?,
            };
            groups += self.read_shard(shard.id, cursor, shutdown).await?;
        }
        Ok(groups)
    }

    async fn begin_shard(&self, shard: u32) -> anyhow::Result<String> {
        let logstore = self.table.logstore();
        let cursor = with_retries(|| self.client.cursor(logstore, shard, "begin"))
            .await
            .with_context(|| format!("find the beginning of shard {shard}"))?;
        self.ledger.begin_reading(logstore, self.generation, shard, &cursor).await?;
        Ok(cursor)
    }

    async fn read_shard(
        &mut self,
        shard: u32,
        mut cursor: String,
        shutdown: &Shutdown,
    ) -> anyhow::Result<u64> {
        let logstore = self.table.logstore();
        let mut groups = 0;
        while !shutdown.is_asked() {
            let pulled =
                with_retries(|| self.client.pull(logstore, shard, &cursor, self.groups_max))
                    .await
                    .with_context(|| format!("pull shard {shard} of {logstore}"))?;
            if pulled.next_cursor == cursor {
                break;
            }
            self.size_pages(&pulled);
            let sums = sum_up(&pulled.raw, &self.ledger.seal)
                .with_context(|| format!("read shard {shard} of {logstore} at {cursor}"))?;
            let added = self
                .ledger
                .add_page(&Page {
                    table: self.table,
                    generation: self.generation,
                    shard,
                    cursor: &cursor,
                    next_cursor: &pulled.next_cursor,
                    sums: &sums.batches,
                    others_since: sums.others_since,
                })
                .await?;
            let AddedPage::Now { revived } = added else {
                // Somebody else reads this shard too, and is a bit further than we are.
                let positions = self.ledger.read_positions(logstore, self.generation).await?;
                cursor = positions.get(&shard).cloned().unwrap_or(cursor);
                continue;
            };
            for batch_id in revived {
                tracing::warn!(
                    "batch {batch_id} was given up and is in SLS after all: its rows are not sent \
                     again"
                );
            }
            if sums.unsealed_groups > 0 {
                tracing::warn!(
                    "shard {shard} of {logstore}: {} log groups bear this ledger's name and are \
                     not sealed by it: somebody else has written them, they count as nobody's",
                    sums.unsealed_groups
                );
            }
            if sums.odd_groups > 0 {
                tracing::warn!(
                    "shard {shard} of {logstore}: {} log groups of others cannot be read; they are \
                     passed over",
                    sums.odd_groups
                );
            }
            groups += u64::from(pulled.groups);
            cursor = pulled.next_cursor;
        }
        Ok(groups)
    }

    /// Asks for more groups a page where they are small (Dify writes one log a group), for fewer
    /// where they are large.
    fn size_pages(&mut self, pulled: &Pulled) {
        let groups = pulled.groups.max(1);
        let fit = PAGE_BYTES / (pulled.raw.len() / groups as usize).max(1);
        let fit = u32::try_from(fit).unwrap_or(u32::MAX);
        self.groups_max = fit.clamp(1, (self.groups_max * 2).min(1000));
    }
}
