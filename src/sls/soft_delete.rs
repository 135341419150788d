//! Soft delete: hides logs from search and SQL, for good. PullLogs still gives them until they
//! expire. Not every region has it (soft-delete page).

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use bytes::Bytes;

use crate::sls::answer::Failure;
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;

#[derive(Deserialize)]
struct TaskBody {
    #[serde(rename = "taskId")]
    task_id: String,
}

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    Running,
    Done,
    /// In SLS's own word.
    Failed(String),
}

impl Client {
    /// Has logs of `[from, to)` (log time, Unix seconds) hidden that match `query`; gives the task
    /// that does it. Not to be repeated blindly: nobody knows whether a lost answer was a success,
    /// but what is hidden is not found again.
    pub async fn hide_logs(
        &self,
        logstore: &str,
        from: i64,
        to: i64,
        query: &str,
    ) -> Result<String, Failure> {
        let body = json!({"from": from, "to": to, "query": query, "topic": "", "accurate": true});
        let mut call = Call::new(Method::POST, format!("/logstores/{logstore}/deletelogtasks"))
            .header("content-type", "application/json");
        call.body = Bytes::from(body.to_string());
        let body: TaskBody = parse(&self.call(call).await?.body, "a task of soft delete")?;
        Ok(body.task_id)
    }

    /// How such a task stands.
    pub async fn hide_state(&self, logstore: &str, task_id: &str) -> Result<TaskState, Failure> {
        let path = format!("/logstores/{logstore}/deletelogtasks/{task_id}");
        let body: Value = parse(&self.call(Call::new(Method::GET, path)).await?.body, "a task")?;
        Ok(state(body["status"].as_str().unwrap_or_default()))
    }
}

fn state(status: &str) -> TaskState {
    match status.to_ascii_lowercase().as_str() {
        "success" | "succeeded" | "done" | "finished" => TaskState::Done,
        "failed" | "fail" | "canceled" | "cancelled" => TaskState::Failed(status.to_owned()),
        _ => TaskState::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_runs_until_it_is_done_or_has_failed() {
        assert_eq!(state("Success"), TaskState::Done);
        assert_eq!(state("Failed"), TaskState::Failed("Failed".to_owned()));
        assert_eq!(state("Running"), TaskState::Running);
        assert_eq!(state(""), TaskState::Running);
    }
}
