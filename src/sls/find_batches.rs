//! Reads a page of a shard for what a ledger would know of its batches: an audit writes them down.
//!
//! A batch explains itself: its tags say which ledger has sent it, how many rows it has and what
//! their digest is; its logs hold the ids of the rows.

use std::collections::BTreeMap;

use anyhow::Context as _;
use uuid::Uuid;

use crate::record::digest::{Digest, Sum};
use crate::record::seal::Seal;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::pull::{earliest, of_others, owner_of};
use crate::sls::tags::{CONVERSION_TAG, Owner};
use crate::wire::log_group::{LogGroupView, LogView, split_list};

/// What a page holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundPage {
    /// The batches of all ledgers, by ledger and batch.
    pub batches: BTreeMap<(Uuid, Uuid), FoundBatch>,
    /// Groups that name the reading ledger, and do not bear its seal.
    pub unsealed_groups: u64,
    /// Groups of nobody's that cannot be read whole.
    pub odd_groups: u64,
    /// The oldest log time (Unix seconds) in groups with another source than ours.
    pub others_since: Option<u32>,
}

/// What a page holds of a batch, whichever ledger has sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundBatch {
    /// What its tags tell; `None` when they cannot be read.
    pub tagged: Option<(u32, Digest)>,
    /// The fingerprint of its conversion, as its tag tells.
    pub conversion: Option<String>,
    /// What was found.
    pub sum: Sum,
    pub raw_bytes: u64,
    /// The rows of the logs found; a log without a readable id has none.
    pub rows: Vec<FoundRow>,
    /// The time of a log of it, Unix seconds.
    pub log_time: u32,
}

/// A row, as its log tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRow {
    pub id: Uuid,
    /// `-infinity` where it cannot be read.
    pub created_at: Timestamp,
    pub finished_at: Timestamp,
}

/// What a page of `table`'s logstore holds, seen from the ledger of `seal`. A group of any ledger that
/// cannot be read is an error.
pub fn find(raw: &[u8], table: Table, seal: &Seal) -> anyhow::Result<FoundPage> {
    let mut page = FoundPage::default();
    let mut fields = Vec::new();
    for bytes in split_list(raw).context("read a page of SLS")? {
        page.others_since = earliest(page.others_since, of_others(bytes));
        let named = match owner_of(bytes, seal)? {
            Some(Owner::Own(named) | Owner::Foreign(named)) => named,
            Some(Owner::Unsealed(_)) => {
                page.unsealed_groups += 1;
                continue;
            }
            Some(Owner::Nobody) => {
                page.odd_groups += u64::from(LogGroupView::parse(bytes).is_err());
                continue;
            }
            None => {
                page.odd_groups += 1;
                continue;
            }
        };
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
        let batch = page.batches.entry((named.ledger_id, named.batch_id)).or_default();
        batch.tagged = named.told;
        batch.conversion = text_tag(&group, CONVERSION_TAG).map(str::to_owned);
        batch.sum.groups += 1;
        batch.raw_bytes += bytes.len() as u64;
        for log in &group.logs {
            batch.log_time = log.time.unwrap_or(0);
            batch.rows.extend(row(log, table));
            fields.clear();
            fields.extend_from_slice(&log.contents);
            batch.sum.rows += 1;
            batch.sum.digest.add(Digest::of_log(batch.log_time, &mut fields));
        }
    }
    Ok(page)
}

fn text_tag<'a>(group: &LogGroupView<'a>, tag: &str) -> Option<&'a str> {
    std::str::from_utf8(group.tag(tag)?).ok()
}

fn row(log: &LogView<'_>, table: Table) -> Option<FoundRow> {
    let text = |key: &str| {
        let (_, value) = log.contents.iter().find(|(name, _)| *name == key.as_bytes())?;
        std::str::from_utf8(value).ok()
    };
    // Dify writes a run's `created_at` as `started_at`.
    let created = match table {
        Table::Runs => "started_at",
        Table::NodeExecutions => "created_at",
    };
    let log_time = Timestamp::from_unix_s(log.time.unwrap_or(0).into());
    Some(FoundRow {
        id: text("id")?.parse().ok()?,
        created_at: text(created)
            .and_then(Timestamp::from_isoformat)
            .unwrap_or(Timestamp::NEG_INFINITY),
        finished_at: text("finished_at").and_then(Timestamp::from_isoformat).unwrap_or(log_time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sls::tags::{BATCH_TAG, DIGEST_TAG, ROWS_TAG};
    use crate::wire::log_group::LogGroupWriter;

    fn group(rows: &[(u128, &str)], tags: &[(&str, &str)]) -> Vec<u8> {
        let mut writer = LogGroupWriter::default();
        for (id, created_at) in rows {
            writer.begin_log(5, 0);
            writer.field("id", Uuid::from_u128(*id).to_string().as_bytes());
            writer.field("created_at", created_at.as_bytes());
            writer.end_log();
        }
        writer.finish(None, Some("s"), tags);
        let mut list = vec![0x0a];
        prost::encode_length_delimiter(writer.bytes().len(), &mut list).unwrap();
        list.extend_from_slice(writer.bytes());
        list
    }

    #[test]
    fn a_batch_is_found_whole_though_it_came_in_parts_and_from_another_ledger() {
        let (ledger, batch) = (Uuid::from_u128(7), Uuid::from_u128(8));
        let tag = format!("{ledger}/{batch}");
        let digest = "00".repeat(32);
        let tags = [
            (BATCH_TAG, tag.as_str()),
            (ROWS_TAG, "3"),
            (DIGEST_TAG, &digest),
            (CONVERSION_TAG, "0123456789abcdef"),
        ];
        let page = [
            group(&[(1, "2024-05-06T07:08:09"), (2, "nonsense")], &tags),
            group(&[(9, "2024-05-06T07:08:09")], &[]),
            group(&[(3, "2024-05-06T07:08:09.5")], &tags),
        ]
        .concat();
        let reader = Seal::new(Uuid::from_u128(1), [1; 32]);
        let found = find(&page, Table::NodeExecutions, &reader).unwrap();
        assert_eq!(found.batches.len(), 1, "what has no tag of ours is not ours");
        let found = &found.batches[&(ledger, batch)];
        assert_eq!(found.tagged, Some((3, Digest::default())));
        assert_eq!(found.conversion.as_deref(), Some("0123456789abcdef"));
        assert_eq!((found.sum.rows, found.sum.groups), (3, 2));
        let rows: Vec<_> =
            found.rows.iter().map(|row| (row.id.as_u128(), row.created_at.to_string())).collect();
        assert_eq!(
            rows,
            [
                (1, "2024-05-06T07:08:09Z".to_owned()),
                (2, "-infinity".to_owned()),
                (3, "2024-05-06T07:08:09.5Z".to_owned())
            ]
        );
        assert_eq!(
            found.rows[0].finished_at,
            Timestamp::from_unix_s(5),
            "no field: the log's time"
        );
        assert!(find(&page[..page.len() - 1], Table::Runs, &reader).is_err());
        // Nobody else could have sent it under the reader's name without a seal.
        let reader = Seal::new(ledger, [1; 32]);
        let found = find(&page, Table::NodeExecutions, &reader).unwrap();
        assert_eq!((found.batches.len(), found.unsealed_groups), (0, 2));
    }
}
