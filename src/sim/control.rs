//! The simulator's own calls, under `/_sim/` and without a signature: what tests ask and order.
//!
//! ```text
//! GET    /_sim/stats                        counters
//! GET    /_sim/logs/{project}/{logstore}    every stored log, one line of JSON each
//! POST   /_sim/faults                       orders a fault
//! DELETE /_sim/faults                       forgets all of them
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::fault::Faults;
use crate::sim::http::Request;
use crate::sim::put::Stored;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::{Store, lock};
use crate::wire::log_group::{LogGroupView, LogView};

/// What was served since the start; the control calls themselves do not count.
#[derive(Default)]
pub struct Stats {
    requests: AtomicU64,
    put_ok: AtomicU64,
    logs: AtomicU64,
    raw_bytes: AtomicU64,
    body_bytes: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a PutLogs that took effect, whatever its client saw of it.
    pub fn put(&self, stored: Stored, body_bytes: usize) {
        self.put_ok.fetch_add(1, Ordering::Relaxed);
        self.logs.fetch_add(stored.logs as u64, Ordering::Relaxed);
        self.raw_bytes.fetch_add(stored.raw_bytes as u64, Ordering::Relaxed);
        self.body_bytes.fetch_add(body_bytes as u64, Ordering::Relaxed);
    }

    pub fn error(&self, code: &str) {
        *lock(&self.errors).entry(code.to_owned()).or_default() += 1;
    }

    fn describe(&self) -> Value {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "requests": value(&self.requests),
            "put_ok": value(&self.put_ok),
            // Every PutLogs that took effect brought one group.
            "groups": value(&self.put_ok),
            "logs": value(&self.logs),
            "raw_bytes": value(&self.raw_bytes),
            "body_bytes": value(&self.body_bytes),
            "errors": *lock(&self.errors),
        })
    }
}

/// Serves a request whose path begins with `/_sim/`.
pub fn answer(
    request: &Request,
    store: &Store,
    stats: &Stats,
    faults: &Mutex<Faults>,
) -> Result<Answer, Refusal> {
    let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    match (request.method.as_str(), &segments[..]) {
        ("GET", ["_sim", "stats"]) => Ok(Answer::json(&stats.describe())),
        ("GET", ["_sim", "logs", project, logstore]) => {
            Ok(stored_logs(store.project(project)?.logstore(logstore)?))
        }
        ("POST", ["_sim", "faults"]) => {
            let invalid = |what| Refusal::new(Code::ParameterInvalid, what);
            let fault = serde_json::from_slice(&request.body)
                .map_err(|error| invalid(format!("the fault: {error}")))?;
            lock(faults).add(fault).map_err(invalid)?;
            Ok(Answer::empty())
        }
        ("DELETE", ["_sim", "faults"]) => {
            lock(faults).clear();
            Ok(Answer::empty())
        }
        (method, _) => {
            let message = format!("{method} {} is no control call", request.path);
            Err(Refusal::new(Code::UnsupportedOperation, message))
        }
    }
}

/// Every log of `logstore` as a line of JSON, shard by shard. One group at a time is in memory:
/// the next is rendered when the client has taken the last.
fn stored_logs(logstore: Arc<Logstore>) -> Answer {
    let (mut shard, mut index) = (0, 0);
    let pieces = std::iter::from_fn(move || {
        while let Some(current) = logstore.shards().get(shard) {
            if let Some((cursor, group)) = current.group(index) {
                index += 1;
                return Some(lines(current.id, cursor, &group.raw));
            }
            (shard, index) = (shard + 1, 0);
        }
        None
    });
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    Answer { body, ..Answer::bytes("application/x-ndjson", Bytes::new()) }
}

fn lines(shard: u32, cursor: i64, raw: &[u8]) -> Bytes {
    let group = LogGroupView::parse(raw).expect("PutLogs stores what it could parse");
    let mut text = String::new();
    for log in &group.logs {
        text += &line(shard, cursor, &group, log).to_string();
        text.push('\n');
    }
    Bytes::from(text)
}

fn line(shard: u32, cursor: i64, group: &LogGroupView<'_>, log: &LogView<'_>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let tags: Map<_, _> =
        group.tags.iter().map(|(key, value)| (text(key), Value::String(text(value)))).collect();
    let contents: Vec<_> =
        log.contents.iter().map(|(key, value)| [text(key), text(value)]).collect();
    json!({
        "shard": shard,
        "cursor": cursor.to_string(),
        "source": group.source.map(text),
        "topic": group.topic.map(text),
        "tags": tags,
        "time": log.time,
        "contents": contents,
    })
}
