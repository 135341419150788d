//! What a person, a log file and a program see of a run.

use serde_json::{Value, json};

use crate::harness::fixture::Fixture;
use crate::harness::tool::{Running, Tool};
use crate::harness::{DEADLINE, poll};

/// A run that takes a few seconds where SLS answers slowly.
const SLOW_RUN: &str = "run --workers 2 --batch-kib 64";

#[test]
fn without_a_terminal_progress_is_a_line_now_and_then() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1000, 10);
    fixture.slow_down(100);
    let mut running = fixture.tool(&format!("{SLOW_RUN} --progress-every-s 1")).spawn();
    let line = running.wait_for("workflow_runs: ");
    assert!(line.contains("pass 1"), "{line}");
    running.wait_for(" rows/s, ");
    let outcome = running.wait().exits(0).tells(" of about 1,000 rows, ").tells(" left");
    assert!(!outcome.stderr.contains(['\x1b', '\r']), "{outcome}");
}

#[test]
fn a_program_gets_the_same_as_events() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(150, 10);
    let outcome = fixture
        .tool(&format!("{SLOW_RUN} --progress-every-s 1 --log-format json --rows-per-s 100"))
        .run()
        .exits(0);
    let events: Vec<Value> =
        outcome.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let progress: Vec<_> = events
        .iter()
        .map(|event| &event["fields"])
        .filter(|fields| fields["message"] == "progress")
        .collect();
    let nodes: Vec<_> = progress
        .iter()
        .filter(|fields| fields["table"] == "workflow_node_executions")
        .map(|fields| fields["rows"].as_u64().unwrap())
        .collect();
    assert!(nodes.len() > 2 && nodes.is_sorted() && nodes[0] < 588, "{nodes:?}");
    assert!(progress.iter().any(|fields| fields["waiting"] == "--rows-per-s"), "{outcome}");
    for name in ["rows_expected", "rows_sent", "raw_bytes", "bytes_per_s", "rows_held"] {
        assert!(progress.iter().all(|fields| fields[name].is_u64()), "{name}: {outcome}");
    }
}

#[test]
fn a_quiet_run_says_nothing() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 10);
    let outcome = fixture.tool("run -q --progress-every-s 1 --rows-per-s 300").run().exits(0);
    assert_eq!(outcome.stderr, "");
    let on_terminal = Terminal::start(&fixture, "run -q").wait(0);
    assert!(!on_terminal.contains("INFO") && !on_terminal.contains("rows/s"), "{on_terminal}");
}

#[test]
fn a_person_sees_a_bar_that_messages_do_not_tear() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(150, 10);
    let screen = Terminal::start(&fixture, &format!("{SLOW_RUN} --rows-per-s 100 -v")).wait(0);
    assert!(screen.contains("workflow_node_executions [="), "{screen}");
    assert!(screen.contains(" of about 600 rows"), "{screen}");
    assert!(screen.contains("waiting: --rows-per-s"), "{screen}");
    let plain = without_escapes(&screen);
    let messages: Vec<_> = plain.lines().filter(|line| line.contains(" INFO ")).collect();
    assert!(messages.len() > 8, "{screen}");
    for message in messages {
        // A carriage return begins a line anew.
        let message = message.rsplit('\r').find(|part| !part.trim().is_empty()).unwrap();
        assert!(message.starts_with("20"), "torn: {message:?}\n{screen:?}");
        assert!(!message.contains("[="), "torn: {message:?}");
    }
}

#[test]
fn a_verification_shows_a_bar_and_the_time_that_is_left() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(600, 10);
    fixture.tool("run --batch-kib 64").run().exits(0);
    let slow = json!({"kind": "pull", "nth": 1, "times": 1_000_000, "action": {"delay_ms": 250}});
    fixture.sls.order(&slow);
    let verify = "verify --level content --tables workflow_runs";
    let screen = Terminal::start(&fixture, verify).wait(0);
    assert!(screen.contains("workflow_runs [="), "{screen}");
    assert!(screen.contains(" left"), "{screen}");
    let lines = fixture.tool(&format!("{verify} --progress-every-s 1")).run().exits(0);
    lines.tells("workflow_runs: ").tells(" left");
}

#[test]
fn ctrl_c_under_a_bar_finishes_what_is_in_flight_and_a_second_one_does_not() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1000, 10);
    fixture.slow_down(50);
    let mut terminal = Terminal::start(&fixture, SLOW_RUN);
    terminal.wait_for("workflow_runs [=");
    terminal.interrupt();
    let screen = terminal.wait(75);
    assert!(screen.contains("stopping: what is in flight is finished first"), "{screen}");
    assert!(screen.contains("hint: run the same command again to continue"), "{screen}");
    let open = "SELECT count(*) FROM sls_backfill.batch WHERE state = 'intent'";
    assert_eq!(fixture.database.psql(open).trim(), "0", "nothing is left in doubt");

    fixture.sls.forget_faults();
    fixture.sls.order(&json!({"kind": "put", "times": 100, "action": "hold"}));
    let mut terminal = Terminal::start(&fixture, SLOW_RUN);
    // All rows are one range, which one worker owns.
    fixture.sls.wait_until("held", 1);
    terminal.interrupt();
    terminal.wait_for("stopping: ");
    terminal.interrupt();
    let screen = terminal.wait(75);
    assert!(screen.contains("stopped at once; the next run finds out"), "{screen}");
    fixture.sls.forget_faults();
    fixture.sls.release();
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

/// The tool on a terminal of its own: `script` makes one, and writes down what is shown.
struct Terminal {
    script: Running,
}

impl Terminal {
    fn start(fixture: &Fixture, arguments: &str) -> Self {
        let tool = env!("CARGO_BIN_EXE_dify-sls-backfill");
        let command = format!("stty cols 120 rows 40; exec {tool} {arguments}");
        let script = Tool::other("script", ["-qefc", &command, "/dev/null"])
            .env("TERM", "xterm")
            .envs(fixture.database.env())
            .envs(fixture.sls.env())
            .spawn();
        Self { script }
    }

    fn wait_for(&mut self, text: &str) {
        poll(text, DEADLINE, || self.script.stdout().contains(text).then_some(()));
    }

    /// What Ctrl-C does.
    fn interrupt(&self) {
        let id = self.script.id().to_string();
        let status = std::process::Command::new("pkill").args(["-INT", "-P", &id]).status();
        assert!(status.unwrap().success(), "script has no child");
    }

    /// All that was shown.
    #[track_caller]
    fn wait(self, code: i32) -> String {
        self.script.wait().exits(code).stdout
    }
}

/// The text without the sequences that colour it and move the cursor.
fn without_escapes(screen: &str) -> String {
    let mut text = String::new();
    let mut chars = screen.chars();
    while let Some(char) = chars.next() {
        if char != '\x1b' {
            text.push(char);
        } else if chars.next() == Some('[') {
            // Parameters, then one letter.
            chars.find(|char| char.is_ascii_alphabetic());
        }
    }
    text
}

#[test]
fn a_table_that_was_never_analysed_has_a_total_and_a_time_left_on_the_first_run() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(1000, 20);
    fixture.database.psql(
        "UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname IN \
         ('workflow_runs', 'workflow_node_executions')",
    );
    fixture.slow_down(300);
    let run = "run --tables workflow_runs --batch-kib 64 --workers 1 --progress-every-s 1";
    let outcome = fixture.tool(run).run().exits(0);
    let outcome = outcome.tells(" of about 1,000 rows, ").tells(" left").tells("SLS keeps rows of");
    assert!(!outcome.stderr.contains("go first"), "the canary tells one line: {outcome}");
}
