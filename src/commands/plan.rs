//! `plan`: what a run would do, on paper.

pub mod outlook;
mod print;
pub mod settings;

use std::time::Instant;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::page;
use crate::commands::plan::outlook::{Outlook, TableOutlook};
use crate::commands::plan::settings::PlanSettings;
use crate::commands::run_settings::RunSettings;
use crate::commands::setup;
use crate::dify::conversion::LogTime;
use crate::dify::eligibility::Bounds;
use crate::ledger::Ledger;
use crate::ledger::inspection::inspect;
use crate::pg::pool::PoolSize;
use crate::pipeline::plan::forecast::Means;
use crate::pipeline::plan::tally::{Known, Ranges, batches};
use crate::pipeline::plan::{Seen, TablePlan};
use crate::pipeline::read::window::{plan as plan_pass, scope};
use crate::pipeline::send::age::kept_since;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::Source;
use crate::source::catalog::Shape;

/// Shards of a logstore that is yet to be made: `init` makes two.
const NEW_SHARDS: u64 = 2;

/// A round trip where no SLS can be asked, as between regions.
const ROUND_TRIP_S: f64 = 0.05;

/// What is known of a logstore.
#[derive(Debug, Clone, Copy)]
struct Target {
    shards: u64,
    ttl_days: Option<i64>,
    round_trip_s: f64,
}

/// Looks, and prints the plan.
pub async fn plan(settings: &PlanSettings, shutdown: &Shutdown) -> Result<Exit, Ended> {
    let run = &settings.run;
    let source = setup::source(&run.postgres, PoolSize::few(2)).await?;
    let shapes = setup::shapes(&source, &run.tables).await?;
    let client = run.sls.as_ref().map(setup::client).transpose()?;
    let ledger = ledger(run).await?;
    let mut seen = Vec::new();
    for shape in &shapes {
        let target = target(client.as_ref(), shape.table).await;
        let read_until = match &ledger {
            Some(ledger) => ledger.read_until(shape.table).await?,
            None => None,
        };
        let table = table_plan(settings, &source, shape, read_until, &target)?;
        let Some(of_table) = table.look(shutdown).await? else {
            tracing::warn!("stopped before the end; nothing was changed");
            return Ok(Exit::Unfinished);
        };
        let footprint = source.footprint(shape.table).await?;
        seen.push((table, target, of_table, footprint.total_bytes));
    }
    let runs = seen.iter().find(|(table, ..)| table.shape.table == Table::Runs);
    let runs = runs.map_or(0.0, |(_, _, seen, _)| seen.tally.seen);
    let tables = seen
        .into_iter()
        .map(|(table, target, of_table, total_bytes)| {
            outlook(settings, &table, &target, of_table, (runs, total_bytes))
        })
        .collect();
    let outlook = Outlook { tables, is_exact: settings.is_exact, has_sls: client.is_some() };
    print::print(&outlook, settings);
    let page = settings.run.page.as_ref();
    page::write(page, "Plan of a run", || print::as_json(&outlook, settings))?;
    Ok(Exit::Done)
}

/// The ledger, if there is one already: a plan makes none.
async fn ledger(run: &RunSettings) -> Result<Option<Ledger>, Ended> {
    let found = inspect(&run.postgres.ledger).await.or_exit(Exit::Preflight)?;
    if found.standing.is_none() {
        return Ok(None);
    }
    let ledger =
        Ledger::open_existing(&run.postgres.ledger, PoolSize::few(1), run.allow_fsync_off).await;
    Ok(Some(ledger.or_exit(Exit::Preflight)?))
}

/// What can be learnt of the table's logstore; what is not there is assumed.
async fn target(client: Option<&Client>, table: Table) -> Target {
    let mut target = Target { shards: NEW_SHARDS, ttl_days: None, round_trip_s: ROUND_TRIP_S };
    let Some(client) = client else { return target };
    let logstore = table.logstore();
    match client.logstore(logstore).await {
        Ok(Some(body)) => target.ttl_days = body["ttl"].as_i64(),
        Ok(None) => return target,
        Err(failure) => {
            tracing::warn!("{logstore}: {failure}; a new logstore is assumed");
            return target;
        }
    }
    let begin = Instant::now();
    if let Ok(shards) = client.shards(logstore).await {
        target.round_trip_s = begin.elapsed().as_secs_f64();
        target.shards = shards.iter().filter(|shard| shard.is_writable()).count() as u64;
    }
    target
}

fn table_plan(
    settings: &PlanSettings,
    source: &Source,
    shape: &Shape,
    read_until: Option<Timestamp>,
    target: &Target,
) -> Result<TablePlan, Ended> {
    let run = &settings.run;
    let now = source.server.now;
    let settled_before = now.plus_s(-run.settle_s);
    let plan = plan_pass(&run.wish, shape, read_until, settled_before)?;
    let is_kept = run.beyond_ttl || run.log_time != LogTime::FinishedAt;
    let kept_since = target.ttl_days.and_then(|days| kept_since(days, now));
    Ok(TablePlan {
        source: source.clone(),
        scope: scope(&plan),
        bounds: Bounds {
            settled_before,
            kept_since: kept_since.filter(|_| !is_kept),
            // Whether another writer is at work, only a run looks.
            live_since: None,
            abandoned_before: now.plus_s(-run.abandoned_after_s),
            row_bytes_max: run.row_bytes_max,
        },
        conversion: setup::conversion(shape, run.put_graph, run.log_time),
        limits: run.limits.clone(),
        // What the look-back reads again is known, or nearly all of it.
        known: Known { created_before: read_until.filter(|_| run.wish.since.is_none()) },
        purge_before: now.plus_s(-settings.purgeable_after_s),
        is_exact: settings.is_exact,
        seed: rand::random(),
        shape: shape.clone(),
    })
}

fn outlook(
    settings: &PlanSettings,
    table: &TablePlan,
    target: &Target,
    seen: Seen,
    (runs, total_bytes): (f64, u64),
) -> TableOutlook {
    let run = &settings.run;
    let nodes_per_run = (seen.tally.seen / runs.max(1.0)).max(1.0);
    let ranges = Ranges {
        order: table.scope.order,
        range_rows: run.range_rows,
        workers: run.workers,
        nodes_per_run,
        table_rows: seen.tally.seen,
    };
    let per_s = |time: std::time::Duration| {
        (seen.converted.raw_bytes.max(1) as f64) / time.as_secs_f64().max(1e-6)
    };
    let means = Means {
        shards: target.shards as f64,
        shard_bytes_per_s: settings.shard_bytes_per_s,
        shard_writes_per_s: settings.shard_writes_per_s,
        rates: run.rates,
        workers: f64::from(run.workers),
        processors: std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        read_bytes_per_s: per_s(seen.converted.read),
        convert_bytes_per_s: per_s(seen.converted.packed),
        round_trip_s: target.round_trip_s,
    };
    TableOutlook {
        table: table.shape.table,
        batches: batches(&seen.tally, &ranges),
        means,
        ttl_days: target.ttl_days,
        total_bytes,
        since: table.scope.since,
        until: table.scope.until,
        seen,
    }
}
