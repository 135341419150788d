//! One worker: claims ranges, and moves their rows batch by batch on a lane of its own.

mod look;
mod prepare;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::dify::conversion::Conversion;
use crate::ledger::claim::Lease;
use crate::ledger::process::Process;
use crate::ledger::settle::BatchLost;
use crate::ledger::{LeaseLost, Ledger};
use crate::pipeline::budget::{MemoryBudget, RowBudget};
use crate::pipeline::canary::Canaries;
use crate::pipeline::feed::FeedSettings;
use crate::pipeline::health::HealthGate;
use crate::pipeline::lookout::Lookout;
use crate::pipeline::pace::Pace;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::settle::World;
use crate::pipeline::stop::Stop;
use crate::pipeline::worker::look::Looker;
use crate::pipeline::worker::prepare::Preparer;
use crate::pipeline::worker::upload::{Progressed, Uploader};
use crate::record::key::KeyOrder;
use crate::sls::client::Client;
use crate::source::scope::Scope;

/// About how many rows a range has at most.
pub const RANGE_ROWS: u32 = 50_000;

/// A range is not made smaller than this for being one of the last.
const LAST_RANGE_ROWS: u64 = 2_000;

/// About how many nodes a run has; by run, a range is cut by runs.
const NODES_PER_RUN: u32 = 20;

/// How many steps may be looked at and not read yet: enough to claim a range while another is read.
const LOOKED_MAX: usize = 4;

/// How many steps may be ready and not on their way yet.
const READY_MAX: usize = 1;

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
    pub lookout: Arc<Lookout>,
    pub world: World,
    pub process: Process,
    pub pass_id: i64,
    pub conversion_id: i64,
    pub conversion: Conversion,
    /// The scope of the pass in its own key order.
    pub scope: Scope,
    /// About how many rows a range has at most.
    pub range_rows: u32,
    pub workers: u32,
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
    /// Held by who looks for a range: two that cut at once would cut the same one.
    pub cutting: tokio::sync::Mutex<()>,
}

/// The ranges that a worker owns.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<BTreeMap<i64, Lease>>>);

impl Held {
    fn add(&self, lease: &Lease) {
        self.leases().insert(lease.range_id, lease.clone());
    }

    fn remove(&self, range_id: i64) {
        self.leases().remove(&range_id);
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<i64, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker: three stages beside each other, each a step or some ahead of the next.
pub struct Worker {
    shared: Arc<Shared>,
    stop: Stop,
    watch: Arc<Watch>,
    preparer: Preparer,
    uploader: Uploader,
}

impl Worker {
    /// The `nth` worker of the pass; workers spread over the shards by their number.
    pub fn new(shared: Arc<Shared>, stop: Stop, nth: usize) -> anyhow::Result<Self> {
        let watch = Arc::new(Watch::new(&shared.progress));
        let preparer = Preparer::new(Arc::clone(&shared), Arc::clone(&watch))?;
        let uploader = Uploader::new(Arc::clone(&shared), stop.clone(), Arc::clone(&watch), nth);
        Ok(Self { shared, stop, watch, preparer, uploader })
    }

    /// Works until nothing is left to do for it.
    pub async fn work(self) -> anyhow::Result<()> {
        let Self { shared, stop, watch, preparer, mut uploader } = self;
        let held = Held::default();
        let looker = Looker {
            shared: Arc::clone(&shared),
            stop: stop.clone(),
            watch: Arc::clone(&watch),
            held: held.clone(),
        };
        let (to_prepare, looked) = mpsc::channel(LOOKED_MAX);
        let (to_upload, mut prepared) = mpsc::channel(READY_MAX);
        // Aborted when dropped, that is, when the upload fails.
        let mut stages = JoinSet::new();
        stages.spawn(looker.run(to_prepare));
        stages.spawn(preparer.run(looked, to_upload));

        let mut lost = BTreeSet::new();
        while let Some(ready) = prepared.recv().await.filter(|_| !stop.is_asked()) {
            let Lease { range_id, token, .. } = ready.lease;
            if lost.contains(&(range_id, token)) {
                continue;
            }
            match watch.work(uploader.upload(ready)).await {
                Ok(Progressed::Done) => {}
                Ok(Progressed::RangeDone) => held.remove(range_id),
                Ok(Progressed::Halted) => break,
                // Nothing of ours can have been written there since: somebody else goes on with it.
                Err(error) if error.is::<LeaseLost>() || error.is::<BatchLost>() => {
                    tracing::warn!("{error:#}");
                    lost.insert((range_id, token));
                }
                Err(error) => {
                    if let Err(second) = uploader.acknowledge().await {
                        tracing::warn!("{second:#}");
                    }
                    let table = shared.scope.table;
                    return Err(error.context(format!("move range {range_id} of {table}")));
                }
            }
        }
        uploader.acknowledge().await?;
        drop(prepared);
        while let Some(ended) = stages.join_next().await {
            ended.context("a stage of a worker ended badly")??;
        }
        // Others go on where this one halts.
        let open: Vec<_> = held.leases().values().cloned().collect();
        for lease in open {
            shared.ledger.release(&lease).await?;
        }
        Ok(())
    }
}

/// About how many rows the next range has: towards the end they become smaller, so that all workers
/// end at about the same time. `rows_left`: by estimate; `None`: nobody knows.
fn next_range_rows(order: KeyOrder, range_rows: u32, workers: u32, rows_left: Option<u64>) -> u32 {
    // The others go over rows of all times, of which only few are left or wanted.
    let (KeyOrder::Time | KeyOrder::ByRun, Some(rows_left)) = (order, rows_left) else {
        return range_rows;
    };
    let share = (rows_left / (2 * u64::from(workers.max(1)))).max(LAST_RANGE_ROWS);
    range_rows.min(u32::try_from(share).unwrap_or(u32::MAX))
}

/// How many index entries a range of about `rows` rows has.
pub fn range_step(order: KeyOrder, rows: u32) -> u32 {
    match order {
        KeyOrder::ByRun => (rows / NODES_PER_RUN).max(1),
        KeyOrder::Time | KeyOrder::Walk | KeyOrder::Rest => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_smaller_towards_the_end() {
        let rows = |range_rows, left| next_range_rows(KeyOrder::Time, range_rows, 8, left);
        assert_eq!(rows(50_000, None), 50_000, "nobody knows where the end is");
        assert_eq!(rows(50_000, Some(28_000_000)), 50_000);
        assert_eq!(rows(50_000, Some(400_000)), 25_000);
        assert_eq!(rows(50_000, Some(0)), 2_000, "the estimate was too low");
        assert_eq!(rows(20, Some(0)), 20, "never more than was asked for");
        assert_eq!(next_range_rows(KeyOrder::Rest, 50_000, 8, Some(10)), 50_000);
    }
}
