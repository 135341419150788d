//! The logs of one batch in a page of a shard, each by itself.

use anyhow::Context as _;
use uuid::Uuid;

use crate::record::digest::Digest;
use crate::sls::find_batches::ATTEMPT_TAG;
use crate::sls::pull::{BATCH_TAG, parse_tag};
use crate::sls::tag_sums::BatchName;
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

/// The logs of a page that lie in groups of batch `name`.
pub fn logs_of(raw: &[u8], name: BatchName) -> anyhow::Result<Vec<TagLog>> {
    let (mut logs, mut fields) = (Vec::new(), Vec::new());
    for bytes in split_list(raw).context("read a page of SLS")? {
        let group = LogGroupView::parse(bytes).context("read a log group of SLS")?;
        let wanted = (name.ledger_id, name.batch_id);
        if group.tag(BATCH_TAG).and_then(parse_tag) != Some(wanted) {
            continue;
        }
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
    use crate::wire::log_group::LogGroupWriter;

    #[test]
    fn only_the_logs_of_the_batch_are_given_with_their_sending() {
        let name = BatchName { ledger_id: Uuid::from_u128(7), batch_id: Uuid::from_u128(8) };
        let mut list = Vec::new();
        for (batch, attempt, id) in [(8, "1", 1), (8, "2", 1), (9, "1", 2), (8, "x", 3)] {
            let mut writer = LogGroupWriter::default();
            writer.begin_log(5, 0);
            writer.field("id", Uuid::from_u128(id).to_string().as_bytes());
            writer.end_log();
            let tag = format!("{}/{}", name.ledger_id, Uuid::from_u128(batch));
            writer.finish(None, None, &[(BATCH_TAG, &tag), (ATTEMPT_TAG, attempt)]);
            list.push(0x0a);
            prost::encode_length_delimiter(writer.bytes().len(), &mut list).unwrap();
            list.extend_from_slice(writer.bytes());
        }
        let logs = logs_of(&list, name).unwrap();
        let seen: Vec<_> =
            logs.iter().map(|log| (log.id.map(|id| id.as_u128()), log.attempt)).collect();
        assert_eq!(seen, [(Some(1), Some(1)), (Some(1), Some(2)), (Some(3), None)]);
        assert_eq!(logs[0].digest, logs[1].digest, "a sending's number is no content");
    }
}
