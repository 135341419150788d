//! The questions of Dify's readers, asked of Postgres in its own SQL: what SLS must answer, too.
//!
//! What a log looks like is told here once more, in SQL and independently of the conversion. Only
//! rows that a migration has to move are asked about: terminal, finished within the window, and not
//! held. Each statement follows an index on the app, the run or the node, and gives few rows.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Column as _, Postgres, Row as _};
use uuid::Uuid;

use crate::pg;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;

/// A row of an answer: values as texts, NULL as nothing.
pub type TwinRow = BTreeMap<String, String>;

/// All rows of an app may be read for one answer.
const APP_TIMEOUT: &str = "; SET LOCAL statement_timeout = '10min'";

/// The rows that SLS should show, by when they finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub from: Timestamp,
    /// Those that finished then or later are left out.
    pub before: Timestamp,
    /// Rows that are deliberately not in SLS.
    pub held: Vec<Uuid>,
}

/// Whose rows, and how they were started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TwinOwner {
    pub tenant: Uuid,
    pub app: Uuid,
    pub trigger: String,
}

/// A day of an app (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TwinDay {
    pub runs: u64,
    pub users: u64,
    pub tokens: i64,
}

/// By which time a run belongs to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DayBy {
    Finished,
    Created,
}

/// `isoformat()` of Python.
fn iso(column: &str) -> String {
    format!(
        "coalesce(to_char({column}, 'YYYY-MM-DD\"T\"HH24:MI:SS') || CASE WHEN \
         extract(microseconds FROM {column})::int8 % 1000000 = 0 THEN '' \
         ELSE to_char({column}, '.US') END, '')"
    )
}

fn json(column: &str) -> String {
    format!("coalesce(nullif(t.{column}, ''), '{{}}') AS {column}")
}

/// The fields of a log, all texts.
fn fields(shape: &Shape) -> String {
    let or_zero = |column: &str| match shape.has(column) {
        true => format!("coalesce(t.{column}, 0)::text AS {column}"),
        false => format!("'0' AS {column}"),
    };
    let common = "t.id::text, t.tenant_id::text, t.app_id::text, t.workflow_id::text, \
        t.triggered_from::text, t.status::text, \
        replace(t.created_by_role, 'end-user', 'end_user') AS created_by_role, t.created_by::text";
    let started = iso("t.created_at");
    let finished = format!("{} AS finished_at", iso("t.finished_at"));
    let own: Vec<String> = match shape.table {
        Table::Runs => vec![
            "t.type::text, t.version::text, coalesce(t.error, '') AS error_message".to_owned(),
            "t.total_tokens::text".to_owned(),
            or_zero("total_steps"),
            or_zero("exceptions_count"),
            json("graph"),
            json("inputs"),
            json("outputs"),
            format!("{started} AS started_at"),
        ],
        Table::NodeExecutions => vec![
            "coalesce(t.workflow_run_id::text, '') AS workflow_run_id, t.\"index\"::text, \
             coalesce(t.predecessor_node_id, '') AS predecessor_node_id, t.node_id::text, \
             t.node_type::text, t.title::text, coalesce(t.error, '') AS error, \
             t.elapsed_time::text"
                .to_owned(),
            format!("{} AS node_execution_id", execution_id(shape)),
            json("inputs"),
            json("process_data"),
            json("outputs"),
            json("execution_metadata"),
            format!("{started} AS created_at"),
        ],
    };
    format!("{common}, {}, {finished}", own.join(", "))
}

/// The row's id where there is none.
fn execution_id(shape: &Shape) -> &'static str {
    match shape.has("node_execution_id") {
        true => "coalesce(nullif(t.node_execution_id, ''), t.id::text)",
        false => "t.id::text",
    }
}

/// `FROM … WHERE …` for the rows that SLS should show; `$1` to `$3` are [`Shown`].
fn from_shown(table: Table) -> String {
    let statuses = match table {
        Table::Runs => "'succeeded', 'failed', 'stopped', 'partial-succeeded'",
        Table::NodeExecutions => "'succeeded', 'failed', 'stopped', 'exception', 'retry'",
    };
    format!(
        " FROM {} t WHERE t.status IN ({statuses}) AND t.finished_at >= $1 AND t.finished_at < $2 \
         AND NOT EXISTS (SELECT FROM unnest($3::uuid[]) h(id) WHERE h.id = t.id)",
        pg::in_public(table.name())
    )
}

