//! The flags, as the operator types them, and what they mean once checked.

pub mod common;
#[cfg(feature = "simulator")]
pub mod demo;
pub mod plan;
pub mod purge;
pub mod repair;
pub mod restore;
pub mod run;
#[cfg(feature = "simulator")]
pub mod simulate;
pub mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::args::common::{LedgerArgs, OUTPUT, PageArgs, TimingsArgs, parse_table, tables};
#[cfg(feature = "simulator")]
use crate::cli::args::demo::DemoArgs;
use crate::cli::args::plan::PlanArgs;
use crate::cli::args::purge::PurgeArgs;
use crate::cli::args::repair::RepairArgs;
use crate::cli::args::restore::RestoreArgs;
use crate::cli::args::run::RunArgs;
#[cfg(feature = "simulator")]
use crate::cli::args::simulate::SimulateArgs;
use crate::cli::args::verify::VerifyArgs;
use crate::cli::environment::Environment;
use crate::commands::audit::AuditSettings;
use crate::commands::doctor::DoctorSettings;
use crate::commands::init::InitSettings;
use crate::commands::output::Format;
use crate::commands::report::ReportSettings;
use crate::commands::status::StatusSettings;
use crate::record::table::Table;
use crate::sls::admin::NewLogstore;

const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill doctor                     # is everything ready?
  dify-sls-backfill run --dry-run              # what would be sent? writes nothing
  dify-sls-backfill init                       # create what is missing in SLS
  dify-sls-backfill run                        # send it, or continue after any stop
  dify-sls-backfill --env-file docker/.env run # with the settings in Dify's .env

Exit codes:
  0 done   2 wrong usage or setting   3 not ready, nothing was sent   4 SLS differs from the ledger
  5 done, but SLS refuses rows   6 another run is active   70 failed
  75 stopped with work left: run the same command again";

