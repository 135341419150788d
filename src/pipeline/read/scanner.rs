//! First stage of a worker: claims ranges, scans what is next in them, and plans batches.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Mutex, mpsc};

use crate::ledger::Ledger;
use crate::ledger::hold::HoldsToTry;
use crate::ledger::intent::{Expired, Step};
use crate::ledger::process::Process;
use crate::ledger::range::{Lease, RangeKind, Work};
use crate::pipeline::guard::budget::{RowBudget, TakenRows};
use crate::pipeline::guard::health_gate::HealthGate;
use crate::pipeline::guard::pace::Pace;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::batching::Sought;
use crate::pipeline::read::range_scan::{RangeScan, ScanSettings};
use crate::pipeline::read::range_size::{next_range_rows, range_step};
use crate::pipeline::shutdown::Shutdown;
use crate::source::scope::Scope;

/// How long a worker without work waits before it asks again.
const IDLE: Duration = Duration::from_millis(100);

/// With more than that to do, batches are made to fit into the shards.
const MANY_ROWS: u64 = 50_000;

/// What is next in a range.
pub struct Scanned {
    /// The range, which stands where this begins.
    pub lease: Lease,
    pub next: ScannedWork,
}

pub enum ScannedWork {
    Rows(Box<Rows>),
    /// Nothing: it is read to its end.
    End,
}

/// Rows that are to be read.
pub struct Rows {
    /// With the rows that are passed over.
    pub step: Step,
    pub take: Vec<Sought>,
    /// No more bytes than that come of them, unless they change.
    pub bytes: u64,
    /// What a batch could have.
    pub batch_bytes: u64,
    /// To be spent when they are in the ledger.
    pub taken: TakenRows,
}

/// A range in work.
struct Range {
    /// It stands behind the last row that was looked at.
    lease: Lease,
    scan: RangeScan,
}

/// What the scanners of one pass work with.
#[derive(Clone)]
pub struct ScannerParts {
    pub ledger: Ledger,
    pub process: Process,
    pub pass_id: i64,
    pub scan: ScanSettings,
    /// The scope of the pass in its own key order.
    pub scope: Scope,
    /// About how many rows a range has at most.
    pub range_rows: u32,
    pub workers: u32,
    pub rows: RowBudget,
    pub health: Arc<HealthGate>,
    /// Knows which size of batches fills the shards.
    pub pace: Arc<Pace>,
    pub progress: Arc<Progress>,
    /// Which held rows are tried again when the pass's key space is cut.
    pub holds: HoldsToTry,
    /// Held by who looks for a range: two that cut at once would cut the same one.
    pub cutting: Arc<Mutex<()>>,
}

/// The ranges that a worker owns.
#[derive(Debug, Clone, Default)]
pub struct OwnedRanges(Arc<std::sync::Mutex<BTreeMap<i64, Lease>>>);

impl OwnedRanges {
    fn add(&self, lease: &Lease) {
        self.lock().insert(lease.range_id, lease.clone());
    }

    /// It is done, or somebody else's.
    pub fn remove(&self, range_id: i64) {
        self.lock().remove(&range_id);
    }

    /// All of them.
    pub fn leases(&self) -> Vec<Lease> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first stage of one worker.
pub struct Scanner {
    parts: ScannerParts,
    owned: OwnedRanges,
    shutdown: Shutdown,
    watch: Arc<Watch>,
}

impl Scanner {
    /// `owned` learns of every range that is claimed.
    pub fn new(
        parts: ScannerParts,
        owned: OwnedRanges,
        shutdown: Shutdown,
        watch: Arc<Watch>,
    ) -> Self {
        Self { parts, owned, shutdown, watch }
    }

    /// Looks some steps ahead of who receives, until nobody does, or nothing is left to do: all is
    /// done, somebody has asked to stop, or the row budget is spent.
    pub async fn run(mut self, sender: mpsc::Sender<Scanned>) -> anyhow::Result<()> {
        let mut range = None;
        while let Ok(permit) = sender.reserve().await {
            let Some(scanned) = self.next(&mut range, &sender).await? else { break };
            permit.send(scanned);
        }
        Ok(())
    }

