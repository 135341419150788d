//! Decides about a batch whose fate is open: whether it can still come, and what to do. Pure.
//!
//! ```text
//! sent ─► unknown ─► can it still be stored? ── yes ─► wait (or, where numbers are proven to be
//!                            │                          refused, the same number once more)
//!                            no, since `over_at`
//!                            ▼
//!         `visible_s` later, and read to the end of every shard after that: is it there?
//!              all of it ─► stored      part of it ─► tell      nothing ─► sent again, halved,
//!                                                                          or abandoned
//! ```
//!
//! Nothing is sent again under another number before all conditions of *not there* hold: a request
//! in flight can be stored as long as its signature lives; what is stored need not be visible at
//! once; and readers may see further back than the clock believes. Whatever SLS had acknowledged in
//! the same shards before the look began must have been seen, and `visible_s` must have gone by since
//! something of it was missing: a shard shows its groups in their order. All times are SLS's clock.

use std::time::Duration;

use crate::ledger::in_doubt::{InDoubtBatch, Seen};
use crate::record::digest::Sum;

/// After so many attempts without an answer a batch is looked for, and, if it is not there, halved:
/// something may be wrong with it.
pub const UNKNOWNS_MAX: u32 = 10;

/// Our idea of SLS's clock comes from headers in whole seconds: each of two moments may be off by
/// one.
const CLOCK_GRAIN_S: i64 = 2;

/// How long things may take in SLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// A request is refused when its signature is older (SLS: 15 minutes).
    pub signature_life_s: i64,
    /// A request that came in time is stored at most so much later.
    pub late_s: i64,
    /// What is stored can be pulled at most so much later.
    pub visible_s: i64,
}

impl Timings {
    /// What is assumed of SLS.
    pub const SLS: Self = Self { signature_life_s: 900, late_s: 120, visible_s: 60 };

    /// A signature is renewed well before it ends.
    pub fn renew_after_s(&self) -> i64 {
        self.signature_life_s * 2 / 3
    }

    /// How long after the moment from which a batch cannot come any more it can be looked for: all
    /// that came before is visible then.
    pub fn look_after_s(&self) -> i64 {
        self.visible_s + CLOCK_GRAIN_S
    }

    /// How often a process looks whether others are at work: every minute of SLS's 15.
    pub fn look_every(&self) -> Duration {
        Duration::from_millis(self.bounded_life_s().unsigned_abs() * 1000 / 15)
    }

    /// How long after a look (s) it is taken for granted that nobody else is at work: two looks may
    /// fail.
    pub fn look_life_s(&self) -> i64 {
        (self.bounded_life_s() / 5).max(1)
    }

    /// Who takes signatures to live longer must not look less often: an audit waits as long as SLS
    /// makes it.
    fn bounded_life_s(&self) -> i64 {
        self.signature_life_s.min(Self::SLS.signature_life_s)
    }

    /// How long the end of a run waits for batches in doubt that can be resolved so soon. Where SLS is
    /// faster, it is not waited for so long.
    pub fn wait_at_end_s(&self) -> i64 {
        (3 * (self.storable_s() + self.look_after_s())).min(200)
    }

    /// How long after its signature a request may still be stored.
    pub fn storable_s(&self) -> i64 {
        self.signature_life_s + self.late_s
    }
}

/// What SLS can be relied on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarantees {
    /// A probe has seen SLS refuse a repeated number in this project.
    pub proven: bool,
    pub timings: Timings,
}

/// Since when a batch that is not there will not come any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrivalDeadline {
    /// Nothing of it was ever stored, nor is on its way.
    Passed,
    /// Since, or from, this moment (Unix seconds, SLS's clock).
    At(i64),
}

/// Since when `batch` cannot be stored any more, seen from `now`.
pub fn arrival_deadline(
    batch: &InDoubtBatch,
    seen: &Seen,
    guarantees: Guarantees,
    now: i64,
) -> ArrivalDeadline {
    let Some(sent) = batch.sent.as_ref().filter(|_| !batch.report.all_refused) else {
        return ArrivalDeadline::Passed;
    };
    let by_age = sent.signed_at + guarantees.timings.storable_s();
    // From then on SLS refuses the number; what it took before may be stored a little later.
    let by_number = batch.report.number_used_at.filter(|_| guarantees.proven);
    let by_later_number = seen.passed_ago_s.map(|ago| now - ago).filter(|_| guarantees.proven);
    let earliest = [by_number, by_later_number].into_iter().flatten().min();
    ArrivalDeadline::At(by_age.min(earliest.map_or(i64::MAX, |at| at + guarantees.timings.late_s)))
}

