//! The plan of a purge on paper: what would be deleted, what stays, and what it gives back.

use std::collections::BTreeMap;

use serde_json::json;

use crate::commands::output::{self, Format, bytes, count};
use crate::commands::purge::settings::PurgeSettings;
use crate::ledger::purge::PurgeWindow;
use crate::ledger::purge_plan::DayPlan;
use crate::pipeline::purge::keeping::Keeping;
use crate::record::table::Table;
use crate::source::catalog::Shape;
use crate::source::footprint::Footprint;

/// So many days are shown, the oldest first.
const DAYS_SHOWN: usize = 40;

/// Rows a second that a small server deletes, proof included, where no purge has measured it: for an
/// idea of the time, not a promise (`scripts/bench.sh` measures).
const ROWS_PER_S_GUESSED: u64 = 2_000;

/// What is to be done with a table.
pub struct TablePlan {
    pub shape: Shape,
    pub window: PurgeWindow,
    pub keeping: Keeping,
    pub days: BTreeMap<String, DayPlan>,
    /// Rows that may go: those of a day are shares, and rounded.
    pub rows: u64,
    /// Batches with rows that may go; one that is of several days is one.
    pub batches: u64,
    /// Which columns keep rows from being purged, one sentence each.
    pub columns: Vec<String>,
    /// How fast this ledger's latest purge of the table was; `None`: nobody knows.
    pub rows_per_s: Option<u64>,
    pub footprint: Footprint,
}

impl TablePlan {
    /// All days together.
    pub fn total(&self) -> DayPlan {
        let mut total =
            DayPlan { proved: self.rows, proved_batches: self.batches, ..DayPlan::default() };
        for day in self.days.values() {
            total.proved_bytes += day.proved_bytes;
            total.not_proved += day.not_proved;
            total.not_kept += day.not_kept;
            total.unknown_conversion += day.unknown_conversion;
            total.purged += day.purged;
            total.held += day.held;
        }
        total
    }

    /// About how much of the table the proved rows take.
    fn freed_bytes(&self) -> u64 {
        let Footprint { total_bytes, rows_estimated, .. } = self.footprint;
        let proved = u128::from(self.total().proved.min(rows_estimated));
        let freed = u128::from(total_bytes) * proved / u128::from(rows_estimated.max(1));
        u64::try_from(freed).unwrap_or(u64::MAX)
    }
}

/// What else of Dify refers to rows that are purged, and what becomes of it.
const CONSEQUENCES: [&str; 5] = [
    "app logs filtered by keyword or status leave out purged runs (they join the table)",
    "conversations whose runs are purged show a status count of zero",
    "Dify's commands that look for orphaned files read node executions: do not run them after a \
     purge, or they may delete files that are still referred to",
    "messages, app logs, pauses, trigger logs and archive logs stay as they are",
    "run details, node lists, lists, counts and charts come from SLS, where Dify's repositories are \
     switched to LogStore",
];

/// Prints the plans.
pub fn print(plans: &[TablePlan], settings: &PurgeSettings) -> anyhow::Result<()> {
    if settings.format == Format::Json {
        output::line(&all_as_json(plans, settings).to_string());
        return Ok(());
    }
    for plan in plans {
        print_table(plan);
    }
    output::line("what else refers to these rows:");
    for consequence in CONSEQUENCES {
        output::line(&format!("  - {consequence}"));
    }
    if !settings.execute {
        output::line(
            "nothing was deleted: `purge --execute` proves each batch anew, and deletes what is equal",
        );
    }
    Ok(())
}

/// The plans for a program.
pub fn all_as_json(plans: &[TablePlan], settings: &PurgeSettings) -> serde_json::Value {
    let tables: serde_json::Map<_, _> =
        plans.iter().map(|plan| (plan.shape.table.name().to_owned(), as_json(plan))).collect();
    json!({"schema_version": 1, "execute": settings.execute, "plan": tables})
}

