//! Sends one batch until its fate is known, or gives it up to be settled.

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::intent::Acknowledgement;
use crate::ledger::process::Process;
use crate::ledger::settle::Told;
use crate::pipeline::assemble::Packed;
use crate::pipeline::lane::{Ticket, is_at_home};
use crate::pipeline::lookout::Lookout;
use crate::pipeline::pace::{Pace, backoff};
use crate::pipeline::patience::patiently;
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::watch::Watch;
use crate::pipeline::settle::{UNKNOWNS_MAX, World};
use crate::pipeline::stop::Stop;
use crate::sls::answer::{Failure, Next};
use crate::sls::client::Client;
use crate::sls::put::Put;

/// After so many attempts without a connection, about a minute, the run stops.
const NOT_SENT_MAX: u32 = 12;

/// A batch whose intent is in the ledger.
#[derive(Debug, Clone)]
pub struct Intended<'a> {
    pub batch_id: Uuid,
    pub logstore: &'a str,
    pub ticket: &'a Ticket,
    /// The date in the ledger, Unix seconds, SLS's clock.
    pub signed_at: i64,
    /// When an earlier attempt whose fate is not known was signed (Unix seconds, SLS's clock);
    /// `None`: there is none.
    pub unknown_since: Option<i64>,
    pub packed: &'a Packed,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// SLS has stored it; the ledger is to be told.
    Stored(String),
    /// The tail reader has found it in SLS, and the ledger knows.
    Found,
    /// Its fate is open: the ledger keeps its intent, for whoever settles.
    GivenUp(Outlook),
}

/// Whether there is sense in sending other batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// SLS answers.
    GoOn,
    /// SLS does not answer, or somebody has asked to stop.
    Halt,
}

/// SLS refused a batch because its logs are too old.
#[derive(Debug, thiserror::Error)]
#[error("SLS takes no log as old as these: {failure}")]
pub struct OutOfRange {
    pub failure: Failure,
    /// Every attempt was refused, so nothing of the batch is in SLS.
    pub all_refused: bool,
}

/// What a delivery works with.
#[derive(Clone, Copy)]
pub struct Courier<'a> {
    pub client: &'a Client,
    pub lookout: &'a Lookout,
    pub ledger: &'a Ledger,
    pub process: &'a Process,
    pub progress: &'a Progress,
    pub watch: &'a Watch,
    pub pace: &'a Pace,
    pub world: World,
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
enum Then {
    Wait,
    SignAnew,
    GiveUp(Outlook),
    Fail,
}

