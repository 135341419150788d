//! Serves one request, read to its end: faults, signature, route, answer. No sockets here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use crate::sim::admin;
use crate::sim::answer::{Answer, Body, Code, Cut, Refusal};
use crate::sim::auth::{self, Clock};
use crate::sim::clock::Moment;
use crate::sim::control::{self, Controls};
use crate::sim::fault::{Action, EarlyAnswer, Fault, Kind, Refused};
use crate::sim::http::Request;
use crate::sim::journal::{Entry, Journal};
use crate::sim::pull;
use crate::sim::put;
use crate::sim::put::Manner;
use crate::sim::request_log::{Line, RequestLog};
use crate::sim::route::{GroupCall, LogstoreCall, Route, ShardCall};
use crate::sim::search;
use crate::sim::search::Subject;
use crate::sim::search::state::QueryStates;
use crate::sim::soft_delete;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::shard::Scene;
use crate::sim::store::{Project, Store};
use crate::sim::switch::{NumberRecorded, Switches};
use crate::sim::sync::lock;
use crate::sim::tamper;
use crate::wire::sign::{Credentials, http_date};

/// How long the first half of an answer that is cut has to arrive.
const HALF_ANSWER: Duration = Duration::from_millis(50);

/// How the local SLS behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may call.
    pub credentials: Credentials,
    /// Shards of a logstore whose creation does not say how many; 1 or more.
    pub shards_default: u32,
    /// PutLogs counts requests and bytes, and neither decodes nor stores: for measuring a client.
    pub count_only: bool,
    /// How it behaves at the start, where SLS's behaviour is not known or not sure.
    pub switches: Switches,
    /// What goes wrong from the start.
    pub faults: Vec<Fault>,
    /// The folder where everything is kept; without one, only memory keeps it.
    pub data: Option<PathBuf>,
    /// Where every request is written down.
    pub request_log: Option<PathBuf>,
}

/// What became of a request that was not refused.
struct Done {
    answer: Answer,
    /// Where PutLogs has written.
    shard: Option<u32>,
}

type Response = Result<hyper::Response<Body>, Cut>;

/// The service: its settings and everything that outlives a request.
pub struct Service {
    settings: Settings,
    store: Store,
    queries: QueryStates,
    controls: Controls,
    request_ids: AtomicU64,
    request_log: RequestLog,
    /// Held while a request is served, so that nobody sees what is not on disk yet.
    journal: Option<Mutex<Journal>>,
}

