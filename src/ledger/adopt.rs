//! Adoption: batches that an audit has found in SLS and that the ledger lacks, or has given up.
//!
//! A page of a shard is one transaction: the position moves, the sightings are counted, the batches
//! are written down. So an audit can be stopped anywhere and goes on there, and a batch that is
//! adopted is at once one that keeps its rows from being sent again.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::BatchRows;
use crate::ledger::generation::note_other_writer;
use crate::ledger::intent::days_sql;
use crate::ledger::live_rows::take_rows;
use crate::ledger::sighting::{prove, sum_of, verdicts};
use crate::pg::{self, Tx};
use crate::record::digest::{Digest, Sum};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// What a page holds of a batch.
#[derive(Debug, Clone)]
pub struct Find {
    /// The ledger that has sent it.
    pub ledger_id: Uuid,
    /// What its tags tell of the whole batch; `None` when they cannot be read.
    pub tagged: Option<(u32, Digest)>,
    /// The fingerprint of its conversion, as its tag tells; `None` when there is none.
    pub conversion: Option<String>,
    /// What this page holds.
    pub sum: Sum,
    pub raw_bytes: u64,
    /// Id, `created_at`, `finished_at`.
    pub rows: Vec<(Uuid, Timestamp, Timestamp)>,
    /// Unix seconds.
    pub log_time: u32,
}

/// A page of a shard as an audit reads it.
#[derive(Debug, Clone)]
pub struct AuditedPage<'a> {
    /// The number of the audit.
    pub audit: i64,
    pub table: Table,
    /// Which creation of the logstore was read.
    pub generation: i32,
    pub shard: u32,
    /// Where the page begins: the position as it stands.
    pub cursor: &'a str,
    pub next_cursor: &'a str,
    /// Later than any signature under which what was found can have been sent (Unix s).
    pub signed_before: i64,
    /// When SLS received what the ledger lacks of it (Unix s).
    pub received_at: i64,
    pub finds: &'a BTreeMap<Uuid, Find>,
    /// The oldest log time (Unix s) of another writer in it.
    pub others_since: Option<u32>,
}

/// What an audit has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Findings {
    /// All batches of ours that are in SLS.
    pub batches: u64,
    pub rows: u64,
    /// Of these, batches under this ledger's name that it lacked.
    pub adopted: u64,
    pub adopted_rows: u64,
    /// Batches of other ledgers.
    pub foreign: u64,
    pub foreign_rows: u64,
    /// Batches that the ledger had given up.
    pub revived: u64,
    /// Batches that were in SLS, and are not there any more though the TTL does not tell why.
    pub lost: u64,
    pub lost_rows: u64,
    /// Rows among them that a purge has deleted from Postgres.
    pub lost_purged_rows: u64,
    /// Log groups with tags of a ledger that neither its seal nor a consumer group vouches for, and
    /// the rows in them: nothing was made of them.
    pub passed_over_groups: u64,
    pub passed_over_rows: u64,
    /// Rows in an adopted batch that another one holds, too: they are in SLS twice.
    pub doubled_rows: u64,
    /// Batches of which SLS holds more, less or something else than their tags tell.
    pub unequal: Vec<Uuid>,
}

/// How a batch that was found stands in the ledger.
enum Known {
    Lacking,
    /// An audit has written it down.
    Adopted,
    GivenUp,
    /// Its life goes on as any other's.
    Live,
}

impl Ledger {
    /// Writes down what a page holds, and moves the shard's position behind it.
    ///
    /// Fails when the position is not where the page begins: somebody else reads the shard.
    pub async fn adopt_page(&self, page: &AuditedPage<'_>) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let logstore = page.table.logstore();
        let context = || format!("write down what shard {} of {logstore} holds", page.shard);
        let moved = pg::statement(
            "UPDATE sls_backfill.read_position SET cursor = $4, updated_at = clock_timestamp() \
             WHERE logstore = $1 AND shard = $2 AND cursor = $3 AND generation = $5",
        )
        .bind(logstore)
        .bind(i32::try_from(page.shard)?)
        .bind(page.cursor)
        .bind(page.next_cursor)
        .bind(page.generation)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        anyhow::ensure!(moved.rows_affected() == 1, "somebody else reads shard {}", page.shard);
        for (batch_id, find) in page.finds {
            let is_in_book = self
                .adopt(&mut tx, page, *batch_id, find)
                .await
                .with_context(|| format!("adopt batch {batch_id}"))?;
            if is_in_book {
                count_anew(&mut tx, page, *batch_id, find).await.with_context(context)?;
            }
        }
        if let Some(since) = page.others_since {
            note_other_writer(&mut tx, logstore, page.generation, since).await?;
        }
        prove(&mut tx, page.finds.keys().copied().collect()).await.context("prove batches")?;
        tx.commit().await.with_context(context)
    }

