//! Verifies the content: every log is pulled back and compared with the ledger.

pub mod verdict;
