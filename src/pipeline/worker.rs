//! One worker: claims ranges, and moves their rows batch by batch on a lane of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::ledger::claim::{Cutting, Lease, RangeKind};
use crate::ledger::intent::{Acknowledgement, NewBatch, Sending, Step};
use crate::ledger::process::Process;
use crate::ledger::settle::BatchLost;
use crate::ledger::{LeaseLost, Ledger};
use crate::pipeline::age::LogSpan;
use crate::pipeline::assemble::{Assembled, Assembler};
use crate::pipeline::budget::{MemoryBudget, RowBudget};
use crate::pipeline::canary::{Canaries, Clearance, Sent};
use crate::pipeline::cut::Cut;
use crate::pipeline::deliver::{Courier, Delivery, Intended, Outlook};
use crate::pipeline::feed::{Feed, FeedSettings};
use crate::pipeline::health::HealthGate;
use crate::pipeline::lane::LaneKeeper;
use crate::pipeline::pace::{Load, Pace};
use crate::pipeline::progress::Progress;
use crate::pipeline::settle::World;
use crate::pipeline::stop::Stop;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::scope::{Scope, Span};

/// About how many rows a range has.
pub const RANGE_ROWS: u32 = 20_000;

/// About how many nodes a run has; by run, a range is cut by runs.
const NODES_PER_RUN: u32 = 20;

/// How long a worker without work waits before it asks again.
const IDLE: Duration = Duration::from_millis(100);

/// Ranges whose rows are counted once more when they are done: the check of the reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recount {
    Yes,
    No,
}

/// What the workers of one pass share.
pub struct Shared {
    pub feed: FeedSettings,
    pub ledger: Ledger,
    pub client: Client,
    pub world: World,
    pub process: Process,
    pub pass_id: i64,
    pub conversion_id: i64,
    pub conversion: Conversion,
    /// The scope of the pass in its own key order.
    pub scope: Scope,
    /// About how many rows a range has.
    pub range_rows: u32,
    pub recount: Recount,
    pub memory: MemoryBudget,
    pub rows: RowBudget,
    pub pace: Arc<Pace>,
    pub health: Arc<HealthGate>,
    /// `None`: nothing is checked, canaries neither.
    pub canaries: Option<Arc<Canaries>>,
    pub progress: Arc<Progress>,
    /// Whether only the pass's holds are to be tried, not its key space.
    pub only_holds: bool,
}

/// A worker with what is its own.
pub struct Worker {
    shared: Arc<Shared>,
    stop: Stop,
    assembler: Assembler,
    lane: LaneKeeper,
    /// What SLS has stored and the ledger is not told yet: it goes with the next step, which saves
    /// a transaction a batch. Lost with a crash, it is found out again.
    stored: Vec<Acknowledgement>,
}

/// Where a worker stands after a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progressed {
    /// The range, or the step, is done.
    Done,
    /// Asked to stop, the row budget is spent, or SLS does not answer; the range stays open.
    Halted,
}

impl Worker {
    /// The `nth` worker of the pass; workers spread over the shards by their number.
    pub fn new(shared: Arc<Shared>, stop: Stop, nth: usize) -> anyhow::Result<Self> {
        let assembler = Assembler::new(shared.conversion.clone())?;
        let Shared { client, ledger, process, scope, .. } = &*shared;
        let lane = LaneKeeper::new(client, ledger, process, scope.table.logstore(), nth);
        Ok(Self { shared, stop, assembler, lane, stored: Vec::new() })
    }

    /// Works until nothing is left to do for it.
    pub async fn work(mut self) -> anyhow::Result<()> {
        while let Some(lease) = self.next_range().await? {
            let range_id = lease.range_id;
            let worked = self.work_off(lease).await;
            let acknowledged = self.acknowledge().await;
            match worked {
                Ok(Progressed::Done) => {}
                Ok(Progressed::Halted) => return acknowledged,
                // Nothing of ours can have been written there since: somebody else goes on with it.
                Err(error) if error.is::<LeaseLost>() || error.is::<BatchLost>() => {
                    tracing::warn!("{error:#}");
                }
                Err(error) => {
                    let table = self.table();
                    return Err(error).with_context(|| format!("move range {range_id} of {table}"));
                }
            }
            acknowledged?;
        }
        Ok(())
    }

