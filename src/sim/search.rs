//! GetLogs and GetHistograms: search without SQL, by scanning every group.
//!
//! As with SLS, times are those of the logs, and only what was written after the index was made is
//! found. Answers are always complete.

pub mod matching;
pub mod query;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::search::matching::Matcher;
use crate::sim::store::logstore::Logstore;
use crate::wire::log_group::{LogGroupView, LogView};

/// A page of a search without SQL has at most so many logs (aliyun, GetLogs).
const LINES_MAX: u32 = 100;

/// How many buckets a histogram may have; this simulator's own limit.
const BUCKETS_MAX: i64 = 10_000;

/// What to look for: the parameters of GetLogs in both versions.
#[derive(Debug, Deserialize)]
struct Search {
    from: i64,
    to: i64,
    #[serde(default)]
    query: String,
    #[serde(default)]
    topic: String,
    /// The Rust SDK writes `lines`, all others `line`.
    #[serde(default = "lines_default", alias = "lines")]
    line: u32,
    #[serde(default)]
    offset: u32,
    #[serde(default)]
    reverse: bool,
}

fn lines_default() -> u32 {
    LINES_MAX
}

/// Where a found log is: sorted, it is in the order of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    time_s: u32,
    shard: u32,
    group: usize,
    log: usize,
}

/// GetLogs with its parameters in the query string.
pub fn get_logs(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    let search = Search::from_params(request)?;
    let page = page(logstore, &search)?;
    let count = page.len().to_string();
    Ok(Answer::json(&Value::Array(page))
        .with("x-log-progress", "Complete")
        .with("x-log-count", count)
        .with("x-log-processed-rows", "0")
        .with("x-log-elapsed-millisecond", "0")
        .with("x-log-has-sql", "false"))
}

/// GetLogs with its parameters in a JSON body, the answer compressed if the client takes that.
pub fn get_logs_v2(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    let search: Search = serde_json::from_slice(&request.body)
        .map_err(|error| Refusal::new(Code::ParameterInvalid, error.to_string()))?;
    let page = page(logstore, &search)?;
    let body = json!({
        "meta": {
            "progress": "Complete",
            "count": page.len(),
            "processedRows": 0,
            "processedBytes": 0,
            "elapsedMillisecond": 0,
            "hasSQL": false,
            "whereQuery": search.query,
            "aggQuery": "",
            "isAccurate": true,
            "mode": 0,
            "keys": [],
            "terms": [],
            "columnTypes": [],
            "cpuSec": 0.0,
            "cpuCores": 0,
        },
        "data": page,
    });
    let raw = body.to_string().into_bytes();
    Ok(Answer::compressible("application/json", raw, request.accepts_lz4()))
}

/// GetHistograms: one bucket, or one per `interval` seconds if that is given.
pub fn get_histograms(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    let search = Search::from_params(request)?;
    let found = scan(logstore, &search)?;
    let span = search.to.saturating_sub(search.from);
    let interval = match request.param("interval") {
        None => span,
        Some(text) => parse("interval", text)?,
    };
    if interval < 1 || span / interval > BUCKETS_MAX {
        return Err(invalid("interval must be positive and make at most 10,000 buckets"));
    }
    let mut buckets = Vec::new();
    let mut from = search.from;
    while from < search.to {
        let to = from.saturating_add(interval).min(search.to);
        let before = |time| found.partition_point(|found| i64::from(found.time_s) < time);
        let count = before(to) - before(from);
        buckets.push(json!({"from": from, "to": to, "count": count, "progress": "Complete"}));
        from = to;
    }
    Ok(Answer::json(&Value::Array(buckets))
        .with("x-log-progress", "Complete")
        .with("x-log-count", found.len().to_string()))
}

impl Search {
    fn from_params(request: &Request) -> Result<Self, Refusal> {
        let number = |name: &str| {
            let text = request.param(name);
            let text = text.ok_or_else(|| invalid(format!("parameter {name} is required")))?;
            parse(name, text)
        };
        let optional = |name: &str, default: u32| {
            request.param(name).map_or(Ok(default), |text| parse(name, text))
        };
        Ok(Self {
            from: number("from")?,
            to: number("to")?,
            query: request.param("query").unwrap_or_default().to_owned(),
            topic: request.param("topic").unwrap_or_default().to_owned(),
            line: optional("line", LINES_MAX)?,
            offset: optional("offset", 0)?,
            reverse: request.param("reverse").is_some_and(|text| text.eq_ignore_ascii_case("true")),
        })
    }
}

/// The logs of the page that is asked for, as flat objects of strings.
fn page(logstore: &Logstore, search: &Search) -> Result<Vec<Value>, Refusal> {
    if search.line > LINES_MAX {
        return Err(invalid(format!("line must be at most {LINES_MAX}")));
    }
    let mut found = scan(logstore, search)?;
    if search.reverse {
        found.reverse();
    }
    let page = found.iter().skip(search.offset as usize).take(search.line as usize);
    Ok(page.filter_map(|found| render(logstore, found)).collect())
}

/// Where all matching logs are, by time.
fn scan(logstore: &Logstore, search: &Search) -> Result<Vec<Found>, Refusal> {
    if search.from >= search.to {
        return Err(invalid("from must be before to"));
    }
    let index = logstore.index()?;
    let matcher = Matcher::new(&query::parse(&search.query)?, &index.json)?;
    let mut all = Vec::new();
    for shard in logstore.shards() {
        let groups = (0..).map_while(|index| Some((index, shard.group(index)?.1)));
        for (group_index, stored) in groups {
            if stored.indexed_by != Some(index.generation) {
                continue;
            }
            let Ok(group) = LogGroupView::parse(&stored.raw) else { continue };
            if !search.topic.is_empty() && group.topic != Some(search.topic.as_bytes()) {
                continue;
            }
            for (log_index, log) in group.logs.iter().enumerate() {
                let time_s = log.time.unwrap_or_default();
                let in_time = (search.from..search.to).contains(&i64::from(time_s));
                if in_time && matcher.matches(&group, log) {
                    let shard = shard.id;
                    all.push(Found { time_s, shard, group: group_index, log: log_index });
                }
            }
        }
    }
    all.sort_unstable();
    Ok(all)
}

fn render(logstore: &Logstore, found: &Found) -> Option<Value> {
    let shards = logstore.shards();
    let (_, stored) = shards.get(found.shard as usize)?.group(found.group)?;
    let group = LogGroupView::parse(&stored.raw).ok()?;
    group.logs.get(found.log).map(|log| flatten(&group, log))
}

/// A log as GetLogs gives it: fields, tags and SLS's own keys side by side, all values strings.
fn flatten(group: &LogGroupView<'_>, log: &LogView<'_>) -> Value {
    let mut object = Map::new();
    let mut put = |key: String, value: &[u8]| {
        object.insert(key, Value::String(text(value).into_owned()));
    };
    put("__time__".to_owned(), log.time.unwrap_or_default().to_string().as_bytes());
    put("__source__".to_owned(), group.source.unwrap_or_default());
    put("__topic__".to_owned(), group.topic.unwrap_or_default());
    for (key, value) in &group.tags {
        put(format!("__tag__:{}", text(key)), value);
    }
    for (key, value) in &log.contents {
        put(text(key).into_owned(), value);
    }
    Value::Object(object)
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn parse<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| invalid(format!("{name}={text} is not a number")))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}
