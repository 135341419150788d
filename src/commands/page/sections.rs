//! Makes sections of what `--output json` prints: figures, charts and tables. Pure.

use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;

use crate::commands::page::chart::{Bar, Chart};

/// So many rows a table has at most.
pub const ROWS_MAX: usize = 500;

/// A part of a page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    pub title: String,
    /// `good`, `bad` or `open`, and a word.
    pub verdict: Option<(&'static str, String)>,
    pub figures: Vec<(String, String)>,
    pub charts: Vec<Chart>,
    pub tables: Vec<Table>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    pub title: String,
    pub head: Vec<String>,
    /// At most [`ROWS_MAX`].
    pub rows: Vec<Vec<String>>,
    /// How many there are.
    pub total: u64,
}

/// The sections of a result: one for all, then one for each of Dify's tables.
pub fn sections(result: &Value) -> Vec<Section> {
    let mut all = Vec::new();
    let together = section("All together", result);
    if together != (Section { title: together.title.clone(), ..Section::default() }) {
        all.push(together);
    }
    for tables in [&result["tables"], &result["plan"]] {
        for (name, table) in tables.as_object().into_iter().flatten() {
            all.push(section(name, table));
        }
    }
    all
}

fn section(title: &str, result: &Value) -> Section {
    let mut section = Section { title: title.to_owned(), ..Section::default() };
    section.verdict = result["verdict"].as_str().map(verdict);
    for (name, value) in result.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("schema_version" | "verdict" | "tables" | "plan" | "prices", _) | (_, Value::Null) => {
            }
            ("days", days) => {
                section.charts.extend(chart(days));
                section.tables.extend(odd_days(days));
            }
            ("hours", hours) => section.charts.extend(throughput(hours)),
            (_, Value::Object(fields)) if fields.values().all(|value| !value.is_object()) => {
                section.figures.extend(
                    fields.iter().map(|(key, value)| figure(&format!("{name}: {key}"), value)),
                );
            }
            (_, Value::Object(fields)) => section.tables.push(by_kind(name, fields)),
            (_, Value::Array(rows)) if rows.iter().all(Value::is_object) => {
                if !rows.is_empty() {
                    let left_out = &result[format!("{name}_left_out")];
                    section.tables.push(listed(name, rows, number(left_out) as u64));
                }
            }
            (_, Value::Array(rows)) => {
                let texts = rows.iter().take(ROWS_MAX).map(|row| text("", row));
                section.notes.extend(texts.map(|text| format!("{}: {text}", words(name))));
                if rows.len() > ROWS_MAX {
                    let all = HumanCount(rows.len() as u64);
                    section.notes.push(format!("{}: {ROWS_MAX} of {all} are told", words(name)));
                }
            }
            (_, value) => section.figures.push(figure(name, value)),
        }
    }
    section
}

fn verdict(word: &str) -> (&'static str, String) {
    match word {
        "equal" => ("good", "equal".to_owned()),
        "differs" => ("bad", "differs".to_owned()),
        word => ("open", words(word)),
    }
}

/// `raw_bytes` in words.
fn words(name: &str) -> String {
    name.replace('_', " ")
}

fn figure(name: &str, value: &Value) -> (String, String) {
    (words(name), text(name, value))
}

