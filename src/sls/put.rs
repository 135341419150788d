//! PutLogs, by hash key and number.

use bytes::Bytes;
use reqwest::Method;

use crate::sls::answer::Failure;
use crate::sls::client::{Call, Client};

/// One PutLogs request; made once, sent as often as the protocol allows, the same each time.
#[derive(Debug, Clone)]
pub struct Put<'a> {
    pub logstore: &'a str,
    /// 32 hex digits.
    pub hash_key: &'a str,
    pub number: u64,
    /// The LogGroup as one raw LZ4 block.
    pub body: &'a Bytes,
    /// Bytes of the LogGroup.
    pub raw_size: usize,
    /// Unix seconds, SLS's clock.
    pub signed_at: i64,
}

impl Client {
    /// Makes one attempt; gives SLS's request id when the batch is stored.
    pub async fn put(&self, put: &Put<'_>) -> Result<String, Failure> {
        let mut call = Call::new(Method::POST, format!("/logstores/{}/shards/route", put.logstore))
            .query("key", put.hash_key)
            .query("seqid", put.number)
            .header("content-type", "application/x-protobuf")
            .header("x-log-compresstype", "lz4")
            .header("x-log-bodyrawsize", put.raw_size);
        call.body = put.body.clone();
        call.signed_at = Some(put.signed_at);
        let answer = self.call(call).await?;
        Ok(answer.header("x-log-requestid")?.to_owned())
    }
}
