//! Rows that nobody expects: odd times, odd texts, too large, too many alike, orphans.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::at_once;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::StoredLog;
use crate::harness::tool::Running;

const RUNS: &str = "workflow_runs";
const NODES: &str = "workflow_node_executions";

/// The id of the `n`th row of a test.
fn id(n: usize) -> String {
    format!("00000000-0000-7000-8000-{n:012}")
}

/// Inserts a row for each of `oddities` (in `table`, with these values), and gives their ids.
fn insert_all(fixture: &Fixture, table: &str, oddities: &[Value]) -> Vec<String> {
    let insert = |(n, oddity): (usize, &Value)| {
        let mut values = oddity.clone();
        values["id"] = json!(id(n));
        fixture.insert(table, values);
        id(n)
    };
    oddities.iter().enumerate().map(insert).collect()
}

/// The logs of a logstore by row id; each row once.
#[track_caller]
fn logs(fixture: &Fixture, logstore: &str) -> BTreeMap<String, StoredLog> {
    let logs = fixture.sls.logs(logstore);
    let count = logs.len();
    let by_id: BTreeMap<_, _> =
        logs.into_iter().map(|log| (log.field("id").to_owned(), log)).collect();
    assert_eq!(by_id.len(), count, "a row is stored twice");
    by_id
}

#[test]
fn odd_times_and_statuses_are_held_and_harm_no_other_row() {
    let fixture = Fixture::new("dify-newest");
    let invalid = [
        json!({"finished_at": "1969-12-31 23:59:59.999999"}),
        json!({"finished_at": "2107-01-01"}),
        json!({"finished_at": "12000-01-01"}),
        json!({"finished_at": "infinity"}),
        json!({"finished_at": "-infinity"}),
        json!({"created_at": "-infinity"}),
        json!({"created_at": "4713-11-24 00:00:00 BC"}),
        json!({"created_at": "0001-12-31 23:59:59 BC"}),
        json!({"status": "Succeeded"}),
        json!({"status": "succeeded "}),
        json!({"status": ""}),
        json!({"status": "状态"}),
    ];
    let held = insert_all(&fixture, RUNS, &invalid);
    assert_eq!(insert_all(&fixture, NODES, &invalid), held);
    let sent = [
        ("1", json!({"finished_at": "1970-01-01 00:00:00"})),
        ("2", json!({"created_at": "0001-01-01 00:00:00"})),
        ("3", json!({"created_at": "2024-05-06 07:08:11", "finished_at": "2024-05-06 07:08:10"})),
        ("4", json!({})),
    ];
    for (name, values) in sent.clone() {
        for table in [RUNS, NODES] {
            let mut values = values.clone();
            values["id"] = json!(id(100 + name.parse::<usize>().unwrap()));
            fixture.insert(table, values);
        }
    }
    // Not settled before the year 2106, and never in a window: neither sent nor lost.
    for table in [RUNS, NODES] {
        fixture.insert(table, json!({"id": id(201), "finished_at": "2106-02-07 06:28:15"}));
        fixture.insert(table, json!({"id": id(202), "created_at": "infinity"}));
        fixture.insert(table, json!({"id": id(203), "created_at": "12000-01-01"}));
    }
    fixture
        .tool("run")
        .run()
        .exits(0)
        .tells("0 differ")
        .prints("workflow_runs: 17 rows seen = 4 in SLS + 13 held")
        .prints("workflow_node_executions: 17 rows seen = 4 in SLS + 13 held");
    for (table, logstore) in [(RUNS, "workflow_execution"), (NODES, "workflow_node_execution")] {
        let mut holds = fixture.held(table);
        for (id, values) in held.iter().zip(&invalid) {
            assert_eq!(holds.remove(id).as_deref(), Some("invalid"), "{table}: {values}");
        }
        assert_eq!(holds.into_iter().collect::<Vec<_>>(), [(id(201), "running".into())]);
        let logs = logs(&fixture, logstore);
        assert_eq!(logs.keys().cloned().collect::<Vec<_>>(), [101, 102, 103, 104].map(id));
        assert_eq!(logs[&id(101)].time, 0);
        let created = if table == RUNS { "started_at" } else { "created_at" };
        assert_eq!(logs[&id(102)].field(created), "0001-01-01T00:00:00");
    }
    fixture.tool("run").run().exits(0).tells("nothing new to do");
}

