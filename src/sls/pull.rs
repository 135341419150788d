//! Reads a shard as it was written: log group by log group, summed up by our tag.
//!
//! This way needs no index, truncates nothing, and gives what was sent. Groups of others (Dify's
//! own writer, another ledger) pass by. A group of ours may in theory be split by the server, so
//! sums go by tag, not by group.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use uuid::Uuid;

use crate::record::digest::{Digest, Sum};
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::{Call, Client};
use crate::wire::compression::lz4_decompress;
use crate::wire::log_group::{LogGroupView, LogView, split_list};

/// The tag that names ledger and batch: `{ledger id}/{batch id}`.
pub const BATCH_TAG: &str = "__batch__";

/// A shard as ListShards tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Shard {
    #[serde(rename = "shardID")]
    pub id: u32,
    /// `readwrite` or `readonly`; a read-only one can still be read.
    pub status: String,
    #[serde(rename = "inclusiveBeginKey")]
    pub begin_key: String,
    #[serde(rename = "exclusiveEndKey")]
    pub end_key: String,
}

impl Shard {
    /// Whether it takes writes.
    pub fn is_writable(&self) -> bool {
        self.status.eq_ignore_ascii_case("readwrite")
    }
}

/// A page of a shard.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// A LogGroupList.
    pub raw: Bytes,
    /// How many groups it holds.
    pub groups: u32,
    pub next_cursor: String,
}

/// A page, summed up.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// What was found of each batch of the ledger.
    pub batches: BTreeMap<Uuid, Sum>,
    /// Groups without a tag of this ledger.
    pub foreign_groups: u64,
}

#[derive(Deserialize)]
struct CursorBody {
    cursor: String,
}

#[derive(Deserialize)]
struct CursorTimeBody {
    cursor_time: i64,
}

impl Client {
    /// All shards of a logstore, read-only ones too.
    pub async fn shards(&self, logstore: &str) -> Result<Vec<Shard>, Failure> {
        let answer =
            self.call(Call::new(Method::GET, format!("/logstores/{logstore}/shards"))).await?;
        parse(&answer.body, "a list of shards")
    }

    /// A cursor: `begin`, `end` (where the next group will be written), or a receive time.
    pub async fn cursor(&self, logstore: &str, shard: u32, from: &str) -> Result<String, Failure> {
        let call = Call::new(Method::GET, format!("/logstores/{logstore}/shards/{shard}"))
            .query("type", "cursor")
            .query("from", from);
        let body: CursorBody = parse(&self.call(call).await?.body, "a cursor")?;
        Ok(body.cursor)
    }

    /// When SLS received the group at `cursor` (GetCursorTime), Unix seconds.
    pub async fn cursor_time(
        &self,
        logstore: &str,
        shard: u32,
        cursor: &str,
    ) -> Result<i64, Failure> {
        let call = Call::new(Method::GET, format!("/logstores/{logstore}/shards/{shard}"))
            .query("type", "cursor_time")
            .query("cursor", cursor);
        let body: CursorTimeBody = parse(&self.call(call).await?.body, "a cursor's time")?;
        Ok(body.cursor_time)
    }

    /// At most `groups_max` (1 to 1000) groups from `cursor`. An empty page with the same cursor
    /// is the end of what is written.
    pub async fn pull(
        &self,
        logstore: &str,
        shard: u32,
        cursor: &str,
        groups_max: u32,
    ) -> Result<Pulled, Failure> {
        self.pull_until(logstore, shard, cursor, None, groups_max).await
    }

