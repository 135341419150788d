//! Decides what becomes of each of the next rows, and where a batch ends. Pure.

use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

use crate::dify::eligibility::hold_reason;
use crate::ledger::intent::NewHold;
use crate::record::hold::HoldReason;
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
    /// A row whose text is larger is held without being read.
    pub row_bytes_max: u64,
}

/// What becomes of a row, as far as its head tells.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Read it.
    Take { log_bytes_max: u64 },
    /// Pass it over.
    Hold(HoldReason, String),
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

/// The rows of the next step.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// Rows to read.
    pub take: Vec<Uuid>,
    /// No more bytes than that come of them, unless they change.
    pub take_bytes: u64,
    pub holds: Vec<NewHold>,
    pub already: Vec<Uuid>,
    pub gone: Vec<Uuid>,
    /// The last row's key; `None` if there is no row.
    pub position: Option<Key>,
}

/// What a row's head tells of its fate.
pub fn fate(
    table: Table,
    head: &Head,
    known: &HashSet<Uuid>,
    settled_before: Timestamp,
    kept_since: Option<Timestamp>,
    limits: &BatchLimits,
) -> Fate {
    if known.contains(&head.row_id) {
        return Fate::Already;
    }
    let verdict =
        hold_reason(table, &head.status, head.created_at, head.finished_at, settled_before);
    if let Some((reason, detail)) = verdict {
        return Fate::Hold(reason, detail);
    }
    if let (Some(since), Some(finished_at)) = (kept_since, head.finished_at)
        && finished_at < since
    {
        let detail = format!("it finished at {finished_at}, logs are kept since {since}");
        return Fate::Hold(HoldReason::Expired, detail);
    }
    if head.offloaded {
        let detail = "its full payload lies in object storage".to_owned();
        return Fate::Hold(HoldReason::Offloaded, detail);
    }
    if head.text_bytes > limits.row_bytes_max {
        let detail = format!("its text has {} bytes", head.text_bytes);
        return Fate::Hold(HoldReason::TooLarge, detail);
    }
    Fate::Take { log_bytes_max: head.log_bytes_max() }
}

/// The fate of a row that would be taken, where another writer may have stored what has finished
/// since `live_since`.
pub fn unless_live(fate: Fate, head: &Head, live_since: Option<Timestamp>) -> Fate {
    match (&fate, live_since, head.finished_at) {
        (Fate::Take { .. }, Some(since), Some(finished_at)) if finished_at >= since => {
            let detail = format!(
                "it finished at {finished_at}; rows that have finished since {since} may have been \
                 stored by another writer"
            );
            Fate::Hold(HoldReason::LiveUnclear, detail)
        }
        _ => fate,
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
            Fate::Take { .. } => cut.take.push(row_id),
            Fate::Hold(reason, detail) => {
                cut.holds.push(NewHold { row_id, created_at, finished_at, reason, detail });
            }
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

    const LIMITS: BatchLimits =
        BatchLimits { batch_bytes: 100, batch_logs_max: 4, row_bytes_max: 1000 };

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
            1 => Just(Fate::Hold(HoldReason::Running, String::new())),
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
    fn the_fate_follows_the_rules_in_their_order() {
        let head = Head {
            key: Key::START,
            row_id: Uuid::from_u128(1),
            created_at: Timestamp::from_unix_s(0),
            finished_at: Some(Timestamp::from_unix_s(10)),
            status: b"succeeded".to_vec(),
            text_bytes: 10,
            offloaded: false,
        };
        let (none, now) = (HashSet::new(), Timestamp::from_unix_s(100));
        let kept_since = Some(Timestamp::from_unix_s(10));
        let reason = |head: &Head, known: &HashSet<Uuid>| match fate(
            Table::NodeExecutions,
            head,
            known,
            now,
            kept_since,
            &LIMITS,
        ) {
            Fate::Hold(reason, _) => reason.name(),
            Fate::Take { .. } => "take",
            Fate::Already => "already",
            Fate::Gone => "gone",
        };
        assert_eq!(reason(&head, &none), "take");
        assert_eq!(reason(&head, &HashSet::from([head.row_id])), "already");
        let large = Head { text_bytes: 1001, ..head.clone() };
        assert_eq!(reason(&large, &none), "too large");
        let offloaded = Head { offloaded: true, ..large };
        assert_eq!(reason(&offloaded, &none), "offloaded");
        let expired = Head { finished_at: Some(Timestamp::from_unix_s(9)), ..offloaded.clone() };
        assert_eq!(reason(&expired, &none), "expired");
        for (since, wanted) in [(10, "live?"), (11, "take")] {
            let fate = fate(Table::NodeExecutions, &head, &none, now, kept_since, &LIMITS);
            let fate = unless_live(fate, &head, Some(Timestamp::from_unix_s(since)));
            let reason = match &fate {
                Fate::Hold(reason, _) => reason.name(),
                _ => "take",
            };
            assert_eq!(reason, wanted);
        }
        let running = Head { status: b"running".to_vec(), ..expired };
        assert_eq!(reason(&running, &none), "running");
    }
}
