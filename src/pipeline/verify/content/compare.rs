//! Reads the rows of batches from Postgres again, converts them as they were converted then, and
//! compares with the ledger.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::eligibility::Bounds;
use crate::ledger::Ledger;
use crate::ledger::finding::Finding;
use crate::ledger::verification::Verification;
use crate::ledger::verified_batches::BatchToCompare;
use crate::pipeline::progress::Progress;
use crate::pipeline::read::assemble::{Assembled, Assembler};
use crate::pipeline::read::batching::Sought;
use crate::pipeline::shutdown::Shutdown;
use crate::record::digest::Digest;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;

/// Batches that are read at the same time; each is in memory, up to 10 MB.
const BATCHES_AT_ONCE: usize = 4;

/// Batches whose row ids are read from the ledger at once.
const PAGE_BATCHES: u32 = 64;

/// A finding that is not explained yet: rows of it have changed in Postgres, are gone, or both.
pub const SOURCE_DIFFERS: &str = "source_differs";
/// Rows whose log would be another today.
pub const SOURCE_CHANGED: &str = "source_changed";
/// Rows that are not in Postgres any more, though no purge has deleted them.
pub const SOURCE_GONE: &str = "source_gone";
/// Batches that cannot be made again from Postgres by this program.
pub const NOT_COMPARED: &str = "not_compared";

/// What is needed to compare.
#[derive(Clone)]
pub struct ComparerParts {
    pub source: Source,
    pub ledger: Ledger,
    pub verification: Arc<Verification>,
    pub progress: Arc<Progress>,
    /// The conversion of the source as it is now.
    pub current: Conversion,
    pub shape: Shape,
}

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareTally {
    pub batches_equal: u64,
    pub rows_equal: u64,
}

/// Compares batches; keeps what makes them from one to the next.
#[derive(Clone)]
pub struct Comparer {
    parts: ComparerParts,
    assemblers: Arc<Mutex<Vec<(i64, Assembler)>>>,
}

/// How the rows of a batch are in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    Equal,
    /// Not all of them are as they were; these are gone.
    Differs {
        gone: Vec<Uuid>,
    },
    /// They cannot be converted as they were then.
    NotComparable(String),
}

impl Comparer {
    pub fn new(parts: ComparerParts) -> Self {
        Self { parts, assemblers: Arc::default() }
    }

    /// Compares all batches of the scope behind the verification's position; `None` when asked to
    /// stop.
    pub async fn all(&self, shutdown: &Shutdown) -> anyhow::Result<Option<CompareTally>> {
        let ComparerParts { ledger, verification, .. } = &self.parts;
        let mut tally: CompareTally = serde_json::from_value(verification.tally.clone())
            .context("read what a verification has counted")?;
        let mut after = verification.compared_after;
        loop {
            let batches = ledger.batches_to_compare(verification, after, PAGE_BATCHES).await?;
            let Some(last) = batches.last() else { return Ok(Some(tally)) };
            after = last.id;
            let Some(findings) = self.page(batches, &mut tally, shutdown).await? else {
                return Ok(None);
            };
            let noted = serde_json::to_value(tally)?;
            ledger.note_compared(verification, after, &noted, &findings).await?;
        }
    }

