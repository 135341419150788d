//! Every shape that Dify's tables ever had, in every key order that their indexes allow.

use crate::harness::fixture::{Fixture, TABLES};

const SHAPES: [&str; 5] = ["dify-0.6", "dify-0.15", "dify-1.10", "dify-1.12", "dify-newest"];

/// Moves each table in that order where `is_allowed`, else sees it refused and goes without.
fn migrate(fixture: &Fixture, order: &str, is_allowed: impl Fn(&str) -> bool) {
    for (table, _) in TABLES {
        let ordered = fixture.tool(&format!("run --tables {table} --key-order {order}")).run();
        if is_allowed(table) {
            ordered.exits(0).tells(&format!("order {order}"));
        } else {
            ordered
                .exits(3)
                .tells(&format!("{table} has no index for the key order {order}"))
                .tells("hint: leave --key-order out");
            fixture.tool(&format!("run --tables {table}")).run().exits(0);
        }
    }
    fixture.holds_every_finished_row_once();
}

#[test]
fn every_shape_migrates_by_walk() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape);
        fixture.fill(100, 20);
        migrate(&fixture, "walk", |_| true);
    }
}

#[test]
fn every_shape_with_its_index_migrates_by_time() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape);
        fixture.fill(100, 20);
        // Runs have it since 1.11.3, node executions in no version.
        let is_new = matches!(shape, "dify-1.12" | "dify-newest");
        migrate(&fixture, "time", |table| is_new && table == "workflow_runs");
    }
}

#[test]
fn every_shape_with_its_index_migrates_by_run() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape);
        fixture.fill(100, 20);
        let is_new = matches!(shape, "dify-1.12" | "dify-newest");
        migrate(&fixture, "by-run", |table| is_new && table == "workflow_node_executions");
    }
}

#[test]
fn every_shape_migrates_by_time_once_it_has_the_index_that_the_hint_names() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape);
        fixture.fill(100, 20);
        for (table, _) in TABLES {
            fixture
                .database
                .psql(&format!("CREATE INDEX CONCURRENTLY ON {table} (created_at, id)"));
        }
        migrate(&fixture, "time", |_| true);
    }
}

#[test]
fn an_index_that_does_not_serve_is_not_used() {
    let fixture = Fixture::new("dify-0.15");
    fixture.fill(50, 20);
    fixture.database.psql(
        "CREATE INDEX ON workflow_runs (created_at DESC, id); \
         CREATE INDEX ON workflow_runs (created_at, id) WHERE status = 'succeeded'; \
         CREATE INDEX ON workflow_runs USING brin (created_at, id); \
         CREATE INDEX broken ON workflow_runs (created_at, id); \
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass",
    );
    migrate(&fixture, "time", |_| false);
}

/// Columns that Dify does not have, of types that the tool does not know, half of them NULL.
const STRANGE_COLUMNS: &str = "\
    CREATE TYPE mood AS ENUM ('glad', 'sad'); \
    ALTER TABLE workflow_runs ADD x_jsonb jsonb, ADD x_numeric numeric, ADD x_boolean boolean, \
      ADD x_text text, ADD x_timestamptz timestamptz, ADD x_enum mood, ADD x_real real, \
      ADD x_bytea bytea, ADD x_interval interval, ADD \"x \"\"quoted\" date; \
    UPDATE workflow_runs SET x_jsonb = '{\"b\": [1, null]}', \
      x_numeric = 12345678901234567890.0123, x_boolean = true, x_text = '', \
      x_timestamptz = '2024-01-02 03:04:05.6+08', x_enum = 'sad', x_real = 0.1, \
      x_bytea = '\\x00ff', x_interval = '1 day 2 hours', \"x \"\"quoted\" = '2024-02-01' \
      WHERE total_tokens % 2 = 0";

const STRANGE_TEXTS: [(&str, &str); 10] = [
    ("x_jsonb", "{\"b\": [1, null]}"),
    ("x_numeric", "12345678901234567890.0123"),
    ("x_boolean", "true"),
    ("x_text", ""),
    ("x_timestamptz", "2024-01-01 19:04:05.6+00"),
    ("x_enum", "sad"),
    ("x_real", "0.1"),
    ("x_bytea", "\\x00ff"),
    ("x_interval", "1 day 02:00:00"),
    ("x \"quoted", "2024-02-01"),
];

