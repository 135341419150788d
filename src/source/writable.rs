//! The source as purge and restore open it: the one place where rows of Dify's tables are locked,
//! deleted or put back.
//!
//! Transactions are short: a time-out for each statement, a shorter one for each lock, so that
//! nobody waits behind us for long, and we for nobody.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use crate::pg::identity::{Identity, identity};
use crate::pg::pool::{PoolSize, connect};
use crate::pg::{self, Address, Tx};
use crate::record::table::{Cells, Column, Table};
use crate::record::timestamp::Timestamp;
use crate::source::read::{Asked, read_cells};
use crate::source::{TEXT_FORMS, describe_server};

/// Bounds of a transaction that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteLimits {
    /// A statement that runs longer is cancelled by Postgres.
    pub statement_timeout: Duration,
    /// A statement that waits longer for a lock is cancelled by Postgres.
    pub lock_timeout: Duration,
}

impl Default for WriteLimits {
    fn default() -> Self {
        Self { statement_timeout: Duration::from_secs(10), lock_timeout: Duration::from_secs(2) }
    }
}

/// The primary, open for writing.
#[derive(Clone)]
pub struct Writable {
    pool: PgPool,
    begin: String,
}

/// What is to be known of a row beside its columns before it is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockedFacts {
    /// Whether the filters of this purge want it.
    pub is_wanted: bool,
    /// Made while somebody tried a workflow out.
    pub is_debugging: bool,
    /// Its payload lies in object storage.
    pub is_offloaded: bool,
    /// Its run, or the run that it is, waits to be resumed.
    pub is_paused: bool,
    /// The status of a node execution's run; `None`: there is no such run any more, or the row is
    /// a run.
    pub run_status: Option<Vec<u8>>,
    /// A column that the batch's conversion does not know is not NULL.
    pub has_unknown_columns: bool,
    /// A column that its log leaves out is not empty.
    pub has_dropped_columns: bool,
}

/// Which facts are asked for.
#[derive(Debug, Clone)]
pub struct FactsAsked {
    pub table: Table,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    /// Only rows that finished at it or later (UTC).
    pub since: Option<Timestamp>,
    /// Only rows that finished before it (UTC).
    pub until: Timestamp,
    /// Columns that the table has and the batch's conversion does not know.
    pub unknown_columns: Vec<String>,
    /// Columns that the log leaves out: text, `{}` counts as empty.
    pub dropped_columns: Vec<String>,
    /// Tables that this database has.
    pub has_offload: bool,
    pub has_pauses: bool,
}

impl Writable {
    /// Connects with at most `connections_max` connections. Refuses a replica.
    pub async fn connect(
        address: &Address,
        connections_max: u32,
        limits: WriteLimits,
    ) -> anyhow::Result<Self> {
        let pool = connect(address, PoolSize::few(connections_max)).await.map_err(|error| {
            let hint = error.hint(address);
            let error = anyhow::Error::from(error);
            anyhow::anyhow!(
                "connect to Postgres at {address}: {error}\nnothing was done\nhint: {hint}"
            )
        })?;
        let server = describe_server(&pool).await.context("ask the Postgres server who it is")?;
        anyhow::ensure!(
            !server.is_replica,
            "the Postgres at {address} is a replica, which takes no writes\nnothing was done\n\
             hint: name the primary: --purge-url"
        );
        let mut begin = format!(
            "BEGIN; {}; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL jit = off; \
             SET LOCAL enable_seqscan = off; SET LOCAL max_parallel_workers_per_gather = 0; \
             {TEXT_FORMS}",
            pg::OWN_NAMES_ONLY,
            limits.statement_timeout.as_millis(),
            limits.lock_timeout.as_millis(),
            limits.statement_timeout.as_millis(),
        );
        if server.encoding == "SQL_ASCII" {
            begin += "; SET LOCAL client_encoding = 'SQL_ASCII'";
        }
        Ok(Self { pool, begin })
    }

    /// Begins a transaction that may write.
    pub async fn begin(&self) -> anyhow::Result<Tx> {
        self.pool
            .begin_with(sqlx::AssertSqlSafe(self.begin.clone()))
            .await
            .context("begin a transaction in Postgres")
    }

