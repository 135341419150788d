//! Batches in doubt: who may resolve them, and how each of them ends.
//!
//! An intent has one owner, the process that may send it. A sender that gives up, and whoever
//! finds a process dead, takes the owner away; one process claims it again. Every write here names
//! the owner, so a process that was stopped past its lease and wakes can sign nothing any more; and
//! whatever authorises a request is written only into the ledger that this process knows
//! (`ledger::continuity`).

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::hold::NewHold;
use crate::ledger::hold::insert_holds;
use crate::ledger::intent::{NewBatch, Place, Sending, cursors_json, insert_batch};
use crate::ledger::live_rows::release_rows;
use crate::ledger::process::Process;
use crate::ledger::sighting::{found, sum_of};
use crate::pg::{self, Tx};
use crate::record::digest::Sum;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Another process may send this batch now.
#[derive(Debug, thiserror::Error)]
#[error("another process has taken over batch {0}; nothing was written")]
pub struct BatchLost(pub Uuid);

/// An intent in doubt, with all that is needed to find or repeat it.
#[derive(Debug, Clone)]
pub struct InDoubtBatch {
    pub id: Uuid,
    pub pass_id: i64,
    pub range_id: i64,
    pub table: Table,
    pub row_ids: Vec<Uuid>,
    /// When the first of its rows was created.
    pub created_first: Timestamp,
    /// What SLS should hold of it.
    pub wanted: Sum,
    pub raw_bytes: u64,
    pub conversion_id: i64,
    /// The conversion's JSON.
    pub conversion: serde_json::Value,
    /// Unix seconds.
    pub ingest_time: u32,
    /// On how many different numbers it was sent.
    pub sendings: u32,
    /// `None`: nothing of it was ever on the wire.
    pub sent: Option<Sent>,
    /// What its senders told.
    pub report: AttemptReport,
}

/// How a batch in doubt was last sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub lane_id: i64,
    pub hash_key: String,
    pub number: u64,
    /// Unix seconds, SLS's clock.
    pub signed_at: i64,
    /// Shard → a cursor that no log of this batch can precede.
    pub cursors: BTreeMap<u32, String>,
}

/// What a sender that gives up knows of its attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttemptReport {
    /// Attempts without an answer.
    pub unknowns: u32,
    /// Every attempt was refused by SLS, or never left: nothing of the batch is there.
    pub all_refused: bool,
    /// Why SLS will not take its content.
    pub refusal: Option<String>,
    /// When SLS said that the number is used up. Unix seconds, SLS's clock.
    pub number_used_at: Option<i64>,
}

/// What the ledger knows of a batch in doubt now.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Whether it is still an intent of the asking process.
    pub is_open: bool,
    /// What the tail reader has found of it.
    pub found: Sum,
    /// How long ago (s) a later number of its lane was known to be stored; `None`: none is.
    pub passed_ago_s: Option<i64>,
}

/// What takes the place of an intent of which SLS holds nothing.
#[derive(Debug, Clone, Default)]
pub struct Replacement {
    /// Batches with its rows, to be sent by whoever settles.
    pub batches: Vec<NewBatch>,
    pub holds: Vec<NewHold>,
}

/// What came of a write that rests on nothing of a batch being in SLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It is done.
    Held,
    /// Nothing was written: the batch is known to be stored.
    Stored,
    /// Nothing was written: something of it was found in SLS since it was looked for.
    Seen,
}

/// Why an intent is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is halved, or its only row is refused.
    Split,
    /// Its rows have changed, or are gone.
    Abandoned,
}

impl Ledger {
    /// A batch is about to be signed anew; the date is on disk before it is on the wire. Gives
    /// `false` when the batch is known to be stored, so that nothing need be sent; fails with
    /// [`BatchLost`] when another process may send it, with [`crate::ledger::stop::Stopped`] when
    /// the ledger was stopped or is not the one that it was.
    pub async fn signed_anew(
        &self,
        process: &Process,
        batch_id: Uuid,
        signed_at: i64,
    ) -> anyhow::Result<bool> {
        let context = || format!("renew the signature of batch {batch_id}");
        let mut tx = self.begin().await?;
        let renewed = pg::made_statement(&format!(
            "UPDATE sls_backfill.batch SET signed_at = greatest(signed_at, to_timestamp($3)), \
             attempts = attempts + 1, all_refused = false \
             WHERE id = $1 AND owner = $2 AND state = 'intent' AND {}",
            self.may_send_sql(4)
        ))
        .bind(batch_id)
        .bind(process.id)
        .bind(signed_at as f64)
        .bind(self.timeline_found())
        .execute(&mut *tx)
        .await
        .with_context(context)?
        .rows_affected();
        if renewed == 0 && is_intent(&mut tx, batch_id).await? {
            drop(tx);
            return Err(self.batch_lost(batch_id).await);
        }
        tx.commit().await.with_context(context)?;
        Ok(renewed == 1)
    }

