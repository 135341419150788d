//! Converts a row to a log, straight into the group's bytes.
//!
//! This is the hot path: no `String` and no `Vec` for a row or a field, and a payload is copied
//! once.

use std::ops::Range;

use uuid::Uuid;

use crate::dify::conversion::{Conversion, LogTime};
use crate::dify::eligibility::{Bounds, Facts, Held, hold_reason, is_control_row, is_empty_json};
use crate::dify::fields::{Field, Fields, Form, Null, UnfitColumns};
use crate::dify::json::Transcoder;
use crate::dify::python;
use crate::record::digest::{Digest, LogHasher};
use crate::record::hold::HoldReason;
use crate::record::table::{Cells, ColumnKind, Table};
use crate::record::timestamp::Timestamp;
use crate::wire::log_group::LogGroupWriter;

/// Converts rows of one table by one [`Conversion`].
pub struct Converter {
    table: Table,
    log_time: LogTime,
    fields: Fields,
    transcoder: Transcoder,
    /// Where the values of the log being written stand; `None` is a key left out.
    values: Vec<Option<Range<usize>>>,
    hasher: LogHasher,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its log is in the group.
    Log(Converted),
    /// It is held, and the group is as it was.
    Hold {
        row_id: Uuid,
        /// `-infinity` for NULL.
        created_at: Timestamp,
        /// `None` for NULL.
        finished_at: Option<Timestamp>,
        reason: HoldReason,
        /// What about the row is the reason. Holds no content of the row but an unknown status.
        detail: String,
    },
}

/// A row whose log is in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    pub row_id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Timestamp,
    /// The log's `__time__`, Unix seconds.
    pub time: u32,
    pub digest: Digest,
    /// How many bytes the log takes in the group.
    pub size: usize,
    /// How many of its JSON columns held a text that is not JSON and was carried unchanged.
    pub not_json: u32,
}

/// A field that cannot be written: what is wrong with its column.
struct Unfit(&'static str);

/// A row as it is read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRow<'a> {
    /// In the order of the conversion's columns.
    pub cells: &'a Cells<'a>,
    /// Whether its full payload lies in object storage.
    pub is_offloaded: bool,
}

/// What the values of a log are made of.
struct Row<'a> {
    cells: &'a Cells<'a>,
    id: Uuid,
    log_version: i64,
}

impl Converter {
    /// Tells by name which columns are missing, of an unexpected kind, or in the way.
    pub fn new(conversion: &Conversion) -> Result<Self, UnfitColumns> {
        Ok(Self {
            table: conversion.table,
            log_time: conversion.log_time,
            fields: Fields::of(conversion)?,
            transcoder: Transcoder::default(),
            values: Vec::new(),
            hasher: LogHasher::default(),
        })
    }

    /// Adds the log of a row to `group`, or says why the row is held. `ingest_time` (Unix seconds)
    /// is the log's time if the conversion says [`LogTime::Ingest`].
    pub fn convert(
        &mut self,
        row: ReadRow<'_>,
        bounds: &Bounds,
        ingest_time: u32,
        group: &mut LogGroupWriter,
    ) -> Verdict {
        let cells = row.cells;
        assert_eq!(cells.len(), self.fields.cells, "a row has the conversion's columns");
        let row_id = cells[self.fields.id]
            .and_then(|bytes| Uuid::from_slice(bytes).ok())
            .expect("Postgres sends a primary key of 16 bytes");
        let created_at = cells[self.fields.created_at].map(timestamp);
        let outcome = match created_at {
            Some(created_at) => {
                let facts = self.facts(row, created_at);
                self.judge_and_write(row_id, cells, &facts, bounds, ingest_time, group)
            }
            None => Err((HoldReason::Invalid, "created_at is NULL".to_owned())),
        };
        match outcome {
            Ok(converted) => Verdict::Log(converted),
            Err((reason, detail)) => {
                let created_at = created_at.unwrap_or(Timestamp::NEG_INFINITY);
                let finished_at = cells[self.fields.finished_at].map(timestamp);
                Verdict::Hold { row_id, created_at, finished_at, reason, detail }
            }
        }
    }

