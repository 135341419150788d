//! Whether this ledger is the one that it was: its identity, the stamps of its processes, and the
//! stop that only an audit lifts.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ledger::Ledger;
use crate::pg::identity::{Identity, identity};
use crate::pg::{self, Tx};

/// Nothing may be sent before an audit.
#[derive(Debug, thiserror::Error)]
#[error(
    "{because}\nso SLS may hold rows that this ledger does not know, or lack rows that it takes for \
     stored; nothing is sent until that is clear\n\
     hint: `dify-sls-backfill audit` looks into SLS, writes down what is there, and lifts the stop"
)]
pub struct Stopped {
    pub because: String,
}

/// The source is another database than the one whose rows this ledger has moved. That puts nothing
/// in doubt that is in SLS, so it stops nobody else.
#[derive(Debug, thiserror::Error)]
#[error(
    "the source is not the one it was: {differences}\n\
     nothing was sent, and the ledger is as it was\n\
     hint: check DB_HOST, DB_PORT and DB_DATABASE; if Dify's database has moved there, say \
     `run --new-source` once"
)]
pub struct WrongSource {
    differences: String,
}

/// An audit that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Sightings that it has counted anew bear it.
    pub number: i64,
    /// Since then (Unix s, SLS's clock) whoever else comes is kept out.
    pub fenced_at: i64,
    /// The consumer groups of others that were there then, by logstore.
    pub groups: BTreeMap<String, Vec<String>>,
}

/// The consumer groups that are nobody's who is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownGroups {
    /// The stamps of this ledger's processes, by their numbers.
    pub stamps: BTreeMap<i64, u32>,
    /// Groups of other ledgers, by their names, with their timeouts.
    pub audited: BTreeMap<String, u32>,
}

/// What a probe of idempotent writes has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seqid {
    /// SLS refuses a repeated number.
    Proven,
    /// SLS stored a repeated number, or refused a new one.
    Ignored,
}

