//! A fresh proof: the groups of one batch, pulled back just now, equal what the ledger says.
//!
//! Purging takes a [`FreshProof`], and only [`pull`] makes one. It starts where the batch was seen
//! before, so it reads a few pages, not the shard.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::purge::{Place, ProvedBatch};
use crate::pipeline::retry::with_retries;
use crate::record::digest::{Digest, Sum};
use crate::record::seal::Seal;
use crate::sls::client::Client;
use crate::sls::pull::owner_of;
use crate::sls::tags::Owner;
use crate::wire::log_group::{LogGroupView, LogView, split_list};

/// Log groups a page: ours have 2 MiB.
const PAGE_GROUPS: u32 = 4;

/// Who noted where a batch begins did so by pages of about 4 MiB; behind so many bytes it is not
/// there any more.
const BYTES_MAX: usize = 128 << 20;

/// How long a proof is good for.
pub const FRESH_FOR: Duration = Duration::from_secs(3600);

/// That SLS held every log of a batch, once and equal, when it was pulled.
#[derive(Debug)]
pub struct FreshProof {
    batch_id: Uuid,
    digests: HashMap<Uuid, Digest>,
    pulled_at: Instant,
}

impl FreshProof {
    /// The batch.
    pub fn batch_id(&self) -> Uuid {
        self.batch_id
    }

    /// The digest of a row's log as SLS holds it; `None` once the proof is an hour old, or if the
    /// row is none of the batch's.
    pub fn digest_of(&self, row_id: Uuid) -> Option<Digest> {
        let is_fresh = self.pulled_at.elapsed() < FRESH_FOR;
        self.digests.get(&row_id).copied().filter(|_| is_fresh)
    }
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotProved {
    /// Nothing tells where its logs lie.
    NoPlace,
    /// SLS does not know the place any more: the logstore was made anew, or its logs are expired.
    PlaceGone(String),
    /// So many of its rows are there.
    Missing { found: u64 },
    /// The logs are not those that were sent.
    Differs,
}

impl std::fmt::Display for NotProved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoPlace => f.write_str("nobody has noted where its logs lie"),
            Self::PlaceGone(failure) => write!(f, "SLS does not know where it lay: {failure}"),
            Self::Missing { found } => write!(f, "only {found} of its rows are found in SLS"),
            Self::Differs => f.write_str("SLS holds something else than was sent"),
        }
    }
}

/// What was pulled of a batch.
#[derive(Debug, Default)]
struct Found {
    sum: Sum,
    digests: HashMap<Uuid, Digest>,
    /// A log without a row's id, or two logs of one row.
    is_odd: bool,
}

impl Found {
    fn add(&mut self, group: &LogGroupView<'_>) {
        self.sum.groups += 1;
        let mut fields = Vec::new();
        for log in &group.logs {
            let digest = digest_of(log, &mut fields);
            self.sum.rows += 1;
            self.sum.digest.add(digest);
            let is_new = row_id(log).is_some_and(|id| self.digests.insert(id, digest).is_none());
            self.is_odd |= !is_new;
        }
    }
}

/// Pulls the groups of `batch` back, seen from the ledger of `seal`. `each` sees every log of it.
pub async fn pull(
    client: &Client,
    seal: &Seal,
    batch: &ProvedBatch,
    mut each: impl FnMut(&LogView<'_>),
) -> anyhow::Result<Result<FreshProof, NotProved>> {
    if batch.places.is_empty() {
        return Ok(Err(NotProved::NoPlace));
    }
    let pulled_at = Instant::now();
    let mut found = Found::default();
    for place in &batch.places {
        let mut cursor = place.first_cursor.clone();
        let (mut bytes, before) = (0, found.sum.rows);
        while bytes < BYTES_MAX && found.sum.rows - before < place.rows {
            let page =
                with_retries(|| client.pull(&batch.logstore, place.shard, &cursor, PAGE_GROUPS));
            let page = match page.await {
                Ok(page) => page,
                Err(failure) if failure.is_about_absence() || failure.is("InvalidCursor") => {
                    return Ok(Err(NotProved::PlaceGone(failure.to_string())));
                }
                Err(failure) => return Err(failure).with_context(|| at(batch, place)),
            };
            for bytes in split_list(&page.raw).with_context(|| at(batch, place))? {
                let owner = owner_of(bytes, seal).with_context(|| at(batch, place))?;
                let Some(Owner::Own(named) | Owner::Foreign(named)) = owner else { continue };
                if (named.ledger_id, named.batch_id) != (batch.sent_by, batch.id) {
                    continue;
                }
                let group = LogGroupView::parse(bytes).with_context(|| at(batch, place))?;
                found.add(&group);
                group.logs.iter().for_each(&mut each);
            }
            if page.next_cursor == cursor {
                break;
            }
            bytes += page.raw.len();
            cursor = page.next_cursor;
        }
    }
    Ok(check(batch, found, pulled_at))
}

fn check(batch: &ProvedBatch, found: Found, pulled_at: Instant) -> Result<FreshProof, NotProved> {
    if found.sum.rows < batch.wanted.rows {
        return Err(NotProved::Missing { found: found.sum.rows });
    }
    let is_equal = (found.sum.rows, found.sum.digest) == (batch.wanted.rows, batch.wanted.digest);
    let are_its_rows = batch.row_ids.iter().all(|id| found.digests.contains_key(id));
    if !is_equal || found.is_odd || !are_its_rows {
        return Err(NotProved::Differs);
    }
    Ok(FreshProof { batch_id: batch.id, digests: found.digests, pulled_at })
}

fn at(batch: &ProvedBatch, place: &Place) -> String {
    format!("pull batch {} from shard {} of {}", batch.id, place.shard, batch.logstore)
}

fn digest_of<'a>(log: &LogView<'a>, fields: &mut Vec<(&'a [u8], &'a [u8])>) -> Digest {
    fields.clear();
    fields.extend_from_slice(&log.contents);
    Digest::of_log(log.time.unwrap_or(0), fields)
}

/// The id of the row that a log was made of.
pub fn row_id(log: &LogView<'_>) -> Option<Uuid> {
    let (_, value) = log.contents.iter().find(|(key, _)| *key == b"id")?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
