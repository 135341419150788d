//! What the world does × what must happen: every fault and switch of the local SLS, and every way
//! in which Postgres or a process ends, at each step of the protocol.
//!
//! Each row of the table is a test. Whatever the first run meets, and whatever it ends with, once
//! the world is well again runs end with 0 and SLS holds every finished row once.
//!
//! The windows are seconds instead of minutes: `SHORT`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::fixture::Fixture;

mod lagging_readers;
mod postgres;
mod rows;
mod sends;

/// A run in which SLS's times are short enough for a test.
pub(crate) const SHORT: &str = "run --batch-kib 64 --signature-life-s 3 --late-s 1 --visible-s 1";

/// Whether the ledger takes SLS to refuse a repeated number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    Proven,
    Unproven,
}

/// One row of the table.
struct Case {
    numbers: Numbers,
    /// Switches of SLS.
    switches: Value,
    /// Orders of faults.
    faults: Vec<Value>,
    /// Arguments besides [`SHORT`].
    arguments: &'static str,
    /// What the first run may end with.
    exits: &'static [i32],
    /// What it tells.
    tells: &'static [&'static str],
}

impl Case {
    /// A first run that ends well whatever it meets.
    fn of(numbers: Numbers) -> Self {
        Self {
            numbers,
            switches: json!({}),
            faults: Vec::new(),
            arguments: "",
            exits: &[0],
            tells: &[],
        }
    }

    /// A world in which the case stands, with 400 runs.
    fn fixture(&self) -> Fixture {
        self.world_of(Fixture::new("dify-1.12"))
    }

    fn world_of(&self, fixture: Fixture) -> Fixture {
        fixture.fill(400, 20);
        fixture.set_proven(self.numbers == Numbers::Proven);
        fixture.sls.switch(&json!({"signature_life_s": 3}));
        fixture.sls.switch(&self.switches);
        self.faults.iter().for_each(|fault| fixture.sls.order(fault));
        fixture
    }

    /// The first run of the case, and then the end that all cases have.
    #[track_caller]
    fn holds(&self) {
        let fixture = self.fixture();
        let arguments = format!("{SHORT} {}", self.arguments);
        let outcome = fixture.tool(arguments.trim()).run();
        let code = outcome.status.code();
        assert!(code.is_some_and(|code| self.exits.contains(&code)), "{outcome}");
        for text in self.tells {
            assert!(outcome.stderr.contains(text), "expected `{text}`\n{outcome}");
        }
        ends_well(&fixture);
    }
}

/// In a world that is well again, runs end with 0 within a minute, and every row is there once.
#[track_caller]
fn ends_well(fixture: &Fixture) {
    fixture.sls.forget_faults();
    fixture.sls.release();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let outcome = fixture.tool(SHORT).run();
        match outcome.status.code() {
            Some(0) => break,
            Some(75) if Instant::now() < deadline => {}
            _ => panic!("it does not end well\n{outcome}"),
        }
    }
    fixture.holds_every_finished_row_once();
    let open =
        fixture.database.psql("SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'");
    assert_eq!(open.trim(), "0", "nothing is left open");
    let tags = "SELECT count(*) FROM sls_backfill.sighting s JOIN sls_backfill.batch b \
                ON b.id = s.batch_id WHERE b.state IN ('split', 'abandoned')";
    assert_eq!(fixture.database.psql(tags).trim(), "0", "nothing of a replaced batch is in SLS");
}

pub(crate) fn fault(kind: &str, nth: u32, times: u32, action: Value) -> Value {
    json!({"kind": kind, "nth": nth, "times": times, "action": action})
}

pub(crate) fn refuse(status: u16, code: &str, message: &str) -> Value {
    json!({"refuse": {"status": status, "code": code, "message": message}})
}
