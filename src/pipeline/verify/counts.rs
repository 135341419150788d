//! Verifies by counting: Postgres, ledger and SLS, day by day.

pub mod day;
pub mod sls_days;
pub mod window;
