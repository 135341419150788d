//! Soft delete: logs that match a query are hidden from queries. PullLogs still gives them.
//!
//! SLS does it in a task of its own (`deletelogtasks`) or, for logstores made with `enableModify`,
//! at once (`deletelogs`), there also for one log by its row id. Here both are done when they are
//! answered.

use serde::Deserialize;
use serde_json::json;

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::search::scan::{self, Filter};
use crate::sim::store::logstore::Logstore;
use crate::sim::store::place::Place;
use crate::sim::store::shard::Scene;
use crate::sim::switch::SoftDelete;
use crate::sim::sync::lock;

/// What to delete: of both calls.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deletion {
    from: i64,
    to: i64,
    query: Option<String>,
    #[serde(default)]
    topic: String,
    row_id: Option<String>,
}

/// DeleteLogs as a task: the answer names it.
pub fn create_task(
    logstore: &Logstore,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    let deletion = read(request, scene)?;
    let hidden = hide(logstore, &deletion, scene)?;
    let mut deleted = lock(&logstore.deleted);
    let id = format!("{}-{}", scene.moment.unix_ms, deleted.tasks.len());
    deleted.tasks.push(json!({
        "taskId": id,
        "from": deletion.from,
        "to": deletion.to,
        "query": deletion.query.as_deref().unwrap_or_default(),
        "createTime": scene.moment.unix_s(),
        "status": "Success",
        "progress": 100,
        "affectedRows": hidden,
    }));
    Ok(Answer::json(&json!({"taskId": id})))
}

pub fn list_tasks(logstore: &Logstore, scene: Scene<'_>) -> Result<Answer, Refusal> {
    check_on(scene)?;
    let tasks = lock(&logstore.deleted).tasks.clone();
    Ok(Answer::json(&json!({"count": tasks.len(), "total": tasks.len(), "tasks": tasks})))
}

/// GetDeleteLogsStatus of the task that the path ends with.
pub fn get_task(
    logstore: &Logstore,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    check_on(scene)?;
    let id = request.segments.last().map(String::as_str).unwrap_or_default();
    let deleted = lock(&logstore.deleted);
    let task = deleted.tasks.iter().find(|task| task["taskId"] == id);
    let message = || Refusal::new(Code::ParameterInvalid, format!("task {id} does not exist"));
    task.map(Answer::json).ok_or_else(message)
}

/// DeleteLogs at once: the answer tells how many.
pub fn delete_logs(
    logstore: &Logstore,
    request: &Request,
    scene: Scene<'_>,
) -> Result<Answer, Refusal> {
    let deletion = read(request, scene)?;
    if !logstore.is_modifiable() {
        let message = format!("logstore {} was not made with enableModify", logstore.name());
        return Err(Refusal::new(Code::ParameterInvalid, message));
    }
    let hidden = match (&deletion.row_id, &deletion.query) {
        // The row id goes first if both are given.
        (Some(row_id), _) => hide_row(logstore, &deletion, row_id, scene)?,
        (None, Some(_)) => hide(logstore, &deletion, scene)?,
        (None, None) => return Err(invalid("rowId or query is required".to_owned())),
    };
    // One page of aliyun's says the header, another affectedRows; the Python SDK reads the last.
    let body = json!({"affectedRows": hidden, "affected_rows": hidden});
    Ok(Answer::json(&body).with("x-log-affectedrows", hidden.to_string()))
}

fn read(request: &Request, scene: Scene<'_>) -> Result<Deletion, Refusal> {
    check_on(scene)?;
    serde_json::from_slice(&request.body).map_err(|error| invalid(format!("the body: {error}")))
}

fn check_on(scene: Scene<'_>) -> Result<(), Refusal> {
    match scene.switches.soft_delete {
        SoftDelete::On => Ok(()),
        SoftDelete::Off => {
            Err(Refusal::new(Code::UnsupportedOperation, "this region has no soft delete"))
        }
    }
}

/// Hides what the query finds now; gives how many logs that are.
fn hide(logstore: &Logstore, deletion: &Deletion, scene: Scene<'_>) -> Result<usize, Refusal> {
    let Deletion { from, to, .. } = *deletion;
    let query = deletion.query.as_deref().unwrap_or_default();
    let filter = Filter { from, to, topic: &deletion.topic, query };
    let hits = scan::find(logstore, filter, scene)?;
    lock(&logstore.deleted).hide(hits.iter().map(|hit| hit.place));
    Ok(hits.len())
}

/// Hides one log if a query for its time would find it; gives how many logs that are.
fn hide_row(
    logstore: &Logstore,
    deletion: &Deletion,
    row_id: &str,
    scene: Scene<'_>,
) -> Result<usize, Refusal> {
    let place = Place::of_row_id(row_id);
    let place = place.ok_or_else(|| invalid(format!("rowId {row_id} is none of ours")))?;
    let Deletion { from, to, .. } = *deletion;
    let hits = scan::find(logstore, Filter { from, to, topic: "", query: "*" }, scene)?;
    let is_there = hits.iter().any(|hit| hit.place == place);
    lock(&logstore.deleted).hide(is_there.then_some(place));
    Ok(usize::from(is_there))
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}
