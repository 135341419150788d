//! What the generator promises, read back from the bytes that it would send.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::demo::rows::{NODE_COLUMNS, PAUSE_COLUMNS, RUN_COLUMNS};
use crate::demo::settings::Profile;
use crate::record::timestamp::Timestamp;

/// A row: its fields by column.
type Row = HashMap<&'static str, Option<Vec<u8>>>;

/// The rows of a binary COPY.
fn rows(columns: &'static str, copy: &[u8]) -> Vec<Row> {
    let mut rest = copy.strip_prefix(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0").unwrap();
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at(length);
        rest = after;
        taken
    };
    let names: Vec<&str> = columns.split(',').map(|name| name.trim().trim_matches('"')).collect();
    let mut rows = Vec::new();
    loop {
        let fields = i16::from_be_bytes(take(2).try_into().unwrap());
        if fields == -1 {
            assert!(take(0).is_empty());
            return rows;
        }
        assert_eq!(fields as usize, names.len());
        let fields = names.iter().map(|name| {
            let length = i32::from_be_bytes(take(4).try_into().unwrap());
            (*name, usize::try_from(length).ok().map(|length| take(length).to_vec()))
        });
        rows.push(fields.collect());
    }
}

fn text<'a>(row: &'a Row, column: &str) -> Option<&'a str> {
    row[column].as_deref().map(|bytes| std::str::from_utf8(bytes).unwrap())
}

fn us(row: &Row, column: &str) -> Option<i64> {
    let bytes = row[column].as_deref()?;
    Timestamp::from_postgres(i64::from_be_bytes(bytes.try_into().unwrap())).unix_us()
}

struct Made {
    runs: Vec<Row>,
    pauses: Vec<Row>,
    nodes: Vec<Row>,
    summary: HistorySummary,
    largest_chunk: usize,
}

