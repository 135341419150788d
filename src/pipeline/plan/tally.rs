//! Adds up what a run would do with each row, and how many batches come of it. Pure.

use std::collections::BTreeMap;

use crate::dify::eligibility::Bounds;
use crate::pipeline::read::batching::{BatchLimits, Fate, fate};
use crate::pipeline::read::range_size::{next_range_rows, range_step};
use crate::record::day::Day;
use crate::record::hold::HoldReason;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::sample::SampledHead;

/// Which rows an earlier pass has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Rows created earlier; `None`: none.
    pub created_before: Option<Timestamp>,
}

/// How a row is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    pub bounds: &'a Bounds,
    pub known: Known,
    pub purge_before: Timestamp,
}

/// A day's rows that would be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DaySum {
    pub rows: f64,
    pub text_bytes: f64,
}

/// Sums over rows, each as often as it stands for others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Rows of the window.
    pub seen: f64,
    /// Rows that an earlier pass has read.
    pub already: f64,
    /// Rows that would be sent.
    pub live: f64,
    pub held: BTreeMap<HoldReason, f64>,
    /// Of the rows that would be sent: bytes of their texts.
    pub text_bytes: f64,
    /// Batches that they would make in one go: the last one counts for as much as it has.
    pub packed: f64,
    /// Of the rows that would be sent those that no run reaches.
    pub single: f64,
    /// By the day (UTC) on which they finished.
    pub days: BTreeMap<Day, DaySum>,
    /// Rows, and bytes of their texts, that finished long enough ago to be purged.
    pub purgeable: f64,
    pub purgeable_bytes: f64,
    /// Bytes of the texts of all rows of the window.
    pub all_bytes: f64,
}

impl Tally {
    /// Adds a row that stands for `weight` rows.
    ///
    /// Gives how many bytes at most come of it if it would be sent.
    pub fn add(
        &mut self,
        table: Table,
        sampled: &SampledHead,
        weight: f64,
        judged: Judged<'_>,
    ) -> Option<u64> {
        let head = &sampled.head;
        let text_bytes = weight * head.text_bytes as f64;
        self.seen += weight;
        self.all_bytes += text_bytes;
        if judged.known.created_before.is_some_and(|before| head.created_at < before) {
            self.already += weight;
            return None;
        }
        match fate(table, head, &[].into(), judged.bounds) {
            Fate::Take { log_bytes_max } => {
                self.live += weight;
                self.text_bytes += text_bytes;
                self.single += if sampled.is_single { weight } else { 0.0 };
                if let Some(day) = head.finished_at.and_then(Day::of) {
                    let day = self.days.entry(day).or_default();
                    day.rows += weight;
                    day.text_bytes += text_bytes;
                }
                if head.finished_at.is_some_and(|at| at < judged.purge_before) {
                    self.purgeable += weight;
                    self.purgeable_bytes += text_bytes;
                }
                Some(log_bytes_max)
            }
            Fate::Hold { reason, .. } => {
                *self.held.entry(reason).or_default() += weight;
                None
            }
            Fate::Expired | Fate::Already | Fate::Gone => None,
        }
    }
}

/// Fills batches with the rows of a sample, in their order, as a run does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packer {
    full: u64,
    bytes: u64,
    rows: u64,
}

impl Packer {
    pub fn add(&mut self, log_bytes_max: u64, limits: &BatchLimits) {
        let has_room = self.bytes + log_bytes_max <= limits.batch_bytes
            && self.rows < u64::from(limits.batch_logs_max);
        if self.rows > 0 && !has_room {
            *self = Self { full: self.full + 1, bytes: 0, rows: 0 };
        }
        self.bytes += log_bytes_max;
        self.rows += 1;
    }

    /// How many batches there are; the last one counts for as much as it has.
    pub fn batches(&self, limits: &BatchLimits) -> f64 {
        let by_bytes = self.bytes as f64 / limits.batch_bytes as f64;
        let by_rows = self.rows as f64 / f64::from(limits.batch_logs_max);
        self.full as f64 + by_bytes.max(by_rows).min(1.0)
    }
}

/// How ranges are cut.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    pub order: KeyOrder,
    pub range_rows: u32,
    pub workers: u32,
    /// How many nodes a run has; by run, ranges are cut by runs.
    pub nodes_per_run: f64,
    /// How many rows the whole table has.
    pub table_rows: f64,
}

