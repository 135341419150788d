//! Verifications of content: what each has to read, how far it is, and what it has found.
//!
//! A shard's position moves in the transaction that adds what was found before it, and only from
//! where it stood; so a verification that was killed goes on, and two that run at once are noticed.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::generation::current_sql;
use crate::ledger::sighting::sum_of;
use crate::pg::{self, Tx};
use crate::record::digest::{Digest, Sum};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Which batches a verification is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchScope {
    /// Only batches with rows that finished at this time or later.
    pub since: Option<Timestamp>,
    /// Only batches with rows that finished before this time.
    pub until: Option<Timestamp>,
    /// Only batches that were not proved within so many seconds.
    pub unproved_s: Option<i64>,
}

/// A verification in the ledger.
#[derive(Debug, Clone)]
pub struct Verification {
    pub id: i64,
    pub table: Table,
    pub scope: BatchScope,
    pub is_done: bool,
    /// Microseconds since 1970, the ledger's clock.
    pub noted_at_us: i64,
    /// Unix seconds, SLS's clock.
    pub ended_at: i64,
    /// Batches up to this one were compared with Postgres.
    pub compared_after: Uuid,
    /// What was counted on the way.
    pub tally: serde_json::Value,
}

/// What is left to read of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSpan {
    pub shard: u32,
    pub cursor: String,
    pub end_cursor: String,
}

/// A page of a shard, summed up by batch.
#[derive(Debug, Clone)]
pub struct FoundPage<'a> {
    pub shard: u32,
    /// Where the page begins: the position as it stands.
    pub cursor: &'a str,
    pub next_cursor: &'a str,
    /// When SLS received what is in it, at the earliest and at the latest; Unix seconds.
    pub received: (i64, i64),
    /// Ledger, batch, and what was found of it.
    pub sums: &'a [(Uuid, Uuid, Sum)],
}

/// Where logs of a batch were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundIn {
    pub shard: u32,
    pub first_cursor: String,
    pub end_cursor: String,
    pub sum: Sum,
    /// Unix seconds.
    pub received: (i64, i64),
    /// When it was read; microseconds since 1970, the ledger's clock.
    pub seen_at_us: i64,
}

/// Somebody else goes on with the same verification.
#[derive(Debug, thiserror::Error)]
#[error(
    "another verification of {0} is at work, or has begun anew\nnothing was lost\n\
     hint: wait for it; verifications of one table do not run side by side"
)]
pub struct Overtaken(pub Table);

impl Ledger {
    /// The ledger's clock: microseconds since 1970.
    pub async fn now_us(&self) -> anyhow::Result<i64> {
        let mut tx = self.begin_relaxed().await?;
        let row =
            pg::statement("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 AS now")
                .fetch_one(&mut *tx)
                .await
                .context("look at the ledger's clock")?;
        Ok(row.try_get("now")?)
    }

