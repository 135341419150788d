//! Where batches go: project and service, and each creation of a logstore.
//!
//! A logstore that was deleted and made again has the same name and holds nothing. So every batch,
//! sighting, read position and proved age names the generation that it is about; only the highest
//! number, the logstore as it is now, counts.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::ledger::Ledger;
use crate::ledger::stop::{Stopped, write_stop};
use crate::pg::{self, Tx};

/// A TTL of so many days means for ever.
pub const TTL_DAYS_FOR_EVER: i32 = 3650;

/// A logstore as SLS describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogstoreFacts {
    pub logstore: &'static str,
    /// When it was made, Unix seconds; `None`: SLS does not say.
    pub created_at_s: Option<i64>,
    /// How many days it keeps logs, [`TTL_DAYS_FOR_EVER`] for ever; `None`: SLS does not say.
    pub ttl_days: Option<i32>,
}

/// The generations that the ledger was stopped for: the logstores were made anew, and something had
/// been sent to those before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MadeAnew(Vec<&'static str>);

impl MadeAnew {
    /// Fails with [`Stopped`] if there is one.
    pub fn stops(&self) -> Result<(), Stopped> {
        if self.0.is_empty() { Ok(()) } else { Err(Stopped { because: self.because() }) }
    }

    fn because(&self) -> String {
        made_anew(&self.0.join(" and "))
    }
}

/// What it means that a logstore was made anew.
pub fn made_anew(logstore: &str) -> String {
    format!("logstore {logstore} was deleted and made again since rows were sent to it")
}

/// What it means that a ledger's rows went to another service of SLS.
pub fn other_service(bound: &str, service: &str) -> String {
    format!("this ledger's rows went to SLS at {bound}, not to {service}")
}

/// The number of the logstore that the SQL expression `logstore` names, as it is now.
pub(in crate::ledger) fn current_sql(logstore: &str) -> String {
    format!("(SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = {logstore})")
}

impl Ledger {
    /// Remembers the project and the service of SLS that this ledger's batches go to; refuses any
    /// other.
    pub async fn bind(&self, project: &str, service: &str) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        bind_project(&mut tx, project).await?;
        let bound: String = pg::statement(
            "UPDATE sls_backfill.ledger SET endpoint = coalesce(endpoint, $1) RETURNING endpoint",
        )
        .bind(service)
        .fetch_one(&mut *tx)
        .await
        .context("write the service into the ledger")?
        .try_get("endpoint")?;
        anyhow::ensure!(
            bound == service,
            "{}, although its project has the same name\nnothing was sent\n\
             hint: name {bound} in ALIYUN_SLS_ENDPOINT; or give {service} a ledger of its own \
             (--ledger-url), which after a mere try may be this one made anew: \
             DROP SCHEMA sls_backfill CASCADE\n\
             hint: if the project has moved, or its service has another name now, \
             `dify-sls-backfill audit` looks into it and goes on from what is there",
            other_service(&bound, service),
        );
        tx.commit().await.context("write project and service into the ledger")
    }

    /// Remembers the project alone; refuses any other. An audit binds the service when it begins.
    pub async fn bind_project(&self, project: &str) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        bind_project(&mut tx, project).await?;
        tx.commit().await.context("write the project into the ledger")
    }

    /// Notes how SLS describes these logstores now. One that was made anew begins a generation; if
    /// something that counts was sent to the one before, the ledger holds no more before an audit.
    pub async fn meet(&self, logstores: &[LogstoreFacts]) -> anyhow::Result<MadeAnew> {
        let mut tx = self.begin().await?;
        // Two that meet it at once stand in line here.
        pg::statement("SELECT FROM sls_backfill.ledger FOR UPDATE")
            .execute(&mut *tx)
            .await
            .context("look which logstores the ledger knows")?;
        let mut made_anew = MadeAnew::default();
        for facts in logstores {
            let met = meet(&mut tx, facts).await;
            if met.with_context(|| format!("note what logstore {} is", facts.logstore))? {
                made_anew.0.push(facts.logstore);
            }
        }
        if !made_anew.0.is_empty() {
            write_stop(&mut tx, &made_anew.because()).await?;
        }
        tx.commit().await.context("note what the logstores are")?;
        Ok(made_anew)
    }

    /// The number of the logstore as it is now.
    pub async fn generation(&self, logstore: &str) -> anyhow::Result<i32> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT max(number) AS number FROM sls_backfill.generation WHERE logstore = $1",
        )
        .bind(logstore)
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look which creation of {logstore} is meant"))?;
        let number: Option<i32> = row.try_get("number")?;
        number.with_context(|| format!("the ledger has never met logstore {logstore}"))
    }
}