    /// Which of these batches the ledger has, given up or not.
    pub async fn known_batches(&self, ids: Vec<Uuid>) -> anyhow::Result<HashSet<Uuid>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT id FROM sls_backfill.batch \
             WHERE id = ANY($1) AND state NOT IN ('split', 'abandoned')",
        )
        .bind(ids)
        .fetch_all(&mut *tx)
        .await
        .context("look up batches that were found in SLS")?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// The ledgers of these batches, for those that are in the book in any state.
    pub async fn owners(&self, ids: Vec<Uuid>) -> anyhow::Result<HashMap<Uuid, Uuid>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT id, coalesce(ledger_id, $2) AS owner FROM sls_backfill.batch \
             WHERE id = ANY($1)",
        )
        .bind(ids)
        .bind(self.id)
        .fetch_all(&mut *tx)
        .await
        .context("look up whose batches were found in SLS")?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("owner")?))).collect()
    }

    /// Gives whether the book has the batch now.
    async fn adopt(
        &self,
        tx: &mut Tx,
        page: &AuditedPage<'_>,
        batch_id: Uuid,
        find: &Find,
    ) -> anyhow::Result<bool> {
        let row = pg::statement(
            "SELECT state IN ('lost', 'split', 'abandoned') AS given_up, \
             adopted_by IS NOT NULL AND pass_id IS NULL AS adopted, ledger_id \
             FROM sls_backfill.batch WHERE id = $1 FOR UPDATE",
        )
        .bind(batch_id)
        .fetch_optional(&mut **tx)
        .await?;
        let ledger_id = (find.ledger_id != self.id).then_some(find.ledger_id);
        let known = match row {
            None => Known::Lacking,
            // A batch of another ledger with the id of this one: nobody makes the same id twice.
            Some(row) if row.try_get::<Option<Uuid>, _>("ledger_id")? != ledger_id => {
                return Ok(false);
            }
            Some(row) if row.try_get("given_up")? => Known::GivenUp,
            Some(row) if row.try_get("adopted")? => Known::Adopted,
            Some(_) => Known::Live,
        };
        match known {
            // Without a row nothing of it could be sent again.
            Known::Lacking if find.rows.is_empty() => return Ok(false),
            Known::Lacking => {
                insert(tx, page, batch_id, find, ledger_id).await?;
                take_rows(tx, page.table, batch_id).await?;
            }
            Known::Adopted => {
                add_rows(tx, batch_id, find).await?;
                name_conversion(tx, page.table, batch_id, find).await?;
                take_rows(tx, page.table, batch_id).await?;
                was_seen_in(tx, page.generation, batch_id).await?;
            }
            Known::Live => was_seen_in(tx, page.generation, batch_id).await?,
            // What becomes of it is decided when everything is read.
            Known::GivenUp => {}
        }
        Ok(true)
    }

    /// What the audit of that number has found in SLS.
    pub async fn findings(&self, audit: i64) -> anyhow::Result<Findings> {
        let mut findings = self.lost().await?;
        let mut after = Uuid::nil();
        loop {
            let mut tx = self.begin_relaxed().await?;
            let rows = pg::statement(
                "SELECT b.id, coalesce(b.adopted_by = $1, false) AS adopted, b.rows::int8 AS rows, \
                 b.pass_id IS NOT NULL AS revived, b.ledger_id IS NOT NULL AS foreign_, \
                 b.doubled_rows::int8 AS doubled FROM sls_backfill.batch b WHERE b.id > $2 \
                 AND EXISTS (SELECT FROM sls_backfill.sighting s \
                   WHERE s.batch_id = b.id AND s.audit = $1) ORDER BY b.id LIMIT 5000",
            )
            .bind(audit)
            .bind(after)
            .fetch_all(&mut *tx)
            .await
            .context("add up what the audit has found")?;
            let Some(last) = rows.last() else { return Ok(findings) };
            after = last.try_get("id")?;
            let mut ids = Vec::new();
            for row in &rows {
                let number = |name| -> anyhow::Result<u64> {
                    Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
                };
                ids.push(row.try_get("id")?);
                findings.batches += 1;
                findings.rows += number("rows")?;
                if !row.try_get::<bool, _>("adopted")? {
                    continue;
                }
                findings.doubled_rows += number("doubled")?;
                if row.try_get("revived")? {
                    findings.revived += 1;
                } else if row.try_get("foreign_")? {
                    findings.foreign += 1;
                    findings.foreign_rows += number("rows")?;
                } else {
                    findings.adopted += 1;
                    findings.adopted_rows += number("rows")?;
                }
            }
            let verdicts = verdicts(&mut tx, ids).await.context("compare what was found")?;
            findings
                .unequal
                .extend(verdicts.iter().filter(|found| !found.equal).map(|found| found.batch_id));
        }
    }
}

