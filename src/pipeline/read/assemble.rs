//! Reads the rows of a batch, converts them into a log group, and packs it for the wire.

use anyhow::Context as _;
use bytes::Bytes;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, Verdict};
use crate::ledger::intent::{BatchRow, NewHold};
use crate::record::digest::Digest;
use crate::record::hold::HoldReason;
use crate::record::seal::Seal;
use crate::record::timestamp::Timestamp;
use crate::sls::tags::{BATCH_TAG, DIGEST_TAG, LOG_SOURCE, ROWS_TAG, SEAL_TAG};
use crate::source::Source;
use crate::wire::compression::Lz4;
use crate::wire::log_group::LogGroupWriter;

/// SLS refuses a larger LogGroup (10 MB, facts of the PutLogs page); a little is left for tags.
const GROUP_BYTES_MAX: usize = 10_000_000 - 1024;

/// Memory beyond that is given back after a batch.
const KEEP_BYTES: usize = 3 << 20;

/// Makes batches by one conversion; its buffers are kept from one batch to the next.
pub struct Assembler {
    conversion: Conversion,
    converter: Converter,
    group: LogGroupWriter,
    lz4: Lz4,
}

/// What became of the rows of a batch when they were read.
#[derive(Debug, Default)]
pub struct Assembled {
    /// Rows whose logs are in the group.
    pub rows: Vec<BatchRow>,
    pub digest: Digest,
    pub not_json: u32,
    /// Rows that turned out not to be fit.
    pub holds: Vec<NewHold>,
    /// Rows that were not there any more.
    pub gone: Vec<Uuid>,
    /// Rows that grew since they were looked at, so that the group has no room for them.
    pub left_over: Vec<Uuid>,
}

/// A batch as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The LogGroup as one raw LZ4 block.
    pub body: Bytes,
    /// Bytes of the LogGroup.
    pub raw_size: usize,
}

impl Assembler {
    /// Fails when the conversion's columns are not those of a Dify table.
    pub fn new(conversion: Conversion) -> anyhow::Result<Self> {
        Ok(Self {
            converter: Converter::new(&conversion)?,
            conversion,
            group: LogGroupWriter::default(),
            lz4: Lz4::default(),
        })
    }

    /// Reads rows `ids` and fills the group with their logs. Rows that finished after
    /// `settled_before` are held.
    pub async fn fill(
        &mut self,
        source: &Source,
        ids: &[Uuid],
        settled_before: Timestamp,
        ingest_time: u32,
    ) -> anyhow::Result<Assembled> {
        self.group.clear(KEEP_BYTES);
        let mut assembled = Assembled::default();
        let Self { conversion, converter, group, .. } = self;
        let mut read = std::collections::HashSet::with_capacity(ids.len());
        source
            .read(conversion.table, &conversion.columns, ids, |cells| {
                let verdict = converter.convert(cells, settled_before, ingest_time, group);
                read.insert(place(verdict, group, &mut assembled));
            })
            .await?;
        assembled.gone = ids.iter().filter(|id| !read.contains(*id)).copied().collect();
        Ok(assembled)
    }

    /// Ends the group with what describes it, and compresses it.
    pub fn pack(&mut self, seal: &Seal, batch_id: Uuid, assembled: &Assembled) -> Packed {
        let raw_size = self.finish(seal, batch_id, assembled);
        let body = self.lz4.compress(self.group.bytes());
        Packed { body, raw_size }
    }

    /// Ends the group with what describes it; gives its bytes before compression.
    pub fn finish(&mut self, seal: &Seal, batch_id: Uuid, assembled: &Assembled) -> usize {
        let batch = format!("{}/{batch_id}", seal.ledger_id);
        let sealed = seal.of(batch_id, assembled.rows.len() as u64, assembled.digest);
        let (rows, digest) = (assembled.rows.len().to_string(), assembled.digest.to_string());
        let tags = [
            (BATCH_TAG, batch.as_str()),
            ("__attempt__", "1"),
            (ROWS_TAG, &rows),
            (DIGEST_TAG, &digest),
            (SEAL_TAG, &sealed),
        ];
        self.group.finish(Some(""), Some(LOG_SOURCE), &tags);
        self.group.bytes().len()
    }

    /// Compresses the finished group on a thread of its own.
    pub async fn compress(&mut self) -> anyhow::Result<Packed> {
        let mut lz4 = std::mem::take(&mut self.lz4);
        let group = std::mem::take(&mut self.group);
        let compressed = tokio::task::spawn_blocking(move || {
            let body = lz4.compress(group.bytes());
            (lz4, group, body)
        });
        let (lz4, group, body) = compressed.await.context("compress a batch")?;
        let packed = Packed { body, raw_size: group.bytes().len() };
        (self.lz4, self.group) = (lz4, group);
        Ok(packed)
    }
}

/// Notes what became of a row, and takes its log back if the group is too large with it.
fn place(verdict: Verdict, group: &mut LogGroupWriter, assembled: &mut Assembled) -> Uuid {
    let converted = match verdict {
        Verdict::Log(converted) => converted,
        Verdict::Hold { row_id, created_at, reason, detail } => {
            let finished_at = None;
            assembled.holds.push(NewHold { row_id, created_at, finished_at, reason, detail });
            return row_id;
        }
    };
    let row_id = converted.row_id;
    if group.bytes().len() <= GROUP_BYTES_MAX {
        assembled.rows.push(BatchRow {
            id: row_id,
            created_at: converted.created_at,
            finished_at: converted.finished_at,
        });
        assembled.digest.add(converted.digest);
        assembled.not_json += converted.not_json;
        return row_id;
    }
    group.pop_log(converted.size);
    if converted.size > GROUP_BYTES_MAX {
        assembled.holds.push(NewHold {
            row_id,
            created_at: converted.created_at,
            finished_at: Some(converted.finished_at),
            reason: HoldReason::TooLarge,
            detail: format!("its log has {} bytes, SLS takes 10 MB", converted.size),
        });
    } else {
        assembled.left_over.push(row_id);
    }
    row_id
}
