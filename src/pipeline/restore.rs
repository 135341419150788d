//! Brings purged rows back: from SLS, through a fresh proof, into Postgres.
//!
//! A row that was put in is read back and converted in the same transaction: it must make the very
//! log that it came from, or all is taken back.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, Verdict};
use crate::dify::restore::Restorer;
use crate::ledger::Ledger;
use crate::ledger::purge::ProvedBatch;
use crate::ledger::restore::note_restored;
use crate::pg::Tx;
use crate::pipeline::verify::fresh_proof::{FreshProof, NotProved, pull, row_id};
use crate::record::digest::Digest;
use crate::record::table::Column;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::writable::{Writable, insert_rows, read_locked};
use crate::wire::log_group::{LogGroupWriter, LogView};

/// Rows put in by one transaction.
const CHUNK_ROWS: usize = 500;

/// What a restore works with.
pub struct Restoration {
    pub ledger: Ledger,
    pub client: Client,
    pub target: Writable,
    /// Whether ledger and source are one database, so that one transaction holds both.
    pub is_one_database: bool,
    /// The table's columns as they are now.
    pub columns: Vec<Column>,
    /// Leave out columns of the logs that the table does not have any more.
    pub drop_unknown: bool,
    /// Only rows whose log says so; `None`: all.
    pub wanted: Wanted,
}

/// Which rows of a batch are brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    All,
    /// This run, or the node executions of it.
    Run(Uuid),
    /// Rows that finished at `since` or later and before `until` (UTC).
    Finished {
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    },
}

/// What came of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Rows put in.
    pub rows: u64,
    /// Rows that were there already, equal to their logs.
    pub already: u64,
    /// Rows that were there already, with other values; they stay as they are.
    pub different: Vec<Uuid>,
}

/// Why a batch cannot be brought back.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    #[error("{0}")]
    NotProved(NotProved),
    #[error("nobody knows by which conversion its logs were made")]
    NoConversion,
    #[error("its logs have columns that the table lacks: {0} (--drop-unknown leaves them out)")]
    UnknownColumns(String),
}

/// The rows of a batch on their way back.
struct Rows {
    conversion: Conversion,
    ingest_time: u32,
    /// Names of the columns that are put in.
    columns: Vec<String>,
    /// Place in the batch, id, values of `columns`.
    list: Vec<(usize, Uuid, Vec<Option<String>>)>,
}

impl Restoration {
    /// How many purged rows of `batch` are wanted; pulls its logs to find out.
    pub async fn count(&self, batch: &ProvedBatch) -> anyhow::Result<Result<u64, NotRestored>> {
        Ok(self.rows(batch).await?.map(|(rows, _)| rows.list.len() as u64))
    }

    /// Brings the wanted rows of a batch back.
    pub async fn restore(
        &self,
        batch: &ProvedBatch,
    ) -> anyhow::Result<Result<Restored, NotRestored>> {
        let (rows, proof) = match self.rows(batch).await? {
            Ok(rows) => rows,
            Err(why) => return Ok(Err(why)),
        };
        let mut restored = Restored::default();
        for chunk in rows.list.chunks(CHUNK_ROWS) {
            self.chunk(batch, &rows, &proof, chunk, &mut restored).await?;
        }
        Ok(Ok(restored))
    }

    /// Pulls the batch, and makes rows of the logs whose rows were purged and are wanted.
    async fn rows(
        &self,
        batch: &ProvedBatch,
    ) -> anyhow::Result<Result<(Rows, FreshProof), NotRestored>> {
        let Some(json) = batch.conversion.clone() else {
            return Ok(Err(NotRestored::NoConversion));
        };
        let conversion: Conversion =
            serde_json::from_value(json).context("read the batch's conversion from the ledger")?;
        let kept = match self.kept_columns(&conversion) {
            Ok(kept) => kept,
            Err(unknown) => return Ok(Err(NotRestored::UnknownColumns(unknown.join(", ")))),
        };
        let places: HashMap<Uuid, usize> =
            batch.marks.purged.places().map(|place| (batch.row_ids[place], place)).collect();
        let mut restorer = Restorer::new(&conversion)?;
        let (mut list, mut odd) = (Vec::new(), None);
        let pulled = pull(&self.client, batch, |log| {
            let Some(id) = row_id(log).filter(|_| self.wanted.has(log)) else { return };
            let Some(place) = places.get(&id) else { return };
            match restorer.row(&log.contents) {
                Ok(mut row) => {
                    let values = kept.iter().map(|at| row[*at].take()).collect();
                    list.push((*place, id, values));
                }
                Err(error) => odd = Some(error),
            }
        });
        let proof = match pulled.await? {
            Ok(proof) => proof,
            Err(why) => return Ok(Err(NotRestored::NotProved(why))),
        };
        if let Some(error) = odd {
            return Err(error).context("make a row of a log");
        }
        let columns = kept.iter().map(|at| conversion.columns[*at].name.clone()).collect();
        let ingest_time = batch.ingest_time;
        Ok(Ok((Rows { conversion, ingest_time, columns, list }, proof)))
    }

