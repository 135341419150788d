//! Reads a shard as it was written: log group by log group, summed up by our tag.
//!
//! This way needs no index, truncates nothing, and gives what was sent. Groups of others (Dify's
//! own writer, another ledger) pass by, however odd they are. A group of ours may in theory be split
//! by the server, so sums go by tag, not by group.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use uuid::Uuid;

use crate::record::digest::{Digest, Sum};
use crate::record::seal::Seal;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::{Call, Client};
use crate::sls::tags::{LOG_SOURCE, Owner, names, owner};
use crate::wire::compression::lz4_decompress;
use crate::wire::log_group::{LogGroupView, LogView, split_list};

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
    /// Those of them that cannot be read whole.
    pub odd_groups: u64,
    /// Groups that name this ledger, and do not bear its seal: somebody else has written them.
    pub unsealed_groups: u64,
    /// The oldest log time (Unix seconds) in groups with another source than ours; `None`: there is
    /// no such group, or none that tells.
    pub others_since: Option<u32>,
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

    /// When SLS received the group at `cursor` (Unix seconds); at the end of a shard, about now.
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
        check_count(&raw, groups)?;
        Ok(Pulled {
            raw,
            groups: u32::try_from(groups).unwrap_or(u32::MAX),
            next_cursor: answer.header("x-log-cursor")?.to_owned(),
        })
    }
}

/// The groups that SLS says it gives are all here: a body that was cut at the end of a group, by a
/// proxy on the way, would be whole to look at, and the cursor would pass over what is missing.
fn check_count(raw: &[u8], groups: usize) -> Result<(), Failure> {
    match split_list(raw) {
        Ok(list) if list.len() == groups => Ok(()),
        Ok(list) => Err(Failure::unknown(format!(
            "PullLogs: {} log groups came, x-log-count says {groups}",
            list.len()
        ))),
        Err(error) => Err(Failure::unknown(format!("PullLogs: {error}"))),
    }
}

