//! Which call of SLS a request is, by its method, path and `type`.

use hyper::Method;

use crate::sim::answer::{Code, Refusal};
use crate::sim::fault::Kind;
use crate::sim::http::Request;

/// A call, with the names that stand in its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    CreateProject,
    GetProject,
    DeleteProject,
    CreateLogstore,
    ListLogstores,
    DeleteLogstore { logstore: &'a str },
    Group { logstore: &'a str, call: GroupCall<'a> },
    Logstore { logstore: &'a str, call: LogstoreCall },
    Shard { logstore: &'a str, shard: &'a str, call: ShardCall },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogstoreCall {
    Get,
    Update,
    CreateIndex,
    UpdateIndex,
    GetIndex,
    DeleteIndex,
    ListShards,
    /// `routed`: by hash key.
    PutLogs {
        routed: bool,
    },
    GetLogs,
    GetLogsV2,
    GetHistograms,
    CreateDeleteTask,
    ListDeleteTasks,
    GetDeleteTask,
    DeleteLogs,
}

/// About consumer groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupCall<'a> {
    Create,
    List,
    Delete(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCall {
    GetCursor,
    GetCursorTime,
    PullLogs,
    Split,
    Merge,
}

impl<'a> Route<'a> {
    /// Fails with 404 for what is not imitated.
    pub fn of(request: &'a Request) -> Result<Self, Refusal> {
        let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        let method = &request.method;
        let unknown = || {
            let message = format!("{method} {} is no call that the local SLS knows", request.path);
            Err(Refusal::new(Code::UnsupportedOperation, message))
        };
        let kind = request.param("type");
        Ok(match segments[..] {
            [] if method == Method::POST => Self::CreateProject,
            [] if method == Method::GET => Self::GetProject,
            [] if method == Method::DELETE => Self::DeleteProject,
            ["logstores"] if method == Method::POST => Self::CreateLogstore,
            ["logstores"] if method == Method::GET => Self::ListLogstores,
            // The next cursor alone (aliyun, PullLogs).
            ["logstores", logstore, "shards", shard]
                if method == Method::HEAD && matches!(kind, Some("log" | "logs")) =>
            {
                Self::Shard { logstore, shard, call: ShardCall::PullLogs }
            }
            ["logstores", logstore, "shards", shard] if method == Method::GET => {
                let call = match kind {
                    Some("cursor") => ShardCall::GetCursor,
                    Some("cursor_time") => ShardCall::GetCursorTime,
                    Some("log" | "logs") => ShardCall::PullLogs,
                    _ => return unknown(),
                };
                Self::Shard { logstore, shard, call }
            }
            ["logstores", logstore, "shards", shard]
                if method == Method::POST && request.param("action").is_some() =>
            {
                let call = match request.param("action") {
                    Some("split") => ShardCall::Split,
                    Some("merge") => ShardCall::Merge,
                    _ => return unknown(),
                };
                Self::Shard { logstore, shard, call }
            }
            ["logstores", logstore, "consumergroups"] if method == Method::POST => {
                Self::Group { logstore, call: GroupCall::Create }
            }
            ["logstores", logstore, "consumergroups"] if method == Method::GET => {
                Self::Group { logstore, call: GroupCall::List }
            }
            ["logstores", logstore, "consumergroups", group] if method == Method::DELETE => {
                Self::Group { logstore, call: GroupCall::Delete(group) }
            }
            ["logstores", logstore] if method == Method::DELETE => {
                Self::DeleteLogstore { logstore }
            }
            ["logstores", logstore, ref rest @ ..] => match logstore_call(method, rest, kind) {
                Some(call) => Self::Logstore { logstore, call },
                None => return unknown(),
            },
            _ => return unknown(),
        })
    }

    /// What faults take the call for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Logstore { call: LogstoreCall::PutLogs { .. }, .. } => Kind::Put,
            Self::Logstore { call: LogstoreCall::ListShards, .. } => Kind::Shards,
            Self::Logstore {
                call: LogstoreCall::GetLogs | LogstoreCall::GetLogsV2 | LogstoreCall::GetHistograms,
                ..
            } => Kind::Search,
            Self::Shard { call: ShardCall::PullLogs, .. } => Kind::Pull,
            Self::Shard { call: ShardCall::GetCursor | ShardCall::GetCursorTime, .. } => {
                Kind::Cursor
            }
            _ => Kind::Admin,
        }
    }

    /// Whether a call by `method` may change something that is kept.
    pub fn changes(&self, method: &Method) -> bool {
        let reads = method == Method::GET || method == Method::HEAD;
        !reads && self.kind() != Kind::Search
    }

    /// The logstore that it is about, if it is about one.
    pub fn logstore(&self) -> Option<&'a str> {
        match *self {
            Self::DeleteLogstore { logstore }
            | Self::Group { logstore, .. }
            | Self::Logstore { logstore, .. }
            | Self::Shard { logstore, .. } => Some(logstore),
            _ => None,
        }
    }
}

