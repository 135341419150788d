//! A fresh proof: the groups of one batch, pulled back just now, equal what the ledger says.
//!
//! Purging takes a [`FreshProof`], and only what pulls the groups, here and in `neighbours`, makes
//! one. It starts where the batch was seen before, so it reads a few pages, not the shard.

pub mod neighbours;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::purge::{Place, ProvedBatch};
use crate::pipeline::retry::with_retries;
use crate::record::digest::{Digest, LogHasher, Sum};
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

/// How long a proof is good for, where nothing is deleted by it.
pub const FRESH_FOR: Duration = Duration::from_secs(3600);

/// That SLS held every log of a batch, once and equal, when it was pulled.
#[derive(Debug)]
pub struct FreshProof {
    batch_id: Uuid,
    digests: HashMap<Uuid, Digest>,
    /// When its first page was asked for.
    pulled_at: Instant,
    fresh_for: Duration,
}

impl FreshProof {
    /// The batch.
    pub fn batch_id(&self) -> Uuid {
        self.batch_id
    }

    /// Whether it may be gone by still.
    pub fn is_fresh(&self) -> bool {
        self.pulled_at.elapsed() < self.fresh_for
    }

    /// The digest of a row's log as SLS holds it; `None` once the proof is not fresh any more, or
    /// if the row is none of the batch's.
    pub fn digest_of(&self, row_id: Uuid) -> Option<Digest> {
        self.digests.get(&row_id).copied().filter(|_| self.is_fresh())
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
    fn add(&mut self, group: &LogGroupView<'_>, hasher: &mut LogHasher) {
        self.sum.groups += 1;
        let mut fields = Vec::new();
        for log in &group.logs {
            fields.clear();
            fields.extend_from_slice(&log.contents);
            fields.sort_unstable();
            let time = log.time.unwrap_or(0);
            let digest = hasher.of_sorted_log(time, fields.len(), fields.iter().copied());
            self.sum.rows += 1;
            self.sum.digest.add(digest);
            let is_new = row_id(log).is_some_and(|id| self.digests.insert(id, digest).is_none());
            self.is_odd |= !is_new;
        }
    }

    /// Adds what was found in another shard.
    fn join(&mut self, other: Self) {
        self.sum.add(&other.sum);
        self.is_odd |= other.is_odd;
        for (id, digest) in other.digests {
            self.is_odd |= self.digests.insert(id, digest).is_some();
        }
    }
}

/// Pulls the groups of `batch` back, seen from the ledger of `seal`, for a proof that is good for
/// `fresh_for`. `each` sees every log of it.
pub async fn pull(
    client: &Client,
    seal: &Seal,
    batch: &ProvedBatch,
    fresh_for: Duration,
    mut each: impl FnMut(&LogView<'_>),
) -> anyhow::Result<Result<FreshProof, NotProved>> {
    if batch.places.is_empty() {
        return Ok(Err(NotProved::NoPlace));
    }
    let pulled_at = Instant::now();
    let (mut found, mut hasher) = (Found::default(), LogHasher::default());
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
                found.add(&group, &mut hasher);
                group.logs.iter().for_each(&mut each);
            }
            if page.next_cursor == cursor {
                break;
            }
            bytes += page.raw.len();
            cursor = page.next_cursor;
        }
    }
    Ok(check(batch, found).map(|digests| FreshProof {
        batch_id: batch.id,
        digests,
        pulled_at,
        fresh_for,
    }))
}

/// Whether what was found is the batch, whole and equal; gives the digests of its rows.
fn check(batch: &ProvedBatch, found: Found) -> Result<HashMap<Uuid, Digest>, NotProved> {
    if found.sum.rows < batch.wanted.rows {
        return Err(NotProved::Missing { found: found.sum.rows });
    }
    let is_equal = (found.sum.rows, found.sum.digest) == (batch.wanted.rows, batch.wanted.digest);
    let are_its_rows = batch.row_ids.iter().all(|id| found.digests.contains_key(id));
    if !is_equal || found.is_odd || !are_its_rows {
        return Err(NotProved::Differs);
    }
    Ok(found.digests)
}

fn at(batch: &ProvedBatch, place: &Place) -> String {
    format!("pull batch {} from shard {} of {}", batch.id, place.shard, batch.logstore)
}

/// The id of the row that a log was made of.
pub fn row_id(log: &LogView<'_>) -> Option<Uuid> {
    let (_, value) = log.contents.iter().find(|(key, _)| *key == b"id")?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