impl Courier<'_> {
    /// Sends the batch. After an unknown answer the same number goes out again where SLS is proven
    /// to store a number once; elsewhere the batch is given up. Fails when no repetition can help.
    pub async fn deliver(
        &self,
        intended: &Intended<'_>,
        stop: &mut Stop,
    ) -> anyhow::Result<Delivery> {
        let mut signed_at = intended.signed_at;
        let mut unknown_since = intended.unknown_since;
        let mut told = Told { all_refused: unknown_since.is_none(), ..Told::default() };
        let (mut attempt, mut not_sent) = (0, 0);
        loop {
            if let Some(since) = unknown_since
                && let Err(outlook) = self.is_protected(intended, since).await
            {
                return self.give_up(intended, &told, outlook).await;
            }
            let Some(turn) = self.pace.turn(self.progress, stop).await else {
                return self.give_up(intended, &told, Outlook::Halt).await;
            };
            // A repeated number keeps its date: so no request of it lives longer than the number is
            // certainly kept, even if we are stopped before we send it.
            let is_old = self.client.now() - signed_at > self.world.windows.renew_after_s();
            if is_old && unknown_since.is_none() {
                match self.sign_anew(intended, stop).await? {
                    Signed::At(date) => signed_at = date,
                    Signed::Found => return Ok(Delivery::Found),
                    Signed::Halted => return self.give_up(intended, &told, Outlook::Halt).await,
                }
            }
            let answer = self.put(intended, signed_at).await;
            turn.ended(&answer);
            let failure = match answer {
                Ok(request_id) => return Ok(Delivery::Stored(request_id)),
                Err(failure) => failure,
            };
            attempt += 1;
            not_sent = if failure.next == Next::NotSent { not_sent + 1 } else { 0 };
            note(&mut told, &failure, self.client.now());
            if failure.next == Next::Unknown {
                unknown_since = unknown_since.or(Some(signed_at));
            }
            match self.then(intended, &failure, &told, not_sent).await {
                Then::Wait => {}
                Then::SignAnew if unknown_since.is_some() => {
                    return self.give_up(intended, &told, Outlook::GoOn).await;
                }
                Then::SignAnew => match self.sign_anew(intended, stop).await? {
                    Signed::At(date) => signed_at = date,
                    Signed::Found => return Ok(Delivery::Found),
                    Signed::Halted => return self.give_up(intended, &told, Outlook::Halt).await,
                },
                Then::GiveUp(outlook) => return self.give_up(intended, &told, outlook).await,
                Then::Fail if failure.is_out_of_range() => {
                    // Else whoever settles would send it once more, and be refused again.
                    if !told.all_refused {
                        self.give_up(intended, &told, Outlook::Halt).await?;
                    }
                    return Err(OutOfRange { failure, all_refused: told.all_refused }.into());
                }
                Then::Fail => {
                    self.give_up(intended, &told, Outlook::Halt).await?;
                    return Err(refused(intended, &failure));
                }
            }
            let _shown = self.progress.wait(reason(&failure));
            let pause = tokio::time::sleep(backoff(attempt, rand::random()));
            if stop.or(pause).await.is_none() {
                return self.give_up(intended, &told, Outlook::Halt).await;
            }
        }
    }

    async fn then(
        &self,
        intended: &Intended<'_>,
        failure: &Failure,
        told: &Told,
        not_sent: u32,
    ) -> Then {
        let batch_id = intended.batch_id;
        match failure.next {
            Next::Later => Then::Wait,
            Next::NotSent if not_sent < NOT_SENT_MAX => Then::Wait,
            Next::NotSent => {
                tracing::warn!("batch {batch_id}: {failure}");
                Then::GiveUp(Outlook::Halt)
            }
            Next::SignAnew => Then::SignAnew,
            Next::NumberUsed => {
                tracing::debug!("batch {batch_id}: {failure}");
                Then::GiveUp(Outlook::GoOn)
            }
            Next::Never => {
                tracing::warn!("batch {batch_id}: {failure}; it is divided");
                Then::GiveUp(Outlook::GoOn)
            }
            Next::Unknown if self.world.proven && told.unknowns < UNKNOWNS_MAX => {
                tracing::warn!("batch {batch_id}: {failure}; the same number goes out again");
                Then::Wait
            }
            Next::Unknown => {
                tracing::warn!("batch {batch_id}: {failure}; it is looked for in SLS");
                let shards = patiently(|| self.client.shards(intended.logstore)).await;
                Then::GiveUp(if shards.is_ok() { Outlook::GoOn } else { Outlook::Halt })
            }
            Next::Stop => Then::Fail,
        }
    }

    /// Whether SLS would refuse the number, had it stored it with an attempt signed at `since`.
    /// Asked before each repetition: a shard that was split off meanwhile may not know the number,
    /// and a number that is older than a signature's life may be forgotten.
    async fn is_protected(&self, intended: &Intended<'_>, since: i64) -> Result<(), Outlook> {
        let ticket = intended.ticket;
        if !self.world.proven || self.client.now() >= since + self.world.windows.signature_life_s {
            return Err(Outlook::GoOn);
        }
        let shards = patiently(|| self.client.shards(intended.logstore)).await;
        let shards = shards.map_err(|failure| {
            tracing::warn!("batch {}: {failure}", intended.batch_id);
            Outlook::Halt
        })?;
        let is_at_home = is_at_home(&ticket.hash_key, &ticket.cursors, &shards);
        if is_at_home { Ok(()) } else { Err(Outlook::GoOn) }
    }

    async fn give_up(
        &self,
        intended: &Intended<'_>,
        told: &Told,
        outlook: Outlook,
    ) -> anyhow::Result<Delivery> {
        let given_up = self.ledger.give_up(self.process, intended.batch_id, told);
        self.watch.ledger(given_up).await?;
        Ok(Delivery::GivenUp(outlook))
    }

    async fn put(&self, intended: &Intended<'_>, signed_at: i64) -> Result<String, Failure> {
        self.client
            .put(&Put {
                logstore: intended.logstore,
                hash_key: &intended.ticket.hash_key,
                number: intended.ticket.number,
                body: &intended.packed.body,
                raw_size: intended.packed.raw_size,
                signed_at,
            })
            .await
    }

    /// The new date is in the ledger before it is on the wire: so a process that was stopped and
    /// woken can have sent nothing that the ledger has not dated.
    async fn sign_anew(&self, intended: &Intended<'_>, stop: &mut Stop) -> anyhow::Result<Signed> {
        let date = self.lookout.date(self.client, self.progress, stop);
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

/// Adds what a failure tells to what is known of the attempts.
fn note(told: &mut Told, failure: &Failure, now: i64) {
    match failure.next {
        Next::Unknown => {
            told.unknowns += 1;
            told.all_refused = false;
        }
        // Whoever recorded the number may have stored the batch.
        Next::NumberUsed => {
            told.number_used_at = Some(now);
            told.all_refused = false;
        }
        Next::Never => told.refusal = Some(format!("SLS says {}", failure.code)),
        Next::Stop => told.all_refused &= failure.is_refusal(),
        Next::Later | Next::NotSent | Next::SignAnew => {}
    }
}

/// A failure's code, or in short what happened: the reason of a wait.
fn reason(failure: &Failure) -> String {
    match failure.next {
        Next::NotSent => "no connection to SLS".to_owned(),
        Next::Unknown if failure.code.is_empty() => "no answer from SLS".to_owned(),
        _ => format!("SLS says {}", failure.code),
    }
}

fn refused(intended: &Intended<'_>, failure: &Failure) -> anyhow::Error {
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
