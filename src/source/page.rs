//! The first look at the next rows: keys, status, times and sizes, but no payload.

use anyhow::Context as _;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _, Transaction};
use uuid::Uuid;

use crate::pg;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::ColumnKind;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::scope::{Scope, Span, Sql};

/// What a log needs beyond its long values: keys, short columns, lengths. An upper bound for the
/// columns that Dify has (30 fields of at most 24 bytes of key, 40 of value, 8 of lengths); long
/// short columns (a title of 255 characters) are counted by their own size.
const LOG_OVERHEAD_BYTES: u64 = 30 * (24 + 40 + 8);

/// A row before its payload is read.
#[derive(Debug, Clone)]
pub struct Head {
    pub key: Key,
    pub row_id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub status: Vec<u8>,
    /// Bytes of its text columns as they are stored, before compression.
    pub text_bytes: u64,
    /// Whether its full payload lies in object storage.
    pub offloaded: bool,
}

impl Head {
    /// No log of this row is larger, unless the row changes: conversion never lengthens a text.
    pub fn log_bytes_max(&self) -> u64 {
        self.text_bytes + LOG_OVERHEAD_BYTES
    }
}

impl Source {
    /// The next rows of `span` in key order, at most `limit`; less only at the end of the span.
    pub async fn page(
        &self,
        scope: &Scope,
        shape: &Shape,
        span: &Span,
        limit: u32,
    ) -> anyhow::Result<Vec<Head>> {
        let mut sql = select_heads(shape, scope.order);
        scope.push_from(&mut sql, span);
        sql.push(scope.order_by());
        let limit = sql.int(i64::from(limit));
        sql.push(&format!(" LIMIT {limit}"));
        let mut tx = self.begin_on_indexes().await?;
        let rows = sql
            .query()
            .fetch_all(&mut *tx)
            .await
            .with_context(|| format!("read the next keys of {}", scope.table))?;
        rows.iter().map(|row| head(row, scope.order)).collect()
    }

    /// The same look at rows known by id, in the order of their ids; missing rows are left out.
    pub async fn page_of(&self, shape: &Shape, ids: &[Uuid]) -> anyhow::Result<Vec<Head>> {
        let mut sql = select_heads(shape, KeyOrder::Walk);
        sql.push(&format!(" FROM {} t WHERE t.id = ANY($1)", pg::in_public(shape.table.name())));
        sql.push(" ORDER BY t.id");
        let mut tx = self.begin_on_indexes().await?;
        let rows = pg::made_statement(&sql.text)
            .bind(ids.to_vec())
            .fetch_all(&mut *tx)
            .await
            .with_context(|| format!("look at {} rows of {}", ids.len(), shape.table))?;
        rows.iter().map(|row| head(row, KeyOrder::Walk)).collect()
    }

    /// A read whose plan must follow the key's index: a sequential scan or a hash over a table of
    /// a terabyte is never right here, however old the statistics are.
    pub(in crate::source) async fn begin_on_indexes(
        &self,
    ) -> anyhow::Result<Transaction<'static, Postgres>> {
        self.begin_with(
            "; SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
             SET LOCAL enable_mergejoin = off; SET LOCAL enable_bitmapscan = off",
        )
        .await
    }
}

pub(in crate::source) fn select_heads(shape: &Shape, order: KeyOrder) -> Sql {
    let sizes: Vec<_> = shape
        .columns
        .iter()
        .filter(|column| column.kind == ColumnKind::Text)
        .map(|column| format!("coalesce(octet_length(t.{}::text), 0)", pg::quote(&column.name)))
        .collect();
    let offloaded = offloaded_sql(shape);
    let (at, id) = match order {
        KeyOrder::Time => ("t.created_at", "t.id"),
        KeyOrder::ByRun => ("r.created_at", "r.id"),
        KeyOrder::Walk | KeyOrder::Rest => ("'-infinity'::timestamp", "t.id"),
    };
    Sql::new(format!(
        "SELECT {at} AS key_at, {id} AS key_id, t.id, t.created_at, t.finished_at, t.status, \
         ({})::int8 AS text_bytes, {offloaded} AS offloaded",
        sizes.join(" + "),
    ))
}

/// Whether the full payload of row `t` lies in object storage.
pub(in crate::source) fn offloaded_sql(shape: &Shape) -> &'static str {
    if shape.has_offload {
        "EXISTS (SELECT FROM public.workflow_node_execution_offload o WHERE o.node_execution_id = t.id)"
    } else {
        "false"
    }
}

pub(in crate::source) fn head(row: &PgRow, order: KeyOrder) -> anyhow::Result<Head> {
    let row_id: Uuid = row.try_get("id")?;
    let node = if order == KeyOrder::ByRun { row_id } else { Uuid::nil() };
    Ok(Head {
        key: Key { at: row.try_get("key_at")?, id: row.try_get("key_id")?, node },
        row_id,
        created_at: row.try_get("created_at")?,
        finished_at: row.try_get("finished_at")?,
        status: row.try_get_raw("status")?.as_bytes().unwrap_or_default().to_vec(),
        text_bytes: u64::try_from(row.try_get::<i64, _>("text_bytes")?)?,
        offloaded: row.try_get("offloaded")?,
    })
}
