//! GetHistograms: how many logs a search finds, without reading them.

use reqwest::Method;
use serde::Deserialize;

use crate::sls::answer::Failure;
use crate::sls::client::{Call, Client};
use crate::sls::pull::parse;

/// How many logs a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub logs: u64,
    /// `false`: SLS has not looked through everything; ask again.
    pub is_complete: bool,
}

#[derive(Deserialize)]
struct Bucket {
    count: u64,
    #[serde(default)]
    progress: String,
}

impl Client {
    /// Counts the logs of `logstore` that match `query`, with a log time in `[from, to)` (Unix
    /// seconds). Finds only what is indexed already.
    pub async fn count_found(
        &self,
        logstore: &str,
        from: i64,
        to: i64,
        query: &str,
    ) -> Result<Counted, Failure> {
        let call = Call::new(Method::GET, format!("/logstores/{logstore}"))
            .query("type", "histogram")
            .query("from", from)
            .query("to", to)
            .query("topic", "")
            .query("query", query);
        let answer = self.call(call).await?;
        let buckets: Vec<Bucket> = parse(&answer.body, "a histogram")?;
        let is_whole = |progress: &str| progress.is_empty() || is_complete(progress);
        Ok(Counted {
            logs: buckets.iter().map(|bucket| bucket.count).sum(),
            is_complete: is_complete(answer.header("x-log-progress")?)
                && buckets.iter().all(|bucket| is_whole(&bucket.progress)),
        })
    }
}

fn is_complete(progress: &str) -> bool {
    progress.eq_ignore_ascii_case("complete")
}
