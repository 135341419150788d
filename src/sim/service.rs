//! Serves one request, read to its end: faults, signature, route, answer. No sockets here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HeaderValue};

use crate::sim::answer::{Answer, Body, Cut, Refusal};
use crate::sim::auth::{self, Clock};
use crate::sim::clock::Moment;
use crate::sim::control::{self, Controls};
use crate::sim::fault::{Action, EarlyAnswer, Refused};
use crate::sim::http::Request;
use crate::sim::route::{LogstoreCall, Route, ShardCall};
use crate::sim::store::logstore::Logstore;
use crate::sim::store::shard::Scene;
use crate::sim::store::{Project, Store};
use crate::sim::{Settings, admin, pull, put, search};
use crate::wire::sign::http_date;

/// How long the first half of an answer that is cut has to arrive.
const HALF_ANSWER: Duration = Duration::from_millis(50);

type Response = Result<hyper::Response<Body>, Cut>;

/// The service: its settings and everything that outlives a request.
pub struct Service {
    settings: Settings,
    store: Store,
    controls: Controls,
    request_ids: AtomicU64,
}

impl Service {
    /// Fails if a fault of `settings` makes no sense.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let controls = Controls::new(settings.switches.clone());
        for fault in &settings.faults {
            controls.order(fault.clone())?;
        }
        let request_ids = AtomicU64::new(0);
        Ok(Self { settings, store: Store::default(), controls, request_ids })
    }

    /// Answers `request`, or what is to be said of one that could not be read.
    pub async fn serve(self: Arc<Self>, request: Result<Request, Refusal>) -> Response {
        let request = match request {
            Ok(request) if request.path.starts_with("/_sim/") => {
                let answer = control::answer(&request, &self.store, &self.controls);
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
        let Some(fault) = self.controls.decide(Route::of(&request).as_ref().ok()) else {
            return Ok(self.respond(&request));
        };
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
            let judged_s = if switches.late_store_checks_age { moment.unix_s() } else { arrived_s };
            let scene = Scene { moment, switches: &switches };
            if let Err(refusal) = self.answer(&request, scene, judged_s) {
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

    /// What SLS would answer. The age of the signature is judged as if it were `judged_s`.
    fn answer(
        &self,
        request: &Request,
        scene: Scene<'_>,
        judged_s: i64,
    ) -> Result<Answer, Refusal> {
        let clock = Clock { now_s: judged_s, life_s: scene.switches.signature_life_s };
        auth::verify(request, &self.settings.credentials, clock)?;
        let moment = scene.moment;
        let project = || self.store.project(request.project()?);
        match Route::of(request)? {
            Route::CreateProject => admin::create_project(&self.store, request, moment),
            Route::GetProject => Ok(Answer::json(&project()?.describe())),
            Route::DeleteProject => {
                self.store.delete_project(request.project()?)?;
                Ok(Answer::empty())
            }
            Route::ListLogstores => admin::list_logstores(&*project()?, request),
            Route::CreateLogstore => {
                let shards_default = self.settings.shards_default;
                admin::create_logstore(&*project()?, request, shards_default, moment)
            }
            Route::DeleteLogstore { logstore } => {
                project()?.delete_logstore(logstore)?;
                Ok(Answer::empty())
            }
            Route::Logstore { logstore, call } => {
                self.answer_logstore(&*project()?.logstore(logstore)?, call, request, scene)
            }
            Route::Shard { logstore, shard, call } => {
                let project = project()?;
                let logstore = project.logstore(logstore)?;
                answer_shard(&project, &logstore, shard, call, request, scene)
            }
        }
    }

    fn answer_logstore(
        &self,
        logstore: &Logstore,
        call: LogstoreCall,
        request: &Request,
        scene: Scene<'_>,
    ) -> Result<Answer, Refusal> {
        match call {
            LogstoreCall::Get => Ok(Answer::json(&logstore.describe())),
            LogstoreCall::Update => admin::update_logstore(logstore, request, scene.moment),
            LogstoreCall::CreateIndex => admin::create_index(logstore, request, scene.moment),
            LogstoreCall::UpdateIndex => admin::update_index(logstore, request),
            LogstoreCall::GetIndex => Ok(Answer::json(&logstore.index()?.json)),
            LogstoreCall::DeleteIndex => {
                logstore.delete_index()?;
                Ok(Answer::empty())
            }
            LogstoreCall::ListShards => Ok(admin::list_shards(logstore)),
            LogstoreCall::PutLogs { routed } => {
                let count_only = self.settings.count_only;
                let stored = put::put_logs(logstore, request, routed, count_only, scene)?;
                self.controls.stats.put(stored, request.body.len());
                Ok(Answer::empty())
            }
            LogstoreCall::GetLogs => search::get_logs(logstore, request),
            LogstoreCall::GetLogsV2 => search::get_logs_v2(logstore, request),
            LogstoreCall::GetHistograms => search::get_histograms(logstore, request),
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
    match call {
        ShardCall::GetCursor => pull::get_cursor(&*found()?, request, scene.moment),
        ShardCall::GetCursorTime => pull::get_cursor_time(&*found()?, request, scene.moment),
        ShardCall::PullLogs => pull::pull_logs(project, &*found()?, request, scene),
        ShardCall::Split => admin::split_shard(logstore, shard, request, scene),
        ShardCall::Merge => admin::merge_shards(logstore, shard, scene),
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
