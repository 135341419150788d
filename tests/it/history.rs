//! The history that `demo` makes, in a real database.

use std::time::Instant;

use dify_sls_backfill::demo;
use dify_sls_backfill::demo::settings::{HistorySettings, HistorySummary, Profile};
use sqlx::{Connection, PgConnection};

use crate::harness::database::Database;

/// Fills the database and tells how it went.
async fn fill(database: &Database, settings: &HistorySettings) -> HistorySummary {
    let mut conn = PgConnection::connect(&database.url()).await.unwrap();
    let mut told = Vec::new();
    let begin = Instant::now();
    let summary = demo::fill(&mut conn, settings, |rows| told.push(rows)).await.unwrap();
    let mb_per_s = summary.bytes as f64 / 1e6 / begin.elapsed().as_secs_f64();
    eprintln!("{summary:?}, {mb_per_s:.0} MB/s");
    assert!(told.is_sorted() && told.last() == Some(&settings.node_rows), "{told:?}");
    summary
}

#[tokio::test]
async fn the_tables_are_those_of_dify() {
    let made = Database::fresh();
    let mut conn = PgConnection::connect(&made.url()).await.unwrap();
    assert!(demo::create_tables(&mut conn).await.unwrap());
    assert!(!demo::create_tables(&mut conn).await.unwrap());
    let dify = Database::of_shape("dify-1.12");
    for catalogue in [
        "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,
                column_default
         FROM information_schema.columns WHERE table_schema = 'public'
         ORDER BY table_name, ordinal_position",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef",
    ] {
        assert_eq!(made.psql(catalogue), dify.psql(catalogue));
    }
}

#[tokio::test]
async fn what_the_summary_says_is_in_the_tables() {
    for profile in [Profile::Mixed, Profile::Bench] {
        let database = Database::of_shape("dify-1.12");
        let settings = HistorySettings { node_rows: 10_000, profile, ..HistorySettings::default() };
        let summary = fill(&database, &settings).await;
        let counts = database.psql(
            "SELECT (SELECT count(*) FROM workflow_runs), count(*),
                    count(*) FILTER (WHERE n.workflow_run_id IS NULL),
                    count(*) FILTER (WHERE n.workflow_run_id IS NOT NULL AND r.id IS NULL)
             FROM workflow_node_executions n
             LEFT JOIN workflow_runs r ON r.id = n.workflow_run_id",
        );
        let HistorySummary { runs, node_executions, single_steps, orphans, bytes } = summary;
        assert_eq!(counts, format!("{runs}|{node_executions}|{single_steps}|{orphans}"));
        let text_bytes = ["workflow_runs", "workflow_node_executions"].map(|table| {
            let columns = database.psql(&format!(
                "SELECT string_agg(format('coalesce(octet_length(%I), 0)', column_name), '+')
                 FROM information_schema.columns
                 WHERE table_name = '{table}' AND data_type IN ('text', 'character varying')"
            ));
            database.psql(&format!("SELECT sum({columns}) FROM {table}")).parse::<u64>().unwrap()
        });
        assert_eq!(text_bytes.iter().sum::<u64>(), bytes);
    }
}

#[tokio::test]
async fn the_same_history_twice_is_refused() {
    let database = Database::of_shape("dify-1.12");
    let settings = HistorySettings { node_rows: 100, ..HistorySettings::default() };
    fill(&database, &settings).await;
    let mut conn = PgConnection::connect(&database.url()).await.unwrap();
    let error = demo::fill(&mut conn, &settings, |_| {}).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.starts_with("copy rows into workflow_runs: "), "{error}");
    assert!(error.contains("workflow_run_pkey"), "{error}");
    fill(&database, &HistorySettings { seed: 2, ..settings }).await;
    assert_eq!(database.psql("SELECT count(*) FROM workflow_node_executions"), "200");
}
