//! Deletes the rows of one batch that equal its fresh proof, some hundreds a transaction.
//!
//! Within one transaction: the ledger's batch is locked, then its rows; each row is judged again,
//! converted by the batch's own conversion and compared with its log as it was pulled back; those
//! that are equal are deleted, and the ledger's marks change. Where the ledger is in another
//! database its marks are written before and made true afterwards.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::purge::{ProvedBatch, RowMarks, lock_for_purge, note_purged};
use crate::pg::Tx;
use crate::pipeline::purge::chunk_size::ChunkSize;
use crate::pipeline::purge::comparison::Comparison;
use crate::pipeline::purge::fate::{Fate, Kept, LockedRow, PurgeRules, fate};
use crate::pipeline::verify::fresh_proof::FreshProof;
use crate::record::row_set::RowSet;
use crate::source::writable::{Writable, delete_rows, is_timeout};

/// What a deletion works with.
pub struct Deleter {
    pub ledger: Ledger,
    pub target: Writable,
    /// Whether ledger and source are one database, so that one transaction holds both.
    pub is_one_database: bool,
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
    /// The proof has become too old meanwhile: nothing was deleted by it.
    ProofTooOld,
    /// Somebody else purges the batch, or it is not proved any more.
    NotOurs,
}

/// Rows of one batch, and its proof.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    pub batch: &'a ProvedBatch,
    pub proof: &'a FreshProof,
    /// Where the rows are in the batch.
    pub places: &'a [usize],
}

/// Rows that are locked, and what becomes of each.
struct Look {
    tx: Tx,
    /// The batch's, which is locked with them; `None`: the ledger is in another database.
    marks: Option<RowMarks>,
    fates: BTreeMap<usize, Fate>,
}

impl Deleter {
    /// Deletes what may go of a piece: at most [`ChunkSize::rows`] rows.
    pub async fn step(
        &mut self,
        piece: Piece<'_>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<Step> {
        assert_eq!(piece.proof.batch_id(), piece.batch.id, "a proof is of its own batch");
        let begun = Instant::now();
        match self.try_step(piece, comparison).await {
            Ok(Ok(deleted)) => {
                self.chunk_size.took(piece.places.len(), begun.elapsed());
                Ok(Step::Done(deleted))
            }
            Ok(Err(step)) => Ok(step),
            Err(error) if is_timeout(&error) => {
                self.chunk_size.timed_out();
                Ok(Step::TimedOut)
            }
            Err(error) => Err(error),
        }
    }

    async fn try_step(
        &self,
        piece: Piece<'_>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<Result<Deleted, Step>> {
        let look = match self.look(piece, comparison).await? {
            Ok(look) => look,
            Err(step) => return Ok(Err(step)),
        };
        match look {
            Look { tx, marks: Some(marks), fates } => {
                Ok(Ok(self.together(tx, piece.batch, marks, &fates).await?))
            }
            Look { tx, marks: None, fates } => {
                // A first look without consequences says which rows to mark.
                tx.rollback().await.context("end a look at rows")?;
                self.apart(piece, comparison, &fates).await
            }
        }
    }

    /// Locks rows, and their batch where the ledger is in the same database, and decides about each.
    async fn look(
        &self,
        piece: Piece<'_>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<Result<Look, Step>> {
        let mut tx = self.target.begin().await?;
        let marks = match self.is_one_database {
            true => match lock_for_purge(&mut tx, piece.batch).await? {
                Some(marks) => Some(marks),
                None => return Ok(Err(Step::NotOurs)),
            },
            false => None,
        };
        Ok(match self.judge(&mut tx, piece, comparison).await? {
            Some(fates) => Ok(Look { tx, marks, fates }),
            None => Err(Step::ProofTooOld),
        })
    }

    /// Rows and marks in one transaction.
    async fn together(
        &self,
        mut tx: Tx,
        batch: &ProvedBatch,
        mut marks: RowMarks,
        fates: &BTreeMap<usize, Fate>,
    ) -> anyhow::Result<Deleted> {
        delete_rows(&mut tx, batch.table, &doomed(batch, fates)).await?;
        let deleted = note(&mut marks, batch, fates);
        note_purged(&mut tx, batch, &marks).await?;
        tx.commit().await.context("commit a deletion")?;
        Ok(deleted)
    }

    /// Marks first, then rows, then the marks as they turned out.
    async fn apart(
        &self,
        piece: Piece<'_>,
        comparison: &mut Comparison,
        seen: &BTreeMap<usize, Fate>,
    ) -> anyhow::Result<Result<Deleted, Step>> {
        let batch = piece.batch;
        let mut planned = RowSet::empty(batch.row_ids.len());
        let to_delete = seen.iter().filter(|(_, fate)| **fate == Fate::Delete);
        to_delete.for_each(|(place, _)| planned.insert(*place));
        if !self.ledger.begin_purging(batch, &planned).await? {
            return Ok(Err(Step::NotOurs));
        }
        let Look { mut tx, mut fates, .. } = match self.look(piece, comparison).await? {
            Ok(look) => look,
            Err(step) => return Ok(Err(step)),
        };
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
        Ok(Ok(deleted))
    }

    /// The batch's marks as the ledger has them now.
    async fn marks_now(&self, batch: &ProvedBatch) -> anyhow::Result<RowMarks> {
        let now = self.ledger.batches_by_id(vec![batch.id]).await?;
        let now = now.into_iter().next().context("the ledger has lost a batch")?;
        Ok(now.marks)
    }

    /// Locks rows and decides about each; `None`: the proof has become too old while they were
    /// waited for and read.
    async fn judge(
        &self,
        tx: &mut Tx,
        piece: Piece<'_>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<Option<BTreeMap<usize, Fate>>> {
        let Piece { batch, proof, places } = piece;
        let row_ids: Vec<Uuid> = places.iter().map(|place| batch.row_ids[*place]).collect();
        let mut facts = comparison.lock(tx, &row_ids).await?;
        let digests = comparison.digests(tx, &row_ids).await?;
        let mut fates = BTreeMap::new();
        for (place, id) in places.iter().zip(&row_ids) {
            let Some(proved) = proof.digest_of(*id) else {
                anyhow::ensure!(!proof.is_fresh(), "the proof of a batch lacks row {id}");
                return Ok(None);
            };
            let row =
                facts.remove(id).map(|facts| LockedRow { facts, digest: digests.get(id).copied() });
            fates.insert(*place, fate(batch.table, row.as_ref(), proved, self.rules));
        }
        Ok(Some(fates))
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
            revised: RowSet::empty(5),
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
