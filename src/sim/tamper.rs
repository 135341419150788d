//! Damage done to what is stored, at the order of a test: lost, doubled and altered logs, and time
//! that passes for them. PullLogs, searches and SQL all see it.
//!
//! ```text
//! {"project": "p", "logstore": "l", "change": CHANGE}
//! CHANGE   {"drop_log": LOG}                  {"drop_batch": "tag"}
//!          {"double_log": LOG}                {"double_batch": "tag"}
//!          {"swap_logs": [LOG, LOG]}          {"set_time": {"log": LOG, "time": unix_s}}
//!          {"remove_field": {"log": LOG, "field": "f"}}
//!          {"set_field": {"log": LOG, "field": "f", "value": "v"}}
//!          {"flip_byte": {"log": LOG, "field": "f", "at": 0}}
//!          {"expire": {"received_before": unix_s, "log_time_before": unix_s}}     (or one of them)
//! LOG      {"id": "value of the field id"}, with "batch": "tag" and "nth": 2 if there are several
//! ```
//!
//! A batch is every group whose tag `__batch__` has that value. A change is done whole or, where
//! nothing fits it, not at all. A lost group keeps its cursor, so that those behind it stay where
//! readers have left them. What is doubled comes last, as if it had been written again.

use bytes::Bytes;
use prost::Message as _;
use serde::Deserialize;
use serde_json::json;

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::http::Request;
use crate::sim::store::Store;
use crate::sim::store::logstore::{Expired, Logstore};
use crate::sim::store::place::Place;
use crate::sim::sync::lock;
use crate::wire::log_group::LogGroupView;
use crate::wire::proto::{Content, Log, LogGroup};

/// The tag by which a client marks the groups of a batch.
const BATCH_TAG: &str = "__batch__";

/// What is to be damaged: the body of `POST /_sim/tamper`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    project: String,
    logstore: String,
    change: Change,
}

impl Order {
    /// Reads an order; says why it is none.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Change {
    DropLog(Which),
    DropBatch(String),
    DoubleLog(Which),
    DoubleBatch(String),
    SwapLogs(Which, Which),
    SetTime {
        log: Which,
        time: u32,
    },
    RemoveField {
        log: Which,
        field: String,
    },
    SetField {
        log: Which,
        field: String,
        value: String,
    },
    /// The byte `at` of the value becomes another; it must be ASCII, and is afterwards.
    FlipByte {
        log: Which,
        field: String,
        at: usize,
    },
    Expire {
        received_before: Option<i64>,
        log_time_before: Option<i64>,
    },
}

/// Which log is meant: the `nth` of those stored with this id, and in this batch if one is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    id: String,
    batch: Option<String>,
    #[serde(default = "one")]
    nth: usize,
}

fn one() -> usize {
    1
}

/// Does what the body of `request` orders; the answer says how many logs it met
/// (0 of `expire`).
///
/// Fails with `ParameterInvalid`, and changes nothing, if nothing fits the order.
pub fn tamper(store: &Store, request: &Request, moment: Moment) -> Result<Answer, Refusal> {
    let order =
        Order::parse(&request.body).map_err(|error| invalid(format!("the order: {error}")))?;
    let logstore = store.project(&order.project)?.logstore(&order.logstore)?;
    let logs = change(&logstore, order.change, moment)?;
    Ok(Answer::json(&json!({"logs": logs})))
}

fn change(logstore: &Logstore, change: Change, moment: Moment) -> Result<usize, Refusal> {
    match change {
        Change::DropLog(which) => {
            let place = find(logstore, &which)?;
            edit_group(logstore, place, |group| drop(group.logs.remove(place.log)));
            lock(&logstore.deleted).forget(place);
            Ok(1)
        }
        Change::DropBatch(batch) => {
            let groups = groups_of(logstore, &batch)?;
            for (place, _) in &groups {
                logstore.replace(place.shard, place.group, None);
            }
            Ok(count(&groups))
        }
        Change::DoubleLog(which) => {
            let place = find(logstore, &which)?;
            let mut group = decoded(logstore, place);
            group.logs = vec![group.logs.swap_remove(place.log)];
            logstore.insert(place.shard, group.encode_to_vec().into(), moment);
            Ok(1)
        }
        Change::DoubleBatch(batch) => {
            let groups = groups_of(logstore, &batch)?;
            for (place, group) in &groups {
                logstore.insert(place.shard, group.encode_to_vec().into(), moment);
            }
            Ok(count(&groups))
        }
        Change::SwapLogs(one, other) => swap(logstore, &one, &other),
        Change::SetTime { log, time } => edit(logstore, &log, |log| {
            log.time = time;
            Ok(())
        }),
        Change::RemoveField { log, field } => edit(logstore, &log, |log| {
            value_of(log, &field)?;
            log.contents.retain(|content| content.key != field);
            Ok(())
        }),
        Change::SetField { log, field, value } => edit(logstore, &log, |log| {
            match value_of(log, &field) {
                Ok(old) => *old = value,
                Err(_) => log.contents.push(Content { key: field, value }),
            }
            Ok(())
        }),
        Change::FlipByte { log, field, at } => edit(logstore, &log, |log| {
            let value = value_of(log, &field)?;
            let byte = value.as_bytes().get(at).filter(|byte| byte.is_ascii());
            let byte =
                *byte.ok_or_else(|| invalid(format!("{field} has no ASCII at byte {at}")))?;
            value.replace_range(at..=at, char::from(byte ^ 1).encode_utf8(&mut [0; 4]));
            Ok(())
        }),
        Change::Expire { received_before: None, log_time_before: None } => {
            Err(invalid("expire needs received_before, log_time_before or both".to_owned()))
        }
        Change::Expire { received_before, log_time_before } => {
            logstore.expire(Expired {
                received_before_s: received_before.unwrap_or(i64::MIN),
                log_time_before_s: log_time_before.unwrap_or(i64::MIN),
            });
            Ok(0)
        }
    }
}

