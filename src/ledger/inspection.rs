//! A look at a ledger that changes nothing, not even by making its schema.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Postgres, Row as _, Transaction};

use crate::ledger::Ledger;
use crate::ledger::stop::Seqid;
use crate::pg::identity::{Identity, identity};
use crate::pg::{self, Address};

/// What was seen of the server and, if there is one, of the ledger.
#[derive(Debug, Clone)]
pub struct Inspection {
    pub fsync: bool,
    pub is_replica: bool,
    pub standbys: Standbys,
    /// Whether this user may make the schema, or write into the one that is there.
    pub may_write: bool,
    /// `None`: there is no ledger yet.
    pub standing: Option<Standing>,
}

/// How a ledger stands.
#[derive(Debug, Clone)]
pub struct Standing {
    pub id: uuid::Uuid,
    /// `None`: it has sent nothing yet.
    pub project: Option<String>,
    /// The service of SLS that the project is in; `None` as long as there is no project.
    pub service: Option<String>,
    /// When each logstore was made, as far as SLS says it (Unix s), into which something was sent
    /// that counts.
    pub created: BTreeMap<String, i64>,
    /// The number of the last process.
    pub epoch: i64,
    /// Consumer groups of other ledgers that an audit has looked into, with their timeouts.
    pub audited_groups: BTreeMap<String, u32>,
    pub stopped_because: Option<String>,
    /// Processes whose lease has not run out.
    pub alive: i64,
    /// What a probe has shown, where (project and endpoint), and when.
    pub seqid: Option<(Seqid, String, String)>,
    /// In words, how ledger and source are not who they were.
    pub own_differences: Vec<String>,
    pub source_then: Identity,
}

/// Who follows the ledger's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standbys {
    /// Connected now.
    pub count: i64,
    /// Whether a commit waits for any of them.
    pub are_waited_for: bool,
}

/// What [`Standbys`] are read from.
const STANDBYS: &str = "(SELECT count(*) FROM pg_stat_replication \
      WHERE state IS DISTINCT FROM 'backup') AS standbys, \
    current_setting('synchronous_standby_names') <> '' AS standbys_waited_for";

impl Standbys {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        let are_waited_for = row.try_get("standbys_waited_for")?;
        Ok(Self { count: row.try_get("standbys")?, are_waited_for })
    }

    /// What a failover would cost, and what to do about it; `None`: nothing.
    pub fn warning(&self) -> Option<(String, &'static str)> {
        if self.count == 0 || self.are_waited_for {
            return None;
        }
        let found = format!(
            "does not wait for its standbys (synchronous_standby_names is empty; connected: {}): \
             after a failover the ledger may lack its last moments; it is stopped then, and nothing is \
             doubled",
            self.count
        );
        let hint = "have commits wait for a standby (synchronous_standby_names), or be ready to run \
                    `dify-sls-backfill audit` after a failover";
        Some((found, hint))
    }
}

impl Ledger {
    /// Who follows the ledger's server.
    pub async fn standbys(&self) -> anyhow::Result<Standbys> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::made_statement(&format!("SELECT {STANDBYS}"));
        let row = row.fetch_one(&mut *tx).await.context("look for standbys of the ledger")?;
        Ok(Standbys::of(&row)?)
    }
}

/// Looks at the ledger at `address`, in a transaction that cannot write.
pub async fn inspect(address: &Address) -> anyhow::Result<Inspection> {
    let mut connection =
        address.connect_plainly().await.with_context(|| format!("connect to {address}"))?;
    let look = look_through(&mut connection).await;
    connection.close().await.context("close the connection")?;
    look
}

