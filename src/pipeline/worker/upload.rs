//! Third stage of a worker: the intent into the ledger, then the request to SLS, one step after the
//! other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;

use crate::ledger::claim::{Lease, RangeKind};
use crate::ledger::intent::{Acknowledgement, Sending, Step};
use crate::pipeline::budget::TakenRows;
use crate::pipeline::canary::{Clearance, Sent};
use crate::pipeline::deliver::{Courier, Delivery, Intended, Outlook};
use crate::pipeline::lane::LaneKeeper;
use crate::pipeline::pace::Load;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::stop::Stop;
use crate::pipeline::worker::Shared;
use crate::pipeline::worker::prepare::{Parcel, Prepared, ReadyStep, What};

/// Where a worker stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline::worker) enum Progressed {
    /// It is done.
    Done,
    /// Its range is done.
    RangeDone,
    /// Asked to stop, or SLS does not answer; its range stays open.
    Halted,
}

/// One worker's way into the ledger and to SLS.
pub(in crate::pipeline::worker) struct Uploader {
    shared: Arc<Shared>,
    stop: Stop,
    watch: Arc<Watch>,
    lane: LaneKeeper,
    /// What SLS has stored and the ledger is not told yet: it goes with the next step, which saves
    /// a transaction a batch. Lost with a crash, it is found out again.
    stored: Vec<Acknowledgement>,
}

impl Uploader {
    /// For the `nth` worker; workers spread over the shards by their number.
    pub(in crate::pipeline::worker) fn new(
        shared: Arc<Shared>,
        stop: Stop,
        watch: Arc<Watch>,
        nth: usize,
    ) -> Self {
        let Shared { client, ledger, process, scope, .. } = &*shared;
        let lane = LaneKeeper::new(client, ledger, process, scope.table.logstore(), nth);
        Self { shared, stop, watch, lane, stored: Vec::new() }
    }

    /// Tells the ledger what is stored.
    pub(in crate::pipeline::worker) async fn acknowledge(&mut self) -> anyhow::Result<()> {
        self.watch.ledger(self.shared.ledger.stored(&self.stored)).await?;
        self.stored.clear();
        Ok(())
    }

    /// Uploads what is ready.
    pub(in crate::pipeline::worker) async fn upload(
        &mut self,
        prepared: Prepared,
    ) -> anyhow::Result<Progressed> {
        let Prepared { mut lease, what } = prepared;
        match what {
            What::Step(ready) => self.step(&mut lease, *ready).await,
            What::End { rows_counted } => {
                let end = self.shared.ledger.finish_range(&lease, rows_counted, &self.stored);
                self.watch.ledger(end).await?;
                self.stored.clear();
                Ok(Progressed::RangeDone)
            }
        }
    }

    async fn step(&mut self, lease: &mut Lease, ready: ReadyStep) -> anyhow::Result<Progressed> {
        let ReadyStep { mut step, parcel, taken, .. } = ready;
        let Some(Parcel { mut batch, packed, span }) = parcel else {
            self.record(lease, &mut step, taken).await?;
            return Ok(Progressed::Done);
        };
        let shared = Arc::clone(&self.shared);
        let progress = &*shared.progress;
        let clearance = match &shared.canaries {
            Some(canaries) => canaries.admit(span, progress, &mut self.stop).await?,
            None => Some(Clearance::default()),
        };
        let Some(clearance) = clearance else { return Ok(Progressed::Halted) };
        let load = Load { rows: batch.rows.len() as u64, raw_bytes: batch.raw_bytes };
        if shared.pace.admit(load, progress, &mut self.stop).await.is_none() {
            return Ok(Progressed::Halted);
        }
        let Some(ticket) = self.lane.ticket(&mut self.stop).await? else {
            return Ok(Progressed::Halted);
        };
        let date = shared.lookout.date(&shared.client, progress, &mut self.stop);
        let Some(signed_at) = date.await else { return Ok(Progressed::Halted) };
        batch.sending = Some(Sending {
            owner: shared.process.id,
            lane_id: ticket.lane_id,
            number: ticket.number,
            signed_at,
            cursors: ticket.cursors.clone(),
        });
        step.batch = Some(batch);
        self.record(lease, &mut step, taken).await?;
        self.lane.used(&ticket);
        let batch = step.batch.as_ref().context("a step keeps its batch")?;

        let courier = Courier {
            client: &shared.client,
            lookout: &shared.lookout,
            ledger: &shared.ledger,
            process: &shared.process,
            progress,
            watch: &self.watch,
            pace: &shared.pace,
            world: shared.world,
        };
        let intended = Intended {
            batch_id: batch.id,
            logstore: shared.scope.table.logstore(),
            ticket: &ticket,
            signed_at,
            unknown_since: None,
            packed: &packed,
        };
        let mut delivery = courier.deliver(&intended, &mut self.stop).await;
        if let Some(canaries) = &shared.canaries {
            let cursors = &ticket.cursors;
            let (rows, digest) = (&batch.rows[..], batch.digest);
            let sent = Sent { batch_id: batch.id, span, rows, digest, cursors };
            delivery = canaries.after(clearance, delivery, &sent, progress, &mut self.stop).await;
        }
        match delivery? {
            Delivery::Stored(request_id) => {
                self.stored.push(Acknowledgement { batch_id: batch.id, request_id });
            }
            Delivery::Found => {}
            Delivery::GivenUp(outlook) => {
                self.lane.forget_cursors();
                return Ok(match outlook {
                    Outlook::GoOn => Progressed::Done,
                    Outlook::Halt => Progressed::Halted,
                });
            }
        }
        progress.sent.fetch_add(batch.rows.len() as u64, Ordering::Relaxed);
        progress.raw_bytes.fetch_add(packed.raw_size as u64, Ordering::Relaxed);
        progress.body_bytes.fetch_add(packed.body.len() as u64, Ordering::Relaxed);
        Ok(Progressed::Done)
    }

    /// Writes a step, and what is stored, into the ledger.
    async fn record(
        &mut self,
        lease: &mut Lease,
        step: &mut Step,
        taken: TakenRows,
    ) -> anyhow::Result<()> {
        let Shared { ledger, progress, .. } = &*self.shared;
        step.stored.clone_from(&self.stored);
        self.watch.ledger(ledger.record(lease, step)).await?;
        self.stored.clear();
        taken.spend();
        progress.held.fetch_add(step.holds.len() as u64, Ordering::Relaxed);
        // The rows of a hold were counted as seen by the pass that held them.
        if lease.kind != RangeKind::Holds {
            progress.seen.fetch_add(step.rows_seen() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}
