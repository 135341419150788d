//! Recovers: what became of a batch whose answer was lost, or of a ledger that forgot.

pub mod absence;
pub mod audit;
pub mod resolver;
pub mod revision;
pub mod rules;
