//! SLS's HTTP interface: one attempt a call, answers sorted by what to do next.
//!
//! Nothing here repeats a call. Whether the same call may be made again is the caller's decision:
//! for a read always, for PutLogs only as the exactly-once protocol allows.

pub mod admin;
pub mod answer;
pub mod client;
pub mod endpoint;
pub mod find_batches;
pub mod groups;
pub mod histogram;
pub mod pull;
pub mod put;
pub mod search;
pub mod soft_delete;
pub mod sql;
pub mod tag_logs;
pub mod tag_sums;
pub mod tags;
