//! Decides what becomes of each of the next rows, and where a batch ends. Pure.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

use crate::dify::eligibility::{Bounds, Facts, hold_reason};
use crate::ledger::hold::NewHold;
use crate::record::hold::{HoldReason, LookAgain};
use crate::record::key::Key;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::page::Head;

/// Bounds of a batch.
#[derive(Debug, Clone)]
pub struct BatchLimits {
    /// A batch is cut before it has more, unless its first row alone has.
    pub batch_bytes: u64,
    /// SLS refuses more logs in one request.
    pub batch_logs_max: u32,
}

/// What becomes of a row, as far as its head tells.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Read it.
    Take { log_bytes_max: u64 },
    /// Pass it over.
    Hold { reason: HoldReason, detail: String, look_again: LookAgain },
    /// Pass it over, and only count it: it is too old for its logstore.
    Expired,
    /// A live batch or an open hold has it.
    Already,
    /// It is in the book of holds, but not in the table any more.
    Gone,
}

/// A row on its way into a batch.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub key: Key,
    pub row_id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub fate: Fate,
}

/// A row that is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Sought {
    pub id: Uuid,
    pub created_at: Timestamp,
    /// `None`: not finished, or not known.
    pub finished_at: Option<Timestamp>,
}

/// The rows of the next step.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    pub take: Vec<Sought>,
    /// No more bytes than that come of them, unless they change.
    pub take_bytes: u64,
    pub holds: Vec<NewHold>,
    /// Rows that are too old for their logstore.
    pub expired: u64,
    pub already: Vec<Uuid>,
    pub gone: Vec<Uuid>,
    /// The last row's key; `None` if there is no row.
    pub position: Option<Key>,
}

/// What a row's head tells of its fate.
pub fn fate(table: Table, head: &Head, known: &HashSet<Uuid>, bounds: &Bounds) -> Fate {
    if known.contains(&head.row_id) {
        return Fate::Already;
    }
    let Head { created_at, finished_at, text_bytes, .. } = *head;
    let is_offloaded = head.offloaded;
    let facts = Facts { status: &head.status, created_at, finished_at, text_bytes, is_offloaded };
    match hold_reason(table, &facts, bounds) {
        Some((reason, detail)) => {
            let look_again = bounds.look_again(reason, created_at, finished_at);
            Fate::Hold { reason, detail, look_again }
        }
        None => Fate::Take { log_bytes_max: head.log_bytes_max() },
    }
}

/// Whether `pending` holds enough for a whole batch, so that no further page is needed.
pub fn is_enough(pending: &VecDeque<Candidate>, limits: &BatchLimits, rows_max: u64) -> bool {
    let mut probe = pending.iter().map(|candidate| &candidate.fate);
    let (mut bytes, mut rows) = (0, 0);
    probe.any(|fate| {
        if let Fate::Take { log_bytes_max } = fate {
            bytes += log_bytes_max;
            rows += 1;
        }
        bytes > limits.batch_bytes || rows >= rows_max.min(u64::from(limits.batch_logs_max))
    })
}

/// Takes the rows of the next step from the front of `pending`: at most one batch, and all that
/// is passed over before its end.
pub fn cut(pending: &mut VecDeque<Candidate>, limits: &BatchLimits, rows_max: u64) -> Cut {
    let logs_max = rows_max.min(u64::from(limits.batch_logs_max));
    let mut cut = Cut::default();
    while let Some(candidate) = pending.pop_front() {
        if let Fate::Take { log_bytes_max } = candidate.fate {
            let bytes = cut.take_bytes + log_bytes_max;
            let is_full = cut.take.len() as u64 >= logs_max
                || (bytes > limits.batch_bytes && !cut.take.is_empty());
            if is_full {
                pending.push_front(candidate);
                return cut;
            }
            cut.take_bytes = bytes;
        }
        cut.position = Some(candidate.key);
        let Candidate { row_id, created_at, finished_at, .. } = candidate;
        match candidate.fate {
            Fate::Take { .. } => cut.take.push(Sought { id: row_id, created_at, finished_at }),
            Fate::Hold { reason, detail, look_again } => cut.holds.push(NewHold {
                row_id,
                created_at,
                finished_at,
                reason,
                detail,
                look_again,
            }),
            Fate::Expired => cut.expired += 1,
            Fate::Already => cut.already.push(row_id),
            Fate::Gone => cut.gone.push(row_id),
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BatchLimits = BatchLimits { batch_bytes: 100, batch_logs_max: 4 };

    fn candidates(fates: &[Fate]) -> VecDeque<Candidate> {
        let candidate = |(index, fate): (usize, &Fate)| Candidate {
            key: Key::walk(Uuid::from_u128(index as u128 + 1)),
            row_id: Uuid::from_u128(index as u128 + 1),
            created_at: Timestamp::from_unix_s(0),
            finished_at: None,
            fate: fate.clone(),
        };
        fates.iter().enumerate().map(candidate).collect()
    }

    fn any_fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            4 => (1u64..150).prop_map(|log_bytes_max| Fate::Take { log_bytes_max }),
            1 => Just(Fate::Hold {
                reason: HoldReason::Running,
                detail: String::new(),
                look_again: LookAgain::EveryRun,
            }),
            1 => Just(Fate::Expired),
            1 => Just(Fate::Already),
            1 => Just(Fate::Gone),
        ]
    }

    proptest! {
        #[test]
        fn every_row_is_cut_once_and_every_batch_is_within_bounds(
            fates in proptest::collection::vec(any_fate(), 0..40), rows_max in 1u64..6,
        ) {
            let mut pending = candidates(&fates);
            let (mut rows, mut last) = (0, None);
            while !pending.is_empty() {
                let enough = is_enough(&pending, &LIMITS, rows_max);
                let cut = cut(&mut pending, &LIMITS, rows_max);
                rows += cut.take.len() + cut.holds.len() + cut.already.len() + cut.gone.len();
                rows += cut.expired as usize;
                prop_assert!(cut.take.len() as u64 <= rows_max.min(4));
                prop_assert!(cut.take_bytes <= 100 || cut.take.len() == 1);
                prop_assert!(cut.position > last, "the position moves");
                prop_assert!(pending.is_empty() || enough, "a batch is full, or the last one");
                last = cut.position;
            }
            prop_assert_eq!(rows, fates.len());
        }
    }

    #[test]
    fn a_head_is_judged_unless_the_row_is_known() {
        let head = Head {
            key: Key::START,
            row_id: Uuid::from_u128(1),
            created_at: Timestamp::from_unix_s(0),
            finished_at: Some(Timestamp::from_unix_s(10)),
            status: b"succeeded".to_vec(),
            text_bytes: 10,
            offloaded: false,
        };
        let bounds = Bounds { row_bytes_max: 10, ..Bounds::NONE };
        let reason = |head: &Head, known: &HashSet<Uuid>| match fate(
            Table::NodeExecutions,
            head,
            known,
            &bounds,
        ) {
            Fate::Hold { reason, .. } => reason.name(),
            Fate::Take { .. } => "take",
            Fate::Already => "already",
            Fate::Expired | Fate::Gone => "another",
        };
        let none = HashSet::new();
        assert_eq!(reason(&head, &none), "take");
        let large = Head { text_bytes: 11, ..head.clone() };
        assert_eq!(reason(&large, &none), "too large");
        let offloaded = Head { offloaded: true, ..head };
        assert_eq!(reason(&offloaded, &none), "offloaded");
        assert_eq!(reason(&offloaded, &HashSet::from([offloaded.row_id])), "already");
    }
}
