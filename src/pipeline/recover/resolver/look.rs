//! Looks for batches whose fate is open: what is not in SLS, as far as that can be told.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::in_doubt::{InDoubtBatch, Seen, Sent};
use crate::ledger::sighting::{Moment, Unseen};
use crate::pipeline::recover::resolver::{Look, Resolver, ResolverParts, earliest};
use crate::pipeline::recover::rules::{
    ArrivalDeadline, Guarantees, Presence, arrival_deadline, is_conclusive, is_due, presence,
};
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::lane_keeper::{is_at_home, places};
use crate::sls::pull::Shard;

/// What a look gave.
#[derive(Debug, Default)]
pub(in crate::pipeline::recover::resolver) struct Looked {
    /// Nothing of these is there, nor will be.
    pub(in crate::pipeline::recover::resolver) missing: Vec<Uuid>,
    /// Batches of which nothing can be told, because the readers are behind.
    pub(in crate::pipeline::recover::resolver) behind: u64,
    /// When more can be told (Unix seconds, SLS's clock).
    pub(in crate::pipeline::recover::resolver) next_at: Option<i64>,
}

/// When a look was made, and what else there was then.
struct Scene<'a> {
    guarantees: Guarantees,
    /// When the reading began, and when it had ended: Unix seconds, SLS's clock.
    read_from: i64,
    now: i64,
    /// What was acknowledged and not seen when the reading began: since when, and where it may be.
    unseen: Vec<(Moment, BTreeSet<u32>)>,
    shards: &'a [Shard],
}

impl Resolver {
    /// Reads every shard to its end, and looks which of the batches are there.
    pub(in crate::pipeline::recover::resolver) async fn look_for(
        &mut self,
        due: &[Uuid],
    ) -> anyhow::Result<Looked> {
        let mut looked = Looked::default();
        if due.is_empty() {
            return Ok(looked);
        }
        let begun = Instant::now();
        let began = self.parts.ledger.moment().await?;
        let unseen = self.parts.ledger.unseen(self.parts.table, &[]).await?;
        self.parts.tail_reader.catch_up(&self.shutdown).await?;
        if self.shutdown.is_asked() {
            return Ok(looked);
        }
        let ResolverParts { client, ledger, process, table, .. } = &self.parts;
        let seen = ledger.seen(process, due.to_vec()).await?;
        let logstore = table.logstore();
        let shards = with_retries(|| client.shards(logstore))
            .await
            .with_context(|| format!("list the shards of {logstore}"))?;
        let now = client.now();
        let places_of = |unseen: &Unseen| places(&unseen.hash_key, &unseen.shards, &shards);
        let unseen = unseen.iter().map(|unseen| (unseen.acknowledged_at, places_of(unseen)));
        let scene = Scene {
            guarantees: self.parts.guarantees,
            // By the clock as SLS tells it now.
            read_from: now - i64::try_from(begun.elapsed().as_secs()).unwrap_or(0) - 1,
            now,
            unseen: unseen.collect(),
            shards: &shards,
        };
        let mut whole = Vec::new();
        for id in due {
            let (Some(seen @ Seen { is_open: true, .. }), Some(batch)) =
                (seen.get(id), self.open.get(id))
            else {
                continue;
            };
            let presence = presence(&batch.wanted, &seen.found);
            if presence == Presence::Whole {
                whole.push(*id);
                continue;
            }
            let behind_at = self.parts.behind_at;
            let look = self.looks.entry(*id).or_insert(Look { began, behind_at });
            match (wait(batch, seen, &scene, look), presence) {
                (Wait::No, Presence::Nothing) => looked.missing.push(*id),
                (Wait::No, _) => {
                    tracing::error!(
                        "batch {id}: SLS holds {} rows under its name that are not the {} it was \
                         sent with; it is left as it is, and nothing of it is sent again",
                        seen.found.rows,
                        batch.wanted.rows
                    );
                    self.differing.insert(*id);
                }
                (Wait::ForArrival { until }, _) => looked.next_at = earliest(looked.next_at, until),
                (Wait::ForReaders { until }, _) => {
                    looked.behind += 1;
                    looked.next_at = earliest(looked.next_at, until);
                }
            }
        }
        // Of two processes that each find a half of one at the same time, none sees it whole.
        if !whole.is_empty() {
            self.parts.ledger.prove(whole).await?;
        }
        Ok(looked)
    }
}

/// What a look must wait for before it tells that a batch is not there.
enum Wait {
    No,
    /// It may still come, or is not visible yet.
    ForArrival {
        until: i64,
    },
    /// SLS does not give back yet what it has acknowledged.
    ForReaders {
        until: i64,
    },
}

fn wait(batch: &InDoubtBatch, seen: &Seen, scene: &Scene<'_>, look: &mut Look) -> Wait {
    let Scene { guarantees, read_from, now, unseen, shards } = scene;
    let look_after_s = guarantees.timings.look_after_s();
    // Where the shard has changed, the new one may not know the number.
    let at_home = |sent: &Sent| is_at_home(&sent.hash_key, &sent.cursors, shards);
    let proven = guarantees.proven && batch.sent.as_ref().is_some_and(at_home);
    let guarantees = Guarantees { proven, ..*guarantees };
    match arrival_deadline(batch, seen, guarantees, *read_from) {
        ArrivalDeadline::At(at) if !is_due(ArrivalDeadline::At(at), guarantees, *read_from) => {
            return Wait::ForArrival { until: at + look_after_s };
        }
        _ => {}
    }
    let places = batch.sent.as_ref().map_or_else(BTreeSet::new, |sent| {
        places(&sent.hash_key, &sent.cursors.keys().copied().collect(), shards)
    });
    let is_missing = |(acknowledged_at, elsewhere): &(Moment, BTreeSet<u32>)| {
        *acknowledged_at <= look.began && !places.is_disjoint(elsewhere)
    };
    if unseen.iter().any(is_missing) {
        look.behind_at = Some(*now);
    }
    if is_conclusive(look.behind_at, guarantees.timings, *read_from) {
        return Wait::No;
    }
    Wait::ForReaders { until: look.behind_at.unwrap_or(*now) + look_after_s }
}
