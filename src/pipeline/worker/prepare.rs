//! Second stage of a worker: reads, converts and packs rows.
//!
//! It writes nothing, so what is ready and never uploaded is as if it had not been read.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::ledger::claim::Lease;
use crate::ledger::intent::{NewBatch, Step};
use crate::pipeline::age::LogSpan;
use crate::pipeline::assemble::{Assembled, Assembler, Packed};
use crate::pipeline::budget::{TakenMemory, TakenRows};
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::worker::Shared;
use crate::pipeline::worker::look::{Looked, Next, Rows};

/// What is ready to be uploaded.
pub(in crate::pipeline::worker) struct Prepared {
    /// The range, which stands where this begins.
    pub(in crate::pipeline::worker) lease: Lease,
    pub(in crate::pipeline::worker) what: What,
}

pub(in crate::pipeline::worker) enum What {
    Step(Box<ReadyStep>),
    /// The range is read to its end. `rows_counted`: rows in it by one count.
    End {
        rows_counted: Option<u64>,
    },
}

/// A step for the ledger, and for SLS if there is a batch in it.
pub(in crate::pipeline::worker) struct ReadyStep {
    /// Without its batch.
    pub(in crate::pipeline::worker) step: Step,
    pub(in crate::pipeline::worker) parcel: Option<Parcel>,
    /// To be spent when the step is in the ledger.
    pub(in crate::pipeline::worker) taken: TakenRows,
    /// For its packed form.
    _memory: TakenMemory,
}

/// A batch that nobody has sent yet.
pub(in crate::pipeline::worker) struct Parcel {
    pub(in crate::pipeline::worker) batch: NewBatch,
    pub(in crate::pipeline::worker) packed: Packed,
    pub(in crate::pipeline::worker) span: LogSpan,
}

/// The second stage of one worker.
pub(in crate::pipeline::worker) struct Preparer {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    assembler: Assembler,
}

impl Preparer {
    pub(in crate::pipeline::worker) fn new(
        shared: Arc<Shared>,
        watch: Arc<Watch>,
    ) -> anyhow::Result<Self> {
        let assembler = Assembler::new(shared.conversion.clone())?;
        Ok(Self { shared, watch, assembler })
    }

    /// Makes what comes ready, one step ahead of who receives, until nothing comes or nobody does.
    pub(in crate::pipeline::worker) async fn run(
        mut self,
        mut looked: mpsc::Receiver<Looked>,
        sender: mpsc::Sender<Prepared>,
    ) -> anyhow::Result<()> {
        let watch = Arc::clone(&self.watch);
        loop {
            // Who looks must hear that nobody receives any more, even while nothing comes.
            let next = tokio::select! {
                next = looked.recv() => next,
                () = sender.closed() => None,
            };
            let Some(Looked { lease, next }) = next else { break };
            match next {
                Next::End { rows_counted } => {
                    let what = What::End { rows_counted };
                    if sender.send(Prepared { lease, what }).await.is_err() {
                        break;
                    }
                }
                Next::Rows(mut rows) => {
                    let mut memory = self.shared.memory.take(rows.bytes).await;
                    loop {
                        let Ok(permit) = sender.reserve().await else { return Ok(()) };
                        let (range_id, table) = (lease.range_id, self.shared.scope.table);
                        let ready = watch.work(self.make_ready(&mut rows, &mut memory)).await;
                        let ready =
                            ready.with_context(|| format!("read range {range_id} of {table}"))?;
                        let what = What::Step(Box::new(ready));
                        permit.send(Prepared { lease: lease.clone(), what });
                        if rows.row_ids.is_empty() {
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
        let ingest_time = u32::try_from(self.shared.client.now()).unwrap_or(u32::MAX);
        let mut assembled = Assembled::default();
        let row_ids = std::mem::take(&mut rows.row_ids);
        if !row_ids.is_empty() {
            let feed = &self.shared.feed;
            let (source, settled_before) = (&feed.source, feed.settled_before);
            assembled = self.assembler.fill(source, &row_ids, settled_before, ingest_time).await?;
        }
        // Rows that grew since they were looked at are left over.
        rows.row_ids = std::mem::take(&mut assembled.left_over);
        let table = rows.step.table;
        let mut step = std::mem::replace(&mut rows.step, Step::of(table));
        let left_over = rows.taken.split_off(rows.row_ids.len() as u64);
        let taken = std::mem::replace(&mut rows.taken, left_over);
        step.holds.append(&mut assembled.holds);
        step.gone.append(&mut assembled.gone);
        if !rows.row_ids.is_empty() {
            rows.step.position = step.position.take();
        }
        let parcel = match assembled.rows.is_empty() {
            true => None,
            false => Some(self.pack(assembled, ingest_time).await?),
        };
        // Its rows and its group are not needed any more.
        let kept = parcel.as_ref().map_or(0, |parcel| parcel.packed.body.len());
        Ok(ReadyStep { step, parcel, taken, _memory: memory.split_off(kept) })
    }

    async fn pack(&mut self, assembled: Assembled, ingest_time: u32) -> anyhow::Result<Parcel> {
        let Shared { ledger, conversion, conversion_id, .. } = &*self.shared;
        let id = Uuid::now_v7();
        let raw_size = self.assembler.finish(ledger.id, id, &assembled);
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
        Ok(Parcel { batch, packed, span })
    }
}
