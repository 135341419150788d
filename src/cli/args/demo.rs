//! The flags of `demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::environment::Environment;
use crate::commands::demo::DemoSettings;

pub const EXAMPLES: &str = "\
Examples:
  scripts/demo.sh                        # all of it, with a Postgres of its own
  dify-sls-backfill demo --rows 200000   # in the empty database that DB_* names
  dify-sls-backfill demo --fill-only     # only create the history";

#[derive(Args)]
pub struct DemoArgs {
    /// Node executions to create
    #[arg(long, value_name = "N", default_value_t = 50_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: u64,
    /// The same seed creates the same history
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many days back the history goes
    #[arg(long, value_name = "DAYS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Sizes of the rows: as an installation has them, or even ones for benchmarks
    #[arg(long, value_enum, default_value = "mixed")]
    profile: ProfileArg,
    /// Only create the tables and fill them
    #[arg(long)]
    fill_only: bool,
}

impl DemoArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        env_files: &[PathBuf],
    ) -> anyhow::Result<DemoSettings> {
        Ok(DemoSettings {
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

#[derive(Clone, Copy, ValueEnum)]
enum ProfileArg {
    Mixed,
    Bench,
}
