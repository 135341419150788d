//! Goes over a whole table once, slice by slice, for counts by day and for the ids of its rows:
//! every statement is bounded, and no payload is read.
//!
//! A slice is a stretch of the table's blocks where Postgres can read such a stretch by itself
//! (since 14): in the order in which rows lie, which costs least. Elsewhere it is a stretch of the
//! primary key.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::pg;
use crate::record::day::Day;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::scope::{Scope, Sql};

/// Blocks of 8 KiB that one statement reads.
const SLICE_BLOCKS: i64 = 4096;

/// Rows that one statement reads by the primary key, each on a block of its own at worst.
const SLICE_ROWS: u32 = 20_000;

/// The first version (`server_version_num`) that reads a range of blocks without the rest.
const HAS_TID_RANGE_SCAN: i32 = 140_000;

/// Whose finish time is NULL or infinite has no day.
const DAY: &str = "CASE WHEN isfinite(t.finished_at) \
    THEN (t.finished_at::date - DATE '2000-01-01')::int4 END AS day";

/// A stretch of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// From this block, up to this one; `None`: to the end.
    Blocks { from: i64, upto: Option<i64> },
    /// Behind this id, up to and including this one; `None`: to the end.
    Ids { after: Option<Uuid>, upto: Option<Uuid> },
}

/// The slices of a table, one after the other.
pub struct Slices {
    source: Source,
    table: Table,
    /// `None`: there is none left.
    next: Option<Slice>,
    /// About how many blocks the table has; 0 where slices are of ids.
    blocks: i64,
}

/// A row, as far as its accounting needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowTimes {
    pub id: Uuid,
    /// `infinity` for NULL.
    pub created_at: Timestamp,
    /// `None` for NULL and infinities.
    pub finished_on: Option<Day>,
}

impl Source {
    /// Begins to go over `table`.
    pub async fn slices(&self, table: Table) -> anyhow::Result<Slices> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT current_setting('server_version_num')::int4 AS version, c.relkind = 'r' AS plain, \
             pg_relation_size(c.oid) / current_setting('block_size')::int8 AS blocks \
             FROM pg_class c WHERE c.oid = ('public.' || quote_ident($1))::regclass",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look how large {table} is"))?;
        let has_blocks = row.try_get::<bool, _>("plain")?
            && row.try_get::<i32, _>("version")? >= HAS_TID_RANGE_SCAN;
        let blocks = if has_blocks { row.try_get("blocks")? } else { 0 };
        let first = match has_blocks {
            true => blocks_from(0, blocks),
            false => Slice::Ids { after: None, upto: None },
        };
        let mut slices = Slices { source: self.clone(), table, next: Some(first), blocks };
        if !has_blocks {
            slices.next = Some(slices.ids_after(None).await?);
        }
        Ok(slices)
    }

    /// How many rows of a slice finished on each day; `None`: on none. Only rows created before
    /// `created_before`.
    pub async fn count_days(
        &self,
        table: Table,
        slice: Slice,
        created_before: Timestamp,
    ) -> anyhow::Result<BTreeMap<Option<Day>, u64>> {
        let mut sql = Sql::new(format!("SELECT {DAY}, count(*) AS rows"));
        push_slice(&mut sql, table, slice);
        let before = sql.time(created_before);
        sql.push(&format!(" AND t.created_at < {before} GROUP BY 1"));
        let mut tx = self.begin_slice(slice).await?;
        let rows = sql.query().fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("count the rows of {table} by day"))?;
        rows.iter()
            .map(|row| {
                let day: Option<i32> = row.try_get("day")?;
                let rows = u64::try_from(row.try_get::<i64, _>("rows")?)?;
                Ok((day.map(Day::from_postgres), rows))
            })
            .collect()
    }

    /// The rows of a slice that were not created before `created_from`; `None`: all.
    pub async fn rows_of(
        &self,
        table: Table,
        slice: Slice,
        created_from: Option<Timestamp>,
    ) -> anyhow::Result<Vec<RowTimes>> {
        let mut sql = Sql::new(format!(
            "SELECT t.id, coalesce(t.created_at, 'infinity') AS created_at, {DAY}"
        ));
        push_slice(&mut sql, table, slice);
        if let Some(from) = created_from {
            let from = sql.time(from);
            sql.push(&format!(" AND (t.created_at < {from}) IS NOT TRUE"));
        }
        let mut tx = self.begin_slice(slice).await?;
        let rows = sql.query().fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("list the rows of {table}"))?;
        rows.iter().map(row_times).collect()
    }

    /// Those of these rows that are there.
    pub async fn rows_by_id(&self, table: Table, ids: &[Uuid]) -> anyhow::Result<Vec<RowTimes>> {
        let sql = format!(
            "SELECT t.id, coalesce(t.created_at, 'infinity') AS created_at, {DAY} \
             FROM {} t WHERE t.id = ANY($1)",
            pg::in_public(table.name())
        );
        let mut tx = self.begin_on_indexes().await?;
        let rows = pg::made_statement(&sql).bind(ids.to_vec()).fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("look up {} rows of {table}", ids.len()))?;
        rows.iter().map(row_times).collect()
    }

    async fn begin_slice(&self, slice: Slice) -> anyhow::Result<pg::Tx> {
        match slice {
            Slice::Blocks { .. } => self.begin().await,
            Slice::Ids { .. } => self.begin_on_indexes().await,
        }
    }
}

