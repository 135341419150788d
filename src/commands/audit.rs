//! `audit`: reads SLS, records what the ledger lacks, and lets runs continue.

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::run::beat;
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::adopt::Findings;
use crate::pg::pool::PoolSize;
use crate::pipeline::guard::epoch::Epoch;
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::recover::audit::{Audited, Preview, audit, highest_number, preview};
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::source::Source;

/// What `audit` needs to know.
pub struct AuditSettings {
    pub postgres: PostgresSettings,
    pub sls: SlsSettings,
    /// Only report what would be adopted.
    pub dry_run: bool,
    pub timings: Timings,
    pub allow_fsync_off: bool,
    pub format: Format,
}

/// Audits; a first SIGINT or SIGTERM stops between two pages.
pub async fn run(settings: &AuditSettings, mut shutdown: Shutdown) -> Result<Exit, Ended> {
    let source = setup::source(&settings.postgres, PoolSize::few(1)).await?;
    let client = setup::client(&settings.sls)?;
    let tables = logstores(&client).await.or_exit(Exit::Preflight)?;
    let ledger =
        Ledger::open(&settings.postgres.ledger, PoolSize::few(2), settings.allow_fsync_off)
            .await
            .or_exit(Exit::Preflight)?;
    ledger.bind_project(&settings.sls.project).await.or_exit(Exit::Preflight)?;
    if settings.dry_run {
        return dry_run(&client, &ledger, &tables, settings.format).await;
    }
    let highest = highest_number(&client, ledger.id, &tables).await.or_exit(Exit::Preflight)?;
    ledger.count_from(highest).await?;
    let process = ledger.enter(false).await.map_err(|error| {
        let ended = Ended::from(error);
        let error =
            anyhow::anyhow!("{:#}\nnothing was done\nhint: wait for it, or stop it", ended.error);
        Ended { error, ..ended }
    })?;
    let signing_lease = Arc::new(SigningLease::new(settings.timings));
    let epoch =
        Epoch { client, ledger: ledger.clone(), process: process.clone(), tables, signing_lease };
    let audited = tokio::select! {
        audited = on_source(&epoch, &source, settings.timings, &mut shutdown) => audited,
        lost = beat(&ledger, &process) => Err(lost),
    };
    let left = ledger.leave(&process).await;
    let audited = audited?;
    left?;
    Ok(conclude(&audited, settings.format))
}

async fn on_source(
    epoch: &Epoch,
    source: &Source,
    timings: Timings,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Audited> {
    audit(epoch, &source.identity().await?, timings, shutdown).await
}

/// The tables whose logstore is there.
async fn logstores(client: &Client) -> anyhow::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for table in Table::ALL {
        let logstore = table.logstore();
        let found = with_retries(|| client.logstore(logstore)).await;
        match found.with_context(|| format!("look for logstore {logstore}"))? {
            Some(_) => tables.push(table),
            None => tracing::info!("there is no logstore {logstore}, so nothing is in it"),
        }
    }
    Ok(tables)
}

async fn dry_run(
    client: &Client,
    ledger: &Ledger,
    tables: &[Table],
    format: Format,
) -> Result<Exit, Ended> {
    let found = preview(&Preview { client, ledger, tables }).await?;
    if format == Format::Json {
        let ledgers: Vec<_> = found
            .iter()
            .map(|(id, found)| {
                json!({"ledger": id, "own": *id == ledger.id, "groups": found.batches,
                       "rows": found.rows, "lacking_groups": found.adopted,
                       "lacking_rows": found.adopted_rows})
            })
            .collect();
        output::line(&json!({"schema_version": 1, "ledgers": ledgers}).to_string());
        return Ok(Exit::Done);
    }
    for (id, found) in &found {
        let whose = if *id == ledger.id { "this ledger" } else { "another ledger" };
        output::line(&format!(
            "{whose} ({id}): {} batches with {} rows in SLS; of these this ledger lacks {} with {} \
             rows",
            count(found.batches),
            count(found.rows),
            count(found.adopted),
            count(found.adopted_rows),
        ));
    }
    if found.is_empty() {
        output::line("no batch of any ledger is in SLS");
    }
    Ok(Exit::Done)
}

fn conclude(audited: &Audited, format: Format) -> Exit {
    let findings = match audited {
        Audited::Done(findings) => findings,
        Audited::Halted => {
            tracing::warn!(
                "stopped; what was found is in the ledger, and nothing may be sent yet\n\
                 hint: run the same command again to continue"
            );
            return Exit::Unfinished;
        }
        Audited::Disturbed(group) => {
            tracing::warn!(
                "another process started during the audit (consumer group {group}) and may have \
                 sent; nothing may be sent from here yet\n\
                 hint: stop whoever works with another ledger on this project, and run the same \
                 command again"
            );
            return Exit::Unfinished;
        }
    };
    print(findings, format);
    if findings.unequal.is_empty() && findings.doubled_rows == 0 {
        return Exit::Done;
    }
    for batch_id in findings.unequal.iter().take(20) {
        tracing::error!("batch {batch_id}: what SLS holds is not what its tags say");
    }
    tracing::error!(
        "{} batches are not in SLS as they were sent, {} rows are there twice; none of their rows \
         will be sent again\nhint: the rows that are missing stay in Postgres; logs in SLS cannot \
         be taken back",
        count(findings.unequal.len() as u64),
        count(findings.doubled_rows),
    );
    Exit::Difference
}

fn print(findings: &Findings, format: Format) {
    if format == Format::Json {
        output::line(&json!({"schema_version": 1, "findings": findings}).to_string());
        return;
    }
    let line = |what: &str, batches: u64, rows: u64| {
        output::line(&format!("{what}{} batches, {} rows", count(batches), count(rows)));
    };
    line("found in SLS:                      ", findings.batches, findings.rows);
    line("adopted, sent under this ledger:   ", findings.adopted, findings.adopted_rows);
    line("adopted, sent by another ledger:   ", findings.foreign, findings.foreign_rows);
    if findings.revived > 0 {
        output::line(&format!("abandoned, but in SLS:             {} batches", findings.revived));
    }
    output::line("the ledger knows all that SLS holds; `run` can continue");
}
