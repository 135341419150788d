//! SQL on a logstore (GetLogsV2): aggregates over a window of log times.
//!
//! An answer may be a part of the truth: SLS stops after so many bytes or seconds and says
//! `Incomplete` (standard SQL reads 400 MB a query, and takes 55 s). Whoever counts asks again, or
//! for a smaller window. SQL sees only the first 2 KB of a text field (16 KB at most), and only what
//! is indexed.

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;
use crate::wire::compression::lz4_decompress;

/// Rows of an answer, each by the names of its columns; SLS gives all values as texts. Without a
/// LIMIT in the query there are at most 100, and none says that there are more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SqlAnswer {
    pub rows: Vec<BTreeMap<String, String>>,
    /// `false`: SLS has not looked through everything; the rows are of what it has seen.
    pub is_complete: bool,
}

#[derive(Deserialize)]
struct Body {
    meta: Meta,
    data: Vec<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Meta {
    progress: String,
}

impl Client {
    /// Runs `query`, a search, a bar and SQL, on the logs of `logstore` with a log time in
    /// `[from, to)` (Unix seconds).
    pub async fn sql(
        &self,
        logstore: &str,
        from: i64,
        to: i64,
        query: &str,
    ) -> Result<SqlAnswer, Failure> {
        let body = json!({
            "from": from, "to": to, "topic": "", "query": query, "line": 100, "offset": 0,
            "reverse": false,
        });
        let mut call = Call::new(Method::POST, format!("/logstores/{logstore}/logs"))
            .header("content-type", "application/json")
            .header("accept-encoding", "lz4");
        call.body = Bytes::from(body.to_string());
        let answer = self.call(call).await.map_err(busy_is_later)?;
        let is_lz4 = |kind: &str| kind.eq_ignore_ascii_case("lz4");
        let body = match answer.header("x-log-compresstype") {
            Ok(kind) if is_lz4(kind) => {
                let raw_size = answer.header("x-log-bodyrawsize")?.parse().map_err(|_| {
                    Failure::unknown("SLS's x-log-bodyrawsize is no number".to_owned())
                })?;
                lz4_decompress(&answer.body, raw_size)
                    .map_err(|error| Failure::unknown(format!("GetLogs: {error}")))?
            }
            _ => answer.body.to_vec(),
        };
        read(&body)
    }
}

/// Whether a query failed because it asks for too much at once, so that a smaller window may do.
pub fn is_too_much(failure: &Failure) -> bool {
    failure.is("ParameterInvalid") && failure.what.to_ascii_lowercase().contains("exceed")
}

/// Only so many queries of a project run at once (15 with standard SQL); the others are refused
/// with a code that says nothing.
fn busy_is_later(failure: Failure) -> Failure {
    let what = failure.what.to_ascii_lowercase();
    match what.contains("query concurrently") || what.contains("queued queries") {
        true => Failure { next: NextAction::Later, ..failure },
        false => failure,
    }
}

fn read(body: &[u8]) -> Result<SqlAnswer, Failure> {
    let Body { meta, data } = parse(body, "the answer to a query")?;
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let row = |row: BTreeMap<String, Value>| -> BTreeMap<String, String> {
        row.into_iter().map(|(name, value)| (name, text(value))).collect()
    };
    Ok(SqlAnswer {
        rows: data.into_iter().map(row).collect(),
        is_complete: meta.progress.eq_ignore_ascii_case("complete"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_only_if_sls_says_so() {
        let read = |meta: &str| {
            let body = format!(r#"{{"meta":{meta},"data":[{{"logs":"3","ids":2}}]}}"#);
            read(body.as_bytes()).unwrap()
        };
        let whole = read(r#"{"progress":"Complete"}"#);
        assert_eq!((whole.rows[0]["logs"].as_str(), whole.rows[0]["ids"].as_str()), ("3", "2"));
        assert!(whole.is_complete);
        assert!(!read(r#"{"progress":"Incomplete"}"#).is_complete);
    }

    #[test]
    fn a_query_that_asks_for_too_much_is_told_from_one_that_comes_at_a_bad_time() {
        let failure = |what: &str| Failure {
            next: NextAction::Stop,
            code: "ParameterInvalid".to_owned(),
            what: what.to_owned(),
        };
        assert!(is_too_much(&failure("Query exceeded maximum time limit of 55.00s")));
        assert!(!is_too_much(&failure("line 1:8: Column 'x' cannot be resolved")));
        let busy = busy_is_later(failure("user can only run 15 query concurrently"));
        assert_eq!(busy.next, NextAction::Later);
        assert_eq!(busy_is_later(failure("no")).next, NextAction::Stop);
    }
}
