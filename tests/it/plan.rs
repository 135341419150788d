//! `plan` foresees what `run` then does: rows, bytes, requests, and the time where a quota decides.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::fixture::{Fixture, TABLES};

fn number(value: &Value) -> f64 {
    value.as_str().unwrap_or_else(|| panic!("no number: {value}")).parse().unwrap()
}

/// Fails unless `planned` is within ten percent of `done`, or off by one.
#[track_caller]
fn is_near(what: &str, planned: f64, done: f64) {
    assert!(done > 0.0, "{what} is nothing: the test tests nothing");
    let off = (planned - done).abs();
    assert!(off <= 0.1 * done || off <= 1.0, "{what}: planned {planned}, done {done}");
}

/// What a run says it has sent of a table: `… sent (1.50 MiB, 754.25 KiB compressed)`.
fn compressed(stderr: &str, table: &str) -> f64 {
    let line = stderr
        .lines()
        .find(|line| line.contains(&format!("{table}: ")) && line.contains(" compressed) in "));
    let line = line.unwrap_or_else(|| panic!("{table} is not told of:\n{stderr}"));
    let words = line.split(" compressed").next().unwrap().rsplit(", ").next().unwrap();
    let (number, unit) = words.split_once(' ').unwrap();
    let unit = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        unit => panic!("unit {unit}"),
    };
    number.parse::<f64>().unwrap() * unit
}

/// Plans and runs with the same arguments; gives the plan.
#[track_caller]
fn plan_and_run(fixture: &Fixture, more: &str, arguments: &str) -> Value {
    let planned = fixture.tool(&format!("plan --output json{more}{arguments}")).run().exits(0);
    let plan: Value = serde_json::from_str(&planned.stdout).unwrap();
    assert_eq!(plan["schema_version"], 1);
    let run = fixture.tool(&format!("run{arguments}")).run().exits(0);
    for (table, _) in TABLES {
        let planned = &plan["tables"][table];
        let done = fixture.database.psql(&format!(
            "SELECT sum(rows), sum(raw_bytes), count(*) FROM sls_backfill.batch \
             WHERE table_name = '{table}' AND state NOT IN ('split', 'abandoned')"
        ));
        let done: Vec<f64> = done.trim().split('|').map(|sum| sum.parse().unwrap()).collect();
        is_near(&format!("{table}: rows"), number(&planned["rows_to_send"]), done[0]);
        is_near(&format!("{table}: raw bytes"), number(&planned["raw_bytes"]), done[1]);
        is_near(&format!("{table}: batches"), number(&planned["batches"]), done[2]);
        let sent = compressed(&run.stderr, table);
        is_near(&format!("{table}: compressed"), number(&planned["body_bytes"]), sent);
        let held = fixture.held(table).len() as f64;
        let planned: f64 = planned["held"].as_object().unwrap().values().map(number).sum();
        assert!((planned - held).abs() <= 0.1 * held, "{table}: {planned} held, not {held}");
    }
    plan
}

#[test]
fn an_ordinary_history_is_foreseen_also_where_it_was_never_analysed() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(6000, 60);
    // As a table that was never analysed: nothing is known of it but its pages.
    fixture.database.psql(
        "UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname IN \
         ('workflow_runs', 'workflow_node_executions'); \
         DELETE FROM pg_statistic WHERE starelid IN ('workflow_runs'::regclass, \
         'workflow_node_executions'::regclass)",
    );
    let before = fixture.database.psql("SELECT count(*) FROM sls_backfill.batch");
    assert_eq!(before.trim(), "0");
    let plan = plan_and_run(&fixture, "", " --batch-kib 64");
    let days: f64 = plan["tables"]["workflow_runs"]["days"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| number(&day["rows"]))
        .sum();
    assert_eq!(days, number(&plan["tables"]["workflow_runs"]["rows_to_send"]));
    // Nothing is left but the look-back, which is known.
    let again = fixture.tool("plan --output json").run().exits(0);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["tables"]["workflow_runs"]["rows_to_send"], "0");
    assert_ne!(again["tables"]["workflow_runs"]["rows_already"], "0");
}

