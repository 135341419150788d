//! Third stage of a worker: the intent into the ledger, then the request to SLS, one step after the
//! other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;

use crate::ledger::acknowledge::Acknowledgement;
use crate::ledger::intent::{Sending, Step};
use crate::ledger::live_rows::RowsTaken;
use crate::ledger::process::Process;
use crate::ledger::range::{Lease, RangeKind};
use crate::ledger::{LeaseLost, Ledger};
use crate::pipeline::guard::budget::TakenRows;
use crate::pipeline::guard::pace::{Load, Pace};
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::preparer::{Prepared, ReadyBatch, ReadyStep, ReadyWork};
use crate::pipeline::read::recount::Recount;
use crate::pipeline::recover::rules::Guarantees;
use crate::pipeline::send::canary::{Canaries, Clearance, Sent};
use crate::pipeline::send::lanes::{Lanes, TakenLane};
use crate::pipeline::send::sender::{IntendedBatch, SendOutcome, Sender};
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::client::Client;

/// Where a worker stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progressed {
    /// It is done.
    Done,
    /// Its range is done, or given back to be read again.
    RangeDone,
    /// Asked to stop, or SLS does not answer; its range stays open.
    Halted,
}

/// What the uploaders of one pass work with.
#[derive(Clone)]
pub struct UploaderParts {
    pub table: Table,
    pub ledger: Ledger,
    pub client: Client,
    pub process: Process,
    pub signing_lease: Arc<SigningLease>,
    pub guarantees: Guarantees,
    pub pace: Arc<Pace>,
    pub lanes: Arc<Lanes>,
    /// `None`: nothing is checked, canaries neither.
    pub canaries: Option<Arc<Canaries>>,
    /// Counts each range when it is done; `None`: nothing is checked.
    pub recount: Option<Recount>,
    pub progress: Arc<Progress>,
}

/// The third stage of one worker.
pub struct Uploader {
    parts: UploaderParts,
    shutdown: Shutdown,
    watch: Arc<Watch>,
    /// What SLS has stored, unknown to the ledger yet: it goes with the next step, which saves
    /// a transaction a batch. Lost with a crash, it is found out again.
    stored: Vec<Acknowledgement>,
}

impl Uploader {
    /// For one worker.
    pub fn new(parts: UploaderParts, shutdown: Shutdown, watch: Arc<Watch>) -> Self {
        Self { parts, shutdown, watch, stored: Vec::new() }
    }

    /// Tells the ledger what is stored.
    pub async fn acknowledge(&mut self) -> anyhow::Result<()> {
        self.watch.ledger(self.parts.ledger.stored(&self.stored)).await?;
        self.stored.clear();
        Ok(())
    }

    /// Uploads what is ready.
    pub async fn upload(&mut self, prepared: Prepared) -> anyhow::Result<Progressed> {
        let Prepared { mut lease, work } = prepared;
        match work {
            ReadyWork::Step(ready) => self.step(&mut lease, *ready).await,
            ReadyWork::End => {
                self.end(&lease).await?;
                Ok(Progressed::RangeDone)
            }
        }
    }

    /// Ends a range whose rows are all in the ledger, if it has no more than these.
    async fn end(&mut self, lease: &Lease) -> anyhow::Result<()> {
        let UploaderParts { ledger, recount, table, .. } = &self.parts;
        let rows_counted = match recount {
            Some(recount) => recount.rows(lease).await,
            None => None,
        };
        let end = ledger.finish_range(lease, rows_counted, &self.stored);
        let end = self.watch.ledger(end).await?;
        self.stored.clear();
        let (id, rows) = (lease.range_id, rows_counted.unwrap_or(end.rows_read));
        let (more, fewer) =
            (rows.saturating_sub(end.rows_read), end.rows_read.saturating_sub(rows));
        match (end.is_done, more, fewer) {
            (false, ..) => tracing::warn!(
                "{table}: Postgres counts {more} rows more in range {id} than were read: it is read \
                 again"
            ),
            (true, 0, 0) => {}
            (true, 0, fewer) => tracing::info!(
                "{table}: Postgres counts {fewer} rows fewer than were read in range {id}: they were \
                 deleted meanwhile"
            ),
            (true, more, _) => tracing::error!(
                "{table}: Postgres still counts {more} rows more in range {id} than were read; the \
                 next run reads it again"
            ),
        }
        Ok(())
    }

