//! What is between the tool and Postgres: PgBouncer, replicas, restarts, rights, and plans.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::bouncer::Bouncer;
use crate::harness::cluster::{Cluster, PASSWORD};
use crate::harness::database::Database;
use crate::harness::poll;
use crate::harness::simulator::Simulator;
use crate::harness::tool::Tool;
use crate::harness::world::World;

/// A world where nothing was done yet: not even the ledger is there.
fn untouched(cluster: &Arc<Cluster>) -> World {
    let database = Database::fresh_in(cluster).shape("dify-1.12");
    World { database, sls: Simulator::start() }
}

#[test]
fn all_of_it_works_through_a_pgbouncer_in_transaction_mode() {
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster, 3);
    let world = untouched(&cluster);
    world.fill(2000, 20);
    let tool = |arguments: &str| world.tool(arguments).env("DB_PORT", bouncer.port.to_string());
    tool("init").run().exits(0).prints("ledger    sls_backfill                ready");
    tool("init").run().exits(0);
    world.slow_down(20);
    let mut first = tool("run --workers 8 --batch-kib 64").spawn();
    first.wait_for("order time");
    tool("run").run().exits(6).tells("another run is at work: pid ");
    first.signal("INT");
    first.wait().exits(75);
    world.sls.forget_faults();
    tool("run --workers 8").run().exits(0).tells("0 differ");
    tool("run --workers 8 --key-order walk").run().exits(0).tells("nothing new to do");
    tool("status").run().exits(0);
    world.holds_every_finished_row_once();
}

#[test]
fn the_ledger_is_made_through_a_pgbouncer_by_many_at_once() {
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster, 2);
    for _ in 0..3 {
        let world = untouched(&cluster);
        let status = || world.tool("status").env("DB_PORT", bouncer.port.to_string()).spawn();
        let all = [status(), status(), status(), status()];
        for running in all {
            running.wait().exits(0);
        }
        let applied = world.database.psql(
            "SELECT count(*), bool_and(success), count(DISTINCT version) \
             FROM sls_backfill._sqlx_migrations",
        );
        assert_eq!(applied, "1|t|1");
    }
}

#[test]
fn a_replica_is_read_with_its_ledger_on_the_primary() {
    let primary = Arc::new(Cluster::start(&[]));
    let world = untouched(&primary);
    world.tool("init").run().exits(0);
    let replica = primary.start_replica();
    // Before the first commit reaches it, it cannot say up to when it shows what there is.
    world.fill(200, 20);
    poll("the replica to have it all", Duration::from_secs(20), || {
        let sql = "SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication";
        (world.database.psql(sql) == "t").then_some(())
    });
    let on_replica =
        |arguments: &str| world.tool(arguments).env("DB_PORT", replica.port.to_string());
    on_replica("run").run().exits(3).tells("is a replica").tells("hint: ").tells("--ledger-url");
    let ledger = world.database.url();
    on_replica("run").arg("--ledger-url").arg(&ledger).run().exits(0).tells("0 differ");
    world.holds_every_finished_row_once();
    on_replica("status").arg("--ledger-url").arg(&ledger).run().exits(0);
    on_replica("run --dry-run").run().exits(0).prints("workflow_runs: 200 rows: 196 would go");
}

#[test]
fn a_restart_of_postgres_loses_and_doubles_nothing() {
    let cluster = Arc::new(Cluster::start(&[]));
    let world = untouched(&cluster);
    world.tool("init").run().exits(0);
    world.fill(3000, 30);
    world.slow_down(20);
    let mut running = world.tool("run --workers 2 --batch-kib 64").spawn();
    running.wait_for("order time");
    poll("some batches to be stored", Duration::from_secs(10), || {
        (world.stored("workflow_execution").len() > 300).then_some(())
    });
    cluster.restart();
    let interrupted = running.wait();
    assert!(
        matches!(interrupted.status.code(), Some(0 | 70)),
        "it goes on, or says what is wrong\n{interrupted}"
    );
    if interrupted.status.code() == Some(70) {
        let interrupted = interrupted
            .tells("ERROR")
            .tells("everything that was sent is in the ledger")
            .tells("hint: run the same command again");
        assert!(!interrupted.stderr.contains("panicked"), "{interrupted}");
    }
    world.sls.forget_faults();
    world.tool("run").run().exits(0).tells("0 differ");
    world.holds_every_finished_row_once();
}

#[test]
fn a_wrong_password_is_told_without_telling_it() {
    let world = World::new("dify-1.12");
    let secret = "hush-and-wrong";
    for command in ["init", "run", "run --dry-run"] {
        let outcome = world.tool(command).env("DB_PASSWORD", secret).run().exits(3);
        let outcome = outcome
            .tells("password authentication failed")
            .tells("hint: check DB_HOST, DB_PORT, DB_USERNAME, DB_PASSWORD");
        assert!(!outcome.stderr.contains(secret) && !outcome.stdout.contains(secret), "{outcome}");
    }
    let url = world.database.url().replace(PASSWORD, secret);
    let by_url = world.tool("run -vv").env("DATABASE_URL", &url).run().exits(3);
    assert!(!by_url.stderr.contains(secret), "{by_url}");
    let ledger = world.tool("run -vv").arg("--ledger-url").arg(&url).run().exits(3);
    let ledger = ledger.tells("connect to the ledger").tells("hint: ").tells("--ledger-url");
    assert!(!ledger.stderr.contains(secret), "{ledger}");
}

