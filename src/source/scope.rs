//! Which rows a pass reads, and the SQL that says so: window, filter and key order.

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::pg;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Nodes of a run may be written this long after the run began and are still reached by the run;
/// what comes later (a run that was paused for days) is found by the walk over the rest.
pub const RUN_LOOK_BACK_S: i64 = 48 * 3600;

/// The rows of one table within one window that one order reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub table: Table,
    pub order: KeyOrder,
    /// Rows created before it are left out; `None`: no lower bound.
    pub since: Option<Timestamp>,
    /// Rows created at it or later are left out.
    pub until: Timestamp,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
}

/// A stretch of the key order: behind `after`, up to and including `upto` (`None`: to the end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub after: Key,
    pub upto: Option<Key>,
}

/// A statement in the making: its text, and its values in the order of their `$n`.
pub(in crate::source) struct Sql {
    pub(in crate::source) text: String,
    values: Vec<Value>,
}

#[derive(Clone, Copy)]
enum Value {
    Time(Timestamp),
    Id(Uuid),
    Int(i64),
}

impl Sql {
    pub(in crate::source) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    pub(in crate::source) fn push(&mut self, text: &str) {
        self.text += text;
    }

    pub(in crate::source) fn time(&mut self, time: Timestamp) -> String {
        self.value(Value::Time(time))
    }

    pub(in crate::source) fn id(&mut self, id: Uuid) -> String {
        self.value(Value::Id(id))
    }

    pub(in crate::source) fn int(&mut self, int: i64) -> String {
        self.value(Value::Int(int))
    }

    fn value(&mut self, value: Value) -> String {
        self.values.push(value);
        format!("${}", self.values.len())
    }

    pub(in crate::source) fn query(&self) -> Query<'static, Postgres, PgArguments> {
        self.values.iter().fold(pg::made_statement(&self.text), |query, value| match *value {
            Value::Time(time) => query.bind(time),
            Value::Id(id) => query.bind(id),
            Value::Int(int) => query.bind(int),
        })
    }
}

impl Scope {
    /// The earliest `created_at` of the runs whose nodes `ByRun` reads.
    pub(in crate::source) fn runs_since(&self) -> Option<Timestamp> {
        self.since.map(|since| since.plus_s(-RUN_LOOK_BACK_S))
    }

    /// `FROM … WHERE …` for the rows of `span`. The row is `t`; with `ByRun` its run is `r`.
    pub(in crate::source) fn push_from(&self, sql: &mut Sql, span: &Span) {
        let table = pg::in_public(self.table.name());
        match self.order {
            KeyOrder::ByRun => {
                sql.push(&format!(
                    " FROM public.workflow_runs r JOIN {table} t ON t.workflow_run_id = r.id WHERE true"
                ));
                let since = self.runs_since();
                push_window(sql, "r.created_at", since, self.until);
            }
            _ => sql.push(&format!(" FROM {table} t WHERE true")),
        }
        self.push_span(sql, span);
        self.push_rows(sql);
        if self.order == KeyOrder::Rest {
            sql.push(" AND NOT EXISTS (SELECT FROM public.workflow_runs r WHERE r.id = t.workflow_run_id");
            push_window(sql, "r.created_at", self.runs_since(), self.until);
            sql.push(")");
        }
    }

    /// The conditions of window and filter on row `t`.
    pub(in crate::source) fn push_rows(&self, sql: &mut Sql) {
        push_window(sql, "t.created_at", self.since, self.until);
        for (column, id) in [("tenant_id", self.tenant_id), ("app_id", self.app_id)] {
            if let Some(id) = id {
                let id = sql.id(id);
                sql.push(&format!(" AND t.{column} = {id}"));
            }
        }
    }

    /// The bounds of `span` on the order's key, in the form that its index can use.
    fn push_span(&self, sql: &mut Sql, span: &Span) {
        let Span { after, upto } = *span;
        match self.order {
            KeyOrder::Time => {
                if after != Key::START {
                    let (at, id) = (sql.time(after.at), sql.id(after.id));
                    sql.push(&format!(" AND (t.created_at, t.id) > ({at}, {id})"));
                }
                if let Some(upto) = upto {
                    let (at, id) = (sql.time(upto.at), sql.id(upto.id));
                    sql.push(&format!(" AND (t.created_at, t.id) <= ({at}, {id})"));
                }
            }
            KeyOrder::ByRun => {
                if after != Key::START {
                    let (at, id, node) = (sql.time(after.at), sql.id(after.id), sql.id(after.node));
                    // The first condition is for the index, the second for the rows of one run.
                    sql.push(&format!(
                        " AND (r.created_at, r.id) >= ({at}, {id}) \
                         AND (r.created_at, r.id, t.id) > ({at}, {id}, {node})"
                    ));
                }
                if let Some(upto) = upto {
                    // A range ends behind all nodes of its last run.
                    let (at, id) = (sql.time(upto.at), sql.id(upto.id));
                    sql.push(&format!(" AND (r.created_at, r.id) <= ({at}, {id})"));
                }
            }
            KeyOrder::Walk | KeyOrder::Rest => {
                if after != Key::START {
                    let id = sql.id(after.id);
                    sql.push(&format!(" AND t.id > {id}"));
                }
                if let Some(upto) = upto {
                    let id = sql.id(upto.id);
                    sql.push(&format!(" AND t.id <= {id}"));
                }
            }
        }
    }

    /// The `ORDER BY` that the order's index gives without a sort of the table.
    pub(in crate::source) fn order_by(&self) -> &'static str {
        match self.order {
            KeyOrder::Time => " ORDER BY t.created_at, t.id",
            KeyOrder::ByRun => " ORDER BY r.created_at, r.id, t.id",
            KeyOrder::Walk | KeyOrder::Rest => " ORDER BY t.id",
        }
    }
}

pub(in crate::source) fn push_window(
    sql: &mut Sql,
    column: &str,
    since: Option<Timestamp>,
    until: Timestamp,
) {
    if let Some(since) = since {
        let since = sql.time(since);
        sql.push(&format!(" AND {column} >= {since}"));
    }
    let until = sql.time(until);
    sql.push(&format!(" AND {column} < {until}"));
}
