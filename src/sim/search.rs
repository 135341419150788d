//! GetLogs in both versions, with search alone or SQL behind it, and GetHistograms.
//!
//! ```text
//! query = search [ "|" SQL ]      search → scan: which logs → a page of them, or sql: rows
//! ```

pub mod matching;
pub mod query;
pub mod scan;
pub mod state;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::search::scan::{Filter, Hit};
use crate::sim::search::state::QueryState;
use crate::sim::sql;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::place::Place;
use crate::sim::store::shard::Scene;
use crate::sim::switch::PlainSql;
use crate::wire::log_group::{LogGroupView, LogView};

/// A page of a search without SQL has at most so many logs (aliyun, GetLogs).
const LINES_MAX: u32 = 100;

/// How many buckets a histogram may have; this simulator's own limit.
const BUCKETS_MAX: i64 = 10_000;

/// How much of a query an answer's header repeats: Python's HTTP client takes 64 KB in a line.
const HEADER_CHARS_MAX: usize = 4096;

/// What a query is asked of, and when.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub logstore: &'a Logstore,
    pub state: &'a QueryState,
    pub scene: Scene<'a>,
}

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

/// What a query gives, in both versions of GetLogs.
struct Outcome {
    data: Vec<Value>,
    progress: &'static str,
    has_sql: bool,
    where_query: String,
    agg_query: String,
    processed_rows: usize,
    keys: Vec<String>,
    column_types: Vec<&'static str>,
}

/// GetLogs with its parameters in the query string: the answer is an array of flat objects.
pub fn get_logs(subject: Subject<'_>, request: &Request) -> Result<Answer, Refusal> {
    let outcome = ask(subject, &Search::from_params(request)?)?;
    let count = outcome.data.len().to_string();
    Ok(Answer::json(&Value::Array(outcome.data))
        .with("x-log-progress", outcome.progress)
        .with("x-log-count", count)
        .with("x-log-processed-rows", outcome.processed_rows.to_string())
        .with("x-log-elapsed-millisecond", "0")
        .with("x-log-has-sql", outcome.has_sql.to_string())
        .with("x-log-where-query", for_header(&outcome.where_query))
        .with("x-log-agg-query", for_header(&outcome.agg_query)))
}

/// GetLogs with its parameters in a JSON body, the answer compressed if the client takes that.
pub fn get_logs_v2(subject: Subject<'_>, request: &Request) -> Result<Answer, Refusal> {
    let search: Search = serde_json::from_slice(&request.body)
        .map_err(|error| invalid(format!("the body: {error}")))?;
    let outcome = ask(subject, &search)?;
    let body = json!({
        "meta": {
            "progress": outcome.progress,
            "count": outcome.data.len(),
            "processedRows": outcome.processed_rows,
            "processedBytes": 0,
            "elapsedMillisecond": 0,
            "hasSQL": outcome.has_sql,
            "whereQuery": outcome.where_query,
            "aggQuery": outcome.agg_query,
            "isAccurate": true,
            "mode": 0,
            "keys": outcome.keys,
            "terms": [],
            "columnTypes": outcome.column_types,
            "cpuSec": 0.0,
            "cpuCores": 0,
        },
        "data": outcome.data,
    });
    let raw = body.to_string().into_bytes();
    Ok(Answer::compressible("application/json", raw, request.accepted_compression()))
}

/// GetHistograms: one bucket, or one per `interval` seconds if that is given.
pub fn get_histograms(subject: Subject<'_>, request: &Request) -> Result<Answer, Refusal> {
    let search = Search::from_params(request)?;
    let (query, sql) = split(&search.query, subject.scene.switches.plain_sql)?;
    if sql.is_some() {
        return Err(invalid("GetHistograms takes a search without SQL"));
    }
    let (hits, progress) = find(subject, &search, query)?;
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
        let before = |time| hits.partition_point(|hit| i64::from(hit.time_s) < time);
        let count = before(to) - before(from);
        buckets.push(json!({"from": from, "to": to, "count": count, "progress": progress}));
        from = to;
    }
    Ok(Answer::json(&Value::Array(buckets))
        .with("x-log-progress", progress)
        .with("x-log-count", hits.len().to_string()))
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

fn ask(subject: Subject<'_>, search: &Search) -> Result<Outcome, Refusal> {
    let (query, sql) = split(&search.query, subject.scene.switches.plain_sql)?;
    if let Some(sql) = sql {
        return analyse(subject, search, query, sql);
    }
    if search.line > LINES_MAX {
        return Err(invalid(format!("line must be at most {LINES_MAX}")));
    }
    let (mut hits, progress) = find(subject, search, query)?;
    let processed_rows = hits.len();
    if search.reverse {
        hits.reverse();
    }
    let page = hits.iter().skip(search.offset as usize).take(search.line as usize);
    Ok(Outcome {
        data: page.filter_map(|hit| render(subject.logstore, hit.place)).collect(),
        progress,
        has_sql: false,
        where_query: query.to_owned(),
        agg_query: String::new(),
        processed_rows,
        keys: Vec::new(),
        column_types: Vec::new(),
    })
}

