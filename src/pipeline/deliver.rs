//! Sends one batch until its fate is known, or until only the tail reader can tell.

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pipeline::assemble::Packed;
use crate::pipeline::pace::{Pace, backoff};
use crate::pipeline::progress::Progress;
use crate::pipeline::stop::Stop;
use crate::sls::answer::{Failure, Next};
use crate::sls::client::Client;
use crate::sls::put::Put;

/// SLS takes a signature for 15 minutes; a repetition is signed anew well before.
const SIGNATURE_LIFE_S: i64 = 600;

/// After so many attempts without an answer the batch is left to the tail reader.
const UNKNOWNS_MAX: u32 = 10;

/// A batch whose intent is in the ledger.
#[derive(Debug, Clone)]
pub struct Intended<'a> {
    pub batch_id: Uuid,
    pub logstore: &'a str,
    pub hash_key: &'a str,
    pub number: u64,
    /// The date in the ledger, Unix seconds, SLS's clock.
    pub signed_at: i64,
    pub packed: &'a Packed,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It is stored, and the ledger knows.
    Stored,
    /// Its number is used up, so it was stored before, or nearly so: the ledger keeps its intent,
    /// and the tail reader will find it.
    NumberUsed,
    /// No answer came, or there is no time to wait for one: the ledger keeps its intent. Nothing
    /// more may go out on its lane, or its number could not be sent again.
    Unanswered,
}

/// SLS refused a batch because its logs are too old.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct OutOfRange {
    pub failure: Failure,
    /// Every attempt was refused, so nothing of the batch is in SLS.
    pub all_refused: bool,
}

/// What a delivery works with.
#[derive(Clone, Copy)]
pub struct Courier<'a> {
    pub client: &'a Client,
    pub ledger: &'a Ledger,
    pub progress: &'a Progress,
    pub pace: &'a Pace,
}

impl Courier<'_> {
    /// Sends the batch. The same number goes out again after an unknown answer: SLS stores a
    /// number once. Fails when no repetition can help.
    pub async fn deliver(
        &self,
        intended: &Intended<'_>,
        stop: &mut Stop,
    ) -> anyhow::Result<Delivery> {
        let mut signed_at = intended.signed_at;
        let (mut attempt, mut unknowns) = (0, 0);
        loop {
            let Some(turn) = self.pace.turn(self.progress, stop).await else {
                return Ok(Delivery::Unanswered);
            };
            if self.client.now() - signed_at > SIGNATURE_LIFE_S {
                match self.sign_anew(intended).await? {
                    Some(date) => signed_at = date,
                    None => return Ok(Delivery::Stored),
                }
            }
            let answer = self.put(intended, signed_at).await;
            turn.ended(&answer);
            let failure = match answer {
                Ok(request_id) => {
                    let stored = self.ledger.stored(intended.batch_id, Some(&request_id));
                    self.progress.timed(stored).await?;
                    return Ok(Delivery::Stored);
                }
                Err(failure) => failure,
            };
            attempt += 1;
            match failure.next {
                Next::NumberUsed => {
                    tracing::debug!("batch {}: {failure}", intended.batch_id);
                    return Ok(Delivery::NumberUsed);
                }
                Next::Unknown => {
                    unknowns += 1;
                    tracing::warn!(
                        "batch {}: {failure}; the same number goes out again",
                        intended.batch_id
                    );
                    if unknowns == UNKNOWNS_MAX {
                        return Ok(Delivery::Unanswered);
                    }
                }
                Next::SignAnew => match self.sign_anew(intended).await? {
                    Some(date) => signed_at = date,
                    None => return Ok(Delivery::Stored),
                },
                Next::Later => {}
                Next::Stop if failure.is_out_of_range() => {
                    return Err(OutOfRange { failure, all_refused: unknowns == 0 }.into());
                }
                Next::Never | Next::Stop => return Err(refused(intended, &failure)),
            }
            let _shown = self.progress.wait(reason(&failure));
            let pause = tokio::time::sleep(backoff(attempt, rand::random()));
            if stop.or(pause).await.is_none() {
                return Ok(Delivery::Unanswered);
            }
        }
    }

    async fn put(&self, intended: &Intended<'_>, signed_at: i64) -> Result<String, Failure> {
        self.client
            .put(&Put {
                logstore: intended.logstore,
                hash_key: intended.hash_key,
                number: intended.number,
                body: &intended.packed.body,
                raw_size: intended.packed.raw_size,
                signed_at,
            })
            .await
    }

    /// The new date is in the ledger before it is on the wire: so a process that was stopped and
    /// woken can have sent nothing that the ledger has not dated. `None`: the tail reader has found
    /// the batch in SLS meanwhile.
    async fn sign_anew(&self, intended: &Intended<'_>) -> anyhow::Result<Option<i64>> {
        let signed_at = self.client.now();
        let renewed = self.ledger.signed_anew(intended.batch_id, signed_at);
        Ok(self.progress.timed(renewed).await?.then_some(signed_at))
    }
}

/// A failure's code, or in short what happened: the reason of a wait.
fn reason(failure: &Failure) -> String {
    match failure.next {
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
