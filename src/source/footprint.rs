//! What a table weighs, and what about it is not as Dify makes it: things to know before rows are
//! deleted.

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;

use crate::pg;
use crate::record::table::Table;
use crate::source::Source;

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
        Ok(Footprint {
            total_bytes: number("total")?,
            rows_estimated: number("rows")?,
            dead_rows_estimated: number("dead")?,
            oddities,
            has_pauses: row.try_get("pauses")?,
        })
    }
}
