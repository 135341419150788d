//! Projects, logstores and indexes.

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::sls::answer::Failure;
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;

/// How a logstore is made.
#[derive(Debug, Clone)]
pub struct NewLogstore {
    /// 1 to 3650, which means for ever.
    pub ttl_days: u32,
    /// 1 to 100.
    pub shards: u32,
    /// Whether SLS divides a shard that has too much to do.
    pub auto_split: bool,
    /// How many shards there may be then: 1 to 256.
    pub shards_max: u32,
}

impl Client {
    /// Whether the project exists.
    pub async fn has_project(&self) -> Result<bool, Failure> {
        found(self.call(Call::new(Method::GET, "/")).await, "ProjectNotExist")
            .map(|it| it.is_some())
    }

    /// Makes the project, described as Dify describes it.
    pub async fn create_project(&self, project: &str) -> Result<(), Failure> {
        self.send(Method::POST, "/", &json!({"projectName": project, "description": "dify"})).await
    }

    /// A logstore's settings; `None` when there is no such logstore.
    pub async fn logstore(&self, logstore: &str) -> Result<Option<Value>, Failure> {
        self.get(format!("/logstores/{logstore}"), "LogStoreNotExist").await
    }

    /// Makes a logstore.
    pub async fn create_logstore(&self, logstore: &str, new: &NewLogstore) -> Result<(), Failure> {
        let mut body = json!({
            "logstoreName": logstore,
            "ttl": new.ttl_days,
            "shardCount": new.shards,
            "autoSplit": new.auto_split,
            "enable_tracking": false,
        });
        if new.auto_split {
            body["maxSplitShard"] = json!(new.shards_max);
        }
        self.send(Method::POST, "/logstores", &body).await
    }

    /// Splits a shard in two; it takes no more writes then, its children do. `key`: the first one of
    /// the second child.
    pub async fn split_shard(&self, logstore: &str, shard: u32, key: &str) -> Result<(), Failure> {
        let call = Call::new(Method::POST, format!("/logstores/{logstore}/shards/{shard}"))
            .query("action", "split")
            .query("key", key);
        self.call(call).await.map(|_| ())
    }

    /// Deletes a logstore with all that is in it; one that is not there is deleted.
    pub async fn delete_logstore(&self, logstore: &str) -> Result<(), Failure> {
        let call = Call::new(Method::DELETE, format!("/logstores/{logstore}"));
        found(self.call(call).await, "LogStoreNotExist").map(|_| ())
    }

    /// A logstore's index; `None` when it has none.
    pub async fn index(&self, logstore: &str) -> Result<Option<Value>, Failure> {
        self.get(format!("/logstores/{logstore}/index"), "IndexConfigNotExist").await
    }

    /// Makes a logstore's index.
    pub async fn create_index(&self, logstore: &str, index: &Value) -> Result<(), Failure> {
        self.send(Method::POST, &format!("/logstores/{logstore}/index"), index).await
    }

    /// Replaces a logstore's index, whole.
    pub async fn update_index(&self, logstore: &str, index: &Value) -> Result<(), Failure> {
        self.send(Method::PUT, &format!("/logstores/{logstore}/index"), index).await
    }

    async fn get(&self, path: String, absent_code: &str) -> Result<Option<Value>, Failure> {
        match found(self.call(Call::new(Method::GET, path)).await, absent_code)? {
            Some(answer) => Ok(Some(parse(&answer.body, "JSON")?)),
            None => Ok(None),
        }
    }

    pub(in crate::sls) async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(), Failure> {
        let mut call = Call::new(method, path).header("content-type", "application/json");
        call.body = Bytes::from(body.to_string());
        self.call(call).await.map(|_| ())
    }
}

/// Makes "it is not there" a value. The documents spell some codes with an s at the end.
pub(in crate::sls) fn found<T>(
    answer: Result<T, Failure>,
    absent_code: &str,
) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(failure) if failure.is(absent_code) || failure.is(&format!("{absent_code}s")) => {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}