impl Slices {
    /// The next slice; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Slice>> {
        let Some(slice) = self.next else { return Ok(None) };
        self.next = match slice {
            Slice::Blocks { upto, .. } => upto.map(|upto| blocks_from(upto, self.blocks)),
            Slice::Ids { upto: Some(upto), .. } => Some(self.ids_after(Some(upto)).await?),
            Slice::Ids { upto: None, .. } => None,
        };
        Ok(Some(slice))
    }

    async fn ids_after(&self, after: Option<Uuid>) -> anyhow::Result<Slice> {
        let scope = Scope {
            table: self.table,
            order: KeyOrder::Walk,
            since: None,
            until: Timestamp::INFINITY,
            tenant_id: None,
            app_id: None,
        };
        let key = after.map_or(Key::START, Key::walk);
        let upto = self.source.next_cut(&scope, key, SLICE_ROWS).await?;
        Ok(Slice::Ids { after, upto: upto.map(|key| key.id) })
    }
}

/// The blocks from `from` on. The last slice has no end, so that what is added meanwhile is in it.
fn blocks_from(from: i64, blocks: i64) -> Slice {
    let upto = from + SLICE_BLOCKS;
    Slice::Blocks { from, upto: (upto < blocks).then_some(upto) }
}

/// `FROM … WHERE …` for the rows of a slice.
pub(in crate::source) fn push_slice(sql: &mut Sql, table: Table, slice: Slice) {
    sql.push(&format!(" FROM {} t WHERE true", pg::in_public(table.name())));
    match slice {
        Slice::Blocks { from, upto } => {
            sql.push(&format!(" AND t.ctid >= '({from},0)'::tid"));
            if let Some(upto) = upto {
                sql.push(&format!(" AND t.ctid < '({upto},0)'::tid"));
            }
        }
        Slice::Ids { after, upto } => {
            for (id, comparison) in [(after, ">"), (upto, "<=")] {
                if let Some(id) = id {
                    let id = sql.id(id);
                    sql.push(&format!(" AND t.id {comparison} {id}"));
                }
            }
        }
    }
}

fn row_times(row: &sqlx::postgres::PgRow) -> anyhow::Result<RowTimes> {
    let day: Option<i32> = row.try_get("day")?;
    Ok(RowTimes {
        id: row.try_get("id")?,
        created_at: row.try_get("created_at")?,
        finished_on: day.map(Day::from_postgres),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_blocks_meet_and_the_last_has_no_end() {
        for (blocks, wanted) in [(0, 1), (1, 1), (4096, 1), (4097, 2), (20_000, 5)] {
            let (mut slice, mut count) = (blocks_from(0, blocks), 1);
            while let Slice::Blocks { upto: Some(upto), .. } = slice {
                slice = blocks_from(upto, blocks);
                count += 1;
            }
            assert_eq!(count, wanted, "{blocks} blocks");
        }
    }
}
