//! Sums a page of a shard up by batch, whichever ledger has sent it: what a verification reads.

use std::collections::BTreeMap;

use anyhow::Context as _;
use uuid::Uuid;

use crate::record::digest::{LogHasher, Sum};
use crate::sls::pull::{BATCH_TAG, parse_tag};
use crate::wire::log_group::{LogGroupView, split_list};

/// What a tag names: the ledger that has sent a batch, and the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchName {
    pub ledger_id: Uuid,
    pub batch_id: Uuid,
}

/// A page, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagSums {
    pub batches: BTreeMap<BatchName, Sum>,
    /// Logs in groups without a readable tag: Dify's own writer, or anybody.
    pub untagged_logs: u64,
    /// All groups of the page.
    pub groups: u32,
}

impl TagSums {
    /// Logs under any tag.
    pub fn tagged_logs(&self) -> u64 {
        self.batches.values().map(|sum| sum.rows).sum()
    }
}

/// Sums a page up. `hasher` is kept from one page to the next.
pub fn sum_up_tags(raw: &[u8], hasher: &mut LogHasher) -> anyhow::Result<TagSums> {
    let mut sums = TagSums::default();
    let mut fields = Vec::new();
    for bytes in split_list(raw).context("read a page of SLS")? {
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
        sums.groups += 1;
        let Some((ledger_id, batch_id)) = group.tag(BATCH_TAG).and_then(parse_tag) else {
            sums.untagged_logs += group.logs.len() as u64;
            continue;
        };
        let sum = sums.batches.entry(BatchName { ledger_id, batch_id }).or_default();
        sum.groups += 1;
        for log in &group.logs {
            fields.clear();
            fields.extend_from_slice(&log.contents);
            fields.sort_unstable();
            let time = log.time.unwrap_or(0);
            sum.digest.add(hasher.of_sorted_log(time, fields.len(), fields.iter().copied()));
            sum.rows += 1;
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sls::pull::sum_up;
    use crate::wire::log_group::LogGroupWriter;

    #[test]
    fn every_ledger_s_batches_are_summed_up_and_the_rest_is_counted() {
        let (own, other, batch) = (Uuid::from_u128(7), Uuid::from_u128(9), Uuid::from_u128(8));
        let mut list = Vec::new();
        for (value, ledger) in [("a", Some(own)), ("b", Some(own)), ("c", Some(other)), ("d", None)]
        {
            let mut writer = LogGroupWriter::default();
            for key in ["id", "error"] {
                writer.begin_log(5, 0);
                writer.field(key, value.as_bytes());
                writer.field("a", b"first by key");
                writer.end_log();
            }
            let tag = ledger.map(|ledger| format!("{ledger}/{batch}"));
            let tags: Vec<_> = tag.iter().map(|tag| (BATCH_TAG, tag.as_str())).collect();
            writer.finish(None, Some("s"), &tags);
            list.push(0x0a);
            prost::encode_length_delimiter(writer.bytes().len(), &mut list).unwrap();
            list.extend_from_slice(writer.bytes());
        }
        let sums = sum_up_tags(&list, &mut LogHasher::default()).unwrap();
        assert_eq!((sums.groups, sums.untagged_logs, sums.tagged_logs()), (4, 2, 6));
        for ledger_id in [own, other] {
            let name = BatchName { ledger_id, batch_id: batch };
            assert_eq!(sums.batches[&name], sum_up(&list, ledger_id).unwrap().batches[&batch]);
        }
        assert!(sum_up_tags(&list[..list.len() - 1], &mut LogHasher::default()).is_err());
    }
}