impl Ledger {
    /// Fails with [`Stopped`] if the ledger is not who it was, or if that was found before; with
    /// [`WrongSource`] if the source is not, unless `is_new_source`. At the first time it remembers
    /// who they are.
    pub async fn recognise(&self, source: &Identity, is_new_source: bool) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let own = identity(&mut tx).await?;
        let row = pg::statement(
            "SELECT stopped_because, own_identity, source_identity FROM sls_backfill.ledger \
             FOR UPDATE",
        )
        .fetch_one(&mut *tx)
        .await
        .context("look whether the ledger is who it was")?;
        if let Some(because) = row.try_get("stopped_because")? {
            return Err(Stopped { because }.into());
        }
        let own_then = known_identity(&row, "own_identity")?;
        let differences = own_then.differences(&own);
        if !differences.is_empty() {
            let because = not_where_it_was(&differences);
            write_stop(&mut tx, &because).await?;
            tx.commit().await.context("stop the ledger")?;
            return Err(Stopped { because }.into());
        }
        let source_then = match is_new_source {
            true => Identity::default(),
            false => known_identity(&row, "source_identity")?,
        };
        let differences = source_then.differences_in_place(source);
        if !differences.is_empty() {
            return Err(WrongSource { differences: differences.join("; ") }.into());
        }
        remember(&mut tx, &own.or(own_then), &source.clone().or(source_then)).await?;
        tx.commit().await.context("remember who the ledger is")
    }

    /// Whether the ledger's tables are in the very database of that identity, so that one
    /// transaction holds both. Whoever may not know who the server is is not sure; two databases
    /// are safe too.
    pub async fn is_in(&self, database: &Identity) -> anyhow::Result<bool> {
        let mut tx = self.begin_relaxed().await?;
        let own = identity(&mut tx).await?;
        Ok(own.system.is_some() && own.book.is_some() && own == *database)
    }

    /// From now on nothing may be sent before an audit; gives the error that says so. What stopped
    /// it first stays the reason.
    pub async fn stop(&self, because: &str) -> anyhow::Result<Stopped> {
        let mut tx = self.begin().await?;
        write_stop(&mut tx, because).await?;
        tx.commit().await.context("stop the ledger")?;
        Ok(Stopped { because: because.to_owned() })
    }

    /// Which consumer groups there may be: those of processes of this ledger that have taken one of
    /// these numbers, and those that an audit has looked into.
    pub async fn known_groups(&self, numbers: Vec<i64>) -> anyhow::Result<KnownGroups> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement("SELECT audited_groups FROM sls_backfill.ledger")
            .fetch_one(&mut *tx)
            .await
            .context("look up the groups that were audited")?;
        let audited = serde_json::from_value(row.try_get("audited_groups")?)?;
        let rows =
            pg::statement("SELECT epoch, stamp FROM sls_backfill.process WHERE epoch = ANY($1)")
                .bind(numbers)
                .fetch_all(&mut *tx)
                .await
                .context("look up the stamps of processes")?;
        let stamps = rows
            .iter()
            .map(|row| Ok((row.try_get("epoch")?, u32::try_from(row.try_get::<i32, _>("stamp")?)?)))
            .collect::<anyhow::Result<_>>()?;
        Ok(KnownGroups { stamps, audited })
    }

    /// What a probe on `project_and_endpoint` has shown; `None`: none was made there.
    pub async fn seqid(&self, project_and_endpoint: &str) -> anyhow::Result<Option<Seqid>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement("SELECT seqid_proven FROM sls_backfill.ledger WHERE seqid_of = $1")
            .bind(project_and_endpoint)
            .fetch_optional(&mut *tx)
            .await
            .context("look up what the probe of idempotent writes has shown")?;
        let proven: Option<Option<bool>> =
            row.map(|row| row.try_get("seqid_proven")).transpose()?;
        Ok(proven.flatten().map(|proven| if proven { Seqid::Proven } else { Seqid::Ignored }))
    }

    /// Writes down what a probe on `project_and_endpoint` has shown.
    pub async fn probed(&self, project_and_endpoint: &str, seqid: Seqid) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.ledger SET seqid_proven = $2, seqid_of = $1, \
             seqid_probed_at = clock_timestamp()",
        )
        .bind(project_and_endpoint)
        .bind(seqid == Seqid::Proven)
        .execute(&mut *tx)
        .await
        .context("write down what the probe has shown")?;
        tx.commit().await.context("write down what the probe has shown")
    }

    /// The next process takes a number above `number`.
    pub async fn count_from(&self, number: i64) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement("UPDATE sls_backfill.ledger SET epoch = greatest(epoch, $1)")
            .bind(number)
            .execute(&mut *tx)
            .await
            .context("count on from the highest number that SLS knows")?;
        tx.commit().await.context("count on from the highest number that SLS knows")
    }

    /// The audit that is not finished.
    pub async fn open_audit(&self) -> anyhow::Result<Option<Audit>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement("SELECT audit FROM sls_backfill.ledger")
            .fetch_one(&mut *tx)
            .await
            .context("look for an audit that is not finished")?;
        let audit: Option<serde_json::Value> = row.try_get("audit")?;
        audit.map(serde_json::from_value).transpose().context("read the open audit")
    }

    /// Begins an audit of what `service` holds: nothing is sent before it is finished, and every
    /// shard of its logstores is read anew from its beginning.
    pub async fn begin_audit(&self, audit: &Audit, service: &str) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let others = pg::statement(
            "SELECT FROM sls_backfill.process WHERE ended_at IS NULL AND epoch <> $1 LIMIT 1",
        )
        .bind(audit.number)
        .fetch_optional(&mut *tx)
        .await
        .context("look for other processes in the ledger")?;
        anyhow::ensure!(
            others.is_none(),
            "another process has joined meanwhile\nhint: when it has ended, audit again"
        );
        write_stop(&mut tx, "an audit was begun and is not finished").await?;
        pg::statement("UPDATE sls_backfill.ledger SET audit = $1, endpoint = $2")
            .bind(serde_json::to_value(audit)?)
            .bind(service)
            .execute(&mut *tx)
            .await
            .context("begin an audit")?;
        pg::statement("DELETE FROM sls_backfill.read_position WHERE logstore = ANY($1)")
            .bind(audit.groups.keys().cloned().collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .context("begin to read anew")?;
        tx.commit().await.context("begin an audit")
    }

    /// Forgets that an audit was begun; the stop stays.
    pub async fn drop_audit(&self) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement("UPDATE sls_backfill.ledger SET audit = NULL")
            .execute(&mut *tx)
            .await
            .context("take the audit back")?;
        tx.commit().await.context("take the audit back")
    }

    /// Ends an audit: the stop is lifted, and the ledger is who it is now, with a source that is in
    /// the same database. Any other source stays who it was. `audited`: groups of other ledgers that
    /// stay, with their timeouts.
    pub async fn finish_audit(
        &self,
        source: &Identity,
        audited: &BTreeMap<String, u32>,
    ) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let own = identity(&mut tx).await?;
        let row = pg::statement("SELECT source_identity FROM sls_backfill.ledger FOR UPDATE")
            .fetch_one(&mut *tx)
            .await
            .context("look whose rows the ledger has moved")?;
        let source_then = known_identity(&row, "source_identity")?;
        let source = match own.differences_in_place(source).is_empty() {
            true => source.clone(),
            false => source_then.or(source.clone()),
        };
        remember(&mut tx, &own, &source).await?;
        pg::statement(
            "UPDATE sls_backfill.ledger SET stopped_because = NULL, audit = NULL, \
             audited_groups = audited_groups || $1",
        )
        .bind(serde_json::to_value(audited)?)
        .execute(&mut *tx)
        .await
        .context("lift the stop")?;
        pg::statement("UPDATE sls_backfill.generation SET audited = true WHERE NOT audited")
            .execute(&mut *tx)
            .await
            .context("note which logstores were looked into")?;
        tx.commit().await.context("end the audit")
    }
}

/// Who the ledger's row `row` says that somebody was; nobody in particular where it says nothing.
fn known_identity(row: &PgRow, column: &str) -> anyhow::Result<Identity> {
    let known: Option<serde_json::Value> = row.try_get(column)?;
    Ok(known.map(serde_json::from_value).transpose()?.unwrap_or_default())
}

pub(in crate::ledger) async fn write_stop(tx: &mut Tx, because: &str) -> anyhow::Result<()> {
    pg::statement("UPDATE sls_backfill.ledger SET stopped_because = coalesce(stopped_because, $1)")
        .bind(because)
        .execute(&mut **tx)
        .await
        .context("stop the ledger")?;
    Ok(())
}

async fn remember(tx: &mut Tx, own: &Identity, source: &Identity) -> anyhow::Result<()> {
    pg::statement("UPDATE sls_backfill.ledger SET own_identity = $1, source_identity = $2")
        .bind(serde_json::to_value(own)?)
        .bind(serde_json::to_value(source)?)
        .execute(&mut **tx)
        .await
        .context("remember who the ledger is")?;
    Ok(())
}

/// In words, that the ledger is not who it was.
pub(in crate::ledger) fn not_where_it_was(differences: &[String]) -> String {
    format!("the ledger is not where it was: {}", differences.join("; "))
}