fn swap(logstore: &Logstore, one: &Which, other: &Which) -> Result<usize, Refusal> {
    let (one, other) = (find(logstore, one)?, find(logstore, other)?);
    let log_at = |place: Place| decoded(logstore, place).logs.swap_remove(place.log);
    let (first, second) = (log_at(one), log_at(other));
    edit_group(logstore, one, |group| group.logs[one.log] = second);
    edit_group(logstore, other, |group| group.logs[other.log] = first);
    Ok(2)
}

fn edit(
    logstore: &Logstore,
    which: &Which,
    change: impl FnOnce(&mut Log) -> Result<(), Refusal>,
) -> Result<usize, Refusal> {
    let place = find(logstore, which)?;
    let mut log = decoded(logstore, place).logs.swap_remove(place.log);
    change(&mut log)?;
    edit_group(logstore, place, |group| group.logs[place.log] = log);
    Ok(1)
}

/// Lets `change` edit the group at `place`; one without logs is lost.
fn edit_group(logstore: &Logstore, place: Place, change: impl FnOnce(&mut LogGroup)) {
    let mut group = decoded(logstore, place);
    change(&mut group);
    let raw = (!group.logs.is_empty()).then(|| group.encode_to_vec().into());
    logstore.replace(place.shard, place.group, raw);
}

fn value_of<'a>(log: &'a mut Log, field: &str) -> Result<&'a mut String, Refusal> {
    let content = log.contents.iter_mut().find(|content| content.key == field);
    content.map(|content| &mut content.value).ok_or_else(|| invalid(format!("no field {field}")))
}

fn find(logstore: &Logstore, which: &Which) -> Result<Place, Refusal> {
    let mut left = which.nth;
    for (place, raw) in all_groups(logstore) {
        let group = LogGroupView::parse(&raw).expect("what is stored could be parsed");
        if which.batch.as_ref().is_some_and(|batch| !is_of_batch(&group, batch)) {
            continue;
        }
        for (log_number, log) in group.logs.iter().enumerate() {
            let is_it = log.contents.contains(&(b"id", which.id.as_bytes()));
            left -= usize::from(is_it && left > 0);
            if is_it && left == 0 {
                return Ok(Place { log: log_number, ..place });
            }
        }
    }
    Err(invalid(format!("{} logs fit {which:?}", which.nth.saturating_sub(left))))
}

/// The groups of a batch, each with the place of its first log.
fn groups_of(logstore: &Logstore, batch: &str) -> Result<Vec<(Place, LogGroup)>, Refusal> {
    let is_of_it = |raw: &[u8]| {
        let group = LogGroupView::parse(raw).expect("what is stored could be parsed");
        is_of_batch(&group, batch)
    };
    let groups = all_groups(logstore).filter(|(_, raw)| is_of_it(raw));
    let groups: Vec<_> = groups.map(|(place, _)| (place, decoded(logstore, place))).collect();
    if groups.is_empty() {
        return Err(invalid(format!("no group is of batch {batch}")));
    }
    Ok(groups)
}

fn is_of_batch(group: &LogGroupView<'_>, batch: &str) -> bool {
    group.tag(BATCH_TAG) == Some(batch.as_bytes())
}

fn count(groups: &[(Place, LogGroup)]) -> usize {
    groups.iter().map(|(_, group)| group.logs.len()).sum()
}

/// All groups by shard, each with the place of its first log.
fn all_groups(logstore: &Logstore) -> impl Iterator<Item = (Place, Bytes)> {
    logstore.shards().into_iter().flat_map(|shard| {
        (0..).map_while(move |group| {
            let (_, stored) = shard.group(group)?;
            Some((Place { shard: shard.id, group, log: 0 }, stored.raw))
        })
    })
}

fn decoded(logstore: &Logstore, place: Place) -> LogGroup {
    let shards = logstore.shards();
    let (_, stored) = shards[place.shard as usize].group(place.group).expect("it was found there");
    LogGroup::decode(stored.raw).expect("what is stored could be decoded")
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}