    /// A batch is about to go out with another number: it is certain that nothing of it is in SLS,
    /// nor on its way. Fails as [`Ledger::signed_anew`].
    pub async fn renumbered(&self, batch_id: Uuid, sending: &Sending) -> anyhow::Result<Absence> {
        let context = || format!("send batch {batch_id} once more");
        let mut tx = self.begin().await?;
        let absence = absence(&mut tx, batch_id).await?;
        if absence != Absence::Held {
            return Ok(absence);
        }
        let renumbered = pg::made_statement(&format!(
            "WITH numbered AS (UPDATE sls_backfill.lane SET last_number = $4 \
               WHERE id = $3 AND last_number < $4) \
             UPDATE sls_backfill.batch SET lane_id = $3, number = $4, \
             signed_at = to_timestamp($5), cursors = $6, sendings = $7, attempts = attempts + 1, \
             all_refused = false, number_used_at = NULL, generation = \
               (SELECT max(g.number) FROM sls_backfill.generation g \
                WHERE g.logstore = batch.logstore) \
             WHERE id = $1 AND owner = $2 AND state = 'intent' AND {}",
            self.may_send_sql(8)
        ))
        .bind(batch_id)
        .bind(sending.owner)
        .bind(sending.lane_id)
        .bind(i64::try_from(sending.number)?)
        .bind(sending.signed_at as f64)
        .bind(cursors_json(Some(sending))?)
        .bind(i32::try_from(sending.nth)?)
        .bind(self.timeline_found())
        .execute(&mut *tx)
        .await
        .with_context(context)?
        .rows_affected();
        if renumbered == 0 {
            drop(tx);
            return Err(self.batch_lost(batch_id).await);
        }
        tx.commit().await.with_context(context)?;
        Ok(Absence::Held)
    }

    /// Why an intent could not be written to: [`BatchLost`], or
    /// [`Stopped`](crate::ledger::stop::Stopped).
    async fn batch_lost(&self, batch_id: Uuid) -> anyhow::Error {
        match self.check_stop().await {
            Ok(()) => BatchLost(batch_id).into(),
            Err(error) => error,
        }
    }

