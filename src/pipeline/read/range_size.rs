//! How many rows a range is cut to have. Pure.

use crate::record::key::KeyOrder;

/// About how many rows a range has at most.
pub const RANGE_ROWS: u32 = 50_000;

/// A range is not made smaller than this for being one of the last.
const LAST_RANGE_ROWS: u64 = 2_000;

/// About how many nodes a run has; by run, a range is cut by runs.
const NODES_PER_RUN: u32 = 20;

/// About how many rows the next range has: towards the end they become smaller, so that all workers
/// end at about the same time. `rows_left`: by estimate; `None`: nobody knows.
pub fn next_range_rows(
    order: KeyOrder,
    range_rows: u32,
    workers: u32,
    rows_left: Option<u64>,
) -> u32 {
    // The others go over rows of all times, of which only few are left or wanted.
    let (KeyOrder::Time | KeyOrder::ByRun, Some(rows_left)) = (order, rows_left) else {
        return range_rows;
    };
    let share = (rows_left / (2 * u64::from(workers.max(1)))).max(LAST_RANGE_ROWS);
    range_rows.min(u32::try_from(share).unwrap_or(u32::MAX))
}

/// How many index entries a range of about `rows` rows has.
pub fn range_step(order: KeyOrder, rows: u32) -> u32 {
    match order {
        KeyOrder::ByRun => (rows / NODES_PER_RUN).max(1),
        KeyOrder::Time | KeyOrder::Walk | KeyOrder::Rest => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_smaller_towards_the_end() {
        let rows = |range_rows, left| next_range_rows(KeyOrder::Time, range_rows, 8, left);
        assert_eq!(rows(50_000, None), 50_000, "nobody knows where the end is");
        assert_eq!(rows(50_000, Some(28_000_000)), 50_000);
        assert_eq!(rows(50_000, Some(400_000)), 25_000);
        assert_eq!(rows(50_000, Some(0)), 2_000, "the estimate was too low");
        assert_eq!(rows(20, Some(0)), 20, "never more than was asked for");
        assert_eq!(next_range_rows(KeyOrder::Rest, 50_000, 8, Some(10)), 50_000);
    }
}