fn logstore_call(method: &Method, rest: &[&str], kind: Option<&str>) -> Option<LogstoreCall> {
    Some(match (method.as_str(), rest, kind) {
        ("GET", [], None) => LogstoreCall::Get,
        ("GET", [], Some("log")) => LogstoreCall::GetLogs,
        ("GET", [], Some("histogram")) => LogstoreCall::GetHistograms,
        ("POST", ["deletelogtasks"], _) => LogstoreCall::CreateDeleteTask,
        ("GET", ["deletelogtasks"], _) => LogstoreCall::ListDeleteTasks,
        ("GET", ["deletelogtasks", _], _) => LogstoreCall::GetDeleteTask,
        ("POST", ["deletelogs"], _) => LogstoreCall::DeleteLogs,
        ("PUT", [], _) => LogstoreCall::Update,
        ("POST", ["logs"], _) => LogstoreCall::GetLogsV2,
        ("POST", ["index"], _) => LogstoreCall::CreateIndex,
        ("PUT", ["index"], _) => LogstoreCall::UpdateIndex,
        ("GET", ["index"], _) => LogstoreCall::GetIndex,
        ("DELETE", ["index"], _) => LogstoreCall::DeleteIndex,
        ("GET", ["shards"], _) => LogstoreCall::ListShards,
        // The Go SDK leaves `/shards/lb` out.
        ("POST", [] | ["shards", "lb"], _) => LogstoreCall::PutLogs { routed: false },
        ("POST", ["shards", "route"], _) => LogstoreCall::PutLogs { routed: true },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_route() {
        let shard = |call| Route::Shard { logstore: "a", shard: "0", call };
        let logstore = |call| Route::Logstore { logstore: "a", call };
        let group = |call| Route::Group { logstore: "a", call };
        for (method, target, wanted) in [
            (Method::POST, "/", Some(Route::CreateProject)),
            (Method::GET, "/", Some(Route::GetProject)),
            (Method::GET, "/logstores/", Some(Route::ListLogstores)),
            (Method::GET, "/logstores/a", Some(logstore(LogstoreCall::Get))),
            (Method::GET, "/logstores/a?type=log", Some(logstore(LogstoreCall::GetLogs))),
            (Method::GET, "/logstores/a?type=context_log", None),
            (Method::POST, "/logstores/a", Some(logstore(LogstoreCall::PutLogs { routed: false }))),
            (
                Method::POST,
                "/logstores/a/shards/route?key=1",
                Some(logstore(LogstoreCall::PutLogs { routed: true })),
            ),
            (Method::GET, "/logstores/a/shards", Some(logstore(LogstoreCall::ListShards))),
            (Method::GET, "/logstores/a/shards/0?type=cursor", Some(shard(ShardCall::GetCursor))),
            (Method::GET, "/logstores/a/shards/0?type=log", Some(shard(ShardCall::PullLogs))),
            (Method::HEAD, "/logstores/a/shards/0?type=log", Some(shard(ShardCall::PullLogs))),
            (Method::HEAD, "/logstores/a/shards/0?type=cursor", None),
            (Method::GET, "/logstores/a/shards/0", None),
            (Method::POST, "/logstores/a/shards/0", None),
            (Method::POST, "/logstores/a/shards/0?action=split", Some(shard(ShardCall::Split))),
            (Method::POST, "/logstores/a/shards/0?action=merge", Some(shard(ShardCall::Merge))),
            (Method::POST, "/logstores/a/shards/0?action=fold", None),
            (Method::DELETE, "/", Some(Route::DeleteProject)),
            (Method::DELETE, "/logstores/a/index", Some(logstore(LogstoreCall::DeleteIndex))),
            (Method::POST, "/logstores/a/consumergroups", Some(group(GroupCall::Create))),
            (Method::GET, "/logstores/a/consumergroups", Some(group(GroupCall::List))),
            (Method::DELETE, "/logstores/a/consumergroups/g", Some(group(GroupCall::Delete("g")))),
            (Method::GET, "/logstores/a/consumergroups/g", None),
            (Method::DELETE, "/logstores/a", Some(Route::DeleteLogstore { logstore: "a" })),
            (Method::GET, "/machinegroups", None),
            (Method::PATCH, "/", None),
        ] {
            let mut request = Request::for_test(target, &[], b"");
            request.method = method;
            let route = Route::of(&request);
            let status = route.as_ref().err().map(|refusal| refusal.status);
            assert_eq!(status, wanted.is_none().then_some(404), "{target}");
            assert_eq!(route.ok(), wanted, "{target}");
        }
        assert_eq!(logstore(LogstoreCall::PutLogs { routed: true }).kind(), Kind::Put);
        assert_eq!(shard(ShardCall::PullLogs).kind(), Kind::Pull);
        assert_eq!(shard(ShardCall::GetCursorTime).kind(), Kind::Cursor);
        assert_eq!(logstore(LogstoreCall::Get).kind(), Kind::Admin);
        assert_eq!(logstore(LogstoreCall::GetLogsV2).kind(), Kind::Search);
        assert!(!logstore(LogstoreCall::GetLogsV2).changes(&Method::POST));
        assert!(logstore(LogstoreCall::Update).changes(&Method::PUT));
        assert!(!logstore(LogstoreCall::Get).changes(&Method::GET));
        assert_eq!(shard(ShardCall::Split).kind(), Kind::Admin);
    }
}
