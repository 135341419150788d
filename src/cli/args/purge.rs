//! The flags of `purge`.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, ValueEnum};
use uuid::Uuid;

use crate::cli::args::common::{LedgerArgs, PageArgs, parse_age, parse_table, parse_time, tables};
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::purge::settings::PurgeSettings;
use crate::pipeline::guard::pace::Rates;
use crate::pipeline::purge::fate::PurgeRules;
use crate::pipeline::purge::gate::GateLimits;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::writable::WriteLimits;

/// Printed behind the flags.
pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill purge --older-than 30d                    # the plan
  dify-sls-backfill purge --older-than 30d --execute          # asks, then deletes
  dify-sls-backfill purge --execute --yes --vacuum            # for a script
";

#[derive(Args)]
#[command(
    after_help = "Example:\n  dify-sls-backfill purge --older-than 30d               # the plan\n  \
                        dify-sls-backfill purge --older-than 30d --execute     # asks, then deletes"
)]
pub struct PurgeArgs {
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Delete; without it only the plan is printed, and nothing is written
    #[arg(long)]
    execute: bool,
    /// Only rows that finished longer ago: 30d, 12h
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = parse_age)]
    older_than: i64,
    /// Days that SLS must keep the logs from now on; a row whose log goes earlier stays
    #[arg(long, value_name = "DAYS", default_value_t = 180,
          value_parser = clap::value_parser!(u32).range(0..=3650))]
    keep: u32,
    /// Do not ask for the table's name to be typed
    #[arg(long)]
    yes: bool,
    /// Keep rows that were made while somebody tried a workflow or a node out
    #[arg(long)]
    keep_debugging: bool,
    /// Delete rows although their logs leave this column out, and it is not empty
    #[arg(long, value_name = "COLUMN", value_enum)]
    drop: Option<DropArg>,
    /// VACUUM (ANALYZE) each table at the end: the space is used again, not given back to the disk
    #[arg(long)]
    vacuum: bool,
    /// Only these tables
    #[arg(long, help_heading = "Which rows", value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Only rows that finished at this time (UTC) or later
    #[arg(long, help_heading = "Which rows", value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only rows that finished before this time (UTC)
    #[arg(long, help_heading = "Which rows", value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only rows of this tenant
    #[arg(long, help_heading = "Which rows", value_name = "ID")]
    tenant: Option<Uuid>,
    /// Only rows of this app
    #[arg(long, help_heading = "Which rows", value_name = "ID")]
    app: Option<Uuid>,
    /// The primary, where the source is a replica [default: the source]
    #[arg(long, help_heading = "Kindness", value_name = "URL")]
    purge_url: Option<String>,
    /// At most so many rows a second
    #[arg(long, help_heading = "Kindness", value_name = "N")]
    rows_per_s: Option<NonZeroU32>,
    /// Wait while a replica is further behind (seconds)
    #[arg(long, help_heading = "Kindness", value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..))]
    replica_lag_max_s: u32,
    /// Wait while replication slots keep more WAL (GiB)
    #[arg(long, help_heading = "Kindness", value_name = "GIB", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    slot_wal_max_gib: u32,
    /// Wait while more other sessions are at work [default: as many as like]
    #[arg(long, help_heading = "Kindness", value_name = "N")]
    active_sessions_max: Option<u32>,
    /// How long a statement may wait for a lock that Dify holds (milliseconds)
    #[arg(long, help_heading = "Kindness", value_name = "MS", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    lock_timeout_ms: u64,
    /// How long a statement may take (milliseconds); half as many rows are tried after that
    #[arg(long, help_heading = "Kindness", value_name = "MS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(100..=600_000))]
    statement_timeout_ms: u64,
    /// How old the proof may be by which a row goes; an older one is renewed (seconds)
    #[arg(long, help_heading = "Kindness", value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    proof_age_max_s: u64,
    /// Delete although the table is partitioned, or has triggers or foreign keys that Dify's has not
    #[arg(long, help_heading = "Kindness")]
    despite_oddities: bool,
    /// How often progress is told where there are no bars (seconds)
    #[arg(long, help_heading = "Kindness", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    progress_every_s: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum DropArg {
    Graph,
}

impl PurgeArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<PurgeSettings> {
        let postgres = environment.postgres(self.ledger.ledger_url.as_deref())?;
        let sls = environment.sls(60)?;
        Ok(PurgeSettings {
            page: self.page.wish(&postgres, Some(&sls)),
            target: environment.target(self.purge_url.as_deref())?,
            postgres,
            sls,
            tables: tables(&self.tables),
            since: self.since,
            until: self.until,
            older_than_s: self.older_than,
            tenant_id: self.tenant,
            app_id: self.app,
            keep_days: self.keep,
            rules: PurgeRules {
                keep_debugging: self.keep_debugging,
                drop_columns: matches!(self.drop, Some(DropArg::Graph)),
            },
            rates: Rates { rows_per_s: self.rows_per_s, ..Rates::default() },
            gate: GateLimits {
                replica_lag_max_s: self.replica_lag_max_s.into(),
                slot_wal_bytes_max: i64::from(self.slot_wal_max_gib) << 30,
                active_sessions_max: self.active_sessions_max.map(i64::from),
            },
            write_limits: WriteLimits {
                statement_timeout: Duration::from_millis(self.statement_timeout_ms),
                lock_timeout: Duration::from_millis(self.lock_timeout_ms),
            },
            proof_age_max: Duration::from_secs(self.proof_age_max_s),
            vacuum: self.vacuum,
            execute: self.execute,
            yes: self.yes,
            despite_oddities: self.despite_oddities,
            allow_fsync_off: self.ledger.allow_fsync_off,
            progress_every: Duration::from_secs(self.progress_every_s),
            format,
        })
    }
}
