//! The flags, as the operator types them, and what they mean once checked.

pub mod common;
pub mod run;

#[cfg(feature = "simulator")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::args::common::{LedgerArgs, TimingsArgs, parse_table, tables};
use crate::cli::args::run::RunArgs;
use crate::cli::environment::Environment;
use crate::commands::audit::AuditSettings;
use crate::commands::doctor::DoctorSettings;
use crate::commands::init::InitSettings;
use crate::commands::output::Format;
use crate::commands::status::StatusSettings;
use crate::record::table::Table;
use crate::sls::admin::NewLogstore;

/// Moves Dify's workflow history from Postgres to Aliyun SLS, proves it, and loses nothing.
///
/// Postgres and SLS are named by the environment variables that Dify itself uses: DB_HOST, DB_PORT,
/// DB_USERNAME, DB_PASSWORD, DB_DATABASE, DB_EXTRAS (or DATABASE_URL), ALIYUN_SLS_ENDPOINT,
/// ALIYUN_SLS_REGION, ALIYUN_SLS_PROJECT_NAME, ALIYUN_SLS_ACCESS_KEY_ID,
/// ALIYUN_SLS_ACCESS_KEY_SECRET. They may stand in Dify's own .env (--env-file), secrets also in
/// files (DB_PASSWORD_FILE, …).
#[derive(Parser)]
#[command(version = env!("SLS_BACKFILL_VERSION"), max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct GlobalArgs {
    /// Take settings from this file, such as Dify's .env; a later file, and the environment, are
    /// stronger
    #[arg(long = "env-file", global = true, value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Form of results on standard output
    #[arg(long, global = true, value_enum, default_value = "text")]
    output: OutputFormat,
    /// Form of messages on standard error
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Tell more, as with SQLALCHEMY_ECHO=true; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Tell only what is odd or wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl GlobalArgs {
    /// The form of results.
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

#[derive(Subcommand)]
pub enum Command {
    /// Look whether everything is fit; writes nothing
    Doctor(DoctorArgs),
    /// Make project, logstores and indexes where they are missing, and the ledger
    Init(InitArgs),
    /// Migrate, go on where the last run stopped, and verify
    Run(Box<RunArgs>),
    /// Look into SLS and write down what the ledger lacks, after it was copied or restored
    Audit(AuditArgs),
    /// Show where every row has gone, from the ledger
    Status(StatusArgs),
    /// Serve a local SLS, to try things out without an account
    #[cfg(feature = "simulator")]
    Simulate(SimulateArgs),
    /// Make Dify-like history in a database, and show the whole way of a backfill with it
    #[cfg(feature = "simulator")]
    Demo(DemoArgs),
}

#[derive(Args)]
pub struct InitArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Days that new logstores keep logs; 3650 is for ever [default: ALIYUN_SLS_LOGSTORE_TTL, 365]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    ttl_days: Option<u32>,
    /// Shards of new logstores; each takes about 5 MB/s
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    shards: u32,
    /// Whether SLS may divide shards of new logstores that have too much to do
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    auto_split: bool,
    /// How many shards a new logstore may have then
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=256))]
    shards_max: u32,
    /// Seconds to wait after making an index until SLS uses it [default: 60; 0 on this machine]
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=600))]
    index_wait_s: Option<u64>,
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
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Try out on a logstore of its own whether SLS refuses a number that it has stored, and note
    /// the result in the ledger
    #[arg(long)]
    probe: bool,
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
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    timings: TimingsArgs,
    /// Only tell what SLS holds and the ledger lacks: writes nothing, waits for nothing
    #[arg(long)]
    dry_run: bool,
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
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
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

#[cfg(feature = "simulator")]
#[derive(Args)]
pub struct SimulateArgs {
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long, default_value = "127.0.0.1:8100")]
    listen: SocketAddr,
    /// Shards of a logstore that is made without saying how many
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: u32,
    /// Check and count what is written, and store nothing: for measuring
    #[arg(long)]
    count_only: bool,
    /// Behave so where SLS's behaviour is not known or not sure; can be given again. GET
    /// /_sim/switches lists the names, PATCH changes them later
    #[arg(long = "switch", value_name = "NAME=VALUE")]
    switch: Vec<String>,
    /// The same from a file, an object of JSON
    #[arg(long, value_name = "FILE")]
    switches: Option<PathBuf>,
    /// Break requests as this file says, a line of JSON each, as POST /_sim/faults takes them
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Keep everything in this folder, so that it survives the end, however it comes
    #[arg(long, value_name = "DIR", conflicts_with = "count_only")]
    data: Option<PathBuf>,
    /// Append every request to this file, a line of JSON each
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
    /// Listen also where other machines can reach it, and read and break everything
    #[arg(long)]
    i_know_this_guards_nothing: bool,
}

#[cfg(feature = "simulator")]
impl SimulateArgs {
    pub fn settings(
        &self,
        environment: &Environment,
    ) -> anyhow::Result<crate::commands::simulate::SimulateSettings> {
        use crate::commands::simulate::{read_faults, read_switches};
        Ok(crate::commands::simulate::SimulateSettings {
            listen: self.listen,
            credentials: environment.simulator_credentials(),
            shards: self.shards,
            count_only: self.count_only,
            switches: read_switches(self.switches.as_deref(), &self.switch)?,
            faults: self.faults.as_deref().map_or(Ok(Vec::new()), read_faults)?,
            data: self.data.clone(),
            request_log: self.request_log.clone(),
            guards_nothing: self.i_know_this_guards_nothing,
        })
    }
}

#[cfg(feature = "simulator")]
#[derive(Args)]
pub struct DemoArgs {
    /// Node executions to make
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: u64,
    /// The same seed makes the same history
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many days back the history goes
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// What the history looks like
    #[arg(long, value_enum, default_value = "mixed")]
    profile: ProfileArg,
    /// Only make the tables and fill them
    #[arg(long)]
    fill_only: bool,
}

#[cfg(feature = "simulator")]
#[derive(Clone, Copy, ValueEnum)]
enum ProfileArg {
    Mixed,
    Bench,
}

#[cfg(feature = "simulator")]
impl DemoArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        env_files: &[PathBuf],
    ) -> anyhow::Result<crate::commands::demo::DemoSettings> {
        Ok(crate::commands::demo::DemoSettings {
            postgres: environment.postgres(None)?,
            rows: self.rows,
            seed: self.seed,
            days: self.days,
            for_measuring: matches!(self.profile, ProfileArg::Bench),
            fill_only: self.fill_only,
            env_files: env_files.to_vec(),
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