    fn facts<'a>(&self, row: ReadRow<'a>, created_at: Timestamp) -> Facts<'a> {
        let cells = row.cells;
        let texts = self.fields.texts.iter().filter_map(|at| cells[*at]);
        Facts {
            status: cells[self.fields.status].unwrap_or_default(),
            created_at,
            finished_at: cells[self.fields.finished_at].map(timestamp),
            text_bytes: texts.map(|text| text.len() as u64).sum(),
            is_offloaded: row.is_offloaded,
        }
    }

    fn judge_and_write(
        &mut self,
        row_id: Uuid,
        cells: &Cells<'_>,
        facts: &Facts<'_>,
        bounds: &Bounds,
        ingest_time: u32,
        group: &mut LogGroupWriter,
    ) -> Result<Converted, Held> {
        if let Some(held) = hold_reason(self.table, facts, bounds) {
            return Err(held);
        }
        let Facts { status, created_at, finished_at, .. } = *facts;
        if let Some((task_id, payload)) = self.fields.control
            && is_control_row(cells[task_id], payload.map(|at| cells[at]))
        {
            return Err((HoldReason::ControlRow, "it has a task_id and no payload".to_owned()));
        }
        let finished_at = finished_at.expect("a row without finish time is held");
        let finished_us = finished_at.unix_us().expect("a row that finished never is held");
        let time = match self.log_time {
            LogTime::FinishedAt => u32::try_from(finished_us / 1_000_000)
                .expect("a row that finished before 1970 or after 2106 is held"),
            LogTime::Ingest => ingest_time,
        };
        // Dify's live writer numbers its logs with the nanosecond of writing. A row's terminal log
        // is written after `finished_at`, its `running` log before: this number is between them.
        // Rows of a node's attempts share `node_execution_id`, and the last must win.
        let is_retry = self.table == Table::NodeExecutions && status == b"retry";
        let row = Row { cells, id: row_id, log_version: finished_us * 1000 + i64::from(!is_retry) };
        let (digest, size, not_json) = self.write(&row, time, group)?;
        Ok(Converted { row_id, created_at, finished_at, time, digest, size, not_json })
    }

    /// Writes the log; gives its digest, its size and how many texts were not JSON.
    fn write(
        &mut self,
        row: &Row<'_>,
        time: u32,
        group: &mut LogGroupWriter,
    ) -> Result<(Digest, usize, u32), Held> {
        // A key, its lengths and tags take about 24 bytes.
        let cells_len = row.cells.iter().flatten().map(|bytes| bytes.len()).sum::<usize>();
        group.begin_log(time, cells_len + 24 * self.fields.list.len());
        self.values.clear();
        let mut not_json = 0;
        for field in &self.fields.list {
            match write_field(field, row, &mut self.transcoder, &mut not_json, group) {
                Ok(value) => self.values.push(value),
                Err(Unfit(problem)) => {
                    group.cancel_log();
                    let column = field.column.as_ref().map_or(&field.key, |column| &column.0);
                    return Err((HoldReason::Invalid, format!("{column} {problem}")));
                }
            }
        }
        // Ending the log may move its bytes: the digest comes first.
        let digest = self.digest(time, group.bytes());
        Ok((digest, group.end_log(), not_json))
    }

    fn digest(&mut self, time: u32, bytes: &[u8]) -> Digest {
        let Self { fields, values, hasher, .. } = self;
        let count = values.iter().flatten().count();
        let written = fields.by_key.iter().filter_map(|at| {
            let value = &bytes[values[*at].clone()?];
            Some((fields.list[*at].key.as_bytes(), value))
        });
        hasher.of_sorted_log(time, count, written)
    }
}

/// Writes one field and gives where its value stands; `None` if its key is left out.
#[inline]
fn write_field(
    field: &Field,
    row: &Row<'_>,
    transcoder: &mut Transcoder,
    not_json: &mut u32,
    group: &mut LogGroupWriter,
) -> Result<Option<Range<usize>>, Unfit> {
    let key = field.key.as_str();
    let cell = field.column.as_ref().and_then(|(_, at)| row.cells[*at]);
    let value = match (field.form, cell) {
        (Form::Json, cell) if !is_empty_json(cell) => {
            let text = utf8(cell.unwrap_or_default())?;
            group.field_with(key, text.len(), |bytes| {
                *not_json += u32::from(!transcoder.transcode(text, bytes));
            })
        }
        (Form::Json | Form::EmptyJson, _) => group.field(key, b"{}"),
        (Form::CreatedByRole, Some(b"end-user")) => group.field(key, b"end_user"),
        (Form::NodeExecutionId, None | Some(b"")) => {
            group.field(key, python::uuid(row.id).as_bytes())
        }
        (Form::LogVersion, _) => group.field(key, python::int(row.log_version).as_bytes()),
        (_, Some(bytes)) => write_value(key, field.kind, bytes, group)?,
        (Form::Value(Null::Empty), None) => group.field(key, b""),
        (Form::Value(Null::Zero), None) => group.field(key, b"0"),
        (Form::Value(Null::LeftOut), None) => return Ok(None),
        (Form::Value(Null::Refused) | Form::CreatedByRole, None) => return Err(Unfit("is NULL")),
    };
    Ok(Some(value))
}

/// Writes a value of Postgres's binary format as Python prints it.
#[inline]
fn write_value(
    key: &str,
    kind: ColumnKind,
    bytes: &[u8],
    group: &mut LogGroupWriter,
) -> Result<Range<usize>, Unfit> {
    let printed = match kind {
        ColumnKind::Text => return Ok(group.field(key, utf8(bytes)?.as_bytes())),
        ColumnKind::Uuid => python::uuid(Uuid::from_bytes(fixed(bytes))),
        ColumnKind::Int4 => python::int(i32::from_be_bytes(fixed(bytes)).into()),
        ColumnKind::Int8 => python::int(i64::from_be_bytes(fixed(bytes))),
        ColumnKind::Float8 => python::float(f64::from_be_bytes(fixed(bytes))),
        ColumnKind::Timestamp => python::isoformat(timestamp(bytes))
            .ok_or(Unfit("is a time outside of the years 1 to 9999"))?,
    };
    Ok(group.field(key, printed.as_bytes()))
}

#[inline]
fn utf8(bytes: &[u8]) -> Result<&str, Unfit> {
    // A database in SQL_ASCII stores any bytes.
    std::str::from_utf8(bytes).map_err(|_| Unfit("is not UTF-8"))
}

#[inline]
fn timestamp(bytes: &[u8]) -> Timestamp {
    Timestamp::from_postgres(i64::from_be_bytes(fixed(bytes)))
}

#[inline]
fn fixed<const LEN: usize>(bytes: &[u8]) -> [u8; LEN] {
    bytes.try_into().expect("Postgres sends values of this type in this many bytes")
}

#[cfg(test)]
mod tests;
