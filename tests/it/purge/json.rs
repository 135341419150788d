//! The JSON of `purge` and `restore` has the fields that docs/purging.md names, and no others.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::purge::{migrated, purge};

/// The fields that the page names under a heading, those in `…` of the first column of its table,
/// by their last part.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/purging.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, behind) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let rows = behind.lines().skip_while(|line| !line.starts_with('|'));
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|field| field.trim_end_matches("[]").rsplit('.').next().unwrap().to_owned())
        .filter(|field| *field != "NAME")
        .collect()
}

/// The names of all fields; those of maps whose keys are no names of fields are left out.
fn fields(json: &Value, maps: &[&str], into: &mut BTreeSet<String>) {
    for (name, value) in json.as_object().into_iter().flatten() {
        into.insert(name.clone());
        if !maps.contains(&name.as_str()) {
            fields(value, maps, into);
        } else if name != "rows_kept" {
            let parts = value.as_object().into_iter().flat_map(|map| map.values());
            parts.for_each(|part| fields(part, maps, into));
        }
    }
}

fn names(stdout: &str, maps: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let last = stdout.trim().lines().last().unwrap();
    let json: Value = serde_json::from_str(last).unwrap();
    assert_eq!(json["schema_version"], 1);
    fields(&json, maps, &mut names);
    names
}

#[test]
fn a_program_finds_the_fields_that_the_page_names() {
    let fixture = migrated();
    let id = fixture.finished("workflow_runs")[1].clone();
    fixture.database.psql(&format!(
        "INSERT INTO workflow_pauses (workflow_id, workflow_run_id, state_object_key, id) \
         VALUES ('{id}', '{id}', 'k', '{id}')"
    ));
    let plan = fixture.tool("purge --older-than 0h --output json").run().exits(0);
    let maps = ["plan", "days", "referring_tables", "purged", "restored", "rows_kept"];
    // A day's fields are those of the total.
    assert_eq!(names(&plan.stdout, &maps), documented("The plan, as JSON:"), "{plan}");
    let purged = purge(&fixture, " --output json").run().exits(0);
    assert_eq!(
        names(&purged.stdout, &maps),
        documented("After `purge --execute`, as a second object:")
    );
    let back = fixture.tool("restore --since 2000-01-01 --output json").run().exits(0);
    assert_eq!(names(&back.stdout, &maps), documented("`restore`, as JSON:"), "{back}");
}