    /// The same, of what lies before `end_cursor`.
    pub async fn pull_until(
        &self,
        logstore: &str,
        shard: u32,
        cursor: &str,
        end_cursor: Option<&str>,
        groups_max: u32,
    ) -> Result<Pulled, Failure> {
        let mut call = Call::new(Method::GET, format!("/logstores/{logstore}/shards/{shard}"))
            .query("type", "logs")
            .query("cursor", cursor)
            .query("count", groups_max)
            .header("accept", "application/x-protobuf")
            .header("accept-encoding", "lz4");
        if let Some(end_cursor) = end_cursor {
            call = call.query("end_cursor", end_cursor);
        }
        let answer = self.call(call).await?;
        let number = |name: &str| -> Result<usize, Failure> {
            let text = answer.header(name)?;
            text.parse().map_err(|_| Failure::unknown(format!("SLS's {name} is {text:?}")))
        };
        let (raw_size, groups) = (number("x-log-bodyrawsize")?, number("x-log-count")?);
        let raw = match answer.header("x-log-compresstype") {
            Ok(kind) if kind.eq_ignore_ascii_case("lz4") && raw_size > 0 => {
                let raw = lz4_decompress(&answer.body, raw_size);
                raw.map_err(|error| Failure::unknown(format!("PullLogs: {error}")))?.into()
            }
            _ => answer.body.clone(),
        };
        Ok(Pulled {
            raw,
            groups: u32::try_from(groups).unwrap_or(u32::MAX),
            next_cursor: answer.header("x-log-cursor")?.to_owned(),
        })
    }
}

/// Sums a page up by batch. `ingest_time` does not matter: a digest covers the time as stored.
pub fn sum_up(raw: &[u8], ledger_id: Uuid) -> anyhow::Result<Sums> {
    let mut sums = Sums::default();
    let mut fields = Vec::new();
    for bytes in split_list(raw).context("read a page of SLS")? {
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
        let batch_id = group.tag(BATCH_TAG).and_then(|tag| batch_of(tag, ledger_id));
        let Some(batch_id) = batch_id else {
            sums.foreign_groups += 1;
            continue;
        };
        let sum = sums.batches.entry(batch_id).or_default();
        sum.groups += 1;
        for LogView { time, contents, .. } in group.logs {
            fields.clear();
            fields.extend_from_slice(&contents);
            sum.rows += 1;
            sum.digest.add(Digest::of_log(time.unwrap_or(0), &mut fields));
        }
    }
    Ok(sums)
}

/// The batch that a tag of ledger `ledger_id` names.
fn batch_of(tag: &[u8], ledger_id: Uuid) -> Option<Uuid> {
    parse_tag(tag).filter(|(ledger, _)| *ledger == ledger_id).map(|(_, batch)| batch)
}

/// Ledger and batch that a tag names.
pub(in crate::sls) fn parse_tag(tag: &[u8]) -> Option<(Uuid, Uuid)> {
    let (ledger, batch) = std::str::from_utf8(tag).ok()?.split_once('/')?;
    ledger.parse().ok().zip(batch.parse().ok())
}

pub(in crate::sls) fn parse<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    what: &str,
) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure {
        next: NextAction::Stop,
        code: String::new(),
        what: format!("SLS's answer is not {what}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::log_group::LogGroupWriter;

    #[test]
    fn groups_are_summed_up_by_our_tag() {
        let (ledger, batch) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let tag = format!("{ledger}/{batch}");
        let other = format!("{}/{batch}", Uuid::from_u128(9));
        let mut list = Vec::new();
        let mut wanted = Sum { rows: 2, groups: 2, ..Sum::default() };
        for (value, tag) in
            [("a", Some(tag.as_str())), ("b", Some(&tag)), ("c", Some(&other)), ("d", None)]
        {
            let mut writer = LogGroupWriter::default();
            writer.begin_log(5, 0);
            writer.field("id", value.as_bytes());
            writer.end_log();
            let tags: Vec<_> = tag.iter().map(|tag| (BATCH_TAG, *tag)).collect();
            writer.finish(None, Some("s"), &tags);
            list.push(0x0a);
            list.push(u8::try_from(writer.bytes().len()).unwrap());
            list.extend_from_slice(writer.bytes());
            if value < "c" {
                let mut fields = [(b"id".as_slice(), value.as_bytes())];
                wanted.digest.add(Digest::of_log(5, &mut fields));
            }
        }
        let sums = sum_up(&list, ledger).unwrap();
        assert_eq!(sums.batches, BTreeMap::from([(batch, wanted)]));
        assert_eq!(sums.foreign_groups, 2);
        assert!(sum_up(&list[..list.len() - 1], ledger).is_err());
    }
}
