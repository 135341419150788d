//! Deletes the rows of one batch that equal its fresh proof, some hundreds a transaction.
//!
//! Within one transaction: the ledger's batch is locked, then its rows; each row is judged again,
//! converted by the batch's own conversion and compared with its log as it was pulled back; those
//! that are equal are deleted, and the ledger's marks change. Where the ledger is in another
//! database its marks are written before and made true afterwards.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, ReadRow, Verdict};
use crate::dify::eligibility::Bounds;
use crate::ledger::Ledger;
use crate::ledger::purge::{ProvedBatch, PurgeWindow, RowMarks, lock_for_purge, note_purged};
use crate::pg::Tx;
use crate::pipeline::purge::chunk_size::ChunkSize;
use crate::pipeline::purge::fate::{Fate, Kept, LockedRow, PurgeRules, fate};
use crate::pipeline::verify::fresh_proof::FreshProof;
use crate::record::digest::Digest;
use crate::record::row_set::RowSet;
use crate::record::table::Column;
use crate::source::writable::{
    FactsAsked, LockedFacts, Writable, delete_rows, is_timeout, lock_rows, read_locked,
};
use crate::wire::log_group::LogGroupWriter;

/// Memory beyond that is given back after a batch.
const KEEP_BYTES: usize = 3 << 20;

/// What a deletion works with.
pub struct Deleter {
    pub ledger: Ledger,
    pub target: Writable,
    /// Whether ledger and source are one database, so that one transaction holds both.
    pub is_one_database: bool,
    /// The table's columns as they are now.
    pub columns: Vec<Column>,
    pub has_offload: bool,
    pub has_pauses: bool,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    pub window: PurgeWindow,
    pub rules: PurgeRules,
    pub chunk_size: ChunkSize,
}

/// What became of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    pub purged: u64,
    pub gone: u64,
    /// Rows that differ from their logs, and stayed.
    pub changed: Vec<Uuid>,
    /// Rows that stayed for another reason.
    pub kept: BTreeMap<Kept, u64>,
}

impl Deleted {
    /// Adds what became of others.
    pub fn add(&mut self, mut other: Self) {
        self.purged += other.purged;
        self.gone += other.gone;
        self.changed.append(&mut other.changed);
        for (reason, rows) in other.kept {
            *self.kept.entry(reason).or_default() += rows;
        }
    }
}

/// How a step of a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Done(Deleted),
    /// Postgres cancelled it for its time or a lock: nothing was deleted by it.
    TimedOut,
    /// Somebody else purges the batch, or it is not proved any more.
    NotOurs,
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

impl Deleter {
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

    /// Deletes what may go of the rows at `places` of the batch: at most [`ChunkSize::rows`] of
    /// them.
    pub async fn step(
        &mut self,
        batch: &ProvedBatch,
        proof: &FreshProof,
        comparison: &mut Comparison,
        places: &[usize],
    ) -> anyhow::Result<Step> {
        assert_eq!(proof.batch_id(), batch.id, "a proof is of its own batch");
        let begun = Instant::now();
        let done = match self.is_one_database {
            true => self.together(batch, proof, comparison, places).await,
            false => self.apart(batch, proof, comparison, places).await,
        };
        match done {
            Ok(step) => {
                self.chunk_size.took(places.len(), begun.elapsed());
                Ok(step)
            }
            Err(error) if is_timeout(&error) => {
                self.chunk_size.timed_out();
                Ok(Step::TimedOut)
            }
            Err(error) => Err(error),
        }
    }

    /// Rows and marks in one transaction.
    async fn together(
        &self,
        batch: &ProvedBatch,
        proof: &FreshProof,
        comparison: &mut Comparison,
        places: &[usize],
    ) -> anyhow::Result<Step> {
        let mut tx = self.target.begin().await?;
        let Some(mut marks) = lock_for_purge(&mut tx, batch).await? else {
            return Ok(Step::NotOurs);
        };
        let fates = self.judge(&mut tx, batch, proof, comparison, places).await?;
        let doomed = doomed(batch, &fates);
        delete_rows(&mut tx, batch.table, &doomed).await?;
        let deleted = note(&mut marks, batch, &fates);
        note_purged(&mut tx, batch, &marks).await?;
        tx.commit().await.context("commit a deletion")?;
        Ok(Step::Done(deleted))
    }

    /// Marks first, then rows, then the marks as they turned out.
    async fn apart(
        &self,
        batch: &ProvedBatch,
        proof: &FreshProof,
        comparison: &mut Comparison,
        places: &[usize],
    ) -> anyhow::Result<Step> {
        // A first look without consequences says which rows to mark.
        let mut tx = self.target.begin().await?;
        let fates = self.judge(&mut tx, batch, proof, comparison, places).await?;
        tx.rollback().await.context("end a look at rows")?;
        let mut planned = RowSet::empty(batch.row_ids.len());
        let to_delete = fates.iter().filter(|(_, fate)| **fate == Fate::Delete);
        to_delete.for_each(|(place, _)| planned.insert(*place));
        if !self.ledger.begin_purging(batch, &planned).await? {
            return Ok(Step::NotOurs);
        }
        let mut tx = self.target.begin().await?;
        let mut fates = self.judge(&mut tx, batch, proof, comparison, places).await?;
        for (place, fate) in &mut fates {
            // What has become fit only now is not marked: it goes another time.
            if *fate == Fate::Delete && !planned.contains(*place) {
                *fate = Fate::Kept(Kept::NotWanted);
            }
        }
        delete_rows(&mut tx, batch.table, &doomed(batch, &fates)).await?;
        tx.commit().await.context("commit a deletion")?;
        let mut marks = self.marks_now(batch).await?;
        let deleted = note(&mut marks, batch, &fates);
        self.ledger.end_purging(batch, &marks).await?;
        Ok(Step::Done(deleted))
    }