    /// The last verification of `table`, done or not; `None`, too, if its logstore was made anew
    /// since.
    pub async fn last_verification(&self, table: Table) -> anyhow::Result<Option<Verification>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::made_statement(&format!(
            "SELECT id, scope, state = 'done' AS is_done, compared_after, tally, \
             (extract(epoch FROM noted_at) * 1000000)::int8 AS noted_at_us, \
             extract(epoch FROM ended_at)::int8 AS ended_at \
             FROM sls_backfill.verification v WHERE table_name = $1 AND generation = {}",
            current_sql("v.logstore")
        ))
        .bind(table.name())
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look for a verification of {table}"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Verification {
            id: row.try_get("id")?,
            table,
            scope: serde_json::from_value(row.try_get("scope")?).context("read a scope")?,
            is_done: row.try_get("is_done")?,
            noted_at_us: row.try_get("noted_at_us")?,
            ended_at: row.try_get("ended_at")?,
            compared_after: row.try_get("compared_after")?,
            tally: row.try_get("tally")?,
        }))
    }

    /// Begins a verification that is to read `spans`; forgets the last one of the table.
    pub async fn begin_verification(
        &self,
        new: &Verification,
        spans: &[ShardSpan],
    ) -> anyhow::Result<i64> {
        let context = || format!("begin a verification of {}", new.table);
        let mut tx = self.begin().await?;
        pg::statement("DELETE FROM sls_backfill.verification WHERE table_name = $1")
            .bind(new.table.name())
            .execute(&mut *tx)
            .await
            .with_context(context)?;
        let id: i64 = pg::made_statement(&format!(
            "INSERT INTO sls_backfill.verification (table_name, logstore, generation, scope, \
             noted_at, ended_at, compared_after, tally) VALUES ($1, $2, {}, $3, \
             to_timestamp($4::float8 / 1000000), to_timestamp($5), $6, $7) RETURNING id",
            current_sql("$2")
        ))
        .bind(new.table.name())
        .bind(new.table.logstore())
        .bind(serde_json::to_value(&new.scope)?)
        .bind(new.noted_at_us as f64)
        .bind(new.ended_at as f64)
        .bind(new.compared_after)
        .bind(&new.tally)
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?
        .try_get("id")?;
        add_spans(&mut tx, id, spans).await.with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(id)
    }

    /// Lets a verification that is done read on, for what differed: its shards are to be read up to
    /// new ends, and judged as at a new moment.
    pub async fn reopen_verification(
        &self,
        renewed: &Verification,
        spans: &[ShardSpan],
    ) -> anyhow::Result<()> {
        let context = || format!("go on with the verification of {}", renewed.table);
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.verification SET state = 'reading', \
             noted_at = to_timestamp($2::float8 / 1000000), ended_at = to_timestamp($3), \
             done_at = NULL WHERE id = $1",
        )
        .bind(renewed.id)
        .bind(renewed.noted_at_us as f64)
        .bind(renewed.ended_at as f64)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        add_spans(&mut tx, renewed.id, spans).await.with_context(context)?;
        tx.commit().await.with_context(context)
    }

    /// The shards of a verification.
    pub async fn verification_spans(&self, id: i64) -> anyhow::Result<Vec<ShardSpan>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT shard, cursor, end_cursor FROM sls_backfill.verification_shard \
             WHERE verification_id = $1 ORDER BY shard",
        )
        .bind(id)
        .fetch_all(&mut *tx)
        .await
        .context("look up how far a verification is")?;
        rows.iter()
            .map(|row| {
                Ok(ShardSpan {
                    shard: u32::try_from(row.try_get::<i32, _>("shard")?)?,
                    cursor: row.try_get("cursor")?,
                    end_cursor: row.try_get("end_cursor")?,
                })
            })
            .collect()
    }

    /// Adds a page and moves the shard's position behind it; fails with [`Overtaken`] when somebody
    /// else has.
    pub async fn add_found(
        &self,
        verification: &Verification,
        page: &FoundPage<'_>,
    ) -> anyhow::Result<()> {
        let context = || format!("note what shard {} holds", page.shard);
        let mut tx = self.begin_relaxed().await?;
        let sums = page.sums;
        let digests: Vec<_> = sums.iter().map(|(.., sum)| sum.digest.to_bytes().to_vec()).collect();
        let rows: Vec<_> = sums.iter().map(|(.., sum)| sum.rows as i64).collect();
        let groups: Vec<_> = sums.iter().map(|(.., sum)| sum.groups.cast_signed()).collect();
        let row = pg::statement(
            "WITH moved AS (UPDATE sls_backfill.verification_shard SET cursor = $4 \
               WHERE verification_id = $1 AND shard = $2 AND cursor = $3 RETURNING shard), \
             added AS (INSERT INTO sls_backfill.verification_found (verification_id, ledger_id, \
                 batch_id, shard, first_cursor, end_cursor, rows, digest, groups, \
                 received_first, received_last) \
               SELECT $1, f.ledger_id, f.batch_id, $2, $3, $4, f.rows, f.digest, f.groups, \
                 to_timestamp($10), to_timestamp($11) \
               FROM moved, unnest($5::uuid[], $6::uuid[], $7::int8[], $8::bytea[], $9::int4[]) \
                 AS f(ledger_id, batch_id, rows, digest, groups)) \
             SELECT count(*) AS moved FROM moved",
        )
        .bind(verification.id)
        .bind(i32::try_from(page.shard)?)
        .bind(page.cursor)
        .bind(page.next_cursor)
        .bind(sums.iter().map(|(ledger_id, ..)| *ledger_id).collect::<Vec<_>>())
        .bind(sums.iter().map(|(_, batch_id, _)| *batch_id).collect::<Vec<_>>())
        .bind(rows)
        .bind(digests)
        .bind(groups)
        .bind(page.received.0 as f64)
        .bind(page.received.1 as f64)
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?;
        if row.try_get::<i64, _>("moved")? != 1 {
            return Err(Overtaken(verification.table).into());
        }
        tx.commit().await.with_context(context)
    }

    /// Where each of these batches was found, in the order in which shards were read.
    pub async fn found_of(
        &self,
        id: i64,
        batch_ids: &[Uuid],
    ) -> anyhow::Result<BTreeMap<(Uuid, Uuid), Vec<FoundIn>>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT ledger_id, batch_id, shard, first_cursor, end_cursor, rows, digest, groups, \
             extract(epoch FROM received_first)::int8 AS received_first, \
             extract(epoch FROM received_last)::int8 AS received_last, \
             (extract(epoch FROM seen_at) * 1000000)::int8 AS seen_at_us \
             FROM sls_backfill.verification_found WHERE verification_id = $1 \
             AND batch_id = ANY($2) ORDER BY nth",
        )
        .bind(id)
        .bind(batch_ids.to_vec())
        .fetch_all(&mut *tx)
        .await
        .context("look up what a verification has found")?;
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in &rows {
            let name = (row.try_get("ledger_id")?, row.try_get("batch_id")?);
            found.entry(name).or_default().push(found_in(row)?);
        }
        Ok(found)
    }

    /// The next batches behind `after` that were found and that the ledger lacks, or has for another
    /// logstore: ledger, batch, logs found. At most `limit`.
    pub async fn foreign_found(
        &self,
        verification: &Verification,
        after: (Uuid, Uuid),
        limit: u32,
    ) -> anyhow::Result<Vec<(Uuid, Uuid, u64)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT f.ledger_id, f.batch_id, sum(f.rows)::int8 AS rows \
             FROM sls_backfill.verification_found f LEFT JOIN sls_backfill.batch b \
               ON b.id = f.batch_id AND b.logstore = $2 AND coalesce(b.ledger_id, $3) = f.ledger_id \
             WHERE f.verification_id = $1 AND b.id IS NULL \
             AND (f.batch_id, f.ledger_id) > ($4, $5) \
             GROUP BY 1, 2 ORDER BY 2, 1 LIMIT $6",
        )
        .bind(verification.id)
        .bind(verification.table.logstore())
        .bind(self.id)
        .bind(after.1)
        .bind(after.0)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .context("look for batches that the ledger lacks")?;
        rows.iter()
            .map(|row| {
                let rows = u64::try_from(row.try_get::<i64, _>("rows")?)?;
                Ok((row.try_get("ledger_id")?, row.try_get("batch_id")?, rows))
            })
            .collect()
    }

    /// Ends a verification: its findings are complete.
    pub async fn end_verification(&self, id: i64) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.verification SET state = 'done', done_at = clock_timestamp() \
             WHERE id = $1",
        )
        .bind(id)
        .execute(&mut *tx)
        .await
        .context("end a verification")?;
        tx.commit().await.context("end a verification")
    }
}

