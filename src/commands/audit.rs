//! `audit`: reads SLS, records what the ledger lacks, and lets runs continue.

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::run::{beat, enter_alone};
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::adopt::Findings;
use crate::ledger::generation::LogstoreFacts;
use crate::pipeline::guard::epoch::Epoch;
use crate::pipeline::guard::signing_lease::SigningLease;
use crate::pipeline::recover::audit::{Audited, Preview, Subject, audit, highest_number, preview};
use crate::pipeline::recover::rules::Timings;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::sls::client::Client;

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
    let source = setup::source(&settings.postgres, 1).await?;
    let client = setup::client(&settings.sls)?;
    let (logstores, missing) = logstores(&client).await.or_exit(Exit::Preflight)?;
    let tables: Vec<_> = logstores.iter().map(|(table, _)| *table).collect();
    let ledger = Ledger::open(&settings.postgres.ledger, 2, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.bind_project(&settings.sls.project).await.or_exit(Exit::Preflight)?;
    if settings.dry_run {
        return dry_run(&client, &ledger, &tables, settings.format).await;
    }
    let highest = highest_number(&client, ledger.id, &tables).await.or_exit(Exit::Preflight)?;
    ledger.count_from(highest).await?;
    let facts: Vec<_> = logstores.iter().map(|(_, facts)| *facts).collect();
    // That it stops the ledger is what an audit is for.
    ledger.meet(&facts).await?;
    let process = enter_alone(&ledger).await?;
    let signing_lease = Arc::new(SigningLease::new(settings.timings));
    let epoch =
        Epoch { client, ledger: ledger.clone(), process: process.clone(), tables, signing_lease };
    let identity = source.identity().await?;
    let subject = Subject {
        epoch: &epoch,
        missing: &missing,
        service: &settings.sls.endpoint.service,
        source: &identity,
        timings: settings.timings,
    };
    let audited = tokio::select! {
        audited = audit(&subject, &mut shutdown) => audited,
        lost = beat(&ledger, &process) => Err(lost),
    };
    let left = ledger.leave(&process).await;
    let audited = audited?;
    left?;
    Ok(conclude(&audited, settings.format))
}

/// The tables whose logstore is there, with what SLS says of it, and those whose is not.
async fn logstores(client: &Client) -> anyhow::Result<(Vec<(Table, LogstoreFacts)>, Vec<Table>)> {
    let (mut tables, mut missing) = (Vec::new(), Vec::new());
    for table in Table::ALL {
        let logstore = table.logstore();
        let found = with_retries(|| client.logstore(logstore)).await;
        match found.with_context(|| format!("look for logstore {logstore}"))? {
            Some(found) => tables.push((table, setup::facts(table, &found))),
            None => {
                tracing::info!("there is no logstore {logstore}, so nothing is in it");
                missing.push(table);
            }
        }
    }
    Ok((tables, missing))
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
    let is_lost = findings.lost > 0;
    if is_lost {
        tracing::error!(
            "{} batches with {} rows that were in SLS are not there any more, and the TTL does not \
             tell why; their rows are not sent again\n\
             hint: if they are to be sent again: `dify-sls-backfill run --resend-lost`",
            count(findings.lost),
            count(findings.lost_rows),
        );
    }
    if findings.lost_purged_rows > 0 {
        tracing::error!(
            "{} of these rows were purged from Postgres, so nobody here has them any more\n\
             hint: look for them in backups of Postgres",
            count(findings.lost_purged_rows),
        );
    }
    if findings.unequal.is_empty() && findings.doubled_rows == 0 {
        return if is_lost { Exit::Difference } else { Exit::Done };
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
    if findings.passed_over_groups > 0 {
        output::line(&format!(
            "passed over, vouched for by nobody: {} log groups, {} rows",
            count(findings.passed_over_groups),
            count(findings.passed_over_rows),
        ));
    }
    if findings.lost > 0 {
        line("lost, not in SLS any more:         ", findings.lost, findings.lost_rows);
    }
    output::line("the ledger knows all that SLS holds; `run` can continue");
}