#[test]
fn odd_texts_arrive_as_they_are() {
    let fixture = Fixture::new("dify-newest");
    let nodes = [
        json!({"inputs": "not json {", "outputs": "{'a': 1}"}),
        json!({"inputs": "", "outputs": null, "process_data": "null"}),
        json!({"inputs": "{\"n\": 1e400, \"n\": NaN, \"big\": 123456789012345678901234567890}"}),
        json!({"inputs": "{\"half\": \"\\ud83d\", \"whole\": \"\\ud83d\\ude00\"}"}),
        json!({"inputs": "\"\\u0000\\u001f\\u007f\\u2028\"", "title": "a\tb\nc\u{1}\u{fffd}"}),
        json!({"created_by_role": "end-user"}),
        json!({"workflow_run_id": null, "triggered_from": "single-step"}),
        json!({"workflow_run_id": id(999)}),
        json!({"error": "😀".repeat(20_000), "elapsed_time": "1e-7"}),
        json!({"elapsed_time": "NaN"}),
    ];
    let ids = insert_all(&fixture, NODES, &nodes);
    let payload = json!({"id": id(50), "inputs": "{}", "outputs": null, "graph": null});
    fixture.insert(RUNS, payload.clone());
    let mut control = payload;
    control["id"] = json!(id(51));
    control["task_id"] = json!(id(7));
    fixture.insert(RUNS, control);
    fixture
        .tool("run")
        .run()
        .exits(0)
        .tells("0 differ")
        .prints("workflow_runs: 2 rows seen = 1 in SLS + 1 held")
        .prints("held, control row: 1")
        .prints("workflow_node_executions: 10 rows seen = 10 in SLS + 0 held")
        .prints("2 JSON columns hold no JSON; they went through unchanged");
    let logs = logs(&fixture, "workflow_node_execution");
    let field = |n: usize, key: &str| logs[&ids[n]].field(key).to_owned();
    assert_eq!(field(0, "inputs"), "not json {");
    assert_eq!(field(0, "outputs"), "{'a': 1}");
    for key in ["inputs", "outputs", "process_data", "execution_metadata"] {
        assert_eq!(field(1, key), "{}", "{key}");
    }
    assert_eq!(field(2, "inputs"), nodes[2]["inputs"].as_str().unwrap());
    assert_eq!(field(3, "inputs"), "{\"half\": \"\\ud83d\", \"whole\": \"😀\"}");
    assert_eq!(field(4, "inputs"), "\"\\u0000\\u001f\u{7f}\u{2028}\"");
    assert_eq!(field(4, "title"), "a\tb\nc\u{1}\u{fffd}");
    assert_eq!(field(5, "created_by_role"), "end_user");
    assert_eq!(
        (field(6, "workflow_run_id"), field(7, "workflow_run_id")),
        (String::new(), id(999))
    );
    assert_eq!((field(8, "error").len(), field(8, "elapsed_time")), (80_000, "1e-07".into()));
    assert_eq!(field(9, "elapsed_time"), "nan");
}

