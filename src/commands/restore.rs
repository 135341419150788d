//! `restore`: brings purged rows back into Postgres, from what SLS holds of them.

use anyhow::Context as _;
use serde_json::json;
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::purge::ProvedBatch;
use crate::ledger::restore::RestoreWindow;
use crate::pg::Address;
use crate::pg::pool::PoolSize;
use crate::pipeline::restore::{Restoration, Restored, Wanted};
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::writable::{Writable, WriteLimits};
use crate::source::{Limits, Source};

/// Batches looked up at a time.
const BATCHES_A_PAGE: u32 = 32;

/// So many rows that differ are listed.
const LISTED_ROWS_MAX: usize = 20;

/// What `restore` needs to know.
pub struct RestoreSettings {
    pub postgres: PostgresSettings,
    /// The primary, where rows are put in.
    pub target: Address,
    pub sls: SlsSettings,
    pub tables: Vec<Table>,
    pub run_id: Option<Uuid>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub pass_id: Option<i64>,
    pub drop_unknown: bool,
    pub execute: bool,
    pub allow_fsync_off: bool,
    pub format: Format,
}

/// What came of a table.
#[derive(Debug, Default)]
struct Outcome {
    restored: Restored,
    /// Rows that would come back, where nothing is executed.
    planned: u64,
    /// Batches that cannot be brought back.
    failed: u64,
}

/// Restores; a first SIGINT or SIGTERM finishes what is in flight.
pub async fn restore(settings: &RestoreSettings, shutdown: Shutdown) -> Result<Exit, Ended> {
    let limits = Limits::default();
    let source = Source::connect(&settings.target, PoolSize::few(2), &limits)
        .await
        .or_exit(Exit::Preflight)?;
    let client = setup::client(&settings.sls)?;
    let logstores =
        setup::check_logstores(&client, &settings.sls.project, &settings.tables).await?;
    let ledger = Ledger::open_existing(
        &settings.postgres.ledger,
        PoolSize::few(3),
        settings.allow_fsync_off,
    )
    .await;
    let ledger = ledger.or_exit(Exit::Preflight)?;
    ledger.check_stop().await?;
    setup::bind(&ledger, &settings.sls, &logstores).await?;
    let target = Writable::connect(&settings.target, 2, WriteLimits::default()).await;
    let target = target.or_exit(Exit::Preflight)?;
    let identity = target.identity().await?;
    if settings.execute {
        ledger.recognise(&identity.as_source(), false).await?;
    }
    let is_one_database = ledger.is_in(&identity).await?;
    let mut outcomes = Vec::new();
    // Runs first: a node execution is of no use without its run.
    for shape in setup::shapes(&source, &settings.tables).await? {
        let wanted = match settings.run_id {
            Some(run_id) => Wanted::Run(run_id),
            None if settings.since.is_none() && settings.until.is_none() => Wanted::All,
            None => Wanted::Finished { since: settings.since, until: settings.until },
        };
        let restoration = Restoration {
            ledger: ledger.clone(),
            client: client.clone(),
            target: target.clone(),
            is_one_database,
            columns: shape.columns.clone(),
            drop_unknown: settings.drop_unknown,
            wanted,
        };
        let window = RestoreWindow {
            table: shape.table,
            since: settings.since,
            until: settings.until,
            pass_id: settings.pass_id,
        };
        let outcome = table(settings, &ledger, &restoration, &window, &shutdown).await?;
        outcomes.push((shape.table, outcome));
    }
    print(settings, &outcomes);
    Ok(conclude(&outcomes, &shutdown))
}

async fn table(
    settings: &RestoreSettings,
    ledger: &Ledger,
    restoration: &Restoration,
    window: &RestoreWindow,
    shutdown: &Shutdown,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut after = Uuid::nil();
    loop {
        let page = ledger.batches_to_restore(window, after, BATCHES_A_PAGE).await?;
        let Some(last) = page.last() else { return Ok(outcome) };
        after = last.id;
        for batch in &page {
            if shutdown.is_asked() {
                return Ok(outcome);
            }
            one(settings, restoration, batch, &mut outcome)
                .await
                .with_context(|| format!("restore batch {}", batch.id))?;
        }
    }
}

async fn one(
    settings: &RestoreSettings,
    restoration: &Restoration,
    batch: &ProvedBatch,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let failed = match settings.execute {
        true => match restoration.restore(batch).await? {
            Ok(Restored { rows, already, mut different }) => {
                outcome.restored.rows += rows;
                outcome.restored.already += already;
                outcome.restored.different.append(&mut different);
                return Ok(());
            }
            Err(why) => why,
        },
        false => match restoration.count(batch).await? {
            Ok(rows) => {
                outcome.planned += rows;
                return Ok(());
            }
            Err(why) => why,
        },
    };
    tracing::error!("batch {} stays away: {failed}", batch.id);
    outcome.failed += 1;
    Ok(())
}

fn print(settings: &RestoreSettings, outcomes: &[(Table, Outcome)]) {
    if settings.format == Format::Json {
        let tables: serde_json::Map<_, _> = outcomes
            .iter()
            .map(|(table, outcome)| {
                let Outcome { restored, planned, failed } = outcome;
                let json = json!({
                    "rows_to_restore": planned.to_string(),
                    "rows_restored": restored.rows.to_string(),
                    "rows_there_already": restored.already.to_string(),
                    "rows_different": restored.different,
                    "batches_failed": failed.to_string(),
                });
                (table.name().to_owned(), json)
            })
            .collect();
        output::line(
            &json!({"schema_version": 1, "execute": settings.execute, "restored": tables})
                .to_string(),
        );
        return;
    }
    for (table, Outcome { restored, planned, .. }) in outcomes {
        if !settings.execute {
            output::line(&format!("{table}: {} rows would come back", count(*planned)));
            continue;
        }
        output::line(&format!(
            "{table}: {} rows are back, {} were there already",
            count(restored.rows),
            count(restored.already)
        ));
        for id in restored.different.iter().take(LISTED_ROWS_MAX) {
            output::line(&format!("    there already, with other values: {id}"));
        }
    }
    if !settings.execute {
        output::line("nothing was written: `restore … --execute` puts them in");
    }
}

/// Says how the restore ended.
fn conclude(outcomes: &[(Table, Outcome)], shutdown: &Shutdown) -> Exit {
    let failed: u64 = outcomes.iter().map(|(_, outcome)| outcome.failed).sum();
    if failed > 0 {
        tracing::error!(
            "{} batches could not be brought back; nothing of them was written\n\
             hint: `dify-sls-backfill audit` looks at all that SLS holds",
            count(failed)
        );
        return Exit::Difference;
    }
    if shutdown.is_asked() {
        tracing::warn!(
            "stopped with work left; what is back is in the ledger\nhint: run the same command \
             again to go on"
        );
        return Exit::Unfinished;
    }
    Exit::Done
}