async fn add_spans(tx: &mut Tx, id: i64, spans: &[ShardSpan]) -> anyhow::Result<()> {
    let shards = spans.iter().map(|span| i32::try_from(span.shard));
    pg::statement(
        "INSERT INTO sls_backfill.verification_shard (verification_id, shard, cursor, end_cursor) \
         SELECT $1, s.shard, s.cursor, s.end_cursor \
         FROM unnest($2::int4[], $3::text[], $4::text[]) AS s(shard, cursor, end_cursor) \
         ON CONFLICT (verification_id, shard) DO UPDATE SET end_cursor = excluded.end_cursor",
    )
    .bind(id)
    .bind(shards.collect::<Result<Vec<_>, _>>()?)
    .bind(spans.iter().map(|span| span.cursor.clone()).collect::<Vec<_>>())
    .bind(spans.iter().map(|span| span.end_cursor.clone()).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn found_in(row: &PgRow) -> anyhow::Result<FoundIn> {
    Ok(FoundIn {
        shard: u32::try_from(row.try_get::<i32, _>("shard")?)?,
        first_cursor: row.try_get("first_cursor")?,
        end_cursor: row.try_get("end_cursor")?,
        sum: sum_of(row)?,
        received: (row.try_get("received_first")?, row.try_get("received_last")?),
        seen_at_us: row.try_get("seen_at_us")?,
    })
}

/// All that was found of a batch.
pub fn total(found: &[FoundIn]) -> Sum {
    let mut total = Sum { rows: 0, digest: Digest::ZERO, groups: 0 };
    found.iter().for_each(|found| total.add(&found.sum));
    total
}
