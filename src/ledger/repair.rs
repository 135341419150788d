//! What `repair` changes in the ledger: each change looks again whether it still holds, so that a
//! finding that is out of date does nothing.

use std::collections::HashSet;

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::hold::NewHold;
use crate::ledger::hold::insert_holds;
use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// What there is to know before a missing batch is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingBatch {
    /// Whether an audit has found it: then nobody knows how to send it again.
    pub is_adopted: bool,
    /// The earliest log time of its rows; `None`: its logs bear the time of sending.
    pub oldest_log: Option<Timestamp>,
}

/// How a batch's logs are found by search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchedBatch {
    /// The value of its tag.
    pub tag: String,
    pub rows: u64,
    /// On how many different numbers it was sent.
    pub sendings: u32,
    /// Log times that hold all of its logs, on whole minutes; Unix seconds.
    pub from: i64,
    pub to: i64,
}

impl Ledger {
    /// How a batch is found by search; `None` when the ledger lacks it.
    pub async fn searched_batch(&self, batch_id: Uuid) -> anyhow::Result<Option<SearchedBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT b.ledger_id, b.rows, b.sendings, b.ingest_time, b.finished_first, \
             b.finished_last, c.body ->> 'log_time' = 'ingest' AS ingest \
             FROM sls_backfill.batch b LEFT JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             WHERE b.id = $1",
        )
        .bind(batch_id)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look up batch {batch_id}"))?;
        let Some(row) = row else { return Ok(None) };
        let (first, last) = match row.try_get::<Option<bool>, _>("ingest")? {
            Some(true) => (row.try_get("ingest_time")?, row.try_get("ingest_time")?),
            _ => {
                let time = |name| Ok::<_, anyhow::Error>(row.try_get::<Timestamp, _>(name)?);
                let unix_s = |time: Timestamp| time.unix_s().unwrap_or(0);
                (unix_s(time("finished_first")?), unix_s(time("finished_last")?))
            }
        };
        let ledger_id: Option<Uuid> = row.try_get("ledger_id")?;
        Ok(Some(SearchedBatch {
            tag: format!("{}/{batch_id}", ledger_id.unwrap_or(self.id)),
            rows: u64::try_from(row.try_get::<i32, _>("rows")?)?,
            sendings: u32::try_from(row.try_get::<i32, _>("sendings")?)?,
            from: first.div_euclid(60) * 60,
            to: (last.div_euclid(60) + 1) * 60,
        }))
    }

    /// Looks up a batch that is missing in SLS; `None` when it is none that is taken to be there.
    pub async fn missing_batch(&self, batch_id: Uuid) -> anyhow::Result<Option<MissingBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT b.pass_id IS NULL OR b.conversion_id IS NULL AS adopted, b.finished_first, \
             c.body ->> 'log_time' = 'ingest' AS ingest \
             FROM sls_backfill.batch b LEFT JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             WHERE b.id = $1 AND b.state IN ('stored', 'proved', 'lost')",
        )
        .bind(batch_id)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look up batch {batch_id}"))?;
        let Some(row) = row else { return Ok(None) };
        let is_ingest = row.try_get::<Option<bool>, _>("ingest")?.unwrap_or(false);
        let oldest: Timestamp = row.try_get("finished_first")?;
        Ok(Some(MissingBatch {
            is_adopted: row.try_get("adopted")?,
            oldest_log: (!is_ingest).then_some(oldest),
        }))
    }

    /// Opens a batch again of which nothing is in SLS: whoever settles open batches looks once more,
    /// and then sends it. Gives `false`, and does nothing, when it was signed since it was judged, or
    /// is not taken to be there any more.
    ///
    /// What was seen of it once is forgotten with it: it is not there any more, and what is seen from
    /// now on must count alone.
    pub async fn open_again(&self, batch_id: Uuid, attempts: i32) -> anyhow::Result<bool> {
        let context = || format!("open batch {batch_id} again");
        let mut tx = self.begin().await?;
        let opened = pg::statement(
            "UPDATE sls_backfill.batch SET state = 'intent', owner = NULL, unknowns = 0, \
             all_refused = false, refusal = NULL, number_used_at = NULL, request_id = NULL, \
             stored_at = NULL, proved_at = NULL \
             WHERE id = $1 AND attempts = $2 AND state IN ('stored', 'proved', 'lost') \
             AND pass_id IS NOT NULL AND conversion_id IS NOT NULL",
        )
        .bind(batch_id)
        .bind(attempts)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        if opened.rows_affected() != 1 {
            return Ok(false);
        }
        for sql in [
            "DELETE FROM sls_backfill.sighting WHERE batch_id = $1",
            "DELETE FROM sls_backfill.proof WHERE batch_id = $1",
            // Whoever repairs a canary has decided about it.
            "UPDATE sls_backfill.unkept SET decided_at = clock_timestamp() WHERE batch_id = $1",
        ] {
            pg::statement(sql).bind(batch_id).execute(&mut *tx).await.with_context(context)?;
        }
        tx.commit().await.with_context(context)?;
        Ok(true)
    }

    /// Holds rows that no range has seen, as `late`: the next run tries them like all held rows.
    /// They are counted as seen by the last pass that covers the table. Gives `false` when there is
    /// no such pass.
    pub async fn hold_late(&self, table: Table, holds: &[NewHold]) -> anyhow::Result<bool> {
        let context = || format!("hold {} rows of {table}", holds.len());
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT p.id AS pass_id, max(r.id) AS range_id FROM sls_backfill.pass p \
             JOIN sls_backfill.range r ON r.pass_id = p.id AND r.kind <> 'holds' \
             WHERE p.table_name = $1 AND p.state = 'done' AND p.tenant_id IS NULL \
             AND p.app_id IS NULL GROUP BY p.id ORDER BY p.id DESC LIMIT 1",
        )
        .bind(table.name())
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        let Some(row) = row else { return Ok(false) };
        let (pass_id, range_id): (i64, i64) = (row.try_get("pass_id")?, row.try_get("range_id")?);
        pg::statement("UPDATE sls_backfill.range SET rows_seen = rows_seen + $2 WHERE id = $1")
            .bind(range_id)
            .bind(i64::try_from(holds.len())?)
            .execute(&mut *tx)
            .await
            .with_context(context)?;
        insert_holds(&mut tx, table, pass_id, holds).await.with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(true)
    }

    /// Notes that these rows of a batch are gone from Postgres; gives how many of them it has.
    pub async fn note_gone(&self, batch_id: Uuid, gone: &[Uuid]) -> anyhow::Result<u64> {
        let context = || format!("note which rows of batch {batch_id} are gone");
        let mut tx = self.begin().await?;
        let rows = lock_rows(&mut tx, batch_id).await.with_context(context)?;
        let Some((row_ids, mut bits)) = rows else { return Ok(0) };
        let gone: HashSet<_> = gone.iter().collect();
        bits.resize(row_ids.len().div_ceil(8), 0);
        let mut noted = 0;
        for (nth, id) in row_ids.iter().enumerate() {
            if gone.contains(id) {
                // The highest bit of a byte comes first.
                bits[nth / 8] |= 0x80 >> (nth % 8);
                noted += 1;
            }
        }
        pg::statement("UPDATE sls_backfill.batch_rows SET gone = $2 WHERE batch_id = $1")
            .bind(batch_id)
            .bind(bits)
            .execute(&mut *tx)
            .await
            .with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(noted)
    }
}

/// A batch's rows, and which of them are noted to be gone, until the transaction ends.
async fn lock_rows(tx: &mut Tx, batch_id: Uuid) -> anyhow::Result<Option<(Vec<Uuid>, Vec<u8>)>> {
    let row = pg::statement(
        "SELECT row_ids, gone FROM sls_backfill.batch_rows WHERE batch_id = $1 FOR UPDATE",
    )
    .bind(batch_id)
    .fetch_optional(&mut **tx)
    .await?;
    row.map(|row| {
        let gone: Option<Vec<u8>> = row.try_get("gone")?;
        Ok((ids(row.try_get("row_ids")?).collect(), gone.unwrap_or_default()))
    })
    .transpose()
}
