//! Which logs a query finds: the one place that decides what search, SQL and histograms see.
//!
//! A log is seen if it was written after the index was made, is not older than the logstore's TTL
//! (by its own time), is indexed by now, was not deleted, and matches.

use std::time::Duration;

use crate::sim::answer::{Code, Refusal};
use crate::sim::search::matching::Matcher;
use crate::sim::search::query;
use crate::sim::store::lock;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::shard::{Group, Scene};
use crate::wire::log_group::LogGroupView;

/// Logs further behind their receive time are "historical": their index may take longer (aliyun,
/// GetLogs: real-time data is within (-180 s, +900 s]).
const RECENT_S: i64 = 180;

/// A TTL of that many days means for ever (aliyun, CreateLogstore).
const TTL_DAYS_FOR_EVER: i64 = 3650;

/// GetLogstore's TTL where none was given.
const TTL_DAYS_DEFAULT: i64 = 30;

const DAY_S: i64 = 86_400;

/// Where a log is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub shard: u32,
    /// The group's number in its shard.
    pub group: usize,
    /// The log's number in its group.
    pub log: usize,
}

/// A log that was found: sorted, it is in the order of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub time_s: u32,
    pub place: Place,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The first time, in Unix seconds.
    pub from: i64,
    /// The first time that is too late.
    pub to: i64,
    /// Empty: any.
    pub topic: &'a str,
    /// In the search language.
    pub query: &'a str,
}

/// All logs that are seen and match, by time.
pub fn find(
    logstore: &Logstore,
    wanted: Wanted<'_>,
    scene: Scene<'_>,
) -> Result<Vec<Found>, Refusal> {
    if wanted.from >= wanted.to {
        return Err(Refusal::new(Code::ParameterInvalid, "from must be before to"));
    }
    let index = logstore.index()?;
    let matcher = Matcher::new(&query::parse(wanted.query)?, &index.json)?;
    let from = wanted.from.max(oldest_s(logstore, scene));
    let deleted = lock(&logstore.queries.deleted);
    let mut all = Vec::new();
    for shard in logstore.shards() {
        let groups = (0..).map_while(|number| Some((number, shard.group(number)?.1)));
        for (group_number, stored) in groups {
            if stored.indexed_by != Some(index.generation) {
                continue;
            }
            let group = LogGroupView::parse(&stored.raw);
            let group = group.expect("PutLogs stores what it could parse");
            if !wanted.topic.is_empty() && group.topic != Some(wanted.topic.as_bytes()) {
                continue;
            }
            for (log_number, log) in group.logs.iter().enumerate() {
                let time_s = log.time.unwrap_or_default();
                let place = Place { shard: shard.id, group: group_number, log: log_number };
                if (from..wanted.to).contains(&i64::from(time_s))
                    && is_indexed(&stored, time_s, scene)
                    && !deleted.hides(place)
                    && matcher.matches(&group, log)
                {
                    all.push(Found { time_s, place });
                }
            }
        }
    }
    drop(deleted);
    all.sort_unstable();
    Ok(all)
}

/// The oldest time that queries see.
fn oldest_s(logstore: &Logstore, scene: Scene<'_>) -> i64 {
    match logstore.describe()["ttl"].as_i64().unwrap_or(TTL_DAYS_DEFAULT) {
        TTL_DAYS_FOR_EVER => 0,
        days => scene.moment.unix_s().saturating_sub(days * DAY_S),
    }
}

/// Whether the index has got to a log of `group` with this time.
fn is_indexed(group: &Group, time_s: u32, scene: Scene<'_>) -> bool {
    let is_old = i64::from(time_s) <= group.received_s - RECENT_S;
    let switches = scene.switches;
    let delay_ms = if is_old { switches.index_delay_ms } else { switches.index_delay_recent_ms };
    scene.moment.steady >= group.shown_at + Duration::from_millis(delay_ms)
}
