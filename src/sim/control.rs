//! The simulator's own calls, under `/_sim/` and without a signature: what tests ask and order.
//!
//! ```text
//! GET    /_sim/stats                        counters
//! GET    /_sim/logs/{project}/{logstore}    every stored log, one line of JSON each
//! GET    /_sim/switches                     all switches
//! PATCH  /_sim/switches                     changes those that are named; null: the default
//! GET    /_sim/faults                       the orders that wait; what is held or stored late
//! POST   /_sim/faults                       orders a fault
//! DELETE /_sim/faults                       forgets all orders
//! POST   /_sim/release                      lets go on what is held now
//! POST   /_sim/tamper                       damages what is stored (`sim/tamper.rs`)
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::sim::answer::{Answer, Code, Cut, Refusal};
use crate::sim::fault::{Action, Fault, Faults, Kind};
use crate::sim::http::Request;
use crate::sim::put::Stored;
use crate::sim::route::Route;
use crate::sim::store::Store;
use crate::sim::store::logstore::Logstore;
use crate::sim::switch::Switches;
use crate::sim::sync::lock;
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

/// What the control calls look at and change.
#[derive(Default)]
pub struct Controls {
    pub stats: Stats,
    faults: Mutex<Faults>,
    switches: Mutex<Arc<Switches>>,
    /// Sends at every release.
    release: watch::Sender<()>,
    held: AtomicU64,
    late: AtomicU64,
}

impl Controls {
    pub fn new(switches: Switches) -> Self {
        Self { switches: Mutex::new(Arc::new(switches)), ..Self::default() }
    }

    /// The switches as they are now.
    pub fn switches(&self) -> Arc<Switches> {
        Arc::clone(&lock(&self.switches))
    }

    /// Orders `fault`; says what is wrong with it otherwise.
    pub fn order(&self, fault: Fault) -> Result<(), String> {
        lock(&self.faults).add(fault)
    }

    /// What happens to the request that came now.
    pub fn decide(&self, route: Option<&Route<'_>>) -> Option<Action> {
        let kind = route.map_or(Kind::Admin, Route::kind);
        lock(&self.faults).decide(kind, route.and_then(Route::logstore))
    }

    /// Waits for the next release.
    pub async fn hold(&self) {
        let mut release = self.release.subscribe();
        // Whoever reads this number can release what it counts.
        self.held.fetch_add(1, Ordering::SeqCst);
        release.changed().await.expect("the sender lives as long as `self`");
        self.held.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts a request that is answered already and will be stored later.
    pub fn late_begins(&self) {
        self.late.fetch_add(1, Ordering::SeqCst);
    }

    pub fn late_ends(&self) {
        self.late.fetch_sub(1, Ordering::SeqCst);
    }

    fn describe_faults(&self) -> Value {
        let faults = lock(&self.faults);
        let orders: Vec<_> = faults.waiting().collect();
        json!({
            "waiting": orders.len(),
            "held": self.held.load(Ordering::SeqCst),
            "late": self.late.load(Ordering::SeqCst),
            "orders": orders,
        })
    }

    fn change_switches(&self, body: &[u8]) -> Result<(), String> {
        let change = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let mut switches = lock(&self.switches);
        *switches = Arc::new(switches.changed(change)?);
        Ok(())
    }
}

/// Serves a request whose path begins with `/_sim/`.
pub fn answer(request: &Request, store: &Store, controls: &Controls) -> Result<Answer, Refusal> {
    let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    let invalid = |what| Refusal::new(Code::ParameterInvalid, what);
    match (request.method.as_str(), &segments[..]) {
        ("GET", ["_sim", "stats"]) => Ok(Answer::json(&controls.stats.describe())),
        ("GET", ["_sim", "logs", project, logstore]) => {
            Ok(stored_logs(store.project(project)?.logstore(logstore)?))
        }
        ("GET", ["_sim", "switches"]) => Ok(switches(controls)),
        ("PATCH", ["_sim", "switches"]) => {
            controls.change_switches(&request.body).map_err(invalid)?;
            Ok(switches(controls))
        }
        ("GET", ["_sim", "faults"]) => Ok(Answer::json(&controls.describe_faults())),
        ("POST", ["_sim", "faults"]) => {
            let fault = serde_json::from_slice(&request.body)
                .map_err(|error| invalid(format!("the fault: {error}")))?;
            controls.order(fault).map_err(invalid)?;
            Ok(Answer::empty())
        }
        ("DELETE", ["_sim", "faults"]) => {
            lock(&controls.faults).clear();
            Ok(Answer::empty())
        }
        ("POST", ["_sim", "release"]) => {
            controls.release.send_replace(());
            Ok(Answer::empty())
        }
        (method, _) => {
            let message = format!("{method} {} is no control call", request.path);
            Err(Refusal::new(Code::UnsupportedOperation, message))
        }
    }
}

fn switches(controls: &Controls) -> Answer {
    let switches = serde_json::to_value(controls.switches().as_ref());
    Answer::json(&switches.expect("switches are plain values"))
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
    let frames = pieces.map(|piece| Ok::<_, Cut>(Frame::data(piece)));
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
