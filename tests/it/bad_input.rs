//! What is wrong outside of the tool: each case has a text that says what failed, what is safe, and
//! what to type next, and loses nothing. The texts are the files in tests/it/goldens.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::json;

use crate::harness::cluster::{Cluster, PASSWORD};
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::Simulator;
use crate::harness::tool::{Outcome, Tool};
use crate::harness::{DEADLINE, golden, poll};

const RUNS: &str = "workflow_runs";
const NODES: &str = "workflow_node_executions";

/// The id of the `n`th row of a test.
fn id(n: usize) -> String {
    format!("00000000-0000-7000-8000-{n:012}")
}

/// A world where nothing was done yet: not even the ledger is there.
fn untouched() -> Fixture {
    Fixture { database: Database::of_shape("dify-1.12"), sls: Simulator::start() }
}

/// Compares what it told, without what changes from run to run, with a golden.
#[track_caller]
fn check(file: &str, outcomes: &[Outcome]) {
    let text: Vec<_> = outcomes.iter().map(lasting).collect();
    golden::check(file, &text.join("\n"));
}

/// The command, exit code, results, and messages that are odd or wrong.
fn lasting(outcome: &Outcome) -> String {
    let arguments = outcome.command.split_once(' ').map_or("", |(_, arguments)| arguments);
    let code = outcome.status.code().unwrap();
    let mut text = format!("$ dify-sls-backfill {arguments}\n");
    // Times and sizes are not what these texts are about.
    let is_figure = |line: &&str| line.contains("covered: all") || line.contains(" batches, ");
    for line in outcome.stdout.lines().filter(|line| !is_figure(line)) {
        text += line;
        text += "\n";
    }
    let mut is_kept = false;
    for line in outcome.stderr.lines() {
        let is_time = |time: &str| time.len() == 20 && time.ends_with('Z');
        let message = match line.split_once(' ').filter(|(time, _)| is_time(time)) {
            Some((_, message)) => {
                is_kept = message.starts_with(" WARN") || message.starts_with("ERROR");
                message.trim_start()
            }
            None => line,
        };
        if is_kept {
            // Postgres names the line of its own source.
            text += message.split(" at line ").next().unwrap_or_default();
            text += "\n";
        }
    }
    without_numbers(&format!("{text}exit code {code}\n"))
}

/// Ports, names of databases, ids and signatures replaced by words.
fn without_numbers(text: &str) -> String {
    let mut text = text.to_owned();
    for (before, word) in [("127.0.0.1:", "PORT"), ("dify_", "N"), ("localhost:", "PORT")] {
        let mut parts = text.split(before);
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            replaced += before;
            replaced += if rest.len() < part.len() { word } else { "" };
            replaced += rest;
        }
        text = replaced;
    }
    let is_id =
        |word: &str| word.len() >= 24 && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let is_inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut replaced = String::new();
    let mut word = String::new();
    for c in text.chars().chain([' ']) {
        if is_inside(c) {
            word.push(c);
            continue;
        }
        replaced += if is_id(&word) { "ID" } else { &word };
        word.clear();
        replaced.push(c);
    }
    replaced.pop();
    replaced
}

#[test]
fn nobody_listening_is_told() {
    let fixture = Fixture::new("dify-1.12");
    // Port 1 (tcpmux) is reserved; nobody has it.
    check("nobody-listens.txt", &[fixture.tool("run").env("DB_PORT", "1").run().exits(3)]);
}

#[test]
fn a_host_that_only_dockers_network_knows_is_explained() {
    let fixture = untouched();
    for host in ["db_postgres", "db"] {
        let outcome = fixture.tool("run").env("DB_HOST", host).run().exits(3);
        outcome
            .tells(&format!("connect to Postgres at {host}:"))
            .tells(&format!("hint: {host} looks like a name inside Dify's docker network"))
            .tells("DB_HOST=127.0.0.1");
    }
}

