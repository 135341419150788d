//! What a repair works with, and what it counts.

use std::collections::BTreeMap;

use crate::commands::output::Format;
use crate::commands::setup::{PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::finding::Finding;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;

/// So many findings that nothing can be done about are told one by one.
const TOLD_MAX: usize = 20;

/// What `repair` needs to know.
pub struct RepairSettings {
    pub postgres: PostgresSettings,
    pub sls: SlsSettings,
    pub tables: Vec<Table>,
    /// Do it.
    pub execute: bool,
    pub allow_fsync_off: bool,
    pub format: Format,
}

/// What a repair works with.
pub(in crate::commands::repair) struct Repair<'a> {
    pub(in crate::commands::repair) settings: &'a RepairSettings,
    pub(in crate::commands::repair) source: Source,
    pub(in crate::commands::repair) ledger: Ledger,
    pub(in crate::commands::repair) client: Client,
}

/// What is, or would be, done about one table.
#[derive(Debug, Clone, Default)]
pub(in crate::commands::repair) struct Tally {
    /// By step: findings, rows or logs.
    pub(in crate::commands::repair) steps: BTreeMap<&'static str, (u64, u64)>,
    /// What nothing can be done about, in words.
    pub(in crate::commands::repair) left: Vec<String>,
    pub(in crate::commands::repair) left_count: u64,
    /// Whether the next run has something to do.
    pub(in crate::commands::repair) needs_run: bool,
}

impl Tally {
    pub(in crate::commands::repair) fn add(&mut self, step: &'static str, rows: u64) {
        let (findings, all) = self.steps.entry(step).or_default();
        *findings += 1;
        *all += rows;
    }

    pub(in crate::commands::repair) fn leave(&mut self, finding: &Finding, why: &str) {
        self.left_count += 1;
        if self.left.len() < TOLD_MAX {
            let batch = finding.batch_id.map(|id| format!("batch {id}: ")).unwrap_or_default();
            self.left.push(format!("{batch}{}: {why}", finding.kind));
        }
    }
}
