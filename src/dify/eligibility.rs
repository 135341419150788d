//! Which rows are held: the rules that need neither Dify's other tables nor SLS. Pure.
//!
//! The same rules are asked twice: when a row is looked at, before its payload is read, and when it
//! is read, since it may have changed in between.
//!
//! The order of the rules: the status first (a row that runs is `running`, whatever else is odd
//! about it), then whether there is a usable finish time, then whether it is old enough and not too
//! old, then where its payload lies and how large it is; a control row last, when it is terminal and
//! settled, since only then would it be sent. Whether another writer may have stored it is asked of a
//! row that would be sent otherwise.

use crate::dify::python;
use crate::record::hold::{HoldReason, LookAgain};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// How much of a status that nobody knows is told.
const STATUS_CHARS_MAX: usize = 64;

/// Why a row is held, and what about it; never content of the row but an unknown status.
pub type Held = (HoldReason, String);

/// The bounds by which rows are judged.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What finished later may still change.
    pub settled_before: Timestamp,
    /// What finished earlier is `expired`; `None`: nothing is too old.
    pub kept_since: Option<Timestamp>,
    /// What has finished since is `live?` unless it was looked up: another writer may have stored it;
    /// `None`: there is none.
    pub live_since: Option<Timestamp>,
    /// What runs and was created earlier is looked at again only in turn: its worker was killed, or
    /// it waits for a person.
    pub abandoned_before: Timestamp,
    /// A row whose text is larger is held.
    pub row_bytes_max: u64,
}

impl Bounds {
    /// No bounds: for rows that were judged before.
    pub const NONE: Self = Self {
        settled_before: Timestamp::INFINITY,
        kept_since: None,
        live_since: None,
        abandoned_before: Timestamp::NEG_INFINITY,
        row_bytes_max: u64::MAX,
    };

    /// The same for rows that were looked up in SLS, or that are about to be.
    #[must_use]
    pub fn of_looked_up(self) -> Self {
        Self { live_since: None, ..self }
    }

    /// Why a row that finished then is held if nobody has looked it up in SLS.
    pub fn held_unless_looked_up(&self, finished_at: Timestamp) -> Option<Held> {
        let since = self.live_since.filter(|since| finished_at >= *since)?;
        let detail = format!(
            "it finished at {finished_at}; another writer may have stored what has finished since \
             {since}"
        );
        Some((HoldReason::LiveUnclear, detail))
    }

    /// When a row with these times, which is held for that reason, is looked at again.
    pub fn look_again(
        &self,
        reason: HoldReason,
        created_at: Timestamp,
        finished_at: Option<Timestamp>,
    ) -> LookAgain {
        let is_abandoned = finished_at.is_none() && created_at < self.abandoned_before;
        match reason {
            HoldReason::Running if is_abandoned => LookAgain::InTurn,
            reason => reason.look_again(),
        }
    }
}

/// What is judged of a row.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub status: &'a [u8],
    pub created_at: Timestamp,
    /// `None` for NULL.
    pub finished_at: Option<Timestamp>,
    /// Bytes of its text columns.
    pub text_bytes: u64,
    /// Whether its full payload lies in object storage.
    pub is_offloaded: bool,
}

/// Why such a row is held; `None` if it is fit to be stored.
pub fn hold_reason(table: Table, facts: &Facts<'_>, bounds: &Bounds) -> Option<Held> {
    let Facts { status, created_at, finished_at, text_bytes, is_offloaded } = *facts;
    match status_kind(table, status) {
        StatusKind::Terminal => {}
        StatusKind::Open => {
            let status = String::from_utf8_lossy(status);
            return Some((HoldReason::Running, format!("its status is {status}")));
        }
        StatusKind::Unknown => {
            let status: String =
                String::from_utf8_lossy(status).chars().take(STATUS_CHARS_MAX).collect();
            return Some((HoldReason::Invalid, format!("its status {status:?} is unknown")));
        }
    }
    let Some(finished_at) = finished_at else {
        return Some((HoldReason::NoFinishTime, "finished_at is NULL".to_owned()));
    };
    // `__time__` is a fixed 32-bit number of seconds.
    if finished_at.unix_s().is_none_or(|unix_s| u32::try_from(unix_s).is_err()) {
        let detail = format!("finished_at is {finished_at}, not from 1970 to 2106");
        return Some((HoldReason::Invalid, detail));
    }
    if finished_at > bounds.settled_before {
        return Some((HoldReason::Running, format!("it finished only at {finished_at}")));
    }
    if python::isoformat(created_at).is_none() {
        let detail = format!("created_at is {created_at}, not in the years 1 to 9999");
        return Some((HoldReason::Invalid, detail));
    }
    if let Some(since) = bounds.kept_since.filter(|since| finished_at < *since) {
        let detail = format!("it finished at {finished_at}, logs are kept since {since}");
        return Some((HoldReason::Expired, detail));
    }
    if is_offloaded {
        let detail = "its full payload lies in object storage".to_owned();
        return Some((HoldReason::Offloaded, detail));
    }
    if text_bytes > bounds.row_bytes_max {
        return Some((HoldReason::TooLarge, format!("its text has {text_bytes} bytes")));
    }
    bounds.held_unless_looked_up(finished_at)
}

