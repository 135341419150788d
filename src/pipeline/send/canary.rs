//! Canaries: the first batch of an age is pulled back, counted and found by search before others of
//! that age go out.
//!
//! ```text
//! admit ──► intent ──► send ─────► proved: pull from the batch's cursors ──► search by its tag
//!   ▲                                                                              │
//!   └────────────── whoever waits decides anew ◄── how old logs may be, in the ledger
//! ```
//!
//! What SLS certainly does not have (refused as out of range) is abandoned and its rows are held
//! `expired`: a later run tries them again. What SLS has acknowledged and does not give back in time
//! may only be slow: it stays stored, nothing goes out any more, and a person decides.

mod find;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::acknowledge::Acknowledgement;
use crate::ledger::intent::BatchRow;
use crate::ledger::proved_age::UnkeptBatch;
use crate::pipeline::progress::Progress;
use crate::pipeline::send::age::{Decision, LogSpan, decide};
use crate::pipeline::send::sender::{OutOfRange, SendOutcome};
use crate::pipeline::shutdown::Shutdown;
use crate::record::digest::Digest;
use crate::record::table::Table;
use crate::sls::client::Client;

/// How long to wait before SLS is asked again.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Search is asked less and less often, up to this.
const SEARCH_EVERY_MAX: Duration = Duration::from_secs(15);

/// How canaries are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanarySettings {
    /// How long a canary may take to be pulled back, before the run ends and a person decides. What
    /// is stored can be pulled after seconds.
    pub pull_wait: Duration,
    /// How long a canary may take to be found by search (the index of old logs takes minutes);
    /// `None`: it is not searched.
    pub search_wait: Option<Duration>,
}

/// The canaries of one table, shared by its workers.
pub struct Canaries {
    client: Client,
    ledger: Ledger,
    table: Table,
    settings: CanarySettings,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest log time proved, Unix seconds.
    proved_s: Option<i64>,
    is_canary_out: bool,
    /// A canary was not kept: nothing of an age that is not proved follows it.
    is_lost: bool,
}

/// The right to send a batch of its age.
#[derive(Default)]
pub struct Clearance<'a> {
    /// It is a canary: others wait until this is dropped.
    of: Option<&'a Canaries>,
}

/// A batch on its way.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    pub batch_id: Uuid,
    pub span: LogSpan,
    pub rows: &'a [BatchRow],
    pub digest: Digest,
    /// Shard → a cursor that no log of the batch can precede.
    pub cursors: &'a BTreeMap<u32, String>,
}

/// SLS does not keep logs as old as these, does not give them back, or does not find them. The text is
/// for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Unkept {
    text: String,
    /// Whether SLS said that it took the logs.
    pub was_acknowledged: bool,
}

impl Unkept {
    /// A batch that an earlier run has sent, and that SLS has not given back until now.
    pub fn earlier(table: Table, batch: &UnkeptBatch) -> Self {
        let UnkeptBatch { batch_id, since, rows, found, .. } = batch;
        let text = format!(
            "SLS has acknowledged batch {batch_id} with {rows} rows of {table}, and gives back {found} \
             of them until now\n\
             the oldest of the batch is of {since}; nothing was deleted anywhere, the ledger keeps the \
             batch as stored, and nothing is sent before it is there or you decide\n{}",
            unkept_hint(table),
        );
        Self { text, was_acknowledged: true }
    }
}

impl Canaries {
    /// Looks up in the ledger what is proved already.
    pub async fn new(
        client: &Client,
        ledger: &Ledger,
        table: Table,
        settings: CanarySettings,
    ) -> anyhow::Result<Self> {
        let canaries = Self {
            client: client.clone(),
            ledger: ledger.clone(),
            table,
            settings,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        canaries.look_up().await?;
        Ok(canaries)
    }

    /// Waits until a batch of this span may go out; `None` when asked to stop meanwhile.
    pub async fn admit(
        &self,
        span: LogSpan,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<Option<Clearance<'_>>> {
        let mut is_fresh = false;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let decision = {
                let mut state = self.state();
                let State { proved_s, is_canary_out, is_lost } = *state;
                let now_s = self.client.now();
                let decision = decide(proved_s, is_canary_out || is_lost, span.first_s, now_s);
                // Another process may have proved it meanwhile: look before sending a canary.
                state.is_canary_out |= decision == Decision::Canary && is_fresh;
                decision
            };
            match decision {
                Decision::Go => return Ok(Some(Clearance { of: None })),
                Decision::Canary if is_fresh => {
                    tracing::info!(
                        "{}: rows of {} go first; others of that age follow when these are proved",
                        self.table,
                        span.first()
                    );
                    return Ok(Some(Clearance { of: Some(self) }));
                }
                Decision::Canary => {
                    self.look_up().await?;
                    is_fresh = true;
                }
                Decision::Wait => {
                    let _shown = progress.wait("the oldest rows go first, and are proved");
                    if shutdown.or(changed).await.is_none() {
                        return Ok(None);
                    }
                    is_fresh = false;
                }
            }
        }
    }