/// Sums a page up by batch. `ingest_time` does not matter: a digest covers the time as stored.
///
/// A group of somebody else's is passed over, odd or not; one of the ledger's that cannot be read is
/// an error.
pub fn sum_up(raw: &[u8], seal: &Seal) -> anyhow::Result<Sums> {
    let mut sums = Sums::default();
    let mut fields = Vec::new();
    for bytes in split_list(raw).context("read a page of SLS")? {
        sums.others_since = earliest(sums.others_since, of_others(bytes));
        let batch_id = match owner_of(bytes, seal)? {
            Some(Owner::Own(named)) => named.batch_id,
            Some(Owner::Unsealed(_)) => {
                sums.unsealed_groups += 1;
                continue;
            }
            Some(Owner::Foreign(_) | Owner::Nobody) => {
                sums.foreign_groups += 1;
                sums.odd_groups += u64::from(LogGroupView::parse(bytes).is_err());
                continue;
            }
            None => {
                sums.foreign_groups += 1;
                sums.odd_groups += 1;
                continue;
            }
        };
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
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

/// The oldest log time in a group with another source than ours; `None`: it is ours, or does not
/// tell.
pub(in crate::sls) fn of_others(bytes: &[u8]) -> Option<u32> {
    let envelope = LogGroupView::parse_envelope(bytes).ok()?;
    if envelope.source == Some(LOG_SOURCE.as_bytes()) {
        return None;
    }
    let group = LogGroupView::parse(bytes).ok()?;
    group.logs.iter().filter_map(|log| log.time).min()
}

/// The earlier one of two times, where there are two.
pub(in crate::sls) fn earliest(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    [one, other].into_iter().flatten().min()
}

/// Whose a group is; `None`: nobody's of ours, and it cannot be read. Fails if it is the ledger's own
/// for all that one can see, and cannot be read.
pub fn owner_of(bytes: &[u8], seal: &Seal) -> anyhow::Result<Option<Owner>> {
    match LogGroupView::parse_envelope(bytes) {
        Ok(envelope) => Ok(Some(owner(&envelope, seal))),
        Err(error) if names(bytes, seal.ledger_id) => {
            Err(error).context("read a log group of SLS that names this ledger")
        }
        Err(_) => Ok(None),
    }
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
    use crate::sls::tags::{BATCH_TAG, DIGEST_TAG, ROWS_TAG, SEAL_TAG};
    use crate::wire::log_group::LogGroupWriter;

    const SEAL: (u128, [u8; 32]) = (7, [1; 32]);

    fn seal() -> Seal {
        Seal::new(Uuid::from_u128(SEAL.0), SEAL.1)
    }

    /// A group with one log, as `seal` would have it.
    fn group(seal: &Seal, batch_id: Uuid, value: &str) -> Vec<u8> {
        let mut writer = LogGroupWriter::default();
        writer.begin_log(5, 0);
        writer.field("id", value.as_bytes());
        writer.end_log();
        let batch = format!("{}/{batch_id}", seal.ledger_id);
        let (digest, sealed) = (Digest::ZERO.to_string(), seal.of(batch_id, 2, Digest::ZERO));
        let tags =
            [(BATCH_TAG, &*batch), (ROWS_TAG, "2"), (DIGEST_TAG, &digest), (SEAL_TAG, &sealed)];
        writer.finish(None, Some(LOG_SOURCE), &tags);
        writer.bytes().to_vec()
    }

    fn list(groups: &[&[u8]]) -> Vec<u8> {
        let mut list = Vec::new();
        for group in groups {
            list.push(0x0a);
            prost::encode_length_delimiter(group.len(), &mut list).unwrap();
            list.extend_from_slice(group);
        }
        list
    }

    #[test]
    fn groups_are_summed_up_by_our_tag() {
        let (seal, batch) = (seal(), Uuid::from_u128(8));
        let other = Seal::new(Uuid::from_u128(9), SEAL.1);
        let forged = Seal::new(seal.ledger_id, [2; 32]);
        let groups = [
            group(&seal, batch, "a"),
            group(&seal, batch, "b"),
            group(&other, batch, "c"),
            group(&forged, batch, "d"),
        ];
        let list = list(&groups.each_ref().map(Vec::as_slice));
        let mut wanted = Sum { rows: 2, groups: 2, ..Sum::default() };
        for value in ["a", "b"] {
            wanted.digest.add(Digest::of_log(5, &mut [(b"id".as_slice(), value.as_bytes())]));
        }
        let sums = sum_up(&list, &seal).unwrap();
        assert_eq!(sums.batches, BTreeMap::from([(batch, wanted)]));
        assert_eq!((sums.foreign_groups, sums.odd_groups, sums.unsealed_groups), (1, 0, 1));
        assert_eq!(sums.others_since, None);
        assert!(sum_up(&list[..list.len() - 1], &seal).is_err());
    }

    #[test]
    fn an_odd_group_of_somebody_elses_is_passed_over_and_one_of_ours_is_an_error() {
        let (seal, batch) = (seal(), Uuid::from_u128(8));
        let other = Seal::new(Uuid::from_u128(9), SEAL.1);
        // A log whose time is over 32 bits, and a field of a kind that does not exist.
        let odd_log = [0x0a, 7, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        let whole = group(&seal, batch, "a");
        for odd in [&odd_log[..], &[0x0f]] {
            let foreign = [odd, &group(&other, batch, "b")].concat();
            let sums = sum_up(&list(&[&foreign, odd, &whole]), &seal).unwrap();
            assert_eq!((sums.foreign_groups, sums.odd_groups), (2, 2), "{odd:?}");
            assert_eq!(sums.batches[&batch].rows, 1);
            let own = [odd, &whole].concat();
            assert!(sum_up(&list(&[&own]), &seal).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn the_oldest_log_of_another_writer_is_told() {
        let other = |source, times: &[u32]| {
            let mut writer = LogGroupWriter::default();
            for time in times {
                writer.begin_log(*time, 0);
                writer.end_log();
            }
            writer.finish(None, source, &[]);
            writer.bytes().to_vec()
        };
        let own = group(&seal(), Uuid::from_u128(8), "a");
        let groups = [own, other(Some("10.0.0.1"), &[90, 80]), other(None, &[85]), vec![0x0f]];
        let sums = sum_up(&list(&groups.each_ref().map(Vec::as_slice)), &seal()).unwrap();
        assert_eq!((sums.others_since, sums.foreign_groups), (Some(80), 3));
    }

    #[test]
    fn a_page_that_lacks_a_group_is_no_page() {
        let whole = group(&seal(), Uuid::from_u128(8), "a");
        let two = list(&[&whole, &whole]);
        assert_eq!(check_count(&two, 2), Ok(()));
        assert_eq!(check_count(&[], 0), Ok(()));
        let cut_at_a_group = check_count(&two[..two.len() / 2], 2).unwrap_err();
        assert_eq!(cut_at_a_group.next, NextAction::Unknown, "it is pulled again");
        assert!(check_count(&two[..two.len() - 1], 2).is_err());
    }
}
