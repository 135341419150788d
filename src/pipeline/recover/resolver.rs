//! Settles batches whose fate is open, beside the upload: finds out what became of them, and ends
//! them one way or another.
//!
//! Open are the intents of dead processes and those that a sender has given up. What is not there,
//! and cannot come any more, is sent again if its rows are still the same, halved if something is
//! wrong with it, and replaced by what its rows are now if they have changed.

mod look;
mod resend;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::eligibility::Bounds;
use crate::error_text::error_text;
use crate::ledger::Ledger;
use crate::ledger::in_doubt::InDoubtBatch;
use crate::ledger::process::Process;
use crate::ledger::stop::Stopped;
use crate::pipeline::guard::budget::MemoryBudget;
use crate::pipeline::guard::pace::Pace;
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::progress::Progress;
use crate::pipeline::read::assemble::Assembler;
use crate::pipeline::read::batching::BatchLimits;
use crate::pipeline::recover::absence::Look;
use crate::pipeline::recover::rules::{
    ArrivalDeadline, Guarantees, arrival_deadline, is_due, is_repeatable,
};
use crate::pipeline::send::lane_keeper::{LaneKeeper, Wanted};
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::tail_reader::TailReader;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// How often open batches are looked at.
const ROUND_EVERY: Duration = Duration::from_millis(500);

/// So many batches are resolved at a time: their row ids are in memory.
const OPEN_MAX: usize = 64;

/// After so many errors the cause is not in the batches.
const FAILED_MAX: u64 = 10;

/// What a resolver works with.
pub struct ResolverParts {
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    pub signing_lease: Arc<SigningLease>,
    pub process: Process,
    pub table: Table,
    pub tail_reader: TailReader,
    pub guarantees: Guarantees,
    /// When this process has read for the first time what SLS had acknowledged before (Unix seconds,
    /// SLS's clock); `None`: all of it had been read.
    pub behind_at: Option<i64>,
    pub memory: MemoryBudget,
    pub progress: Arc<Progress>,
    pub pace: Arc<Pace>,
    /// Makes the batches that take the place of others.
    pub conversion_id: i64,
    pub conversion: Conversion,
    pub shape: Shape,
    pub limits: BatchLimits,
    /// By what rows are judged that are read anew.
    pub bounds: Bounds,
    /// Number of the settler's lane among those of the workers.
    pub nth: usize,
}

/// What a resolver did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Found in SLS.
    pub found: u64,
    /// Sent again, and stored.
    pub sent: u64,
    /// Rows in these.
    pub sent_rows: u64,
    /// Halved.
    pub halved: u64,
    /// Replaced by what their rows are now.
    pub abandoned: u64,
    /// Rows that SLS refuses, alone and for their content.
    pub refused_rows: u64,
    /// Batches of which SLS holds a part, or something else.
    pub differ: u64,
    /// Could not be resolved, for an error that was logged.
    pub failed: u64,
    /// Still open.
    pub open: u64,
    /// Of these, batches of which it cannot be told whether they are there, because SLS does not give
    /// back yet what it has acknowledged.
    pub behind: u64,
    /// When the next of the open ones can be settled (Unix seconds, SLS's clock).
    pub next_at: Option<i64>,
}

/// Why a batch is not sent again yet that is not there.
pub const BEHIND: &str = "SLS does not give back yet all that it has acknowledged, so batches without \
    an answer may be there, too";

/// What is to be done with a batch now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resend {
    /// Nothing of it is in SLS or on its way: send it under a new number, or replace it.
    Anew,
    /// Send the same number again; SLS refuses it, had it stored the batch.
    SameNumber,
}

/// Resolves the batches in doubt of one table.
pub struct Resolver {
    parts: ResolverParts,
    assembler: Assembler,
    lane: LaneKeeper,
    shutdown: Shutdown,
    open: BTreeMap<Uuid, InDoubtBatch>,
    /// Open batches of which SLS holds a part: told once.
    differing: BTreeSet<Uuid>,
    /// Open batches that are looked for.
    looks: BTreeMap<Uuid, Look>,
    resolved: Resolved,
    /// Open batches whose number must not, or whose rows cannot, go out again as they were.
    unrepeatable: BTreeSet<Uuid>,
    /// SLS did not answer: nothing more is sent.
    is_silent: bool,
}

impl Resolver {
    /// `shutdown`: the wish to end the run.
    pub fn new(parts: ResolverParts, shutdown: Shutdown) -> anyhow::Result<Self> {
        let ResolverParts { client, ledger, process, table, nth, .. } = &parts;
        let lane = LaneKeeper::new(client, ledger, process, table.logstore(), Wanted::Nth(*nth));
        Ok(Self {
            assembler: Assembler::new(parts.conversion.clone(), parts.shape.clone())?,
            lane,
            parts,
            shutdown,
            open: BTreeMap::new(),
            differing: BTreeSet::new(),
            looks: BTreeMap::new(),
            unrepeatable: BTreeSet::new(),
            resolved: Resolved::default(),
            is_silent: false,
        })
    }

