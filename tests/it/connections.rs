//! How many connections to Postgres a process opens, so that Dify keeps its own.

use std::sync::Arc;
use std::time::Duration;

use crate::harness::cluster::Cluster;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::tool::Running;
use crate::harness::{DEADLINE, poll};

/// Waits for `running` to have ended well; gives the most sessions that it had at any moment. One that
/// the server has not quite ended when the next begins is not meant: it is gone at the next look.
fn sessions_max(fixture: &Fixture, mut running: Running) -> u32 {
    let (mut most, mut before) = (0, 0);
    poll("the run to end", DEADLINE, || {
        let count = fixture.database.psql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dify-sls-backfill' \
             AND datname = current_database()",
        );
        let count: u32 = count.parse().unwrap();
        most = most.max(count.min(before));
        before = count;
        // Each look starts a program, which must not take the processors from the run.
        std::thread::sleep(Duration::from_millis(100));
        running.has_ended().then_some(())
    });
    running.wait().exits(0).tells("0 differ");
    most
}

#[test]
fn a_run_opens_as_many_connections_as_it_says() {
    // One after the other: each has the sessions of a whole run.
    for (flags, connections) in [("", 14), (" --connections 5", 5), (" --connections 2", 2)] {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(600, 20);
        fixture.slow_down(20);
        let run = format!("run --batch-kib 64 --range-rows 200{flags}");
        let most = sessions_max(&fixture, fixture.tool(&run).spawn());
        assert!((1..=connections).contains(&most), "{run}: {most} sessions");
        assert!(connections == 14 || most == connections, "{run}: {most} sessions");
        fixture.holds_every_finished_row_once();
    }
}

#[test]
fn a_server_with_few_connections_left_keeps_most_of_them() {
    let cluster = Arc::new(Cluster::start(&[("max_connections", "30")]));
    let fixture = Fixture::of(Database::fresh_in(&cluster).shape("dify-1.12"));
    fixture.fill(1500, 20);
    fixture.slow_down(20);
    let of_dify: Vec<_> = (0..15).map(|_| cluster.sessions.open()).collect();

    fixture
        .tool("doctor")
        .run()
        .exits(0)
        .prints(" of 27 are free: room for one process with fewer");
    let most = sessions_max(&fixture, fixture.tool("run --batch-kib 64").spawn());
    // 27, less 15, less those of this test: a third for reading, and a third of the rest.
    assert!((2..=7).contains(&most), "{most} sessions");
    fixture.holds_every_finished_row_once();

    let refused = fixture.tool("run --connections 20").run().exits(3);
    let refused = refused.tells("20 connections are asked for, and the server has ");
    refused.tells("nothing was done").tells("or say --connections ");
    fixture.tool("verify").run().exits(0);

    let others: Vec<_> = (0..8).map(|_| cluster.sessions.open()).collect();
    let full = fixture.tool("run").run().exits(3);
    full.tells("connections left, and two of three are for others")
        .tells("hint: wait until others");
    fixture.tool("doctor").run().exits(3).prints("too few for a run beside others");
    drop((of_dify, others));
    fixture.tool("run").run().exits(0);
}

#[test]
fn sixteen_processes_that_begin_at_once_share_the_work() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1500, 20);
    fixture.slow_down(20);
    let run = "run --join --workers 1 --connections 2 --batch-kib 64 --range-rows 100";
    let all: Vec<_> = (0..16).map(|_| fixture.tool(run).spawn()).collect();
    for running in all {
        running.wait().exits(0);
    }
    let of_lanes = "SELECT count(DISTINCT process_id) > 8 FROM sls_backfill.lane";
    assert_eq!(fixture.database.psql(of_lanes), "t");
    fixture.holds_every_finished_row_once();
}
