//! Looks for batches whose fate is open: what is not in SLS, as far as that can be told.

use std::time::Instant;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::in_doubt::Seen;
use crate::ledger::reader_lag::Unseen;
use crate::pipeline::recover::absence::{Look, Scene, Wait, wait};
use crate::pipeline::recover::resolver::{Resolver, ResolverParts, earliest};
use crate::pipeline::recover::rules::{Presence, presence};
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::lane_keeper::places;

/// A look takes no longer, or is made once more.
const LOOK_MAX_S: i64 = 600;

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
        // After what is unseen was noted: what was seen since is among these.
        let timings = self.parts.guarantees.timings;
        let caught_up_ago_s = ledger
            .caught_up_ago_s(*table, timings.visible_s, timings.look_after_s() + LOOK_MAX_S)
            .await?;
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
            caught_up_at: caught_up_ago_s.map(|ago| now - ago),
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
