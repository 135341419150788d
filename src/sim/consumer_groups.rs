//! Consumer groups: made, listed and deleted. Nobody consumes with them here.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use crate::sim::answer::{Answer, Code, Refusal};
use crate::sim::http::Request;
use crate::sim::sync::lock;

/// The most that a logstore has (aliyun, CreateConsumerGroup).
const GROUPS_MAX: usize = 30;

/// The groups of a project, by name: a name is unique in the project (aliyun, CreateConsumerGroup).
#[derive(Default)]
pub struct ConsumerGroups {
    groups: Mutex<BTreeMap<String, Group>>,
}

struct Group {
    logstore: String,
    timeout: u64,
    order: bool,
}

impl ConsumerGroups {
    /// CreateConsumerGroup.
    pub fn create(&self, logstore: &str, request: &Request) -> Result<Answer, Refusal> {
        let invalid = || {
            let message = "consumerGroup or timeout is of error format";
            Refusal::new(Code::JsonInfoInvalid, message)
        };
        let body: Map<String, Value> =
            serde_json::from_slice(&request.body).map_err(|_| invalid())?;
        let name = body.get("consumerGroup").and_then(Value::as_str);
        let name = name.filter(|name| !name.is_empty()).ok_or_else(invalid)?;
        let timeout = body.get("timeout").and_then(Value::as_u64).ok_or_else(invalid)?;
        let order = body.get("order").and_then(Value::as_bool).ok_or_else(invalid)?;
        let mut groups = lock(&self.groups);
        if groups.contains_key(name) {
            let message = "consumer group already exist";
            return Err(Refusal::new(Code::ConsumerGroupAlreadyExist, message));
        }
        if groups.values().filter(|group| group.logstore == logstore).count() >= GROUPS_MAX {
            let message = format!("a logstore has at most {GROUPS_MAX} consumer groups");
            return Err(Refusal::new(Code::ProjectQuotaExceed, message));
        }
        groups.insert(name.to_owned(), Group { logstore: logstore.to_owned(), timeout, order });
        Ok(Answer::empty())
    }

    /// ListConsumerGroup.
    pub fn list(&self, logstore: &str) -> Answer {
        let groups = lock(&self.groups);
        let list = groups.iter().filter(|(_, group)| group.logstore == logstore).map(
            |(name, Group { timeout, order, .. })| {
                json!({"name": name, "timeout": timeout, "order": order})
            },
        );
        Answer::json(&Value::Array(list.collect()))
    }

    /// DeleteConsumerGroup.
    pub fn delete(&self, logstore: &str, name: &str) -> Result<Answer, Refusal> {
        let mut groups = lock(&self.groups);
        if groups.get(name).is_none_or(|group| group.logstore != logstore) {
            return Err(Refusal::new(Code::ConsumerGroupNotExist, "consumer group not exist"));
        }
        groups.remove(name);
        Ok(Answer::empty())
    }

    /// A logstore's groups go with it.
    pub fn forget(&self, logstore: &str) {
        lock(&self.groups).retain(|_, group| group.logstore != logstore);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(answer: Result<Answer, Refusal>) -> Option<String> {
        answer.err().map(|refusal| refusal.code)
    }

    fn create(groups: &ConsumerGroups, logstore: &str, name: &str) -> Option<String> {
        let body = json!({"consumerGroup": name, "timeout": 300, "order": false}).to_string();
        let mut request = Request::for_test("/", &[], b"");
        request.body = body.into();
        code(groups.create(logstore, &request))
    }

    #[test]
    fn a_name_is_made_once_in_a_project_and_listed_by_logstore() {
        let groups = ConsumerGroups::default();
        assert_eq!(create(&groups, "a", "one"), None);
        for logstore in ["a", "b"] {
            let code = create(&groups, logstore, "one");
            assert_eq!(code.as_deref(), Some("ConsumerGroupAlreadyExist"));
        }
        assert_eq!(create(&groups, "b", "two"), None);
        assert_eq!(code(groups.delete("a", "two")).as_deref(), Some("ConsumerGroupNotExist"));
        assert_eq!(code(groups.delete("a", "one")), None);
        assert_eq!(create(&groups, "b", "one"), None, "a deleted name is free");
        groups.forget("b");
        assert_eq!(create(&groups, "a", "two"), None);
        let request = Request::for_test("/", &[], br#"{"consumerGroup": "x", "order": true}"#);
        assert_eq!(code(groups.create("a", &request)).as_deref(), Some("JsonInfoInvalid"));
    }

    #[test]
    fn a_logstore_has_thirty_at_most() {
        let groups = ConsumerGroups::default();
        for number in 0..GROUPS_MAX {
            assert_eq!(create(&groups, "a", &format!("group-{number}")), None);
        }
        assert_eq!(create(&groups, "a", "more").as_deref(), Some("ProjectQuotaExceed"));
        assert_eq!(create(&groups, "b", "more"), None);
    }
}