    /// Tells the ledger what is stored.
    async fn acknowledge(&mut self) -> anyhow::Result<()> {
        for stored in self.stored.drain(..) {
            self.shared.progress.timed(self.shared.ledger.stored(&stored)).await?;
        }
        Ok(())
    }

    fn table(&self) -> Table {
        self.shared.scope.table
    }

    /// Claims a range, cuts a new one, or waits for the ranges of others that must come first.
    async fn next_range(&mut self) -> anyhow::Result<Option<Lease>> {
        let shared = Arc::clone(&self.shared);
        while !self.stop.is_asked() && !shared.rows.is_spent() {
            if let Some(lease) = shared.ledger.claim(shared.pass_id, &shared.process).await? {
                return Ok(Some(lease));
            }
            if shared.only_holds {
                return Ok(None);
            }
            match shared.ledger.cutting(shared.pass_id).await? {
                Cutting::Done => return Ok(None),
                Cutting::Waits => {
                    self.stop.or(tokio::time::sleep(IDLE)).await;
                }
                Cutting::At(order, after) => {
                    let scope = Scope { order, ..shared.scope.clone() };
                    let step = range_step(order, shared.range_rows);
                    let upto = shared.feed.source.next_cut(&scope, after, step).await?;
                    shared.ledger.add_range(shared.pass_id, order, after, upto).await?;
                }
            }
        }
        Ok(None)
    }

    async fn work_off(&mut self, mut lease: Lease) -> anyhow::Result<Progressed> {
        let shared = Arc::clone(&self.shared);
        let order = match lease.kind {
            RangeKind::Keys(order) => order,
            RangeKind::Holds => KeyOrder::Walk,
        };
        let scope = Scope { order, ..shared.scope.clone() };
        let mut feed = Feed::of_lease(shared.feed.clone(), &lease, scope.clone());
        let logs_max = u64::from(shared.feed.limits.batch_logs_max);
        loop {
            shared.health.pass(&shared.progress, &mut self.stop).await;
            let rows_max = shared.rows.take(logs_max);
            if self.stop.is_asked() || rows_max == 0 {
                shared.rows.give_back(rows_max);
                shared.ledger.release(&lease).await?;
                return Ok(Progressed::Halted);
            }
            let Some(cut) = feed.next(rows_max).await? else {
                shared.rows.give_back(rows_max);
                break;
            };
            shared.rows.give_back(rows_max - cut.take.len() as u64);
            if self.step(&mut lease, cut).await? == Progressed::Halted {
                shared.ledger.release(&lease).await?;
                return Ok(Progressed::Halted);
            }
        }
        let counted = match (shared.recount, lease.kind) {
            (Recount::Yes, RangeKind::Keys(_)) => {
                let span = Span { after: lease.after, upto: lease.upto };
                // Only a check: that it cannot be made must not keep the range from being done.
                shared.feed.source.count(&scope, &span).await.map_or_else(
                    |error| {
                        tracing::warn!("range {} is not counted again: {error:#}", lease.range_id);
                        None
                    },
                    Some,
                )
            }
            _ => None,
        };
        shared.progress.timed(shared.ledger.finish_range(&lease, counted)).await?;
        Ok(Progressed::Done)
    }

    /// Moves the rows of one cut: one batch, or more where rows grew since they were looked at.
    async fn step(&mut self, lease: &mut Lease, cut: Cut) -> anyhow::Result<Progressed> {
        let shared = Arc::clone(&self.shared);
        let _memory = shared.memory.take(cut.take_bytes).await;
        let seen = cut.take.len() + cut.holds.len() + cut.already.len() + cut.gone.len();
        let mut step = Step {
            holds: cut.holds,
            already: cut.already,
            gone: cut.gone,
            ..Step::of(shared.scope.table)
        };
        let mut rest = cut.take;
        loop {
            let ingest_time = u32::try_from(shared.client.now()).unwrap_or(u32::MAX);
            let feed = &shared.feed;
            let mut assembled = Assembled::default();
            if !rest.is_empty() {
                let (source, settled_before) = (&feed.source, feed.settled_before);
                assembled = self.assembler.fill(source, &rest, settled_before, ingest_time).await?;
            }
            rest = std::mem::take(&mut assembled.left_over);
            step.holds.append(&mut assembled.holds);
            step.gone.append(&mut assembled.gone);
            step.position = if rest.is_empty() { cut.position } else { None };
            let held = step.holds.len() as u64;
            if assembled.rows.is_empty() {
                step.stored.clone_from(&self.stored);
                shared.progress.timed(shared.ledger.record(lease, &step)).await?;
                self.stored.clear();
            } else if self.send(lease, step, assembled, ingest_time).await? == Progressed::Halted {
                return Ok(Progressed::Halted);
            }
            shared.progress.held.fetch_add(held, Ordering::Relaxed);
            if rest.is_empty() {
                break;
            }
            step = Step::of(shared.scope.table);
        }
        if lease.kind != RangeKind::Holds {
            shared.progress.seen.fetch_add(seen as u64, Ordering::Relaxed);
        }
        Ok(Progressed::Done)
    }