/// `line` does not count here: the SDKs always send it.
fn analyse(
    subject: Subject<'_>,
    search: &Search,
    query: &str,
    sql: &str,
) -> Result<Outcome, Refusal> {
    let Subject { logstore, state, scene } = subject;
    if logstore.describe()["mode"] == "query" {
        return Err(invalid(format!("logstore {} is of mode query: no SQL", logstore.name())));
    }
    if search.offset > 0 {
        return Err(invalid(
            "offset is not available for pagination in sql query, please use limit x,y",
        ));
    }
    let (mut hits, mut progress) = find(subject, search, query)?;
    if let Some(logs_max) = scene.switches.sql_logs_max.filter(|max| hits.len() > *max) {
        hits.truncate(logs_max);
        progress = "Incomplete";
    }
    let places: Vec<_> = hits.iter().map(|hit| hit.place).collect();
    let sql::Rows { names, types, rows } =
        sql::run(logstore, &state.table, &places, sql, scene.switches)?;
    let object = |values: Vec<String>| -> Value {
        names
            .iter()
            .cloned()
            .zip(values.into_iter().map(Value::String))
            .collect::<Map<_, _>>()
            .into()
    };
    Ok(Outcome {
        data: rows.into_iter().map(object).collect(),
        progress,
        has_sql: true,
        where_query: query.to_owned(),
        agg_query: sql.to_owned(),
        processed_rows: places.len(),
        keys: names.clone(),
        column_types: types,
    })
}

/// What is found and how far that is all of it: `Incomplete` is an answer from half of the logs.
fn find(
    subject: Subject<'_>,
    search: &Search,
    query: &str,
) -> Result<(Vec<Hit>, &'static str), Refusal> {
    let Subject { logstore, state, scene } = subject;
    let filter = Filter { from: search.from, to: search.to, topic: &search.topic, query };
    let mut hits = scan::find(logstore, filter, scene)?;
    if !state.is_incomplete((search.from, search.to), &search.query, scene.switches) {
        return Ok((hits, "Complete"));
    }
    hits.truncate(hits.len() / 2);
    Ok((hits, "Incomplete"))
}

/// The search, and the SQL behind the first `|` that is not in quotes.
fn split(text: &str, plain_sql: PlainSql) -> Result<(&str, Option<&str>), Refusal> {
    let head = text.trim_start();
    let first = head.split(|char: char| !char.is_ascii_alphanumeric()).next().unwrap_or_default();
    let is_key = head[first.len()..].trim_start().starts_with([':', '>', '<', '=']);
    if ["select", "with"].iter().any(|word| first.eq_ignore_ascii_case(word)) && !is_key {
        return match plain_sql {
            PlainSql::Accept => Ok(("*", Some(text))),
            PlainSql::Refuse => {
                Err(invalid("sql query must follow search query,please read syntax doc"))
            }
        };
    }
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'|' if !is_quoted => return Ok((text[..at].trim(), Some(text[at + 1..].trim()))),
            _ => {}
        }
    }
    Ok((text, None))
}

fn render(logstore: &Logstore, place: Place) -> Option<Value> {
    let shards = logstore.shards();
    let (_, stored) = shards.get(place.shard as usize)?.group(place.group)?;
    let group = LogGroupView::parse(&stored.raw).ok()?;
    let mut object = flatten(&group, group.logs.get(place.log)?);
    if logstore.is_modifiable() {
        object.insert("__rowid__".to_owned(), place.row_id().into());
    }
    Some(object.into())
}

/// A log as GetLogs gives it: fields, tags and SLS's own keys side by side, all values strings.
fn flatten(group: &LogGroupView<'_>, log: &LogView<'_>) -> Map<String, Value> {
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
    object
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// What a header can hold of a query: ASCII on one line, and not too much of it.
fn for_header(query: &str) -> String {
    let line = query.split_whitespace().collect::<Vec<_>>().join(" ");
    let ascii = line.chars().map(|char| if char.is_ascii_graphic() { char } else { ' ' });
    ascii.take(HEADER_CHARS_MAX).collect()
}

fn parse<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| invalid(format!("{name}={text} is not a number")))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_begins_behind_the_first_bar_outside_of_quotes() {
        for (text, wanted) in [
            ("", ("", None)),
            ("id: 1", ("id: 1", None)),
            ("* | select 1", ("*", Some("select 1"))),
            (r#"id: "a|b\"|" | select '|'"#, (r#"id: "a|b\"|""#, Some("select '|'"))),
            ("select 1", ("*", Some("select 1"))),
            ("\n WITH a AS (select 1) select 2", ("*", Some("\n WITH a AS (select 1) select 2"))),
            ("select: x", ("select: x", None)),
            ("selected: x", ("selected: x", None)),
        ] {
            assert_eq!(split(text, PlainSql::Accept), Ok(wanted), "{text}");
        }
        assert!(split("select 1", PlainSql::Refuse).is_err());
        assert!(split("* | select 1", PlainSql::Refuse).is_ok());
    }

    #[test]
    fn a_query_fits_into_a_header() {
        assert_eq!(for_header("id: \"你\"\n and\tb "), "id: \" \" and b");
        assert_eq!(for_header(&"x".repeat(100_000)).len(), HEADER_CHARS_MAX);
    }
}