/// Whether a row with this status has ended for good.
pub fn is_terminal(table: Table, status: &[u8]) -> bool {
    status_kind(table, status) == StatusKind::Terminal
}

/// What a status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatusKind {
    Terminal,
    Open,
    Unknown,
}

/// Dify's `WorkflowExecutionStatus` and `WorkflowNodeExecutionStatus`, from 0.6 on; terminal for
/// runs is `WorkflowExecutionStatus.ended_values()`. A `retry` row is an attempt that failed and
/// was repeated; versions 0.14 to 1.x kept it.
fn status_kind(table: Table, status: &[u8]) -> StatusKind {
    match (table, status) {
        (_, b"succeeded" | b"failed" | b"stopped")
        | (Table::Runs, b"partial-succeeded")
        | (Table::NodeExecutions, b"exception" | b"retry") => StatusKind::Terminal,
        (_, b"running" | b"pending" | b"paused" | b"scheduled") => StatusKind::Open,
        _ => StatusKind::Unknown,
    }
}

/// Whether a run's row is one that newer Dify keeps beside SLS only to steer the run: it has a task
/// and no payload. Sent, it would hide the run's real log. The payload may be empty JSON as well as
/// NULL: `{}` is what Dify's model puts into `outputs` when nobody sets it.
pub fn is_control_row(task_id: Option<&[u8]>, payload: [Option<&[u8]>; 3]) -> bool {
    task_id.is_some() && payload.into_iter().all(|text| is_empty_json(text) || text == Some(b"{}"))
}

