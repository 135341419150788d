//! What is between the tool and Postgres: PgBouncer, replicas, restarts, rights, and plans.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::bouncer::Bouncer;
use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;
use crate::harness::simulator::Simulator;

/// A world where nothing was done yet: not even the ledger is there.
fn untouched(cluster: &Arc<Cluster>) -> Fixture {
    let database = Database::fresh_in(cluster).shape("dify-1.12");
    Fixture { database, sls: Simulator::start() }
}

#[test]
fn all_of_it_works_through_a_pgbouncer_in_transaction_mode() {
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster, 3);
    let fixture = untouched(&cluster);
    fixture.fill(2000, 20);
    let tool = |arguments: &str| fixture.tool(arguments).env("DB_PORT", bouncer.port.to_string());
    tool("init").run().exits(0).prints("ledger    sls_backfill                ready");
    tool("init").run().exits(0);
    fixture.slow_down(20);
    let mut first = tool("run --workers 8 --batch-kib 64").spawn();
    first.wait_for("order time");
    tool("run").run().exits(6).tells("another run is at work: pid ");
    first.signal("INT");
    first.wait().exits(75);
    fixture.sls.forget_faults();
    tool("run --workers 8").run().exits(0).tells("0 differ");
    tool("run --workers 8 --key-order walk").run().exits(0).tells("nothing new to do");
    tool("status").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn the_ledger_is_made_through_a_pgbouncer_by_many_at_once() {
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster, 2);
    for _ in 0..3 {
        let fixture = untouched(&cluster);
        let init = || fixture.tool("init").env("DB_PORT", bouncer.port.to_string()).spawn();
        let all = [init(), init(), init(), init()];
        for running in all {
            running.wait().exits(0);
        }
        let applied = fixture.database.psql(
            "SELECT count(*), bool_and(success), count(DISTINCT version) \
             FROM sls_backfill._sqlx_migrations",
        );
        assert_eq!(applied, "1|t|1");
    }
}

#[test]
fn a_replica_is_read_with_its_ledger_on_the_primary() {
    let primary = Arc::new(Cluster::start(&[]));
    let fixture = untouched(&primary);
    fixture.tool("init").run().exits(0);
    let replica = primary.start_replica();
    // Before the first commit reaches it, it cannot say up to when it shows what there is.
    fixture.fill(200, 20);
    poll("the replica to have it all", Duration::from_secs(20), || {
        let sql = "SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication";
        (fixture.database.psql(sql) == "t").then_some(())
    });
    let on_replica =
        |arguments: &str| fixture.tool(arguments).env("DB_PORT", replica.port.to_string());
    on_replica("run").run().exits(3).tells("is a replica").tells("hint: ").tells("--ledger-url");
    let ledger = fixture.database.url();
    on_replica("run").arg("--ledger-url").arg(&ledger).run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
    on_replica("status").arg("--ledger-url").arg(&ledger).run().exits(0);
    on_replica("run --dry-run").run().exits(0).prints("workflow_runs: 200 rows: 196 would be sent");
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
    let fixture = untouched(&cluster);
    fixture.fill(50_000, 30);
    fixture.database.psql("CREATE INDEX ON workflow_node_executions (created_at, id)");
    for (order, statements) in [("time", 3), ("by-run", 3), ("walk", 3)] {
        let before = cluster.log().len();
        fixture
            .tool(&format!("run --dry-run --tables workflow_node_executions --key-order {order}"))
            .run()
            .exits(0)
            .prints("workflow_node_executions: 200,000 rows: 196,000 would be sent");
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