impl Service {
    /// Serves again what `settings.data` remembers.
    ///
    /// Fails if a fault of `settings` makes no sense, or a file cannot be opened or read.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        ensure!(settings.shards_default > 0, "a logstore has at least one shard");
        let controls = Controls::new(settings.switches.clone());
        for fault in &settings.faults {
            controls.order(fault.clone()).map_err(anyhow::Error::msg)?;
        }
        let request_log = RequestLog::open(settings.request_log.as_deref());
        let mut service = Self {
            store: Store::default(),
            queries: QueryStates::default(),
            controls,
            request_ids: AtomicU64::new(0),
            request_log: request_log.context("open the request log")?,
            journal: None,
            settings,
        };
        if let Some(folder) = &service.settings.data {
            let journal = Journal::open(folder, |entry| service.replay(&entry));
            let journal = journal.with_context(|| format!("open {}", folder.display()))?;
            service.journal = Some(Mutex::new(journal));
        }
        Ok(service)
    }

    /// Serves `entry` as it was served when it was recorded.
    fn replay(&self, entry: &Entry) -> anyhow::Result<()> {
        let switches = entry.switches.without_quotas_and_waits();
        let moment = Moment { unix_ms: entry.unix_ms, ..Moment::now(0) };
        let request = entry.request()?;
        self.perform(&request, Scene { moment, switches: &switches }, Some(entry))
            .map_err(|refusal| anyhow::anyhow!("{}: {}", refusal.code, refusal.message))?;
        Ok(())
    }

    /// Answers `request`, or what is to be said of one that could not be read.
    pub async fn serve(self: Arc<Self>, request: Result<Request, Refusal>) -> Response {
        let request = match request {
            Ok(request) if request.path.starts_with("/_sim/") => {
                let answer = self.control(&request);
                let answer = answer.unwrap_or_else(|refusal| Answer::from(&refusal));
                return Ok(self.finish(answer, self.now()));
            }
            Ok(request) => request,
            Err(refusal) => {
                self.controls.stats.request();
                return Ok(self.finish(self.refuse(refusal), self.now()));
            }
        };
        self.controls.stats.request();
        let fault = self.controls.decide(Route::of(&request).as_ref().ok());
        if !self.request_log.is_on() {
            return self.serve_or_fail(request, fault).await;
        }
        let came = self.now();
        let (method, target) = (request.method.to_string(), request.target.clone());
        let project = request.project().map(str::to_owned).ok();
        let (body_bytes, fault_text) = (request.body.len(), fault.as_ref().map(Action::to_json));
        let response = Arc::clone(&self).serve_or_fail(request, fault).await;
        let request_id = response.as_ref().ok().and_then(|response| {
            response.headers().get("x-log-requestid")?.to_str().ok().map(str::to_owned)
        });
        self.request_log.write(&Line {
            unix_ms: came.unix_ms,
            method: &method,
            target: &target,
            project: project.as_deref(),
            body_bytes,
            fault: fault_text,
            status: response.as_ref().ok().map(|response| response.status().as_u16()),
            request_id,
            took_ms: u64::try_from(came.steady.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        response
    }

    async fn serve_or_fail(self: Arc<Self>, request: Request, fault: Option<Action>) -> Response {
        let Some(fault) = fault else { return Ok(self.respond(&request)) };
        tracing::debug!(?fault, method = %request.method, path = request.path, "fault");
        // A task of its own: when the client goes away, what it began goes on.
        let served = tokio::spawn(self.serve_with_fault(request, fault));
        served.await.unwrap_or_else(|_| Err(Cut))
    }

    async fn serve_with_fault(self: Arc<Self>, request: Request, fault: Action) -> Response {
        match fault {
            Action::CutBefore => return Err(Cut),
            Action::CutAfter => {
                self.respond(&request);
                return Err(Cut);
            }
            Action::CutMiddle => return Ok(cut_in_the_middle(self.respond(&request)).await),
            Action::Refuse(refused) => return Ok(self.refuse_as_ordered(refused)),
            Action::StoreLateMs { after_ms, answer } => {
                Arc::clone(&self).store_late(request, Duration::from_millis(after_ms));
                return match answer {
                    EarlyAnswer::Cut(_) => Err(Cut),
                    EarlyAnswer::Refuse(refused) => Ok(self.refuse_as_ordered(refused)),
                };
            }
            Action::DelayMs(delay_ms) => {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            }
            Action::Hold => self.controls.hold().await,
            Action::HoldBefore { then_cut } => {
                self.controls.hold().await;
                if then_cut {
                    return Err(Cut);
                }
            }
            Action::HoldAfter { then_cut } => {
                let response = self.respond(&request);
                self.controls.hold().await;
                return if then_cut { Err(Cut) } else { Ok(response) };
            }
            Action::NoRequestId => {
                let mut response = self.respond(&request);
                response.headers_mut().remove("x-log-requestid");
                return Ok(response);
            }
            Action::Html => {
                let page = Bytes::from_static(b"<html><body>It works!</body></html>");
                return Ok(Answer::bytes("text/html", page).into_response());
            }
        }
        Ok(self.respond(&request))
    }

    /// Lets `request` take effect `after` from now; nobody hears of it.
    fn store_late(self: Arc<Self>, request: Request, after: Duration) {
        let arrived_s = self.now().unix_s();
        self.controls.late_begins();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let switches = self.controls.switches();
            let moment = Moment::now(switches.clock_offset_s);
            let checked_s =
                if switches.late_store_checks_age { moment.unix_s() } else { arrived_s };
            let scene = Scene { moment, switches: &switches };
            if let Err(refusal) = self.answer(&request, scene, checked_s) {
                self.refuse(refusal);
            }
            self.controls.late_ends();
        });
    }

    /// Serves `request` now.
    fn respond(&self, request: &Request) -> hyper::Response<Body> {
        let switches = self.controls.switches();
        let moment = Moment::now(switches.clock_offset_s);
        let scene = Scene { moment, switches: &switches };
        let answer = self.answer(request, scene, moment.unix_s());
        let answer = answer.unwrap_or_else(|refusal| {
            let older = switches.older_spelling;
            self.refuse(if older { refusal.in_older_spelling() } else { refusal })
        });
        tracing::debug!(
            method = %request.method,
            path = request.path,
            status = answer.status,
            "served"
        );
        self.finish(answer, moment)
    }

    fn control(&self, request: &Request) -> Result<Answer, Refusal> {
        if !is_tampering(request) {
            return control::answer(request, &self.store, &self.controls);
        }
        let switches = self.controls.switches();
        let scene = Scene { moment: Moment::now(switches.clock_offset_s), switches: &switches };
        self.perform_and_record(request, scene)
    }

    /// What SLS would answer. The age of the signature is checked as if it were `checked_s`.
    fn answer(
        &self,
        request: &Request,
        scene: Scene<'_>,
        checked_s: i64,
    ) -> Result<Answer, Refusal> {
        let clock = Clock { now_s: checked_s, life_s: scene.switches.signature_life_s };
        auth::verify(request, &self.settings.credentials, clock)?;
        self.perform_and_record(request, scene)
    }

    fn perform_and_record(&self, request: &Request, scene: Scene<'_>) -> Result<Answer, Refusal> {
        let Some(journal) = &self.journal else {
            return self.perform(request, scene, None).map(|done| done.answer);
        };
        let mut journal = lock(journal);
        if journal.is_broken() {
            let message = "the journal cannot be written";
            return Err(Refusal::new(Code::InternalServerError, message));
        }
        let done = self.perform(request, scene, None);
        if let Some(entry) = entry(request, scene, &done)
            && let Err(error) = journal.append(&entry)
        {
            tracing::error!("write the journal: {error:#}; nothing is served any more");
            return Err(Refusal::new(Code::InternalServerError, "the journal cannot be written"));
        }
        done.map(|done| done.answer)
    }

    /// What SLS would answer to a request that is allowed; `again`: to one that was served before.
    fn perform(
        &self,
        request: &Request,
        scene: Scene<'_>,
        again: Option<&Entry>,
    ) -> Result<Done, Refusal> {
        if is_tampering(request) {
            let answer = tamper::tamper(&self.store, request, scene.moment)?;
            return Ok(Done { answer, shard: None });
        }
        let project = || self.store.project(request.project()?);
        let answer = match Route::of(request)? {
            Route::CreateProject => admin::create_project(&self.store, request, scene)?,
            Route::GetProject => Answer::json(&project()?.describe()),
            Route::DeleteProject => {
                self.store.delete_project(request.project()?)?;
                Answer::empty()
            }
            Route::ListLogstores => admin::list_logstores(&*project()?, request)?,
            Route::CreateLogstore => {
                let shards_default = self.settings.shards_default;
                admin::create_logstore(&*project()?, request, shards_default, scene)?
            }
            Route::DeleteLogstore { logstore } => {
                project()?.delete_logstore(logstore)?;
                Answer::empty()
            }
            Route::Logstore { logstore, call: LogstoreCall::PutLogs { routed } } => {
                let logstore = project()?.logstore(logstore)?;
                return self.put(&logstore, request, routed, scene, again);
            }
            Route::Group { logstore, call } => {
                let project = project()?;
                let logstore = project.logstore(logstore)?;
                match call {
                    GroupCall::Create => {
                        project.consumer_groups.create(logstore.name(), request)?
                    }
                    GroupCall::List => project.consumer_groups.list(logstore.name()),
                    GroupCall::Delete(group) => {
                        project.consumer_groups.delete(logstore.name(), group)?
                    }
                }
            }
            Route::Logstore { logstore, call } => {
                self.answer_logstore(&project()?.logstore(logstore)?, call, request, scene)?
            }
            Route::Shard { logstore, shard, call } => {
                let project = project()?;
                let logstore = project.logstore(logstore)?;
                answer_shard(&project, &logstore, shard, call, request, scene)?
            }
        };
        Ok(Done { answer, shard: None })
    }

    fn put(
        &self,
        logstore: &Logstore,
        request: &Request,
        routed: bool,
        scene: Scene<'_>,
        again: Option<&Entry>,
    ) -> Result<Done, Refusal> {
        let number_only = again.is_some_and(|entry| entry.number_only);
        let manner = Manner {
            routed,
            count_only: self.settings.count_only || number_only,
            shard: again.and_then(|entry| entry.shard),
        };
        let stored = put::put_logs(logstore, request, manner, scene)?;
        if again.is_none() {
            self.controls.stats.put(stored, request.body.len());
        }
        Ok(Done { answer: Answer::empty(), shard: Some(stored.shard) })
    }

    fn answer_logstore(
        &self,
        logstore: &Arc<Logstore>,
        call: LogstoreCall,
        request: &Request,
        scene: Scene<'_>,
    ) -> Result<Answer, Refusal> {
        let state = self.queries.of(logstore);
        let subject = Subject { logstore, state: &state, scene };
        match call {
            LogstoreCall::Get => Ok(Answer::json(&logstore.describe())),
            LogstoreCall::Update => admin::update_logstore(logstore, request, scene),
            LogstoreCall::CreateIndex => admin::create_index(logstore, request, scene.moment),
            LogstoreCall::UpdateIndex => admin::update_index(logstore, request),
            LogstoreCall::GetIndex => Ok(Answer::json(&logstore.index()?.json)),
            LogstoreCall::DeleteIndex => {
                logstore.delete_index()?;
                Ok(Answer::empty())
            }
            LogstoreCall::ListShards => Ok(admin::list_shards(logstore)),
            LogstoreCall::GetLogs => search::get_logs(subject, request),
            LogstoreCall::GetLogsV2 => search::get_logs_v2(subject, request),
            LogstoreCall::GetHistograms => search::get_histograms(subject, request),
            LogstoreCall::CreateDeleteTask => soft_delete::create_task(logstore, request, scene),
            LogstoreCall::ListDeleteTasks => soft_delete::list_tasks(logstore, scene),
            LogstoreCall::GetDeleteTask => soft_delete::get_task(logstore, request, scene),
            LogstoreCall::DeleteLogs => soft_delete::delete_logs(logstore, request, scene),
            LogstoreCall::PutLogs { .. } => unreachable!("`perform` has served it"),
        }
    }

    fn now(&self) -> Moment {
        Moment::now(self.controls.switches().clock_offset_s)
    }

    fn refuse_as_ordered(&self, refused: Refused) -> hyper::Response<Body> {
        let Refused { status, code, message } = refused;
        self.finish(self.refuse(Refusal { status, code, message }), self.now())
    }

    /// Counts a refusal and makes it an answer.
    fn refuse(&self, refusal: Refusal) -> Answer {
        self.controls.stats.error(&refusal.code);
        tracing::debug!(status = refusal.status, code = refusal.code, message = refusal.message);
        Answer::from(&refusal)
    }

    /// Adds what every answer has.
    fn finish(&self, answer: Answer, moment: Moment) -> hyper::Response<Body> {
        let id = self.request_ids.fetch_add(1, Ordering::Relaxed);
        let now_s = moment.unix_s();
        answer
            .with("x-log-requestid", format!("{now_s:08X}{id:016X}"))
            .with("x-log-time", now_s.to_string())
            .with("date", http_date(now_s))
            .into_response()
    }
}

