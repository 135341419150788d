//! The durable book of passes, ranges, batches, holds and read positions: schema `sls_backfill`.
//!
//! Every write on behalf of a range names the range's fencing token, so that a process that was
//! stopped past its lease and wakes up changes nothing. Times of leases are the ledger's clock.

pub mod account;
pub mod batch;
pub mod claim;
pub mod hold;
pub mod intent;
pub mod pass;
pub mod process;
pub mod tail;

use std::time::Duration;

use anyhow::Context as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgPool, Postgres, Row as _, Transaction};
use uuid::Uuid;

use crate::pg;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Any number that no other tool is likely to take for its own advisory locks.
const MIGRATION_LOCK: i64 = 0x5153_1DBA_CF11;

/// Any statement of the ledger is a matter of milliseconds; one that is not hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The ledger, open for writing.
#[derive(Clone)]
pub struct Ledger {
    pool: PgPool,
    /// First half of every `__batch__` tag.
    pub id: Uuid,
}

/// A write named a token or a position that is not the range's any more: somebody else owns it.
#[derive(Debug, thiserror::Error)]
#[error("another process has taken over range {range_id}; nothing was written")]
pub struct LeaseLost {
    pub range_id: i64,
}

/// A transaction of the ledger.
pub(in crate::ledger) type Tx = Transaction<'static, Postgres>;

impl Ledger {
    /// Connects with at most `connections_max` connections, and makes or upgrades the schema.
    ///
    /// Refuses a server with `fsync = off` unless `allow_fsync_off`: its commits survive no crash.
    pub async fn open(
        options: &PgConnectOptions,
        connections_max: u32,
        allow_fsync_off: bool,
    ) -> anyhow::Result<Self> {
        let pool = pg::connect(options, connections_max).await.with_context(|| {
            format!("connect to the ledger at {}:{}", options.get_host(), options.get_port())
        })?;
        let mut tx = pool.begin().await.context("begin a transaction in the ledger")?;
        let fsync = pg::statement("SELECT current_setting('fsync') = 'on' AS fsync")
            .fetch_one(&mut *tx)
            .await?
            .try_get::<bool, _>("fsync")?;
        anyhow::ensure!(
            fsync || allow_fsync_off,
            "the ledger's Postgres runs with fsync = off, so a crash could lose what was sent\n\
             hint: set fsync = on, or keep the ledger elsewhere with --ledger-url"
        );
        migrate(&mut tx).await.context("make the schema sls_backfill")?;
        let id = pg::statement(
            "INSERT INTO sls_backfill.ledger (id) VALUES ($1) \
             ON CONFLICT (singleton) DO UPDATE SET singleton = true RETURNING id",
        )
        .bind(Uuid::new_v4())
        .fetch_one(&mut *tx)
        .await?
        .try_get("id")?;
        tx.commit().await.context("make the schema sls_backfill")?;
        Ok(Self { pool, id })
    }

    /// Remembers the SLS project that this ledger's batches go to; refuses any other.
    pub async fn bind_project(&self, project: &str) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        let bound: String = pg::statement(
            "UPDATE sls_backfill.ledger SET project = coalesce(project, $1) RETURNING project",
        )
        .bind(project)
        .fetch_one(&mut *tx)
        .await?
        .try_get("project")?;
        tx.commit().await.context("write the project into the ledger")?;
        anyhow::ensure!(
            bound == project,
            "this ledger's rows went to SLS project {bound}, not to {project}\n\
             hint: name {bound}, or use another ledger (--ledger-url) for another project"
        );
        Ok(())
    }

    /// A transaction whose commit is on disk when it is answered.
    pub(in crate::ledger) async fn begin(&self) -> anyhow::Result<Tx> {
        self.begin_with("on").await
    }

    /// A transaction that may be lost in a crash of Postgres, for what can be found out again.
    pub(in crate::ledger) async fn begin_relaxed(&self) -> anyhow::Result<Tx> {
        self.begin_with("off").await
    }

    async fn begin_with(&self, synchronous_commit: &str) -> anyhow::Result<Tx> {
        let begin = format!(
            "BEGIN; SET LOCAL synchronous_commit = {synchronous_commit}; \
             SET LOCAL statement_timeout = {}; SET LOCAL jit = off",
            STATEMENT_TIMEOUT.as_millis()
        );
        self.pool
            .begin_with(sqlx::AssertSqlSafe(begin))
            .await
            .context("begin a transaction in the ledger")
    }
}

/// Makes or upgrades the schema inside `tx`, one process at a time.
async fn migrate(tx: &mut Tx) -> anyhow::Result<()> {
    pg::statement("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut **tx)
        .await?;
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    // sqlx's own lock is a session's, which PgBouncer does not keep; its table would stand in
    // Dify's schema.
    migrator.set_locking(false);
    migrator.dangerous_set_table_name("sls_backfill._sqlx_migrations");
    migrator.create_schema("sls_backfill");
    migrator.run(&mut **tx).await?;
    Ok(())
}
