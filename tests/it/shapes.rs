//! Every shape that Dify's tables ever had, in every key order that their indexes allow.

use crate::harness::world::{TABLES, World};

const SHAPES: [&str; 5] = ["dify-0.6", "dify-0.15", "dify-1.10", "dify-1.12", "dify-newest"];

/// Moves each table in that order where `is_allowed`, else sees it refused and goes without.
fn migrate(world: &World, order: &str, is_allowed: impl Fn(&str) -> bool) {
    for (table, _) in TABLES {
        let ordered = world.tool(&format!("run --tables {table} --key-order {order}")).run();
        if is_allowed(table) {
            ordered.exits(0).tells(&format!("order {order}"));
        } else {
            ordered
                .exits(3)
                .tells(&format!("{table} has no index for the key order {order}"))
                .tells("hint: leave --key-order out");
            world.tool(&format!("run --tables {table}")).run().exits(0);
        }
    }
    world.holds_every_finished_row_once();
}

#[test]
fn every_shape_migrates_by_walk() {
    for shape in SHAPES {
        let world = World::new(shape);
        world.fill(100, 20);
        migrate(&world, "walk", |_| true);
    }
}

#[test]
fn every_shape_with_its_index_migrates_by_time() {
    for shape in SHAPES {
        let world = World::new(shape);
        world.fill(100, 20);
        // Runs have it since 1.11.3, node executions in no version.
        let is_new = matches!(shape, "dify-1.12" | "dify-newest");
        migrate(&world, "time", |table| is_new && table == "workflow_runs");
    }
}

#[test]
fn every_shape_with_its_index_migrates_by_run() {
    for shape in SHAPES {
        let world = World::new(shape);
        world.fill(100, 20);
        let is_new = matches!(shape, "dify-1.12" | "dify-newest");
        migrate(&world, "by-run", |table| is_new && table == "workflow_node_executions");
    }
}

#[test]
fn every_shape_migrates_by_time_once_it_has_the_index_that_the_hint_names() {
    for shape in SHAPES {
        let world = World::new(shape);
        world.fill(100, 20);
        for (table, _) in TABLES {
            world.database.psql(&format!("CREATE INDEX CONCURRENTLY ON {table} (created_at, id)"));
        }
        migrate(&world, "time", |_| true);
    }
}

#[test]
fn an_index_that_does_not_serve_is_not_used() {
    let world = World::new("dify-0.15");
    world.fill(50, 20);
    world.database.psql(
        "CREATE INDEX ON workflow_runs (created_at DESC, id); \
         CREATE INDEX ON workflow_runs (created_at, id) WHERE status = 'succeeded'; \
         CREATE INDEX ON workflow_runs USING brin (created_at, id); \
         CREATE INDEX broken ON workflow_runs (created_at, id); \
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass",
    );
    migrate(&world, "time", |_| false);
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
fn has_strange_texts(world: &World) {
    let logs = world.sls.logs("workflow_execution");
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
    let world = World::new("dify-newest");
    world.fill(50, 20);
    world.database.psql(STRANGE_COLUMNS);
    world.tool("run").run().exits(0).tells("0 differ");
    world.holds_every_finished_row_once();
    has_strange_texts(&world);
}

#[test]
fn the_texts_of_unknown_types_do_not_depend_on_the_servers_settings() {
    let world = World::new("dify-newest");
    world.fill(50, 20);
    world.database.psql(STRANGE_COLUMNS);
    for setting in [
        "timezone = 'Asia/Shanghai'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'iso_8601'",
        "bytea_output = 'escape'",
        "extra_float_digits = -3",
    ] {
        world.database.psql(&format!("ALTER DATABASE {} SET {setting}", world.database.name));
    }
    world.tool("run").run().exits(0).tells("0 differ");
    has_strange_texts(&world);
}

#[test]
fn a_database_upgraded_from_0_6_has_its_columns_in_another_order() {
    let world = World::new("dify-0.6");
    world.fill(100, 20);
    world.database.psql(
        "ALTER TABLE workflow_runs DROP COLUMN sequence_number; \
         ALTER TABLE workflow_runs ADD exceptions_count integer DEFAULT 3; \
         ALTER TABLE workflow_runs ALTER total_tokens TYPE bigint; \
         ALTER TABLE workflow_node_executions ADD node_execution_id varchar(255); \
         UPDATE workflow_node_executions SET node_execution_id = 'x' || id WHERE index = 2; \
         CREATE INDEX ON workflow_runs (created_at, id); \
         CREATE INDEX ON workflow_node_executions (workflow_run_id)",
    );
    world.tool("run").run().exits(0).tells("order time").tells("order by-run");
    world.holds_every_finished_row_once();
    for log in world.sls.logs("workflow_execution") {
        assert_eq!(log.field("exceptions_count"), "3");
        assert!(log.contents.iter().all(|(key, _)| key != "sequence_number"));
    }
    for log in world.sls.logs("workflow_node_execution") {
        let id = log.field("id");
        let expected = if log.field("index") == "2" { format!("x{id}") } else { id.to_owned() };
        assert_eq!(log.field("node_execution_id"), expected);
    }
}

#[test]
fn tokens_of_four_bytes_and_sequence_numbers_arrive() {
    let world = World::new("dify-0.6");
    world.fill(50, 20);
    world
        .database
        .psql("UPDATE workflow_runs SET total_tokens = 2147483647 WHERE total_tokens = 1");
    world.tool("run").run().exits(0);
    for log in world.sls.logs("workflow_execution") {
        let (tokens, number) = (log.field("total_tokens"), log.field("sequence_number"));
        let expected = if number == "1" { "2147483647" } else { number };
        assert_eq!(tokens, expected);
        assert_eq!(log.field("exceptions_count"), "0", "0.6 has no such column");
    }
}

#[test]
fn an_upgrade_of_dify_in_the_middle_of_a_pass_is_refused_by_name() {
    let world = World::new("dify-1.12");
    world.fill(100, 5);
    world.tool("run --max-rows 20").run().exits(75);
    world.database.psql("ALTER TABLE workflow_runs ADD task_id uuid");
    world
        .tool("run")
        .run()
        .exits(3)
        .tells("the open pass of workflow_runs was begun with other settings")
        .tells("column task_id is new")
        .tells("hint: ");
    assert_eq!(world.stored("workflow_execution").len(), 20, "nothing was sent");
    world.database.psql("ALTER TABLE workflow_runs DROP task_id");
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
    // Between two passes an upgrade is nothing special.
    world.database.psql(
        "ALTER TABLE workflow_runs ADD task_id uuid; \
         UPDATE workflow_runs SET status = 'succeeded', task_id = id, \
         finished_at = created_at + interval '3 seconds' WHERE status = 'running'",
    );
    world.tool("run").run().exits(0);
    world.holds_every_finished_row_once();
}
