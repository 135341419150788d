//! The probe: whether SLS refuses a sequence number that it has stored, tested on a logstore of its
//! own.
//!
//! That it does is documented as a concept, not as an interface, so nothing rests on it that was not
//! seen in this project. The scratch logstore is made for it and deleted after it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt as _;

use crate::ledger::stop::Seqid;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::sls::admin::NewLogstore;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::Client;
use crate::sls::put::Put;
use crate::wire::compression::Lz4;
use crate::wire::log_group::LogGroupWriter;

/// The scratch logstore.
pub const LOGSTORE: &str = "dify-sls-backfill-probe";

/// A new logstore takes no writes for about a minute (the vendor's own tests wait that long).
const READY_WITHIN: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_secs(1);

/// After so many attempts without a clear answer nothing is known.
const ATTEMPTS_MAX: u64 = 10;

/// What a probe has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    Shown(Seqid),
    /// It could not be made; for a person.
    Unclear(String),
}

/// Makes the scratch logstore, writes number 1 twice and number 2 once, and deletes the logstore.
pub async fn probe(client: &Client, shutdown: &mut Shutdown) -> Probed {
    let new = NewLogstore { ttl_days: 1, shards: 1, auto_split: false, shards_max: 1 };
    let made = client.create_logstore(LOGSTORE, &new).await;
    if let Err(failure) = made.or_else(|failure| match failure.is("LogStoreAlreadyExist") {
        true => Ok(()),
        false => Err(failure),
    }) {
        return Probed::Unclear(format!("logstore {LOGSTORE} cannot be made: {failure}"));
    }
    let probed = write(client, shutdown).await.unwrap_or_else(Probed::Unclear);
    if let Err(failure) = with_retries(|| client.delete_logstore(LOGSTORE)).await {
        tracing::warn!("logstore {LOGSTORE} is not deleted: {failure}\nhint: delete it by hand");
    }
    probed
}

async fn write(client: &Client, shutdown: &mut Shutdown) -> Result<Probed, String> {
    let writer = Writer::new(client);
    let key = writer.first(shutdown).await?;
    let again = writer.until_clear(&key, shutdown, |_| 1).await?;
    if again == Written::Stored {
        return Ok(Probed::Shown(Seqid::Ignored));
    }
    // A service that refuses every number would prove nothing. One whose answer is lost is used up.
    match writer.until_clear(&key, shutdown, |attempt| 1 + attempt).await? {
        Written::Stored => Ok(Probed::Shown(Seqid::Proven)),
        Written::Refused => Ok(Probed::Shown(Seqid::Ignored)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Stored,
    Refused,
}

struct Writer<'a> {
    client: &'a Client,
    body: Bytes,
    raw_size: usize,
}

impl<'a> Writer<'a> {
    fn new(client: &'a Client) -> Self {
        let mut group = LogGroupWriter::default();
        group.begin_log(u32::try_from(client.now()).unwrap_or(0), 0);
        group.field("probe", b"whether a number is stored once");
        group.end_log();
        group.finish(Some(""), Some("dify-sls-backfill"), &[]);
        let body = Lz4::default().compress(group.bytes());
        Self { client, body, raw_size: group.bytes().len() }
    }

    async fn put(&self, key: &str, number: u64) -> Result<String, Failure> {
        self.client
            .put(&Put {
                logstore: LOGSTORE,
                hash_key: key,
                number,
                body: &self.body,
                raw_size: self.raw_size,
                signed_at: self.client.now(),
            })
            .await
    }

    /// Writes number 1 of a key, of another one after each failure, until it certainly is stored.
    async fn first(&self, shutdown: &mut Shutdown) -> Result<String, String> {
        let begun = Instant::now();
        loop {
            let key = format!("{:032X}", rand::rng().random_range(0..u128::MAX));
            let failure = match self.put(&key, 1).await {
                Ok(_) => return Ok(key),
                Err(failure) => failure,
            };
            let may_pass = failure.next != NextAction::Stop && failure.next != NextAction::Never
                || failure.is("LogStoreNotExist");
            if !may_pass || begun.elapsed() > READY_WITHIN {
                return Err(format!("logstore {LOGSTORE} takes no writes: {failure}"));
            }
            pause(shutdown).await?;
        }
    }

    /// Writes `number(attempt)`, attempt 1 being the first, until the answer is clear.
    async fn until_clear(
        &self,
        key: &str,
        shutdown: &mut Shutdown,
        number: impl Fn(u64) -> u64,
    ) -> Result<Written, String> {
        let mut attempt = 1;
        loop {
            let failure = match self.put(key, number(attempt)).await {
                Ok(_) => return Ok(Written::Stored),
                Err(failure) if failure.next == NextAction::NumberUsed => {
                    return Ok(Written::Refused);
                }
                Err(failure) => failure,
            };
            let repeat = matches!(
                failure.next,
                NextAction::Later | NextAction::SignAnew | NextAction::Unknown
            );
            if !repeat || attempt == ATTEMPTS_MAX {
                return Err(failure.to_string());
            }
            attempt += 1;
            pause(shutdown).await?;
        }
    }
}

async fn pause(shutdown: &mut Shutdown) -> Result<(), String> {
    let slept = shutdown.or(tokio::time::sleep(PAUSE)).await;
    slept.ok_or_else(|| "it was stopped".to_owned())
}
