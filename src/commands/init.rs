//! `init`: creates project, logstores and indexes where they are missing, as Dify's extension does
//! when it starts, and the ledger.
//!
//! Run as often as one likes, and beside Dify: what is there stays, an index only gets what Dify
//! would give it. How it knows that a new logstore takes writes: ListShards shows a shard that is
//! writable, and each such shard gives a cursor for its end, which only the servers that store logs
//! can. It writes no log to find out, for that would stay in Dify's logstore. What no call tells is
//! when a new index is in use everywhere, so after making one it waits a minute.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output;
use crate::commands::setup::{self, PostgresSettings, SlsSettings, sls_error};
use crate::dify::conversion::LogTime;
use crate::dify::fields::Fields;
use crate::dify::index::index;
use crate::dify::index::merge::{Change, Merged, merge};
use crate::ledger::Ledger;
use crate::record::table::Table;
use crate::sls::admin::NewLogstore;
use crate::sls::answer::Failure;
use crate::sls::client::Client;
use crate::source::catalog::Shape;

/// SLS may not know a new project or logstore everywhere for about a minute (the vendor's own tests
/// wait that long).
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A wait that is over sooner is not worth a line.
const SHOWN_AFTER: Duration = Duration::from_secs(3);

/// What `init` needs to know.
pub struct InitSettings {
    pub postgres: PostgresSettings,
    pub sls: SlsSettings,
    /// How new logstores are made.
    pub logstores: NewLogstore,
    /// How long to wait after making an index.
    pub index_wait: Duration,
    pub allow_fsync_off: bool,
}

/// Makes what is missing, completes indexes, leaves all else, and says which.
pub async fn init(settings: &InitSettings) -> Result<Exit, Ended> {
    let source = setup::source(&settings.postgres, 1).await?;
    let shapes = setup::shapes(&source, &Table::ALL).await?;
    let client = setup::client(&settings.sls)?;
    let project = &settings.sls.project;
    // Looked up before the ledger is made: who has a wrong key has changed nothing.
    let exists = setup::look(|| client.has_project()).await;
    let exists = exists
        .map_err(|failure| sls_error(&format!("look for project {project}"), &failure))
        .or_exit(Exit::Preflight)?;
    let ledger = Ledger::open(&settings.postgres.ledger, 1, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    ledger.bind(project, &settings.sls.endpoint.service).await.or_exit(Exit::Preflight)?;
    report("ledger", "sls_backfill", "ready");
    if exists {
        report("project", project, "unchanged");
    } else {
        make_project(&client, project).await.or_exit(Exit::Preflight)?;
        report("project", project, "created");
    }
    let mut has_new_index = false;
    for shape in &shapes {
        let maker = Maker { client: &client, settings, logstore: shape.table.logstore() };
        maker.logstore(!exists).await.or_exit(Exit::Preflight)?;
        has_new_index |= maker.index(shape).await.or_exit(Exit::Preflight)?;
    }
    if has_new_index && !settings.index_wait.is_zero() {
        tracing::info!(
            "waiting {} s (--index-wait-s): SLS does not say when a new index is in use, and does \
             not find what is written before",
            settings.index_wait.as_secs()
        );
        tokio::time::sleep(settings.index_wait).await;
    }
    Ok(Exit::Done)
}

async fn make_project(client: &Client, project: &str) -> anyhow::Result<()> {
    let what = format!("create project {project}");
    let made = setup::look(|| client.create_project(project)).await;
    let was_there = made.as_ref().is_err_and(already_exists);
    unless_made(made).map_err(|failure| sls_error(&what, &failure))?;
    let begun = Instant::now();
    loop {
        let exists = setup::look(|| client.has_project()).await;
        if exists.map_err(|failure| sls_error(&what, &failure))? {
            return Ok(());
        }
        // Another `init` may have made it a moment ago; else it is somebody else's.
        anyhow::ensure!(
            begun.elapsed() < READY_WITHIN,
            if was_there {
                format!(
                    "project {project} exists, but not at this endpoint: its name is taken in \
                     another region or by another account\nhint: check ALIYUN_SLS_ENDPOINT, or \
                     choose another ALIYUN_SLS_PROJECT_NAME"
                )
            } else {
                format!(
                    "project {project} was created and is not there yet\nhint: run `init` again"
                )
            }
        );
        wait(begun, &format!("project {project} is not known everywhere yet")).await;
    }
}

/// Makes a logstore and its index.
struct Maker<'a> {
    client: &'a Client,
    settings: &'a InitSettings,
    logstore: &'static str,
}

