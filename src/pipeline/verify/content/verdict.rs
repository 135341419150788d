//! Decides what SLS's logs of a batch say about it. Pure.
//!
//! Logs in SLS never change, but more may come: as long as a signature of the batch lives, a request
//! that was thought lost can still be stored. So what is doubled or changed is so for good; what is
//! missing, or whole, is provisional until every signature was over when the shards' ends were taken.

use serde::{Deserialize, Serialize};

use crate::ledger::verified_batches::Standing;
use crate::pipeline::recover::rules::Timings;
use crate::record::day::DAY_S;
use crate::record::digest::Sum;

/// A batch, as far as the ledger knows it.
#[derive(Debug, Clone, Copy)]
pub struct BatchFacts {
    pub standing: Standing,
    /// Whether that was so before the shards' ends were taken.
    pub is_noted: bool,
    /// What SLS should hold of it, if it is stored.
    pub wanted: Sum,
    /// Whether the digest in `wanted` is known.
    pub has_digest: bool,
    /// Date of its last signature, Unix seconds, SLS's clock; `None`: never sent, or not known.
    pub signed_at: Option<i64>,
    /// When SLS had received it, at the latest; Unix seconds.
    pub received_by: i64,
}

/// When and how SLS was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// When the shards' ends were taken; Unix seconds, SLS's clock.
    pub ended_at: i64,
    /// How many days SLS keeps logs; `None`: for ever, or not known.
    pub ttl_days: Option<i64>,
    pub timings: Timings,
}

/// What is the matter with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// SLS holds it whole, once, byte for byte.
    Proved,
    /// The ledger has given it up, and nothing of it is there.
    Absent,
    /// SLS holds none of it, or not all.
    Missing,
    /// SLS holds more of it than there is.
    Doubled,
    /// SLS holds as many logs, but others.
    Changed,
    /// The ledger has given it up, yet SLS holds some of it: its rows may be there twice.
    GivenUp,
    /// SLS holds logs under a tag that the ledger does not have, or not for this logstore.
    Foreign,
    /// Not all of it is there, and SLS need not keep it any more.
    Expired,
    /// SLS holds as many logs, but nobody knows what was sent: an audit has found it so.
    Unprovable,
    /// Known to be lost; `repair` sends such rows again.
    Lost,
    /// Nobody can tell yet: it may still be on its way.
    Open,
}

impl Verdict {
    /// The word for it in the ledger and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Absent => "absent",
            Self::Missing => "missing",
            Self::Doubled => "doubled",
            Self::Changed => "changed",
            Self::GivenUp => "given_up",
            Self::Foreign => "foreign",
            Self::Expired => "expired",
            Self::Unprovable => "unprovable",
            Self::Lost => "lost",
            Self::Open => "open",
        }
    }

    /// The verdict of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }

    pub const ALL: [Self; 11] = [
        Self::Proved,
        Self::Absent,
        Self::Missing,
        Self::Doubled,
        Self::Changed,
        Self::GivenUp,
        Self::Foreign,
        Self::Expired,
        Self::Unprovable,
        Self::Lost,
        Self::Open,
    ];

    /// Whether SLS does not hold what it should.
    pub fn is_difference(self) -> bool {
        match self {
            Self::Missing
            | Self::Doubled
            | Self::Changed
            | Self::GivenUp
            | Self::Foreign
            | Self::Lost => true,
            Self::Proved | Self::Absent | Self::Expired | Self::Unprovable | Self::Open => false,
        }
    }
}

/// A verdict, and whether a late request could still change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    pub verdict: Verdict,
    pub is_provisional: bool,
}

