//! The flags of `run`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use uuid::Uuid;

use crate::cli::args::common::{
    LedgerArgs, OUTPUT, PageArgs, TimingsArgs, parse_table, parse_time, tables, typed,
};
use crate::cli::args::purge::PurgeArgs;
use crate::cli::args::verify::VerifyArgs;
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::run_and_purge::Stages;
use crate::commands::run_settings::{RunSettings, Verify, Workers};
use crate::commands::setup::SlsSettings;
use crate::dify::conversion::LogTime;
use crate::pipeline::guard::pace::Rates;
use crate::pipeline::read::batching::BatchLimits;
use crate::pipeline::read::range_size::RANGE_ROWS;
use crate::pipeline::read::window::Wish;
use crate::pipeline::send::canary::CanarySettings;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill run --dry-run                   # what would be sent? writes nothing
  dify-sls-backfill run --max-rows 1000             # a first try
  dify-sls-backfill run                             # everything else, and after any stop
  dify-sls-backfill run --until 2026-01-31 --bytes-per-s 5MB
  dify-sls-backfill run --join                      # help an active run from another machine
  dify-sls-backfill run --retry rejects.jsonl       # try these held rows again
  dify-sls-backfill run --purge --purge-older-than 30d    # for cron: send, prove, purge

Exit code 75 means: run the same command again. Ctrl-C finishes what is in flight.";

// The headings in `--help`, in their order.
const ROWS: &str = "Which rows";
const RATES: &str = "Rate limits";
const OLD_ROWS: &str = "Old rows";
const READING: &str = "Reading Postgres";
const SENDING: &str = "Sending";

#[derive(Args)]
pub struct RunArgs {
    /// Read, convert and pack everything, and write nothing, neither to Postgres nor to SLS
    #[arg(long)]
    dry_run: bool,
    /// Dify's database has moved to another server since the last run, with all that was in it
    #[arg(long, conflicts_with_all = ["dry_run", "join"])]
    new_source: bool,
    /// Then read everything back, and purge what is proved: for a cron job
    #[arg(long, conflicts_with_all = ["dry_run", "join"])]
    purge: bool,
    /// With --purge: only rows that finished longer ago
    #[arg(long, value_name = "AGE", default_value = "30d", requires = "purge")]
    purge_older_than: String,
    /// With --purge: days that SLS must keep the logs from now on
    #[arg(long, value_name = "DAYS", default_value_t = 180, requires = "purge")]
    purge_keep: u32,
    /// Stop after this many rows, for a first try
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows: Option<u64>,
    /// Share the work of a run that is active, here or on another machine
    #[arg(long, conflicts_with = "dry_run")]
    join: bool,
    /// Write the rows that need attention to this file, as JSON lines
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    rejects: Option<PathBuf>,
    /// Try the held rows in this file again, whatever their reason; --rejects writes such a file
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    retry: Option<PathBuf>,
    /// How to verify what was sent: read every batch back and compare its count and digest, or not
    /// at all
    #[arg(long, value_enum, default_value = "tags")]
    verify: VerifyArg,
    /// Continue an open pass although Dify's columns, --log-time or LOGSTORE_ENABLE_PUT_GRAPH_FIELD
    /// have changed; batches from now on are converted the new way
    #[arg(long)]
    new_conversion: bool,
    /// Do not look up which rows Dify's own writer has stored already: the other logs in the logstore
    /// are of none of Dify's rows. If they are, these rows will be there twice
    #[arg(long, conflicts_with = "dry_run")]
    beside_live_writer: bool,
    /// Send again what was in SLS and an audit did not find there any more
    #[arg(long, conflicts_with_all = ["dry_run", "join"])]
    resend_lost: bool,

