//! Sends one batch until its fate is known, or gives it up: the resolver takes it over.

use std::ops::ControlFlow;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::acknowledge::Acknowledgement;
use crate::ledger::in_doubt::AttemptReport;
use crate::ledger::process::Process;
use crate::pipeline::guard::pace::{Pace, Turn, backoff};
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::read::assemble::Packed;
use crate::pipeline::recover::rules::{Guarantees, UNKNOWNS_MAX, is_number_kept};
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::lane_keeper::{LaneSlot, is_at_home};
use crate::pipeline::shutdown::Shutdown;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::Client;
use crate::sls::put::Put;

/// After so many attempts without a connection, about a minute, the run stops.
const NOT_SENT_MAX: u32 = 12;

/// A batch whose intent is in the ledger.
#[derive(Debug, Clone)]
pub struct IntendedBatch<'a> {
    pub batch_id: Uuid,
    pub logstore: &'a str,
    pub slot: &'a LaneSlot,
    /// The date in the ledger, Unix seconds, SLS's clock.
    pub signed_at: i64,
    /// When an earlier attempt whose fate is not known was signed (Unix seconds, SLS's clock);
    /// `None`: there is none.
    pub unknown_since: Option<i64>,
    pub packed: &'a Packed,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendOutcome {
    /// SLS has stored it; the ledger does not know yet.
    Stored(String),
    /// The tail reader has found it in SLS, and the ledger knows.
    Found,
    /// It is in doubt: the ledger keeps its intent, for the resolver. `Break`: SLS does not answer,
    /// or somebody has asked to stop, so there is no sense in sending others.
    GivenUp(ControlFlow<()>),
}

/// SLS refused a batch because its logs are too old.
#[derive(Debug, thiserror::Error)]
#[error("SLS takes no log as old as these: {failure}")]
pub struct OutOfRange {
    pub failure: Failure,
    /// Every attempt was refused, so nothing of the batch is in SLS.
    pub all_refused: bool,
}

/// What a sender works with.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    pub client: &'a Client,
    pub signing_lease: &'a SigningLease,
    pub ledger: &'a Ledger,
    pub process: &'a Process,
    pub progress: &'a Progress,
    pub watch: &'a Watch,
    pub pace: &'a Pace,
    pub guarantees: Guarantees,
}

/// What came of renewing a signature.
enum Signed {
    /// Its date: Unix seconds, SLS's clock.
    At(i64),
    /// The tail reader has found the batch in SLS meanwhile.
    Found,
    /// Asked to stop.
    Halted,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Wait, then the same number again.
    Wait,
    /// The same number, signed anew, unless an earlier attempt is unknown.
    SignAnew,
    /// `Break`: nothing else is sent, either.
    GiveUp(ControlFlow<()>),
    /// A person must act.
    Fail,
}

