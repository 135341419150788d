//! The flags of `verify`.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::cli::args::common::{
    LedgerArgs, TimingsArgs, parse_duration, parse_table, parse_time, tables,
};
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::verify::{Level, VerifySettings};
use crate::ledger::verification::BatchScope;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Printed behind the flags.
pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill verify                          # counts, day by day
  dify-sls-backfill verify --level content          # reads every log back
  dify-sls-backfill verify --level content --recheck
";

#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Count rows and logs day by day, or pull every log back and compare it
    #[arg(long, value_enum, default_value = "counts")]
    level: LevelArg,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Only rows that finished on this day (UTC) or later; of batches those with such rows
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only rows that finished before this day (UTC); of batches those with such rows
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Content: only batches that were not proved within that time, such as 12h or 30d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    older_than: Option<i64>,
    /// Content: look again at what differed the last time, and at what SLS has received since
    #[arg(long, conflicts_with_all = ["since", "until", "older_than", "sample"])]
    recheck: bool,
    /// Content: a quick look at that part of the batches, such as 5%; proves nothing
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    sample: Option<u32>,
    /// How often progress is told where there are no bars (seconds)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    progress_every_s: u64,
    /// How long a request to SLS may take (seconds)
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=600))]
    deadline_s: u64,
    #[command(flatten)]
    timings: TimingsArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LevelArg {
    Counts,
    Content,
}

impl VerifyArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<VerifySettings> {
        let is_content = self.level == LevelArg::Content;
        anyhow::ensure!(
            is_content || !(self.recheck || self.sample.is_some() || self.older_than.is_some()),
            "--recheck, --sample and --older-than are about the content: add --level content"
        );
        let sls = environment.sls(self.deadline_s)?;
        Ok(VerifySettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            timings: self.timings.timings(sls.endpoint.is_loopback)?,
            sls,
            tables: tables(&self.tables),
            level: match (is_content, self.sample) {
                (_, Some(share)) => Level::Sample(share),
                (true, None) => Level::Content,
                (false, None) => Level::Counts,
            },
            scope: BatchScope { since: self.since, until: self.until, unproved_s: self.older_than },
            recheck: self.recheck,
            progress_every: Duration::from_secs(self.progress_every_s),
            allow_fsync_off: self.ledger.allow_fsync_off,
            format,
        })
    }
}

/// `5%`, `5` or `0.5%`, in hundredths of a percent.
fn parse_percent(text: &str) -> anyhow::Result<u32> {
    let context = "it is a part such as 5% or 0.5%";
    let percent: f64 = text.trim_end_matches('%').parse().context(context)?;
    let share = (percent * 100.0).round();
    anyhow::ensure!((1.0..=10_000.0).contains(&share), "it is 0.01% to 100%");
    Ok(share as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_typed_in_percent() {
        for (text, share) in [("5%", 500), ("5", 500), ("0.5%", 50), ("100%", 10_000), ("0.01", 1)]
        {
            assert_eq!(parse_percent(text).unwrap(), share, "{text}");
        }
        for text in ["", "%", "0", "0.001%", "101%", "-5%", "half"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }
}
