//! The flags of `restore`.

use clap::Args;
use uuid::Uuid;

use crate::cli::args::common::{LedgerArgs, parse_table, parse_time, tables};
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::restore::RestoreSettings;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Printed behind the flags.
pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill restore --since 2025-03-01 --until 2025-04-01     # how many would come back?
  dify-sls-backfill restore --run 0190a6d2-5b7e-7c3a-9f00-000000000001 --execute
";

#[derive(Args)]
#[command(
    after_help = "Example:\n  dify-sls-backfill restore --since 2025-03-01 --until 2025-04-01 \
                        --execute"
)]
#[group(id = "which", required = true, multiple = true, args = ["run", "since", "until", "pass"])]
pub struct RestoreArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Put rows in; without it they are only counted
    #[arg(long)]
    execute: bool,
    /// This run, with its node executions
    #[arg(long, value_name = "ID", conflicts_with_all = ["since", "until", "pass"])]
    run: Option<Uuid>,
    /// Rows that finished at this time (UTC) or later
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Rows that finished before this time (UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Rows that this pass has moved (its number is in the ledger)
    #[arg(long, value_name = "N")]
    pass: Option<i64>,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Leave out columns of the logs that the table does not have any more
    #[arg(long)]
    drop_unknown: bool,
    /// The primary, where the source is a replica [default: the source]
    #[arg(long, value_name = "URL")]
    purge_url: Option<String>,
}

impl RestoreArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<RestoreSettings> {
        let postgres = environment.postgres(self.ledger.ledger_url.as_deref())?;
        Ok(RestoreSettings {
            target: environment.target(self.purge_url.as_deref())?,
            postgres,
            sls: environment.sls(60)?,
            tables: tables(&self.tables),
            run_id: self.run,
            since: self.since,
            until: self.until,
            pass_id: self.pass,
            drop_unknown: self.drop_unknown,
            execute: self.execute,
            allow_fsync_off: self.ledger.allow_fsync_off,
            format,
        })
    }
}