fn make(settings: &HistorySettings) -> Made {
    let mut history = History::new(settings).unwrap();
    let (mut runs, mut pauses, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    let mut largest_chunk = 0;
    while let Some(chunk) = history.next_chunk() {
        largest_chunk = largest_chunk.max(chunk.runs.len() + chunk.nodes.len());
        runs.extend(rows(RUN_COLUMNS, &chunk.runs.into_copy()));
        pauses.extend(rows(PAUSE_COLUMNS, &chunk.pauses.into_copy()));
        nodes.extend(rows(NODE_COLUMNS, &chunk.nodes.into_copy()));
    }
    Made { runs, pauses, nodes, summary: history.summary(), largest_chunk }
}

fn settings(node_rows: u64) -> HistorySettings {
    HistorySettings { node_rows, ..HistorySettings::default() }
}

#[test]
fn the_same_settings_make_the_same_rows() {
    let (one, other) = (make(&settings(3_000)), make(&settings(3_000)));
    assert_eq!(one.runs, other.runs);
    assert_eq!(one.nodes, other.nodes);
    let other = make(&HistorySettings { seed: 2, ..settings(3_000) });
    assert_ne!(one.nodes[0]["id"], other.nodes[0]["id"]);
}

#[test]
fn json_columns_are_json_in_ascii() {
    let Made { runs, nodes, .. } = make(&settings(4_000));
    let columns = ["graph", "inputs", "outputs", "process_data", "execution_metadata"];
    let mut seen = 0;
    for row in runs.iter().chain(&nodes) {
        for column in columns.iter().filter(|column| row.contains_key(**column)) {
            let Some(json) = text(row, column) else { continue };
            assert!(json.is_ascii(), "{column}: {json}");
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert!(value.is_object(), "{column}: {json}");
            seen += usize::from(json.contains("\\ud83d"));
        }
    }
    assert!(seen > 100, "few emoji: {seen}");
}

#[test]
fn counts_are_what_was_asked_for() {
    for node_rows in [0, 1, 2, 7, 100, 2_501] {
        let made = make(&settings(node_rows));
        assert_eq!(made.nodes.len() as u64, node_rows);
        assert_eq!(made.summary.node_executions, node_rows);
        assert_eq!(made.summary.runs, made.runs.len() as u64);
        let without = made.nodes.iter().filter(|row| row["workflow_run_id"].is_none()).count();
        assert_eq!(made.summary.single_steps, without as u64);
        let runs: HashSet<_> = made.runs.iter().map(|row| row["id"].clone()).collect();
        let of_runs = made.nodes.iter().filter(|row| runs.contains(&row["workflow_run_id"]));
        let orphans = made.nodes.len() - without - of_runs.count();
        assert_eq!(made.summary.orphans, orphans as u64);
        let ids: HashSet<_> = made.nodes.iter().map(|row| row["id"].clone()).collect();
        assert_eq!(ids.len(), made.nodes.len());
    }
}

#[test]
fn statuses_have_their_shares() {
    let Made { runs, nodes, pauses, .. } = make(&settings(40_000));
    let count = |rows: &[Row], status: &str| {
        rows.iter().filter(|row| text(row, "status") == Some(status)).count()
    };
    let share = |rows: &[Row], status: &str| count(rows, status) as f64 / rows.len() as f64;
    for (status, least, most) in [
        ("succeeded", 0.90, 0.96),
        ("failed", 0.02, 0.05),
        ("partial-succeeded", 0.008, 0.025),
        ("stopped", 0.005, 0.02),
        ("running", 0.001, 0.006),
        ("paused", 0.000_5, 0.004),
    ] {
        let share = share(&runs, status);
        assert!((least..most).contains(&share), "runs {status}: {share}");
    }
    for (status, least, most) in [
        ("succeeded", 0.95, 0.99),
        ("failed", 0.003, 0.02),
        ("exception", 0.000_5, 0.004),
        ("retry", 0.003, 0.02),
        ("stopped", 0.000_5, 0.004),
        ("running", 0.000_2, 0.002),
        ("paused", 0.000_1, 0.001),
    ] {
        let share = share(&nodes, status);
        assert!((least..most).contains(&share), "nodes {status}: {share}");
    }
    assert_eq!(pauses.len(), count(&runs, "paused"));
    for rows in [&runs, &nodes] {
        let is_open = |row: &Row| matches!(text(row, "status"), Some("running" | "paused"));
        let without_end = rows.iter().filter(|row| row["finished_at"].is_none());
        let (open, ended): (Vec<_>, Vec<_>) = without_end.partition(|row| is_open(row));
        assert_eq!(open.len(), count(rows, "running") + count(rows, "paused"));
        assert!((1..rows.len() / 500).contains(&ended.len()), "{}", ended.len());
    }
    assert!(nodes.iter().any(|row| text(row, "created_by_role") == Some("end-user")));
    assert!(nodes.iter().any(|row| row["node_execution_id"].is_none()));
}

#[test]
fn times_fit_together() {
    let settings = settings(10_000);
    let Made { runs, nodes, .. } = make(&settings);
    let now_us = settings.now.unix_us().unwrap();
    let begins_us = now_us - i64::from(settings.days) * 86_400_000_000;
    let by_id: HashMap<_, _> = runs.iter().map(|run| (run["id"].clone(), run)).collect();
    let mut nodes_of_run: HashMap<_, usize> = HashMap::new();
    for row in runs.iter().chain(&nodes) {
        let created_us = us(row, "created_at").unwrap();
        let elapsed = f64::from_be_bytes(row["elapsed_time"].clone().unwrap().try_into().unwrap());
        let finished_us = us(row, "finished_at");
        assert!((begins_us..=now_us).contains(&created_us));
        assert_eq!(elapsed, finished_us.map_or(0, |finished| finished - created_us) as f64 / 1e6);
        assert!(finished_us.is_none_or(|finished| (created_us..=now_us).contains(&finished)));
    }
    for node in &nodes {
        if let Some(run) = by_id.get(&node["workflow_run_id"]) {
            assert!(us(node, "created_at") >= us(run, "created_at"));
            assert!(us(run, "finished_at").is_none_or(|end| us(node, "finished_at") <= Some(end)));
            *nodes_of_run.entry(run["id"].clone()).or_default() += 1;
        }
    }
    let mean = nodes.len() as f64 / runs.len() as f64;
    assert!((6.5..9.5).contains(&mean), "{mean} nodes a run");
    assert!(*nodes_of_run.values().max().unwrap() <= RUN_NODES_MAX);
    assert_eq!(*nodes_of_run.values().min().unwrap(), 1);
    let ended_lately = |row: &&Row| us(row, "finished_at") > Some(now_us - 1_200_000_000);
    assert!(nodes.iter().filter(ended_lately).count() > 5);
}

#[test]
fn sizes_have_a_long_tail() {
    let sizes = |profile| {
        let made = make(&HistorySettings { profile, ..settings(30_000) });
        let columns = ["inputs", "process_data", "outputs", "execution_metadata"];
        let size = |row: &Row| -> usize {
            columns.iter().map(|column| row[column].as_deref().map_or(0, <[u8]>::len)).sum()
        };
        let mut sizes: Vec<usize> = made.nodes.iter().map(size).collect();
        sizes.sort();
        assert!(made.largest_chunk < 16 << 20, "{}", made.largest_chunk);
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        (mean, sizes[sizes.len() / 2], sizes[sizes.len() * 999 / 1_000], sizes[sizes.len() - 1])
    };
    let (mean, median, p999, largest) = sizes(Profile::Mixed);
    eprintln!("mixed: {mean} {median} {p999} {largest}");
    assert!((3_300..4_700).contains(&mean), "{mean}");
    assert!((1_200..1_800).contains(&median), "{median}");
    assert!(p999 > 400_000 && largest > 1_000_000, "{p999} {largest}");
    let (mean, _, _, largest) = sizes(Profile::Bench);
    eprintln!("bench: {mean} {largest}");
    assert!((3_500..4_300).contains(&mean), "{mean}");
    assert!(largest < 200_000, "{largest}");
}
