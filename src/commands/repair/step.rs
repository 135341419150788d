//! Decides what can be done about a finding. Pure.

use crate::ledger::finding::Finding;
use crate::ledger::repair::MissingBatch;
use crate::pipeline::verify::content::compare::SOURCE_GONE;
use crate::pipeline::verify::content::unaccounted::UNACCOUNTED;
use crate::pipeline::verify::content::verdict::Verdict;
use crate::record::timestamp::Timestamp;

/// What to do about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands::repair) enum Step {
    /// Nothing of the batch is there or on its way: it can be sent again.
    SendAgain,
    /// Rows that nothing names: the next run is to look at them.
    GiveToNextRun,
    /// Rows left Postgres by another hand: the ledger is to know.
    NoteGone,
    /// Copies can be hidden, where they can be told apart.
    Hide,
    /// Nothing can be done, and why.
    Leave(&'static str),
    /// Nothing need be done.
    Nothing,
}

/// What to do about a finding. `missing`: the batch, if it is taken to be in SLS; `kept_since`:
/// since when rows must have finished for their logs to be kept.
pub(in crate::commands::repair) fn step(
    finding: &Finding,
    missing: Option<&MissingBatch>,
    kept_since: Option<Timestamp>,
) -> Step {
    let Some(verdict) = Verdict::from_name(&finding.kind) else {
        return match finding.kind.as_str() {
            SOURCE_GONE => Step::NoteGone,
            UNACCOUNTED => Step::GiveToNextRun,
            _ => Step::Leave(
                "a second log of the same row would be counted twice by Dify's charts; it is left",
            ),
        };
    };
    match verdict {
        Verdict::Missing | Verdict::Lost => send_again(finding, missing, kept_since),
        Verdict::Doubled => Step::Hide,
        Verdict::Changed => Step::Leave("what is in SLS cannot be taken back or changed"),
        Verdict::GivenUp => Step::Leave("`audit` takes it back into the ledger"),
        Verdict::Foreign => Step::Leave("`audit` writes it down, whoever has sent it"),
        Verdict::Proved
        | Verdict::Absent
        | Verdict::Expired
        | Verdict::Unprovable
        | Verdict::Open => Step::Nothing,
    }
}

fn send_again(
    finding: &Finding,
    missing: Option<&MissingBatch>,
    kept_since: Option<Timestamp>,
) -> Step {
    let Some(missing) = missing else {
        return Step::Leave("it is open again already: the next run looks for it");
    };
    if finding.is_provisional {
        return Step::Leave("it may still be on its way: verify again in 20 minutes");
    }
    if finding.found > 0 {
        return Step::Leave("a part of it is there: sent again, that part would be there twice");
    }
    if missing.is_adopted {
        return Step::Leave("an audit has found it, so nobody knows how it was made");
    }
    let is_too_old = missing.oldest_log.zip(kept_since).is_some_and(|(oldest, kept)| oldest < kept);
    if is_too_old {
        return Step::Leave(
            "its rows are older than the logstore keeps logs: raise its TTL in SLS first",
        );
    }
    Step::SendAgain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict, found: u64) -> Finding {
        Finding { kind: verdict.name().to_owned(), rows: 3, found, ..Finding::default() }
    }

    fn missing(oldest_s: i64) -> MissingBatch {
        MissingBatch { is_adopted: false, oldest_log: Some(Timestamp::from_unix_s(oldest_s)) }
    }

    #[test]
    fn only_what_is_certainly_and_wholly_missing_is_sent_again() {
        let absent = finding(Verdict::Missing, 0);
        let kept = Some(Timestamp::from_unix_s(100));
        assert_eq!(step(&absent, Some(&missing(100)), kept), Step::SendAgain);
        assert_eq!(step(&absent, Some(&missing(0)), None), Step::SendAgain);
        assert_eq!(step(&finding(Verdict::Lost, 0), Some(&missing(0)), None), Step::SendAgain);
        let provisional = Finding { is_provisional: true, ..absent.clone() };
        let adopted = MissingBatch { is_adopted: true, ..missing(0) };
        let is_left = |finding: &Finding, batch: Option<&MissingBatch>, kept| {
            assert!(matches!(step(finding, batch, kept), Step::Leave(_)), "{finding:?}");
        };
        is_left(&absent, None, None);
        is_left(&provisional, Some(&missing(0)), None);
        is_left(&finding(Verdict::Missing, 1), Some(&missing(0)), None);
        is_left(&absent, Some(&adopted), None);
        is_left(&absent, Some(&missing(99)), kept);
        let ingest = MissingBatch { is_adopted: false, oldest_log: None };
        assert_eq!(step(&absent, Some(&ingest), kept), Step::SendAgain);
    }

    #[test]
    fn every_other_finding_has_its_step() {
        let of = |kind: &str| {
            let finding = Finding { kind: kind.to_owned(), ..Finding::default() };
            step(&finding, None, None)
        };
        assert_eq!(of(UNACCOUNTED), Step::GiveToNextRun);
        assert_eq!(of(SOURCE_GONE), Step::NoteGone);
        assert_eq!(of(Verdict::Doubled.name()), Step::Hide);
        assert_eq!(of(Verdict::Expired.name()), Step::Nothing);
        for kind in ["source_changed", "changed", "given_up", "foreign"] {
            assert!(matches!(of(kind), Step::Leave(_)), "{kind}");
        }
    }
}