/// Whether Dify's writer would write `{}` for this JSON column, for want of a value.
pub fn is_empty_json(text: Option<&[u8]>) -> bool {
    matches!(text, None | Some(b"" | b"null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_s: i64) -> Timestamp {
        Timestamp::from_unix_s(unix_s)
    }

    /// Of a small row that finished in 1970.
    fn facts(status: &[u8]) -> Facts<'_> {
        Facts {
            status,
            created_at: at(0),
            finished_at: Some(at(10)),
            text_bytes: 10,
            is_offloaded: false,
        }
    }

    #[test]
    fn every_status_is_terminal_open_or_unknown() {
        use StatusKind::{Open, Terminal, Unknown};
        for (status, run, node) in [
            ("succeeded", Terminal, Terminal),
            ("failed", Terminal, Terminal),
            ("stopped", Terminal, Terminal),
            ("partial-succeeded", Terminal, Unknown),
            ("exception", Unknown, Terminal),
            ("retry", Unknown, Terminal),
            ("running", Open, Open),
            ("pending", Open, Open),
            ("paused", Open, Open),
            ("scheduled", Open, Open),
            ("", Unknown, Unknown),
            ("Succeeded", Unknown, Unknown),
            ("succeeded ", Unknown, Unknown),
        ] {
            assert_eq!(status_kind(Table::Runs, status.as_bytes()), run, "{status}");
            assert_eq!(status_kind(Table::NodeExecutions, status.as_bytes()), node, "{status}");
        }
    }

    #[test]
    fn the_first_rule_that_applies_gives_the_reason() {
        let (past, settled, late) = (at(1_700_000_000), at(1_800_000_000), at(1_800_000_001));
        let end = at(1 << 32);
        for (status, created_at, finished_at, reason) in [
            ("succeeded", past, Some(settled), None),
            ("succeeded", past, Some(at(0)), None),
            ("succeeded", past, Some(late), Some(HoldReason::Running)),
            ("running", Timestamp::INFINITY, None, Some(HoldReason::Running)),
            ("running", past, Some(past), Some(HoldReason::Running)),
            ("odd", past, None, Some(HoldReason::Invalid)),
            ("failed", Timestamp::INFINITY, None, Some(HoldReason::NoFinishTime)),
            ("failed", past, Some(Timestamp::INFINITY), Some(HoldReason::Invalid)),
            ("failed", past, Some(Timestamp::NEG_INFINITY), Some(HoldReason::Invalid)),
            ("failed", past, Some(at(-1)), Some(HoldReason::Invalid)),
            ("failed", past, Some(end), Some(HoldReason::Invalid)),
            ("failed", past, Some(end.plus_s(-1)), Some(HoldReason::Running)),
            ("failed", Timestamp::NEG_INFINITY, Some(past), Some(HoldReason::Invalid)),
            ("failed", at(-62_135_596_801), Some(past), Some(HoldReason::Invalid)),
            ("failed", at(-62_135_596_800), Some(past), None),
            ("failed", at(253_402_300_800), Some(past), Some(HoldReason::Invalid)),
            // Created after it finished: a server that was not in UTC, with Dify before 0.6.9.
            ("failed", late, Some(past), None),
        ] {
            let facts = Facts { created_at, finished_at, ..facts(status.as_bytes()) };
            let bounds = Bounds { settled_before: settled, ..Bounds::NONE };
            let held = hold_reason(Table::Runs, &facts, &bounds);
            assert_eq!(
                held.as_ref().map(|held| held.0),
                reason,
                "{status} {created_at} {finished_at:?}: {held:?}"
            );
        }
    }

    #[test]
    fn a_row_that_is_too_old_offloaded_or_too_large_is_held_in_this_order() {
        let bounds = Bounds { kept_since: Some(at(10)), row_bytes_max: 10, ..Bounds::NONE };
        let reason = |facts: &Facts<'_>| {
            hold_reason(Table::NodeExecutions, facts, &bounds).map(|held| held.0)
        };
        let fit = facts(b"succeeded");
        assert_eq!(reason(&fit), None);
        let large = Facts { text_bytes: 11, ..fit };
        assert_eq!(reason(&large), Some(HoldReason::TooLarge));
        let offloaded = Facts { is_offloaded: true, ..large };
        assert_eq!(reason(&offloaded), Some(HoldReason::Offloaded));
        let expired = Facts { finished_at: Some(at(9)), ..offloaded };
        assert_eq!(reason(&expired), Some(HoldReason::Expired));
        let running = Facts { status: b"running", ..expired };
        assert_eq!(reason(&running), Some(HoldReason::Running));
    }

    #[test]
    fn what_has_finished_since_another_writer_began_is_held() {
        for (since, reason) in [(9, true), (10, true), (11, false)] {
            let bounds = Bounds { live_since: Some(at(since)), ..Bounds::NONE };
            let held = hold_reason(Table::Runs, &facts(b"succeeded"), &bounds);
            assert_eq!(held.map(|held| held.0), reason.then_some(HoldReason::LiveUnclear));
            let running = hold_reason(Table::Runs, &facts(b"running"), &bounds);
            assert_eq!(running.map(|held| held.0), Some(HoldReason::Running), "status first");
        }
    }

    #[test]
    fn what_has_run_for_long_is_looked_at_in_turn() {
        let bounds = Bounds { abandoned_before: at(100), ..Bounds::NONE };
        let look_again = |created_s, finished_at| {
            bounds.look_again(HoldReason::Running, at(created_s), finished_at)
        };
        assert_eq!(look_again(100, None), LookAgain::EveryRun);
        assert_eq!(look_again(99, None), LookAgain::InTurn);
        assert_eq!(look_again(99, Some(at(200))), LookAgain::EveryRun, "it settles soon");
        let other = bounds.look_again(HoldReason::Missing, at(99), None);
        assert_eq!(other, LookAgain::EveryRun);
    }

    #[test]
    fn an_unknown_status_is_told_in_64_characters() {
        let status = "状\n".repeat(100);
        let held = hold_reason(Table::Runs, &facts(status.as_bytes()), &Bounds::NONE);
        let (reason, detail) = held.unwrap();
        assert_eq!(reason, HoldReason::Invalid);
        assert_eq!(detail, format!("its status {:?} is unknown", "状\n".repeat(32)));
    }

    #[test]
    fn a_control_row_has_a_task_and_no_payload() {
        let task: Option<&[u8]> = Some(&[7; 16]);
        assert!(is_control_row(task, [None, None, None]));
        assert!(is_control_row(task, [Some(b"null"), Some(b""), Some(b"{}")]));
        assert!(!is_control_row(None, [None, None, None]));
        assert!(!is_control_row(task, [Some(b"{\"nodes\": []}"), None, None]));
        assert!(!is_control_row(task, [None, Some(b"[]"), None]));
        assert!(!is_control_row(task, [None, None, Some(b"{ }")]));
    }
}