    /// Who the database is, the ledger's tables included if they are in it.
    pub async fn identity(&self) -> anyhow::Result<Identity> {
        let mut tx = self.begin().await?;
        identity(&mut tx).await
    }

    /// Plain VACUUM (ANALYZE), which locks out neither readers nor writers.
    pub async fn vacuum(&self, table: Table) -> anyhow::Result<()> {
        // VACUUM cannot be in a transaction; alone, it needs no setting.
        let sql = format!("VACUUM (ANALYZE) {}", pg::in_public(table.name()));
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&self.pool)
            .await
            .with_context(|| format!("vacuum {table}"))?;
        Ok(())
    }
}

/// Locks those of `row_ids` that are there, and gives what is to be known of them.
pub async fn lock_rows(
    tx: &mut Tx,
    asked: &FactsAsked,
    row_ids: &[Uuid],
) -> anyhow::Result<HashMap<Uuid, LockedFacts>> {
    let table = asked.table;
    let rows = pg::made_statement(&facts_sql(asked))
        .bind(row_ids.to_vec())
        .bind(asked.tenant_id)
        .bind(asked.app_id)
        .bind(asked.since)
        .bind(asked.until)
        .fetch_all(&mut **tx)
        .await
        .with_context(|| format!("lock {} rows of {table}", row_ids.len()))?;
    rows.iter()
        .map(|row| {
            let run_status: Option<String> = row.try_get("run_status")?;
            let facts = LockedFacts {
                is_wanted: row.try_get("is_wanted")?,
                is_debugging: row.try_get("is_debugging")?,
                is_offloaded: row.try_get("is_offloaded")?,
                is_paused: row.try_get("is_paused")?,
                run_status: run_status.map(String::into_bytes),
                has_unknown_columns: row.try_get("has_unknown")?,
                has_dropped_columns: row.try_get("has_dropped")?,
            };
            Ok((row.try_get("id")?, facts))
        })
        .collect()
}

fn facts_sql(asked: &FactsAsked) -> String {
    let table = asked.table;
    let (run_id, run_status, debugging) = match table {
        Table::Runs => ("t.id", "NULL::text", "'debugging'"),
        Table::NodeExecutions => (
            "t.workflow_run_id",
            "(SELECT r.status::text FROM public.workflow_runs r WHERE r.id = t.workflow_run_id)",
            "'single-step'",
        ),
    };
    let offloaded = match table == Table::NodeExecutions && asked.has_offload {
        true => {
            "EXISTS (SELECT FROM public.workflow_node_execution_offload o \
             WHERE o.node_execution_id = t.id)"
        }
        false => "false",
    };
    let paused = match asked.has_pauses {
        true => format!(
            "EXISTS (SELECT FROM public.workflow_pauses p WHERE p.workflow_run_id = {run_id})"
        ),
        false => "false".to_owned(),
    };
    let any = |tests: Vec<String>| match tests.is_empty() {
        true => "false".to_owned(),
        false => format!("({})", tests.join(" OR ")),
    };
    let unknown =
        asked.unknown_columns.iter().map(|name| format!("t.{} IS NOT NULL", pg::quote(name)));
    let dropped = asked
        .dropped_columns
        .iter()
        .map(|name| format!("coalesce(t.{}, '') NOT IN ('', '{{}}', 'null')", pg::quote(name)));
    format!(
        "SELECT t.id, ($2::uuid IS NULL OR t.tenant_id = $2) AND ($3::uuid IS NULL OR t.app_id = $3) \
         AND ($4::timestamp IS NULL OR t.finished_at >= $4) \
         AND coalesce(t.finished_at < $5, true) AS is_wanted, t.triggered_from = {debugging} AS is_debugging, {offloaded} AS is_offloaded, \
         {paused} AS is_paused, {run_status} AS run_status, {} AS has_unknown, {} AS has_dropped \
         FROM {} t WHERE t.id = ANY($1) FOR UPDATE OF t",
        any(unknown.collect()),
        any(dropped.collect()),
        pg::in_public(table.name()),
    )
}

