//! What `plan` needs to know, checked.

use crate::commands::run_settings::RunSettings;
use crate::pipeline::plan::prices::Prices;

/// What `plan` needs to know.
pub struct PlanSettings {
    /// Of the run that is planned; without an SLS one is assumed.
    pub run: RunSettings,
    pub is_exact: bool,
    pub prices: Prices,
    pub purgeable_after_s: i64,
    pub shard_bytes_per_s: f64,
    pub shard_writes_per_s: f64,
}
