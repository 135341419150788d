//! Second stage of a worker: reads, converts and packs rows.
//!
//! It writes nothing, so what is ready and never uploaded is as if it had not been read.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::eligibility::Bounds;
use crate::ledger::intent::{NewBatch, Step};
use crate::ledger::range::Lease;
use crate::pipeline::guard::budget::{MemoryBudget, TakenMemory, TakenRows};
use crate::pipeline::guard::pace::Pace;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::assemble::{Assembled, Assembler, BatchName, Packed};
use crate::pipeline::read::scanner::{Rows, Scanned, ScannedWork};
use crate::pipeline::send::age::LogSpan;
use crate::record::seal::Seal;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// What is ready to be uploaded.
pub struct Prepared {
    /// The range, which stands where this begins.
    pub lease: Lease,
    pub work: ReadyWork,
}

pub enum ReadyWork {
    Step(Box<ReadyStep>),
    /// The range is read to its end.
    End,
}

/// A step for the ledger, and for SLS if there is a batch in it.
pub struct ReadyStep {
    /// Without its batch.
    pub step: Step,
    pub ready_batch: Option<ReadyBatch>,
    /// To be spent when the step is in the ledger.
    pub taken: TakenRows,
    /// For its packed form.
    _memory: TakenMemory,
}

/// A batch that nobody has sent yet.
pub struct ReadyBatch {
    pub batch: NewBatch,
    pub packed: Packed,
    pub span: LogSpan,
}

/// What the preparers of one pass work with.
#[derive(Clone)]
pub struct PreparerParts {
    pub source: Source,
    /// What every batch is sealed with.
    pub seal: Seal,
    pub conversion_id: i64,
    pub conversion: Conversion,
    pub shape: Shape,
    pub bounds: Bounds,
    /// Knows SLS's clock.
    pub client: Client,
    pub memory: MemoryBudget,
    /// Asks for sizes of batches, and learns what comes of it.
    pub pace: Arc<Pace>,
}

/// The second stage of one worker.
pub struct Preparer {
    parts: PreparerParts,
    watch: Arc<Watch>,
    assembler: Assembler,
}

impl Preparer {
    /// Fails when the conversion's columns are not those of a Dify table.
    pub fn new(parts: PreparerParts, watch: Arc<Watch>) -> anyhow::Result<Self> {
        let assembler = Assembler::new(parts.conversion.clone(), parts.shape.clone())?;
        Ok(Self { parts, watch, assembler })
    }

    /// Makes what comes ready, one step ahead of who receives, until nothing comes or nobody does.
    pub async fn run(
        mut self,
        mut scanned: mpsc::Receiver<Scanned>,
        sender: mpsc::Sender<Prepared>,
    ) -> anyhow::Result<()> {
        let watch = Arc::clone(&self.watch);
        loop {
            // Who looks must hear that nobody receives any more, even while nothing comes.
            let next = tokio::select! {
                next = scanned.recv() => next,
                () = sender.closed() => None,
            };
            let Some(Scanned { lease, next }) = next else { break };
            match next {
                ScannedWork::End => {
                    if sender.send(Prepared { lease, work: ReadyWork::End }).await.is_err() {
                        break;
                    }
                }
                ScannedWork::Rows(mut rows) => {
                    let mut memory = self.parts.memory.take(rows.bytes).await;
                    loop {
                        let Ok(permit) = sender.reserve().await else { return Ok(()) };
                        let (range_id, table) = (lease.range_id, self.parts.conversion.table);
                        let ready = watch.work(self.make_ready(&mut rows, &mut memory)).await;
                        let ready =
                            ready.with_context(|| format!("read range {range_id} of {table}"))?;
                        let work = ReadyWork::Step(Box::new(ready));
                        permit.send(Prepared { lease: lease.clone(), work });
                        if rows.take.is_empty() {
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// One step: all of `rows`, or as many as the batch has room for; the others stay in `rows`.
    async fn make_ready(
        &mut self,
        rows: &mut Rows,
        memory: &mut TakenMemory,
    ) -> anyhow::Result<ReadyStep> {
        let ingest_time = u32::try_from(self.parts.client.now()).unwrap_or(u32::MAX);
        let mut assembled = Assembled::default();
        let take = std::mem::take(&mut rows.take);
        if !take.is_empty() {
            let PreparerParts { source, bounds, .. } = &self.parts;
            assembled = self.assembler.fill(source, &take, bounds, ingest_time).await?;
        }
        // Rows that grew since they were looked at are left over.
        rows.take = std::mem::take(&mut assembled.left_over);
        let table = rows.step.table;
        let mut step = std::mem::replace(&mut rows.step, Step::of(table));
        let left_over = rows.taken.split_off(rows.take.len() as u64);
        let taken = std::mem::replace(&mut rows.taken, left_over);
        step.holds.append(&mut assembled.holds);
        if !rows.take.is_empty() {
            rows.step.position = step.position.take();
        }
        let ready_batch = match assembled.rows.is_empty() {
            true => None,
            false => Some(self.pack(assembled, ingest_time).await?),
        };
        // The last of a range says nothing of the others.
        if let Some(ready) = ready_batch.as_ref().filter(|_| 2 * rows.bytes > rows.batch_bytes) {
            self.parts.pace.made(rows.batch_bytes, ready.batch.raw_bytes);
        }
        // Its rows and its group are not needed any more.
        let kept = ready_batch.as_ref().map_or(0, |ready_batch| ready_batch.packed.body.len());
        Ok(ReadyStep { step, ready_batch, taken, _memory: memory.split_off(kept) })
    }

    async fn pack(&mut self, assembled: Assembled, ingest_time: u32) -> anyhow::Result<ReadyBatch> {
        let PreparerParts { seal, conversion, conversion_id, .. } = &self.parts;
        let id = Uuid::now_v7();
        let name = BatchName { seal: *seal, batch_id: id, sending: 1 };
        let raw_size = self.assembler.finish(name, &assembled);
        let packed = self.assembler.compress().await?;
        let span = LogSpan::of(&assembled.rows, conversion.log_time, ingest_time);
        let Assembled { rows, digest, not_json, .. } = assembled;
        let batch = NewBatch {
            id,
            rows,
            raw_bytes: raw_size as u64,
            digest,
            not_json,
            conversion_id: *conversion_id,
            sending: None,
            ingest_time,
        };
        Ok(ReadyBatch { batch, packed, span })
    }
}