/// Waits for its end and gives the most memory it ever had, in MiB.
fn peak_memory_mib(mut running: Running) -> u64 {
    let path = format!("/proc/{}/status", running.id());
    let mut peak_kib = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while !running.stderr().contains("done: ") && Instant::now() < end {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kib) = line.and_then(|line| line.split_whitespace().next()) {
            peak_kib = kib.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    running.wait_for("done: ");
    running.wait().exits(0).tells("0 differ");
    peak_kib / 1024
}

#[test]
fn rows_over_the_limits_are_held_and_cost_no_memory() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(50, 5);
    let million = |sixths: u32| sixths * 1_000_000 / 6;
    for (n, inputs) in [
        // 30 MB, over --row-mib-max.
        (1, format!("'\"' || repeat('abcdef', {}) || '\"'", million(30))),
        // 12 MB that become 6 MB: sent.
        (2, format!(r#"'"' || repeat('\u4f60', {}) || '"'"#, million(12))),
        // 12 MB that stay 12 MB: SLS takes 10.
        (3, format!("'\"' || repeat('abcdef', {}) || '\"'", million(12))),
        // 12 MB as bytes, 4 million characters.
        (4, format!("'\"' || repeat('你好', {}) || '\"'", million(12))),
        // 9.9 MB: sent.
        (5, format!("'\"' || repeat('abcde', {}) || '\"'", 1_980_000)),
    ] {
        fixture.insert(NODES, json!({"id": id(n)}));
        fixture
            .database
            .psql(&format!("UPDATE {NODES} SET inputs = {inputs} WHERE id = '{}'", id(n)));
    }
    let peak_mib = peak_memory_mib(fixture.tool("run --memory-mib 8").spawn());
    eprintln!("{peak_mib} MiB at the most");
    // Five buffers of a row of 16 MiB (wire, group and compressed, each grown by doubling), and
    // what the program takes anyway.
    assert!(peak_mib < 150, "{peak_mib} MiB");
    let mut held = fixture.held(NODES);
    held.retain(|_, reason| reason == "too large");
    assert_eq!(held.into_keys().collect::<Vec<_>>(), [1, 3, 4].map(id));
    let logs = logs(&fixture, "workflow_node_execution");
    assert_eq!(logs[&id(2)].field("inputs").len(), 6_000_002);
    assert!(logs[&id(2)].field("inputs").starts_with("\"你你"));
    assert_eq!(logs[&id(5)].field("inputs").len(), 9_900_002);
    // Nothing is tried for ever: the reason cannot pass by itself.
    fixture.tool("run").run().exits(0).tells("nothing new to do");
    // With a higher limit the row is read, and is still too large for SLS.
    fixture.tool("run --row-mib-max 64").run().exits(0).prints("held, too large: 3");
}

#[test]
fn ten_thousand_rows_of_one_moment_are_paged_without_loss() {
    at_once(["time", "by-run", "walk"], |order| {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(2500, 5);
        // One second each, and NULL stays NULL.
        let moment = "created_at = '2024-05-06 07:08:09', \
            finished_at = timestamp '2024-05-06 07:08:10' + 0 * (finished_at - created_at)";
        fixture.database.psql(&format!(
            "UPDATE {RUNS} SET {moment}; UPDATE {NODES} SET {moment}; \
             CREATE INDEX ON {NODES} (created_at, id); ANALYZE {RUNS}, {NODES}"
        ));
        fixture
            .tool(&format!("run --tables {NODES} --key-order {order}"))
            .run()
            .exits(0)
            .prints("10,000 rows seen = 9,800 in SLS + 200 held + 0 already + 0 gone");
        fixture.tool("run").run().exits(0);
        fixture.holds_every_finished_row_once();
    });
}

#[test]
fn five_thousand_nodes_of_one_run_are_read_page_by_page() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(20, 5);
    fixture.database.psql(&format!(
        "INSERT INTO {NODES} SELECT (jsonb_populate_record(n, jsonb_build_object( \
         'id', gen_random_uuid(), 'index', i))).* FROM {NODES} n, generate_series(1, 5000) i \
         WHERE n.id = (SELECT id FROM {NODES} WHERE workflow_run_id = md5('run7')::uuid LIMIT 1)"
    ));
    // Stopped within the run, too.
    fixture
        .tool(&format!("run --tables {NODES} --key-order by-run --max-rows 2500"))
        .run()
        .exits(75);
    fixture.tool(&format!("run --tables {NODES} --key-order by-run")).run().exits(0);
    fixture.tool("run").run().exits(0);
    assert!(fixture.stored("workflow_node_execution").len() > 5000);
    fixture.holds_every_finished_row_once();
}

#[test]
fn nodes_that_no_run_of_the_window_reaches_are_found_all_the_same() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(20, 2);
    let node = |n: usize, run: Value, created_at: &str| {
        json!({"id": id(n), "workflow_run_id": run, "created_at": created_at,
               "finished_at": created_at})
    };
    // A run that was paused for a hundred days, and one that began after its own node.
    fixture.insert(RUNS, json!({"id": id(1), "created_at": "2024-01-01 00:00:00"}));
    fixture.insert(RUNS, json!({"id": id(2), "created_at": "2024-07-01 00:00:00"}));
    fixture.insert(NODES, node(11, json!(id(1)), "2024-04-10 12:00:00"));
    fixture.insert(NODES, node(12, json!(id(2)), "2024-04-10 12:00:00"));
    fixture.insert(NODES, node(13, json!(null), "2024-04-10 12:00:00"));
    fixture.insert(NODES, node(14, json!(id(999)), "2024-04-10 12:00:00"));
    // At the edges of the window.
    fixture.insert(NODES, node(15, json!(id(1)), "2024-04-09 00:00:00"));
    fixture.insert(NODES, node(16, json!(id(1)), "2024-04-10 23:59:59.999999"));
    fixture.insert(NODES, node(17, json!(id(1)), "2024-04-11 00:00:00"));
    fixture.insert(NODES, node(18, json!(id(1)), "2024-04-08 23:59:59.999999"));
    fixture
        .tool("run --key-order by-run --since 2024-04-09 --until 2024-04-11")
        .arg("--tables")
        .arg(NODES)
        .run()
        .exits(0);
    assert_eq!(fixture.stored("workflow_node_execution"), [11, 12, 13, 14, 15, 16].map(id));
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn runs_deleted_between_two_runs_take_no_node_with_them() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(500, 5);
    fixture.tool(&format!("run --tables {NODES} --max-rows 700")).run().exits(75);
    // Dify's own clean-up may delete runs before their nodes.
    fixture.database.psql(&format!("DELETE FROM {RUNS} WHERE total_tokens % 2 = 0"));
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_deleted_between_two_runs_are_not_missed() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(300, 5);
    fixture.tool("run --max-rows 100").run().exits(75);
    let sent = fixture.stored("workflow_execution");
    fixture.database.psql(&format!("DELETE FROM {RUNS} WHERE total_tokens % 3 = 0"));
    fixture.tool("run").run().exits(0).tells("0 differ");
    let finished = fixture.finished(RUNS);
    let mut expected: Vec<_> = sent.into_iter().chain(finished).collect();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(fixture.stored("workflow_execution"), expected);
}