    /// Settles until `done` is asked to stop; gives itself back for [`Self::finish`].
    pub async fn resolve(mut self, mut done: Shutdown) -> anyhow::Result<Self> {
        while !done.is_asked() && !self.shutdown.is_asked() {
            self.round().await?;
            done.or(tokio::time::sleep(ROUND_EVERY)).await;
        }
        Ok(self)
    }

    /// Settles what can be settled soon; tells what came of it all.
    pub async fn finish(&mut self) -> anyhow::Result<Resolved> {
        // The other half of what seems to differ may be there by now.
        if !self.differing.is_empty() {
            self.parts.tail_reader.catch_up(&self.shutdown).await?;
        }
        let until = self.parts.client.now() + self.parts.guarantees.timings.wait_at_end_s();
        let mut is_told = false;
        while !self.shutdown.is_asked() {
            let ended = self.round().await?;
            let now = self.parts.client.now();
            let waits = self.open.len() > self.differing.len()
                && self.resolved.next_at.map_or(now < until, |at| at <= until);
            // What was ended may have left halves.
            if self.is_silent || !(waits || ended > 0) {
                break;
            }
            if self.resolved.behind > 0 && !is_told {
                tracing::info!("{}: waiting: {}", self.parts.table, BEHIND);
                is_told = true;
            }
            if ended == 0 {
                // Nobody else reads any more: what is there already need not be waited for.
                self.parts.tail_reader.catch_up(&self.shutdown).await?;
                self.shutdown.or(tokio::time::sleep(ROUND_EVERY)).await;
            }
        }
        self.resolved.differ = self.differing.len() as u64;
        self.resolved.open = self.open.len() as u64;
        Ok(self.resolved)
    }

    /// Looks at all batches in doubt once; gives how many of them were ended.
    async fn round(&mut self) -> anyhow::Result<u32> {
        let ResolverParts { ledger, process, table, client, guarantees, .. } = &self.parts;
        let (guarantees, now) = (*guarantees, client.now());
        let unsettled = self.open.len() - self.differing.len();
        let room = u32::try_from(OPEN_MAX.saturating_sub(unsettled))?;
        if room > 0 {
            let claimed = ledger.claim_in_doubt(process, *table, room).await?;
            self.open.extend(claimed.into_iter().map(|batch| (batch.id, batch)));
        }
        if self.open.is_empty() {
            self.resolved.next_at = None;
            return Ok(0);
        }
        let seen = ledger.seen(process, self.open.keys().copied().collect()).await?;
        let (mut due, mut ready, mut next_at) = (Vec::new(), Vec::new(), None);
        let is_open = |id: &Uuid| seen.get(id).is_some_and(|seen| seen.is_open);
        self.open.retain(|id, _| {
            let is_open = is_open(id);
            self.resolved.found += u64::from(!is_open);
            is_open
        });
        // The other half of what seemed to differ may have come.
        self.differing.retain(|id| self.open.contains_key(id));
        self.looks.retain(|id, _| self.open.contains_key(id));
        for (id, batch) in &self.open {
            match arrival_deadline(batch, &seen[id], guarantees, now) {
                ArrivalDeadline::Passed if seen[id].found.rows == 0 => {
                    ready.push((*id, Resend::Anew));
                }
                over if is_due(over, guarantees, now) => due.push(*id),
                ArrivalDeadline::At(_)
                    if is_repeatable(batch, guarantees, now) && !self.unrepeatable.contains(id) =>
                {
                    ready.push((*id, Resend::SameNumber));
                }
                ArrivalDeadline::At(at) => {
                    let at = at + guarantees.timings.look_after_s();
                    next_at = earliest(next_at, at);
                }
                ArrivalDeadline::Passed => {}
            }
        }
        due.retain(|id| !self.differing.contains(id));
        let looked = self.look_for(&due).await?;
        ready.extend(looked.missing.into_iter().map(|id| (id, Resend::Anew)));
        self.resolved.behind = looked.behind;
        self.resolved.next_at = looked.next_at.map_or(next_at, |at| earliest(next_at, at));
        let mut ended = 0;
        for (id, resend) in ready {
            if self.shutdown.is_asked() || self.is_silent {
                break;
            }
            if let Some(batch) = self.open.remove(&id) {
                if let Err(error) = self.end(batch, resend).await {
                    if error.is::<Stopped>() {
                        return Err(error);
                    }
                    // One bad batch must not keep the others from being settled.
                    tracing::error!(
                        "batch {id} stays open, the next run tries again: {}",
                        error_text(&error)
                    );
                    self.resolved.failed += 1;
                    anyhow::ensure!(
                        self.resolved.failed < FAILED_MAX,
                        "{FAILED_MAX} open batches cannot be settled"
                    );
                }
                ended += u32::from(!self.open.contains_key(&id));
            }
        }
        Ok(ended)
    }
}

fn earliest(next_at: Option<i64>, at: i64) -> Option<i64> {
    Some(next_at.map_or(at, |next| next.min(at)))
}