    /// Looks what became of a batch that was sent with this clearance: proves a canary, and gives up
    /// what SLS will not keep. Hands the outcome on.
    pub async fn after(
        &self,
        clearance: Clearance<'_>,
        outcome: anyhow::Result<SendOutcome>,
        sent: &Sent<'_>,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<SendOutcome> {
        let looked = self.look(clearance.of.is_some(), outcome, sent, progress, shutdown).await;
        self.state().is_lost |= looked.is_err();
        looked
    }

    async fn look(
        &self,
        is_canary: bool,
        outcome: anyhow::Result<SendOutcome>,
        sent: &Sent<'_>,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<SendOutcome> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => match error.downcast_ref::<OutOfRange>() {
                Some(out_of_range) => return Err(self.out_of_range(sent, out_of_range).await?),
                None => return Err(error),
            },
        };
        if is_canary && !matches!(outcome, SendOutcome::GivenUp(_)) {
            let begun = Instant::now();
            if self.prove(sent, &outcome, progress, shutdown).await? {
                let logstore = self.table.logstore();
                self.ledger.prove_age(logstore, sent.span.first(), sent.batch_id).await?;
                self.state().proved_s = Some(sent.span.first_s);
                tracing::info!(
                    "{}: SLS keeps rows of {}: pulled back{} after {:.1} s",
                    self.table,
                    sent.span.first(),
                    if self.settings.search_wait.is_some() { ", counted and found" } else { "" },
                    begun.elapsed().as_secs_f64()
                );
            }
        }
        Ok(outcome)
    }

    /// Whether the batch is kept and found; `false` when asked to stop meanwhile.
    async fn prove(
        &self,
        sent: &Sent<'_>,
        outcome: &SendOutcome,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<bool> {
        let wanted = sent.rows.len() as u64;
        let begun = Instant::now();
        let sum = loop {
            let sum = self.pull(sent).await?;
            if sum.rows >= wanted || begun.elapsed() > self.settings.pull_wait {
                break sum;
            }
            let _shown = progress.wait("SLS does not give back the oldest rows yet");
            if shutdown.or(tokio::time::sleep(ASK_EVERY)).await.is_none() {
                return Ok(false);
            }
        };
        if (sum.rows, sum.digest) != (wanted, sent.digest) {
            if let SendOutcome::Stored(request_id) = outcome {
                let (batch_id, request_id) = (sent.batch_id, request_id.clone());
                let stored = Acknowledgement { batch_id, request_id };
                self.ledger.not_given_back(&stored, sent.span.first()).await?;
            }
            return Err(self.not_given_back(sent, sum.rows).into());
        }
        match self.settings.search_wait {
            Some(search_wait) => self.search(sent, search_wait, progress, shutdown).await,
            None => Ok(true),
        }
    }

    /// Whether search finds the batch; `false` when asked to stop meanwhile.
    async fn search(
        &self,
        sent: &Sent<'_>,
        search_wait: Duration,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let mut pause = ASK_EVERY;
        loop {
            let found = self.found(sent).await?;
            if found >= sent.rows.len() as u64 {
                return Ok(true);
            }
            if begun.elapsed() > search_wait {
                return Err(self.not_found(sent, found, search_wait).into());
            }
            let _shown = progress.wait("SLS's search does not find the oldest rows yet");
            if shutdown.or(tokio::time::sleep(pause)).await.is_none() {
                return Ok(false);
            }
            pause = (pause * 2).min(SEARCH_EVERY_MAX);
        }
    }

    async fn out_of_range(
        &self,
        sent: &Sent<'_>,
        refused: &OutOfRange,
    ) -> anyhow::Result<anyhow::Error> {
        let detail = format!("SLS refuses logs of {}: {}", sent.span.first(), refused.failure);
        let fate = self.give_up(sent, refused.all_refused, &detail).await?;
        let text = format!(
            "SLS takes no log as old as these: {}\nthe oldest of the batch is of {}; {fate}\n{}",
            refused.failure,
            sent.span.first(),
            ingest_hint(self.table),
        );
        Ok(Unkept { text, was_acknowledged: false }.into())
    }

    fn not_given_back(&self, sent: &Sent<'_>, found: u64) -> Unkept {
        let text = format!(
            "SLS has acknowledged batch {} with {} rows, but after {} s it gives back {found} of them \
             as they were sent: it does not keep logs as old as these, or is slow with them\n\
             the oldest of the batch is of {}; nothing was deleted anywhere, the ledger keeps the \
             batch as stored, and every other batch of that age has waited\n{}",
            sent.batch_id,
            sent.rows.len(),
            self.settings.pull_wait.as_secs(),
            sent.span.first(),
            unkept_hint(self.table),
        );
        Unkept { text, was_acknowledged: true }
    }

    /// Holds the rows of a batch of which SLS certainly has nothing; says what became of them.
    async fn give_up(
        &self,
        sent: &Sent<'_>,
        is_certain: bool,
        detail: &str,
    ) -> anyhow::Result<String> {
        let Sent { batch_id, rows, .. } = *sent;
        let safe = "nothing was deleted anywhere, and every other batch of that age has waited";
        if is_certain && self.ledger.hold_unkept(self.table, batch_id, rows, detail).await? {
            return Ok(format!("its {} rows are held `expired`; {safe}", rows.len()));
        }
        Ok(format!("part of it may be in SLS, so the ledger keeps it as sent; {safe}"))
    }

    fn not_found(&self, sent: &Sent<'_>, found: u64, search_wait: Duration) -> Unkept {
        let text = format!(
            "SLS has stored batch {} with {} rows and gives them back, but after {} s its search \
             finds {found} of them: Dify would not show them\n\
             the oldest of the batch is of {}; nothing was deleted anywhere, and every other batch \
             of that age has waited\n\
             hint: is the index of {} as Dify makes it, and its TTL longer than the rows are old?\n\
             hint: an index may be slow with old logs: give it time with --search-wait-s, or go on \
             without looking with --no-canary-search",
            sent.batch_id,
            sent.rows.len(),
            search_wait.as_secs(),
            sent.span.first(),
            self.table.logstore(),
        );
        Unkept { text, was_acknowledged: true }
    }

    async fn look_up(&self) -> anyhow::Result<()> {
        // Another process may have sent one meanwhile, and wait for a person.
        if let Some(unkept) = self.ledger.unkept(self.table).await?.first() {
            return Err(Unkept::earlier(self.table, unkept).into());
        }
        let proved = self.ledger.proved_age(self.table.logstore()).await?;
        self.state().proved_s = proved.and_then(|proved| proved.unix_s());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Both its fields are whole whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Clearance<'_> {
    fn drop(&mut self) {
        if let Some(canaries) = self.of {
            canaries.state().is_canary_out = false;
            canaries.changed.notify_waiters();
        }
    }
}

/// What to do about a batch that SLS has acknowledged and does not give back.
fn unkept_hint(table: Table) -> String {
    format!(
        "hint: what only is slow is found by the same command later: run it again\n\
         hint: if SLS certainly does not keep them (is the TTL of {} shorter than they are old?), \
         mend that, or choose the time of sending as log time (--log-time ingest --new-conversion), \
         and have them sent again: dify-sls-backfill run --resend-unkept",
        table.logstore(),
    )
}

fn ingest_hint(table: Table) -> String {
    format!(
        "hint: raise the TTL of {} in SLS's console if it is shorter than the rows are old, and run \
         the same command again\n\
         hint: or give logs the time of sending, and Dify's daily charts count these rows on the \
         day of the backfill: dify-sls-backfill run --log-time ingest --new-conversion",
        table.logstore(),
    )
}
