//! Compares the rows of a batch with their logs: each is converted by the batch's own conversion.

use std::collections::HashMap;

use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, ReadRow, Verdict};
use crate::dify::eligibility::Bounds;
use crate::ledger::purge::{ProvedBatch, PurgeWindow};
use crate::pg::Tx;
use crate::record::digest::Digest;
use crate::record::table::Column;
use crate::source::writable::{FactsAsked, LockedFacts, lock_rows, read_locked};
use crate::wire::log_group::LogGroupWriter;

/// Memory beyond that is given back after a row.
const KEEP_BYTES: usize = 3 << 20;

/// What is asked of a table's rows, whichever batch they are in.
#[derive(Debug, Clone)]
pub struct Comparing {
    /// The table's columns as they are now.
    pub columns: Vec<Column>,
    pub has_offload: bool,
    pub has_pauses: bool,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    pub window: PurgeWindow,
}

/// Why no row of a batch can be compared.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotComparable(String);

/// A batch's rows by the conversion that made its logs.
pub struct Comparison {
    conversion: Conversion,
    converter: Converter,
    facts: FactsAsked,
    group: LogGroupWriter,
    ingest_time: u32,
}

impl Comparing {
    /// Prepares to compare the rows of `batch`; fails where nobody knows how its logs were made, or
    /// the table lacks a column that they were made of.
    pub fn comparison(&self, batch: &ProvedBatch) -> Result<Comparison, NotComparable> {
        let Some(json) = batch.conversion.clone() else {
            return Err(NotComparable(
                "nobody knows by which conversion its logs were made".into(),
            ));
        };
        let conversion: Conversion = serde_json::from_value(json)
            .map_err(|error| NotComparable(format!("its conversion cannot be read: {error}")))?;
        let lacking = conversion.columns.iter().find(|column| !self.columns.contains(column));
        if let Some(column) = lacking {
            return Err(NotComparable(format!(
                "the table has no column {} any more, or of another type, of which its logs were made",
                column.name
            )));
        }
        let converter =
            Converter::new(&conversion).map_err(|unfit| NotComparable(unfit.to_string()))?;
        let names = |columns: &[&Column]| columns.iter().map(|c| c.name.clone()).collect();
        let unknown: Vec<_> = self
            .columns
            .iter()
            .filter(|column| conversion.columns.iter().all(|known| known.name != column.name))
            .collect();
        Ok(Comparison {
            facts: FactsAsked {
                table: conversion.table,
                tenant_id: self.tenant_id,
                app_id: self.app_id,
                since: self.window.since,
                until: self.window.until,
                unknown_columns: names(&unknown),
                dropped_columns: conversion
                    .dropped_columns()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                has_offload: self.has_offload,
                has_pauses: self.has_pauses,
            },
            conversion,
            converter,
            group: LogGroupWriter::default(),
            ingest_time: batch.ingest_time,
        })
    }
}

impl Comparison {
    /// Locks those of `row_ids` that are there, and gives what is to be known of them.
    pub async fn lock(
        &self,
        tx: &mut Tx,
        row_ids: &[Uuid],
    ) -> anyhow::Result<HashMap<Uuid, LockedFacts>> {
        lock_rows(tx, &self.facts, row_ids).await
    }

    /// The digests of the logs that rows make now; a row that is not fit to be a log has none.
    pub async fn digests(
        &mut self,
        tx: &mut Tx,
        row_ids: &[Uuid],
    ) -> anyhow::Result<HashMap<Uuid, Digest>> {
        let Self { conversion, converter, group, ingest_time, .. } = self;
        let mut digests = HashMap::with_capacity(row_ids.len());
        read_locked(tx, conversion.table, &conversion.columns, row_ids, |cells| {
            group.clear(KEEP_BYTES);
            // It was settled when it was sent; what has changed since shows in the digest.
            // Whether it is offloaded now was asked with the lock.
            let row = ReadRow { cells, is_offloaded: false };
            let verdict = converter.convert(row, &Bounds::NONE, *ingest_time, group);
            if let Verdict::Log(converted) = verdict {
                digests.insert(converted.row_id, converted.digest);
            }
        })
        .await?;
        Ok(digests)
    }
}