#[test]
fn nobody_listening_is_told() {
    let world = World::new("dify-1.12");
    // Port 1 (tcpmux) is reserved; nobody has it.
    world
        .tool("run")
        .env("DB_PORT", "1")
        .run()
        .exits(3)
        .tells("connect to Postgres at 127.0.0.1:1")
        .tells("hint: check DB_HOST");
}

#[test]
fn a_database_without_difys_tables_is_refused() {
    let world = World { database: Database::fresh(), sls: Simulator::start() };
    for command in ["init", "run", "run --dry-run"] {
        world
            .tool(command)
            .run()
            .exits(3)
            .tells("has no table workflow_runs")
            .tells("hint: is it Dify's database? check DB_DATABASE");
    }
    world.database.psql("CREATE TABLE workflow_runs (id uuid PRIMARY KEY, what text)");
    world.database.psql("CREATE TABLE workflow_node_executions (LIKE workflow_runs)");
    for command in ["init", "run", "run --dry-run"] {
        world
            .tool(command)
            .run()
            .exits(3)
            .tells("table workflow_runs cannot be converted: column tenant_id is missing")
            .tells("hint: is it Dify's database?");
    }
    let schemas =
        world.database.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sls%'");
    assert_eq!(schemas, "0", "nothing was made");
}

#[test]
fn a_user_that_may_not_make_the_ledger_is_told_what_to_grant() {
    let world = untouched(&Cluster::shared());
    world.fill(50, 5);
    let role = format!("reader_{}", world.database.name);
    world.database.psql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public \
         TO {role}"
    ));
    let as_reader =
        |tool: Tool| tool.env("DB_USERNAME", role.as_str()).env("DB_PASSWORD", "reader");
    as_reader(world.tool("init"))
        .run()
        .exits(3)
        .tells("make the schema sls_backfill")
        .tells("permission denied")
        .tells("hint: ")
        .tells("--ledger-url");
    world.database.psql(&format!("GRANT CREATE ON DATABASE {} TO {role}", world.database.name));
    as_reader(world.tool("init")).run().exits(0);
    as_reader(world.tool("run")).run().exits(0).tells("0 differ");
    let sent = world.stored("workflow_node_execution").len();
    assert_eq!(sent, 196);
    // Who may not read all of a table is told before anything begins.
    world.database.psql(&format!(
        "REVOKE SELECT ON workflow_runs FROM {role}; GRANT SELECT (id, status) ON workflow_runs \
         TO {role}"
    ));
    let passes = || world.database.psql("SELECT count(*) FROM sls_backfill.pass");
    let before = passes();
    as_reader(world.tool("run"))
        .run()
        .exits(3)
        .tells("this user may not read table workflow_runs")
        .tells("hint: GRANT SELECT ON workflow_runs");
    assert_eq!(passes(), before);
    world.database.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

/// The plans that Postgres logged for statements that contain `mark`.
fn plans<'a>(log: &'a str, mark: &str) -> Vec<&'a str> {
    // An entry is a line that begins with a time, and lines that begin with a tab.
    let mut plans: Vec<_> = log
        .split("LOG:  duration:")
        .filter(|entry| entry.contains("plan:") && entry.contains(mark))
        .map(|entry| entry.split_once("plan:").expect("it was just looked for").1)
        .collect();
    plans.iter_mut().for_each(|plan| {
        let end = plan.match_indices('\n').find(|(at, _)| !plan[at + 1..].starts_with('\t'));
        *plan = &plan[..end.map_or(plan.len(), |(at, _)| at)];
    });
    plans
}

/// How many rows a plan sorts at once. An `Incremental Sort`, of the nodes of one run after the
/// other, has another name.
fn rows_sorted(plan: &str) -> u64 {
    let sorts = plan.lines().filter_map(|line| line.split_once("->  Sort  (")).map(|(_, sort)| {
        let rows = sort.split("actual rows=").nth(1).and_then(|rows| rows.split(' ').next());
        rows.map_or(0, |rows| rows.parse().unwrap())
    });
    sorts.max().unwrap_or(0)
}

#[test]
fn pages_are_read_along_an_index_without_a_sort() {
    let cluster = Arc::new(Cluster::start(&[
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
    ]));
    let world = untouched(&cluster);
    world.fill(50_000, 30);
    world.database.psql("CREATE INDEX ON workflow_node_executions (created_at, id)");
    for (order, statements) in [("time", 3), ("by-run", 3), ("walk", 3)] {
        let before = cluster.log().len();
        world
            .tool(&format!("run --dry-run --tables workflow_node_executions --key-order {order}"))
            .run()
            .exits(0)
            .prints("workflow_node_executions: 200,000 rows: 196,000 would go");
        let log = cluster.log()[before..].to_owned();
        let (pages, cuts) = (plans(&log, "AS text_bytes"), plans(&log, "LIMIT 1 OFFSET"));
        assert!(pages.len() >= 200_000 / 4096, "{order}: {} pages", pages.len());
        assert!(cuts.len() >= statements, "{order}: {} cuts", cuts.len());
        for plan in pages.iter().chain(&cuts) {
            assert!(!plan.contains("Seq Scan on workflow"), "{order}: {plan}");
            assert!(!plan.contains("Bitmap") && !plan.contains("Hash "), "{order}: {plan}");
            assert!(rows_sorted(plan) <= 4096, "{order}: {plan}");
        }
    }
}