fn answer_shard(
    project: &Project,
    logstore: &Logstore,
    shard: &str,
    call: ShardCall,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    let found = || logstore.shard(shard);
    let view = logstore.view(scene.moment);
    match call {
        ShardCall::GetCursor => pull::get_cursor(&*found()?, request, view),
        ShardCall::GetCursorTime => pull::get_cursor_time(&*found()?, request, view),
        ShardCall::PullLogs => pull::pull_logs(project, &*found()?, request, view, scene.switches),
        ShardCall::Split => admin::split_shard(logstore, shard, request, scene),
        ShardCall::Merge => admin::merge_shards(logstore, shard, scene),
    }
}

/// Whether it is the one control call that changes what is stored.
fn is_tampering(request: &Request) -> bool {
    request.method == Method::POST && request.path == "/_sim/tamper"
}

/// What is to be remembered of `request`, if it has changed anything.
fn entry(request: &Request, scene: Scene<'_>, done: &Result<Done, Refusal>) -> Option<Entry> {
    let entry = || Entry::of(request, scene.moment.unix_ms, scene.switches);
    if is_tampering(request) {
        return done.is_ok().then(entry);
    }
    let route = Route::of(request).ok().filter(|route| route.changes(&request.method))?;
    match done {
        Ok(done) => Some(Entry { shard: done.shard, ..entry() }),
        Err(refusal) => {
            let uses_number = route.kind() == Kind::Put
                && scene.switches.number_recorded == NumberRecorded::BeforeQuota
                && refusal.code.ends_with("WriteQuotaExceed");
            uses_number.then(|| Entry { number_only: true, ..entry() })
        }
    }
}

/// The same answer, whose body breaks off in its middle; an empty one is announced as longer.
async fn cut_in_the_middle(response: hyper::Response<Body>) -> hyper::Response<Body> {
    let (mut parts, body) = response.into_parts();
    let whole = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len().max(2)));
    let half = whole.slice(..whole.len() / 2);
    let begin = stream::once(async { Ok(Frame::data(half)) });
    let end = stream::once(async {
        tokio::time::sleep(HALF_ANSWER).await;
        Err(Cut)
    });
    let body = StreamBody::new(begin.chain(end)).boxed_unsync();
    hyper::Response::from_parts(parts, body)
}
