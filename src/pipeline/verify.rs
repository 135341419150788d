//! Verifies: what SLS holds against what the ledger says.

pub mod content;
pub mod counts;
pub mod fresh_proof;
pub mod parity;
pub mod tail_reader;
