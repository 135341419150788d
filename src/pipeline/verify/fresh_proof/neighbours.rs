//! Proves batches that lie near each other: what is in the same pages is pulled once.
//!
//! ```text
//! shard   ──[ A ][ foreign ][ B ][ A' ][ C ]──►   one stretch from the first cursor of A on
//!           └ A's cursor     └ B's cursor (seen on the way: nothing is pulled for it)
//! ```
//!
//! Within a stretch every group is met once, so sums are exact. Where a batch was noted before the
//! stretch, or far behind it, a new one begins, and what was found in part is forgotten. All of this
//! only saves pages: whatever is not found whole and equal this way is pulled by itself, and that is
//! what counts.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use uuid::Uuid;

use crate::ledger::purge::{Place, ProvedBatch};
use crate::pipeline::retry::with_retries;
use crate::pipeline::verify::fresh_proof::{
    BYTES_MAX, Found, FreshProof, NotProved, PAGE_GROUPS, at, check, pull,
};
use crate::record::digest::LogHasher;
use crate::record::seal::Seal;
use crate::sls::client::Client;
use crate::sls::pull::owner_of;
use crate::sls::tags::Owner;
use crate::wire::log_group::{LogGroupView, split_list};

/// A gap of so many groups is read through; a wider one is jumped over.
const GAP_GROUPS: u64 = 8;

/// Proves each of `batches`, which are of one table, seen from the ledger of `seal`; proofs are good
/// for `fresh_for` from now on.
pub async fn pull_together(
    client: &Client,
    seal: &Seal,
    batches: &[ProvedBatch],
    fresh_for: Duration,
) -> anyhow::Result<Vec<Result<FreshProof, NotProved>>> {
    let pulled_at = Instant::now();
    let mut by_shard: BTreeMap<u32, Vec<(&ProvedBatch, &Place)>> = BTreeMap::new();
    for batch in batches {
        for place in &batch.places {
            by_shard.entry(place.shard).or_default().push((batch, place));
        }
    }
    let scans = by_shard.into_values().map(|places| Scan::new(client, seal, places).run());
    let mut found: HashMap<Uuid, Found> = HashMap::new();
    for of_shard in try_join_all(scans).await? {
        for (batch_id, more) in of_shard {
            found.entry(batch_id).or_default().join(more);
        }
    }
    let mut proofs = Vec::new();
    for batch in batches {
        let checked = check(batch, found.remove(&batch.id).unwrap_or_default());
        proofs.push(match checked {
            Ok(digests) => Ok(FreshProof { batch_id: batch.id, digests, pulled_at, fresh_for }),
            Err(_) => pull(client, seal, batch, fresh_for, |_| ()).await?,
        });
    }
    Ok(proofs)
}

/// Reads one shard for several batches.
struct Scan<'a> {
    client: &'a Client,
    seal: &'a Seal,
    /// In the order in which they probably lie there.
    places: Vec<(&'a ProvedBatch, &'a Place)>,
    /// Batches whose logs in this shard are all found.
    whole: HashMap<Uuid, Found>,
    /// Those of which this stretch has shown something, and of which it may show more.
    partly: HashMap<Uuid, Found>,
    hasher: LogHasher,
}

impl<'a> Scan<'a> {
    fn new(
        client: &'a Client,
        seal: &'a Seal,
        mut places: Vec<(&'a ProvedBatch, &'a Place)>,
    ) -> Self {
        places.sort_by_key(|(_, place)| number_of(&place.first_cursor));
        let (whole, partly) = (HashMap::new(), HashMap::new());
        Self { client, seal, places, whole, partly, hasher: LogHasher::default() }
    }

    async fn run(mut self) -> anyhow::Result<HashMap<Uuid, Found>> {
        let places = std::mem::take(&mut self.places);
        let wanted: HashMap<Uuid, (&ProvedBatch, u64)> =
            places.iter().map(|(batch, place)| (batch.id, (*batch, place.rows))).collect();
        // Where the stretch goes on.
        let mut cursor: Option<String> = None;
        for (batch, place) in places {
            let mut bytes = 0;
            while !self.whole.contains_key(&batch.id) && bytes < BYTES_MAX {
                let from = match &cursor {
                    Some(cursor) if bytes > 0 || goes_on(cursor, &place.first_cursor) => {
                        cursor.clone()
                    }
                    _ => {
                        // What was found in part would be counted again.
                        self.partly.clear();
                        place.first_cursor.clone()
                    }
                };
                let page = with_retries(|| {
                    self.client.pull(&batch.logstore, place.shard, &from, PAGE_GROUPS)
                });
                let page = match page.await {
                    Ok(page) => page,
                    // It is pulled by itself, which tells why not.
                    Err(failure) if failure.is_about_absence() || failure.is("InvalidCursor") => {
                        cursor = None;
                        break;
                    }
                    Err(failure) => return Err(failure).with_context(|| at(batch, place)),
                };
                self.take_in(&page.raw, &wanted).with_context(|| at(batch, place))?;
                let is_end = page.next_cursor == from;
                bytes += page.raw.len().max(1);
                cursor = Some(page.next_cursor);
                if is_end {
                    break;
                }
            }
        }
        Ok(self.whole)
    }

    /// Adds the groups of a page to what was found of their batches.
    fn take_in(
        &mut self,
        raw: &[u8],
        wanted: &HashMap<Uuid, (&ProvedBatch, u64)>,
    ) -> anyhow::Result<()> {
        for bytes in split_list(raw)? {
            let Some(Owner::Own(named) | Owner::Foreign(named)) = owner_of(bytes, self.seal)?
            else {
                continue;
            };
            let Some((batch, rows)) = wanted.get(&named.batch_id) else { continue };
            if named.ledger_id != batch.sent_by || self.whole.contains_key(&batch.id) {
                continue;
            }
            let found = self.partly.entry(batch.id).or_default();
            found.add(&LogGroupView::parse(bytes)?, &mut self.hasher);
            if found.sum.rows >= *rows
                && let Some(found) = self.partly.remove(&batch.id)
            {
                self.whole.insert(batch.id, found);
            }
        }
        Ok(())
    }
}

/// Whether a stretch that has come to `cursor` has met, or will soon meet, what is behind `first`.
fn goes_on(cursor: &str, first: &str) -> bool {
    let near = number_of(cursor).zip(number_of(first));
    cursor == first
        || near.is_some_and(|(cursor, first)| first <= cursor.saturating_add(GAP_GROUPS))
}

/// SLS spells a cursor as the base64 of a number, one more for each group. `None`: this one not;
/// then only pages are pulled more than once.
fn number_of(cursor: &str) -> Option<u64> {
    String::from_utf8(STANDARD.decode(cursor).ok()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_goes_on_where_the_next_batch_is_near_and_never_by_a_guess() {
        let cursor = |number: u64| STANDARD.encode(number.to_string());
        assert!(goes_on(&cursor(100), &cursor(90)), "it came by there");
        assert!(goes_on(&cursor(100), &cursor(108)));
        assert!(!goes_on(&cursor(100), &cursor(109)), "it is jumped to");
        assert!(goes_on("odd", "odd"));
        assert!(!goes_on("odd", "other"));
    }
}
