//! The flags of `run`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use uuid::Uuid;

use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::run_settings::{RunSettings, Verify};
use crate::dify::conversion::LogTime;
use crate::pipeline::guard::pace::Rates;
use crate::pipeline::read::batching::BatchLimits;
use crate::pipeline::read::range_size::RANGE_ROWS;
use crate::pipeline::read::window::Wish;
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::send::canary::CanarySettings;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

use crate::cli::args::{LedgerArgs, parse_table, parse_time, tables};

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Rows created at this time (UTC) or later [default: 48 h before the end of what is covered]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Rows created before this time (UTC) [default: now, less --settle-s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Only rows of this tenant
    #[arg(long, value_name = "ID")]
    tenant: Option<Uuid>,
    /// Only rows of this app
    #[arg(long, value_name = "ID")]
    app: Option<Uuid>,
    /// Stop after that many rows, for a first try
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows: Option<u64>,
    /// Read, convert and pack everything, and write nothing anywhere
    #[arg(long)]
    dry_run: bool,
    /// Go on with an open pass although Dify's columns or LOGSTORE_ENABLE_PUT_GRAPH_FIELD changed:
    /// the batches to come are made by the new ones
    #[arg(long)]
    new_conversion: bool,
    /// Dify's database has moved to another server since the last run, with all that was in it
    #[arg(long, conflicts_with_all = ["dry_run", "join"])]
    new_source: bool,
    /// Share the ranges of a run that is at work, here or on another machine
    #[arg(long, conflicts_with = "dry_run")]
    join: bool,
    /// How to check the upload: pull every batch back, or not at all
    #[arg(long, value_enum, default_value = "tags")]
    verify: VerifyArg,
    /// The time of a log: when its row finished, as Dify's charts want it, or when it is sent, for
    /// an SLS that refuses old times
    #[arg(long, value_enum, default_value = "finished-at")]
    log_time: LogTimeArg,
    /// Send also rows that are older than their logstore keeps logs; SLS's search is then not asked
    /// for the oldest rows
    #[arg(long)]
    beyond_ttl: bool,
    /// How long SLS may take to give back the oldest rows (seconds)
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pull_wait_s: u64,
    /// Do not wait until SLS's search finds the oldest rows before others of their age go
    #[arg(long)]
    no_canary_search: bool,
    /// How long SLS's search may take to find the oldest rows (seconds)
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    search_wait_s: u64,
    /// Batches in the making and in flight at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// At most so many requests to PutLogs a second, repetitions included
    #[arg(long, value_name = "N")]
    requests_per_s: Option<NonZeroU32>,
    /// At most so many bytes a second, before compression: 5000000, 5MB, 64KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_kib)]
    bytes_per_s: Option<NonZeroU32>,
    /// At most so many rows a second
    #[arg(long, value_name = "N")]
    rows_per_s: Option<NonZeroU32>,
    /// Wait while a replica of the source is further behind (seconds)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    replica_lag_max_s: Option<u32>,
    /// How often progress is told where there are no bars (seconds)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    progress_every_s: u64,
    /// Read in this order [default: the best that the indexes allow]
    #[arg(long, value_enum)]
    key_order: Option<KeyOrderArg>,
    /// Look at every row of a large table again, though it has no index for the window
    #[arg(long)]
    walk: bool,
    /// Rows that finished less than that many seconds ago may still change, and wait
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(i64).range(0..=604_800))]
    settle_s: i64,
    /// Rows that are still running after that many days are taken to run for ever
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=3650))]
    abandoned_after_days: i64,
    /// A batch is cut before it has more bytes (KiB, before compression)
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..=8192))]
    batch_kib: u64,
    /// A row with more bytes is held, not read (MiB)
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=256))]
    row_mib_max: u64,
    /// Memory for batches in the making (MiB)
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(8..=65_536))]
    memory_mib: u64,
    /// About how many rows a worker claims at once
    #[arg(long, default_value_t = RANGE_ROWS, value_parser = clap::value_parser!(u32).range(20..=10_000_000))]
    range_rows: u32,
    /// Do not try out whether SLS keeps numbers (done once a project, on a logstore of its own)
    #[arg(long)]
    no_probe: bool,
    /// List the rows that something is wrong with in this file, as JSON lines
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    rejects: Option<PathBuf>,
    /// Try the held rows that this rejects file names again, whatever the reason
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    retry: Option<PathBuf>,
    /// Send rows although the logstore holds logs of another writer, such as Dify's own, which may
    /// have stored them already: they would be there twice
    #[arg(long, conflicts_with = "dry_run")]
    beside_live_writer: bool,
    /// Send again what was in SLS and an audit did not find there any more
    #[arg(long, conflicts_with_all = ["dry_run", "join"])]
    resend_lost: bool,
    /// How long a request to SLS may take (seconds)
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline_s: u64,
    #[command(flatten)]
    timings: TimingsArgs,
}

