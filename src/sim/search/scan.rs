//! Which logs a query finds: the one place that decides what search, SQL and histograms see.
//!
//! A log is seen if it was written after the index was made, is not older than the logstore's TTL
//! (neither by its own time nor by its receipt), is indexed by now, was not deleted, and matches.

use std::time::Duration;

use crate::sim::answer::{Code, Refusal};
use crate::sim::search::matching::Matcher;
use crate::sim::search::query;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::place::Place;
use crate::sim::store::shard::{Group, Scene};
use crate::sim::sync::lock;
use crate::wire::log_group::LogGroupView;

/// Logs further behind their receive time are "historical": their index may take longer (aliyun,
/// GetLogs: real-time data is within (-180 s, +900 s]).
const RECENT_S: i64 = 180;

/// A log that was found: sorted, it is in the order of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    pub time_s: u32,
    pub place: Place,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
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
    filter: Filter<'_>,
    scene: Scene<'_>,
) -> Result<Vec<Hit>, Refusal> {
    if filter.from >= filter.to {
        return Err(Refusal::new(Code::ParameterInvalid, "from must be before to"));
    }
    let index = logstore.index()?;
    let matcher = Matcher::new(&query::parse(filter.query)?, &index.json)?;
    let oldest_received_s = logstore.view(scene.moment).oldest_s;
    let from = filter.from.max(logstore.oldest_log_s(scene.moment));
    let deleted = lock(&logstore.deleted);
    let mut all = Vec::new();
    for shard in logstore.shards() {
        let groups = (0..).map_while(|number| Some((number, shard.group(number)?.1)));
        for (group_number, stored) in groups {
            if stored.indexed_by != Some(index.generation) || stored.received_s < oldest_received_s
            {
                continue;
            }
            let group = LogGroupView::parse(&stored.raw);
            let group = group.expect("PutLogs stores what it could parse");
            if !filter.topic.is_empty() && group.topic != Some(filter.topic.as_bytes()) {
                continue;
            }
            for (log_number, log) in group.logs.iter().enumerate() {
                let time_s = log.time.unwrap_or_default();
                let place = Place { shard: shard.id, group: group_number, log: log_number };
                if (from..filter.to).contains(&i64::from(time_s))
                    && is_indexed(&stored, time_s, scene)
                    && !deleted.hides(place)
                    && matcher.matches(&group, log)
                {
                    all.push(Hit { time_s, place });
                }
            }
        }
    }
    drop(deleted);
    all.sort_unstable();
    Ok(all)
}

/// Whether the index has got to a log of `group` with this time.
fn is_indexed(group: &Group, time_s: u32, scene: Scene<'_>) -> bool {
    let is_old = i64::from(time_s) <= group.received_s - RECENT_S;
    let switches = scene.switches;
    let delay_ms = if is_old { switches.index_delay_ms } else { switches.index_delay_recent_ms };
    scene.moment.steady >= group.shown_at + Duration::from_millis(delay_ms)
}
