//! What `purge` needs to know, checked.

use std::time::Duration;

use uuid::Uuid;

use crate::commands::output::Format;
use crate::commands::page::PageWish;
use crate::commands::setup::{PostgresSettings, SlsSettings};
use crate::pg::Address;
use crate::pipeline::guard::pace::Rates;
use crate::pipeline::purge::fate::PurgeRules;
use crate::pipeline::purge::gate::GateLimits;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::writable::WriteLimits;

/// What `purge` needs to know.
pub struct PurgeSettings {
    pub postgres: PostgresSettings,
    /// The primary, where rows are deleted.
    pub target: Address,
    pub sls: SlsSettings,
    pub tables: Vec<Table>,
    /// Only rows that finished at it or later (UTC).
    pub since: Option<Timestamp>,
    /// Only rows that finished so long before now.
    pub older_than_s: i64,
    /// Only rows that finished before it (UTC), too.
    pub until: Option<Timestamp>,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    /// SLS must keep the logs for so many days more.
    pub keep_days: u32,
    pub rules: PurgeRules,
    pub rates: Rates,
    pub gate: GateLimits,
    pub write_limits: WriteLimits,
    /// How old a proof may be when a row goes by it.
    pub proof_age_max: Duration,
    pub vacuum: bool,
    pub execute: bool,
    /// Do not ask.
    pub yes: bool,
    /// Delete although the table has what Dify's does not.
    pub despite_oddities: bool,
    pub allow_fsync_off: bool,
    pub progress_every: Duration,
    pub format: Format,
    /// A page of the plan.
    pub page: Option<PageWish>,
}
