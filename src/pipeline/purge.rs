//! Purges: deletes rows of Postgres whose logs were proved just now, and nothing else.
//!
//! ```text
//! candidates ─► kept long enough? ─► day's counts equal? ─► fresh proof: pull the batches' groups
//!                                                                  ▼ (a few batches ahead)
//!      marks in the ledger ◄─ delete equal rows ◄─ decide each ◄─ lock its rows, convert them
//! ```
//!
//! The part below the proof is one short transaction, some hundreds of rows at a time.

pub mod chunk_size;
pub mod comparison;
pub mod deleter;
pub mod fate;
pub mod gate;
pub mod keeping;
pub mod prover;