#[test]
fn rows_whose_payload_is_in_object_storage_are_held_until_it_is_back() {
    for shape in ["dify-1.10", "dify-newest"] {
        let fixture = Fixture::new(shape);
        fixture.insert(RUNS, json!({"id": id(1)}));
        for n in 1..=3 {
            fixture.insert(NODES, json!({"id": id(n)}));
        }
        let offload = |node: &str, kind: &str| {
            fixture.database.psql(&format!(
                "INSERT INTO workflow_node_execution_offload (tenant_id, app_id, \
                 node_execution_id, type, file_id) VALUES (gen_random_uuid(), gen_random_uuid(), \
                 {node}, '{kind}', gen_random_uuid())"
            ));
        };
        offload(&format!("'{}'", id(1)), "inputs");
        offload(&format!("'{}'", id(2)), "inputs");
        offload(&format!("'{}'", id(2)), "outputs");
        // Nobody's any more.
        offload("NULL", "outputs");
        fixture.tool("run").run().exits(0).prints("held, offloaded: 2");
        assert_eq!(fixture.stored("workflow_node_execution"), [id(3)]);
        fixture.database.psql(&format!(
            "DELETE FROM workflow_node_execution_offload WHERE node_execution_id = '{}'",
            id(2)
        ));
        fixture.tool("run").run().exits(0).prints("held, offloaded: 1");
        assert_eq!(fixture.stored("workflow_node_execution"), [2, 3].map(id));
    }
}
