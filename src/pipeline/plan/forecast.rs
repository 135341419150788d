//! How long a run would take, and what it would wait for. Pure.

use serde::Serialize;

use crate::pipeline::guard::pace::Rates;

/// How much of a quota a run uses that learns it from its answers: so much was measured on a machine
/// that was busy; in virtual time it is 95 % and more, and of 64 shards 85 %.
const QUOTA_SHARE: f64 = 0.85;

/// A commit of the ledger for every batch.
const LEDGER_S: f64 = 0.005;

/// What limits a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    ShardBytes,
    ShardWrites,
    BytesPerS,
    RequestsPerS,
    RowsPerS,
    Reading,
    ThisMachine,
    RoundTrips,
}

impl Limit {
    pub fn words(self) -> &'static str {
        match self {
            Self::ShardBytes => "SLS: the bytes that its shards take",
            Self::ShardWrites => "SLS: the writes that its shards take",
            Self::BytesPerS => "--bytes-per-s",
            Self::RequestsPerS => "--requests-per-s",
            Self::RowsPerS => "--rows-per-s",
            Self::Reading => "reading from Postgres",
            Self::ThisMachine => "this machine: converting and compressing",
            Self::RoundTrips => "the way to SLS: one request a worker at a time",
        }
    }

    /// Whether more shards help.
    pub fn is_of_shards(self) -> bool {
        matches!(self, Self::ShardBytes | Self::ShardWrites)
    }
}

/// What is to be moved of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    pub rows: f64,
    pub raw_bytes: f64,
    pub batches: f64,
}

/// What there is to move it with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Means {
    pub shards: f64,
    pub shard_bytes_per_s: f64,
    pub shard_writes_per_s: f64,
    pub rates: Rates,
    pub workers: f64,
    /// Workers when SLS's answers are what is waited for.
    pub senders: f64,
    /// Processors that convert.
    pub processors: f64,
    /// Raw bytes a second of one worker: read from Postgres, converted; measured.
    pub read_bytes_per_s: f64,
    pub convert_bytes_per_s: f64,
    /// A request to SLS and its answer; measured.
    pub round_trip_s: f64,
}

/// How long it takes, and why.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    pub seconds: f64,
    pub limit: Limit,
}

/// The slowest part decides: all of them work at the same time.
pub fn forecast(load: &Load, means: &Means) -> Forecast {
    let Load { rows, raw_bytes, batches } = *load;
    let rate = |rate: Option<std::num::NonZeroU32>, unit: f64| {
        rate.map_or(f64::INFINITY, |rate| f64::from(rate.get()) * unit)
    };
    let shards = means.shards.max(1.0);
    let readers = means.workers.min(means.processors).max(1.0);
    let parts = [
        (Limit::ShardBytes, raw_bytes / (shards * means.shard_bytes_per_s * QUOTA_SHARE)),
        (Limit::ShardWrites, batches / (shards * means.shard_writes_per_s * QUOTA_SHARE)),
        (Limit::BytesPerS, raw_bytes / rate(means.rates.kib_per_s, 1024.0)),
        (Limit::RequestsPerS, batches / rate(means.rates.requests_per_s, 1.0)),
        (Limit::RowsPerS, rows / rate(means.rates.rows_per_s, 1.0)),
        (Limit::Reading, raw_bytes / (readers * means.read_bytes_per_s)),
        (Limit::ThisMachine, raw_bytes / (readers * means.convert_bytes_per_s)),
        (Limit::RoundTrips, batches * (means.round_trip_s + LEDGER_S) / means.senders.max(1.0)),
    ];
    let slowest = parts.into_iter().filter(|(_, seconds)| seconds.is_finite());
    let slowest = slowest.max_by(|one, other| one.1.total_cmp(&other.1));
    let (limit, seconds) = slowest.unwrap_or((Limit::RoundTrips, 0.0));
    Forecast { seconds, limit }
}

/// The same with more shards, twice as many each time, as long as that helps.
pub fn with_more_shards(load: &Load, means: &Means) -> Vec<(u64, Forecast)> {
    let mut shards = means.shards.max(1.0);
    let mut all = vec![(shards as u64, forecast(load, means))];
    while all.last().is_some_and(|(_, last)| last.limit.is_of_shards()) && shards < 256.0 {
        shards *= 2.0;
        all.push((shards as u64, forecast(load, &Means { shards, ..*means })));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::guard::pace::quota::{SHARD_BYTES, SHARD_WRITES};
    use std::num::NonZeroU32;

    fn means() -> Means {
        Means {
            shards: 2.0,
            shard_bytes_per_s: SHARD_BYTES,
            shard_writes_per_s: f64::from(SHARD_WRITES),
            rates: Rates::default(),
            workers: 8.0,
            senders: 8.0,
            processors: 2.0,
            read_bytes_per_s: 100e6,
            convert_bytes_per_s: 200e6,
            round_trip_s: 0.02,
        }
    }

    #[test]
    fn the_slowest_part_decides() {
        let load = Load { rows: 1e6, raw_bytes: 1e9, batches: 500.0 };
        let of = |means: &Means| {
            let told = forecast(&load, means);
            (told.limit, told.seconds.round() as u64)
        };
        assert_eq!(of(&means()), (Limit::ShardBytes, 118));
        assert_eq!(of(&Means { shards: 200.0, ..means() }), (Limit::Reading, 5));
        let rates = Rates { rows_per_s: NonZeroU32::new(1000), ..Rates::default() };
        assert_eq!(of(&Means { rates, ..means() }), (Limit::RowsPerS, 1000));
        let far = Means { shards: 200.0, round_trip_s: 1.0, ..means() };
        assert_eq!(of(&far), (Limit::RoundTrips, 63));
    }

    #[test]
    fn more_shards_are_tried_as_long_as_they_help() {
        let load = Load { rows: 1e6, raw_bytes: 1e9, batches: 500.0 };
        let all = with_more_shards(&load, &means());
        let shards: Vec<_> = all.iter().map(|(shards, _)| *shards).collect();
        assert_eq!(shards, [2, 4, 8, 16, 32, 64]);
        assert!(all.windows(2).all(|pair| pair[0].1.seconds > pair[1].1.seconds));
        assert_eq!(all.last().unwrap().1.limit, Limit::Reading);
    }
}
