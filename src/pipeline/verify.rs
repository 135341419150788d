//! Verifies: what SLS holds against what the ledger says.

pub mod tail_reader;