#[test]
fn a_wrong_password_is_told_without_telling_it() {
    let fixture = Fixture::new("dify-1.12");
    let secret = "hush-and-wrong";
    let outcomes = ["init", "run", "run --dry-run"].map(|command| {
        let outcome = fixture.tool(command).env("DB_PASSWORD", secret).run().exits(3);
        assert!(!outcome.stderr.contains(secret) && !outcome.stdout.contains(secret), "{outcome}");
        outcome
    });
    check("wrong-password.txt", &outcomes);
    let url = fixture.database.url().replace(PASSWORD, secret);
    let by_url = fixture.tool("run -vv").env("DATABASE_URL", &url).run().exits(3);
    assert!(!by_url.stderr.contains(secret), "{by_url}");
    let ledger = fixture.tool("run").env("SLS_BACKFILL_LEDGER_URL", &url).run().exits(3);
    assert!(!ledger.stderr.contains(secret), "{ledger}");
    check("wrong-password-of-the-ledger.txt", &[ledger]);
}

#[test]
fn a_database_without_difys_tables_is_refused() {
    let fixture = Fixture { database: Database::fresh(), sls: Simulator::start() };
    let commands = ["init", "run", "run --dry-run"];
    check("no-tables.txt", &commands.map(|command| fixture.tool(command).run().exits(3)));
    fixture.database.psql("CREATE TABLE workflow_runs (id uuid PRIMARY KEY, what text)");
    fixture.database.psql("CREATE TABLE workflow_node_executions (LIKE workflow_runs)");
    check("other-tables.txt", &commands.map(|command| fixture.tool(command).run().exits(3)));
    let schemas =
        fixture.database.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sls%'");
    assert_eq!(schemas, "0", "nothing was made");
}

#[test]
fn a_user_who_lacks_a_right_is_told_what_to_grant() {
    let fixture = untouched();
    fixture.fill(50, 5);
    let role = format!("reader_{}", fixture.database.name);
    fixture.database.psql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public \
         TO {role}"
    ));
    let as_reader =
        |tool: Tool| tool.env("DB_USERNAME", role.as_str()).env("DB_PASSWORD", "reader");
    let no_schema = as_reader(fixture.tool("init")).run().exits(3);
    fixture.database.psql(&format!("GRANT CREATE ON DATABASE {} TO {role}", fixture.database.name));
    as_reader(fixture.tool("init")).run().exits(0);
    as_reader(fixture.tool("run")).run().exits(0).tells("0 differ");
    let sent = fixture.stored("workflow_node_execution").len();
    assert_eq!(sent, 196);
    // Who may not read all of a table is told before anything begins.
    fixture.database.psql(&format!(
        "REVOKE SELECT ON workflow_runs FROM {role}; GRANT SELECT (id, status) ON workflow_runs \
         TO {role}"
    ));
    let passes = || fixture.database.psql("SELECT count(*) FROM sls_backfill.pass");
    let before = passes();
    let no_select = as_reader(fixture.tool("run")).run().exits(3);
    assert_eq!(passes(), before);
    fixture.database.psql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    check("missing-rights.txt", &[no_schema, no_select]);
}

#[test]
fn a_wrong_access_key_changes_nothing() {
    let fixture = untouched();
    let wrong = |command: &str, name: &str| {
        fixture.tool(command).env(name, "hush-and-wrong").run().exits(3)
    };
    let outcomes = [
        wrong("init", "ALIYUN_SLS_ACCESS_KEY_ID"),
        wrong("init", "ALIYUN_SLS_ACCESS_KEY_SECRET"),
        wrong("run", "ALIYUN_SLS_ACCESS_KEY_SECRET"),
    ];
    assert!(outcomes.iter().all(|outcome| !outcome.stderr.contains("SECRET=")));
    check("wrong-access-key.txt", &outcomes);
    let schemas =
        fixture.database.psql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'sls%'");
    assert_eq!(schemas, "0", "nothing was made");
}

#[test]
fn a_project_without_init_stops_the_run_before_it_writes() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(20, 5);
    let other = Simulator::start();
    check("no-project.txt", &[fixture.tool("run").envs(other.env()).run().exits(3)]);
    assert_eq!(fixture.database.psql("SELECT count(*) FROM sls_backfill.batch"), "0");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

