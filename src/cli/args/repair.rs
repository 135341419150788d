//! The flags of `repair`.

use clap::Args;

use crate::cli::args::common::{LedgerArgs, parse_table, tables};
use crate::cli::environment::Environment;
use crate::commands::output::Format;
use crate::commands::repair::parts::RepairSettings;
use crate::record::table::Table;

/// Printed behind the flags.
pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill repair                          # what would be done
  dify-sls-backfill repair --execute
";

#[derive(Args)]
pub struct RepairArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_parser = parse_table,
          default_value = "workflow_runs,workflow_node_executions")]
    tables: Vec<Table>,
    /// Do it; without it, only tell what would be done
    #[arg(long)]
    execute: bool,
}

impl RepairArgs {
    pub fn settings(
        &self,
        environment: &Environment,
        format: Format,
    ) -> anyhow::Result<RepairSettings> {
        Ok(RepairSettings {
            postgres: environment.postgres(self.ledger.ledger_url.as_deref())?,
            sls: environment.sls(60)?,
            tables: tables(&self.tables),
            execute: self.execute,
            allow_fsync_off: self.ledger.allow_fsync_off,
            format,
        })
    }
}