fn as_json(plan: &TablePlan) -> serde_json::Value {
    // Programs read large numbers more safely as texts.
    let day = |day: &DayPlan| {
        json!({
            "proved": day.proved.to_string(), "proved_bytes": day.proved_bytes.to_string(),
            "proved_batches": day.proved_batches.to_string(),
            "not_proved": day.not_proved.to_string(), "not_kept": day.not_kept.to_string(),
            "unknown_conversion": day.unknown_conversion.to_string(),
            "purged": day.purged.to_string(), "held": day.held.to_string(),
        })
    };
    let referring: serde_json::Map<_, _> = plan
        .footprint
        .referring
        .iter()
        .map(|(name, rows)| (name.clone(), json!({"rows_estimated": rows.to_string()})))
        .collect();
    let days: serde_json::Map<_, _> =
        plan.days.iter().map(|(date, of_day)| (date.clone(), day(of_day))).collect();
    json!({
        "until": plan.window.until.to_string(),
        "kept_since": plan.keeping.since().map(|since| since.to_string()),
        "total": day(&plan.total()), "days": days,
        "table_bytes": plan.footprint.total_bytes.to_string(),
        "freed_bytes_estimated": plan.freed_bytes().to_string(),
        "rows_per_s_estimated": plan.rows_per_s.unwrap_or(ROWS_PER_S_GUESSED).to_string(),
        "rows_per_s_is_measured": plan.rows_per_s.is_some(),
        "columns": plan.columns,
        "missing_indexes": plan.footprint.missing_indexes,
        "referring_tables": referring,
        "oddities": plan.footprint.oddities,
    })
}

fn print_table(plan: &TablePlan) {
    let (table, total) = (plan.shape.table, plan.total());
    output::line(&format!(
        "{table}: rows that finished before {}, by day of finished_at (UTC)",
        plan.window.until
    ));
    let line = |name: &str, day: &DayPlan| {
        format!(
            "  {name:<10}{:>13}{:>12}{:>9}{:>12}{:>10}{:>11}",
            count(day.proved),
            bytes(day.proved_bytes),
            count(day.proved_batches),
            count(day.not_proved),
            count(day.held),
            count(day.not_kept),
        )
    };
    output::line(&format!(
        "  {:<10}{:>13}{:>12}{:>9}{:>12}{:>10}{:>11}",
        "day", "may go: rows", "bytes", "batches", "not proved", "held", "not kept"
    ));
    for (date, day) in plan.days.iter().take(DAYS_SHOWN) {
        output::line(&line(date, day));
    }
    if plan.days.len() > DAYS_SHOWN {
        output::line(&format!("  … and {} days more", plan.days.len() - DAYS_SHOWN));
    }
    output::line(&line("together", &total));
    print_notes(plan, &total);
}

fn print_notes(plan: &TablePlan, total: &DayPlan) {
    let table = plan.shape.table;
    let note = |text: String| output::line(&format!("  {text}"));
    if total.unknown_conversion > 0 {
        let rows = count(total.unknown_conversion);
        note(format!(
            "{rows} rows stay: an audit found their logs, and nobody knows how they were made (if a run \
             has finished since: `audit` once more)"
        ));
    }
    if total.not_kept > 0 {
        note(format!(
            "{} rows stay: SLS does not keep their logs long enough (raise the logstore's TTL, or \
             lower --keep)",
            count(total.not_kept)
        ));
    }
    if total.purged > 0 {
        note(format!("{} rows were purged before, or found gone or changed", count(total.purged)));
    }
    for columns in &plan.columns {
        note(columns.clone());
    }
    for index in &plan.footprint.missing_indexes {
        note(format!("slow: {index}"));
    }
    let referring = plan.footprint.referring.iter();
    let referring: Vec<_> =
        referring.map(|(name, rows)| format!("{name} (about {} rows)", count(*rows))).collect();
    if !referring.is_empty() {
        note(format!(
            "its rows are named by, and these stay as they are: {}",
            referring.join(", ")
        ));
    }
    for oddity in &plan.footprint.oddities {
        note(format!("beware: {oddity}"));
    }
    note(format!(
        "the table takes {} on disk; the rows that may go about {}: VACUUM makes that reusable for \
         new rows, only a rewrite (pg_repack, VACUUM FULL) gives it back to the disk",
        bytes(plan.footprint.total_bytes),
        bytes(plan.freed_bytes()),
    ));
    if table == Table::NodeExecutions && !plan.shape.has("workflow_run_id") {
        note("its rows name no run".to_owned());
    }
    let (rows_per_s, source) = match plan.rows_per_s {
        Some(rows_per_s) => (rows_per_s, "as the latest purge"),
        None => (ROWS_PER_S_GUESSED, "a guess: nothing was purged yet"),
    };
    let minutes = total.proved / rows_per_s / 60 + 1;
    note(format!("about {} min at {} rows/s ({source})", count(minutes), count(rows_per_s)));
}
