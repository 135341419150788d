//! Makes history that looks like Dify's, for the guided tour, benchmarks and tests.
//!
//! ```text
//! text ── pools of sentences, code and Markdown, escaped as Python's json.dumps does
//!   └─ node_kind ── Dify's node types: what each keeps in its JSON columns
//!        └─ app ── twenty apps of five tenants, each with a workflow
//!             └─ event ── a run and its nodes, as they will have happened
//!                  ├─ rows ── the same as rows of Dify's tables
//!                  │    └─ copy_rows ── the bytes of a binary COPY
//!                  └─ history ── decides which runs there were, when, and how they ended
//! ```
//!
//! One thread makes chunks of a few megabytes while the one before is on its way to Postgres, so
//! that memory does not grow with the number of rows.

mod app;
mod copy_rows;
mod event;
pub mod finished;
mod history;
mod node_kind;
mod rows;
pub mod settings;
mod text;

use anyhow::Context;
use sqlx::PgConnection;

use crate::demo::copy_rows::CopyRows;
use crate::demo::history::{Chunk, History};
use crate::demo::rows::{NODE_COLUMNS, PAUSE_COLUMNS, RUN_COLUMNS};
use crate::demo::settings::{HistorySettings, HistorySummary};

/// The connection that history goes through.
pub type Connection = PgConnection;

/// Makes Dify 1.12's tables with its indexes. Does nothing and answers `false` if `workflow_runs`
/// is there already.
pub async fn create_tables(conn: &mut PgConnection) -> anyhow::Result<bool> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('workflow_runs') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await
        .context("look for workflow_runs")?;
    if exists {
        return Ok(false);
    }
    // Statements sent together are one transaction.
    sqlx::raw_sql(include_str!("../tests/data/ddl/dify-1.12.sql"))
        .execute(&mut *conn)
        .await
        .context("create Dify's tables")?;
    Ok(true)
}

/// Adds history to the tables, with a commit every few megabytes, and tells `on_progress` how many
/// node rows are in. Settings that were filled in before are refused by the primary key.
pub async fn fill(
    conn: &mut PgConnection,
    settings: &HistorySettings,
    mut on_progress: impl FnMut(u64),
) -> anyhow::Result<HistorySummary> {
    let mut history = History::new(settings).context("make history")?;
    // One chunk is being made, one waits here, one is on its way.
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let maker = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = history.next_chunk() {
            if sender.blocking_send(chunk).is_err() {
                break;
            }
        }
        history.summary()
    });
    let mut node_rows = 0;
    while let Some(Chunk { runs, pauses, nodes }) = receiver.recv().await {
        node_rows += nodes.rows();
        copy(conn, "workflow_runs", RUN_COLUMNS, runs).await?;
        copy(conn, "workflow_pauses", PAUSE_COLUMNS, pauses).await?;
        copy(conn, "workflow_node_executions", NODE_COLUMNS, nodes).await?;
        on_progress(node_rows);
    }
    maker.await.context("make history")
}

async fn copy(
    conn: &mut PgConnection,
    table: &str,
    columns: &str,
    rows: CopyRows,
) -> anyhow::Result<()> {
    if rows.rows() == 0 {
        return Ok(());
    }
    let statement = format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
    let context = || format!("copy rows into {table}");
    let mut copy = conn.copy_in_raw(&statement).await.with_context(context)?;
    copy.send(rows.into_copy()).await.with_context(context)?;
    copy.finish().await.with_context(context)?;
    Ok(())
}
