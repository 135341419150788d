//! Decides whether a look at SLS can tell that a batch is not there. Pure.

use std::collections::BTreeSet;

use crate::ledger::in_doubt::{InDoubtBatch, Seen, Sent};
use crate::ledger::sighting::Moment;
use crate::pipeline::recover::rules::{
    ArrivalDeadline, Guarantees, arrival_deadline, is_conclusive, is_due,
};
use crate::pipeline::send::lane_keeper::{is_at_home, places};
use crate::sls::pull::Shard;

/// What is known of the readers since a batch was first looked for.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Whatever was acknowledged before is to be seen before anything can be told.
    pub began: Moment,
    /// When some of it was last missing (Unix seconds, SLS's clock); `None`: none was.
    pub behind_at: Option<i64>,
}

/// When a look was made, and what else there was then.
#[derive(Debug)]
pub struct Scene<'a> {
    pub guarantees: Guarantees,
    /// When the reading began, and when it had ended: Unix seconds, SLS's clock.
    pub read_from: i64,
    pub now: i64,
    /// What was acknowledged and not seen when the reading began: since when, and where it may be.
    pub unseen: Vec<(Moment, BTreeSet<u32>)>,
    pub shards: &'a [Shard],
    /// When something was last seen that SLS had kept back for too long (Unix seconds, SLS's clock);
    /// `None`: not lately.
    pub caught_up_at: Option<i64>,
}

/// What a look must wait for before it tells that a batch is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
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

/// What a look for `batch` that has read every shard to its end must still wait for. Notes in `look`
/// whether the readers are behind.
pub fn wait(batch: &InDoubtBatch, seen: &Seen, scene: &Scene<'_>, look: &mut Look) -> Wait {
    let Scene { guarantees, read_from, now, unseen, shards, caught_up_at } = scene;
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
    // What is behind it may not be visible yet, whoever saw it, and before this look or in it.
    look.behind_at = look.behind_at.max(*caught_up_at);
    if unseen.iter().any(is_missing) {
        look.behind_at = Some(*now);
    }
    if is_conclusive(look.behind_at, guarantees.timings, *read_from) {
        return Wait::No;
    }
    Wait::ForReaders { until: look.behind_at.unwrap_or(*now) + look_after_s }
}