    /// Compares these batches, several beside each other; gives what is to be told of them.
    pub async fn page(
        &self,
        batches: Vec<BatchToCompare>,
        tally: &mut CompareTally,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Option<Vec<Finding>>> {
        let (mut waiting, mut comparing) = (batches.into_iter(), JoinSet::new());
        let mut findings = Vec::new();
        loop {
            while comparing.len() < BATCHES_AT_ONCE
                && !shutdown.is_asked()
                && let Some(batch) = waiting.next()
            {
                let comparer = self.clone();
                comparing.spawn(async move {
                    let compared = comparer.compare(&batch).await?;
                    anyhow::Ok((batch, compared))
                });
            }
            let Some(compared) = comparing.join_next().await else { break };
            let (batch, compared) = compared.context("compare a batch with Postgres")??;
            let rows = batch.row_ids.len() as u64;
            let finding = Finding { batch_id: Some(batch.id), rows, ..Finding::default() };
            match compared {
                Compared::Equal => {
                    tally.batches_equal += 1;
                    tally.rows_equal += rows - batch.left.len() as u64;
                }
                Compared::Differs { gone }
                    if gone.len() + batch.left.len() == batch.row_ids.len() =>
                {
                    let kind = SOURCE_GONE.to_owned();
                    let rows = gone.len() as u64;
                    findings.push(Finding { kind, rows, row_ids: gone, ..finding });
                }
                Compared::Differs { gone } => {
                    let kind = SOURCE_DIFFERS.to_owned();
                    findings.push(Finding { kind, row_ids: gone, ..finding });
                }
                Compared::NotComparable(detail) => {
                    let kind = NOT_COMPARED.to_owned();
                    findings.push(Finding { kind, detail, ..finding });
                }
            }
        }
        Ok((!shutdown.is_asked()).then_some(findings))
    }

    /// Compares one batch. With rows that are known to have left, what remains can only be compared
    /// row by row: unless it is all gone, it differs.
    async fn compare(&self, batch: &BatchToCompare) -> anyhow::Result<Compared> {
        let progress = &self.parts.progress;
        let there: Vec<_> =
            batch.row_ids.iter().filter(|id| !batch.left.contains(id)).copied().collect();
        progress.seen.fetch_add(batch.row_ids.len() as u64, Ordering::Relaxed);
        progress.raw_bytes.fetch_add(batch.raw_bytes, Ordering::Relaxed);
        if there.is_empty() {
            return Ok(Compared::Equal);
        }
        if batch.wanted.digest == Digest::ZERO {
            return Ok(Compared::NotComparable("nobody knows what was sent".to_owned()));
        }
        let assembled = match self.assemble(batch, &there).await? {
            Ok(assembled) => assembled,
            Err(why) => return Ok(Compared::NotComparable(why)),
        };
        let is_equal = batch.left.is_empty()
            && assembled.rows.len() == batch.row_ids.len()
            && assembled.digest == batch.wanted.digest;
        Ok(match is_equal {
            true => Compared::Equal,
            false => Compared::Differs { gone: assembled.missing() },
        })
    }

    /// Makes the logs of some rows of a batch again, by the batch's conversion; in words why not,
    /// where that cannot be done.
    pub async fn assemble(
        &self,
        batch: &BatchToCompare,
        ids: &[Uuid],
    ) -> anyhow::Result<Result<Assembled, String>> {
        let Some((conversion_id, body)) = &batch.conversion else {
            return Ok(Err("nobody knows by which conversion it was made".to_owned()));
        };
        let mut assembler = match self.take(*conversion_id) {
            Some(assembler) => assembler,
            None => {
                let conversion: Conversion = serde_json::from_value(body.clone())
                    .context("read the batch's conversion from the ledger")?;
                if !conversion.can_be_repeated(&self.parts.current) {
                    let differences = conversion.differences(&self.parts.current).join(", and ");
                    return Ok(Err(format!("since it was made {differences}")));
                }
                Assembler::new(conversion, self.parts.shape.clone())?
            }
        };
        // These rows were settled when they were sent.
        let created_at = Timestamp::NEG_INFINITY;
        let rows: Vec<_> =
            ids.iter().map(|id| Sought { id: *id, created_at, finished_at: None }).collect();
        let assembled =
            assembler.fill(&self.parts.source, &rows, &Bounds::NONE, batch.ingest_time).await?;
        self.pool().push((*conversion_id, assembler));
        Ok(Ok(assembled))
    }

    fn take(&self, conversion_id: i64) -> Option<Assembler> {
        let mut pool = self.pool();
        let at = pool.iter().position(|(id, _)| *id == conversion_id);
        // Whoever else is in it is of an older conversion, which seldom comes back.
        at.map(|at| pool.swap_remove(at).1).or_else(|| {
            pool.clear();
            None
        })
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<(i64, Assembler)>> {
        self.assemblers.lock().expect("nobody panics with the lock held")
    }
}