/// A value as a person reads it: numbers with commas, sizes with units.
fn text(name: &str, value: &Value) -> String {
    let whole = match value {
        Value::String(text) => text.parse::<u64>().ok(),
        Value::Number(number) => number.as_u64(),
        _ => None,
    };
    // Words of a program.
    let is_word = ["limit", "question", "readers", "kind", "verdict", "quirk"].contains(&name);
    match (whole, value) {
        (None, Value::String(text)) if is_word => words(text),
        (None, Value::Object(fields)) => {
            let field =
                |(key, value): (&String, &Value)| format!("{} {}", words(key), text(key, value));
            fields.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        (Some(bytes), _) if name.ends_with("bytes") => HumanBytes(bytes).to_string(),
        (Some(number), _) => HumanCount(number).to_string(),
        (None, Value::String(text)) => text.clone(),
        (None, Value::Null) => "–".to_owned(),
        (None, Value::Bool(truth)) => if *truth { "yes" } else { "no" }.to_owned(),
        (None, Value::Number(number)) => match number.as_f64() {
            Some(number) => format!("{number:.2}"),
            None => number.to_string(),
        },
        (None, Value::Array(list)) => {
            let shown: Vec<_> = list.iter().take(5).map(|one| text("", one)).collect();
            let more = list.len().saturating_sub(5);
            if more > 0 { format!("{} … {more} more", shown.join(" ")) } else { shown.join(" ") }
        }
    }
}

fn number(value: &Value) -> f64 {
    match value {
        Value::String(text) => text.parse().unwrap_or(0.0),
        other => other.as_f64().unwrap_or(0.0),
    }
}

/// Each day with its name: a list that names it, or an object by day.
fn named_days(days: &Value) -> Vec<(String, &Value)> {
    match days {
        Value::Array(list) => list
            .iter()
            .map(|day| (day["day"].as_str().unwrap_or("never").to_owned(), day))
            .collect(),
        Value::Object(days) => days.iter().map(|(name, day)| (name.clone(), day)).collect(),
        _ => Vec::new(),
    }
}

/// What is told of a day.
#[derive(Clone, Copy)]
enum DayKind {
    Compared,
    Purge,
    Stored,
    Verified,
    Planned,
}

/// Postgres against SLS, or what else a day has.
fn chart(days: &Value) -> Option<Chart> {
    let days = named_days(days);
    let (_, first) = days.first()?;
    let has = |name: &str| first.get(name).is_some();
    let (legend, kind) = if has("postgres") {
        (["rows in Postgres", "logs in SLS"], DayKind::Compared)
    } else if has("proved") {
        (["rows that may go", "rows that stay"], DayKind::Purge)
    } else if has("stored") {
        (["rows read from Postgres", "logs in SLS"], DayKind::Stored)
    } else if has("proved_in_sls") {
        (["rows as sent, in Postgres", "logs as sent, in SLS"], DayKind::Verified)
    } else {
        (["rows", ""], DayKind::Planned)
    };
    let read = |day: &Value| {
        let get = |name: &str| number(&day[name]);
        match kind {
            DayKind::Compared => [get("postgres"), number(&day["sls"]["logs"])],
            DayKind::Purge => [get("proved"), get("not_proved") + get("held") + get("not_kept")],
            DayKind::Stored => [get("read"), get("stored")],
            DayKind::Verified => [get("equal_in_postgres"), get("proved_in_sls")],
            DayKind::Planned => [get("rows"), 0.0],
        }
    };
    // What has not finished has no day.
    let finished = days.iter().filter(|(place, _)| place != "never");
    let bars = finished.map(|(place, day)| Bar { place: place.clone(), values: read(day) });
    Some(Chart {
        title: "By day (UTC)".to_owned(),
        legend: legend.map(str::to_owned),
        bars: bars.collect(),
    })
}

fn throughput(hours: &Value) -> Option<Chart> {
    let hours = hours.as_array().filter(|hours| !hours.is_empty())?;
    let bar =
        |hour: &Value| Bar { place: text("", &hour["hour"]), values: [number(&hour["rows"]), 0.0] };
    Some(Chart {
        title: "Throughput by hour (UTC)".to_owned(),
        legend: ["rows stored".to_owned(), String::new()],
        bars: hours.iter().map(bar).collect(),
    })
}

/// The days that a verification calls other than equal.
fn odd_days(days: &Value) -> Option<Table> {
    let odd: Vec<Value> = named_days(days)
        .into_iter()
        .filter(|(_, day)| day.get("verdict").is_some_and(|verdict| verdict != "equal"))
        .map(|(_, day)| day.clone())
        .collect();
    (!odd.is_empty()).then(|| listed("days that are not equal", &odd, 0))
}

/// A list of objects: their fields are the columns.
fn listed(name: &str, rows: &[Value], left_out: u64) -> Table {
    let mut head: Vec<String> = Vec::new();
    for key in rows.iter().take(ROWS_MAX).filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !head.contains(key) {
            head.push(key.clone());
        }
    }
    let cells = |row: &Value| head.iter().map(|key| text(key, &row[key])).collect();
    Table {
        title: words(name),
        rows: rows.iter().take(ROWS_MAX).map(cells).collect(),
        total: rows.len() as u64 + left_out,
        head: head.iter().map(|key| words(key)).collect(),
    }
}

