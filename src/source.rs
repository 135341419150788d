//! Reads Dify's tables, and can do nothing else: every transaction of a [`Source`] is `READ ONLY`.
//! ([`writable`] is for purge and restore alone.)
//!
//! The way of a read: the sizes of the next rows first ([`page`]), which costs nearly nothing since
//! `octet_length` does not fetch a long value; then exactly the rows of one batch ([`read`]), one
//! statement read to its end at full speed. No statement is open while anything else is waited for.

pub mod catalog;
pub mod count_days;
pub mod estimate;
pub mod footprint;
pub mod page;
pub mod ranges;
pub mod read;
pub mod replica_lag;
pub mod sample;
pub mod scope;
pub mod twins;
pub mod writable;
pub mod write_health;

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{PgPool, Postgres, Row as _, Transaction};

use crate::error_text::error_text;
use crate::pg::identity::{Identity, identity};
use crate::pg::pool::{PoolSize, connect};
use crate::pg::{self, Address};
use crate::record::timestamp::Timestamp;

/// How Postgres prints the types that we read as text, whatever the server, the database or the
/// role says: else the same row would become another log after somebody changed a setting.
pub(in crate::source) const TEXT_FORMS: &str = "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, MDY'; \
     SET LOCAL intervalstyle = 'postgres'; SET LOCAL bytea_output = 'hex'; \
     SET LOCAL extra_float_digits = 1";

/// Bounds of a read.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A statement that runs longer is cancelled by Postgres.
    pub statement_timeout: Duration,
    /// A statement that waits longer for a lock is cancelled by Postgres.
    pub lock_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { statement_timeout: Duration::from_secs(60), lock_timeout: Duration::from_secs(5) }
    }
}

/// The source database.
#[derive(Clone)]
pub struct Source {
    pool: PgPool,
    begin: String,
    pub server: Server,
}

/// What was learnt of the server when the connection was made.
#[derive(Debug, Clone)]
pub struct Server {
    /// Up to when (UTC) it shows what was committed: its clock; on a replica the last commit that
    /// it has replayed.
    pub now: Timestamp,
    /// Name of the database.
    pub database: String,
    /// `server_encoding`.
    pub encoding: String,
    pub is_replica: bool,
}

impl Source {
    /// Connects with a pool of that size, and asks the server who it is.
    pub async fn connect(
        address: &Address,
        size: PoolSize,
        limits: &Limits,
    ) -> anyhow::Result<Self> {
        let pool = connect(address, size).await.map_err(|error| {
            let hint = error.hint(address);
            let error =
                anyhow::Error::from(error).context(format!("connect to Postgres at {address}"));
            anyhow::anyhow!("{}\nnothing was done\nhint: {hint}", error_text(&error))
        })?;
        let server = describe_server(&pool).await.context("ask the Postgres server who it is")?;
        anyhow::ensure!(
            server.now != Timestamp::NEG_INFINITY,
            "the replica at {address} has replayed no commit yet, so nobody knows up to when it \
             shows what there is\nhint: wait until it has followed its primary"
        );
        let mut begin = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; \
             {}; SET LOCAL jit = off; \
             SET LOCAL max_parallel_workers_per_gather = 0; {TEXT_FORMS}",
            limits.statement_timeout.as_millis(),
            limits.lock_timeout.as_millis(),
            limits.statement_timeout.as_millis(),
            pg::OWN_NAMES_ONLY,
        );
        if server.encoding == "SQL_ASCII" {
            // Else one byte that is not UTF-8 fails the whole statement; so it fails its row alone.
            begin += "; SET LOCAL client_encoding = 'SQL_ASCII'";
        }
        Ok(Self { pool, begin, server })
    }

    /// Who the source is.
    pub async fn identity(&self) -> anyhow::Result<Identity> {
        let mut tx = self.begin().await?;
        Ok(identity(&mut tx).await?.as_source())
    }

    /// Begins a transaction that cannot write.
    pub(in crate::source) async fn begin(&self) -> anyhow::Result<Transaction<'static, Postgres>> {
        self.begin_with("").await
    }

    /// Begins one with more settings: `; SET LOCAL …`.
    pub(in crate::source) async fn begin_with(
        &self,
        settings: &'static str,
    ) -> anyhow::Result<Transaction<'static, Postgres>> {
        let begin = format!("{}{settings}", self.begin);
        self.pool.begin_with(sqlx::AssertSqlSafe(begin)).await.context("begin a read in Postgres")
    }
}

pub(in crate::source) async fn describe_server(pool: &PgPool) -> Result<Server, sqlx::Error> {
    let begin = format!("BEGIN READ ONLY; {}", pg::OWN_NAMES_ONLY);
    let mut tx = pool.begin_with(sqlx::AssertSqlSafe(begin)).await?;
    let row = pg::statement(
        "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() \
           ELSE clock_timestamp() END AT TIME ZONE 'UTC') AS now, current_database()::text AS database, \
         current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS is_replica",
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok(Server {
        // NULL on a replica that has replayed nothing: it shows nothing yet.
        now: row.try_get::<Option<Timestamp>, _>("now")?.unwrap_or(Timestamp::NEG_INFINITY),
        database: row.try_get("database")?,
        encoding: row.try_get("encoding")?,
        is_replica: row.try_get("is_replica")?,
    })
}