/// Whether it is time to look whether a batch is there: all of it that came would be visible.
pub fn is_due(deadline: ArrivalDeadline, guarantees: Guarantees, now: i64) -> bool {
    match deadline {
        ArrivalDeadline::Passed => true,
        ArrivalDeadline::At(at) => at + guarantees.timings.look_after_s() <= now,
    }
}

/// Whether a look that began to read at `began` can tell that something is not there. `behind_at`:
/// when something was last missing that SLS had acknowledged before; `None`: nothing was.
pub fn is_conclusive(behind_at: Option<i64>, timings: Timings, began: i64) -> bool {
    behind_at.is_none_or(|at| at + timings.look_after_s() <= began)
}

/// From when on it can be told that a batch is not there that was last signed at `signed_at`, by the
/// clock alone. That SLS has acknowledged it makes it no less.
pub fn decidable_at(signed_at: i64, timings: Timings) -> i64 {
    signed_at + timings.storable_s() + timings.look_after_s()
}

/// Whether the same number may go out again now: SLS would refuse it, had it stored the batch. Not
/// after the signature's life: by then the number may be forgotten.
pub fn is_repeatable(batch: &InDoubtBatch, guarantees: Guarantees, now: i64) -> bool {
    let fresh = |signed_at: i64| now < signed_at + guarantees.timings.signature_life_s;
    guarantees.proven
        && batch.report.number_used_at.is_none()
        && batch.report.refusal.is_none()
        && batch.report.unknowns < UNKNOWNS_MAX
        && batch.sent.as_ref().is_some_and(|sent| fresh(sent.signed_at))
}

/// Whether the batch is to be sent in smaller pieces.
pub fn is_suspect(batch: &InDoubtBatch) -> bool {
    batch.report.refusal.is_some() || batch.report.unknowns >= UNKNOWNS_MAX
}

/// How much of a batch is in SLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Nothing,
    Whole,
    /// Some of it, more than it, or something else under its name.
    Differs,
}