impl Sender<'_> {
    /// Sends the batch; `first` is the right to the first attempt, if there is one already. After an
    /// unknown answer the same number goes out again where SLS is proven to store a number once;
    /// elsewhere the batch is given up. Fails when no repetition can help.
    pub async fn send(
        &self,
        intended: &IntendedBatch<'_>,
        mut first: Option<Turn<'_>>,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<SendOutcome> {
        let mut signed_at = intended.signed_at;
        let mut unknown_since = intended.unknown_since;
        let mut report =
            AttemptReport { all_refused: unknown_since.is_none(), ..AttemptReport::default() };
        let (mut attempt, mut not_sent) = (0, 0);
        loop {
            if let Some(since) = unknown_since
                && let Err(flow) = self.is_protected(intended, since).await
            {
                return self.give_up(intended, &report, flow).await;
            }
            let turn = match first.take() {
                Some(turn) => Some(turn),
                None => self.turn(intended, shutdown).await,
            };
            let Some(turn) = turn else {
                return self.give_up(intended, &report, ControlFlow::Break(())).await;
            };
            // A repeated number keeps its date: so no request of it lives longer than the number is
            // certainly kept, even if we are stopped before we send it.
            let is_old = self.client.now() - signed_at > self.guarantees.timings.renew_after_s();
            if is_old && unknown_since.is_none() {
                match self.sign_anew(intended, shutdown).await? {
                    Signed::At(date) => signed_at = date,
                    Signed::Found => return Ok(SendOutcome::Found),
                    Signed::Halted => {
                        return self.give_up(intended, &report, ControlFlow::Break(())).await;
                    }
                }
            }
            let answer = self.put(intended, signed_at).await;
            turn.ended(&answer);
            let failure = match answer {
                Ok(request_id) => return Ok(SendOutcome::Stored(request_id)),
                Err(failure) => failure,
            };
            attempt += 1;
            not_sent = if failure.next == NextAction::NotSent { not_sent + 1 } else { 0 };
            note(&mut report, &failure, self.client.now());
            if failure.next == NextAction::Unknown {
                unknown_since = unknown_since.or(Some(signed_at));
            }
            match self.react(intended, &failure, &report, not_sent).await {
                Reaction::Wait => {}
                Reaction::SignAnew if unknown_since.is_some() => {
                    return self.give_up(intended, &report, ControlFlow::Continue(())).await;
                }
                Reaction::SignAnew => match self.sign_anew(intended, shutdown).await? {
                    Signed::At(date) => signed_at = date,
                    Signed::Found => return Ok(SendOutcome::Found),
                    Signed::Halted => {
                        return self.give_up(intended, &report, ControlFlow::Break(())).await;
                    }
                },
                Reaction::GiveUp(flow) => return self.give_up(intended, &report, flow).await,
                Reaction::Fail if failure.is_out_of_range() => {
                    // Else the resolver would send it once more, and be refused again.
                    if !report.all_refused {
                        self.give_up(intended, &report, ControlFlow::Break(())).await?;
                    }
                    return Err(OutOfRange { failure, all_refused: report.all_refused }.into());
                }
                Reaction::Fail => {
                    self.give_up(intended, &report, ControlFlow::Break(())).await?;
                    return Err(refused(intended, &failure));
                }
            }
            // The pace knows when there is room again.
            if failure.next == NextAction::Later {
                continue;
            }
            let _shown = self.progress.wait(reason(&failure));
            let pause = tokio::time::sleep(backoff(attempt, rand::random()));
            if shutdown.or(pause).await.is_none() {
                return self.give_up(intended, &report, ControlFlow::Break(())).await;
            }
        }
    }

    /// The right to one more attempt, in the shard that its hash key is for.
    async fn turn(
        &self,
        intended: &IntendedBatch<'_>,
        shutdown: &mut Shutdown,
    ) -> Option<Turn<'_>> {
        let bytes = intended.packed.raw_size as u64;
        match intended.slot.shard {
            Some(shard) => self.pace.room_in(shard, bytes, self.progress, shutdown).await,
            None => self.pace.room(bytes, self.progress, shutdown).await,
        }
    }

    /// Says what comes next, and finds out whether SLS answers at all where that decides.
    async fn react(
        &self,
        intended: &IntendedBatch<'_>,
        failure: &Failure,
        report: &AttemptReport,
        not_sent: u32,
    ) -> Reaction {
        let batch_id = intended.batch_id;
        let reaction = reaction(failure, report, self.guarantees.proven, not_sent);
        match (failure.next, reaction) {
            (NextAction::NumberUsed, _) => tracing::debug!("batch {batch_id}: {failure}"),
            (NextAction::Never, _) => tracing::warn!("batch {batch_id}: {failure}; it is divided"),
            (NextAction::NotSent, Reaction::GiveUp(_)) => {
                tracing::warn!("batch {batch_id}: {failure}");
            }
            (NextAction::Unknown, Reaction::Wait) => {
                tracing::warn!("batch {batch_id}: {failure}; the same number goes out again");
            }
            (NextAction::Unknown, _) => {
                tracing::warn!("batch {batch_id}: {failure}; it is looked for in SLS");
                let shards = with_retries(|| self.client.shards(intended.logstore)).await;
                return Reaction::GiveUp(match shards {
                    Ok(_) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                });
            }
            _ => {}
        }
        reaction
    }

    /// Whether SLS would refuse the number, had it stored it with an attempt signed at `since`.
    /// Asked before each repetition: a shard that was split off meanwhile may not know the number,
    /// and a number that is older than a signature's life may be forgotten.
    async fn is_protected(
        &self,
        intended: &IntendedBatch<'_>,
        since: i64,
    ) -> Result<(), ControlFlow<()>> {
        let slot = intended.slot;
        let Guarantees { proven, timings } = self.guarantees;
        if !proven || !is_number_kept(since, timings, self.client.now()) {
            return Err(ControlFlow::Continue(()));
        }
        let shards = with_retries(|| self.client.shards(intended.logstore)).await;
        let shards = shards.map_err(|failure| {
            tracing::warn!("batch {}: {failure}", intended.batch_id);
            ControlFlow::Break(())
        })?;
        let is_at_home = is_at_home(&slot.hash_key, &slot.cursors, &shards);
        if is_at_home { Ok(()) } else { Err(ControlFlow::Continue(())) }
    }

    async fn give_up(
        &self,
        intended: &IntendedBatch<'_>,
        report: &AttemptReport,
        flow: ControlFlow<()>,
    ) -> anyhow::Result<SendOutcome> {
        let given_up = self.ledger.give_up(self.process, intended.batch_id, report);
        self.watch.ledger(given_up).await?;
        Ok(SendOutcome::GivenUp(flow))
    }

    async fn put(&self, intended: &IntendedBatch<'_>, signed_at: i64) -> Result<String, Failure> {
        self.client
            .put(&Put {
                logstore: intended.logstore,
                hash_key: &intended.slot.hash_key,
                number: intended.slot.number,
                body: &intended.packed.body,
                raw_size: intended.packed.raw_size,
                signed_at,
            })
            .await
    }

    /// The new date is in the ledger before it is on the wire: so a process that was stopped and
    /// woken can have sent nothing that the ledger has not dated.
    async fn sign_anew(
        &self,
        intended: &IntendedBatch<'_>,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<Signed> {
        let date = self.signing_lease.sign_date(self.client, self.progress, shutdown);
        let Some(signed_at) = date.await else { return Ok(Signed::Halted) };
        let renewed = self.ledger.signed_anew(self.process, intended.batch_id, signed_at);
        Ok(match self.watch.ledger(renewed).await? {
            true => Signed::At(signed_at),
            false => Signed::Found,
        })
    }

    /// Tells the ledger that a batch is stored.
    pub async fn acknowledge(&self, batch_id: Uuid, request_id: String) -> anyhow::Result<()> {
        let stored = Acknowledgement { batch_id, request_id };
        self.watch.ledger(self.ledger.stored(&[stored])).await
    }
}

