//! Pulls the log groups of one batch again, from where they were found, log by log.

use std::collections::BTreeMap;

use anyhow::Context as _;
use uuid::Uuid;

use crate::pipeline::retry::with_retries;
use crate::pipeline::verify::content::shard_reader::page_groups;
use crate::record::digest::{Digest, Sum};
use crate::record::seal::Seal;
use crate::sls::client::Client;
use crate::sls::tag_logs::{TagLog, logs_of};
use crate::sls::tag_sums::BatchName;

/// Logs of a batch may lie far from each other, and what lies between is pulled as well: of one
/// stretch so many pages at most.
const PAGES_MAX: u32 = 64;

/// A stretch of a shard: `[cursor, end_cursor)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    pub shard: u32,
    pub cursor: String,
    /// `None`: until as many logs were found as the batch has.
    pub end_cursor: Option<String>,
}

/// The logs of a batch, as they are in SLS now.
#[derive(Debug, Clone, Default)]
pub struct Refetched {
    pub logs: Vec<TagLog>,
    /// `false`: the stretches were too long to be read whole.
    pub is_whole: bool,
}

impl Refetched {
    /// Their sum.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for log in &self.logs {
            sum.rows += 1;
            sum.digest.add(log.digest);
        }
        sum
    }

    /// The digests of each row's logs, by id; logs whose id cannot be read are left out.
    pub fn by_id(&self) -> BTreeMap<Uuid, Vec<Digest>> {
        let mut by_id: BTreeMap<Uuid, Vec<Digest>> = BTreeMap::new();
        for log in &self.logs {
            if let Some(id) = log.id {
                by_id.entry(id).or_default().push(log.digest);
            }
        }
        by_id
    }

    /// On which sendings they came, as their tags say, and how many with each.
    pub fn attempts(&self) -> BTreeMap<u32, u64> {
        let mut attempts = BTreeMap::new();
        for attempt in self.logs.iter().filter_map(|log| log.attempt) {
            *attempts.entry(attempt).or_default() += 1;
        }
        attempts
    }
}

/// Pulls what `name` names, a batch of `rows` rows, out of `stretches`, seen from the ledger of `seal`.
pub async fn refetch(
    client: &Client,
    (seal, logstore): (&Seal, &str),
    (name, rows): (BatchName, u64),
    stretches: &[Stretch],
) -> anyhow::Result<Refetched> {
    let mut refetched = Refetched { logs: Vec::new(), is_whole: true };
    for stretch in stretches {
        let Stretch { shard, cursor, end_cursor } = stretch;
        let (mut cursor, mut groups_max, mut pages) = (cursor.clone(), 2, 0);
        while Some(&cursor) != end_cursor.as_ref() {
            if end_cursor.is_none() && refetched.logs.len() as u64 >= rows {
                break;
            }
            if pages == PAGES_MAX {
                refetched.is_whole = false;
                break;
            }
            pages += 1;
            let pull =
                || client.pull_until(logstore, *shard, &cursor, end_cursor.as_deref(), groups_max);
            let pulled = with_retries(pull)
                .await
                .with_context(|| format!("pull shard {shard} of {logstore}"))?;
            if pulled.next_cursor == cursor {
                break;
            }
            let logs = logs_of(&pulled.raw, seal, name)
                .with_context(|| format!("read shard {shard} of {logstore} at {cursor}"))?;
            refetched.logs.extend(logs);
            groups_max = page_groups(&pulled, groups_max);
            cursor = pulled.next_cursor;
        }
    }
    Ok(refetched)
}
