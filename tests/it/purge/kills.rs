//! A purge that is killed, at each of its steps, in one database and in two. Rows in Postgres and
//! rows that SLS finds are all rows, always; no row goes without a proof; and the next purge goes on.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::at_once;
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::tool::Tool;
use crate::purge::count;
use crate::queries::asking::Asking;

const RUNS: &str = "workflow_runs";
const PURGE: &str = "purge --older-than 0h --execute --yes --tables workflow_runs \
    --lock-timeout-ms 60000 --statement-timeout-ms 60000 --despite-oddities";

/// The advisory lock that the test holds and the steps wait for.
const KEY: i64 = 4713;

/// Where a purge is when it is killed.
enum At {
    /// A request to SLS of that kind is on its way.
    Request(&'static str),
    /// A statement about a row of the source waits for its lock.
    Row,
    /// A trigger waits.
    Trigger { is_source: bool, trigger: &'static str },
}

/// Migrated runs, and where the ledger is.
struct World {
    fixture: Fixture,
    elsewhere: Option<Database>,
    all: BTreeSet<String>,
}

impl World {
    fn new(is_one: bool) -> Self {
        let fixture = Fixture::new("dify-1.12");
        fixture.fill(60, 10);
        let all = fixture.finished(RUNS).into_iter().collect();
        let elsewhere = (!is_one).then(Database::fresh);
        let world = Self { fixture, elsewhere, all };
        world.tool("run --no-probe --tables workflow_runs --batch-kib 64").run().exits(0);
        world
    }

    fn ledger(&self) -> &Database {
        self.elsewhere.as_ref().unwrap_or(&self.fixture.database)
    }

    fn tool(&self, arguments: &str) -> Tool {
        self.fixture.tool(arguments).env("SLS_BACKFILL_LEDGER_URL", self.ledger().url())
    }

    /// Kills a purge at that place, and waits until nothing of it is left in either database.
    fn kill_at(&self, at: &At) {
        let (source, ledger) = (&self.fixture.database, self.ledger());
        match at {
            At::Request(kind) => {
                let hold = json!({"kind": kind, "nth": 1, "times": 1, "action": "hold"});
                self.fixture.sls.order(&hold);
                let running = self.tool(PURGE).spawn();
                self.fixture.sls.wait_until("held", 1);
                running.kill();
                self.fixture.sls.release();
                self.fixture.sls.forget_faults();
            }
            At::Row => {
                let row = source.hold_row(RUNS, self.all.first().unwrap());
                let running = self.tool(PURGE).spawn();
                let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = \
                    current_database() AND wait_event_type = 'Lock'";
                source.wait_until(waiting, "t");
                running.kill();
                drop(row);
            }
            At::Trigger { is_source, trigger } => {
                let database = if *is_source { source } else { ledger };
                database.psql(&format!(
                    "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                     PERFORM pg_advisory_xact_lock({KEY}); \
                     RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END; END $$; {trigger}"
                ));
                let lock = database.hold_lock(KEY);
                let running = self.tool(PURGE).spawn();
                database.wait_for_a_waiting_lock();
                running.kill();
                drop(lock);
                let nobody = "SELECT count(*) FROM pg_stat_activity WHERE datname = \
                    current_database() AND application_name = 'dify-sls-backfill'";
                database.wait_until(nobody, "0");
                database.psql("DROP FUNCTION hold CASCADE");
            }
        }
        let nobody = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND application_name = 'dify-sls-backfill'";
        source.wait_until(nobody, "0");
        ledger.wait_until(nobody, "0");
    }

    /// Ids of the finished runs that are in Postgres.
    fn in_postgres(&self) -> BTreeSet<String> {
        self.fixture.finished(RUNS).into_iter().collect()
    }

    /// No row is lost: it is in Postgres, or SLS's search finds it.
    #[track_caller]
    fn loses_nothing(&self, step: &str) {
        let sql = "* | SELECT id FROM workflow_execution LIMIT 1000";
        let found = Asking(&self.fixture.sls).sql("workflow_execution", sql);
        let mut all: BTreeSet<_> = found.iter().map(|row| row["id"].clone()).collect();
        all.extend(self.in_postgres());
        assert_eq!(all, self.all, "{step}");
    }

    /// The marks of the ledger are those of rows that went, and the next purge has nothing to do.
    #[track_caller]
    fn goes_on(&self, step: &str) {
        self.tool(PURGE).run().exits(0);
        assert_eq!(count(&self.fixture.database, RUNS), 1, "{step}: one has not finished");
        let marks = "SELECT sum(purged_rows), sum(purged_gone), sum(purged_changed), \
            count(*) FILTER (WHERE state <> 'purged') FROM sls_backfill.batch";
        let wanted = format!("{}|0|0|0", self.all.len());
        assert_eq!(self.ledger().psql(marks), wanted, "{step}");
        self.tool("status").run().exits(0);
        self.loses_nothing(step);
        self.tool("verify --level counts --tables workflow_runs").run().exits(0);
    }
}

const BOTH: [(&str, At); 3] = [
    ("while SLS counts the days", At::Request("search")),
    ("while the batch is pulled", At::Request("pull")),
    ("while a row's lock is waited for", At::Row),
];

/// At the end of a transaction, a client that is gone changes nothing any more: it commits.
const ONE: [(&str, At); 3] = [
    (
        "before rows are deleted",
        At::Trigger {
            is_source: true,
            trigger: "CREATE TRIGGER hold BEFORE DELETE ON workflow_runs FOR EACH STATEMENT \
                EXECUTE FUNCTION hold()",
        },
    ),
    (
        "when rows are deleted and marks are not made",
        At::Trigger {
            is_source: false,
            trigger: "CREATE TRIGGER hold BEFORE UPDATE ON sls_backfill.batch_rows FOR EACH ROW \
                EXECUTE FUNCTION hold()",
        },
    ),
    (
        "in the commit of both",
        At::Trigger {
            is_source: false,
            trigger: "CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON sls_backfill.batch \
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()",
        },
    ),
];

const TWO: [(&str, At); 6] = [
    (
        "before rows are marked",
        At::Trigger {
            is_source: false,
            trigger: "CREATE TRIGGER hold BEFORE UPDATE ON sls_backfill.batch FOR EACH ROW \
                WHEN (NEW.state = 'purging') EXECUTE FUNCTION hold()",
        },
    ),
    (
        "in the commit of marks",
        At::Trigger {
            is_source: false,
            trigger: "CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON sls_backfill.batch \
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.state = 'purging') \
                EXECUTE FUNCTION hold()",
        },
    ),
    (
        "when rows are marked and not deleted",
        At::Trigger {
            is_source: true,
            trigger: "CREATE TRIGGER hold BEFORE DELETE ON workflow_runs FOR EACH STATEMENT \
                EXECUTE FUNCTION hold()",
        },
    ),
    (
        "in the commit of the deletion",
        At::Trigger {
            is_source: true,
            trigger: "CREATE CONSTRAINT TRIGGER hold AFTER DELETE ON workflow_runs \
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()",
        },
    ),
    (
        "when rows are deleted and their marks not true",
        At::Trigger {
            is_source: false,
            trigger: "CREATE TRIGGER hold BEFORE UPDATE ON sls_backfill.batch FOR EACH ROW \
                WHEN (OLD.state = 'purging') EXECUTE FUNCTION hold()",
        },
    ),
    (
        "in the commit of the marks that are true",
        At::Trigger {
            is_source: false,
            trigger: "CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON sls_backfill.batch \
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (OLD.state = 'purging') \
                EXECUTE FUNCTION hold()",
        },
    ),
];

fn killed(is_one: bool, steps: &[(&str, At)]) {
    at_once(steps, |(step, at)| {
        let world = World::new(is_one);
        world.kill_at(at);
        world.loses_nothing(step);
        world.goes_on(step);
    });
}

#[test]
fn killed_at_any_step_in_one_database_it_goes_on() {
    killed(true, &BOTH);
    killed(true, &ONE);
}

#[test]
fn killed_at_any_step_in_two_databases_it_goes_on() {
    killed(false, &BOTH);
    killed(false, &TWO);
}

#[test]
fn what_was_marked_before_a_kill_needs_a_proof_of_its_own() {
    let world = World::new(false);
    let [_, _, (_, marked_and_not_deleted), ..] = &TWO;
    world.kill_at(marked_and_not_deleted);
    let purging = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'purging'";
    assert_ne!(world.ledger().psql(purging), "0");
    let before = world.in_postgres();
    assert_eq!(before, world.all);
    // Meanwhile SLS loses a log, which makes its batch another one.
    let id = before.first().unwrap();
    world.fixture.sls.tamper("workflow_execution", &json!({"drop_log": {"id": id}}));
    world.tool(PURGE).run().exits(4);
    assert!(world.in_postgres().contains(id));
}