async fn look_through(connection: &mut PgConnection) -> anyhow::Result<Inspection> {
    let begin = format!("BEGIN READ ONLY; {}", pg::OWN_NAMES_ONLY);
    let tx = connection.begin_with(sqlx::AssertSqlSafe(begin)).await;
    let mut tx = tx.context("begin a look")?;
    let row = pg::made_statement(&format!(
        "SELECT current_setting('fsync') = 'on' AS fsync, pg_is_in_recovery() AS replica, \
         to_regclass('sls_backfill.ledger') IS NOT NULL AS made, {STANDBYS}, \
         has_database_privilege(current_database(), 'CREATE') AS may_create"
    ))
    .fetch_one(&mut *tx)
    .await
    .context("look at the ledger's server")?;
    let may_create = row.try_get("may_create")?;
    let (fsync, is_replica) = (row.try_get("fsync")?, row.try_get("replica")?);
    let standbys = Standbys::of(&row)?;
    if !row.try_get::<bool, _>("made")? {
        let may_write = may_create;
        return Ok(Inspection { fsync, is_replica, standbys, may_write, standing: None });
    }
    let row = pg::statement(
        "SELECT has_schema_privilege(n.oid, 'USAGE') AND bool_and(has_table_privilege(c.oid, \
         'SELECT, INSERT, UPDATE, DELETE')) AS may_write FROM pg_namespace n \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r' \
         WHERE n.nspname = 'sls_backfill' GROUP BY n.oid",
    )
    .fetch_one(&mut *tx)
    .await
    .context("look at the rights on the ledger")?;
    let may_write = row.try_get("may_write")?;
    let standing = if may_write { Some(standing(&mut tx).await?) } else { None };
    Ok(Inspection { fsync, is_replica, standbys, may_write, standing })
}

async fn standing(tx: &mut Transaction<'_, Postgres>) -> anyhow::Result<Standing> {
    let own = identity(tx).await?;
    let row = pg::statement(
        "SELECT id, project, endpoint, epoch, audited_groups, stopped_because, own_identity, \
         source_identity, seqid_proven, \
         seqid_of, to_char(seqid_probed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"') \
           AS seqid_at, \
         (SELECT count(*) FROM sls_backfill.process \
           WHERE ended_at IS NULL AND lease_until > clock_timestamp()) AS alive \
         FROM sls_backfill.ledger",
    )
    .fetch_one(&mut **tx)
    .await
    .context("look at the ledger: was another version of this program at work here?")?;
    let logstores = pg::statement(
        "SELECT g.logstore, g.created_at_s FROM sls_backfill.generation g \
         WHERE g.created_at_s IS NOT NULL AND g.number = (SELECT max(h.number) \
           FROM sls_backfill.generation h WHERE h.logstore = g.logstore) \
         AND EXISTS (SELECT FROM sls_backfill.batch b WHERE b.logstore = g.logstore \
           AND b.state NOT IN ('lost', 'split', 'abandoned'))",
    )
    .fetch_all(&mut **tx)
    .await
    .context("look which logstores the ledger knows")?;
    let known = |name: &str| -> anyhow::Result<Identity> {
        let known: Option<serde_json::Value> = row.try_get(name)?;
        Ok(known.map(serde_json::from_value).transpose()?.unwrap_or_default())
    };
    let proven: Option<bool> = row.try_get("seqid_proven")?;
    let (of, at): (Option<String>, Option<String>) =
        (row.try_get("seqid_of")?, row.try_get("seqid_at")?);
    let seqid = proven.map(|proven| if proven { Seqid::Proven } else { Seqid::Ignored });
    Ok(Standing {
        id: row.try_get("id")?,
        project: row.try_get("project")?,
        service: row.try_get("endpoint")?,
        created: logstores
            .iter()
            .map(|row| Ok((row.try_get("logstore")?, row.try_get("created_at_s")?)))
            .collect::<anyhow::Result<_>>()?,
        epoch: row.try_get("epoch")?,
        audited_groups: serde_json::from_value(row.try_get("audited_groups")?)
            .context("read the groups that were audited")?,
        stopped_because: row.try_get("stopped_because")?,
        alive: row.try_get("alive")?,
        seqid: seqid.map(|seqid| (seqid, of.unwrap_or_default(), at.unwrap_or_default())),
        own_differences: known("own_identity")?.differences(&own),
        source_then: known("source_identity")?,
    })
}
