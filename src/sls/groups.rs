//! Consumer groups, which nobody consumes with: SLS makes a name once, and so they tell a process
//! whether somebody else sends under the same ledger's name, or another ledger's.
//!
//! A logstore has at most 30, and a name is unique in its project (aliyun, CreateConsumerGroup), so
//! the name says which logstore it is for. No page limits its length; ours stays below the 63
//! characters that other names of SLS may have up to the 99,999th process.

use std::fmt;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::record::table::Table;
use crate::sls::admin::found;
use crate::sls::answer::Failure;
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;

/// The most that a logstore may have (aliyun, CreateConsumerGroup).
pub const GROUPS_MAX: usize = 30;

const PREFIX: &str = "dify-sls-backfill-";

/// A consumer group as SLS keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Group {
    pub name: String,
    /// Seconds; a consumer that is silent for longer loses its shards. The group itself stays.
    pub timeout: u32,
}

/// What the name of a group of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupName {
    pub ledger_id: Uuid,
    /// The number of the process.
    pub number: i64,
    pub table: Table,
}

impl GroupName {
    /// Reads a group's name; `None`: it is none of this program's.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let (ledger_id, number, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let table = Table::ALL.into_iter().find(|table| word(*table) == kind)?;
        let (ledger_id, number) = (ledger_id.parse().ok()?, number.parse().ok()?);
        parts.next().is_none().then_some(Self { ledger_id, number, table })
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ledger_id, number, table } = self;
        write!(f, "{PREFIX}{}-{number}-{}", ledger_id.simple(), word(*table))
    }
}

fn word(table: Table) -> &'static str {
    match table {
        Table::Runs => "runs",
        Table::NodeExecutions => "nodes",
    }
}

impl Client {
    /// All consumer groups of a logstore.
    pub async fn groups(&self, logstore: &str) -> Result<Vec<Group>, Failure> {
        let call = Call::new(Method::GET, format!("/logstores/{logstore}/consumergroups"));
        parse(&self.call(call).await?.body, "a list of consumer groups")
    }

    /// Makes a consumer group; `ConsumerGroupAlreadyExist` when the project has the name.
    pub async fn create_group(&self, logstore: &str, group: &Group) -> Result<(), Failure> {
        let body = json!({"consumerGroup": group.name, "timeout": group.timeout, "order": false});
        self.send(Method::POST, &format!("/logstores/{logstore}/consumergroups"), &body).await
    }

    /// Deletes a consumer group; one that is not there is deleted.
    pub async fn delete_group(&self, logstore: &str, name: &str) -> Result<(), Failure> {
        let path = format!("/logstores/{logstore}/consumergroups/{name}");
        found(self.call(Call::new(Method::DELETE, path)).await, "ConsumerGroupNotExist").map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_ledger_process_and_logstore() {
        let name = GroupName {
            ledger_id: Uuid::from_u128(7),
            number: 99_999,
            table: Table::NodeExecutions,
        };
        let text = name.to_string();
        assert_eq!(text, "dify-sls-backfill-00000000000000000000000000000007-99999-nodes");
        assert_eq!(text.len(), 62);
        assert_eq!(GroupName::parse(&text), Some(name));
        for text in [
            "",
            "consumers",
            "dify-sls-backfill-",
            "dify-sls-backfill-7-1-runs",
            "dify-sls-backfill-00000000000000000000000000000007-x-runs",
            "dify-sls-backfill-00000000000000000000000000000007-1-else",
            "dify-sls-backfill-00000000000000000000000000000007-1-runs-2",
        ] {
            assert_eq!(GroupName::parse(text), None, "{text}");
        }
    }
}
