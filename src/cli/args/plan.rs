//! The flags of `plan`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::cli::args::common::parse_age;
use crate::cli::args::run::{RunArgs, parse_kib};
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::plan::settings::PlanSettings;
use crate::pipeline::guard::pace::quota::{SHARD_BYTES, SHARD_WRITES};
use crate::pipeline::plan::prices::Prices;

/// Printed behind the flags.
pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill plan                            # by a look at some pages: seconds
  dify-sls-backfill plan --exact                    # looks at every row
  dify-sls-backfill plan --bytes-per-s 5MB --until 2026-01-31     # takes the flags of `run`
  dify-sls-backfill plan --prices prices.json

Reads; writes nothing. Without the settings of SLS it assumes a new logstore of two shards.";

const PLAN: &str = "Plan";

#[derive(Args)]
pub struct PlanArgs {
    /// Look at every row instead of some pages
    #[arg(long, help_heading = PLAN)]
    exact: bool,
    /// Prices of SLS, as JSON; `--output json` prints those that are built in
    #[arg(long, help_heading = PLAN, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// What is old enough to be purged when it is proved
    #[arg(long, help_heading = PLAN, value_name = "AGE", default_value = "30d",
          value_parser = parse_age)]
    purgeable_after: i64,
    /// What a shard takes a second, if not SLS's documented 5 MB
    #[arg(long, help_heading = PLAN, value_name = "SIZE", value_parser = parse_kib)]
    shard_bytes_per_s: Option<NonZeroU32>,
    /// How many writes a shard takes a second, if not SLS's documented 500
    #[arg(long, help_heading = PLAN, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    shard_writes_per_s: Option<u32>,
    #[command(flatten)]
    run: RunArgs,
}

impl PlanArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<PlanSettings> {
        let prices = match &self.prices {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.with_context(|| format!("read {}", path.display()))?;
                Prices::parse(&text).with_context(|| format!("read {}", path.display()))?
            }
            None => Prices::built_in()?,
        };
        let shard_kib = self.shard_bytes_per_s.map(|kib| f64::from(kib.get()));
        Ok(PlanSettings {
            run: self.run.settings_to_plan(environment, format)?,
            is_exact: self.exact,
            prices,
            purgeable_after_s: self.purgeable_after,
            shard_bytes_per_s: shard_kib.map_or(SHARD_BYTES, |kib| kib * 1024.0),
            shard_writes_per_s: f64::from(self.shard_writes_per_s.unwrap_or(SHARD_WRITES)),
        })
    }
}
