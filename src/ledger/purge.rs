//! Purged rows in the ledger: which batches may be purged, and which of their rows are.
//!
//! The bits of a batch's rows (`batch_rows.purged`, `gone`, `changed`) change in the transaction
//! that deletes the rows, where ledger and source are one database. Where they are two, the rows to
//! be deleted are marked first, with the state `purging`; the deletion follows, and then the marks
//! are made true. A crash in between leaves marks of rows that may still be there: whoever goes on
//! looks.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::generation::current_sql;
use crate::ledger::sighting::sum_of;
use crate::pg::{self, Tx};
use crate::record::day::Day;
use crate::record::digest::Sum;
use crate::record::row_set::RowSet;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Which rows a purge looks at: their batches have rows of other times, too.
#[derive(Debug, Clone)]
pub struct PurgeWindow {
    pub table: Table,
    /// Rows that finished at it or later (UTC); `None`: no lower bound.
    pub since: Option<Timestamp>,
    /// Rows that finished before it (UTC).
    pub until: Timestamp,
}

/// Where logs of a batch were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub shard: u32,
    /// A cursor at or before the first of them.
    pub first_cursor: String,
    pub rows: u64,
}

/// What became of each row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMarks {
    /// Deleted by us; while the batch is `purging`, perhaps not yet.
    pub purged: RowSet,
    /// Not there any more when it was to be deleted.
    pub gone: RowSet,
    /// Differed from its log, and stayed.
    pub changed: RowSet,
}

impl RowMarks {
    /// From the columns `purged`, `gone` and `changed`.
    pub(in crate::ledger) fn of(row: &PgRow, rows: usize) -> anyhow::Result<Self> {
        let set = |name: &str| -> anyhow::Result<RowSet> {
            let bytes: Option<Vec<u8>> = row.try_get(name)?;
            Ok(RowSet::from_bytes(bytes.as_deref(), rows))
        };
        Ok(Self { purged: set("purged")?, gone: set("gone")?, changed: set("changed")? })
    }

    /// Whether nothing is left to be decided.
    pub fn are_complete(&self, rows: usize) -> bool {
        (0..rows).all(|at| {
            self.purged.contains(at) || self.gone.contains(at) || self.changed.contains(at)
        })
    }
}

/// A batch whose logs were all seen in SLS, with what is needed to prove it anew.
#[derive(Debug, Clone)]
pub struct ProvedBatch {
    pub id: Uuid,
    pub table: Table,
    pub logstore: String,
    /// The ledger that its tag names.
    pub sent_by: Uuid,
    pub row_ids: Vec<Uuid>,
    pub wanted: Sum,
    /// The conversion's JSON; `None`: not known, so its rows cannot be compared.
    pub conversion: Option<serde_json::Value>,
    /// Unix seconds.
    pub ingest_time: u32,
    /// The days (UTC) on which its rows finished.
    pub days: Vec<Day>,
    /// The earliest finish of its rows.
    pub finished_first: Timestamp,
    /// Nothing of it was received before.
    pub received_first: Timestamp,
    pub places: Vec<Place>,
    pub marks: RowMarks,
    /// Its rows that were sent once more after they had changed: they are the newer batch's to purge.
    pub revised: RowSet,
    /// Whether marks were made whose rows may still be there.
    pub is_purging: bool,
}

/// What is read of a batch; `r` is its row of `batch_rows`.
const PROVED_BATCH: &str = "b.id, b.table_name, b.logstore, \
    coalesce(b.ledger_id, (SELECT id FROM sls_backfill.ledger)) AS sent_by, r.row_ids, \
    b.rows::int8 AS rows, b.digest, 1 AS groups, c.body, b.ingest_time, b.finished_first, \
    (b.intended_at AT TIME ZONE 'UTC') AS received_first, b.state = 'purging' AS is_purging, \
    r.purged, r.gone, r.changed, \
    (SELECT string_agg(w.row_ids, '') FROM sls_backfill.batch v \
      JOIN sls_backfill.batch_rows w ON w.batch_id = v.id \
      WHERE v.revises = b.id AND v.state NOT IN ('split', 'abandoned')) AS revised, \
    ARRAY(SELECT (d - DATE '2000-01-01')::int4 FROM unnest(r.finished_days) d) AS days";