/// What is assumed of SLS's times; only tests against a local SLS may assume less.
#[derive(Args)]
pub struct TimingsArgs {
    /// A request is refused when its signature is older (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.signature_life_s,
          value_parser = clap::value_parser!(i64).range(1..))]
    signature_life_s: i64,
    /// A request that came in time is stored at most so much later (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.late_s,
          value_parser = clap::value_parser!(i64).range(0..))]
    late_s: i64,
    /// What is stored can be pulled at most so much later (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.visible_s,
          value_parser = clap::value_parser!(i64).range(0..))]
    visible_s: i64,
}

impl TimingsArgs {
    /// Refuses shorter windows than SLS's own for an SLS that is not on this machine.
    pub fn timings(&self, is_loopback: bool) -> anyhow::Result<Timings> {
        let Self { signature_life_s, late_s, visible_s } = *self;
        let asked = Timings { signature_life_s, late_s, visible_s };
        let Timings { signature_life_s, late_s, visible_s } = Timings::SLS;
        anyhow::ensure!(
            is_loopback
                || (asked.signature_life_s >= signature_life_s
                    && asked.late_s >= late_s
                    && asked.visible_s >= visible_s),
            "--signature-life-s, --late-s and --visible-s below {signature_life_s}, {late_s} and \
             {visible_s} could double rows: they are for a local SLS only"
        );
        Ok(asked)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogTimeArg {
    FinishedAt,
    Ingest,
}

#[derive(Clone, Copy, ValueEnum)]
enum VerifyArg {
    None,
    Tags,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeyOrderArg {
    Time,
    ByRun,
    Walk,
}

impl RunArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<RunSettings> {
        let sls = match self.dry_run {
            true => None,
            false => Some(environment.sls(self.deadline_s)?),
        };
        let timings =
            self.timings.timings(sls.as_ref().is_none_or(|sls| sls.endpoint.is_loopback))?;
        Ok(RunSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            sls,
            timings,
            probe: !self.no_probe,
            tables: tables(&self.tables),
            wish: Wish {
                since: self.since,
                until: self.until,
                tenant_id: self.tenant,
                app_id: self.app,
                order: self.key_order.map(|order| match order {
                    KeyOrderArg::Time => KeyOrder::Time,
                    KeyOrderArg::ByRun => KeyOrder::ByRun,
                    KeyOrderArg::Walk => KeyOrder::Walk,
                }),
                walk: self.walk,
            },
            rows_max: self.max_rows,
            workers: self.workers,
            rates: Rates {
                requests_per_s: self.requests_per_s,
                rows_per_s: self.rows_per_s,
                kib_per_s: self.bytes_per_s,
            },
            replica_lag_max_s: self.replica_lag_max_s,
            progress_every: Duration::from_secs(self.progress_every_s),
            limits: BatchLimits {
                batch_bytes: self.batch_kib << 10,
                // SLS took 4,096 logs a request in every version of its documents.
                batch_logs_max: 4096,
                row_bytes_max: self.row_mib_max << 20,
            },
            memory_bytes: self.memory_mib << 20,
            range_rows: self.range_rows,
            settle_s: self.settle_s,
            abandoned_after_s: self.abandoned_after_days * 86_400,
            put_graph: environment.truth("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", true)?,
            log_time: match self.log_time {
                LogTimeArg::FinishedAt => LogTime::FinishedAt,
                LogTimeArg::Ingest => LogTime::Ingest,
            },
            beyond_ttl: self.beyond_ttl,
            canary: CanarySettings {
                pull_wait: Duration::from_secs(self.pull_wait_s),
                // What the TTL is over for is not found, by definition.
                search_wait: (!self.no_canary_search && !self.beyond_ttl)
                    .then(|| Duration::from_secs(self.search_wait_s)),
            },
            new_conversion: self.new_conversion,
            verify: match self.verify {
                VerifyArg::None => Verify::None,
                VerifyArg::Tags => Verify::Tags,
            },
            beside_live_writer: self.beside_live_writer,
            resend_lost: self.resend_lost,
            new_source: self.new_source,
            join: self.join,
            dry_run: self.dry_run,
            allow_fsync_off: self.ledger.allow_fsync_off,
            rejects: self.rejects.clone(),
            retry: self.retry.clone(),
            format,
        })
    }
}

/// A size such as `5000000`, `5MB` or `64KiB`, in KiB, rounded down.
fn parse_kib(text: &str) -> anyhow::Result<NonZeroU32> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => anyhow::bail!("it is a number of bytes such as 5000000, 5MB or 64KiB"),
    };
    let number: u64 = digits.parse().context("it is a number of bytes such as 5MB or 64KiB")?;
    let kib = number.saturating_mul(unit) / 1024;
    let kib = u32::try_from(kib).ok().context("it is more than a terabyte")?;
    NonZeroU32::new(kib).context("it is at least 1KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_or_without_a_unit() {
        for (text, kib) in [
            ("1024", 1),
            ("5MB", 4882),
            ("5m", 4882),
            ("5MiB", 5120),
            ("64KiB", 64),
            ("2k", 1),
            ("1GiB", 1 << 20),
            ("1gb", 976_562),
        ] {
            assert_eq!(parse_kib(text).unwrap().get(), kib, "{text}");
        }
        for text in ["", "0", "1023", "MB", "5 MB", "5TB", "-1", "1.5MB", "99999999GB"] {
            assert!(parse_kib(text).is_err(), "{text}");
        }
    }
}
