//! Reads the rows of a batch, converts them into a log group, and packs it for the wire.

use std::collections::HashMap;

use anyhow::Context as _;
use bytes::Bytes;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::dify::converter::{Converter, ReadRow, Verdict};
use crate::dify::eligibility::Bounds;
use crate::ledger::hold::NewHold;
use crate::ledger::intent::BatchRow;
use crate::pipeline::read::batching::Sought;
use crate::record::digest::Digest;
use crate::record::hold::HoldReason;
use crate::record::seal::Seal;
use crate::sls::tags::{
    ATTEMPT_TAG, BATCH_TAG, CONVERSION_TAG, DIGEST_TAG, LOG_SOURCE, ROWS_TAG, SEAL_TAG,
};
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::wire::compression::Lz4;
use crate::wire::log_group::LogGroupWriter;

/// SLS refuses a larger LogGroup (10 MB, facts of the PutLogs page); a little is left for tags.
const GROUP_BYTES_MAX: usize = 10_000_000 - 1024;

/// Memory beyond that is given back after a batch.
const KEEP_BYTES: usize = 3 << 20;

/// Makes batches by one conversion; its buffers are kept from one batch to the next.
pub struct Assembler {
    conversion: Conversion,
    fingerprint: String,
    shape: Shape,
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
    /// Rows that turned out not to be fit, or were not there any more.
    pub holds: Vec<NewHold>,
    /// Rows that grew since they were looked at, so that the group has no room for them.
    pub left_over: Vec<Sought>,
}

/// By what a batch's copies in SLS are known.
#[derive(Debug, Clone, Copy)]
pub struct BatchName {
    /// Its ledger's.
    pub seal: Seal,
    pub batch_id: Uuid,
    /// Which of its sendings it is, from 1: each is on a number of its own, so copies that should
    /// not be can be told apart.
    pub sending: u32,
}

impl Assembled {
    /// Rows that were not in the table when they were read.
    pub fn missing(&self) -> Vec<Uuid> {
        let missing = self.holds.iter().filter(|hold| hold.reason == HoldReason::Missing);
        missing.map(|hold| hold.row_id).collect()
    }
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
    /// Reads from a table of that shape. Fails when the conversion's columns are not those of a
    /// Dify table.
    pub fn new(conversion: Conversion, shape: Shape) -> anyhow::Result<Self> {
        Ok(Self {
            converter: Converter::new(&conversion)?,
            fingerprint: conversion.fingerprint(),
            conversion,
            shape,
            group: LogGroupWriter::default(),
            lz4: Lz4::default(),
        })
    }

    /// Reads `rows` and fills the group with their logs. What a row's head told may not be true any
    /// more, so each is judged by its bounds as it is now. What finished in the time of another writer
    /// was looked up by the finish time that its head told; with another one it is held.
    pub async fn fill(
        &mut self,
        source: &Source,
        rows: &[Sought],
        bounds: &Bounds,
        ingest_time: u32,
    ) -> anyhow::Result<Assembled> {
        self.group.clear(KEEP_BYTES);
        let mut assembled = Assembled::default();
        let Self { conversion, shape, converter, group, .. } = self;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let mut missing: HashMap<Uuid, Sought> = rows.iter().map(|row| (row.id, *row)).collect();
        let looked_up = bounds.of_looked_up();
        source
            .read(shape, &conversion.columns, &ids, |cells, is_offloaded| {
                let row = ReadRow { cells, is_offloaded };
                let verdict = converter.convert(row, &looked_up, ingest_time, group);
                place(verdict, bounds, group, &mut missing, &mut assembled);
            })
            .await?;
        let missing = rows.iter().filter(|row| missing.contains_key(&row.id));
        assembled.holds.extend(missing.map(missed));
        Ok(assembled)
    }

    /// Ends the group with what describes it, and compresses it.
    pub fn pack(&mut self, name: BatchName, assembled: &Assembled) -> Packed {
        let raw_size = self.finish(name, assembled);
        let body = self.lz4.compress(self.group.bytes());
        Packed { body, raw_size }
    }

    /// Ends the group with what describes it; gives its bytes before compression.
    pub fn finish(&mut self, name: BatchName, assembled: &Assembled) -> usize {
        let BatchName { seal, batch_id, sending } = name;
        let batch = format!("{}/{batch_id}", seal.ledger_id);
        let sealed = seal.of(batch_id, assembled.rows.len() as u64, assembled.digest);
        let attempt = sending.to_string();
        let (rows, digest) = (assembled.rows.len().to_string(), assembled.digest.to_string());
        let tags = [
            (BATCH_TAG, batch.as_str()),
            (ATTEMPT_TAG, &attempt),
            (ROWS_TAG, &rows),
            (DIGEST_TAG, &digest),
            (CONVERSION_TAG, &self.fingerprint),
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

/// Notes what became of a row, which is not `missing` then, and takes its log back if the group is
/// too large with it.
fn place(
    verdict: Verdict,
    bounds: &Bounds,
    group: &mut LogGroupWriter,
    missing: &mut HashMap<Uuid, Sought>,
    assembled: &mut Assembled,
) {
    let converted = match verdict {
        Verdict::Log(converted) => converted,
        Verdict::Hold { row_id, created_at, finished_at, reason, detail } => {
            missing.remove(&row_id);
            let look_again = bounds.look_again(reason, created_at, finished_at);
            assembled.holds.push(NewHold {
                row_id,
                created_at,
                finished_at,
                reason,
                detail,
                look_again,
            });
            return;
        }
    };
    let sought = missing.remove(&converted.row_id);
    let is_looked_up =
        sought.as_ref().is_some_and(|sought| sought.finished_at == Some(converted.finished_at));
    let unclear = bounds.held_unless_looked_up(converted.finished_at).filter(|_| !is_looked_up);
    if let Some((reason, detail)) = unclear {
        group.pop_log(converted.size);
        assembled.holds.push(NewHold {
            row_id: converted.row_id,
            created_at: converted.created_at,
            finished_at: Some(converted.finished_at),
            reason,
            detail,
            look_again: reason.look_again(),
        });
        return;
    }
    if group.bytes().len() <= GROUP_BYTES_MAX {
        assembled.rows.push(BatchRow {
            id: converted.row_id,
            created_at: converted.created_at,
            finished_at: converted.finished_at,
        });
        assembled.digest.add(converted.digest);
        assembled.not_json += converted.not_json;
        return;
    }
    group.pop_log(converted.size);
    if converted.size > GROUP_BYTES_MAX {
        let reason = HoldReason::TooLarge;
        assembled.holds.push(NewHold {
            row_id: converted.row_id,
            created_at: converted.created_at,
            finished_at: Some(converted.finished_at),
            reason,
            detail: format!("its log has {} bytes, SLS takes 10 MB", converted.size),
            look_again: reason.look_again(),
        });
    } else {
        assembled.left_over.extend(sought);
    }
}

/// A row that was looked at and is not there when it is read: it was deleted, or another replica was
/// asked.
pub fn missed(row: &Sought) -> NewHold {
    let reason = HoldReason::Missing;
    NewHold {
        row_id: row.id,
        created_at: row.created_at,
        finished_at: row.finished_at,
        reason,
        detail: "it was not in the table when it was read".to_owned(),
        look_again: reason.look_again(),
    }
}