const OF_OWNER: &str = " AND t.tenant_id = $4 AND t.app_id = $5 AND t.triggered_from = $6";

fn bind_shown(sql: &str, shown: &Shown) -> Query<'static, Postgres, PgArguments> {
    pg::made_statement(sql).bind(shown.from).bind(shown.before).bind(shown.held.clone())
}

fn bind_owner(
    sql: &str,
    shown: &Shown,
    owner: &TwinOwner,
) -> Query<'static, Postgres, PgArguments> {
    bind_shown(sql, shown).bind(owner.tenant).bind(owner.app).bind(owner.trigger.clone())
}

impl Source {
    /// All apps that have runs, each with the ways in which they were started, in order; one jump
    /// in the index for each.
    pub async fn owners(&self) -> anyhow::Result<Vec<TwinOwner>> {
        let sql = "WITH RECURSIVE o AS (\
               (SELECT t.tenant_id, t.app_id, t.triggered_from FROM public.workflow_runs t \
                ORDER BY 1, 2, 3 LIMIT 1) \
             UNION ALL SELECT n.* FROM o CROSS JOIN LATERAL \
               (SELECT t.tenant_id, t.app_id, t.triggered_from FROM public.workflow_runs t \
                WHERE (t.tenant_id, t.app_id, t.triggered_from) > \
                  (o.tenant_id, o.app_id, o.triggered_from) ORDER BY 1, 2, 3 LIMIT 1) n) \
             SELECT tenant_id, app_id, triggered_from::text AS trigger FROM o";
        let mut tx = self.begin_on_indexes().await?;
        let rows = pg::statement(sql).fetch_all(&mut *tx).await.context("list the apps")?;
        rows.iter()
            .map(|row| {
                Ok(TwinOwner {
                    tenant: row.try_get("tenant_id")?,
                    app: row.try_get("app_id")?,
                    trigger: row.try_get("trigger")?,
                })
            })
            .collect()
    }