    /// Gives an intent up: from now on it waits to be settled. Does nothing when it is known to be
    /// stored, or somebody else may send it.
    pub async fn give_up(
        &self,
        process: &Process,
        batch_id: Uuid,
        report: &AttemptReport,
    ) -> anyhow::Result<()> {
        let context = || format!("leave batch {batch_id} to be settled");
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.batch SET owner = NULL, unknowns = unknowns + $3, \
             all_refused = $4, refusal = coalesce($5, refusal), \
             number_used_at = coalesce(to_timestamp($6), number_used_at) \
             WHERE id = $1 AND owner = $2 AND state = 'intent'",
        )
        .bind(batch_id)
        .bind(process.id)
        .bind(i32::try_from(report.unknowns)?)
        .bind(report.all_refused)
        .bind(&report.refusal)
        .bind(report.number_used_at.map(|at| at as f64))
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)
    }

    /// Claims at most `limit` intents of the table that nobody owns.
    pub async fn claim_in_doubt(
        &self,
        process: &Process,
        table: Table,
        limit: u32,
    ) -> anyhow::Result<Vec<InDoubtBatch>> {
        let mut tx = self.begin().await?;
        let rows = pg::statement(
            "WITH claimed AS (UPDATE sls_backfill.batch SET owner = $2 WHERE id IN \
               (SELECT id FROM sls_backfill.batch WHERE table_name = $1 AND state = 'intent' \
                AND owner IS NULL ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED) \
               AND EXISTS (SELECT FROM sls_backfill.process WHERE id = $2 \
                 AND ended_at IS NULL FOR SHARE) RETURNING *) \
             SELECT b.id, b.pass_id, b.range_id, b.table_name, r.row_ids, b.rows::int8 AS rows, \
             b.digest, 1 AS groups, b.raw_bytes, b.conversion_id, c.body, b.ingest_time, \
             b.sendings, b.cursors, b.lane_id, b.number, l.hash_key, extract(epoch FROM b.signed_at)::int8 AS signed_at, \
             b.unknowns, b.all_refused, b.refusal, b.created_first, \
             extract(epoch FROM b.number_used_at)::int8 AS number_used_at \
             FROM claimed b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             LEFT JOIN sls_backfill.lane l ON l.id = b.lane_id ORDER BY b.id",
        )
        .bind(table.name())
        .bind(process.id)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .context("claim batches whose fate is open")?;
        tx.commit().await.context("claim batches whose fate is open")?;
        rows.iter().map(in_doubt_batch).collect()
    }

    /// How many batches of the table may or may not be in SLS, but for those that another process
    /// whose lease runs is about to send.
    pub async fn intents(&self, process: &Process, table: Table) -> anyhow::Result<u64> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT count(*) AS intents FROM sls_backfill.batch \
             WHERE table_name = $1 AND state = 'intent' AND NOT EXISTS \
               (SELECT FROM sls_backfill.process p WHERE p.id = owner AND p.id <> $2 \
                AND p.ended_at IS NULL AND p.lease_until >= clock_timestamp())",
        )
        .bind(table.name())
        .bind(process.id)
        .fetch_one(&mut *tx)
        .await
        .context("count open intents")?;
        Ok(u64::try_from(row.try_get::<i64, _>("intents")?)?)
    }

    /// What the ledger knows now of batches that `process` resolves.
    pub async fn seen(
        &self,
        process: &Process,
        batch_ids: Vec<Uuid>,
    ) -> anyhow::Result<HashMap<Uuid, Seen>> {
        let mut tx = self.begin_relaxed().await?;
        let sums = found(&mut tx, batch_ids.clone()).await.context("look for open batches")?;
        let rows = pg::statement(
            "SELECT b.id, b.state = 'intent' AND b.owner = $2 AS is_open, \
             (SELECT extract(epoch FROM clock_timestamp() - min(later.stored_at))::int8 \
              FROM sls_backfill.batch later WHERE later.lane_id = b.lane_id \
              AND later.number > b.number AND later.stored_at IS NOT NULL) AS passed_ago_s \
             FROM sls_backfill.batch b WHERE b.id = ANY($1)",
        )
        .bind(batch_ids)
        .bind(process.id)
        .fetch_all(&mut *tx)
        .await
        .context("look for open batches")?;
        rows.iter()
            .map(|row| {
                let id: Uuid = row.try_get("id")?;
                let seen = Seen {
                    is_open: row.try_get("is_open")?,
                    found: sums.get(&id).copied().unwrap_or_default(),
                    passed_ago_s: row.try_get("passed_ago_s")?,
                };
                Ok((id, seen))
            })
            .collect()
    }

    /// Puts other batches and holds in the place of an intent of which nothing is in SLS. Fails
    /// with [`BatchLost`] when another process may send it.
    pub async fn replace(
        &self,
        process: &Process,
        old: &InDoubtBatch,
        reason: Reason,
        replacement: &Replacement,
    ) -> anyhow::Result<Absence> {
        let context = || format!("replace batch {}", old.id);
        let mut tx = self.begin().await?;
        let absence = absence(&mut tx, old.id).await?;
        if absence != Absence::Held {
            return Ok(absence);
        }
        let state = match reason {
            Reason::Split => "split",
            Reason::Abandoned => "abandoned",
        };
        let ended = pg::statement(
            "UPDATE sls_backfill.batch SET state = $3, owner = NULL \
             WHERE id = $1 AND owner = $2 AND state = 'intent'",
        )
        .bind(old.id)
        .bind(process.id)
        .bind(state)
        .execute(&mut *tx)
        .await
        .with_context(context)?
        .rows_affected();
        if ended == 0 {
            drop(tx);
            return Err(self.batch_lost(old.id).await);
        }
        release_rows(&mut tx, old.table, old.id).await?;
        let Replacement { batches, holds } = replacement;
        let place = Place { pass_id: old.pass_id, range_id: old.range_id, parent_id: Some(old.id) };
        for batch in batches {
            insert_batch(&mut tx, place, old.table, batch).await.with_context(context)?;
            rename_holds(&mut tx, old, batch).await.with_context(context)?;
        }
        insert_holds(&mut tx, old.table, old.pass_id, holds).await.with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(Absence::Held)
    }
}

