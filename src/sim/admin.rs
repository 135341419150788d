//! Projects, logstores and indexes: the calls that set things up.

use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::{Project, Store};

/// ListLogstores gives at most so many names (aliyun, ListLogstore).
const NAMES_MAX: usize = 500;

/// CreateProject: the body names the project, as the Host need not.
pub fn create_project(store: &Store, request: &Request, now_s: i64) -> Result<Answer, Refusal> {
    let body = body(request)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    store.create_project(text("projectName"), text("description"), now_s)?;
    Ok(Answer::empty())
}

pub fn create_logstore(
    project: &Project,
    request: &Request,
    shards_default: u32,
    now_s: i64,
) -> Result<Answer, Refusal> {
    project.create_logstore(body(request)?, shards_default, now_s)?;
    Ok(Answer::empty())
}

pub fn update_logstore(
    logstore: &Logstore,
    request: &Request,
    now_s: i64,
) -> Result<Answer, Refusal> {
    logstore.update(body(request)?, now_s)?;
    Ok(Answer::empty())
}

/// ListLogstores, from `offset` on, `size` names that contain `logstoreName`.
pub fn list_logstores(project: &Project, request: &Request) -> Result<Answer, Refusal> {
    let number = |name: &str, default: usize| match request.param(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| {
            Refusal::new(Code::ParameterInvalid, format!("{name}={text} is not a number"))
        }),
    };
    let (offset, size) = (number("offset", 0)?, number("size", NAMES_MAX)?.min(NAMES_MAX));
    let wanted = request.param("logstoreName").unwrap_or_default();
    let mut names = project.logstore_names();
    names.retain(|name| name.contains(wanted));
    let total = names.len();
    let page: Vec<_> = names.into_iter().skip(offset).take(size).collect();
    Ok(Answer::json(&json!({"count": page.len(), "total": total, "logstores": page})))
}

pub fn create_index(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    logstore.create_index(Value::Object(body(request)?))?;
    Ok(Answer::empty())
}

pub fn update_index(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    logstore.update_index(Value::Object(body(request)?))?;
    Ok(Answer::empty())
}

/// The body, a JSON object.
fn body(request: &Request) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(&request.body)
        .map_err(|error| Refusal::new(Code::ParameterInvalid, format!("the body: {error}")))
}
