//! Brings purged rows back: from SLS, through a fresh proof, into Postgres.
//!
//! A row that was put in is read back and converted in the same transaction: it must make the very
//! log that it came from, or all is taken back.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, ReadRow, Verdict};
use crate::dify::eligibility::Bounds;
use crate::dify::restore::Restorer;
use crate::ledger::Ledger;
use crate::ledger::purge::ProvedBatch;
use crate::ledger::restore::note_restored;
use crate::pg::Tx;
use crate::pipeline::verify::fresh_proof::{FRESH_FOR, NotProved, pull, row_id};
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
    /// The batch's, less columns that are left out.
    conversion: Conversion,
    ingest_time: u32,
    /// Names of the columns that are put in.
    columns: Vec<String>,
    list: Vec<Row>,
}

/// A row on its way back.
struct Row {
    place: usize,
    id: Uuid,
    /// The values of [`Rows::columns`].
    values: Vec<Option<String>>,
    /// The digest of its log, less the fields of columns that are left out.
    digest: Digest,
}

impl Restoration {
    /// How many purged rows of `batch` are wanted; pulls its logs to find out.
    pub async fn count(&self, batch: &ProvedBatch) -> anyhow::Result<Result<u64, NotRestored>> {
        Ok(self.rows(batch).await?.map(|rows| rows.list.len() as u64))
    }

    /// Brings the wanted rows of a batch back.
    pub async fn restore(
        &self,
        batch: &ProvedBatch,
    ) -> anyhow::Result<Result<Restored, NotRestored>> {
        let rows = match self.rows(batch).await? {
            Ok(rows) => rows,
            Err(why) => return Ok(Err(why)),
        };
        let mut restored = Restored::default();
        for chunk in rows.list.chunks(CHUNK_ROWS) {
            self.chunk(batch, &rows, chunk, &mut restored).await?;
        }
        Ok(Ok(restored))
    }

    /// Pulls the batch, and makes rows of the logs whose rows were purged and are wanted.
    async fn rows(&self, batch: &ProvedBatch) -> anyhow::Result<Result<Rows, NotRestored>> {
        let Some(json) = batch.conversion.clone() else {
            return Ok(Err(NotRestored::NoConversion));
        };
        let conversion: Conversion =
            serde_json::from_value(json).context("read the batch's conversion from the ledger")?;
        let unknown = self.unknown_columns(&conversion);
        if !unknown.is_empty() && !self.drop_unknown {
            return Ok(Err(NotRestored::UnknownColumns(unknown.join(", "))));
        }
        let kept = kept_columns(&conversion, &unknown);
        let places: HashMap<Uuid, usize> =
            batch.marks.purged.places().map(|place| (batch.row_ids[place], place)).collect();
        let mut restorer = Restorer::new(&conversion)?;
        let (mut list, mut odd) = (Vec::new(), None);
        let pulled = pull(&self.client, &self.ledger.seal, batch, FRESH_FOR, |log| {
            let Some(id) = row_id(log).filter(|_| self.wanted.has(log)) else { return };
            let Some(place) = places.get(&id) else { return };
            match restorer.row(&log.contents) {
                Ok(mut row) => {
                    let values = kept.iter().map(|at| row[*at].take()).collect();
                    let digest = digest_without(log, &unknown);
                    list.push(Row { place: *place, id, values, digest });
                }
                Err(error) => odd = Some(error),
            }
        });
        if let Err(why) = pulled.await? {
            return Ok(Err(NotRestored::NotProved(why)));
        }
        if let Some(error) = odd {
            return Err(error).context("make a row of a log");
        }
        let columns = kept.iter().map(|at| conversion.columns[*at].name.clone()).collect();
        let ingest_time = batch.ingest_time;
        let mut conversion = conversion;
        conversion.columns.retain(|column| !unknown.contains(&column.name));
        Ok(Ok(Rows { conversion, ingest_time, columns, list }))
    }

    /// Columns that the logs have and the table lacks.
    fn unknown_columns(&self, conversion: &Conversion) -> Vec<String> {
        let is_there = |column: &&Column| self.columns.iter().all(|now| now.name != column.name);
        let unknown = conversion.columns.iter().filter(is_there);
        unknown.map(|column| column.name.clone()).collect()
    }

    async fn chunk(
        &self,
        batch: &ProvedBatch,
        rows: &Rows,
        chunk: &[Row],
        restored: &mut Restored,
    ) -> anyhow::Result<()> {
        let table = batch.table;
        let ids: Vec<Uuid> = chunk.iter().map(|row| row.id).collect();
        let values: Vec<_> = chunk.iter().map(|row| row.values.clone()).collect();
        let mut tx = self.target.begin().await?;
        let inserted = insert_rows(&mut tx, table, &rows.columns, &values).await?;
        let inserted: HashSet<Uuid> = inserted.into_iter().collect();
        let digests = rows.digests(&mut tx, &ids).await?;
        let mut back = Vec::new();
        for Row { place, id, digest, .. } in chunk {
            let is_equal = digests.get(id) == Some(digest);
            anyhow::ensure!(
                is_equal || !inserted.contains(id),
                "row {id} of {table} would not come back as it was; all was taken back"
            );
            if is_equal {
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

/// The places of the conversion's columns that are put in.
fn kept_columns(conversion: &Conversion, unknown: &[String]) -> Vec<usize> {
    let dropped = conversion.dropped_columns();
    let is_kept = |name: &String| !unknown.contains(name) && !dropped.contains(&name.as_str());
    let columns = conversion.columns.iter().enumerate();
    columns.filter(|(_, column)| is_kept(&column.name)).map(|(at, _)| at).collect()
}

/// The digest of a log without the fields of these columns, which bear their names.
fn digest_without(log: &LogView<'_>, columns: &[String]) -> Digest {
    let is_kept = |key: &[u8]| columns.iter().all(|column| column.as_bytes() != key);
    let mut fields: Vec<_> = log.contents.iter().filter(|(key, _)| is_kept(key)).copied().collect();
    Digest::of_log(log.time.unwrap_or(0), &mut fields)
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
            let row = ReadRow { cells, is_offloaded: false };
            let verdict = converter.convert(row, &Bounds::NONE, self.ingest_time, &mut group);
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