impl Ledger {
    /// How many batches are lost, this time or before.
    async fn lost(&self) -> anyhow::Result<Findings> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT count(*) AS batches, coalesce(sum(rows), 0)::int8 AS rows, \
             coalesce(sum(purged_rows), 0)::int8 AS purged \
             FROM sls_backfill.batch WHERE state = 'lost'",
        )
        .fetch_one(&mut *tx)
        .await
        .context("count the batches that are lost")?;
        let number = |name| anyhow::Ok(u64::try_from(row.try_get::<i64, _>(name)?)?);
        Ok(Findings {
            lost: number("batches")?,
            lost_rows: number("rows")?,
            lost_purged_rows: number("purged")?,
            ..Findings::default()
        })
    }
}

/// Counts what the page holds of a batch; what was counted before this audit is forgotten.
async fn count_anew(
    tx: &mut Tx,
    page: &AuditedPage<'_>,
    batch_id: Uuid,
    find: &Find,
) -> anyhow::Result<()> {
    let counted = pg::statement(
        "SELECT rows, digest, groups FROM sls_backfill.sighting \
         WHERE batch_id = $1 AND logstore = $2 AND shard = $3 AND audit = $4 \
         AND generation = $5 FOR UPDATE",
    )
    .bind(batch_id)
    .bind(page.table.logstore())
    .bind(i32::try_from(page.shard)?)
    .bind(page.audit)
    .bind(page.generation)
    .fetch_optional(&mut **tx)
    .await?;
    let is_first = counted.is_none();
    let mut sum = find.sum;
    if let Some(row) = counted {
        sum.add(&sum_of(&row)?);
    }
    pg::statement(
        "INSERT INTO sls_backfill.sighting \
         (batch_id, logstore, shard, rows, digest, groups, first_cursor, last_cursor, audit, \
           generation) VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $10) \
         ON CONFLICT (batch_id, logstore, generation, shard) \
         DO UPDATE SET rows = excluded.rows, digest = excluded.digest, groups = excluded.groups, \
         first_cursor = CASE WHEN $9 THEN excluded.first_cursor ELSE sighting.first_cursor END, \
         last_cursor = excluded.last_cursor, audit = excluded.audit, seen_at = clock_timestamp()",
    )
    .bind(batch_id)
    .bind(page.table.logstore())
    .bind(i32::try_from(page.shard)?)
    .bind(i64::try_from(sum.rows)?)
    .bind(sum.digest.to_bytes().to_vec())
    .bind(i32::try_from(sum.groups)?)
    .bind(page.cursor)
    .bind(page.audit)
    .bind(is_first)
    .bind(page.generation)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A batch is in the logstore as it is now, whichever it was sent to.
async fn was_seen_in(tx: &mut Tx, generation: i32, batch_id: Uuid) -> anyhow::Result<()> {
    pg::statement(
        "UPDATE sls_backfill.batch SET generation = $2 WHERE id = $1 AND generation <> $2",
    )
    .bind(batch_id)
    .bind(generation)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The rows of a find, which has at least one, and the first and last of what orders them.
struct Spans {
    rows: BatchRows,
    /// `-infinity` where nobody knows when a row was created.
    created_first: Timestamp,
    finished: (Timestamp, Timestamp),
}

impl Spans {
    fn of(rows: &[(Uuid, Timestamp, Timestamp)]) -> Self {
        let finished: BTreeMap<Uuid, Timestamp> =
            rows.iter().map(|(id, _, finished_at)| (*id, *finished_at)).collect();
        let created = rows.iter().map(|(_, created_at, _)| *created_at);
        let times = rows.iter().map(|(.., finished_at)| *finished_at);
        Self {
            created_first: created.min().expect("there is a row"),
            finished: (
                times.clone().min().expect("there is a row"),
                times.max().expect("there is a row"),
            ),
            rows: BatchRows::of(finished),
        }
    }
}

async fn insert(
    tx: &mut Tx,
    page: &AuditedPage<'_>,
    batch_id: Uuid,
    find: &Find,
    ledger_id: Option<Uuid>,
) -> anyhow::Result<()> {
    let spans = Spans::of(&find.rows);
    // What nobody tells is not known: what was found of a batch proves nothing about it.
    let (rows, digest) = match find.tagged {
        Some((rows, digest)) => (u64::from(rows), Some(digest.to_bytes().to_vec())),
        None => ((spans.rows.row_ids.len() / 16) as u64, None),
    };
    let cursors = serde_json::json!({ page.shard.to_string(): page.cursor });
    let days = days_sql(18);
    pg::made_statement(&format!(
        "WITH batched AS (INSERT INTO sls_backfill.batch (id, table_name, logstore, state, rows, \
           raw_bytes, digest, not_json, conversion_id, sendings, signed_at, cursors, ingest_time, \
           created_first, finished_first, finished_last, stored_at, adopted_by, adopted_rows, \
           ledger_id, generation) \
         VALUES ($1, $2, $3, 'stored', $4, $5, $6, 0, (SELECT id FROM sls_backfill.conversion \
           WHERE table_name = $2 AND fingerprint = $7), 1, to_timestamp($8), $9, $10, \
           $11, $12, $13, to_timestamp($19), $14, $4, $15, $20) RETURNING id) \
         INSERT INTO sls_backfill.batch_rows (batch_id, row_ids, finished_days, day_rows) \
         SELECT id, $16, {days}, $17 FROM batched"
    ))
    .bind(batch_id)
    .bind(page.table.name())
    .bind(page.table.logstore())
    .bind(i32::try_from(rows)?)
    .bind(i64::try_from(find.raw_bytes)?)
    .bind(digest)
    .bind(&find.conversion)
    .bind(page.signed_before as f64)
    .bind(cursors)
    .bind(i64::from(find.log_time))
    .bind(spans.created_first)
    .bind(spans.finished.0)
    .bind(spans.finished.1)
    .bind(page.audit)
    .bind(ledger_id)
    .bind(spans.rows.row_ids)
    .bind(spans.rows.day_rows)
    .bind(spans.rows.days)
    .bind(page.received_at as f64)
    .bind(page.generation)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// An earlier audit may have found the batch before this ledger had a pass with its conversion.
async fn name_conversion(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
    find: &Find,
) -> anyhow::Result<()> {
    pg::statement(
        "UPDATE sls_backfill.batch SET conversion_id = c.id FROM sls_backfill.conversion c \
         WHERE batch.id = $1 AND batch.conversion_id IS NULL \
         AND c.table_name = $2 AND c.fingerprint = $3",
    )
    .bind(batch_id)
    .bind(table.name())
    .bind(&find.conversion)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Adds rows of an adopted batch whose logs came in another group, as those that it has not yet.
async fn add_rows(tx: &mut Tx, batch_id: Uuid, find: &Find) -> anyhow::Result<()> {
    let row = pg::statement("SELECT row_ids FROM sls_backfill.batch_rows WHERE batch_id = $1")
        .bind(batch_id)
        .fetch_one(&mut **tx)
        .await?;
    let row_ids: &[u8] = row.try_get("row_ids")?;
    let known: HashSet<&[u8]> = row_ids.chunks_exact(16).collect();
    let new: Vec<_> =
        find.rows.iter().filter(|(id, ..)| !known.contains(&id.as_bytes()[..])).copied().collect();
    if new.is_empty() {
        return Ok(());
    }
    let spans = Spans::of(&new);
    pg::statement(
        "WITH batched AS (UPDATE sls_backfill.batch SET raw_bytes = raw_bytes + $2, \
           rows = rows + CASE WHEN digest IS NULL THEN octet_length($6) / 16 ELSE 0 END, \
           adopted_rows = adopted_rows \
             + CASE WHEN digest IS NULL THEN octet_length($6) / 16 ELSE 0 END, \
           created_first = least(created_first, $3), \
           finished_first = least(finished_first, $4), finished_last = greatest(finished_last, $5) \
           WHERE id = $1 RETURNING id) \
         UPDATE sls_backfill.batch_rows r SET row_ids = row_ids || $6, \
           (finished_days, day_rows) = (SELECT array_agg(day ORDER BY day), \
             array_agg(rows ORDER BY day) FROM (SELECT day, sum(rows)::int AS rows \
             FROM (SELECT unnest(r.finished_days) AS day, unnest(r.day_rows) AS rows UNION ALL \
               SELECT date '2000-01-01' + unnest($7::int[]), unnest($8::int[])) both_ \
             GROUP BY day) days) \
         FROM batched WHERE r.batch_id = batched.id",
    )
    .bind(batch_id)
    .bind(i64::try_from(find.raw_bytes)?)
    .bind(spans.created_first)
    .bind(spans.finished.0)
    .bind(spans.finished.1)
    .bind(spans.rows.row_ids)
    .bind(spans.rows.days)
    .bind(spans.rows.day_rows)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