/// What to do after a failure, given all attempts until now and how many of the last ones in a row
/// found no connection.
pub fn reaction(
    failure: &Failure,
    report: &AttemptReport,
    proven: bool,
    not_sent: u32,
) -> Reaction {
    match failure.next {
        NextAction::Later => Reaction::Wait,
        NextAction::NotSent if not_sent < NOT_SENT_MAX => Reaction::Wait,
        NextAction::NotSent => Reaction::GiveUp(ControlFlow::Break(())),
        NextAction::SignAnew => Reaction::SignAnew,
        NextAction::Unknown if proven && report.unknowns < UNKNOWNS_MAX => Reaction::Wait,
        NextAction::NumberUsed | NextAction::Never | NextAction::Unknown => {
            Reaction::GiveUp(ControlFlow::Continue(()))
        }
        NextAction::Stop => Reaction::Fail,
    }
}

/// Adds what a failure tells to what is known of the attempts.
pub fn note(report: &mut AttemptReport, failure: &Failure, now: i64) {
    match failure.next {
        NextAction::Unknown => {
            report.unknowns += 1;
            report.all_refused = false;
        }
        // Whoever recorded the number may have stored the batch.
        NextAction::NumberUsed => {
            report.number_used_at = Some(now);
            report.all_refused = false;
        }
        NextAction::Never => report.refusal = Some(format!("SLS says {}", failure.code)),
        NextAction::Stop => report.all_refused &= failure.is_refusal(),
        NextAction::Later | NextAction::NotSent | NextAction::SignAnew => {}
    }
}

/// A failure's code, or in short what happened: the reason of a wait.
fn reason(failure: &Failure) -> String {
    match failure.next {
        NextAction::NotSent => "no connection to SLS".to_owned(),
        NextAction::Unknown if failure.code.is_empty() => "no answer from SLS".to_owned(),
        _ => format!("SLS says {}", failure.code),
    }
}

fn refused(intended: &IntendedBatch<'_>, failure: &Failure) -> anyhow::Error {
    let hint = match failure.code.as_str() {
        "SignatureNotMatch" | "InvalidAccessKeyId" => {
            "check ALIYUN_SLS_ACCESS_KEY_ID, ALIYUN_SLS_ACCESS_KEY_SECRET and ALIYUN_SLS_REGION"
        }
        "Unauthorized" => "the access key needs the right log:PostLogStoreLogs on this project",
        code if code.eq_ignore_ascii_case("LogStoreNotExist") => {
            "was the logstore deleted? `dify-sls-backfill init` makes it again"
        }
        code if code.eq_ignore_ascii_case("ProjectNotExist") => "check ALIYUN_SLS_PROJECT_NAME",
        _ => "the ledger keeps the batch; mend the cause and run again",
    };
    Err::<(), _>(failure.clone())
        .with_context(|| format!("upload batch {} to {}", intended.batch_id, intended.logstore))
        .map_err(|error| anyhow::anyhow!("{error:#}\nhint: {hint}"))
        .expect_err("it is an error")
}