    /// The batch's marks as the ledger has them now.
    async fn marks_now(&self, batch: &ProvedBatch) -> anyhow::Result<RowMarks> {
        let now = self.ledger.batches_by_id(vec![batch.id]).await?;
        let now = now.into_iter().next().context("the ledger has lost a batch")?;
        Ok(now.marks)
    }

    /// Locks rows and decides about each.
    async fn judge(
        &self,
        tx: &mut Tx,
        batch: &ProvedBatch,
        proof: &FreshProof,
        comparison: &mut Comparison,
        places: &[usize],
    ) -> anyhow::Result<BTreeMap<usize, Fate>> {
        let row_ids: Vec<Uuid> = places.iter().map(|place| batch.row_ids[*place]).collect();
        let mut facts = lock_rows(tx, &comparison.facts, &row_ids).await?;
        let digests = comparison.digests(tx, &row_ids).await?;
        places
            .iter()
            .zip(&row_ids)
            .map(|(place, id)| {
                let proved = proof.digest_of(*id).context("the proof of a batch has become old")?;
                let row = facts.remove(id).map(|facts| locked_row(facts, digests.get(id)));
                Ok((*place, fate(batch.table, row.as_ref(), proved, self.rules)))
            })
            .collect()
    }
}

impl Comparison {
    /// The digests of the logs that rows make now; a row that is not fit to be a log has none.
    async fn digests(
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

fn locked_row(facts: LockedFacts, digest: Option<&Digest>) -> LockedRow {
    LockedRow {
        is_wanted: facts.is_wanted,
        is_debugging: facts.is_debugging,
        is_offloaded: facts.is_offloaded,
        is_paused: facts.is_paused,
        run_status: facts.run_status,
        has_unknown_columns: facts.has_unknown_columns,
        has_dropped_columns: facts.has_dropped_columns,
        digest: digest.copied(),
    }
}

fn doomed(batch: &ProvedBatch, fates: &BTreeMap<usize, Fate>) -> Vec<Uuid> {
    let doomed = fates.iter().filter(|(_, fate)| **fate == Fate::Delete);
    doomed.map(|(place, _)| batch.row_ids[*place]).collect()
}

/// Writes fates into the marks; counts them.
fn note(marks: &mut RowMarks, batch: &ProvedBatch, fates: &BTreeMap<usize, Fate>) -> Deleted {
    let mut deleted = Deleted::default();
    for (place, fate) in fates {
        let was_marked = marks.purged.contains(*place);
        for set in [&mut marks.purged, &mut marks.gone, &mut marks.changed] {
            set.remove(*place);
        }
        match fate {
            Fate::Delete => {
                marks.purged.insert(*place);
                deleted.purged += 1;
            }
            // Marked by us before it was deleted, and a crash came between: it was deleted.
            Fate::Gone if was_marked => marks.purged.insert(*place),
            Fate::Gone => {
                marks.gone.insert(*place);
                deleted.gone += 1;
            }
            Fate::Changed => {
                marks.changed.insert(*place);
                deleted.changed.push(batch.row_ids[*place]);
            }
            Fate::Kept(reason) => *deleted.kept.entry(*reason).or_default() += 1,
        }
    }
    deleted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::digest::Sum;
    use crate::record::table::Table;
    use crate::record::timestamp::Timestamp;

    #[test]
    fn a_row_that_was_marked_and_is_gone_was_deleted_by_us() {
        let batch = ProvedBatch {
            id: Uuid::nil(),
            table: Table::Runs,
            logstore: String::new(),
            sent_by: Uuid::nil(),
            row_ids: (0..5).map(Uuid::from_u128).collect(),
            wanted: Sum::default(),
            conversion: None,
            ingest_time: 0,
            days: Vec::new(),
            finished_first: Timestamp::INFINITY,
            received_first: Timestamp::INFINITY,
            places: Vec::new(),
            marks: RowMarks {
                purged: RowSet::empty(5),
                gone: RowSet::empty(5),
                changed: RowSet::empty(5),
            },
            is_purging: true,
        };
        let mut marks = batch.marks.clone();
        marks.purged.insert(1);
        marks.purged.insert(2);
        marks.changed.insert(3);
        let fates = BTreeMap::from([
            (0, Fate::Gone),
            (1, Fate::Gone),
            (2, Fate::Changed),
            (3, Fate::Delete),
            (4, Fate::Kept(Kept::Paused)),
        ]);
        let deleted = note(&mut marks, &batch, &fates);
        assert_eq!((deleted.purged, deleted.gone, deleted.changed.len()), (1, 1, 1));
        assert!(marks.purged.places().eq([1, 3]));
        assert!(marks.gone.places().eq([0]));
        assert!(marks.changed.places().eq([2]));
        assert!(!marks.are_complete(5), "a row that was kept is looked at again");
        marks.gone.insert(4);
        assert!(marks.are_complete(5));
    }
}
