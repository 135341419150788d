//! One worker: the way of a row from top to bottom, three stages that go on beside each other.
//!
//! ```text
//! scanner ──Scanned──► preparer ──Prepared──► uploader
//! claims ranges,       reads, converts,       records the intent, sends,
//! plans batches        packs                  acknowledges
//! ```
//!
//! Only the uploader moves a position in the ledger: what is ready and was never uploaded is as if
//! it had not been read.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::ledger::in_doubt::BatchLost;
use crate::ledger::live_rows::RowsTaken;
use crate::ledger::range::Lease;
use crate::ledger::{LeaseLost, Ledger};
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::preparer::{Preparer, PreparerParts};
use crate::pipeline::read::scanner::{OwnedRanges, Scanner, ScannerParts};
use crate::pipeline::send::uploader::{Progressed, Uploader, UploaderParts};
use crate::pipeline::shutdown::Shutdown;

/// How many steps may be scanned and not read yet: enough to claim a range while another is read.
const SCANNED_MAX: usize = 4;

/// How many steps may be ready and not on their way yet.
const READY_MAX: usize = 1;

/// What the workers of one pass are made of: each stage takes its own.
#[derive(Clone)]
pub struct WorkerParts {
    pub scanner: ScannerParts,
    pub preparer: PreparerParts,
    pub uploader: UploaderParts,
}

/// A worker of one pass.
pub struct Worker {
    ledger: Ledger,
    owned: OwnedRanges,
    shutdown: Shutdown,
    watch: Arc<Watch>,
    scanner: Scanner,
    preparer: Preparer,
    uploader: Uploader,
}

impl Worker {
    /// A worker of the pass.
    pub fn new(
        parts: WorkerParts,
        progress: &Arc<Progress>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let WorkerParts { scanner, preparer, uploader } = parts;
        let watch = Arc::new(Watch::new(progress));
        let owned = OwnedRanges::default();
        Ok(Self {
            ledger: uploader.ledger.clone(),
            scanner: Scanner::new(scanner, owned.clone(), shutdown.clone(), Arc::clone(&watch)),
            preparer: Preparer::new(preparer, Arc::clone(&watch))?,
            uploader: Uploader::new(uploader, shutdown.clone(), Arc::clone(&watch)),
            owned,
            shutdown: shutdown.clone(),
            watch,
        })
    }

    /// Works until nothing is left to do for it.
    pub async fn work(self) -> anyhow::Result<()> {
        let Self { ledger, owned, shutdown, watch, scanner, preparer, mut uploader } = self;
        let (to_prepare, scanned) = mpsc::channel(SCANNED_MAX);
        let (to_upload, mut prepared) = mpsc::channel(READY_MAX);
        // Aborted when dropped, that is, when the upload fails.
        let mut stages = JoinSet::new();
        stages.spawn(scanner.run(to_prepare));
        stages.spawn(preparer.run(scanned, to_upload));

        let mut lost = BTreeSet::new();
        while let Some(ready) = prepared.recv().await.filter(|_| !shutdown.is_asked()) {
            let lease = ready.lease.clone();
            let Lease { range_id, token, .. } = lease;
            if lost.contains(&(range_id, token)) {
                continue;
            }
            match watch.work(uploader.upload(ready)).await {
                Ok(Progressed::Done) => {}
                Ok(Progressed::RangeDone) => owned.remove(range_id),
                Ok(Progressed::Halted) => break,
                // Nothing of ours can have been written there since: somebody else goes on with it.
                Err(error) if error.is::<LeaseLost>() || error.is::<BatchLost>() => {
                    tracing::warn!("{error:#}");
                    lost.insert((range_id, token));
                }
                // The range is read anew from where it stands, by whoever claims it.
                Err(error) if error.is::<RowsTaken>() => {
                    tracing::info!("{error:#}");
                    lost.insert((range_id, token));
                    owned.remove(range_id);
                    ledger.release(&lease).await?;
                }
                Err(error) => {
                    if let Err(second) = uploader.acknowledge().await {
                        tracing::warn!("{second:#}");
                    }
                    return Err(error.context(format!("move range {range_id}")));
                }
            }
        }
        uploader.acknowledge().await?;
        drop(prepared);
        while let Some(ended) = stages.join_next().await {
            ended.context("a stage of a worker ended badly")??;
        }
        // Others go on where this one halts.
        for lease in owned.leases() {
            ledger.release(&lease).await?;
        }
        Ok(())
    }
}