#[track_caller]
fn has_strange_texts(fixture: &Fixture) {
    let logs = fixture.sls.logs("workflow_execution");
    for log in &logs {
        let is_set = log.field("total_tokens").parse::<u64>().unwrap().is_multiple_of(2);
        for (column, text) in STRANGE_TEXTS {
            if is_set {
                assert_eq!(log.field(column), text, "{column}");
            } else {
                assert!(log.contents.iter().all(|(key, _)| key != column), "{column} is NULL");
            }
        }
    }
    assert!(!logs.is_empty());
}

#[test]
fn columns_that_nobody_knows_arrive_under_their_own_names() {
    let fixture = Fixture::new("dify-newest");
    fixture.fill(50, 20);
    fixture.database.psql(STRANGE_COLUMNS);
    fixture.tool("run").run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
    has_strange_texts(&fixture);
}

#[test]
fn the_texts_of_unknown_types_do_not_depend_on_the_servers_settings() {
    let fixture = Fixture::new("dify-newest");
    fixture.fill(50, 20);
    fixture.database.psql(STRANGE_COLUMNS);
    for setting in [
        "timezone = 'Asia/Shanghai'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -3",
    ] {
        fixture.database.psql(&format!("ALTER DATABASE {} SET {setting}", fixture.database.name));
    }
    fixture.tool("run").run().exits(0).tells("0 differ");
    has_strange_texts(&fixture);
}

#[test]
fn a_database_upgraded_from_0_6_has_its_columns_in_another_order() {
    let fixture = Fixture::new("dify-0.6");
    fixture.fill(100, 20);
    fixture.database.psql(
        "ALTER TABLE workflow_runs DROP COLUMN sequence_number; \
         ALTER TABLE workflow_runs ADD exceptions_count integer DEFAULT 3; \
         ALTER TABLE workflow_runs ALTER total_tokens TYPE bigint; \
         ALTER TABLE workflow_node_executions ADD node_execution_id varchar(255); \
         UPDATE workflow_node_executions SET node_execution_id = 'x' || id WHERE index = 2; \
         CREATE INDEX ON workflow_runs (created_at, id); \
         CREATE INDEX ON workflow_node_executions (workflow_run_id)",
    );
    fixture.tool("run").run().exits(0).tells("order time").tells("order by-run");
    fixture.holds_every_finished_row_once();
    for log in fixture.sls.logs("workflow_execution") {
        assert_eq!(log.field("exceptions_count"), "3");
        assert!(log.contents.iter().all(|(key, _)| key != "sequence_number"));
    }
    for log in fixture.sls.logs("workflow_node_execution") {
        let id = log.field("id");
        let expected = if log.field("index") == "2" { format!("x{id}") } else { id.to_owned() };
        assert_eq!(log.field("node_execution_id"), expected);
    }
}

#[test]
fn tokens_of_four_bytes_and_sequence_numbers_arrive() {
    let fixture = Fixture::new("dify-0.6");
    fixture.fill(50, 20);
    fixture
        .database
        .psql("UPDATE workflow_runs SET total_tokens = 2147483647 WHERE total_tokens = 1");
    fixture.tool("run").run().exits(0);
    for log in fixture.sls.logs("workflow_execution") {
        let (tokens, number) = (log.field("total_tokens"), log.field("sequence_number"));
        let expected = if number == "1" { "2147483647" } else { number };
        assert_eq!(tokens, expected);
        assert_eq!(log.field("exceptions_count"), "0", "0.6 has no such column");
    }
}

#[test]
fn an_upgrade_of_dify_in_the_middle_of_a_pass_is_refused_by_name() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(100, 5);
    fixture.tool("run --max-rows 20").run().exits(75);
    fixture.database.psql("ALTER TABLE workflow_runs ADD task_id uuid");
    fixture
        .tool("run")
        .run()
        .exits(3)
        .tells("the open pass of workflow_runs was begun with other settings")
        .tells("column task_id is new")
        .tells("hint: ");
    assert_eq!(fixture.stored("workflow_execution").len(), 20, "nothing was sent");
    fixture.database.psql("ALTER TABLE workflow_runs DROP task_id");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
    // Between two passes an upgrade is nothing special.
    fixture.database.psql(
        "ALTER TABLE workflow_runs ADD task_id uuid; \
         UPDATE workflow_runs SET status = 'succeeded', task_id = id, \
         finished_at = created_at + interval '3 seconds' WHERE status = 'running'",
    );
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}
