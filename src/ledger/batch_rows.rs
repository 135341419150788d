//! The rows of a batch as the ledger keeps them: their ids, packed, and how many finished on each day.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::record::timestamp::Timestamp;

/// The rows of a batch: the columns of `batch_rows`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct BatchRows {
    /// 16 bytes each.
    pub(in crate::ledger) row_ids: Vec<u8>,
    /// The days (UTC) on which rows finished, in order, as days since 2000-01-01; none for rows
    /// that never did.
    pub(in crate::ledger) days: Vec<i32>,
    /// How many rows finished on each of them.
    pub(in crate::ledger) day_rows: Vec<i32>,
}

impl BatchRows {
    /// From each row's id and `finished_at`.
    pub(in crate::ledger) fn of(rows: impl IntoIterator<Item = (Uuid, Timestamp)>) -> Self {
        let (mut row_ids, mut by_day) = (Vec::new(), BTreeMap::new());
        for (id, finished_at) in rows {
            row_ids.extend_from_slice(id.as_bytes());
            if let Some(day) = finished_at.day() {
                *by_day.entry(day).or_insert(0) += 1;
            }
        }
        let (days, day_rows) = by_day.into_iter().unzip();
        Self { row_ids, days, day_rows }
    }
}

/// The ids that a batch's `row_ids` hold.
pub(in crate::ledger) fn ids(row_ids: &[u8]) -> impl Iterator<Item = Uuid> {
    row_ids
        .chunks_exact(16)
        .map(|id| Uuid::from_bytes(id.try_into().expect("a chunk has 16 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_by_the_utc_day_on_which_they_finished() {
        let at = |text| Timestamp::from_isoformat(text).expect("a time");
        let times = ["2000-01-02T00:00:00", "1999-12-31T23:59:59.999999", "2000-01-02T23:59:59"];
        let rows = BatchRows::of((1u128..).map(Uuid::from_u128).zip(times.map(at)));
        assert_eq!((rows.days, rows.day_rows), (vec![-1, 1], vec![1, 2]));
        assert_eq!(ids(&rows.row_ids).collect::<Vec<_>>(), [1, 2, 3].map(Uuid::from_u128));
    }
}
