//! Lanes: the hash keys that batches are sent on, with numbers from 1.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::ledger::Ledger;
use crate::ledger::process::Process;
use crate::pg;

/// SLS remembers the last numbers of 10,000 keys a shard (facts of LoongCollector's exactly-once
/// writes); old ones must not be pushed out while their batches are open. By day, not by hour: 64
/// processes that begin at once need some 600 at once, and a key is remembered for a day.
pub const KEYS_PER_DAY_MAX: i64 = 6144;

/// A random hash key with numbers from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub id: i64,
    pub hash_key: String,
    /// The last number given to a batch.
    pub last_number: u64,
}

impl Ledger {
    /// Makes a lane for one worker of `process`. Gives `None` when 6,144 new
    /// keys were made for the logstore in the last day.
    pub async fn open_lane(
        &self,
        process: &Process,
        logstore: &str,
        hash_key: &str,
    ) -> anyhow::Result<Option<Lane>> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "INSERT INTO sls_backfill.lane (process_id, logstore, hash_key) SELECT $1, $2, $3 \
             WHERE (SELECT count(*) FROM sls_backfill.lane WHERE logstore = $2 \
               AND opened_at > now() - interval '1 day') < $4 RETURNING id",
        )
        .bind(process.id)
        .bind(logstore)
        .bind(hash_key)
        .bind(KEYS_PER_DAY_MAX)
        .fetch_optional(&mut *tx)
        .await
        .context("open a lane")?;
        tx.commit().await.context("open a lane")?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Lane { id: row.try_get("id")?, hash_key: hash_key.to_owned(), last_number: 0 }))
    }
}