impl Ledger {
    /// The oldest log time (Unix s) of another writer that was read in the logstore as it is now;
    /// `None`: none was.
    pub async fn other_writer_since(&self, logstore: &str) -> anyhow::Result<Option<i64>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT others_since_s FROM sls_backfill.generation WHERE logstore = $1 \
             ORDER BY number DESC LIMIT 1",
        )
        .bind(logstore)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look up who else writes into {logstore}"))?;
        Ok(row.map(|row| row.try_get("others_since_s")).transpose()?.flatten())
    }
}

/// Logs of another writer were read in that creation of the logstore, the oldest of `since` (Unix s).
pub(in crate::ledger) async fn note_other_writer(
    tx: &mut Tx,
    logstore: &str,
    generation: i32,
    since: u32,
) -> anyhow::Result<()> {
    pg::statement(
        "UPDATE sls_backfill.generation SET others_since_s = least(others_since_s, $3) \
         WHERE logstore = $1 AND number = $2",
    )
    .bind(logstore)
    .bind(generation)
    .bind(i64::from(since))
    .execute(&mut **tx)
    .await
    .with_context(|| format!("note that somebody else writes into {logstore}"))?;
    Ok(())
}

async fn bind_project(tx: &mut Tx, project: &str) -> anyhow::Result<()> {
    let bound: String = pg::statement(
        "UPDATE sls_backfill.ledger SET project = coalesce(project, $1) RETURNING project",
    )
    .bind(project)
    .fetch_one(&mut **tx)
    .await
    .context("write the project into the ledger")?
    .try_get("project")?;
    anyhow::ensure!(
        bound == project,
        "this ledger's rows went to SLS project {bound}, not to {project}\n\
         hint: name {bound}, or use another ledger (--ledger-url) for another project"
    );
    Ok(())
}

/// Whether the logstore was made anew, and something that counts was sent to the one before.
async fn meet(tx: &mut Tx, facts: &LogstoreFacts) -> anyhow::Result<bool> {
    let LogstoreFacts { logstore, created_at_s, ttl_days } = *facts;
    let known = pg::made_statement(&format!(
        "UPDATE sls_backfill.generation SET ttl_days = coalesce($3, ttl_days), \
         created_at_s = coalesce(created_at_s, $2) WHERE logstore = $1 AND number = {} \
         AND ($2 IS NULL OR created_at_s IS NULL OR created_at_s = $2) RETURNING audited",
        current_sql("$1")
    ))
    .bind(logstore)
    .bind(created_at_s)
    .bind(ttl_days)
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(known) = known {
        return Ok(!known.try_get::<bool, _>("audited")?);
    }
    let added = pg::made_statement(&format!(
        "INSERT INTO sls_backfill.generation (logstore, number, created_at_s, ttl_days, audited) \
         SELECT $1, coalesce({}, 0) + 1, $2, $3, NOT EXISTS (SELECT FROM sls_backfill.batch \
           WHERE logstore = $1 AND state NOT IN ('lost', 'split', 'abandoned')) \
         RETURNING audited",
        current_sql("$1")
    ))
    .bind(logstore)
    .bind(created_at_s)
    .bind(ttl_days)
    .fetch_one(&mut **tx)
    .await?;
    Ok(!added.try_get::<bool, _>("audited")?)
}
