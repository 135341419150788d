//! The way of a row, and what watches over it.
//!
//! ```text
//! read     scanner: claim a range, scan its next rows, plan a batch
//!            ▼
//!          preparer: read the rows, convert, pack
//!            ▼
//! send     uploader: record the intent ─► sender: PutLogs ─► acknowledge
//!            ▼
//! verify   tail reader: pull what is stored, sum up by tag, compare with the ledger ─► proved
//!
//! recover  resolver: batches in doubt ─► wait, look, send again · halve · replace;  audit
//! guard    who may send, how fast, how much memory; when Postgres must be left alone
//! ```
//!
//! [`worker`] joins the stages of one worker; they go on beside each other, with one request in
//! flight. Several workers keep Postgres, the processor and SLS busy at once. Channels with limits
//! and a budget bound the memory.

pub mod guard;
pub mod plan;
pub mod progress;
pub mod purge;
pub mod read;
pub mod recover;
pub mod restore;
pub mod retry;
pub mod send;
pub mod shutdown;
pub mod verify;
pub mod worker;