#[test]
fn a_history_of_uneven_rows_is_foreseen_by_pages_and_exactly() {
    use dify_sls_backfill::demo;
    use dify_sls_backfill::demo::settings::HistorySettings;
    use sqlx::{Connection as _, PgConnection};

    let database = Database::of_shape("dify-1.12");
    let settings = HistorySettings { node_rows: 6_000, ..HistorySettings::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut conn = PgConnection::connect(&database.url()).await.unwrap();
        demo::fill(&mut conn, &settings, |_| {}).await.unwrap();
    });
    let fixture = Fixture::of(database);
    let exact = fixture.tool("plan --exact --output json").run().exits(0);
    let exact: Value = serde_json::from_str(&exact.stdout).unwrap();
    let rows = fixture.database.psql("SELECT count(*) FROM workflow_node_executions");
    assert_eq!(exact["tables"]["workflow_node_executions"]["rows"], rows.trim());
    assert_eq!(exact["is_exact"], true);
    plan_and_run(&fixture, "", " --batch-kib 256");
}

#[test]
fn the_time_is_foreseen_where_the_shards_decide() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(3000, 60);
    fixture.sls.switch(&json!({"shard_bytes_per_s": 512 << 10}));
    let quota = " --shard-bytes-per-s 512KiB";
    let begin = Instant::now();
    let plan = plan_and_run(&fixture, quota, " --batch-kib 64 --verify none");
    let took = begin.elapsed().as_secs_f64();
    let nodes = &plan["tables"]["workflow_node_executions"];
    assert_eq!(nodes["limit"], "shard_bytes", "{nodes}");
    let planned = plan["seconds"].as_f64().unwrap();
    assert!(planned > 5.0, "{planned} s are no time: the test tests nothing");
    // The quota lets no run be faster; how much slower one is, a busy machine decides.
    assert!(planned * 0.8 <= took, "planned {planned}, took {took}");
    let with = nodes["with_shards"].as_array().unwrap();
    assert_eq!((with[0]["shards"].as_u64(), with[1]["shards"].as_u64()), (Some(2), Some(4)));
    let seconds = |nth: usize| with[nth]["seconds"].as_f64().unwrap();
    assert!((seconds(0) / seconds(1) - 2.0).abs() < 0.01 || with[1]["limit"] != "shard_bytes");
}

#[test]
fn a_plan_writes_nothing_needs_no_sls_and_fits_the_terminal() {
    let fixture = Fixture::of_nothing("dify-1.12");
    fixture.fill(300, 40);
    let tool = |arguments: &str| fixture.tool(arguments);
    let outcome = tool("plan --tables workflow_runs").run().exits(0);
    let outcome = outcome.prints("limited by").prints("purgeable").prints("a month to keep");
    let widest = outcome.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{outcome}");
    let made = "SELECT to_regclass('sls_backfill.ledger') IS NULL";
    assert_eq!(fixture.database.psql(made).trim(), "t", "a plan made a ledger");
    let outcome = tool("plan").env("ALIYUN_SLS_ENDPOINT", "").run().exits(0);
    outcome.prints("a new logstore of two shards is assumed");
    let outcome = tool("plan --shard-bytes-per-s 1KiB").run().exits(0);
    let outcome = outcome.prints("more shards: dify-sls-backfill run --split-shards 4");
    let widest = outcome.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{outcome}");
    // Old rows that the logstore would not keep.
    fixture.tool("init --ttl-days 10").run().exits(0);
    let outcome = tool("plan --tables workflow_runs --output json").run().exits(0);
    let plan: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let expired = number(&plan["tables"]["workflow_runs"]["rows_expired"]);
    assert!((200.0..240.0).contains(&expired), "{expired}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prices.json");
    let mut prices = plan["prices"].clone();
    prices["currency"] = json!("CNY");
    let index = prices["index_traffic_per_gb"].as_f64().unwrap();
    prices["index_traffic_per_gb"] = json!(3.0 * index);
    std::fs::write(&path, prices.to_string()).unwrap();
    let prices = format!("plan --tables workflow_runs --prices {}", path.display());
    tool(&prices).run().exits(0).prints("CNY");
    // Only what its price says is dearer; another sample of a few rows weighs the same.
    let dearer = tool(&format!("{prices} --output json")).run().exits(0);
    let dearer: Value = serde_json::from_str(&dearer.stdout).unwrap();
    let times =
        |item: &str| dearer["cost"][item].as_f64().unwrap() / plan["cost"][item].as_f64().unwrap();
    assert!((times("index_traffic") - 3.0).abs() < 0.01, "{dearer}");
    assert!((times("write_traffic") - 1.0).abs() < 0.01, "{dearer}");
    std::fs::write(&path, "{}").unwrap();
    tool(&prices).run().exits(2).tells("prices.json");
}
