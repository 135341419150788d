//! Projects, logstores, shards and indexes: the calls that set things up.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::clock::Moment;
use crate::sim::http::Request;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::shard::{Scene, Shard};
use crate::sim::store::{Project, Store};

/// ListLogstores gives at most so many names (aliyun, ListLogstore).
const NAMES_MAX: usize = 500;

/// CreateProject: the body names the project, as the Host need not.
pub fn create_project(
    store: &Store,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    let body = body(request)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    store.create_project(text("projectName"), text("description"), scene)?;
    Ok(Answer::empty())
}

pub fn create_logstore(
    project: &Project,
    request: &Request,
    shards_default: u32,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    project.create_logstore(body(request)?, shards_default, scene)?;
    Ok(Answer::empty())
}

pub fn update_logstore(
    logstore: &Logstore,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    logstore.update(body(request)?, scene.create_time_s())?;
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

pub fn create_index(
    logstore: &Logstore,
    request: &Request,
    moment: Moment,
) -> Result<Answer, Refusal> {
    logstore.create_index(Value::Object(body(request)?), moment)?;
    Ok(Answer::empty())
}

pub fn update_index(logstore: &Logstore, request: &Request) -> Result<Answer, Refusal> {
    logstore.update_index(Value::Object(body(request)?))?;
    Ok(Answer::empty())
}

/// SplitShard: at `key`, 32 hexadecimal digits, or in the middle. Gives parent and children.
pub fn split_shard(
    logstore: &Logstore,
    shard: &str,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    let key = request.param("key").filter(|key| !key.is_empty()).map(hash_key).transpose()?;
    Ok(shards(&logstore.split_shard(shard, key, scene)?))
}

/// MergeShards: the shard with the next one. Gives the new one and both parents.
pub fn merge_shards(logstore: &Logstore, shard: &str, scene: Scene<'_>) -> Result<Answer, Refusal> {
    Ok(shards(&logstore.merge_shards(shard, scene)?))
}

pub fn list_shards(logstore: &Logstore) -> Answer {
    shards(&logstore.shards())
}

fn shards(shards: &[Arc<Shard>]) -> Answer {
    Answer::json(&shards.iter().map(|shard| shard.describe()).collect())
}

/// A hash key as requests spell it.
pub fn hash_key(text: &str) -> Result<u128, Refusal> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let message = format!("key={text} does not have 32 hexadecimal digits");
        return Err(Refusal::new(Code::ParameterInvalid, message));
    }
    Ok(u128::from_str_radix(text, 16).expect("32 hexadecimal digits are 128 bits"))
}

/// The body, a JSON object.
fn body(request: &Request) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(&request.body)
        .map_err(|error| Refusal::new(Code::ParameterInvalid, format!("the body: {error}")))
}
