//! `purge`: says what may be deleted from Postgres and, with `--execute`, deletes it.

mod columns;
pub mod execute;
pub mod plan;
pub mod settings;

use anyhow::Context as _;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::page;
use crate::commands::purge::columns::column_notes;
use crate::commands::purge::execute::Execution;
use crate::commands::purge::plan::TablePlan;
use crate::commands::purge::settings::PurgeSettings;
use crate::commands::setup;
use crate::ledger::Ledger;
use crate::ledger::purge::PurgeWindow;
use crate::pg::pool::PoolSize;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::purge::keeping::Keeping;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::{Limits, Source};

/// Prints the plan; deletes, if that is asked for.
pub async fn purge(
    settings: &PurgeSettings,
    screen: &Screen,
    shutdown: Shutdown,
) -> Result<Exit, Ended> {
    let limits = Limits::default();
    let source = Source::connect(&settings.target, PoolSize::few(2), &limits).await;
    let source = source.or_exit(Exit::Preflight)?;
    let client = setup::client(&settings.sls)?;
    let logstores =
        setup::check_logstores(&client, &settings.sls.project, &settings.tables).await?;
    let ledger = open_ledger(settings).await?;
    setup::bind(&ledger, &settings.sls, &logstores).await?;
    let now = Timestamp::from_unix_s(client.now().min(setup::own_now()));
    let until = now.plus_s(-settings.older_than_s);
    let until = settings.until.map_or(until, |asked| asked.min(until));
    let mut plans = Vec::new();
    for shape in setup::shapes(&source, &settings.tables).await? {
        let table = shape.table;
        let keeping = keeping(&client, table, settings.keep_days, now).await?;
        let window = PurgeWindow { table, since: settings.since, until };
        let converted = ledger.purge_conversions(&window, keeping.since()).await?;
        plans.push(TablePlan {
            days: ledger.purge_plan(&window, keeping.since()).await?,
            rows: converted.iter().map(|converted| converted.rows).sum(),
            batches: converted.iter().map(|converted| converted.batches).sum(),
            columns: column_notes(&converted, &shape.columns)?,
            rows_per_s: ledger.purge_rows_per_s(table).await?,
            footprint: source.footprint(table).await?,
            shape,
            window,
            keeping,
        });
    }
    plan::print(&plans, settings)?;
    let page = settings.page.as_ref();
    page::write(page, "Plan of a purge", || plan::all_as_json(&plans, settings))?;
    if !settings.execute {
        return Ok(Exit::Done);
    }
    refuse_oddities(&plans, settings)?;
    // A node execution needs its run to be judged, so it goes first.
    plans.sort_by_key(|plan| plan.shape.table != Table::NodeExecutions);
    Execution { settings, screen, source, ledger, client, plans, shutdown }.run().await
}

/// The ledger; fails if there is none, or if it does not know what SLS holds.
async fn open_ledger(settings: &PurgeSettings) -> Result<Ledger, Ended> {
    let address = &settings.postgres.ledger;
    let ledger = Ledger::open_existing(address, PoolSize::few(3), settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.check_stop().await?;
    Ok(ledger)
}

/// For how long the table's logstore keeps logs.
async fn keeping(
    client: &Client,
    table: Table,
    keep_days: u32,
    now: Timestamp,
) -> Result<Keeping, Ended> {
    let logstore = table.logstore();
    let body = setup::look(|| client.logstore(logstore))
        .await
        .map_err(|failure| setup::sls_error(&format!("look up logstore {logstore}"), &failure))
        .or_exit(Exit::Preflight)?;
    let ttl_days = body.as_ref().and_then(|body| body["ttl"].as_i64());
    let ttl_days = ttl_days
        .with_context(|| {
            format!("SLS does not say how long {logstore} keeps logs\nnothing was done")
        })
        .or_exit(Exit::Preflight)?;
    Ok(Keeping::new(ttl_days, keep_days, now))
}

fn refuse_oddities(plans: &[TablePlan], settings: &PurgeSettings) -> Result<(), Ended> {
    let odd: Vec<_> = plans
        .iter()
        .flat_map(|plan| {
            let table = plan.shape.table;
            plan.footprint.oddities.iter().map(move |oddity| format!("{table}: {oddity}"))
        })
        .collect();
    if odd.is_empty() || settings.despite_oddities {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "{}\nnothing was deleted\nhint: look at what that does to a DELETE, then say \
         --despite-oddities",
        odd.join("\n")
    );
    Err(Ended { exit: Exit::Preflight, error })
}