/// An object of objects: a row for each.
fn by_kind(name: &str, kinds: &serde_json::Map<String, Value>) -> Table {
    let rows: Vec<Value> = kinds
        .iter()
        .map(|(kind, value)| {
            let mut row = serde_json::Map::new();
            row.insert(
                if name == "windows" { "table" } else { "kind" }.to_owned(),
                kind.clone().into(),
            );
            match value {
                Value::Object(fields) => row.extend(fields.clone()),
                value => drop(row.insert("value".to_owned(), value.clone())),
            }
            Value::Object(row)
        })
        .collect();
    listed(name, &rows, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_becomes_figures_charts_and_tables() {
        let result = json!({
            "schema_version": 1, "level": "counts", "tables": {"workflow_runs": {
                "verdict": "differs", "raw_bytes": "2048", "rows": "1234567",
                "held": {"running": "5"},
                "days": [
                    {"day": "2025-01-30", "verdict": "equal", "postgres": "3", "sls": {"logs": "3"}},
                    {"day": "2025-01-31", "verdict": "differs", "postgres": "3", "sls": null},
                ],
            }},
        });
        let all = sections(&result);
        assert_eq!(all.len(), 2);
        let table = &all[1];
        assert_eq!(table.verdict, Some(("bad", "differs".to_owned())));
        let figure = |name: &str| {
            let found = table.figures.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(figure("raw bytes"), Some("2.00 KiB"));
        assert_eq!(figure("rows"), Some("1,234,567"));
        assert_eq!(figure("held: running"), Some("5"));
        assert_eq!(table.charts[0].bars.len(), 2);
        assert_eq!(table.charts[0].bars[0].values, [3.0, 3.0]);
        assert_eq!(table.tables[0].rows.len(), 1);
    }

    #[test]
    fn a_million_differences_are_cut_and_their_number_is_told() {
        let rows: Vec<_> = (0..10_000).map(|nth| json!({"id": nth.to_string()})).collect();
        let result = json!({"differences": rows, "differences_left_out": "990000"});
        let all = sections(&result);
        let table = &all[0].tables[0];
        assert_eq!((table.rows.len(), table.total), (ROWS_MAX, 1_000_000));
        let notes = vec!["a note"; 10_000];
        assert_eq!(sections(&json!({"notes": notes}))[0].notes.len(), ROWS_MAX + 1);
    }

    #[test]
    fn days_are_postgres_against_sls_in_whatever_words_a_result_tells_of_them() {
        let values = |mut day: Value| {
            day["day"] = json!("2026-01-02");
            let all = sections(&json!({"tables": {"workflow_runs": {"days": [day]}}}));
            all[0].charts[0].bars[0].values
        };
        assert_eq!(values(json!({"postgres": "9", "sls": {"logs": "8"}})), [9.0, 8.0]);
        let report = json!({"read": "9", "stored": "7", "held": "2", "in_doubt": "0"});
        assert_eq!(values(report), [9.0, 7.0]);
        let content = json!({"sent": "9", "equal_in_postgres": "6", "proved_in_sls": "5"});
        assert_eq!(values(content), [6.0, 5.0]);
    }
}
