//! Decides whether a day is the same on all three sides. Pure.
//!
//! ```text
//! SLS       = ledger                                     (every row of a stored batch, once)
//! Postgres  = ledger + held + not covered yet - purged   (every row is accounted for)
//! ```

use serde::Serialize;

/// What the three sides have of one day, the day on which rows finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayCounts {
    /// Rows of batches that are in SLS, as the ledger says.
    pub ledger: u64,
    /// Rows of batches that may or may not be in SLS yet.
    pub open: u64,
    /// Rows of batches that certainly are not in SLS any more.
    pub lost: u64,
    /// Rows that are held.
    pub held: u64,
    /// Rows that Postgres has.
    pub postgres: u64,
    /// Rows that a purge has deleted, or has not found any more.
    pub purged: u64,
    /// Rows that Postgres has, the ledger does not know, and no finished pass covers.
    pub uncovered: u64,
    /// `None`: it could not be found out.
    pub sls: Option<SlsCounts>,
}

/// What SLS has of a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlsCounts {
    /// Logs of this tool.
    pub logs: u64,
    /// Different rows among them.
    pub ids: u64,
    /// Logs of others: Dify's own writer.
    pub other_logs: u64,
    /// Different rows among these.
    pub other_ids: u64,
}

impl SlsCounts {
    /// Adds what another window holds.
    pub fn add(&mut self, other: &Self) {
        self.logs += other.logs;
        self.ids += other.ids;
        self.other_logs += other.other_logs;
        self.other_ids += other.other_ids;
    }
}

/// How two sides compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Equal,
    Differs,
    /// An answer was incomplete, or it changed while it was counted.
    NotKnown,
    /// Older than the logstore keeps logs, so SLS does not find it.
    Expired,
}

/// What is wrong with a day, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayVerdict {
    /// SLS against the ledger.
    pub sls: Side,
    /// Rows that SLS does not find.
    pub missing: u64,
    /// Logs beyond the first of the same row.
    pub doubled: u64,
    /// Rows that SLS has and the ledger does not.
    pub surplus: u64,
    /// Postgres against the ledger.
    pub source: Side,
    /// Rows that Postgres has and nothing in the ledger names.
    pub unaccounted: u64,
    /// Rows that the ledger has and Postgres does not, though nobody purged them.
    pub gone: u64,
}

impl DayVerdict {
    /// Both sides in one word, the worse first.
    pub fn worst(&self) -> Side {
        let sides = [self.sls, self.source];
        [Side::Differs, Side::NotKnown, Side::Expired]
            .into_iter()
            .find(|side| sides.contains(side))
            .unwrap_or(Side::Equal)
    }
}

