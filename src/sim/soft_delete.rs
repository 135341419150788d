//! Soft delete: logs that match a query are hidden from queries. PullLogs still gives them.
//!
//! SLS does it in a task of its own (`deletelogtasks`) or, for logstores made with `enableModify`,
//! at once (`deletelogs`). Here both are done when they are answered.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::search::scan::{self, Filter};
use crate::sim::store::logstore::Logstore;
use crate::sim::store::shard::Scene;
use crate::sim::switch::SoftDelete;
use crate::sim::sync::lock;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deletion {
    #[serde(default)]
    from: i64,
    #[serde(default)]
    to: i64,
    #[serde(default)]
    query: String,
    #[serde(default)]
    topic: String,
    row_id: Option<Value>,
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
        "query": deletion.query,
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
    if logstore.describe()["enableModify"] != true {
        let message = format!("logstore {} was not made with enableModify", logstore.name());
        return Err(Refusal::new(Code::ParameterInvalid, message));
    }
    let hidden = hide(logstore, &deletion, scene)?;
    // The documents say affectedRows, the Python SDK reads the other.
    Ok(Answer::json(&json!({"affectedRows": hidden, "affected_rows": hidden})))
}

fn read(request: &Request, scene: Scene<'_>) -> Result<Deletion, Refusal> {
    check_on(scene)?;
    let invalid = |message| Refusal::new(Code::ParameterInvalid, message);
    let deletion: Deletion = serde_json::from_slice(&request.body)
        .map_err(|error| invalid(format!("the body: {error}")))?;
    match deletion.row_id {
        None => Ok(deletion),
        Some(_) => Err(invalid("deleting by rowId is not imitated".to_owned())),
    }
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
    let filter = Filter { from, to, topic: &deletion.topic, query: &deletion.query };
    let hits = scan::find(logstore, filter, scene)?;
    lock(&logstore.deleted).hide(hits.iter().map(|hit| hit.place));
    Ok(hits.len())
}