/// A web server that answers everything with 200 and a page, until the test process ends.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\
                  Connection: close\r\n\r\n<html>welcome</html>",
            );
        }
    });
    port
}

#[test]
fn an_endpoint_that_is_no_sls_counts_as_no_answer() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(20, 5);
    let endpoint = format!("http://127.0.0.1:{}", web_server());
    let outcomes = ["init", "run"]
        .map(|command| fixture.tool(command).env("ALIYUN_SLS_ENDPOINT", &endpoint).run().exits(3));
    check("no-sls.txt", &outcomes);
    assert_eq!(fixture.database.psql("SELECT count(*) FROM sls_backfill.batch"), "0");
    fixture.tool("run").run().exits(0);
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_clock_that_is_off_by_twenty_minutes_works_with_a_warning() {
    for (offset_s, file) in [(1200, "clock-behind.txt"), (-1200, "clock-ahead.txt")] {
        let fixture = untouched();
        fixture.sls.switch(&json!({"clock_offset_s": offset_s}));
        fixture.tool("init").run().exits(0);
        fixture.fill(20, 5);
        let outcome = fixture.tool("run").run().exits(0).tells("0 differ");
        // Whole seconds, of clocks that were not read at the same moment.
        let messages = (1195..1206)
            .fold(lasting(&outcome), |text, s| text.replace(&format!("is {s} s "), "is 1200 s "));
        golden::check(file, &messages);
        fixture.holds_every_finished_row_once();
    }
}

#[test]
fn a_restart_of_postgres_loses_and_doubles_nothing() {
    let cluster = Arc::new(Cluster::start(&[]));
    let database = Database::fresh_in(&cluster).shape("dify-1.12");
    let fixture = Fixture::of(database);
    fixture.fill(3000, 30);
    fixture.slow_down(20);
    let mut running = fixture.tool("run --workers 2 --batch-kib 64").spawn();
    running.wait_for("order time");
    poll("some batches to be stored", DEADLINE, || {
        (fixture.stored("workflow_execution").len() > 300).then_some(())
    });
    cluster.restart();
    let interrupted = running.wait();
    assert!(
        matches!(interrupted.status.code(), Some(0 | 75)),
        "it goes on, or says that it can go on\n{interrupted}"
    );
    assert!(!interrupted.stderr.contains("panicked"), "{interrupted}");
    if interrupted.status.code() == Some(75) {
        // Whose connection is cut first, and while it does what, is chance.
        assert_eq!(interrupted.stderr.matches("ERROR").count(), 1, "{interrupted}");
        let end = lasting(&interrupted);
        let end = end.split_once("nothing is lost").map(|(_, end)| end);
        golden::check("postgres-restarted.txt", &format!("nothing is lost{}", end.unwrap()));
    }
    fixture.sls.forget_faults();
    fixture.tool("run").run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
}

#[test]
fn a_row_with_json_that_is_none_goes_through_unchanged() {
    let fixture = Fixture::new("dify-1.12");
    for table in [RUNS, NODES] {
        fixture.insert(table, json!({"id": id(1), "inputs": "{\"a\": ", "outputs": "None"}));
        fixture.insert(table, json!({"id": id(2)}));
    }
    check("no-json.txt", &[fixture.tool("run").run().exits(0).tells("0 differ")]);
    for logstore in ["workflow_execution", "workflow_node_execution"] {
        let logs = fixture.sls.logs(logstore);
        let log = logs.iter().find(|log| log.field("id") == id(1)).unwrap();
        assert_eq!((log.field("inputs"), log.field("outputs")), ("{\"a\": ", "None"));
    }
    fixture.holds_every_finished_row_once();
}