/// Calls `each` with the cells of every row of `row_ids` that is there.
pub async fn read_locked(
    tx: &mut Tx,
    table: Table,
    columns: &[Column],
    row_ids: &[Uuid],
    mut each: impl FnMut(&Cells<'_>),
) -> anyhow::Result<()> {
    // Whether a payload is offloaded was asked with the lock.
    let asked = Asked { table, columns, offloaded: "false" };
    read_cells(tx, &asked, row_ids, &mut |cells, _| each(cells)).await
}

/// Deletes rows by primary key; fails unless every one of them was there.
pub async fn delete_rows(tx: &mut Tx, table: Table, row_ids: &[Uuid]) -> anyhow::Result<()> {
    let sql = format!("DELETE FROM {} WHERE id = ANY($1)", pg::in_public(table.name()));
    let deleted = pg::made_statement(&sql)
        .bind(row_ids.to_vec())
        .execute(&mut **tx)
        .await
        .with_context(|| format!("delete {} rows of {table}", row_ids.len()))?
        .rows_affected();
    anyhow::ensure!(
        deleted == row_ids.len() as u64,
        "deleting {} locked rows of {table} deleted {deleted}; all was taken back\n\
         hint: a trigger or a rule of the table may change what DELETE does",
        row_ids.len()
    );
    Ok(())
}

/// Whether the error says that Postgres cancelled a statement for its time, or for the time it
/// waited for a lock: nothing is wrong, it may go another time.
pub fn is_timeout(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>()).any(|error| {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // lock_not_available, query_canceled, deadlock_detected
        matches!(code.as_deref(), Some("55P03" | "57014" | "40P01"))
    })
}

/// Puts rows in that are not there; a row whose id is there stays as it is. `rows`: the values of
/// `columns` in their order, as texts that Postgres reads. Gives the ids of those that were put in.
pub async fn insert_rows(
    tx: &mut Tx,
    table: Table,
    columns: &[String],
    rows: &[Vec<Option<String>>],
) -> anyhow::Result<Vec<Uuid>> {
    let names: Vec<_> = columns.iter().map(|name| pg::quote(name)).collect();
    let table_name = pg::in_public(table.name());
    // The types are those of the table: a text is read as whatever the column is.
    let values: Vec<_> = (1..=columns.len()).map(|at| format!("${at}::text[]")).collect();
    let parts: Vec<_> = (1..=columns.len()).map(|at| format!("v.c{at}")).collect();
    let types = column_types(tx, table, columns).await?;
    let casts: Vec<_> =
        parts.iter().zip(&types).map(|(part, kind)| format!("{part}::{kind}")).collect();
    let aliases: Vec<_> = (1..=columns.len()).map(|at| format!("c{at}")).collect();
    let sql = format!(
        "INSERT INTO {table_name} ({}) SELECT {} FROM unnest({}) AS v({}) ON CONFLICT DO NOTHING \
         RETURNING id",
        names.join(", "),
        casts.join(", "),
        values.join(", "),
        aliases.join(", "),
    );
    let mut statement = pg::made_statement(&sql);
    for at in 0..columns.len() {
        statement = statement.bind(rows.iter().map(|row| row[at].clone()).collect::<Vec<_>>());
    }
    let inserted = statement
        .fetch_all(&mut **tx)
        .await
        .with_context(|| format!("put {} rows back into {table}", rows.len()))?;
    inserted.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// The types of columns, as Postgres names them.
async fn column_types(
    tx: &mut Tx,
    table: Table,
    columns: &[String],
) -> anyhow::Result<Vec<String>> {
    let rows = pg::statement(
        "SELECT format_type(a.atttypid, a.atttypmod) AS kind \
         FROM unnest($2::text[]) WITH ORDINALITY AS c(name, at) JOIN pg_attribute a \
           ON a.attrelid = ('public.' || quote_ident($1))::regclass AND a.attname = c.name \
           AND NOT a.attisdropped ORDER BY c.at",
    )
    .bind(table.name())
    .bind(columns.to_vec())
    .fetch_all(&mut **tx)
    .await
    .with_context(|| format!("look up the columns of {table}"))?;
    anyhow::ensure!(rows.len() == columns.len(), "{table} lacks a column that its logs have");
    rows.iter().map(|row| Ok(row.try_get("kind")?)).collect()
}
