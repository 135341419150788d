//! The durable record of passes, ranges, batches, holds and read positions: schema `sls_backfill`.
//!
//! Every write on behalf of a range names the range's fencing token, so that a process that was
//! stopped past its lease and wakes up changes nothing. Times of leases are the ledger's clock.

pub mod account;
pub mod acknowledge;
pub mod adopt;
pub mod audit_conclusion;
pub mod batch_rows;
pub mod continuity;
pub mod day_counts;
pub mod finding;
pub mod generation;
pub mod hold;
pub mod in_doubt;
pub mod inspection;
pub mod intent;
pub mod known_rows;
pub mod lane;
pub mod live_rows;
pub mod lost;
pub mod migrate;
pub mod pass;
pub mod process;
pub mod proved_age;
pub mod purge;
pub mod purge_plan;
pub mod range;
pub mod read_again;
pub mod reader_lag;
pub mod repair;
pub mod restore;
pub mod revision;
pub mod sighting;
pub mod stop;
pub mod verification;
pub mod verified_batches;

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use crate::error_text::error_text;
use crate::ledger::migrate::{Schema, migrate, schema};
use crate::pg::identity::timeline;
use crate::pg::pool::{PoolSize, connect};
use crate::pg::{self, Address, Tx};
use crate::record::seal::Seal;

/// Any statement of the ledger is a matter of milliseconds; one that is not hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A process that is stopped in the middle of a transaction loses it, and with it its locks, well
/// before the statements of others that wait for them give up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The ledger, open for writing.
#[derive(Clone)]
pub struct Ledger {
    pool: PgPool,
    /// First half of every `__batch__` tag.
    pub id: Uuid,
    /// The timeline of its Postgres when it was opened; `None`: this user may not ask for it.
    timeline: Option<String>,
    /// What tells its tags from those of others.
    pub seal: Seal,
}

/// A write named a token or a position that is not the range's any more: somebody else owns it.
#[derive(Debug, thiserror::Error)]
#[error("another process has taken over range {range_id}; nothing was written")]
pub struct LeaseLost {
    pub range_id: i64,
}

impl Ledger {
    /// Connects with a pool of that size, and makes or upgrades the schema.
    ///
    /// Refuses a server with `fsync = off` unless `allow_fsync_off`: its commits survive no crash.
    /// Refuses a replica, which takes no writes. Errors come with a hint.
    pub async fn open(
        address: &Address,
        size: PoolSize,
        allow_fsync_off: bool,
    ) -> anyhow::Result<Self> {
        let mut opening = Opening::begin(address, size, allow_fsync_off).await?;
        let migrated = migrate(&mut opening.tx).await.context("make the schema sls_backfill");
        migrated.map_err(|error| match lacks_a_right(&error) {
            true => hinted(
                &error,
                &format!(
                    "GRANT CREATE ON DATABASE {} TO {}, or keep the ledger elsewhere: --ledger-url",
                    pg::quote(&address.login().database),
                    pg::quote(&address.login().user),
                ),
            ),
            false => error,
        })?;
        pg::statement(
            "INSERT INTO sls_backfill.ledger (id, seal_key) VALUES ($1, $2) \
             ON CONFLICT (singleton) DO NOTHING",
        )
        .bind(Uuid::new_v4())
        .bind(rand::random::<[u8; 32]>().to_vec())
        .execute(&mut *opening.tx)
        .await?;
        opening.end().await
    }

    /// As [`Ledger::open`], but for those who ask what was done: refuses to make a ledger where there
    /// is none, and to upgrade one.
    pub async fn open_existing(
        address: &Address,
        size: PoolSize,
        allow_fsync_off: bool,
    ) -> anyhow::Result<Self> {
        let mut opening = Opening::begin(address, size, allow_fsync_off).await?;
        match schema(&mut opening.tx).await? {
            Schema::Current => opening.end().await,
            Schema::Older => anyhow::bail!(
                "an older version of this program has made the ledger at {address}\n\
                 nothing was done\nhint: `dify-sls-backfill init` upgrades it, and changes no row"
            ),
            Schema::Absent => anyhow::bail!(
                "there is no ledger at {address}, so nothing is known to be in SLS\n\
                 nothing was done\nhint: `dify-sls-backfill run` migrates first; --ledger-url says \
                 where its ledger is"
            ),
        }
    }

    /// A transaction whose commit is on disk when it is answered.
    pub(in crate::ledger) async fn begin(&self) -> anyhow::Result<Tx> {
        self.begin_with("BEGIN; SET LOCAL synchronous_commit = on").await
    }

    /// A transaction that may be lost in a crash of Postgres, for what can be found out again.
    pub(in crate::ledger) async fn begin_relaxed(&self) -> anyhow::Result<Tx> {
        self.begin_with("BEGIN; SET LOCAL synchronous_commit = off").await
    }

