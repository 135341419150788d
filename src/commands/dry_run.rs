//! `run --dry-run`: what a run would do, by reading, converting and packing everything.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::commands::connections::Demand;
use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, bytes, count};
use crate::commands::page;
use crate::commands::run_settings::RunSettings;
use crate::commands::setup;
use crate::commands::status::held_line;
use crate::dify::eligibility::Bounds;
use crate::pipeline::guard::budget::{MemoryBudget, RowBudget};
use crate::pipeline::progress::Progress;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::read::dry::{DryRun, Estimate};
use crate::pipeline::read::range_scan::ScanSettings;
use crate::pipeline::read::window::{plan, scope};
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;

/// Goes over all tables; opens neither the ledger nor SLS.
pub async fn dry_run(
    settings: &RunSettings,
    screen: &Screen,
    shutdown: &Shutdown,
) -> Result<Exit, Ended> {
    let workers = settings.workers.at_first;
    let pools = Demand::dry_run(workers).pools(&settings.postgres, settings.connections);
    let source = setup::source(&settings.postgres, pools.source).await?;
    let shapes = setup::shapes(&source, &settings.tables).await?;
    let rows = RowBudget::new(settings.rows_max);
    let mut estimates = Vec::new();
    for shape in shapes {
        let settled_before = source.server.now.plus_s(-settings.settle_s);
        let plan = plan(&settings.wish, &shape, None, settled_before)?;
        let rows_expected = source.rows_expected(&scope(&plan), &shape).await?;
        let progress = Progress::new(plan.table, rows_expected);
        let dry_run = DryRun {
            conversion: setup::conversion(&shape, settings.put_graph, settings.log_time),
            scope: scope(&plan),
            scan: ScanSettings {
                source: source.clone(),
                ledger: None,
                limits: settings.limits.clone(),
                bounds: Bounds {
                    settled_before,
                    row_bytes_max: settings.row_bytes_max,
                    ..Bounds::NONE
                },
                // It has no client with which it could look.
                live_look: None,
                missed_before: settled_before,
                shape,
            },
            workers: workers as usize,
            range_rows: settings.range_rows,
            progress: Arc::clone(&progress),
            memory: MemoryBudget::new(settings.memory_bytes),
            rows: rows.clone(),
        };
        let report = progress.report(screen.clone(), settings.progress_every);
        let reporter = tokio::spawn(report);
        let estimate = dry_run.run(shutdown).await;
        reporter.abort();
        // Its bar must be gone before anything else is written.
        let _ = reporter.await;
        estimates.push((plan.table, estimate?));
        if shutdown.is_asked() {
            break;
        }
    }
    let result = as_json(&estimates).or_exit(Exit::Failed)?;
    match settings.format {
        Format::Json => output::line(&result.to_string()),
        Format::Text => print(&estimates),
    }
    page::write(settings.page.as_ref(), "Dry run", || result)?;
    if shutdown.is_asked() {
        tracing::warn!("stopped early: the figures are of what was read so far");
        return Ok(Exit::Unfinished);
    }
    Ok(Exit::Done)
}

fn as_json(estimates: &[(Table, Estimate)]) -> anyhow::Result<Value> {
    let tables: serde_json::Map<_, _> = estimates
        .iter()
        .map(|(table, estimate)| Ok((table.name().to_owned(), serde_json::to_value(estimate)?)))
        .collect::<anyhow::Result<_>>()?;
    Ok(json!({"schema_version": 1, "dry_run": true, "tables": tables}))
}

fn print(estimates: &[(Table, Estimate)]) {
    for (table, estimate) in estimates {
        output::line(&format!(
            "{table}: {} rows: {} would be sent in {} batches ({}, {} compressed), {} held",
            count(estimate.seen),
            count(estimate.live),
            count(estimate.batches),
            bytes(estimate.raw_bytes),
            bytes(estimate.body_bytes),
            count(estimate.held.values().sum()),
        ));
        for (reason, rows) in &estimate.held {
            output::line(&format!("    {}", held_line(reason, *rows)));
        }
    }
    output::line("dry run: nothing was written, neither to Postgres nor to SLS");
}