#[test]
fn bytes_that_are_no_utf_8_hold_their_row_alone() {
    let fixture = Fixture::of(Database::fresh_in_sql_ascii().shape("dify-1.12"));
    for n in 1..=4 {
        fixture.insert(NODES, json!({"id": id(n), "title": "标题"}));
        fixture.insert(RUNS, json!({"id": id(n)}));
    }
    fixture.database.psql(&format!(
        r"UPDATE {NODES} SET inputs = E'{{\x22a\x22: \x22\xff\xfe\x22}}' WHERE id = '{}';
          UPDATE {NODES} SET title = E'\xc4\xe3' WHERE id = '{}';
          UPDATE {NODES} SET status = E'\xc4' WHERE id = '{}'",
        id(1),
        id(2),
        id(3),
    ));
    check("no-utf-8.txt", &[fixture.tool("run").run().exits(0).tells("0 differ")]);
    let invalid = [1, 2, 3].map(|n| (id(n), "invalid".to_owned()));
    assert_eq!(fixture.held(NODES).into_iter().collect::<Vec<_>>(), invalid);
    let logs = fixture.sls.logs("workflow_node_execution");
    assert_eq!(logs.len(), 1);
    assert_eq!((logs[0].field("id"), logs[0].field("title")), (&*id(4), "标题"));
}

#[test]
fn infinite_times_hold_their_row_alone() {
    let fixture = Fixture::new("dify-1.12");
    for table in [RUNS, NODES] {
        fixture.insert(table, json!({"id": id(1), "finished_at": "infinity"}));
        fixture.insert(table, json!({"id": id(2), "created_at": "-infinity"}));
        fixture.insert(table, json!({"id": id(3)}));
    }
    check("infinity.txt", &[fixture.tool("run").run().exits(0).tells("0 differ")]);
    assert_eq!(fixture.stored("workflow_execution"), [id(3)]);
    assert_eq!(fixture.stored("workflow_node_execution"), [id(3)]);
}

#[test]
fn a_row_of_30_mb_is_held_and_stays() {
    let fixture = Fixture::new("dify-1.12");
    for n in 1..=2 {
        fixture.insert(RUNS, json!({"id": id(n)}));
        fixture.insert(NODES, json!({"id": id(n)}));
    }
    fixture.database.psql(&format!(
        "UPDATE {NODES} SET inputs = '\"' || repeat('abcdef', 5000000) || '\"' WHERE id = '{}'",
        id(1)
    ));
    check("too-large.txt", &[fixture.tool("run").run().exits(0).tells("0 differ")]);
    assert_eq!(fixture.stored("workflow_node_execution"), [id(2)]);
}

#[test]
fn an_empty_database_is_done_at_once() {
    let fixture = Fixture::new("dify-newest");
    let run = fixture.tool("run").run().exits(0).tells("nothing new to do");
    check("empty.txt", &[run]);
}

#[test]
fn one_row_is_enough() {
    let fixture = Fixture::new("dify-0.15");
    fixture.insert(RUNS, json!({"id": id(1), "sequence_number": 1}));
    fixture.insert(NODES, json!({"id": id(1)}));
    let first = fixture.tool("run --workers 64 --max-rows 1").run().exits(75);
    assert_eq!(fixture.stored("workflow_execution"), [id(1)]);
    // The budget is spent before anybody has looked whether there is more.
    let second = fixture.tool("run --workers 64 --max-rows 1").run().exits(75);
    let third = fixture.tool("run --workers 64 --max-rows 1").run().exits(0);
    check("one-row.txt", &[first, second, third.tells("nothing new to do")]);
    fixture.holds_every_finished_row_once();
}

#[test]
fn rows_that_are_all_of_one_moment_go_like_any_other() {
    let fixture = Fixture::new("dify-1.12");
    for n in 1..=300 {
        fixture.insert(RUNS, json!({"id": id(n)}));
    }
    fixture.database.psql(&format!(
        "INSERT INTO {NODES} (id, tenant_id, app_id, workflow_id, triggered_from, workflow_run_id, \
         \"index\", node_id, node_type, title, status, created_by_role, created_by, created_at, \
         finished_at) SELECT gen_random_uuid(), tenant_id, app_id, workflow_id, 'workflow-run', \
         id, 1, 'n', 'llm', 'LLM', status, created_by_role, created_by, created_at, finished_at \
         FROM {RUNS}"
    ));
    let first = fixture.tool("run --max-rows 100").run().exits(75);
    let second = fixture.tool("run").run().exits(0).tells("0 differ");
    check("one-moment.txt", &[first, second]);
    fixture.holds_every_finished_row_once();
}