    /// A transaction that is on disk when it is committed, and finds what it needs by indexes.
    pub(in crate::ledger) async fn begin_on_indexes(&self) -> anyhow::Result<Tx> {
        self.begin_with("BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL enable_seqscan = off")
            .await
    }

    /// A transaction whose statements all see the same, and find it by indexes: a table that grew
    /// since its last ANALYZE seems small enough to be read as a whole.
    pub(in crate::ledger) async fn begin_snapshot(&self) -> anyhow::Result<Tx> {
        self.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL enable_seqscan = off")
            .await
    }

    /// A transaction whose statements all see the same and may take minutes: millions of rows take
    /// a while to count.
    pub(in crate::ledger) async fn begin_count(&self) -> anyhow::Result<Tx> {
        let mut tx = self.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        sqlx::raw_sql("SET LOCAL statement_timeout = '10min'")
            .execute(&mut *tx)
            .await
            .context("begin a transaction in the ledger")?;
        Ok(tx)
    }

    async fn begin_with(&self, begin: &str) -> anyhow::Result<Tx> {
        let begin = format!(
            "{begin}; {}; SET LOCAL statement_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL jit = off",
            pg::OWN_NAMES_ONLY,
            STATEMENT_TIMEOUT.as_millis(),
            IDLE_TIMEOUT.as_millis(),
        );
        self.pool
            .begin_with(sqlx::AssertSqlSafe(begin))
            .await
            .context("begin a transaction in the ledger")
    }
}

/// A connection whose first transaction finds out what it is connected to.
struct Opening {
    pool: PgPool,
    tx: Tx,
}

impl Opening {
    /// Refuses a replica, and a server with `fsync = off` unless that is allowed.
    async fn begin(
        address: &Address,
        size: PoolSize,
        allow_fsync_off: bool,
    ) -> anyhow::Result<Self> {
        let pool = connect(address, size).await.map_err(|error| {
            let hint = error.hint(address);
            let error = anyhow::Error::from(error);
            let error = error.context(format!("connect to the ledger at {address}"));
            hinted(
                &error,
                &format!(
                    "{hint}; the ledger is where --ledger-url says, else beside Dify's tables"
                ),
            )
        })?;
        let begin = format!("BEGIN; {}", pg::OWN_NAMES_ONLY);
        let tx = pool.begin_with(sqlx::AssertSqlSafe(begin)).await;
        let mut tx = tx.context("begin a transaction in the ledger")?;
        let server = pg::statement(
            "SELECT current_setting('fsync') = 'on' AS fsync, pg_is_in_recovery() AS replica",
        )
        .fetch_one(&mut *tx)
        .await?;
        anyhow::ensure!(
            !server.try_get::<bool, _>("replica")?,
            "the ledger's Postgres at {address} is a replica, which takes no writes\n\
             hint: keep the ledger on the primary, or elsewhere: --ledger-url"
        );
        anyhow::ensure!(
            server.try_get::<bool, _>("fsync")? || allow_fsync_off,
            "the ledger's Postgres runs with fsync = off, so a crash could lose what was sent\n\
             hint: set fsync = on, or keep the ledger elsewhere with --ledger-url"
        );
        Ok(Self { pool, tx })
    }

    /// Reads who the ledger is, and commits what was made.
    async fn end(mut self) -> anyhow::Result<Ledger> {
        let row = pg::statement("SELECT id, seal_key FROM sls_backfill.ledger")
            .fetch_one(&mut *self.tx)
            .await
            .context("read who the ledger is")?;
        let (id, key): (_, &[u8]) = (row.try_get("id")?, row.try_get("seal_key")?);
        let key = key.try_into().context("the key of the ledger's seal has 32 bytes")?;
        let timeline = timeline(&mut self.tx).await?;
        self.tx.commit().await.context("open the ledger")?;
        Ok(Ledger { pool: self.pool, id, timeline, seal: Seal::new(id, key) })
    }
}

/// What this transaction has written is on disk when its commit is answered, after all.
pub(in crate::ledger) async fn make_durable(tx: &mut Tx) -> anyhow::Result<()> {
    pg::statement("SET LOCAL synchronous_commit = on").execute(&mut **tx).await?;
    Ok(())
}

/// The error with the chain of its causes, and what to do about it in the last line.
fn hinted(error: &anyhow::Error, hint: &str) -> anyhow::Error {
    anyhow::anyhow!("{}\nno log was sent\nhint: {hint}", error_text(error))
}

/// Whether Postgres has refused a statement for want of a right (SQLSTATE 42501).
fn lacks_a_right(error: &anyhow::Error) -> bool {
    let database = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    database.is_some_and(|error| error.code().as_deref() == Some("42501"))
}