/// Judges a day. `is_kept`: whether SLS keeps logs of all of that day. `moved`: whether the ledger
/// changed while it was counted; then what is not equal is not known.
pub fn judge(counts: &DayCounts, is_kept: bool, moved: bool) -> DayVerdict {
    let DayCounts { ledger, open, lost, held, postgres, purged, uncovered, .. } = *counts;
    let mut verdict = DayVerdict {
        sls: Side::NotKnown,
        missing: 0,
        doubled: 0,
        surplus: 0,
        source: Side::Equal,
        unaccounted: (postgres + purged).saturating_sub(ledger + open + lost + held + uncovered),
        gone: (ledger + open + lost + held + uncovered).saturating_sub(postgres + purged),
    };
    if verdict.unaccounted + verdict.gone > 0 {
        verdict.source = if moved { Side::NotKnown } else { Side::Differs };
    }
    let Some(sls) = counts.sls else { return verdict };
    verdict.missing = ledger.saturating_sub(sls.ids);
    verdict.surplus = sls.ids.saturating_sub(ledger + open);
    verdict.doubled = sls.logs.saturating_sub(sls.ids);
    verdict.sls = if verdict.doubled + verdict.surplus > 0 && !moved {
        Side::Differs
    } else if !is_kept && sls.ids < ledger + open {
        verdict.missing = 0;
        Side::Expired
    } else if verdict.missing > 0 && !moved {
        Side::Differs
    } else if sls.logs == ledger + open && sls.ids == sls.logs {
        Side::Equal
    } else {
        // Some of the open batches are there, or one of them instead of a stored one.
        Side::NotKnown
    };
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sls(logs: u64, ids: u64) -> Option<SlsCounts> {
        Some(SlsCounts { logs, ids, other_logs: 3, other_ids: 2 })
    }

    const CLEAN: DayCounts = DayCounts {
        ledger: 10,
        open: 0,
        lost: 0,
        held: 2,
        postgres: 13,
        purged: 0,
        uncovered: 1,
        sls: Some(SlsCounts { logs: 10, ids: 10, other_logs: 0, other_ids: 0 }),
    };

    #[test]
    fn a_clean_day_is_equal_whoever_else_writes() {
        let verdict = judge(&DayCounts { sls: sls(10, 10), ..CLEAN }, true, false);
        assert_eq!(
            (verdict.sls, verdict.source, verdict.worst()),
            (Side::Equal, Side::Equal, Side::Equal)
        );
        let purged = DayCounts { postgres: 3, purged: 10, ..CLEAN };
        assert_eq!(judge(&purged, true, false).worst(), Side::Equal);
        let empty = DayCounts { sls: sls(0, 0), ..DayCounts::default() };
        assert_eq!(judge(&empty, true, false).worst(), Side::Equal);
    }

    #[test]
    fn what_is_missing_doubled_or_too_much_is_told_apart() {
        let of = |logs, ids| {
            let verdict = judge(&DayCounts { sls: sls(logs, ids), ..CLEAN }, true, false);
            assert_eq!(verdict.sls, Side::Differs, "{logs} {ids}");
            (verdict.missing, verdict.doubled, verdict.surplus)
        };
        assert_eq!(of(9, 9), (1, 0, 0));
        assert_eq!(of(12, 10), (0, 2, 0));
        assert_eq!(of(10, 9), (1, 1, 0));
        assert_eq!(of(11, 11), (0, 0, 1));
    }

    #[test]
    fn postgres_is_compared_with_all_that_the_ledger_names() {
        let of = |postgres| {
            let verdict = judge(&DayCounts { postgres, ..CLEAN }, true, false);
            (verdict.source, verdict.unaccounted, verdict.gone)
        };
        assert_eq!(of(13), (Side::Equal, 0, 0));
        assert_eq!(of(15), (Side::Differs, 2, 0));
        assert_eq!(of(12), (Side::Differs, 0, 1));
        let lost = DayCounts { ledger: 6, lost: 4, sls: sls(6, 6), ..CLEAN };
        assert_eq!(judge(&lost, true, false).worst(), Side::Equal);
    }

    #[test]
    fn what_nobody_can_tell_is_never_equal() {
        let unknown = DayCounts { sls: None, ..CLEAN };
        assert_eq!(judge(&unknown, true, false).worst(), Side::NotKnown);
        // Two of the three rows in the air are there; or all, and a stored one is not.
        let open = DayCounts { open: 3, postgres: 16, sls: sls(12, 12), ..CLEAN };
        assert_eq!(judge(&open, true, false).sls, Side::NotKnown);
        let all = DayCounts { sls: sls(13, 13), ..open };
        assert_eq!(judge(&all, true, false).sls, Side::Equal);
        let too_many = DayCounts { sls: sls(14, 14), ..open };
        assert_eq!(judge(&too_many, true, false).sls, Side::Differs);
    }

    #[test]
    fn what_changed_while_it_was_counted_is_not_known_unless_it_is_equal() {
        let verdict = judge(&DayCounts { postgres: 15, sls: sls(8, 8), ..CLEAN }, true, true);
        assert_eq!((verdict.sls, verdict.source), (Side::NotKnown, Side::NotKnown));
        assert_eq!(judge(&CLEAN, true, true).worst(), Side::Equal);
    }

    #[test]
    fn what_is_too_old_is_expired_but_doubles_are_doubles() {
        assert_eq!(judge(&DayCounts { sls: sls(4, 4), ..CLEAN }, false, false).sls, Side::Expired);
        assert_eq!(judge(&DayCounts { sls: sls(10, 10), ..CLEAN }, false, false).sls, Side::Equal);
        assert_eq!(judge(&DayCounts { sls: sls(6, 4), ..CLEAN }, false, false).sls, Side::Differs);
    }
}
