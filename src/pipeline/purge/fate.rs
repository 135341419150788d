//! What becomes of each row of a proved batch when it is to be purged. Pure.

use crate::dify::eligibility::is_terminal;
use crate::record::digest::Digest;
use crate::record::table::Table;

/// What the deleting transaction sees of a row that it has locked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockedRow {
    /// Whether the filters of this purge want it.
    pub is_wanted: bool,
    /// Made while somebody tried a workflow out.
    pub is_debugging: bool,
    /// Its payload lies in object storage.
    pub is_offloaded: bool,
    /// Its run, or the run that it is, waits to be resumed.
    pub is_paused: bool,
    /// The status of a node execution's run; `None`: there is no such run any more, or the row is
    /// a run.
    pub run_status: Option<Vec<u8>>,
    /// A column that the batch's conversion does not know is not NULL.
    pub has_unknown_columns: bool,
    /// A column that its log leaves out is not empty.
    pub has_dropped_columns: bool,
    /// The digest of the log that the batch's conversion makes of it now; `None`: none, for the
    /// row is not fit to be a log any more.
    pub digest: Option<Digest>,
}

/// What a purge may do beside what is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeRules {
    pub keep_debugging: bool,
    /// Delete rows although a column that their log leaves out is not empty.
    pub drop_columns: bool,
}

/// Why a row stays although its log is proved; it may go another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    NotWanted,
    Debugging,
    Offloaded,
    Paused,
    RunNotFinished,
    DroppedColumn,
}

impl Kept {
    /// In words, for reports.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotWanted => "not asked for by the filters",
            Self::Debugging => "made while debugging (--keep-debugging)",
            Self::Offloaded => "its payload lies in object storage",
            Self::Paused => "its run is paused",
            Self::RunNotFinished => "its run has not finished",
            Self::DroppedColumn => "its log leaves `graph` out (--drop graph deletes it)",
        }
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It equals its proved log.
    Delete,
    /// It is not in the table any more.
    Gone,
    /// It differs from its log: it stays, and is listed.
    Changed,
    Kept(Kept),
}

/// Decides about a row. `row`: `None` if it is not there; `proved`: the digest of its log as it was
/// pulled back just now.
pub fn fate(table: Table, row: Option<&LockedRow>, proved: Digest, rules: PurgeRules) -> Fate {
    let Some(row) = row else { return Fate::Gone };
    let is_run_open =
        row.run_status.as_ref().is_some_and(|status| !is_terminal(Table::Runs, status));
    // What waits comes before what differs: a paused run's row may still change, and that is no
    // news.
    let kept = [
        (!row.is_wanted, Kept::NotWanted),
        (rules.keep_debugging && row.is_debugging, Kept::Debugging),
        (row.is_offloaded, Kept::Offloaded),
        (row.is_paused, Kept::Paused),
        (table == Table::NodeExecutions && is_run_open, Kept::RunNotFinished),
    ];
    if let Some((_, reason)) = kept.into_iter().find(|(applies, _)| *applies) {
        return Fate::Kept(reason);
    }
    if row.digest != Some(proved) || row.has_unknown_columns {
        return Fate::Changed;
    }
    if row.has_dropped_columns && !rules.drop_columns {
        return Fate::Kept(Kept::DroppedColumn);
    }
    Fate::Delete
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: PurgeRules = PurgeRules { keep_debugging: true, drop_columns: false };

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn equal() -> LockedRow {
        LockedRow { is_wanted: true, digest: Some(digest(1)), ..LockedRow::default() }
    }

    fn of(row: &LockedRow, rules: PurgeRules) -> Fate {
        fate(Table::NodeExecutions, Some(row), digest(1), rules)
    }

    #[test]
    fn only_an_equal_row_that_nothing_holds_is_deleted() {
        assert_eq!(of(&equal(), RULES), Fate::Delete);
        assert_eq!(fate(Table::Runs, None, digest(1), RULES), Fate::Gone);
        type Change = fn(&mut LockedRow);
        let cases: [(Change, Fate); 10] = [
            (|row| row.digest = Some(digest(2)), Fate::Changed),
            (|row| row.digest = None, Fate::Changed),
            (|row| row.has_unknown_columns = true, Fate::Changed),
            (|row| row.is_wanted = false, Fate::Kept(Kept::NotWanted)),
            (|row| row.is_debugging = true, Fate::Kept(Kept::Debugging)),
            (|row| row.is_offloaded = true, Fate::Kept(Kept::Offloaded)),
            (|row| row.is_paused = true, Fate::Kept(Kept::Paused)),
            (|row| row.run_status = Some(b"running".to_vec()), Fate::Kept(Kept::RunNotFinished)),
            (|row| row.run_status = Some(b"what".to_vec()), Fate::Kept(Kept::RunNotFinished)),
            (|row| row.has_dropped_columns = true, Fate::Kept(Kept::DroppedColumn)),
        ];
        for (change, wanted) in cases {
            let mut row = equal();
            change(&mut row);
            assert_eq!(of(&row, RULES), wanted, "{row:?}");
        }
        let row = LockedRow { run_status: Some(b"succeeded".to_vec()), ..equal() };
        assert_eq!(of(&row, RULES), Fate::Delete);
    }

    #[test]
    fn whoever_says_so_deletes_more_but_nothing_that_differs() {
        let rules = PurgeRules { keep_debugging: false, drop_columns: true };
        let row = LockedRow { is_debugging: true, has_dropped_columns: true, ..equal() };
        assert_eq!(of(&row, rules), Fate::Delete);
        let changed = LockedRow { digest: Some(digest(2)), ..row };
        assert_eq!(of(&changed, rules), Fate::Changed);
    }
}
