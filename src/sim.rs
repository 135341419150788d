//! The local SLS: serves the part of SLS's HTTP interface that this program uses, from memory.
//!
//! ```text
//! connection → http: Request → fault? → auth → route → put · pull · search · admin → store
//!                        └→ /_sim/…: control
//! ```
//!
//! It judges requests as strictly as SLS is documented to: signatures, dates, sizes, encodings and
//! idempotent writes. It keeps everything in memory and forgets it at the end.

pub mod admin;
pub mod answer;
pub mod auth;
pub mod control;
pub mod fault;
pub mod groups;
pub mod http;
pub mod pull;
pub mod put;
pub mod route;
pub mod search;
pub mod store;

use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::sim::answer::{Answer, Body, Refusal};
use crate::sim::control::Stats;
use crate::sim::fault::{Action, Faults, Kind};
use crate::sim::http::{ReadError, Request};
use crate::sim::route::{LogstoreCall, Route, ShardCall};
use crate::sim::store::logstore::Logstore;
use crate::sim::store::{Store, lock};
use crate::wire::sign::{Credentials, http_date};

/// How the local SLS behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may call.
    pub credentials: Credentials,
    /// Shards of a logstore whose creation does not say how many; 1 or more.
    pub shards_default: u32,
    /// PutLogs counts requests and bytes, and neither decodes nor stores: for measuring a client.
    pub count_only: bool,
}

/// The service: its settings and everything that outlives a request.
struct Service {
    settings: Settings,
    store: Store,
    stats: Stats,
    faults: Mutex<Faults>,
    request_ids: AtomicU64,
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct Cut;

/// Serves until `shutdown` resolves; then open connections are cut.
///
/// Fails if the listener does.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    ensure!(settings.shards_default > 0, "a logstore has at least one shard");
    let service = Arc::new(Service {
        settings,
        store: Store::default(),
        stats: Stats::default(),
        faults: Mutex::default(),
        request_ids: AtomicU64::new(0),
    });
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(Arc::clone(&service), stream));
                    }
                    // The client was gone before it was served.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error).context("accept a connection"),
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(service: Arc<Service>, stream: TcpStream) {
    // An answer is two small writes; without this the second may wait for the client's ACK.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection went away");
        return;
    }
    let handler = service_fn(|request| service.serve(request));
    let connection = hyper::server::conn::http1::Builder::new();
    if let Err(error) = connection.serve_connection(TokioIo::new(stream), handler).await {
        tracing::debug!(%error, "the connection ended");
    }
}

impl Service {
    async fn serve(
        &self,
        incoming: hyper::Request<hyper::body::Incoming>,
    ) -> Result<hyper::Response<Body>, Cut> {
        let now_s = unix_now_s();
        match Request::read(incoming).await {
            Ok(request) if request.path.starts_with("/_sim/") => {
                let answer = control::answer(&request, &self.store, &self.stats, &self.faults);
                let answer = answer.unwrap_or_else(|refusal| Answer::from(&refusal));
                Ok(self.finish(answer, now_s))
            }
            Ok(request) => {
                self.stats.request();
                self.serve_with_faults(&request).await
            }
            Err(ReadError::Broken(error)) => {
                tracing::debug!(%error, "a request broke off");
                Err(Cut)
            }
            Err(ReadError::Refused(refusal)) => {
                self.stats.request();
                Ok(self.finish(self.refuse(&refusal), now_s))
            }
        }
    }

    /// Serves `request`, unless a fault that waits for it says otherwise.
    async fn serve_with_faults(&self, request: &Request) -> Result<hyper::Response<Body>, Cut> {
        let kind = Route::of(request).map_or(Kind::Any, |route| route.kind());
        let fault = lock(&self.faults).decide(kind);
        if let Some(fault) = &fault {
            tracing::debug!(?fault, method = %request.method, path = request.path, "fault");
        }
        match fault {
            Some(Action::CutBefore) => return Err(Cut),
            Some(Action::Refuse { status, code, message }) => {
                let refusal = Refusal { status, code, message };
                return Ok(self.finish(self.refuse(&refusal), unix_now_s()));
            }
            Some(Action::Html) => {
                let page = Bytes::from_static(b"<html><body>It works!</body></html>");
                return Ok(Answer::bytes("text/html", page).into_response());
            }
            Some(Action::DelayMs(delay_ms)) => {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            }
            Some(Action::CutAfter | Action::NoRequestId) | None => {}
        }
        let now_s = unix_now_s();
        let answer = self.answer(request, now_s).unwrap_or_else(|refusal| self.refuse(&refusal));
        tracing::debug!(
            method = %request.method,
            path = request.path,
            status = answer.status,
            "served"
        );
        let mut response = self.finish(answer, now_s);
        match fault {
            Some(Action::CutAfter) => return Err(Cut),
            Some(Action::NoRequestId) => {
                response.headers_mut().remove("x-log-requestid");
            }
            _ => {}
        }
        Ok(response)
    }