/// Judges a batch by what was found of it in all shards of its logstore.
pub fn judge(batch: &BatchFacts, found: &Sum, look: &Look) -> Judged {
    let (wanted, has) = (batch.wanted.rows, found.rows);
    let is_whole = (has, found.digest) == (wanted, batch.wanted.digest) && has > 0;
    let verdict = match batch.standing {
        Standing::GivenUp if has > 0 => Verdict::GivenUp,
        Standing::GivenUp => Verdict::Absent,
        _ if has > wanted => Verdict::Doubled,
        Standing::Open => Verdict::Open,
        Standing::Lost => Verdict::Lost,
        Standing::Earlier if has == 0 => Verdict::Expired,
        Standing::Stored | Standing::Earlier if has == wanted && !batch.has_digest => {
            Verdict::Unprovable
        }
        Standing::Stored | Standing::Earlier if is_whole => Verdict::Proved,
        Standing::Stored | Standing::Earlier if has == wanted => Verdict::Changed,
        Standing::Stored | Standing::Earlier if !batch.is_noted => Verdict::Open,
        Standing::Stored | Standing::Earlier if is_over(batch.received_by, look) => {
            Verdict::Expired
        }
        Standing::Stored | Standing::Earlier => Verdict::Missing,
    };
    let settles_s = look.timings.storable_s() + look.timings.look_after_s();
    let may_still_come =
        batch.signed_at.is_some_and(|signed_at| signed_at + settles_s > look.ended_at);
    let may_change = matches!(verdict, Verdict::Proved | Verdict::Absent | Verdict::Missing);
    Judged { verdict, is_provisional: may_change && may_still_come }
}

/// Whether SLS need not keep what it received then. It forgets in steps that are not documented: a
/// day more is granted.
fn is_over(received_by: i64, look: &Look) -> bool {
    look.ttl_days.is_some_and(|days| received_by + (days - 1).max(0) * DAY_S <= look.ended_at)
}