    /// How many runs of an owner have each status.
    pub async fn twin_statuses(
        &self,
        shown: &Shown,
        owner: &TwinOwner,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let sql = format!(
            "SELECT t.status::text, count(*) AS rows{}{OF_OWNER} GROUP BY 1",
            from_shown(Table::Runs)
        );
        let mut tx = self.begin_with(APP_TIMEOUT).await?;
        let rows = bind_owner(&sql, shown, owner).fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("count the runs of app {}", owner.app))?;
        rows.iter()
            .map(|row| Ok((row.try_get("status")?, u64::try_from(row.try_get::<i64, _>("rows")?)?)))
            .collect()
    }

    /// What Dify's charts show of an owner, by day: `2025-01-31`.
    pub async fn twin_days(
        &self,
        shown: &Shown,
        owner: &TwinOwner,
        by: DayBy,
    ) -> anyhow::Result<BTreeMap<String, TwinDay>> {
        let time = match by {
            DayBy::Finished => "t.finished_at",
            DayBy::Created => "t.created_at",
        };
        let sql = format!(
            "SELECT to_char({time}, 'YYYY-MM-DD') AS day, count(*) AS runs, \
             count(DISTINCT t.created_by) AS users, \
             coalesce(sum(t.total_tokens), 0)::int8 AS tokens{}{OF_OWNER} GROUP BY 1",
            from_shown(Table::Runs)
        );
        let mut tx = self.begin_with(APP_TIMEOUT).await?;
        let rows = bind_owner(&sql, shown, owner).fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("count the days of app {}", owner.app))?;
        rows.iter()
            .map(|row| {
                let day = TwinDay {
                    runs: u64::try_from(row.try_get::<i64, _>("runs")?)?,
                    users: u64::try_from(row.try_get::<i64, _>("users")?)?,
                    tokens: row.try_get("tokens")?,
                };
                Ok((row.try_get("day")?, day))
            })
            .collect()
    }

    /// The newest runs of an owner, in the order of Dify's newest list: ids.
    pub async fn twin_list(
        &self,
        shown: &Shown,
        owner: &TwinOwner,
        limit: u32,
    ) -> anyhow::Result<Vec<String>> {
        // SQL's times have milliseconds in SLS.
        let sql = format!(
            "SELECT t.id::text{}{OF_OWNER} ORDER BY date_trunc('milliseconds', t.created_at) DESC, \
             t.id::text COLLATE \"C\" DESC LIMIT {limit}",
            from_shown(Table::Runs)
        );
        self.ids(&sql, shown, owner).await
    }

    /// Some runs of an owner, chosen by chance: ids.
    pub async fn twin_sample(
        &self,
        shown: &Shown,
        owner: &TwinOwner,
        limit: u32,
    ) -> anyhow::Result<Vec<String>> {
        let sql = format!(
            "SELECT t.id::text{}{OF_OWNER} ORDER BY random() LIMIT {limit}",
            from_shown(Table::Runs)
        );
        self.ids(&sql, shown, owner).await
    }

    async fn ids(
        &self,
        sql: &str,
        shown: &Shown,
        owner: &TwinOwner,
    ) -> anyhow::Result<Vec<String>> {
        let mut tx = self.begin_with(APP_TIMEOUT).await?;
        let rows = bind_owner(sql, shown, owner).fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("list the runs of app {}", owner.app))?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Those of these rows that SLS should show, as logs, by id.
    pub async fn twin_rows(
        &self,
        shown: &Shown,
        shape: &Shape,
        ids: &[Uuid],
    ) -> anyhow::Result<BTreeMap<String, TwinRow>> {
        let sql = format!("SELECT {}{} AND t.id = ANY($4)", fields(shape), from_shown(shape.table));
        let mut tx = self.begin_on_indexes().await?;
        let rows = bind_shown(&sql, shown).bind(ids.to_vec()).fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("read rows of {}", shape.table))?;
        let rows = rows.iter().map(|row| {
            let row = texts(row)?;
            Ok((row.get("id").cloned().unwrap_or_default(), row))
        });
        rows.collect()
    }

    /// The node executions of a run that SLS should show, as logs, at most `limit`.
    pub async fn twin_trace(
        &self,
        shown: &Shown,
        shape: &Shape,
        owner: &TwinOwner,
        run: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<TwinRow>> {
        let sql = format!(
            "SELECT {}{} AND t.tenant_id = $4 AND t.app_id = $5 AND t.workflow_run_id = $6 \
             LIMIT {limit}",
            fields(shape),
            from_shown(shape.table)
        );
        // Before 1.12 the index on runs needs more columns than Dify's readers name; the planner
        // finds what there is.
        let mut tx = self.begin_with(APP_TIMEOUT).await?;
        let rows = bind_shown(&sql, shown).bind(owner.tenant).bind(owner.app).bind(run);
        let rows = rows.fetch_all(&mut *tx).await;
        let rows = rows.with_context(|| format!("read the nodes of run {run}"))?;
        rows.iter().map(texts).collect()
    }

    /// When the last execution of a node began, as Python prints it; `None`: there is none.
    pub async fn twin_last_of_node(
        &self,
        shown: &Shown,
        owner: &TwinOwner,
        workflow: Uuid,
        node: &str,
    ) -> anyhow::Result<Option<String>> {
        let sql = format!(
            "SELECT {}{} AND t.tenant_id = $4 AND t.app_id = $5 AND t.workflow_id = $6 \
             AND t.node_id = $7 ORDER BY t.created_at DESC LIMIT 1",
            iso("t.created_at"),
            from_shown(Table::NodeExecutions)
        );
        let mut tx = self.begin_with(APP_TIMEOUT).await?;
        let query = bind_shown(&sql, shown).bind(owner.tenant).bind(owner.app).bind(workflow);
        let row = query.bind(node.to_owned()).fetch_optional(&mut *tx).await;
        let row = row.with_context(|| format!("look for the last execution of node {node}"))?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }
}

fn texts(row: &PgRow) -> anyhow::Result<TwinRow> {
    let value = |(nth, column): (usize, &sqlx::postgres::PgColumn)| {
        let value: Option<String> = row.try_get(nth)?;
        anyhow::Ok((column.name().to_owned(), value.unwrap_or_default()))
    };
    row.columns().iter().enumerate().map(value).collect()
}
