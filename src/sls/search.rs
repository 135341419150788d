//! GetLogs: when the oldest log that a search finds is of.

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;

/// The oldest log that a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oldest {
    /// Its log time, Unix seconds, to the minute (SLS orders no finer); `None`: none was found.
    pub time_s: Option<i64>,
    /// `false`: SLS has not looked through everything; ask again.
    pub is_complete: bool,
}

#[derive(Deserialize)]
struct Found {
    /// A text in every version of the documents; their examples also show a number.
    #[serde(rename = "__time__")]
    time: Value,
}

impl Client {
    /// Looks for the oldest log of `logstore` that matches `query`, with a log time before `to` (Unix
    /// seconds). Finds only what is indexed already.
    pub async fn oldest(&self, logstore: &str, to: i64, query: &str) -> Result<Oldest, Failure> {
        let call = Call::new(Method::GET, format!("/logstores/{logstore}"))
            .query("type", "log")
            .query("from", 0)
            .query("to", to)
            .query("topic", "")
            .query("query", query)
            .query("line", 1)
            .query("offset", 0)
            .query("reverse", false);
        let answer = self.call(call).await?;
        let found: Vec<Found> = parse(&answer.body, "a list of logs")?;
        Ok(Oldest {
            time_s: found.first().map(|found| time_s(&found.time)).transpose()?,
            is_complete: answer.header("x-log-progress")?.eq_ignore_ascii_case("complete"),
        })
    }
}

fn time_s(time: &Value) -> Result<i64, Failure> {
    let number = time.as_i64().or_else(|| time.as_str()?.parse().ok());
    number.ok_or_else(|| Failure {
        next: NextAction::Stop,
        code: String::new(),
        what: format!("SLS's answer has the log time {time}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_log_time_is_a_text_or_a_number() {
        assert_eq!(time_s(&json!("1700000000")), Ok(1_700_000_000));
        assert_eq!(time_s(&json!(1_700_000_000)), Ok(1_700_000_000));
        assert!(time_s(&json!("today")).is_err());
    }
}
