//! `init`: makes project, logstores and indexes where they are missing, and the ledger.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output;
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::dify::index::index;
use crate::ledger::Ledger;
use crate::pipeline::patience::patiently;
use crate::record::table::Table;
use crate::sls::answer::Failure;
use crate::sls::client::Client;
use crate::source::catalog::Shape;

/// SLS may refuse a new logstore for about a minute (the vendor's own tests wait that long).
const READY_WITHIN: Duration = Duration::from_secs(120);

/// What `init` needs to know.
pub struct InitSettings {
    pub postgres: PostgresSettings,
    pub sls: SlsSettings,
    /// Days a new logstore keeps logs: 1 to 3650, which means for ever.
    pub ttl_days: u32,
    /// Shards of a new logstore.
    pub shards: u32,
    pub allow_fsync_off: bool,
}

/// Makes what is missing, leaves what is there, and says which.
pub async fn init(settings: &InitSettings) -> Result<Exit, Ended> {
    let source = setup::source(&settings.postgres, 1).await?;
    let shapes = setup::shapes(&source, &Table::ALL).await?;
    let client = setup::client(&settings.sls)?;
    let project = &settings.sls.project;
    let ledger = Ledger::open(&settings.postgres.ledger, 1, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.bind_project(project).await.or_exit(Exit::Preflight)?;
    output::line("ledger    sls_backfill                ready");
    let exists = patiently(|| client.has_project()).await;
    let exists = exists.with_context(|| format!("look for project {project}"));
    if exists.or_exit(Exit::Preflight)? {
        output::line(&format!("project   {project:<27} left as it is"));
    } else {
        let made = unless_made(client.create_project(project).await);
        made.with_context(|| format!("make project {project}")).or_exit(Exit::Preflight)?;
        output::line(&format!("project   {project:<27} made"));
    }
    for shape in &shapes {
        make_logstore(&client, settings, shape).await.or_exit(Exit::Preflight)?;
    }
    Ok(Exit::Done)
}

async fn make_logstore(
    client: &Client,
    settings: &InitSettings,
    shape: &Shape,
) -> anyhow::Result<()> {
    let logstore = shape.table.logstore();
    let found = patiently(|| client.logstore(logstore)).await;
    if found.with_context(|| format!("look for logstore {logstore}"))?.is_some() {
        output::line(&format!("logstore  {logstore:<27} left as it is"));
    } else {
        let (ttl, shards) = (settings.ttl_days, settings.shards);
        unless_made(client.create_logstore(logstore, ttl, shards, true).await)
            .with_context(|| format!("make logstore {logstore}"))?;
        wait_until_ready(client, logstore).await?;
        let kept = if ttl == 3650 { "for ever".to_owned() } else { format!("{ttl} days") };
        output::line(&format!("logstore  {logstore:<27} made: kept {kept}, {shards} shards"));
    }
    let found = patiently(|| client.index(logstore)).await;
    if found.with_context(|| format!("look for the index of {logstore}"))?.is_some() {
        output::line(&format!("index     {logstore:<27} left as it is"));
        return Ok(());
    }
    let index = index(shape.table, &shape.columns);
    unless_made(client.create_index(logstore, &index).await)
        .with_context(|| format!("make the index of {logstore}"))?;
    let keys = index["keys"].as_object().map_or(0, serde_json::Map::len);
    output::line(&format!("index     {logstore:<27} made: {keys} keys"));
    Ok(())
}

/// Another `init`, or Dify itself, may have made it between our look and our try.
fn unless_made(made: Result<(), Failure>) -> Result<(), Failure> {
    match made {
        Err(failure) if failure.code.to_ascii_lowercase().ends_with("alreadyexist") => Ok(()),
        made => made,
    }
}

async fn wait_until_ready(client: &Client, logstore: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match client.shards(logstore).await {
            Ok(shards) if !shards.is_empty() => return Ok(()),
            Ok(_) => {}
            Err(failure) if begun.elapsed() > READY_WITHIN => {
                return Err(failure).with_context(|| format!("wait for logstore {logstore}"));
            }
            Err(failure) => tracing::debug!("logstore {logstore} is not ready: {failure}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