    /// The places of the conversion's columns that are put in; the names of those that the table
    /// lacks, unless they are to be left out.
    fn kept_columns(&self, conversion: &Conversion) -> Result<Vec<usize>, Vec<String>> {
        let dropped = conversion.dropped_columns();
        let (mut kept, mut unknown) = (Vec::new(), Vec::new());
        for (at, column) in conversion.columns.iter().enumerate() {
            let is_there = self.columns.iter().any(|now| now.name == column.name);
            match (is_there, dropped.contains(&column.name.as_str())) {
                (true, false) => kept.push(at),
                (true, true) => {}
                (false, _) => unknown.push(column.name.clone()),
            }
        }
        if unknown.is_empty() || self.drop_unknown { Ok(kept) } else { Err(unknown) }
    }

    async fn chunk(
        &self,
        batch: &ProvedBatch,
        rows: &Rows,
        proof: &FreshProof,
        chunk: &[(usize, Uuid, Vec<Option<String>>)],
        restored: &mut Restored,
    ) -> anyhow::Result<()> {
        let table = batch.table;
        let ids: Vec<Uuid> = chunk.iter().map(|(_, id, _)| *id).collect();
        let values: Vec<_> = chunk.iter().map(|(.., values)| values.clone()).collect();
        let mut tx = self.target.begin().await?;
        let inserted = insert_rows(&mut tx, table, &rows.columns, &values).await?;
        let inserted: HashSet<Uuid> = inserted.into_iter().collect();
        let digests = rows.digests(&mut tx, &ids).await?;
        let mut back = Vec::new();
        for (place, id, _) in chunk {
            let proved = proof.digest_of(*id).context("the proof of a batch has become old")?;
            let is_equal = digests.get(id) == Some(&proved);
            // A column that the table lacks now was part of the log.
            anyhow::ensure!(
                is_equal || !inserted.contains(id) || self.drop_unknown,
                "row {id} of {table} would not come back as it was; all was taken back"
            );
            if is_equal || inserted.contains(id) {
                back.push(*place);
            } else {
                restored.different.push(*id);
            }
        }
        if self.is_one_database {
            note_restored(&mut tx, batch, &back).await?;
        }
        tx.commit().await.context("commit rows that are back")?;
        if !self.is_one_database {
            // A crash before this leaves rows that are there and marked as purged: the next restore
            // finds them there.
            self.ledger.restored(batch, &back).await?;
        }
        restored.rows += inserted.len() as u64;
        restored.already += (back.len() - inserted.len()) as u64;
        Ok(())
    }
}

impl Rows {
    /// The digests of the logs that the rows make as they are now.
    async fn digests(&self, tx: &mut Tx, ids: &[Uuid]) -> anyhow::Result<HashMap<Uuid, Digest>> {
        let mut digests = HashMap::new();
        let mut converter = Converter::new(&self.conversion)?;
        let mut group = LogGroupWriter::default();
        let Conversion { table, columns, .. } = &self.conversion;
        read_locked(tx, *table, columns, ids, |cells| {
            group.clear(0);
            let verdict =
                converter.convert(cells, Timestamp::INFINITY, self.ingest_time, &mut group);
            if let Verdict::Log(converted) = verdict {
                digests.insert(converted.row_id, converted.digest);
            }
        })
        .await?;
        Ok(digests)
    }
}

impl Wanted {
    fn has(&self, log: &LogView<'_>) -> bool {
        let field = |name: &str| {
            let found = log.contents.iter().find(|(key, _)| *key == name.as_bytes());
            found.and_then(|(_, value)| std::str::from_utf8(value).ok())
        };
        match self {
            Self::All => true,
            Self::Run(run) => {
                let is = |name| field(name).and_then(|id| id.parse().ok()) == Some(*run);
                // A node execution names its run; a run has no such field.
                if field("workflow_run_id").is_some() { is("workflow_run_id") } else { is("id") }
            }
            Self::Finished { since, until } => {
                let at = field("finished_at").and_then(Timestamp::from_isoformat);
                at.is_some_and(|at| {
                    since.is_none_or(|since| at >= since) && until.is_none_or(|until| at < until)
                })
            }
        }
    }
}