/// SQL that says whether batch `b` is one whose rows may be purged: seen whole and equal in the
/// logstore that is there now, some of its rows perhaps purged already.
pub(in crate::ledger) fn is_proved_sql() -> String {
    format!("b.state IN ('proved', 'purging') AND b.generation = {}", current_sql("b.logstore"))
}

impl Ledger {
    /// The next batches behind batch `after` whose rows may be purged, at most `limit`, in the
    /// order of their ids. Batches that another ledger's audit adopted without a known conversion
    /// are among them, for a person must hear of them.
    pub async fn proved_batches(
        &self,
        window: &PurgeWindow,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<ProvedBatch>> {
        let context = || format!("look for proved batches of {}", window.table);
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::made_statement(&format!(
            "SELECT {PROVED_BATCH} FROM sls_backfill.batch b \
             JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             LEFT JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             WHERE b.table_name = $1 AND {} AND b.id > $2 \
             AND b.finished_first < $3 AND ($4::timestamp IS NULL OR b.finished_last >= $4) \
             ORDER BY b.id LIMIT $5",
            is_proved_sql()
        ))
        .bind(window.table.name())
        .bind(after)
        .bind(window.until)
        .bind(window.since)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        self.with_places(&mut tx, &rows).await.with_context(context)
    }

    /// These batches, whatever their state, in the order of their ids.
    pub async fn batches_by_id(&self, batch_ids: Vec<Uuid>) -> anyhow::Result<Vec<ProvedBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::made_statement(&format!(
            "SELECT {PROVED_BATCH} FROM sls_backfill.batch b \
             JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             LEFT JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             WHERE b.id = ANY($1) ORDER BY b.id"
        ))
        .bind(batch_ids)
        .fetch_all(&mut *tx)
        .await
        .context("look up batches")?;
        self.with_places(&mut tx, &rows).await.context("look up batches")
    }

    async fn with_places(&self, tx: &mut Tx, rows: &[PgRow]) -> anyhow::Result<Vec<ProvedBatch>> {
        let mut batches: Vec<_> = rows.iter().map(proved_batch).collect::<anyhow::Result<_>>()?;
        let places = pg::made_statement(&format!(
            // Where the tail reader saw a batch; else where a verification has found it.
            "SELECT batch_id, shard, first_cursor, rows FROM sls_backfill.sighting s \
             WHERE batch_id = ANY($1) AND generation = {} \
             UNION ALL SELECT p.batch_id, p.shard, p.first_cursor, p.rows FROM sls_backfill.proof p \
             WHERE p.batch_id = ANY($1) AND p.generation = {} AND NOT EXISTS \
               (SELECT FROM sls_backfill.sighting s WHERE s.batch_id = p.batch_id \
                AND s.generation = p.generation) ORDER BY batch_id, shard",
            current_sql("s.logstore"),
            current_sql("p.logstore")
        ))
        .bind(batches.iter().map(|batch| batch.id).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await?;
        let mut by_batch: BTreeMap<Uuid, Vec<Place>> = BTreeMap::new();
        for row in &places {
            by_batch.entry(row.try_get("batch_id")?).or_default().push(Place {
                shard: u32::try_from(row.try_get::<i32, _>("shard")?)?,
                first_cursor: row.try_get("first_cursor")?,
                rows: u64::try_from(row.try_get::<i64, _>("rows")?)?,
            });
        }
        for batch in &mut batches {
            batch.places = by_batch.remove(&batch.id).unwrap_or_default();
        }
        Ok(batches)
    }

    /// Marks, where ledger and source are two databases, rows that are about to be deleted. Gives
    /// `false`, and does nothing, when the batch is not as it was: somebody else purges it.
    pub async fn begin_purging(
        &self,
        batch: &ProvedBatch,
        planned: &RowSet,
    ) -> anyhow::Result<bool> {
        let mut tx = self.begin().await?;
        let Some(mut marks) = lock_for_purge(&mut tx, batch).await? else { return Ok(false) };
        planned.places().for_each(|place| marks.purged.insert(place));
        write_marks(&mut tx, batch, &marks, "purging").await?;
        tx.commit().await.context("mark rows that are to be deleted")?;
        Ok(true)
    }

    /// Makes the marks of such a batch true, after the deletion is committed.
    pub async fn end_purging(&self, batch: &ProvedBatch, marks: &RowMarks) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        note_purged(&mut tx, batch, marks).await?;
        tx.commit().await.context("note which rows were deleted")
    }
}

