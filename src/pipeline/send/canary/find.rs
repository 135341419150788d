//! What SLS gives back, and finds by search, of a canary.

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::intent::BatchRow;
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::canary::{Canaries, Sent};
use crate::record::digest::Sum;
use crate::sls::pull::sum_up;
use crate::sls::tags::{BATCH_TAG, LOG_SOURCE};

/// Log groups a page: ours have 2 MiB.
const PAGE_GROUPS: u32 = 4;

/// SLS takes 30 conditions in a search; one is the source.
const SOUGHT_IDS_MAX: usize = 25;

impl Canaries {
    /// What can be pulled of the batch now.
    pub(in crate::pipeline::send::canary) async fn pull(
        &self,
        sent: &Sent<'_>,
    ) -> anyhow::Result<Sum> {
        let logstore = self.table.logstore();
        let shards = with_retries(|| self.client.shards(logstore))
            .await
            .with_context(|| format!("list the shards of {logstore}"))?;
        let last_known = sent.cursors.keys().max().copied();
        let mut sum = Sum::default();
        for shard in shards.iter().map(|shard| shard.id) {
            let cursor = match sent.cursors.get(&shard) {
                Some(cursor) => cursor.clone(),
                // It was split off since: the batch may be in it.
                None if Some(shard) > last_known => {
                    with_retries(|| self.client.cursor(logstore, shard, "begin"))
                        .await
                        .with_context(|| format!("find the beginning of shard {shard}"))?
                }
                None => continue,
            };
            self.pull_shard(shard, cursor, sent, &mut sum).await?;
        }
        Ok(sum)
    }

    async fn pull_shard(
        &self,
        shard: u32,
        mut cursor: String,
        sent: &Sent<'_>,
        sum: &mut Sum,
    ) -> anyhow::Result<()> {
        let logstore = self.table.logstore();
        while sum.rows < sent.rows.len() as u64 {
            let pulled = with_retries(|| self.client.pull(logstore, shard, &cursor, PAGE_GROUPS))
                .await
                .with_context(|| format!("pull shard {shard} of {logstore}"))?;
            if pulled.next_cursor == cursor {
                break;
            }
            let sums = sum_up(&pulled.raw, &self.ledger.seal)
                .with_context(|| format!("read shard {shard} of {logstore} at {cursor}"))?;
            if let Some(found) = sums.batches.get(&sent.batch_id) {
                sum.add(found);
            }
            cursor = pulled.next_cursor;
        }
        Ok(())
    }

    /// How many logs of the batch search finds now. An incomplete answer counts as it is: a lower
    /// bound. If tags are not searchable in this logstore, some rows are looked for by their ids.
    pub(in crate::pipeline::send::canary) async fn found(
        &self,
        sent: &Sent<'_>,
    ) -> anyhow::Result<u64> {
        let logstore = self.table.logstore();
        // Within a minute, SLS may show a log at an earlier time than its own.
        let from = sent.span.first_s.div_euclid(60) * 60;
        let to = (sent.span.last_s.div_euclid(60) + 1) * 60;
        let count = async |query: &str| {
            let counted = with_retries(|| self.client.count_found(logstore, from, to, query)).await;
            counted.with_context(|| format!("search {logstore}"))
        };
        let by_tag = format!("__tag__:{BATCH_TAG}: \"{}/{}\"", self.ledger.id, sent.batch_id);
        let by_tag = count(&by_tag).await?;
        if by_tag.logs > 0 || !by_tag.is_complete {
            return Ok(by_tag.logs);
        }
        let sought = sought_ids(sent.rows);
        let ids: Vec<_> = sought.iter().map(|id| format!("id: \"{id}\"")).collect();
        let by_id = format!("__source__: \"{LOG_SOURCE}\" and ({})", ids.join(" or "));
        let by_id = count(&by_id).await?;
        let all_are_there = by_id.logs >= sought.len() as u64;
        Ok(if all_are_there { sent.rows.len() as u64 } else { 0 })
    }
}

/// Some of the rows, spread over the batch, the oldest and the youngest among them.
fn sought_ids(rows: &[BatchRow]) -> Vec<Uuid> {
    let mut by_time: Vec<_> = rows.iter().collect();
    by_time.sort_unstable_by_key(|row| row.finished_at);
    let last = by_time.len().saturating_sub(1);
    let steps = last.min(SOUGHT_IDS_MAX - 1);
    (0..=steps)
        .filter_map(|step| by_time.get(step * last / steps.max(1)))
        .map(|row| row.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::timestamp::Timestamp;

    #[test]
    fn the_oldest_and_the_youngest_row_are_looked_for() {
        let rows = |count: u32| -> Vec<_> {
            let row = |nth: u32| BatchRow {
                id: Uuid::from_u128(nth.into()),
                created_at: Timestamp::from_unix_s(0),
                finished_at: Timestamp::from_unix_s(nth.into()),
            };
            (0..count).rev().map(row).collect()
        };
        for count in [1, 2, 24, 25, 26, 4096] {
            let sought = sought_ids(&rows(count));
            assert_eq!(sought.len(), count.min(25) as usize);
            assert!(sought.is_sorted() && sought.windows(2).all(|pair| pair[0] != pair[1]));
            assert_eq!(sought[0], Uuid::from_u128(0));
            assert_eq!(sought.last(), Some(&Uuid::from_u128(u128::from(count - 1))));
        }
        assert!(sought_ids(&[]).is_empty());
    }
}