/// Compares what was found with what was sent.
pub fn presence(wanted: &Sum, found: &Sum) -> Presence {
    if found.rows == 0 {
        Presence::Nothing
    } else if (found.rows, found.digest) == (wanted.rows, wanted.digest) {
        Presence::Whole
    } else {
        Presence::Differs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::ledger::in_doubt::{AttemptReport, Sent};
    use crate::record::digest::Digest;
    use crate::record::table::Table;
    use crate::record::timestamp::Timestamp;

    const SIGNED_AT: i64 = 1_790_000_000;
    const UNSEEN: Seen = Seen {
        is_open: true,
        found: Sum { rows: 0, digest: Digest::ZERO, groups: 0 },
        passed_ago_s: None,
    };
    const PROVEN: Guarantees = Guarantees { proven: true, timings: Timings::SLS };
    const UNPROVEN: Guarantees = Guarantees { proven: false, timings: Timings::SLS };

    fn batch(report: AttemptReport) -> InDoubtBatch {
        InDoubtBatch {
            id: Uuid::nil(),
            pass_id: 1,
            range_id: 1,
            table: Table::Runs,
            row_ids: vec![Uuid::nil()],
            created_first: Timestamp::from_unix_s(0),
            wanted: Sum { rows: 1, groups: 1, digest: Digest::of_log(1, &mut []) },
            raw_bytes: 10,
            conversion_id: 1,
            conversion: serde_json::Value::Null,
            ingest_time: 0,
            sendings: 1,
            sent: Some(Sent {
                lane_id: 1,
                hash_key: String::new(),
                number: 1,
                signed_at: SIGNED_AT,
                cursors: BTreeMap::new(),
            }),
            report,
        }
    }

    #[test]
    fn an_unknown_attempt_may_come_until_its_signature_is_over() {
        let now = SIGNED_AT + 10;
        for guarantees in [PROVEN, UNPROVEN] {
            let unknown = batch(AttemptReport { unknowns: 1, ..AttemptReport::default() });
            assert_eq!(
                arrival_deadline(&unknown, &UNSEEN, guarantees, now),
                ArrivalDeadline::At(SIGNED_AT + 900 + 120)
            );
        }
    }

    #[test]
    fn a_used_number_ends_the_wait_only_where_numbers_are_proven() {
        let now = SIGNED_AT + 10;
        let used = batch(AttemptReport {
            number_used_at: Some(SIGNED_AT + 5),
            ..AttemptReport::default()
        });
        assert_eq!(
            arrival_deadline(&used, &UNSEEN, PROVEN, now),
            ArrivalDeadline::At(SIGNED_AT + 5 + 120)
        );
        assert_eq!(
            arrival_deadline(&used, &UNSEEN, UNPROVEN, now),
            ArrivalDeadline::At(SIGNED_AT + 1020)
        );
        let passed = Seen { passed_ago_s: Some(3), ..UNSEEN };
        assert_eq!(
            arrival_deadline(&used, &passed, PROVEN, now),
            ArrivalDeadline::At(SIGNED_AT + 5 + 120)
        );
        let unknown = batch(AttemptReport::default());
        assert_eq!(
            arrival_deadline(&unknown, &passed, PROVEN, now),
            ArrivalDeadline::At(SIGNED_AT + 7 + 120)
        );
        assert_eq!(
            arrival_deadline(&unknown, &passed, UNPROVEN, now),
            ArrivalDeadline::At(SIGNED_AT + 1020)
        );
    }

    #[test]
    fn what_was_never_sent_or_always_refused_cannot_be_there() {
        let refused = batch(AttemptReport { all_refused: true, ..AttemptReport::default() });
        let unsent = InDoubtBatch { sent: None, ..batch(AttemptReport::default()) };
        for batch in [refused, unsent] {
            for guarantees in [PROVEN, UNPROVEN] {
                assert_eq!(
                    arrival_deadline(&batch, &UNSEEN, guarantees, SIGNED_AT),
                    ArrivalDeadline::Passed
                );
            }
        }
    }

    #[test]
    fn a_number_is_repeated_only_where_and_while_it_protects() {
        let unknown = batch(AttemptReport { unknowns: 3, ..AttemptReport::default() });
        assert!(is_repeatable(&unknown, PROVEN, SIGNED_AT + 899));
        assert!(!is_repeatable(&unknown, PROVEN, SIGNED_AT + 900), "it may be forgotten");
        assert!(!is_repeatable(&unknown, UNPROVEN, SIGNED_AT));
        for report in [
            AttemptReport { unknowns: UNKNOWNS_MAX, ..AttemptReport::default() },
            AttemptReport { number_used_at: Some(SIGNED_AT), ..AttemptReport::default() },
            AttemptReport {
                refusal: Some("PostBodyInvalid".to_owned()),
                ..AttemptReport::default()
            },
        ] {
            assert!(!is_repeatable(&batch(report.clone()), PROVEN, SIGNED_AT), "{report:?}");
        }
    }

    #[test]
    fn nothing_is_absent_before_what_was_acknowledged_has_been_seen_for_a_while() {
        let now = SIGNED_AT + 5000;
        assert!(is_conclusive(None, Timings::SLS, now));
        assert!(!is_conclusive(Some(now), Timings::SLS, now));
        assert!(!is_conclusive(Some(now - 61), Timings::SLS, now));
        assert!(is_conclusive(Some(now - 62), Timings::SLS, now));
        assert_eq!(decidable_at(SIGNED_AT, Timings::SLS), SIGNED_AT + 900 + 120 + 62);
        assert_eq!(Timings::SLS.wait_at_end_s(), 200);
    }

    #[test]
    fn only_the_same_rows_once_are_the_batch() {
        let wanted = batch(AttemptReport::default()).wanted;
        assert_eq!(presence(&wanted, &UNSEEN.found), Presence::Nothing);
        assert_eq!(presence(&wanted, &wanted), Presence::Whole);
        let mut twice = wanted;
        twice.add(&wanted);
        let other = Sum { digest: Digest::ZERO, ..wanted };
        for found in [twice, other] {
            assert_eq!(presence(&wanted, &found), Presence::Differs);
        }
    }
}
