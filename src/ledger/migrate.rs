//! Makes the schema and upgrades it, by the migrations that this program brings along.
//!
//! Not by sqlx's own migrator: it names its statements, and behind a PgBouncer in transaction mode
//! the next process to get the same server is told that the name is taken (seen with 1.18). The
//! table of migrations has sqlx's form, so that `sqlx migrate info` can read it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::migrate::{Migration, Migrator};

use crate::pg::{self, Tx};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Any number that no other tool is likely to take for its own advisory locks.
const MIGRATION_LOCK: i64 = 0x5153_1DBA_CF11;

/// What is there of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum Schema {
    Absent,
    /// It lacks a migration of this program.
    Older,
    Current,
}

/// Looks what is there of the schema; writes nothing.
///
/// Fails when another version of this program has been at work here that is not just older.
pub(in crate::ledger) async fn schema(tx: &mut Tx) -> anyhow::Result<Schema> {
    let there =
        pg::statement("SELECT to_regclass('sls_backfill._sqlx_migrations') IS NOT NULL AS book");
    if !there.fetch_one(&mut **tx).await?.try_get::<bool, _>("book")? {
        return Ok(Schema::Absent);
    }
    let missing = missing(tx).await?;
    Ok(if missing.is_empty() { Schema::Current } else { Schema::Older })
}

/// Makes or upgrades the schema inside `tx`, one process at a time; all of it or nothing.
///
/// Fails when a newer version of this program has been at work here.
pub(in crate::ledger) async fn migrate(tx: &mut Tx) -> anyhow::Result<()> {
    pg::statement("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut **tx)
        .await?;
    make_book(tx).await?;
    for migration in missing(tx).await? {
        apply(tx, migration).await?;
    }
    Ok(())
}

/// The migrations that were not applied yet.
///
/// Fails when a newer version of this program, or another, has been at work here.
async fn missing(tx: &mut Tx) -> anyhow::Result<Vec<&'static Migration>> {
    let mut applied = applied(tx).await?;
    let mut missing = Vec::new();
    for migration in MIGRATIONS.iter() {
        match applied.remove(&migration.version) {
            None => missing.push(migration),
            Some(checksum) => anyhow::ensure!(
                checksum == *migration.checksum,
                "its migration {} is not the one of this program",
                migration.version
            ),
        }
    }
    anyhow::ensure!(
        applied.is_empty(),
        "a newer version of this program has upgraded it\nhint: use that version"
    );
    Ok(missing)
}

/// Looks before it makes: `IF NOT EXISTS` asks for the right to make even what is there.
async fn make_book(tx: &mut Tx) -> anyhow::Result<()> {
    let there = pg::statement(
        "SELECT to_regnamespace('sls_backfill') IS NOT NULL AS schema, \
         to_regclass('sls_backfill._sqlx_migrations') IS NOT NULL AS book",
    )
    .fetch_one(&mut **tx)
    .await?;
    if !there.try_get::<bool, _>("schema")? {
        sqlx::raw_sql("CREATE SCHEMA sls_backfill").execute(&mut **tx).await?;
    }
    if !there.try_get::<bool, _>("book")? {
        sqlx::raw_sql(
            "CREATE TABLE sls_backfill._sqlx_migrations (version bigint PRIMARY KEY, \
             description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(), \
             success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL)",
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// The checksums of the migrations that were applied, by version.
async fn applied(tx: &mut Tx) -> anyhow::Result<BTreeMap<i64, Vec<u8>>> {
    let rows = pg::statement("SELECT version, checksum FROM sls_backfill._sqlx_migrations")
        .fetch_all(&mut **tx)
        .await?;
    rows.iter().map(|row| Ok((row.try_get("version")?, row.try_get("checksum")?))).collect()
}

async fn apply(tx: &mut Tx, migration: &Migration) -> anyhow::Result<()> {
    let begun = Instant::now();
    sqlx::raw_sql(migration.sql.clone())
        .execute(&mut **tx)
        .await
        .with_context(|| format!("apply migration {}", migration.version))?;
    pg::statement(
        "INSERT INTO sls_backfill._sqlx_migrations \
         (version, description, success, checksum, execution_time) VALUES ($1, $2, true, $3, $4)",
    )
    .bind(migration.version)
    .bind(migration.description.to_string())
    .bind(migration.checksum.to_vec())
    .bind(i64::try_from(begun.elapsed().as_nanos())?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
