//! Newer states of rows that have changed since they were sent: each goes into a batch of its own,
//! which names the one that it revises.
//!
//! The row stays live in the batch that had it first: there it is counted, and by that entry it is
//! known and never sent again by a run. Everybody who compares or purges passes it over there and
//! looks at the newer batch, as long as that is not given up.

use std::collections::HashSet;

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::intent::{NewBatch, Place, insert_batch};
use crate::ledger::pass::conversion_id;
use crate::ledger::purge::RowMarks;
use crate::pg::{self, Tx};
use crate::record::day::Day;
use crate::record::table::Table;

/// A batch with rows that a verification or a purge has found changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedBatch {
    pub id: Uuid,
    /// Its rows that may have changed; not those that have left, or were sent once more since.
    pub row_ids: Vec<Uuid>,
}

/// The newer state of a row.
#[derive(Debug, Clone)]
pub struct NewRevision {
    /// The batch that had the row before.
    pub revises: Uuid,
    /// The day on which the row finished by its log there.
    pub earlier_day: Day,
    /// The conversion's JSON.
    pub conversion: serde_json::Value,
    /// With this row alone; its conversion's number is put in here.
    pub batch: NewBatch,
}

impl Ledger {
    /// The next batches of `table` behind `after` that have changed rows, by the last verification
    /// or by a purge; at most `limit`, in the order of ids.
    pub async fn changed_batches(
        &self,
        table: Table,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<ChangedBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT b.id, r.row_ids, r.purged, r.gone, r.changed, f.found, \
             (SELECT string_agg(w.row_ids, '') FROM sls_backfill.batch v \
               JOIN sls_backfill.batch_rows w ON w.batch_id = v.id \
               WHERE v.revises = b.id AND v.state NOT IN ('split', 'abandoned')) AS revised \
             FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             LEFT JOIN LATERAL (SELECT string_agg(coalesce(f.row_ids, r.row_ids), '') AS found \
               FROM sls_backfill.verification_finding f \
               WHERE f.batch_id = b.id AND f.kind = 'source_changed') f ON true \
             WHERE b.table_name = $1 AND b.id > $2 AND b.state IN ('stored', 'proved', 'purged') \
             AND (r.changed IS NOT NULL OR f.found IS NOT NULL) ORDER BY b.id LIMIT $3",
        )
        .bind(table.name())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for changed rows of {table}"))?;
        rows.iter().map(changed_batch).collect()
    }

    /// Writes an intent down for the newer state of a row; whoever settles open batches sends it.
    /// Gives `false`, and does nothing, when the row was sent once more meanwhile, or its batch is
    /// not taken to be in SLS.
    pub async fn revise(&self, table: Table, new: &NewRevision) -> anyhow::Result<bool> {
        let row_id = new.batch.rows.first().context("a revision has a row")?.id;
        let context = || format!("write down the new state of row {row_id}");
        let mut tx = self.begin().await?;
        let old = pg::statement(
            "SELECT b.pass_id, b.range_id, r.row_ids, r.purged, r.gone, r.changed, \
             EXISTS (SELECT FROM sls_backfill.batch v JOIN sls_backfill.batch_rows w \
               ON w.batch_id = v.id WHERE v.revises = b.id \
               AND v.state NOT IN ('split', 'abandoned') AND w.row_ids = uuid_send($2)) AS is_known \
             FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             WHERE b.id = $1 AND b.state IN ('stored', 'proved', 'purged') \
             AND b.pass_id IS NOT NULL FOR UPDATE OF b",
        )
        .bind(new.revises)
        .bind(row_id)
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        let Some(old) = old else { return Ok(false) };
        if old.try_get("is_known")? {
            return Ok(false);
        }
        let conversion_id = conversion_id(&mut tx, table, &new.conversion).await?;
        let place = Place {
            pass_id: old.try_get("pass_id")?,
            range_id: old.try_get("range_id")?,
            parent_id: None,
            revises: Some((new.revises, new.earlier_day.to_postgres())),
        };
        let batch = NewBatch { conversion_id, ..new.batch.clone() };
        insert_batch(&mut tx, place, table, &batch).await.with_context(context)?;
        forget_change(&mut tx, new.revises, row_id, &old).await.with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(true)
    }
}

/// A purge has marked the row as changed; it is the newer batch's now.
async fn forget_change(
    tx: &mut Tx,
    batch_id: Uuid,
    row_id: Uuid,
    old: &PgRow,
) -> anyhow::Result<()> {
    let row_ids: Vec<Uuid> = ids(old.try_get("row_ids")?).collect();
    let mut changed = RowMarks::of(old, row_ids.len())?.changed;
    if let Some(place) = row_ids.iter().position(|id| *id == row_id) {
        changed.remove(place);
    }
    pg::statement(
        "WITH marked AS (UPDATE sls_backfill.batch_rows SET changed = $2 WHERE batch_id = $1) \
         UPDATE sls_backfill.batch SET purged_changed = $3 \
         WHERE id = $1 AND purged_changed IS NOT NULL",
    )
    .bind(batch_id)
    .bind(changed.to_bytes())
    .bind(i32::try_from(changed.len())?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn changed_batch(row: &PgRow) -> anyhow::Result<ChangedBatch> {
    let row_ids: Vec<Uuid> = ids(row.try_get("row_ids")?).collect();
    let marks = RowMarks::of(row, row_ids.len())?;
    let set = |name: &str| -> anyhow::Result<HashSet<Uuid>> {
        let bytes: Option<Vec<u8>> = row.try_get(name)?;
        Ok(bytes.iter().flat_map(|bytes| ids(bytes)).collect())
    };
    let (found, revised) = (set("found")?, set("revised")?);
    let may_have_changed = |(place, id): &(usize, &Uuid)| {
        (marks.changed.contains(*place) || found.contains(id))
            && !marks.purged.contains(*place)
            && !marks.gone.contains(*place)
            && !revised.contains(id)
    };
    let changed = row_ids.iter().enumerate().filter(may_have_changed).map(|(_, id)| *id);
    Ok(ChangedBatch { id: row.try_get("id")?, row_ids: changed.collect() })
}