/// Locks a batch that is to be purged; gives its marks as they are now. `None`: somebody else is at
/// it, it is not proved any more, or its logstore was made anew.
pub async fn lock_for_purge(tx: &mut Tx, batch: &ProvedBatch) -> anyhow::Result<Option<RowMarks>> {
    let row = pg::made_statement(&format!(
        "SELECT r.purged, r.gone, r.changed FROM sls_backfill.batch b \
         JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
         WHERE b.id = $1 AND {} FOR UPDATE SKIP LOCKED",
        is_proved_sql()
    ))
    .bind(batch.id)
    .fetch_optional(&mut **tx)
    .await
    .with_context(|| format!("lock batch {}", batch.id))?;
    row.map(|row| RowMarks::of(&row, batch.row_ids.len())).transpose()
}

/// Writes what became of the rows of a locked batch.
pub async fn note_purged(tx: &mut Tx, batch: &ProvedBatch, marks: &RowMarks) -> anyhow::Result<()> {
    let is_complete = marks.are_complete(batch.row_ids.len());
    write_marks(tx, batch, marks, if is_complete { "purged" } else { "proved" }).await
}

async fn write_marks(
    tx: &mut Tx,
    batch: &ProvedBatch,
    marks: &RowMarks,
    state: &str,
) -> anyhow::Result<()> {
    let context = || format!("note what became of the rows of batch {}", batch.id);
    pg::statement(
        "WITH marked AS (UPDATE sls_backfill.batch_rows SET purged = $2, gone = $3, changed = $4 \
           WHERE batch_id = $1) \
         UPDATE sls_backfill.batch SET state = $5, purged_at = clock_timestamp(), \
         purged_rows = $6, purged_gone = $7, purged_changed = $8 WHERE id = $1",
    )
    .bind(batch.id)
    .bind(marks.purged.to_bytes())
    .bind(marks.gone.to_bytes())
    .bind(marks.changed.to_bytes())
    .bind(state)
    .bind(i32::try_from(marks.purged.len())?)
    .bind(i32::try_from(marks.gone.len())?)
    .bind(i32::try_from(marks.changed.len())?)
    .execute(&mut **tx)
    .await
    .with_context(context)?;
    Ok(())
}

fn proved_batch(row: &PgRow) -> anyhow::Result<ProvedBatch> {
    let table: &str = row.try_get("table_name")?;
    let days: Vec<i32> = row.try_get("days")?;
    let row_ids: Vec<Uuid> = ids(row.try_get("row_ids")?).collect();
    let mut revised = RowSet::empty(row_ids.len());
    let newer: Option<Vec<u8>> = row.try_get("revised")?;
    for id in newer.iter().flat_map(|newer| ids(newer)) {
        row_ids.iter().position(|own| *own == id).into_iter().for_each(|at| revised.insert(at));
    }
    Ok(ProvedBatch {
        revised,
        id: row.try_get("id")?,
        table: Table::from_name(table).context("the ledger names an unknown table")?,
        logstore: row.try_get("logstore")?,
        sent_by: row.try_get("sent_by")?,
        marks: RowMarks::of(row, row_ids.len())?,
        row_ids,
        wanted: sum_of(row)?,
        conversion: row.try_get("body")?,
        ingest_time: u32::try_from(row.try_get::<i64, _>("ingest_time")?)?,
        days: days.into_iter().map(Day::from_postgres).collect(),
        finished_first: row.try_get("finished_first")?,
        received_first: row.try_get("received_first")?,
        places: Vec::new(),
        is_purging: row.try_get("is_purging")?,
    })
}