impl Maker<'_> {
    /// Makes the logstore unless it is there, and waits until it takes writes. A project that `is_
    /// new` may not be known everywhere yet.
    async fn logstore(&self, is_new: bool) -> anyhow::Result<()> {
        let Self { client, logstore, .. } = self;
        let found = known(is_new, || client.logstore(logstore)).await;
        let found = found.map_err(|failure| self.error("look for logstore", &failure))?;
        if let Some(found) = found {
            let days = found.get("ttl").and_then(serde_json::Value::as_u64).unwrap_or(0);
            report("logstore", logstore, &format!("unchanged: keeps logs {}", kept(days)));
            return Ok(());
        }
        let new = &self.settings.logstores;
        known(is_new, || async { unless_made(client.create_logstore(logstore, new).await) })
            .await
            .map_err(|failure| self.error("create logstore", &failure))?;
        self.wait_until_writable().await?;
        let split = if new.auto_split { ", more when they are busy" } else { "" };
        report(
            "logstore",
            logstore,
            &format!(
                "created: keeps logs {}, {} shards{split}",
                kept(new.ttl_days.into()),
                new.shards
            ),
        );
        Ok(())
    }

    async fn wait_until_writable(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let why = match known(true, || self.writable_shards()).await {
                Ok(0) => "it has no writable shard yet".to_owned(),
                Ok(_) => return Ok(()),
                Err(failure) => return Err(self.error("wait for logstore", &failure)),
            };
            anyhow::ensure!(
                begun.elapsed() < READY_WITHIN,
                "logstore {} was created, but {why}\nhint: run `init` again",
                self.logstore
            );
            wait(begun, &why).await;
        }
    }

    /// How many shards take writes.
    async fn writable_shards(&self) -> Result<usize, Failure> {
        let shards = self.client.shards(self.logstore).await?;
        let mut writable = 0;
        for shard in shards.iter().filter(|shard| shard.is_writable()) {
            self.client.cursor(self.logstore, shard.id, "end").await?;
            writable += 1;
        }
        Ok(writable)
    }

    /// Makes the index, or completes it; says whether what was done has to come into use first.
    async fn index(&self, shape: &Shape) -> anyhow::Result<bool> {
        let Self { client, logstore, .. } = self;
        let fields = Fields::of(&setup::conversion(shape, true, LogTime::FinishedAt))?;
        let required = index(&shape.columns, &fields);
        let found = known(true, || client.index(logstore)).await;
        let found = found.map_err(|failure| self.error("look for the index of", &failure))?;
        let Some(found) = found else {
            let made = || async { unless_made(client.create_index(logstore, &required).await) };
            let made = known(true, made).await;
            made.map_err(|failure| self.error("create the index of", &failure))?;
            report("index", logstore, &format!("created: {} keys", keys(&required)));
            return Ok(true);
        };
        let merged = merge(&found, &required);
        if merged.changes.is_empty() {
            report("index", logstore, &format!("unchanged: {}", inventory(&merged)));
            return Ok(false);
        }
        let updated = known(true, || client.update_index(logstore, &merged.index)).await;
        updated.map_err(|failure| self.error("update the index of", &failure))?;
        let changes: Vec<_> = merged.changes.iter().map(Change::to_string).collect();
        let changes = changes.join(", ");
        report("index", logstore, &format!("changed: {changes}; {}", inventory(&merged)));
        Ok(true)
    }

    fn error(&self, verb: &str, failure: &Failure) -> anyhow::Error {
        sls_error(&format!("{verb} {}", self.logstore), failure)
    }
}

/// Calls `call` again while what it is about is so new (`is_new`) that SLS may not know it.
async fn known<T, F: Future<Output = Result<T, Failure>>>(
    is_new: bool,
    mut call: impl FnMut() -> F,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        let failure = match setup::look(&mut call).await {
            Err(failure) if is_new && failure.is_about_absence() => failure,
            answer => return answer,
        };
        if begun.elapsed() > READY_WITHIN {
            return Err(failure);
        }
        wait(begun, &failure.to_string()).await;
    }
}

/// Waits a second, and says why if it has waited since `begun` for long.
async fn wait(begun: Instant, why: &str) {
    let before = begun.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    if before < SHOWN_AFTER && begun.elapsed() >= SHOWN_AFTER {
        tracing::info!(
            "waiting up to {} s until SLS knows what is new: {why}",
            READY_WITHIN.as_secs()
        );
    }
}

/// Another `init`, or Dify itself, may have made it between our look and our try.
fn unless_made(made: Result<(), Failure>) -> Result<(), Failure> {
    match made {
        Err(failure) if already_exists(&failure) => Ok(()),
        made => made,
    }
}

fn already_exists(failure: &Failure) -> bool {
    failure.code.to_ascii_lowercase().ends_with("alreadyexist")
}

fn report(kind: &str, name: &str, what: &str) {
    output::line(&format!("{kind:<9} {name:<27} {what}"));
}

/// How long `days` are; SLS's number for "for ever" is 3650.
fn kept(days: u64) -> String {
    if days >= 3650 { "for ever".to_owned() } else { format!("{days} days") }
}

fn keys(index: &serde_json::Value) -> usize {
    index["keys"].as_object().map_or(0, serde_json::Map::len)
}

/// What was kept of an index that was there, and what Dify makes of it.
fn inventory(merged: &Merged) -> String {
    let mut text = format!("{} keys", keys(&merged.index));
    if merged.custom_keys > 0 {
        text += &format!(", {} of them not Dify's", merged.custom_keys);
    }
    if merged.index.get("scan_index") == Some(&false.into()) {
        text += "; scan_index is off, so Dify will not use SLS's SQL protocol";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_given_in_words() {
        assert_eq!((kept(365), kept(3650)), ("365 days".to_owned(), "for ever".to_owned()));
    }
}
