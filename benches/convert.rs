//! How fast rows become logs, in megabytes of row bytes a second on one core.
//!
//! `cargo bench --bench convert`. Three kinds of node executions of about 4 KB: what Dify writes
//! for Chinese and for English text, and a mix of both with many short values.

#![allow(clippy::print_stdout, reason = "the figures are the result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use dify_sls_backfill::dify::conversion::{Conversion, LogTime, RULES};
use dify_sls_backfill::dify::converter::{Converter, ReadRow, Verdict};
use dify_sls_backfill::dify::eligibility::Bounds;
use dify_sls_backfill::record::table::{Column, ColumnKind, Table};
use dify_sls_backfill::record::timestamp::Timestamp;
use dify_sls_backfill::wire::log_group::LogGroupWriter;

/// About as many as a batch of 2 MiB holds.
const ROWS: usize = 500;
const ROUNDS: usize = 5;
const ROUND_TIME: Duration = Duration::from_millis(400);

type Row = Vec<Option<Vec<u8>>>;

fn main() {
    let columns = columns();
    let conversion = Conversion {
        rules: RULES,
        table: Table::NodeExecutions,
        columns,
        put_graph: true,
        log_time: LogTime::FinishedAt,
    };
    let mut converter = Converter::new(&conversion).expect("the columns are Dify's");
    for (name, payload) in [("chinese", chinese()), ("english", english()), ("mixed", mixed())] {
        let rows: Vec<Row> = (0..ROWS).map(|n| row(n, &payload)).collect();
        let bytes: usize = rows.iter().flatten().flatten().map(Vec::len).sum();
        let best = (0..ROUNDS)
            .map(|_| megabytes_per_s(&mut converter, &rows, bytes))
            .fold(0.0_f64, f64::max);
        println!("{name}: {best:.0} MB/s, rows of {} bytes", bytes / ROWS);
    }
}

/// Converts the rows again and again, each time into an emptied group.
fn megabytes_per_s(converter: &mut Converter, rows: &[Row], bytes: usize) -> f64 {
    let mut group = LogGroupWriter::default();
    let mut cells: Vec<Option<&[u8]>> = Vec::new();
    let (start, mut passes) = (Instant::now(), 0);
    while start.elapsed() < ROUND_TIME {
        group.clear(usize::MAX);
        for row in rows {
            cells.clear();
            cells.extend(row.iter().map(Option::as_deref));
            let row = ReadRow { cells: &cells, is_offloaded: false };
            let verdict = converter.convert(row, &Bounds::NONE, 0, &mut group);
            assert!(matches!(verdict, Verdict::Log(log) if log.not_json == 0));
        }
        black_box(group.bytes());
        passes += 1;
    }
    (passes * bytes) as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// The columns of `workflow_node_executions` since 1.12.
fn columns() -> Vec<Column> {
    const COLUMNS: [(&str, ColumnKind); 23] = [
        ("id", ColumnKind::Uuid),
        ("tenant_id", ColumnKind::Uuid),
        ("app_id", ColumnKind::Uuid),
        ("workflow_id", ColumnKind::Uuid),
        ("triggered_from", ColumnKind::Text),
        ("workflow_run_id", ColumnKind::Uuid),
        ("index", ColumnKind::Int4),
        ("predecessor_node_id", ColumnKind::Text),
        ("node_id", ColumnKind::Text),
        ("node_type", ColumnKind::Text),
        ("title", ColumnKind::Text),
        ("inputs", ColumnKind::Text),
        ("process_data", ColumnKind::Text),
        ("outputs", ColumnKind::Text),
        ("status", ColumnKind::Text),
        ("error", ColumnKind::Text),
        ("elapsed_time", ColumnKind::Float8),
        ("execution_metadata", ColumnKind::Text),
        ("created_at", ColumnKind::Timestamp),
        ("created_by_role", ColumnKind::Text),
        ("created_by", ColumnKind::Uuid),
        ("finished_at", ColumnKind::Timestamp),
        ("node_execution_id", ColumnKind::Text),
    ];
    COLUMNS.map(|(name, kind)| Column { name: name.to_owned(), kind }).into()
}

fn row(number: usize, payload: &[String; 3]) -> Row {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let id = |n: u8| {
        let mut id = [n; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Some(id.to_vec())
    };
    let time =
        |unix_us| Some(Timestamp::from_unix_us(unix_us).to_postgres().to_be_bytes().to_vec());
    let finished_us = 1_772_359_202_500_001 + number as i64 * 1_000_003;
    vec![
        id(1),
        id(2),
        id(3),
        id(4),
        text("workflow-run"),
        id(5),
        Some((number as u32 % 40).to_be_bytes().to_vec()),
        text("1711289136634"),
        text("1711783187487"),
        text("llm"),
        text("大模型 2"),
        text(&payload[0]),
        text(&payload[1]),
        text(&payload[2]),
        text("succeeded"),
        None,
        Some((2.5 + number as f64 / 1e6).to_be_bytes().to_vec()),
        text(r#"{"total_tokens": 18343, "total_price": "0.0012345", "currency": "USD"}"#),
        time(finished_us - 2_500_000),
        text("end_user"),
        id(6),
        time(finished_us),
        text("0199ab00-0000-7000-8000-00000000beef"),
    ]
}

/// Nearly all of it is `\uXXXX`.
fn chinese() -> [String; 3] {
    let text =
        r"\u7528\u6237\u8bf7\u6c42\u7684\u5185\u5bb9\uff1a\u8bf7\u603b\u7ed3\u3002\n".repeat(14);
    [
        format!(r#"{{"query": "{text}"}}"#),
        format!(r#"{{"prompts": [{{"role": "user", "text": "{text}"}}]}}"#),
        format!(r#"{{"text": "{text}", "finish_reason": "stop"}}"#),
    ]
}

/// Long strings with a few short escapes.
fn english() -> [String; 3] {
    let text = r#"Summarise what the user asked for, in \"plain\" words.\n"#.repeat(22);
    [
        format!(r#"{{"query": "{text}"}}"#),
        format!(r#"{{"prompts": [{{"role": "user", "text": "{text}"}}]}}"#),
        format!(r#"{{"text": "{text}", "finish_reason": "stop"}}"#),
    ]
}

/// Many short keys, numbers and strings, some of them escaped.
fn mixed() -> [String; 3] {
    let member = concat!(
        r#"{"id": "a0852838-aa5b-4f89", "score": 0.8712034, "#,
        r#""\u6807\u9898": "\u56fe\u7247 1.png", "#,
        r#""url": "https://dify.example.test/files/1?timestamp=1700000000&sign=jm-0w", "#,
        r#""size": 12345, "tags": ["a", "b", null, true], "#,
        r#""text": "line\n\ttab \ud83d\ude00 and on"}"#,
    );
    let list = [member; 5].join(", ");
    [
        format!(r#"{{"query": "x", "files": [{list}]}}"#),
        format!(r#"{{"usage": {{"files": [{list}]}}}}"#),
        format!(r#"{{"result": [{list}]}}"#),
    ]
}
