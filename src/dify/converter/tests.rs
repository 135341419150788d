//! The converter against Dify's own writer, on every shape of the tables, and at the edges.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;
use crate::dify::converter::tests::rows::*;
use crate::wire::log_group::LogGroupView;

mod rows;

/// What Dify's own LogStore writer made of an execution, and what its SQL writer made of it.
#[derive(Deserialize)]
struct Vector {
    table: Table,
    row: Map<String, Value>,
    log: Vec<(String, String)>,
    /// The fields whose keys the SQL writer sorted: their order is not in the row any more.
    lossy: Map<String, Value>,
    tags: Vec<String>,
}

fn vectors() -> Vec<Vector> {
    include_str!("../../../tests/data/conversion.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The row of a vector, of a database of 1.12.
fn row_of(vector: &Vector) -> OwnedRow {
    let columns = columns_of(SHAPES[3].1, vector.table);
    let mut row = OwnedRow::new();
    for (name, text) in &vector.row {
        let kind = columns.iter().find(|column| column.name == *name).unwrap().kind;
        row.set(name, kind, text.as_str());
    }
    row
}

/// Asserts that two texts are the same JSON, spelled the same but for the order of keys.
fn assert_reordered(got: &str, wanted: &str) {
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(value(got), value(wanted));
    let sorted = |text: &str| {
        let mut characters: Vec<_> = text.chars().collect();
        characters.sort_unstable();
        characters
    };
    assert_eq!(sorted(got), sorted(wanted), "{got}\n{wanted}");
}

#[test]
fn logs_are_those_of_difys_own_writer() {
    let (mut held_count, mut lossy_count, mut exact_count) = (0, 0, 0);
    for (number, vector) in vectors().iter().enumerate() {
        let mut row = row_of(vector);
        let conversion = row.conversion(vector.table);
        // Dify's writer writes open executions too. Those are held; their other fields must be
        // right all the same, so they are finished here.
        let mut mended = Vec::new();
        let status = vector.row["status"].as_str().unwrap();
        if !matches!(
            status,
            "succeeded" | "failed" | "stopped" | "partial-succeeded" | "exception" | "retry"
        ) {
            let verdict = row.convert(&conversion, &mut LogGroupWriter::default());
            assert!(matches!(verdict, Verdict::Hold { reason: HoldReason::Running, .. }));
            row.put("status", Some("succeeded"));
            mended.push("status");
        }
        if vector.row["finished_at"].is_null() {
            assert!(matches!(
                row.convert(&conversion, &mut LogGroupWriter::default()),
                Verdict::Hold { reason: HoldReason::NoFinishTime, .. }
            ));
            row.put("finished_at", Some("2026-11-01 00:00:00"));
            mended.push("finished_at");
        }
        held_count += usize::from(!mended.is_empty());

        let (converted, mut log) = row.log_by(&conversion);
        assert_eq!(converted.not_json, 0, "vector {number}");
        assert_eq!(log.remove(1).0, "log_version");
        for (got, wanted) in log.iter().zip(&vector.log) {
            assert_eq!(got.0, wanted.0, "vector {number}");
            if vector.lossy.contains_key(&wanted.0) {
                assert_reordered(&got.1, &wanted.1);
                lossy_count += 1;
            } else if !mended.contains(&wanted.0.as_str()) {
                assert_eq!(got.1, wanted.1, "vector {number}, {}, {:?}", wanted.0, vector.tags);
                exact_count += 1;
            }
        }
        let added: Vec<_> = log[vector.log.len()..].iter().map(|field| field.0.as_str()).collect();
        let wanted: &[_] = if vector.table == Table::Runs { &["elapsed_time"] } else { &[] };
        assert_eq!(added, wanted, "vector {number}");
    }
    assert_eq!((vectors().len(), held_count), (84, 21));
    assert_eq!((lossy_count, exact_count), (60, 1752));
}

/// A conversion of version 1 as a ledger keeps it.
const VERSION_1: &str = concat!(
    r#"{"rules":1,"table":"workflow_node_executions","columns":[{"name":"id","kind":"uuid"},"#,
    r#"{"name":"tenant_id","kind":"uuid"},{"name":"app_id","kind":"uuid"},"#,
    r#"{"name":"workflow_id","kind":"uuid"},{"name":"triggered_from","kind":"text"},"#,
    r#"{"name":"workflow_run_id","kind":"uuid"},{"name":"index","kind":"int4"},"#,
    r#"{"name":"predecessor_node_id","kind":"text"},{"name":"node_id","kind":"text"},"#,
    r#"{"name":"node_type","kind":"text"},{"name":"title","kind":"text"},"#,
    r#"{"name":"inputs","kind":"text"},{"name":"process_data","kind":"text"},"#,
    r#"{"name":"outputs","kind":"text"},{"name":"status","kind":"text"},"#,
    r#"{"name":"error","kind":"text"},{"name":"elapsed_time","kind":"float8"},"#,
    r#"{"name":"execution_metadata","kind":"text"},{"name":"created_at","kind":"timestamp"},"#,
    r#"{"name":"created_by_role","kind":"text"},{"name":"created_by","kind":"uuid"},"#,
    r#"{"name":"finished_at","kind":"timestamp"},"#,
    r#"{"name":"node_execution_id","kind":"text"}],"put_graph":true,"log_time":"finished_at"}"#,
);

#[test]
fn a_conversion_of_version_1_makes_the_same_log_for_good() {
    let vector = &vectors()[0];
    let conversion: Conversion = serde_json::from_str(VERSION_1).unwrap();
    let row = row_of(vector);
    assert_eq!(row.columns, conversion.columns, "the cells come in the order of its columns");
    let (converted, _) = row.log_by(&conversion);
    assert_eq!(
        converted.digest.to_string(),
        "461f82d71696bb400704c42faf566697a5c4b54da40f3411dcc2f2b127cb03c1"
    );
    assert_eq!(conversion.fingerprint(), "87d0e006d63a2528");
}

#[test]
fn the_vectors_hold_lone_surrogates_and_nan() {
    for (tag, sign) in [("surrogate", "\\ud8"), ("nonfinite", "NaN")] {
        let tagged: Vec<_> =
            vectors().into_iter().filter(|v| v.tags.iter().any(|t| t == tag)).collect();
        assert_eq!(tagged.len(), 2, "{tag}");
        assert!(tagged.iter().any(|v| value(&v.log, "outputs").unwrap().contains(sign)), "{tag}");
    }
}

#[test]
fn every_shape_of_the_tables_converts() {
    const RUN: &str = "id log_version tenant_id app_id workflow_id triggered_from type version \
        graph inputs outputs status error_message total_tokens total_steps exceptions_count \
        created_by_role created_by started_at finished_at";
    const NODE: &str = "id log_version tenant_id app_id workflow_id triggered_from workflow_run_id \
        index predecessor_node_id node_execution_id node_id node_type title inputs process_data \
        outputs status error elapsed_time execution_metadata created_at created_by_role created_by \
        finished_at";
    const NEWEST_NODE: &str = "id log_version tenant_id app_id workflow_id triggered_from \
        triggered_from_workflow_id triggered_from_node_execution_id workflow_run_id index \
        predecessor_node_id node_execution_id node_id node_type title inputs process_data outputs \
        status error elapsed_time execution_metadata created_at created_by_role created_by \
        finished_at agent_workspace_binding_id";
    for (number, (shape, ddl)) in SHAPES.iter().enumerate() {
        let keys = |table| {
            let log = filled(columns_of(ddl, table)).log(table);
            log.into_iter().map(|field| field.0).collect::<Vec<_>>().join(" ")
        };
        let run_more = match number {
            0 | 1 => " sequence_number elapsed_time",
            4 => " elapsed_time task_id stop_requested_at",
            _ => " elapsed_time",
        };
        assert_eq!(keys(Table::Runs), RUN.to_owned() + run_more, "{shape}");
        let node = if number == 4 { NEWEST_NODE } else { NODE };
        assert_eq!(keys(Table::NodeExecutions), node, "{shape}");
    }
    let old_run = filled(columns_of(SHAPES[0].1, Table::Runs));
    assert_eq!(value(&old_run.log(Table::Runs), "exceptions_count"), Some("0"));
    let old_node = filled(columns_of(SHAPES[0].1, Table::NodeExecutions));
    assert_eq!(value(&old_node.log(Table::NodeExecutions), "node_execution_id"), Some(ID));
}

#[test]
fn each_column_is_written_under_its_key() {
    let uuid = "11111111-2222-3333-4444-555555555555";
    let run = newest(Table::Runs).log(Table::Runs);
    for (key, wanted) in [
        ("id", ID),
        ("log_version", "1772359202500000001"),
        ("tenant_id", uuid),
        ("type", "{type}"),
        ("graph", r#"{"graph": "中"}"#),
        ("outputs", r#"{"outputs": "中"}"#),
        ("error_message", "{error}"),
        ("total_tokens", "42"),
        ("started_at", "2026-03-01T10:00:00"),
        ("finished_at", "2026-03-01T10:00:02.500000"),
        ("elapsed_time", "1e-05"),
        ("task_id", uuid),
        ("stop_requested_at", "2026-03-01T10:00:01"),
    ] {
        assert_eq!(value(&run, key), Some(wanted), "{key}");
    }
    let node = newest(Table::NodeExecutions).log(Table::NodeExecutions);
    for (key, wanted) in [
        ("node_execution_id", "{node_execution_id}"),
        ("triggered_from_workflow_id", uuid),
        ("workflow_run_id", uuid),
        ("index", "42"),
        ("error", "{error}"),
        ("created_at", "2026-03-01T10:00:00"),
        ("process_data", r#"{"process_data": "中"}"#),
    ] {
        assert_eq!(value(&node, key), Some(wanted), "{key}");
    }
}

#[test]
fn null_is_written_as_dify_writes_it() {
    /// Table, column, key, the column's texts, and the value; `None` if it is the text.
    type Case =
        (Table, &'static str, &'static str, &'static [Option<&'static str>], Option<&'static str>);
    let cases: [Case; 17] = [
        (Table::Runs, "inputs", "inputs", &[None, Some(""), Some("null")], Some("{}")),
        (Table::Runs, "outputs", "outputs", &[None, Some(""), Some("null")], Some("{}")),
        (Table::Runs, "graph", "graph", &[None, Some(""), Some("null")], Some("{}")),
        (Table::Runs, "inputs", "inputs", &[Some("null "), Some(" null")], None),
        (Table::Runs, "error", "error_message", &[None, Some("")], Some("")),
        (Table::Runs, "total_steps", "total_steps", &[None], Some("0")),
        (Table::Runs, "exceptions_count", "exceptions_count", &[None], Some("0")),
        (Table::Runs, "created_by_role", "created_by_role", &[Some("end-user")], Some("end_user")),
        (Table::Runs, "created_by_role", "created_by_role", &[Some("account")], Some("account")),
        (Table::NodeExecutions, "error", "error", &[None], Some("")),
        (Table::NodeExecutions, "predecessor_node_id", "predecessor_node_id", &[None], Some("")),
        (Table::NodeExecutions, "workflow_run_id", "workflow_run_id", &[None], Some("")),
        (
            Table::NodeExecutions,
            "triggered_from_workflow_id",
            "triggered_from_workflow_id",
            &[None],
            Some(""),
        ),
        (
            Table::NodeExecutions,
            "triggered_from_node_execution_id",
            "triggered_from_node_execution_id",
            &[None],
            Some(""),
        ),
        (
            Table::NodeExecutions,
            "node_execution_id",
            "node_execution_id",
            &[None, Some("")],
            Some(ID),
        ),
        (Table::NodeExecutions, "process_data", "process_data", &[None], Some("{}")),
        (Table::NodeExecutions, "execution_metadata", "execution_metadata", &[None], Some("{}")),
    ];
    for (table, column, key, texts, wanted) in cases {
        for text in texts {
            let log = newest(table).with(column, *text).log(table);
            assert_eq!(value(&log, key), wanted.or(*text), "{column} {text:?}");
        }
    }
    // What Dify does not write is left out.
    let log = newest(Table::Runs).with("elapsed_time", None).with("task_id", None).log(Table::Runs);
    assert_eq!((value(&log, "elapsed_time"), value(&log, "task_id")), (None, None));
}

#[test]
fn what_is_never_null_in_dify_is_invalid_when_it_is() {
    for (table, names) in [
        (
            Table::Runs,
            "tenant_id app_id workflow_id triggered_from type version total_tokens \
             created_by_role created_by created_at",
        ),
        (
            Table::NodeExecutions,
            "tenant_id app_id workflow_id triggered_from index node_id node_type title \
             elapsed_time created_by_role created_by created_at",
        ),
    ] {
        for name in names.split_whitespace() {
            let held = newest(table).with(name, None).held(table);
            assert_eq!(held, (HoldReason::Invalid, format!("{name} is NULL")));
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_invalid_in_every_text_column() {
    for table in Table::ALL {
        for (at, column) in newest(table).columns.into_iter().enumerate() {
            if column.kind == ColumnKind::Text && column.name != "status" {
                let mut row = newest(table);
                row.cells[at] = Some(b"\"caf\xe9\"".to_vec());
                let told = format!("{} is not UTF-8", column.name);
                assert_eq!(row.held(table), (HoldReason::Invalid, told));
            }
        }
    }
}

#[test]
fn times_that_python_does_not_have_are_invalid() {
    for (name, times) in [
        ("created_at", ["infinity", "-infinity"]),
        ("finished_at", ["infinity", "1969-12-31 23:59:59.999999"]),
        ("stop_requested_at", ["infinity", "-infinity"]),
    ] {
        for time in times {
            let (reason, detail) = newest(Table::Runs).with(name, Some(time)).held(Table::Runs);
            assert_eq!(reason, HoldReason::Invalid, "{name} {time}");
            assert!(detail.starts_with(name), "{detail}");
        }
    }
}

#[test]
fn a_control_row_is_held_once_it_is_over() {
    let payload = ["graph", "inputs", "outputs"];
    let empty = payload.iter().fold(newest(Table::Runs), |row, name| row.with(name, None));
    assert_eq!(empty.held(Table::Runs).0, HoldReason::ControlRow);
    assert_eq!(
        empty.clone().with("outputs", Some("{}")).held(Table::Runs).0,
        HoldReason::ControlRow
    );
    let running = empty.clone().with("status", Some("running"));
    assert_eq!(running.held(Table::Runs).0, HoldReason::Running);
    let late = empty.clone().with("finished_at", Some("2027-01-01 00:00:00.000001"));
    assert_eq!(late.held(Table::Runs).0, HoldReason::Running);
    for name in payload {
        empty.clone().with(name, Some("{\"a\": 1}")).log(Table::Runs);
    }
    // Without a task, or before there were tasks, an empty run is an empty run.
    empty.with("task_id", None).log(Table::Runs);
    let old = filled(columns_of(SHAPES[3].1, Table::Runs));
    payload.iter().fold(old, |row, name| row.with(name, None)).log(Table::Runs);
}

#[test]
fn the_log_version_is_below_that_of_the_live_log_and_retries_come_first() {
    let node = newest(Table::NodeExecutions);
    let version =
        |row: &OwnedRow| value(&row.log(Table::NodeExecutions), "log_version").unwrap().to_owned();
    assert_eq!(version(&node), "1772359202500000001");
    assert_eq!(version(&node.clone().with("status", Some("retry"))), "1772359202500000000");
    assert_eq!(version(&node.with("finished_at", Some("1970-01-01 00:00:00"))), "1");
    // The last second that a log's time can be.
    let last = newest(Table::Runs).with("finished_at", Some("2106-02-07 06:28:15.999999"));
    let cells: Vec<_> = last.cells.iter().map(Option::as_deref).collect();
    let mut group = LogGroupWriter::default();
    let verdict = Converter::new(&last.conversion(Table::Runs)).unwrap().convert(
        ReadRow { cells: &cells, is_offloaded: false },
        &Bounds::NONE,
        INGEST,
        &mut group,
    );
    let Verdict::Log(converted) = verdict else { panic!("{verdict:?}") };
    assert_eq!(converted.time, u32::MAX);
    let view = LogGroupView::parse(group.bytes()).unwrap();
    assert_eq!(view.logs[0].contents[1].1, b"4294967295999999001");
}

#[test]
fn the_settings_of_the_conversion_are_followed() {
    let row = newest(Table::Runs);
    let mut conversion = row.conversion(Table::Runs);
    let (converted, _) = row.log_by(&conversion);
    assert_eq!(converted.row_id.to_string(), ID);
    assert_eq!(converted.created_at, time("2026-03-01 10:00:00"));
    assert_eq!(converted.finished_at, time("2026-03-01 10:00:02.5"));
    assert_eq!(converted.time, 1_772_359_202);
    conversion.log_time = LogTime::Ingest;
    conversion.put_graph = false;
    let (converted, log) = row.log_by(&conversion);
    assert_eq!(converted.time, INGEST);
    assert_eq!(value(&log, "graph"), Some("{}"));
    assert_eq!(value(&log, "inputs"), Some(r#"{"inputs": "中"}"#));
}

#[test]
fn text_that_is_not_json_is_carried_and_counted() {
    let row = newest(Table::NodeExecutions)
        .with("inputs", Some("\"\\u4e2d"))
        .with("outputs", Some("[\"\\u4e2d\"] x"))
        .with("process_data", Some("[\"\\u4e2d\"]"));
    let (converted, log) = row.log_by(&row.conversion(Table::NodeExecutions));
    assert_eq!(converted.not_json, 2);
    assert_eq!(value(&log, "inputs"), Some("\"\\u4e2d"));
    assert_eq!(value(&log, "outputs"), Some("[\"\\u4e2d\"] x"));
    assert_eq!(value(&log, "process_data"), Some("[\"中\"]"));
}

#[test]
fn one_converter_makes_many_logs_of_any_size() {
    let rows: Vec<_> = [0, 1, 30, 3_000, 300_000]
        .map(|n| {
            let text = format!("[\"{}\"]", "\\u4e2d".repeat(n));
            newest(Table::Runs).with("outputs", Some(&text))
        })
        .into();
    let conversion = rows[0].conversion(Table::Runs);
    let mut converter = Converter::new(&conversion).unwrap();
    let mut group = LogGroupWriter::default();
    let mut sizes = 0;
    for row in &rows {
        // A held row between two logs leaves no trace.
        let mut held: Vec<_> = row.cells.iter().map(Option::as_deref).collect();
        let error = row.columns.iter().position(|column| column.name == "error").unwrap();
        held[error] = Some(b"\xff");
        let held = ReadRow { cells: &held, is_offloaded: false };
        assert!(matches!(
            converter.convert(held, &settled(), INGEST, &mut group),
            Verdict::Hold { .. }
        ));
        let cells: Vec<_> = row.cells.iter().map(Option::as_deref).collect();
        let fit = ReadRow { cells: &cells, is_offloaded: false };
        let verdict = converter.convert(fit, &settled(), INGEST, &mut group);
        let Verdict::Log(converted) = verdict else { panic!("{verdict:?}") };
        assert_eq!(converted.digest, row.log_by(&conversion).0.digest);
        sizes += converted.size;
    }
    assert_eq!(group.bytes().len(), sizes);
    let view = LogGroupView::parse(group.bytes()).unwrap();
    for (log, n) in view.logs.iter().zip([0, 1, 30, 3_000, 300_000]) {
        let outputs = log.contents.iter().find(|(key, _)| *key == b"outputs").unwrap().1;
        assert_eq!(outputs, format!("[\"{}\"]", "中".repeat(n)).as_bytes());
    }
}

#[test]
fn a_row_is_judged_as_it_is_when_it_is_read() {
    let row = newest(Table::NodeExecutions);
    let cells: Vec<_> = row.cells.iter().map(Option::as_deref).collect();
    let texts = row.columns.iter().zip(&cells).filter_map(|(column, cell)| {
        (column.kind == ColumnKind::Text).then_some(cell.map_or(0, <[u8]>::len) as u64)
    });
    let text_bytes: u64 = texts.sum();
    let mut converter = Converter::new(&row.conversion(Table::NodeExecutions)).unwrap();
    let mut group = LogGroupWriter::default();
    let mut judge = |is_offloaded, bounds| match converter.convert(
        ReadRow { cells: &cells, is_offloaded },
        &bounds,
        0,
        &mut group,
    ) {
        Verdict::Log(_) => None,
        Verdict::Hold { reason, finished_at, .. } => {
            assert_eq!(finished_at, Some(time("2026-03-01 10:00:02.5")));
            Some(reason)
        }
    };
    let of_size = |row_bytes_max| Bounds { row_bytes_max, ..Bounds::NONE };
    assert_eq!(judge(false, of_size(text_bytes)), None);
    assert_eq!(judge(false, of_size(text_bytes - 1)), Some(HoldReason::TooLarge));
    assert_eq!(judge(true, Bounds::NONE), Some(HoldReason::Offloaded));
    let kept_since = Some(time("2026-03-01 10:00:02.6"));
    let young = Bounds { kept_since, ..Bounds::NONE };
    assert_eq!(judge(false, young), Some(HoldReason::Expired));
    let settled_before = time("2026-03-01 10:00:02");
    let unsettled = Bounds { settled_before, ..Bounds::NONE };
    assert_eq!(judge(false, unsettled), Some(HoldReason::Running));
}