/// Moves Dify's workflow history from Postgres to Aliyun SLS, and verifies that it arrived.
///
/// The settings are the environment variables that Dify itself uses: DB_HOST, DB_PORT, DB_USERNAME,
/// DB_PASSWORD, DB_DATABASE, DB_EXTRAS (or DATABASE_URL) for Postgres; ALIYUN_SLS_ENDPOINT,
/// ALIYUN_SLS_REGION, ALIYUN_SLS_PROJECT_NAME, ALIYUN_SLS_ACCESS_KEY_ID and
/// ALIYUN_SLS_ACCESS_KEY_SECRET for SLS. They can also be read from Dify's own .env (--env-file),
/// and secrets from files of their own (DB_PASSWORD_FILE, …).
#[derive(Parser)]
#[command(version = env!("SLS_BACKFILL_VERSION"), max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
#[command(next_help_heading = OUTPUT)]
pub struct GlobalArgs {
    /// Read settings from this file, such as Dify's .env. Can be given several times: a later file
    /// overrides an earlier one, and the environment overrides all files
    #[arg(long = "env-file", global = true, value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Format of the results on standard output
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    /// Format of the messages on standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log more, as SQLALCHEMY_ECHO=true does; given twice, everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl GlobalArgs {
    /// The format of results.
    pub fn format(&self) -> Format {
        match self.output {
            OutputFormat::Text => Format::Text,
            OutputFormat::Json => Format::Json,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum OutputFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// The commands, the most used ones first.
#[derive(Subcommand)]
pub enum Command {
    /// Send the history to SLS, or continue where the last run stopped, and verify it
    #[command(after_help = run::EXAMPLES)]
    Run(Box<RunArgs>),
    /// Say what a run would do: rows, bytes, requests, time and what limits it, cost; writes nothing
    #[command(after_help = plan::EXAMPLES)]
    Plan(Box<PlanArgs>),
    /// Compare what SLS holds with the ledger and Postgres: by count, by content, or by what Dify shows
    #[command(after_help = verify::EXAMPLES)]
    Verify(VerifyArgs),
    /// Work through what `verify --level content` has found; without --execute only a plan
    #[command(after_help = repair::EXAMPLES)]
    Repair(RepairArgs),
    /// Delete rows of Postgres whose logs are proved; without --execute only a plan
    #[command(after_help = purge::EXAMPLES)]
    Purge(Box<PurgeArgs>),
    /// Bring purged rows back from SLS; without --execute only a plan
    #[command(after_help = restore::EXAMPLES)]
    Restore(RestoreArgs),
    /// Report what was done, from the ledger alone: days, throughput, held rows, findings; as a page
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Show where every row is, from the ledger alone
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Check settings, Postgres, ledger and SLS; changes nothing
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Create the project, logstores, indexes and ledger where they are missing
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Read SLS and record what the ledger lacks, after it was copied, restored or lost
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditArgs),
    /// Serve a local SLS, to try things without an account
    #[cfg(feature = "simulator")]
    #[command(after_help = crate::cli::args::simulate::EXAMPLES)]
    Simulate(SimulateArgs),
    /// Create Dify-like history in an empty database, and show a whole backfill with it
    #[cfg(feature = "simulator")]
    #[command(after_help = crate::cli::args::demo::EXAMPLES)]
    Demo(DemoArgs),
}

const STATUS_EXAMPLES: &str = "\
Examples:
  dify-sls-backfill status
  dify-sls-backfill status --output json | jq .tables.workflow_runs.held";

const REPORT_EXAMPLES: &str = "\
Examples:
  dify-sls-backfill report --html report.html
  dify-sls-backfill report --output json | jq .tables.workflow_runs.hours";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  dify-sls-backfill doctor
  dify-sls-backfill doctor --probe   # also ask SLS whether it refuses repeated sequence numbers

Exits with 3 where `run` would fail.";

const INIT_EXAMPLES: &str = "\
Examples:
  dify-sls-backfill init
  dify-sls-backfill init --ttl-days 3650 --shards 4   # keep logs for ever, write faster

Safe to repeat, and beside a running Dify: what exists is kept, an index only gets what Dify needs.";

const AUDIT_EXAMPLES: &str = "\
Examples:
  dify-sls-backfill audit --dry-run   # what does SLS hold that the ledger lacks?
  dify-sls-backfill audit             # record it; takes at least 22 minutes

When it is done, `run` continues and sends nothing twice. It can be stopped and repeated.";

#[derive(Args)]
pub struct ReportArgs {
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl ReportArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<ReportSettings> {
        let postgres = environment.postgres(self.ledger.ledger_url.as_deref())?;
        Ok(ReportSettings {
            page: self.page.wish(&postgres, environment.sls(30).ok().as_ref()),
            postgres,
            tables: tables(&self.tables),
            format,
            allow_fsync_off: self.ledger.allow_fsync_off,
        })
    }
}

#[derive(Args)]
pub struct InitArgs {
    /// Days that a new logstore keeps logs; 3650 means for ever [default: ALIYUN_SLS_LOGSTORE_TTL,
    /// else 365]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    ttl_days: Option<u32>,
    /// Shards of a new logstore; each takes about 5 MB/s
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    shards: u32,
    /// Whether SLS may split busy shards of a new logstore
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    auto_split: bool,
    /// How many shards a new logstore may grow to
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    shards_max: u32,
    /// How long to wait after an index was created, until SLS uses it [default: 60; 0 for a local
    /// SLS]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    index_wait_s: Option<u64>,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl InitArgs {
    pub fn settings(&self, environment: &Environment) -> anyhow::Result<InitSettings> {
        let ttl_days = match self.ttl_days {
            Some(days) => days,
            None => environment.number("ALIYUN_SLS_LOGSTORE_TTL", 365)?,
        };
        anyhow::ensure!(
            (1..=3650).contains(&ttl_days),
            "ALIYUN_SLS_LOGSTORE_TTL is {ttl_days}, not 1 to 3650 days"
        );
        let sls = environment.sls(30)?;
        // The vendor's own tools wait a minute before they write.
        let index_wait_s = if sls.endpoint.is_loopback { 0 } else { 60 };
        Ok(InitSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            logstores: NewLogstore {
                ttl_days,
                shards: self.shards,
                auto_split: self.auto_split,
                shards_max: self.shards_max,
            },
            index_wait: Duration::from_secs(self.index_wait_s.unwrap_or(index_wait_s)),
            allow_fsync_off: self.ledger.allow_fsync_off,
            sls,
        })
    }
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Also test whether SLS refuses a sequence number that it has stored, on a logstore made for
    /// that and deleted again, and record the result in the ledger
    #[arg(long)]
    probe: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl DoctorArgs {
    pub fn settings(&self, environment: &Environment, format: Format) -> DoctorSettings {
        DoctorSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref()),
            sls: environment.sls(30),
            probe: self.probe,
            allow_fsync_off: self.ledger.allow_fsync_off,
            format,
        }
    }
}

#[derive(Args)]
pub struct AuditArgs {
    /// Only report what SLS holds and the ledger lacks; write nothing, wait for nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    timings: TimingsArgs,
}

impl AuditArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<AuditSettings> {
        let sls = environment.sls(60)?;
        Ok(AuditSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            timings: self.timings.timings(sls.endpoint.is_loopback)?,
            sls,
            dry_run: self.dry_run,
            allow_fsync_off: self.ledger.allow_fsync_off,
            format,
        })
    }
}

#[derive(Args)]
pub struct StatusArgs {
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl StatusArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<StatusSettings> {
        Ok(StatusSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            tables: tables(&self.tables),
            format,
            allow_fsync_off: self.ledger.allow_fsync_off,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