    async fn next(
        &mut self,
        current: &mut Option<Range>,
        sender: &mpsc::Sender<Scanned>,
    ) -> anyhow::Result<Option<Scanned>> {
        let range = match current {
            Some(range) => range,
            None => match self.next_range(sender).await? {
                Some(lease) => current.insert(self.begin(lease)),
                None => return Ok(None),
            },
        };
        let (range_id, table) = (range.lease.range_id, self.parts.scope.table);
        let ScannerParts { health, progress, .. } = &self.parts;
        health.pass(progress, &mut self.shutdown).await;
        let next = self.watch.work(self.plan(range)).await;
        let Some(next) = next.with_context(|| format!("read range {range_id} of {table}"))? else {
            return Ok(None);
        };
        let lease = range.lease.clone();
        match &next {
            ScannedWork::Rows(rows) => {
                range.lease.position = rows.step.position.unwrap_or(lease.position)
            }
            ScannedWork::End => *current = None,
        }
        Ok(Some(Scanned { lease, next }))
    }

    /// Claims a range, cuts a new one, or waits for the ranges of others that must come first.
    async fn next_range(
        &mut self,
        sender: &mpsc::Sender<Scanned>,
    ) -> anyhow::Result<Option<Lease>> {
        let ScannerParts { ledger, process, pass_id, rows, scope, .. } = &self.parts;
        while !self.shutdown.is_asked() && !rows.is_spent() && !sender.is_closed() {
            let Some(cutting) = self.shutdown.or(self.parts.cutting.lock()).await else { break };
            let work = self.watch.ledger(ledger.work(*pass_id, process));
            match self.watch.work(work).await? {
                Work::Range(lease) => return Ok(Some(lease)),
                Work::Done => return Ok(None),
                // One worker asks for all that wait.
                Work::Wait => {
                    self.shutdown.or(tokio::time::sleep(IDLE)).await;
                    drop(cutting);
                }
                Work::CutHolds => {
                    let cut = ledger.cut_holds(scope.table, *pass_id, process, &self.parts.holds);
                    let cut = self.watch.ledger(cut);
                    self.watch.work(cut).await?;
                }
                Work::Cut(order, after) => {
                    let scope = Scope { order, ..scope.clone() };
                    let ScannerParts { range_rows, workers, progress, scan, .. } = &self.parts;
                    let left = progress.rows_left();
                    let rows = next_range_rows(order, *range_rows, *workers, left);
                    let step = range_step(order, rows);
                    let upto = scan.source.next_cut(&scope, after, step);
                    let upto = self.watch.work(upto).await?;
                    let cut = ledger.cut_range(*pass_id, process, order, after, upto);
                    let cut = self.watch.ledger(cut);
                    if let Some(lease) = self.watch.work(cut).await? {
                        return Ok(Some(lease));
                    }
                }
            }
        }
        Ok(None)
    }

    fn begin(&self, lease: Lease) -> Range {
        self.owned.add(&lease);
        let ScannerParts { scan, scope, .. } = &self.parts;
        let scope = match lease.kind {
            RangeKind::Keys(order) => Scope { order, ..scope.clone() },
            RangeKind::Holds(_) => scope.clone(),
        };
        let scan = RangeScan::of_lease(scan.clone(), &lease, scope, Arc::clone(&self.watch));
        Range { lease, scan }
    }

    /// A few rows go in batches as large as may be.
    fn batch_bytes(&self) -> u64 {
        let ScannerParts { pace, progress, scan, .. } = &self.parts;
        let batch_bytes_max = scan.limits.batch_bytes;
        let is_much = progress.rows_left().is_some_and(|rows| rows >= MANY_ROWS);
        match is_much || pace.is_known() {
            true => pace.batch_bytes(batch_bytes_max),
            false => batch_bytes_max,
        }
    }

    async fn plan(&self, range: &mut Range) -> anyhow::Result<Option<ScannedWork>> {
        let ScannerParts { rows, scan, scope, .. } = &self.parts;
        let mut taken = rows.take(u64::from(scan.limits.batch_logs_max));
        if self.shutdown.is_asked() || taken.rows() == 0 {
            return Ok(None);
        }
        let batch_bytes = self.batch_bytes();
        range.scan.set_batch_bytes(batch_bytes);
        let Some(cut) = range.scan.next(taken.rows()).await? else {
            return Ok(Some(ScannedWork::End));
        };
        taken.keep(cut.take.len() as u64);
        let step = Step {
            holds: cut.holds,
            expired: Expired { rows: cut.expired, finished_before: scan.bounds.kept_since },
            already: cut.already,
            gone: cut.gone,
            position: cut.position,
            ..Step::of(scope.table)
        };
        let (take, bytes) = (cut.take, cut.take_bytes);
        Ok(Some(ScannedWork::Rows(Box::new(Rows { step, take, bytes, batch_bytes, taken }))))
    }
}