/// Whether nothing was found of an intent until now. From here on, until the end of the transaction,
/// nothing can be: whoever adds a sighting takes the same lock first (`ledger::sighting`).
async fn absence(tx: &mut Tx, batch_id: Uuid) -> anyhow::Result<Absence> {
    let context = || format!("look once more for batch {batch_id}");
    let row = pg::statement(
        "SELECT state = 'intent' AS is_open FROM sls_backfill.batch WHERE id = $1 \
         FOR NO KEY UPDATE",
    )
    .bind(batch_id)
    .fetch_optional(&mut **tx)
    .await
    .with_context(context)?;
    // The write that follows does not find it, either, and tells why.
    let Some(row) = row else { return Ok(Absence::Held) };
    if !row.try_get::<bool, _>("is_open")? {
        return Ok(Absence::Stored);
    }
    // A statement of its own: it sees what was committed while the lock was waited for.
    let row = pg::statement("SELECT FROM sls_backfill.sighting WHERE batch_id = $1 LIMIT 1")
        .bind(batch_id)
        .fetch_optional(&mut **tx)
        .await
        .with_context(context)?;
    Ok(if row.is_some() { Absence::Seen } else { Absence::Held })
}

async fn is_intent(tx: &mut Tx, batch_id: Uuid) -> anyhow::Result<bool> {
    let row = pg::statement("SELECT FROM sls_backfill.batch WHERE id = $1 AND state = 'intent'")
        .bind(batch_id)
        .fetch_optional(&mut **tx)
        .await
        .with_context(|| format!("look at batch {batch_id}"))?;
    Ok(row.is_some())
}

/// The holds that the old batch ended, the new one ends.
async fn rename_holds(tx: &mut Tx, old: &InDoubtBatch, batch: &NewBatch) -> anyhow::Result<()> {
    pg::statement(
        "UPDATE sls_backfill.hold SET batch_id = $3 \
         WHERE table_name = $1 AND batch_id = $2 AND row_id = ANY($4)",
    )
    .bind(old.table.name())
    .bind(old.id)
    .bind(batch.id)
    .bind(batch.rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await
    .context("hand on the holds")?;
    Ok(())
}

fn in_doubt_batch(row: &PgRow) -> anyhow::Result<InDoubtBatch> {
    let table: &str = row.try_get("table_name")?;
    let sent = match row.try_get::<Option<i64>, _>("number")? {
        None => None,
        Some(number) => Some(Sent {
            lane_id: row.try_get("lane_id")?,
            hash_key: row.try_get("hash_key")?,
            number: u64::try_from(number)?,
            signed_at: row.try_get("signed_at")?,
            cursors: serde_json::from_value(row.try_get("cursors")?)?,
        }),
    };
    Ok(InDoubtBatch {
        id: row.try_get("id")?,
        pass_id: row.try_get("pass_id")?,
        range_id: row.try_get("range_id")?,
        table: Table::from_name(table).context("the ledger names an unknown table")?,
        row_ids: ids(row.try_get("row_ids")?).collect(),
        created_first: row.try_get("created_first")?,
        wanted: sum_of(row)?,
        raw_bytes: u64::try_from(row.try_get::<i64, _>("raw_bytes")?)?,
        conversion_id: row.try_get("conversion_id")?,
        conversion: row.try_get("body")?,
        ingest_time: u32::try_from(row.try_get::<i64, _>("ingest_time")?)?,
        sendings: u32::try_from(row.try_get::<i32, _>("sendings")?)?,
        sent,
        report: AttemptReport {
            unknowns: u32::try_from(row.try_get::<i32, _>("unknowns")?)?,
            all_refused: row.try_get("all_refused")?,
            refusal: row.try_get("refusal")?,
            number_used_at: row.try_get("number_used_at")?,
        },
    })
}
