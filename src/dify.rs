//! What a Dify row means: which rows become logs, and the log that Dify's own LogStore writer would
//! have written for one.
//!
//! Pure: a row's cells come in, a log's bytes go out. Dify's sides of it are
//! `api/extensions/logstore/repositories/*` (the writer, `_to_logstore_model`) and
//! `api/core/repositories/sqlalchemy_*` (what stands in the columns).

pub mod conversion;
pub mod converter;
pub mod eligibility;
pub mod fields;
pub mod index;
pub mod json;
pub mod python;
pub mod readers;
pub mod restore;