/// How many times SLS holds the same whole; `None` if what it holds is no multiple of it.
pub fn copies(wanted: &Sum, found: &Sum) -> Option<u64> {
    let times = found.rows.checked_div(wanted.rows).filter(|times| *times <= 1000)?;
    let mut sum = Sum::default();
    (0..times).for_each(|_| sum.add(wanted));
    ((sum.rows, sum.digest) == (found.rows, found.digest)).then_some(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::digest::Digest;

    const NOW: i64 = 1_790_000_000;
    const LOOK: Look = Look { ended_at: NOW, ttl_days: None, timings: Timings::SLS };

    fn sum(logs: &[u8]) -> Sum {
        let mut sum = Sum::default();
        for log in logs {
            let value = [*log];
            let mut fields = [(b"id".as_slice(), value.as_slice())];
            sum.rows += 1;
            sum.digest.add(Digest::of_log(1, &mut fields));
        }
        sum
    }

    fn stored(logs: &[u8]) -> BatchFacts {
        BatchFacts {
            standing: Standing::Stored,
            is_noted: true,
            wanted: sum(logs),
            has_digest: true,
            signed_at: Some(NOW - 7200),
            received_by: NOW - 7000,
        }
    }

    fn verdict(batch: &BatchFacts, found: &[u8]) -> Verdict {
        judge(batch, &sum(found), &LOOK).verdict
    }

    #[test]
    fn what_went_with_an_earlier_logstore_is_expired_not_missing() {
        let earlier = BatchFacts { standing: Standing::Earlier, ..stored(b"abc") };
        assert_eq!(verdict(&earlier, b""), Verdict::Expired);
        assert_eq!(verdict(&earlier, b"ab"), Verdict::Missing);
        assert_eq!(verdict(&earlier, b"abc"), Verdict::Proved);
        assert_eq!(verdict(&stored(b"abc"), b""), Verdict::Missing);
    }

    #[test]
    fn a_stored_batch_is_there_once_and_as_it_was_sent() {
        let batch = stored(b"abc");
        for (found, wanted) in [
            (b"cab".as_slice(), Verdict::Proved),
            (b"", Verdict::Missing),
            (b"ab", Verdict::Missing),
            (b"abcabc", Verdict::Doubled),
            (b"abcc", Verdict::Doubled),
            (b"abd", Verdict::Changed),
            // An XOR of digests would be content: two equal logs vanish in it.
            (b"abcdd", Verdict::Doubled),
            (b"add", Verdict::Changed),
        ] {
            assert_eq!(verdict(&batch, found), wanted, "{found:?}");
        }
    }

    #[test]
    fn without_a_digest_nothing_is_proved() {
        let batch = BatchFacts { has_digest: false, ..stored(b"abc") };
        assert_eq!(verdict(&batch, b"abc"), Verdict::Unprovable);
        assert_eq!(verdict(&batch, b"ab"), Verdict::Missing);
        assert_eq!(verdict(&batch, b"abcd"), Verdict::Doubled);
    }

    #[test]
    fn a_given_up_batch_must_not_be_there() {
        let batch = BatchFacts { standing: Standing::GivenUp, ..stored(b"abc") };
        assert_eq!(verdict(&batch, b""), Verdict::Absent);
        for found in [b"a".as_slice(), b"abc", b"abcabc"] {
            assert_eq!(verdict(&batch, found), Verdict::GivenUp);
        }
    }

    #[test]
    fn what_may_come_is_not_judged_but_for_doubles() {
        let open = BatchFacts { standing: Standing::Open, ..stored(b"abc") };
        let newer = BatchFacts { is_noted: false, ..stored(b"abc") };
        for batch in [open, newer] {
            assert_eq!(verdict(&batch, b""), Verdict::Open);
            assert_eq!(verdict(&batch, b"ab"), Verdict::Open);
            assert_eq!(verdict(&batch, b"abcabc"), Verdict::Doubled);
        }
        assert_eq!(verdict(&newer, b"abc"), Verdict::Proved);
        assert_eq!(verdict(&open, b"abc"), Verdict::Open, "the ledger has not heard of it");
        let lost = BatchFacts { standing: Standing::Lost, ..stored(b"abc") };
        assert_eq!(verdict(&lost, b""), Verdict::Lost);
    }

    #[test]
    fn a_verdict_is_final_when_no_signature_lives() {
        let settles_s = Timings::SLS.storable_s() + Timings::SLS.look_after_s();
        let signed = |ago_s| BatchFacts { signed_at: Some(NOW - ago_s), ..stored(b"abc") };
        for (found, may_change) in
            [(b"abc".as_slice(), true), (b"ab", true), (b"abcabc", false), (b"abd", false)]
        {
            let provisional = |ago_s| judge(&signed(ago_s), &sum(found), &LOOK).is_provisional;
            assert_eq!(provisional(settles_s - 1), may_change, "{found:?}");
            assert!(!provisional(settles_s), "{found:?}");
        }
    }

    #[test]
    fn what_sls_need_not_keep_is_expired() {
        let look = |ttl_days| Look { ttl_days: Some(ttl_days), ..LOOK };
        let batch = BatchFacts { received_by: NOW - 29 * DAY_S, ..stored(b"abc") };
        let judged = |days, found| judge(&batch, &sum(found), &look(days)).verdict;
        assert_eq!(judged(30, b""), Verdict::Expired);
        assert_eq!(judged(30, b"a"), Verdict::Expired);
        assert_eq!(judged(31, b""), Verdict::Missing);
        assert_eq!(judged(30, b"abc"), Verdict::Proved);
        assert_eq!(judged(30, b"abd"), Verdict::Changed);
        assert_eq!(judged(30, b"abcabc"), Verdict::Doubled);
    }

    #[test]
    fn whole_copies_are_told_from_odd_ones() {
        let wanted = sum(b"abc");
        assert_eq!(copies(&wanted, &sum(b"abcabc")), Some(2));
        assert_eq!(copies(&wanted, &sum(b"abcabb")), None);
        assert_eq!(copies(&wanted, &sum(b"abca")), None);
        assert_eq!(copies(&Sum::default(), &sum(b"a")), None);
    }

    #[test]
    fn names_come_back() {
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::from_name(verdict.name()), Some(verdict));
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
        }
    }
}