/// About how many batches come of it: each range ends one.
pub fn batches(tally: &Tally, ranges: &Ranges) -> f64 {
    let fresh = tally.seen - tally.already;
    if tally.live < 0.5 || fresh < 0.5 {
        return 0.0;
    }
    let by_run = ranges.order == KeyOrder::ByRun;
    let single = if by_run { tally.single } else { 0.0 };
    let in_order = tally.live - single;
    let packed = |live: f64| tally.packed * live / tally.live;
    let shares = shares(fresh * in_order / tally.live, ranges);
    let mut total = of_ranges(packed(in_order), &shares);
    if single >= 0.5 {
        // Those that no run reaches lie all over the table, and are read in its own order.
        let count = (ranges.table_rows / f64::from(ranges.range_rows)).ceil().max(1.0);
        let count = count.min(single.ceil());
        total += of_ranges(packed(single), &vec![1.0 / count; count as usize]);
    }
    total
}

/// The share of `rows` that each range has.
fn shares(rows: f64, ranges: &Ranges) -> Vec<f64> {
    let (mut left, mut shares) = (rows, Vec::new());
    while left >= 0.5 {
        let left_rows = (left as u64 > 0).then_some(left as u64);
        let wanted = next_range_rows(ranges.order, ranges.range_rows, ranges.workers, left_rows);
        let entries = f64::from(range_step(ranges.order, wanted));
        let each = if ranges.order == KeyOrder::ByRun { ranges.nodes_per_run } else { 1.0 };
        let of_range = (entries * each).max(1.0).min(left);
        shares.push(of_range / rows);
        left -= of_range;
    }
    shares
}

/// What is packed in one go, cut into ranges: each ends a batch that is half full, more or less.
fn of_ranges(packed: f64, shares: &[f64]) -> f64 {
    match shares {
        [_] => packed.ceil(),
        _ => shares.iter().map(|share| (packed * share + 0.5).max(1.0)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::key::Key;
    use crate::source::page::Head;
    use uuid::Uuid;

    fn row(status: &[u8], finished_s: i64, text_bytes: u64) -> SampledHead {
        let head = Head {
            key: Key::START,
            row_id: Uuid::from_u128(1),
            created_at: Timestamp::from_unix_s(finished_s - 1),
            finished_at: Some(Timestamp::from_unix_s(finished_s)),
            status: status.to_vec(),
            text_bytes,
            offloaded: false,
        };
        SampledHead { head, page: 0, is_single: false }
    }

    #[test]
    fn every_row_of_a_sample_stands_for_others_and_is_counted_once() {
        let mut tally = Tally::default();
        let bounds = Bounds { settled_before: Timestamp::from_unix_s(1000), ..Bounds::NONE };
        let judged = Judged {
            bounds: &bounds,
            known: Known { created_before: Some(Timestamp::from_unix_s(100)) },
            purge_before: Timestamp::from_unix_s(500),
        };
        for row in [
            row(b"succeeded", 50, 10),
            row(b"succeeded", 400, 10),
            row(b"succeeded", 600, 30),
            row(b"succeeded", 2000, 10),
            row(b"running", 700, 10),
        ] {
            tally.add(Table::Runs, &row, 4.0, judged);
        }
        assert_eq!((tally.seen, tally.already, tally.live), (20.0, 4.0, 8.0));
        assert_eq!(tally.held.get(&HoldReason::Running), Some(&8.0));
        assert_eq!((tally.text_bytes, tally.purgeable, tally.purgeable_bytes), (160.0, 4.0, 40.0));
        let all = tally.already + tally.live + tally.held.values().sum::<f64>();
        assert_eq!(all, tally.seen);
        assert_eq!(tally.days.values().map(|day| day.rows).sum::<f64>(), tally.live);
    }

    #[test]
    fn batches_end_by_bytes_by_rows_and_with_their_range() {
        let limits = BatchLimits { batch_bytes: 1 << 20, batch_logs_max: 4096 };
        let count = |rows: u64, bytes: u64, range_rows| {
            let mut packer = Packer::default();
            (0..rows).for_each(|_| packer.add(bytes, &limits));
            let (live, packed) = (rows as f64, packer.batches(&limits));
            let ranges = Ranges {
                order: KeyOrder::Walk,
                range_rows,
                workers: 8,
                nodes_per_run: 1.0,
                table_rows: live,
            };
            batches(&Tally { seen: live, live, packed, ..Tally::default() }, &ranges)
        };
        assert_eq!(count(0, 100, 50_000), 0.0);
        assert_eq!(count(10, 100, 50_000), 1.0);
        assert_eq!(count(40_960, 10, 50_000), 10.0, "4,096 logs a request");
        assert_eq!(count(10_000, 10_486, 50_000), 102.0, "1 MiB a request");
        assert_eq!(count(100, 2 << 20, 50_000), 100.0, "a large row goes alone");
        assert_eq!(count(1000, 10, 100), 10.0, "each range ends one");
        assert_eq!(count(10_000, 10_486, 1000).round(), 106.0, "and wastes half of it");
    }
}