    /// Writes the intent of a batch into the ledger, and sends it.
    async fn send(
        &mut self,
        lease: &mut Lease,
        mut step: Step,
        assembled: Assembled,
        ingest_time: u32,
    ) -> anyhow::Result<Progressed> {
        let shared = Arc::clone(&self.shared);
        let batch_id = Uuid::now_v7();
        let raw_size = self.assembler.finish(shared.ledger.id, batch_id, &assembled);
        let span = LogSpan::of(&assembled.rows, shared.conversion.log_time, ingest_time);
        let clearance = match &shared.canaries {
            Some(canaries) => canaries.admit(span, &shared.progress, &mut self.stop).await?,
            None => Some(Clearance::default()),
        };
        let Some(clearance) = clearance else { return Ok(Progressed::Halted) };
        let load = Load { rows: assembled.rows.len() as u64, raw_bytes: raw_size as u64 };
        if shared.pace.admit(load, &shared.progress, &mut self.stop).await.is_none() {
            return Ok(Progressed::Halted);
        }
        let Some(ticket) = self.lane.ticket(&mut self.stop).await? else {
            return Ok(Progressed::Halted);
        };
        let (rows, signed_at) = (assembled.rows.len() as u64, shared.client.now());
        step.batch = Some(NewBatch {
            id: batch_id,
            rows: assembled.rows,
            raw_bytes: raw_size as u64,
            digest: assembled.digest,
            not_json: assembled.not_json,
            conversion_id: shared.conversion_id,
            sending: Some(Sending {
                owner: shared.process.id,
                lane_id: ticket.lane_id,
                number: ticket.number,
                signed_at,
                cursors: ticket.cursors.clone(),
            }),
            ingest_time,
        });
        step.stored.clone_from(&self.stored);
        // The ledger writes while the processor compresses; only what is left is waited for.
        let (recorded, packed) = {
            let record = shared.ledger.record(lease, &step);
            let compress = self.assembler.compress();
            shared.progress.timed_beside(record, compress).await
        };
        recorded?;
        let packed = packed?;
        self.stored.clear();
        self.lane.used(&ticket);
        let Shared { client, ledger, process, progress, pace, world, .. } = &*shared;
        let courier = Courier { client, ledger, process, progress, pace, world: *world };
        let logstore = shared.scope.table.logstore();
        let intended = Intended {
            batch_id,
            logstore,
            ticket: &ticket,
            signed_at,
            unknown_since: None,
            packed: &packed,
        };
        let mut delivery = courier.deliver(&intended, &mut self.stop).await;
        if let Some(canaries) = &shared.canaries {
            let rows = step.batch.as_ref().map_or(&[][..], |batch| &batch.rows);
            let sent =
                Sent { batch_id, span, rows, digest: assembled.digest, cursors: &ticket.cursors };
            delivery = canaries.after(clearance, delivery, &sent, progress, &mut self.stop).await;
        }
        match delivery? {
            Delivery::Stored(request_id) => {
                self.stored.push(Acknowledgement { batch_id, request_id });
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
        progress.sent.fetch_add(rows, Ordering::Relaxed);
        progress.raw_bytes.fetch_add(packed.raw_size as u64, Ordering::Relaxed);
        progress.body_bytes.fetch_add(packed.body.len() as u64, Ordering::Relaxed);
        Ok(Progressed::Done)
    }
}

/// How many index entries a range of about `rows` rows has.
pub fn range_step(order: KeyOrder, rows: u32) -> u32 {
    match order {
        KeyOrder::ByRun => (rows / NODES_PER_RUN).max(1),
        KeyOrder::Time | KeyOrder::Walk | KeyOrder::Rest => rows,
    }
}