    /// Only these tables
    #[arg(long, help_heading = ROWS, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Only rows created at this time (UTC) or later [default: 48 h before the end of what is
    /// covered; at first, everything]
    #[arg(long, help_heading = ROWS, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only rows created before this time (UTC) [default: now, less --settle-s]
    #[arg(long, help_heading = ROWS, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only rows of this tenant
    #[arg(long, help_heading = ROWS, value_name = "ID")]
    tenant: Option<Uuid>,
    /// Only rows of this app
    #[arg(long, help_heading = ROWS, value_name = "ID")]
    app: Option<Uuid>,
    /// Leave rows that finished less than this long ago to the next run: they may still change
    #[arg(long, help_heading = ROWS, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(i64).range(0..=604_800))]
    settle_s: i64,
    /// Look only in turn at rows that have been running for more than this long
    #[arg(long, help_heading = ROWS, value_name = "DAYS", default_value_t = 30,
          value_parser = clap::value_parser!(i64).range(1..=3650))]
    abandoned_after_days: i64,
    /// At most this many rows of a table that are held for long are looked at again, the longest
    /// first
    #[arg(long, help_heading = ROWS, value_name = "ROWS", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    held_rows_max: u32,

    /// At most this many PutLogs requests a second, retries included
    #[arg(long, help_heading = RATES, value_name = "N")]
    requests_per_s: Option<NonZeroU32>,
    /// At most this many bytes a second, before compression: 5000000, 5MB, 64KiB
    #[arg(long, help_heading = RATES, value_name = "SIZE", value_parser = parse_kib)]
    bytes_per_s: Option<NonZeroU32>,
    /// At most this many rows a second
    #[arg(long, help_heading = RATES, value_name = "N")]
    rows_per_s: Option<NonZeroU32>,
    /// Do not read while a replica of the source, or the source itself, is further behind
    #[arg(long, help_heading = RATES, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..))]
    replica_lag_max_s: Option<u32>,

    /// The time of a log: when its row finished, as Dify's charts need it; or when it is sent, for
    /// an SLS that refuses old times
    #[arg(long, help_heading = OLD_ROWS, value_enum, default_value = "finished-at")]
    log_time: LogTimeArg,
    /// Also send rows that are older than their logstore keeps logs, and do not expect SLS's search
    /// to find them
    #[arg(long, help_heading = OLD_ROWS)]
    beyond_ttl: bool,
    /// Do not wait until SLS's search finds the oldest rows before other rows of that age are sent
    #[arg(long, help_heading = OLD_ROWS)]
    no_canary_search: bool,
    /// How long SLS may take to give back the oldest rows, before the run stops and you decide
    #[arg(long, help_heading = OLD_ROWS, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pull_wait_s: u64,
    /// Send rows again that SLS has acknowledged and certainly does not keep: a run before has stopped
    /// for them, and reading everything finds nothing of them
    #[arg(long, conflicts_with = "dry_run", help_heading = OLD_ROWS)]
    resend_unkept: bool,
    /// How long SLS's search may take to find the oldest rows
    #[arg(long, help_heading = OLD_ROWS, value_name = "SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    search_wait_s: u64,

    /// Read in this order [default: the best that the indexes allow]
    #[arg(long, help_heading = READING, value_enum, value_name = "ORDER")]
    key_order: Option<KeyOrderArg>,
    /// Allow a second walk over all rows of a large table that has no index for the window
    #[arg(long, help_heading = READING)]
    walk: bool,
    /// About how many rows a worker claims at a time
    #[arg(long, help_heading = READING, value_name = "ROWS", default_value_t = RANGE_ROWS,
          value_parser = clap::value_parser!(u32).range(20..=10_000_000))]
    range_rows: u32,
    /// At most this many connections to Postgres, the ledger's among them [default: as many as are of
    /// use, fewer where the server has not many left]
    #[arg(long, help_heading = READING, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=1000))]
    connections: Option<u32>,
    /// Hold a row that is larger, without reading it
    #[arg(long, help_heading = READING, value_name = "MIB", default_value_t = 16,
          value_parser = clap::value_parser!(u64).range(1..=256))]
    row_mib_max: u64,

    /// Batches that are prepared and sent at the same time [default: 8, and up to 64 while SLS's
    /// answers are what is waited for]
    #[arg(long, help_heading = SENDING, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// First split each logstore that is sent to until so many of its shards take writes; nothing
    /// merges them again
    #[arg(long, help_heading = SENDING, value_name = "N", conflicts_with = "dry_run",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    split_shards: Option<u32>,
    /// Memory for batches that are being prepared
    #[arg(long, help_heading = SENDING, value_name = "MIB", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(8..=65_536))]
    memory_mib: u64,
    /// The largest batch, before compression
    #[arg(long, help_heading = SENDING, value_name = "KIB", default_value_t = 2048,
          value_parser = clap::value_parser!(u64).range(64..=8192))]
    batch_kib: u64,
    /// How long a request to SLS may take
    #[arg(long, help_heading = SENDING, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline_s: u64,
    /// Do not test whether SLS refuses repeated sequence numbers; a run does that once a project, on
    /// a logstore made for it
    #[arg(long, help_heading = SENDING)]
    no_probe: bool,
    #[command(flatten)]
    timings: TimingsArgs,

    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    page: PageArgs,

    /// How often progress is logged where there is no progress bar
    #[arg(long, help_heading = OUTPUT, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    progress_every_s: u64,
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
    /// The stages of `run --purge`; `None`: a run alone.
    pub fn stages(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<Option<Stages>> {
        if !self.purge {
            return Ok(None);
        }
        let tables: Vec<_> = self.tables.iter().map(|table| table.name()).collect();
        let mut shared = vec![format!("--tables={}", tables.join(","))];
        shared.extend(self.ledger.ledger_url.iter().map(|url| format!("--ledger-url={url}")));
        shared.extend(self.ledger.allow_fsync_off.then(|| "--allow-fsync-off".to_owned()));
        let mut verify = vec!["--level=content".to_owned()];
        verify.extend(self.timings.as_typed());
        verify.extend(self.connections.map(|n| format!("--connections={n}")));
        let mut purge = vec![
            "--execute".to_owned(),
            "--yes".to_owned(),
            format!("--older-than={}", self.purge_older_than),
            format!("--keep={}", self.purge_keep),
        ];
        purge.extend(self.tenant.iter().map(|id| format!("--tenant={id}")));
        purge.extend(self.app.iter().map(|id| format!("--app={id}")));
        Ok(Some(Stages {
            run: self.settings(environment, format)?,
            verify: typed::<VerifyArgs>("verify", [shared.clone(), verify].concat())?
                .settings(environment, format)?,
            purge: typed::<PurgeArgs>("purge", [shared, purge].concat())?
                .settings(environment, format)?,
        }))
    }

    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<RunSettings> {
        let sls = match self.dry_run {
            true => None,
            false => Some(environment.sls(self.deadline_s)?),
        };
        anyhow::ensure!(
            self.dry_run || !self.page.is_asked(),
            "--html is for `run --dry-run`: when the run is done, `report --html` makes a page of it"
        );
        self.settings_with(environment, format, sls)
    }

    /// The settings of a run that is only planned: without an SLS where none is set.
    pub fn settings_to_plan(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<RunSettings> {
        self.settings_with(environment, format, environment.sls(self.deadline_s).ok())
    }

    fn settings_with(
        &self,
        environment: &Environment,
        format: Format,
        sls: Option<SlsSettings>,
    ) -> anyhow::Result<RunSettings> {
        let is_loopback = sls.as_ref().is_none_or(|sls| sls.endpoint.is_loopback);
        let timings = self.timings.timings(is_loopback)?;
        let visible_s = timings.visible_s.unsigned_abs();
        anyhow::ensure!(
            is_loopback || self.pull_wait_s >= visible_s,
            "--pull-wait-s below {visible_s} could take for lost what only is not visible yet: it is \
             for a local SLS only"
        );
        anyhow::ensure!(
            !(self.resend_unkept && matches!(self.verify, VerifyArg::None)),
            "--resend-unkept must read everything first: it does not go with --verify none"
        );
        let postgres = environment.postgres(self.ledger.ledger_url.as_deref())?;
        Ok(RunSettings {
            page: self.page.wish(&postgres, sls.as_ref()),
            postgres,
            sls,
            timings,
            probe: !self.no_probe,
            tables: tables(&self.tables),
            wish: self.wish(),
            rows_max: self.max_rows,
            workers: self.workers.map_or(Workers::BY_NEED, Workers::exactly),
            connections: self.connections,
            split_shards: self.split_shards,
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
            },
            row_bytes_max: self.row_mib_max << 20,
            memory_bytes: self.memory_mib << 20,
            range_rows: self.range_rows,
            settle_s: self.settle_s,
            abandoned_after_s: self.abandoned_after_days * 86_400,
            held_rows_max: self.held_rows_max,
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
            resend_unkept: self.resend_unkept,
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

    /// The window, the filter and the order that the operator asks for.
    fn wish(&self) -> Wish {
        Wish {
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
        }
    }
}

/// A size such as `5000000`, `5MB` or `64KiB`, in KiB, rounded down.
pub fn parse_kib(text: &str) -> anyhow::Result<NonZeroU32> {
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
