//! What a table weighs, and what about it is not as Dify makes it: things to know before rows are
//! deleted.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;

use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::source::Source;
use crate::source::catalog::has_index;

/// A table on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Heap, TOAST and indexes.
    pub total_bytes: u64,
    /// Live rows by Postgres's statistics; 0 before the first ANALYZE.
    pub rows_estimated: u64,
    pub dead_rows_estimated: u64,
    /// What Dify's table does not have, one sentence each.
    pub oddities: Vec<String>,
    pub has_pauses: bool,
    /// Indexes without which each deletion, or what goes with it, reads a whole table; one sentence
    /// each.
    pub missing_indexes: Vec<String>,
    /// Tables that name rows of this one by id, without a foreign key, and stay as they are: with
    /// their rows by Postgres's statistics.
    pub referring: Vec<(String, u64)>,
}

/// An index that is looked for: table, column, and who needs it.
type Lookup = (String, String, &'static str);

/// What a purge of `table` looks up for each row, and what others look up by what it leaves behind.
fn lookups(table: Table) -> Vec<Lookup> {
    let lookup = |table: &str, column: &str, why| (table.to_owned(), column.to_owned(), why);
    let runs = Table::Runs.name();
    let pauses = lookup("workflow_pauses", "workflow_run_id", "a purge asks it for every row");
    match table {
        Table::Runs => vec![lookup(runs, "id", "a purge deletes by it"), pauses],
        Table::NodeExecutions => vec![
            lookup(table.name(), "id", "a purge deletes by it"),
            lookup(runs, "id", "a purge asks it for every row"),
            lookup(table.name(), "workflow_run_id", "Dify finds the rows of a run by it"),
            lookup(
                "workflow_node_execution_offload",
                "node_execution_id",
                "a purge asks it for every row",
            ),
            pauses,
        ],
    }
}

impl Source {
    /// Looks at a table.
    pub async fn footprint(&self, table: Table) -> anyhow::Result<Footprint> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT pg_total_relation_size(c.oid)::int8 AS total, \
             greatest(c.reltuples, 0)::int8 AS rows, \
             coalesce(pg_stat_get_dead_tuples(c.oid), 0)::int8 AS dead, c.relkind = 'p' AS parted, \
             ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal \
               ORDER BY 1) AS triggers, \
             ARRAY(SELECT r.rulename::text FROM pg_rewrite r WHERE r.ev_class = c.oid \
               AND r.rulename <> '_RETURN' ORDER BY 1) AS rules, \
             ARRAY(SELECT k.conname || ' of ' || k.conrelid::regclass::text FROM pg_constraint k \
               WHERE k.confrelid = c.oid AND k.contype = 'f' ORDER BY 1) AS references, \
             to_regclass('public.workflow_pauses') IS NOT NULL AS pauses \
             FROM pg_class c WHERE c.oid = ('public.' || quote_ident($1))::regclass",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look at table {table}"))?;
        let names = |column: &str| -> anyhow::Result<Vec<String>> { Ok(row.try_get(column)?) };
        let number = |column: &str| -> anyhow::Result<u64> {
            Ok(u64::try_from(row.try_get::<i64, _>(column)?)?)
        };
        let mut oddities = Vec::new();
        if row.try_get("parted")? {
            oddities.push("it is partitioned: dropping a partition is cheaper".to_owned());
        }
        oddities.extend(names("triggers")?.into_iter().map(|name| {
            format!("it has a trigger, {name}, which may do anything when a row is deleted")
        }));
        oddities.extend(names("rules")?.into_iter().map(|name| format!("it has a rule, {name}")));
        oddities.extend(names("references")?.into_iter().map(|name| {
            format!(
                "the foreign key {name} refers to it: rows there may be deleted too, or forbid it"
            )
        }));
        let referring = referring(&mut tx, table).await?;
        let missing_indexes = missing_indexes(&mut tx, table).await?;
        Ok(Footprint {
            missing_indexes,
            referring,
            total_bytes: number("total")?,
            rows_estimated: number("rows")?,
            dead_rows_estimated: number("dead")?,
            oddities,
            has_pauses: row.try_get("pauses")?,
        })
    }
}

async fn missing_indexes(tx: &mut Tx, table: Table) -> anyhow::Result<Vec<String>> {
    let mut lookups = lookups(table);
    let keys = pg::statement(
        "SELECT c.relname::text AS name, a.attname::text AS attribute FROM pg_constraint k \
         JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1] \
         WHERE k.contype = 'f' AND n.nspname = 'public' \
         AND k.confrelid = ('public.' || quote_ident($1))::regclass ORDER BY 1, 2",
    )
    .bind(table.name())
    .fetch_all(&mut **tx)
    .await
    .with_context(|| format!("look for foreign keys to {table}"))?;
    for key in &keys {
        let why = "Postgres looks there before each deletion, for a foreign key";
        lookups.push((key.try_get("name")?, key.try_get("attribute")?, why));
    }
    let mut missing = Vec::new();
    for (table, column, why) in lookups {
        let there = pg::statement(
            "SELECT FROM pg_attribute WHERE attrelid = to_regclass('public.' || quote_ident($1)) \
             AND attname = $2 AND NOT attisdropped",
        )
        .bind(table.clone())
        .bind(column.clone())
        .fetch_optional(&mut **tx)
        .await
        .with_context(|| format!("look at table {table}"))?;
        if there.is_some() && !has_index(tx, &table, &[column.as_str()]).await? {
            missing.push(format!(
                "no index of {table} begins with {column}: {why}; CREATE INDEX CONCURRENTLY ON \
                 {} ({})",
                pg::in_public(&table),
                pg::quote(&column)
            ));
        }
    }
    Ok(missing)
}

/// Tables with a column that names rows of `table`, but for its own companion, whose rows go or stay
/// with it.
async fn referring(tx: &mut Tx, table: Table) -> anyhow::Result<Vec<(String, u64)>> {
    let column = match table {
        Table::Runs => "workflow_run_id",
        Table::NodeExecutions => "node_execution_id",
    };
    let rows = pg::statement(
        "SELECT c.relname::text AS name, greatest(c.reltuples, 0)::int8 AS rows \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND a.attname = $1 \
         AND NOT a.attisdropped AND c.relname NOT IN \
           ('workflow_runs', 'workflow_node_executions', 'workflow_node_execution_offload') \
         ORDER BY 1",
    )
    .bind(column)
    .fetch_all(&mut **tx)
    .await
    .with_context(|| format!("look for tables that refer to {table}"))?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, u64::try_from(row.try_get::<i64, _>("rows")?)?)))
        .collect()
}
