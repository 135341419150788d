//! The logs of one batch in a page of a shard, each by itself.

use anyhow::Context as _;
use uuid::Uuid;

use crate::record::digest::Digest;
use crate::record::seal::Seal;
use crate::sls::pull::owner_of;
use crate::sls::tag_sums::BatchName;
use crate::sls::tags::{ATTEMPT_TAG, Owner};
use crate::wire::log_group::{LogGroupView, split_list};

/// A log of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagLog {
    /// Its row; `None` where that cannot be read.
    pub id: Option<Uuid>,
    pub digest: Digest,
    /// On which sending of its batch it came, from 1; `None` where its group does not say.
    pub attempt: Option<u32>,
}

/// The logs of a page that lie in groups of batch `name`, seen from the ledger of `seal`.
pub fn logs_of(raw: &[u8], seal: &Seal, name: BatchName) -> anyhow::Result<Vec<TagLog>> {
    let (mut logs, mut fields) = (Vec::new(), Vec::new());
    for bytes in split_list(raw).context("read a page of SLS")? {
        let Some(Owner::Own(named) | Owner::Foreign(named)) = owner_of(bytes, seal)? else {
            continue;
        };
        if (named.ledger_id, named.batch_id) != (name.ledger_id, name.batch_id) {
            continue;
        }
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let attempt = group.tag(ATTEMPT_TAG).and_then(text).and_then(|text| text.parse().ok());
        for log in &group.logs {
            let id = log.contents.iter().find(|(key, _)| *key == b"id");
            let id = id.and_then(|(_, value)| text(value)).and_then(|text| text.parse().ok());
            fields.clear();
            fields.extend_from_slice(&log.contents);
            let digest = Digest::of_log(log.time.unwrap_or(0), &mut fields);
            logs.push(TagLog { id, digest, attempt });
        }
    }
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sls::tags::tests::tags_of;
    use crate::wire::log_group::LogGroupWriter;

    #[test]
    fn only_the_logs_of_the_batch_are_given_with_their_sending() {
        let seal = Seal::new(Uuid::from_u128(7), [1; 32]);
        let name = BatchName { ledger_id: seal.ledger_id, batch_id: Uuid::from_u128(8) };
        let forged = Seal::new(name.ledger_id, [2; 32]);
        let mut list = Vec::new();
        for (seal, batch, attempt, id) in [
            (seal, 8, "1", 1),
            (seal, 8, "2", 1),
            (seal, 9, "1", 2),
            (seal, 8, "x", 3),
            (forged, 8, "1", 4),
        ] {
            let mut writer = LogGroupWriter::default();
            writer.begin_log(5, 0);
            writer.field("id", Uuid::from_u128(id).to_string().as_bytes());
            writer.end_log();
            let tags = tags_of(&seal, Uuid::from_u128(batch), 1, Digest::ZERO);
            let tags = tags.iter().map(|(key, value)| (*key, value.as_str()));
            writer.finish(None, None, &tags.chain([(ATTEMPT_TAG, attempt)]).collect::<Vec<_>>());
            list.push(0x0a);
            prost::encode_length_delimiter(writer.bytes().len(), &mut list).unwrap();
            list.extend_from_slice(writer.bytes());
        }
        let logs = logs_of(&list, &seal, name).unwrap();
        let seen: Vec<_> =
            logs.iter().map(|log| (log.id.map(|id| id.as_u128()), log.attempt)).collect();
        assert_eq!(seen, [(Some(1), Some(1)), (Some(1), Some(2)), (Some(3), None)]);
        assert_eq!(logs[0].digest, logs[1].digest, "a sending's number is no content");
    }
}
