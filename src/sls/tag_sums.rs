//! Sums a page of a shard up by batch, whichever ledger has sent it: what a verification reads.

use std::collections::BTreeMap;

use anyhow::Context as _;
use uuid::Uuid;

use crate::record::digest::{LogHasher, Sum};
use crate::record::seal::Seal;
use crate::sls::pull::owner_of;
use crate::sls::tags::Owner;
use crate::wire::log_group::{LogGroupView, split_list};

/// In a [`BatchName`]: the tag names the ledger that reads, and does not bear its seal.
pub const NOT_SEALED: Uuid = Uuid::nil();

/// What a tag names: the ledger that has sent a batch, and the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchName {
    /// Or [`NOT_SEALED`].
    pub ledger_id: Uuid,
    pub batch_id: Uuid,
}

/// A page, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagSums {
    pub batches: BTreeMap<BatchName, Sum>,
    /// Logs in groups without a readable tag: Dify's own writer, or anybody.
    pub untagged_logs: u64,
    /// Groups of others that cannot be read whole.
    pub odd_groups: u64,
    /// All groups of the page.
    pub groups: u32,
}

impl TagSums {
    /// Logs under any tag.
    pub fn tagged_logs(&self) -> u64 {
        self.batches.values().map(|sum| sum.rows).sum()
    }
}

/// Sums a page up, seen from the ledger of `seal`. `hasher` is kept from one page to the next.
pub fn sum_up_tags(raw: &[u8], seal: &Seal, hasher: &mut LogHasher) -> anyhow::Result<TagSums> {
    let mut sums = TagSums::default();
    let mut fields = Vec::new();
    for bytes in split_list(raw).context("read a page of SLS")? {
        sums.groups += 1;
        let owner = owner_of(bytes, seal)?;
        let group = match LogGroupView::parse(bytes).context("read a log group of SLS") {
            Ok(group) => group,
            Err(error) if matches!(owner, Some(Owner::Own(_))) => return Err(error),
            Err(_) => {
                sums.odd_groups += 1;
                continue;
            }
        };
        let name = match owner {
            Some(Owner::Own(named) | Owner::Foreign(named)) => {
                BatchName { ledger_id: named.ledger_id, batch_id: named.batch_id }
            }
            Some(Owner::Unsealed(named)) => {
                BatchName { ledger_id: NOT_SEALED, batch_id: named.batch_id }
            }
            Some(Owner::Nobody) | None => {
                sums.untagged_logs += group.logs.len() as u64;
                continue;
            }
        };
        let sum = sums.batches.entry(name).or_default();
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
    use crate::record::digest::Digest;
    use crate::sls::pull::sum_up;
    use crate::sls::tags::tests::tags_of;
    use crate::wire::log_group::LogGroupWriter;

    #[test]
    fn every_ledger_s_batches_are_summed_up_and_the_rest_is_counted() {
        let seal = |ledger, key| Seal::new(Uuid::from_u128(ledger), [key; 32]);
        let (own, other, forged) = (seal(7, 1), seal(9, 1), seal(7, 2));
        let batch = Uuid::from_u128(8);
        let mut list = Vec::new();
        let mut add = |bytes: &[u8]| {
            list.push(0x0a);
            prost::encode_length_delimiter(bytes.len(), &mut list).unwrap();
            list.extend_from_slice(bytes);
        };
        for (value, seal) in [
            ("a", Some(own)),
            ("b", Some(own)),
            ("c", Some(other)),
            ("d", None),
            ("e", Some(forged)),
        ] {
            let mut writer = LogGroupWriter::default();
            for key in ["id", "error"] {
                writer.begin_log(5, 0);
                writer.field(key, value.as_bytes());
                writer.field("a", b"first by key");
                writer.end_log();
            }
            let tags = seal.map(|seal| tags_of(&seal, batch, 2, Digest::ZERO)).unwrap_or_default();
            let tags: Vec<_> = tags.iter().map(|(key, value)| (*key, value.as_str())).collect();
            writer.finish(None, Some("s"), &tags);
            add(writer.bytes());
        }
        // A field of a kind that does not exist.
        add(&[0x0f]);
        let sums = sum_up_tags(&list, &own, &mut LogHasher::default()).unwrap();
        assert_eq!((sums.groups, sums.untagged_logs, sums.tagged_logs()), (6, 2, 8));
        assert_eq!(sums.batches[&BatchName { ledger_id: NOT_SEALED, batch_id: batch }].rows, 2);
        assert_eq!(sums.odd_groups, 1);
        for seal in [own, other] {
            let name = BatchName { ledger_id: seal.ledger_id, batch_id: batch };
            assert_eq!(sums.batches[&name], sum_up(&list, &seal).unwrap().batches[&batch]);
        }
        let cut = &list[..list.len() - 1];
        assert!(sum_up_tags(cut, &own, &mut LogHasher::default()).is_err());
    }
}