    async fn step(&mut self, lease: &mut Lease, ready: ReadyStep) -> anyhow::Result<Progressed> {
        let ReadyStep { mut step, ready_batch, taken, .. } = ready;
        let Some(ReadyBatch { mut batch, packed, span }) = ready_batch else {
            self.record(lease, &mut step, taken).await?;
            return Ok(Progressed::Done);
        };
        // Its parts are shared; cloning them lets `self` be written to.
        let parts = self.parts.clone();
        let progress = &*parts.progress;
        let clearance = match &parts.canaries {
            Some(canaries) => canaries.admit(span, progress, &mut self.shutdown).await?,
            None => Some(Clearance::default()),
        };
        let Some(clearance) = clearance else { return Ok(Progressed::Halted) };
        let load = Load { rows: batch.rows.len() as u64, raw_bytes: batch.raw_bytes };
        if parts.pace.admit(load, progress, &mut self.shutdown).await.is_none() {
            return Ok(Progressed::Halted);
        }
        let bytes = batch.raw_bytes;
        let lane = parts.lanes.take(&parts.pace, bytes, progress, &mut self.shutdown).await?;
        let Some(mut lane) = lane else { return Ok(Progressed::Halted) };
        let date = parts.signing_lease.sign_date(&parts.client, progress, &mut self.shutdown);
        let Some(signed_at) = date.await else { return Ok(Progressed::Halted) };
        batch.sending = Some(Sending {
            owner: parts.process.id,
            lane_id: lane.slot.lane_id,
            number: lane.slot.number,
            // The group was packed as such.
            nth: 1,
            signed_at,
            cursors: lane.slot.cursors.clone(),
        });
        step.batch = Some(batch);
        if let Err(error) = self.record(lease, &mut step, taken).await {
            // Nothing was recorded, so its number is free.
            if error.is::<RowsTaken>() || error.is::<LeaseLost>() {
                parts.lanes.give_back(lane.keeper, &lane.slot, false);
            }
            return Err(error);
        }
        lane.used();
        let TakenLane { slot, turn, keeper } = lane;
        let batch = step.batch.as_ref().context("a step keeps its batch")?;

        let sender = Sender {
            client: &parts.client,
            signing_lease: &parts.signing_lease,
            ledger: &parts.ledger,
            process: &parts.process,
            progress,
            watch: &self.watch,
            pace: &parts.pace,
            guarantees: parts.guarantees,
        };
        let intended = IntendedBatch {
            batch_id: batch.id,
            logstore: parts.table.logstore(),
            slot: &slot,
            signed_at,
            unknown_since: None,
            packed: &packed,
        };
        let mut outcome = sender.send(&intended, Some(turn), &mut self.shutdown).await;
        if let Ok(SendOutcome::Stored(request_id)) = &outcome {
            let (batch_id, request_id) = (batch.id, request_id.clone());
            self.stored.push(Acknowledgement { batch_id, request_id });
        }
        if let Some(canaries) = &parts.canaries {
            let cursors = &slot.cursors;
            let (rows, digest) = (&batch.rows[..], batch.digest);
            let sent = Sent { batch_id: batch.id, span, rows, digest, cursors };
            outcome = canaries.after(clearance, outcome, &sent, progress, &mut self.shutdown).await;
        }
        let outcome = outcome?;
        let is_moved = matches!(outcome, SendOutcome::GivenUp(_));
        parts.lanes.give_back(keeper, &slot, is_moved);
        match outcome {
            SendOutcome::Stored(_) | SendOutcome::Found => {}
            SendOutcome::GivenUp(flow) => {
                return Ok(match flow {
                    ControlFlow::Continue(()) => Progressed::Done,
                    ControlFlow::Break(()) => Progressed::Halted,
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
        let UploaderParts { ledger, progress, .. } = &self.parts;
        step.stored.clone_from(&self.stored);
        self.watch.ledger(ledger.record(lease, step)).await?;
        self.stored.clear();
        taken.spend();
        progress.held.fetch_add(step.holds.len() as u64, Ordering::Relaxed);
        // The rows of a hold were counted as seen by the pass that held them.
        if !matches!(lease.kind, RangeKind::Holds(_)) {
            progress.seen.fetch_add(step.rows_seen(), Ordering::Relaxed);
        }
        Ok(())
    }
}
