//! `--html FILE`: a page that needs nothing but itself, says what the JSON says, and stays small.

use std::path::Path;

use crate::harness::fixture::Fixture;

/// The page that a command has written, held to what every page must be.
#[track_caller]
fn page(fixture: &Fixture, folder: &Path, arguments: &str, code: i32) -> String {
    let name = arguments.split(' ').next().unwrap();
    let path = folder.join(format!("{name}-{}.html", arguments.len()));
    fixture.tool(&format!("{arguments} --html {}", path.display())).run().exits(code);
    let text = std::fs::read_to_string(&path).unwrap();
    is_well_formed(&text);
    for outside in ["http://", "https://", "<script", "<link", "@import", "url(", "src="] {
        let rest = text.replace("http://127.0.0.1", "");
        assert!(!rest.contains(outside), "{arguments}: {outside}");
    }
    for needed in ["<!DOCTYPE html>", "prefers-color-scheme: dark", "@media print", "viewport"] {
        assert!(text.contains(needed), "{arguments}: {needed}");
    }
    for (name, value) in fixture.database.env().into_iter().chain(fixture.sls.env()) {
        if name.contains("PASSWORD") || name.contains("SECRET") {
            assert!(!text.contains(&value), "{arguments}: {name} is on the page");
        }
    }
    assert!(text.contains(&format!("dify-sls-backfill {name}")), "the command is on the page");
    text
}

/// Every element that is opened is closed, in its order; quotes and angle brackets are escaped.
#[track_caller]
fn is_well_formed(text: &str) {
    let (mut open, mut rest) = (Vec::new(), text);
    while let Some(begin) = rest.find('<') {
        assert!(!rest[..begin].contains('>') || open.last() == Some(&"style"), "a lonely >");
        let end = begin + rest[begin..].find('>').expect("a tag ends");
        let tag = &rest[begin + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag} at {begin}"),
            None if ["!DOCTYPE", "meta"].contains(&name) => {}
            None => open.push(name),
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn every_result_has_a_page_that_needs_no_network_and_shows_no_secret() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 40);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = page(&fixture, folder, "plan", 0);
    assert!(plan.contains("limit") && plan.contains("<svg"), "{plan}");
    page(&fixture, folder, "run --dry-run", 0);
    fixture.tool("run").run().exits(0);
    let counts = page(&fixture, folder, "verify --level counts", 0);
    assert!(counts.contains("rows in Postgres") && counts.contains("logs in SLS"));
    page(&fixture, folder, "verify --level content", 0);
    let parity = page(&fixture, folder, "verify --level parity", 0);
    assert!(parity.contains("equal"));
    let purge = page(&fixture, folder, "purge --older-than 5d", 0);
    assert!(purge.contains("rows that may go"));
    let report = page(&fixture, folder, "report", 0);
    assert!(report.contains("Throughput by hour") && report.contains("held: running"));
    // A page that cannot be written is no success.
    let nowhere = folder.join("nowhere/page.html");
    fixture.tool(&format!("report --html {}", nowhere.display())).run().exits(70).tells("write ");
    fixture.tool("run --html x.html").run().exits(2).tells("report --html");
}

#[test]
fn differences_are_on_the_page_with_their_ids() {
    let fixture = Fixture::new("dify-1.12");
    fixture.fill(200, 40);
    fixture.tool("run --batch-kib 64").run().exits(0);
    fixture.sent_an_hour_ago();
    let id = fixture
        .database
        .psql("SELECT id FROM workflow_runs WHERE finished_at IS NOT NULL ORDER BY 1 LIMIT 1");
    let id = id.trim();
    fixture.sls.tamper("workflow_execution", &serde_json::json!({"drop_log": {"id": id}}));
    let folder = tempfile::tempdir().unwrap();
    let all = "verify --level parity --runs-per-app 1000 --tables workflow_runs";
    let parity = page(&fixture, folder.path(), all, 4);
    assert!(parity.contains(id) && parity.contains("differs"));
    let counts = page(&fixture, folder.path(), "verify --level counts", 4);
    assert!(counts.contains("days that are not equal"));
    let content = "verify --level content --signature-life-s 1 --late-s 0 --visible-s 0";
    page(&fixture, folder.path(), content, 4);
    let report = page(&fixture, folder.path(), "report", 0);
    assert!(report.contains("findings") && report.contains(id), "{report}");
}