    /// What SLS would answer.
    fn answer(&self, request: &Request, now_s: i64) -> Result<Answer, Refusal> {
        auth::verify(request, &self.settings.credentials, now_s)?;
        let project = || self.store.project(request.project()?);
        match Route::of(request)? {
            Route::CreateProject => admin::create_project(&self.store, request, now_s),
            Route::GetProject => Ok(Answer::json(&project()?.describe())),
            Route::ListLogstores => admin::list_logstores(&*project()?, request),
            Route::CreateLogstore => {
                let shards_default = self.settings.shards_default;
                admin::create_logstore(&*project()?, request, shards_default, now_s)
            }
            Route::DeleteLogstore { logstore } => {
                project()?.delete_logstore(logstore)?;
                Ok(Answer::empty())
            }
            Route::DeleteGroup { logstore, group } => {
                let project = project()?;
                project.groups.delete(project.logstore(logstore)?.name(), group)
            }
            Route::Logstore { logstore, call: LogstoreCall::CreateGroup } => {
                let project = project()?;
                project.groups.create(project.logstore(logstore)?.name(), request)
            }
            Route::Logstore { logstore, call: LogstoreCall::ListGroups } => {
                let project = project()?;
                Ok(project.groups.list(project.logstore(logstore)?.name()))
            }
            Route::Logstore { logstore, call } => {
                self.answer_logstore(&*project()?.logstore(logstore)?, call, request, now_s)
            }
            Route::Shard { logstore, shard, call } => {
                let logstore = project()?.logstore(logstore)?;
                let shard = logstore.shard(shard)?;
                match call {
                    ShardCall::GetCursor => pull::get_cursor(shard, request),
                    ShardCall::GetCursorTime => pull::get_cursor_time(shard, request, now_s),
                    ShardCall::PullLogs => pull::pull_logs(shard, request),
                }
            }
        }
    }

    fn answer_logstore(
        &self,
        logstore: &Logstore,
        call: LogstoreCall,
        request: &Request,
        now_s: i64,
    ) -> Result<Answer, Refusal> {
        match call {
            LogstoreCall::Get => Ok(Answer::json(&logstore.describe())),
            LogstoreCall::Update => admin::update_logstore(logstore, request, now_s),
            LogstoreCall::CreateIndex => admin::create_index(logstore, request),
            LogstoreCall::UpdateIndex => admin::update_index(logstore, request),
            LogstoreCall::GetIndex => Ok(Answer::json(&logstore.index()?.json)),
            LogstoreCall::DeleteIndex => {
                logstore.delete_index()?;
                Ok(Answer::empty())
            }
            LogstoreCall::ListShards => Ok(pull::list_shards(logstore)),
            LogstoreCall::PutLogs { routed } => {
                let count_only = self.settings.count_only;
                let stored = put::put_logs(logstore, request, routed, count_only, now_s)?;
                self.stats.put(stored, request.body.len());
                Ok(Answer::empty())
            }
            LogstoreCall::GetLogs => search::get_logs(logstore, request),
            LogstoreCall::GetLogsV2 => search::get_logs_v2(logstore, request),
            LogstoreCall::CreateGroup | LogstoreCall::ListGroups => {
                unreachable!("groups belong to the project, which answers for them")
            }
            LogstoreCall::GetHistograms => search::get_histograms(logstore, request),
        }
    }

    /// Counts a refusal and makes it an answer.
    fn refuse(&self, refusal: &Refusal) -> Answer {
        self.stats.error(&refusal.code);
        tracing::debug!(status = refusal.status, code = refusal.code, message = refusal.message);
        Answer::from(refusal)
    }

    /// Adds what every answer has.
    fn finish(&self, answer: Answer, now_s: i64) -> hyper::Response<Body> {
        let id = self.request_ids.fetch_add(1, Ordering::Relaxed);
        answer
            .with("x-log-requestid", format!("{now_s:08X}{id:016X}"))
            .with("x-log-time", now_s.to_string())
            .with("date", http_date(now_s))
            .into_response()
    }
}

fn unix_now_s() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
