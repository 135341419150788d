//! Compares numbers and rows of both sides. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::dify::json::Transcoder;
use crate::pipeline::verify::parity::finding::{Asked, Findings, Quirk};

/// A row of an answer.
pub type Row = BTreeMap<String, String>;

/// By how much SLS may show more than Postgres.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slack {
    /// Rows that were purged.
    pub purged: u64,
    /// Dify's own logs.
    pub own_logs: u64,
}

impl Slack {
    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// How a number may be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows: as many more as the slack has.
    Rows,
    /// A sum over rows: whatever more, if there is slack.
    Sum,
    /// A mean, with two digits behind the point: nothing can be said if there is slack.
    Mean,
}

/// Compares two numbers of the same place; one that is not there is 0.
pub fn numbers(
    findings: &mut Findings,
    asked: &Asked<'_>,
    (place, what): (&str, &str),
    kind: Kind,
    (postgres, sls): (Option<f64>, Option<f64>),
    slack: Slack,
) {
    findings.answers += 1;
    let (a, b) = (postgres.unwrap_or(0.0), sls.unwrap_or(0.0));
    let is_equal = match kind {
        // Newest readers round to two digits, in their own way.
        Kind::Mean => (a - b).abs() <= 0.005_000_1,
        Kind::Rows | Kind::Sum => a == b,
    };
    if is_equal {
        return;
    }
    let is_explained = !slack.is_none()
        && match kind {
            Kind::Mean => true,
            Kind::Sum => b > a,
            Kind::Rows => b > a && b - a <= (slack.purged + slack.own_logs) as f64,
        };
    if !is_explained {
        let text = |number: Option<f64>| number.map(number_text);
        findings.push(asked.finding(place, what, text(postgres), text(sls)));
    } else if slack.own_logs > 0 {
        findings.quirk(Quirk::OwnLogs, 1);
    } else {
        findings.bounded += 1;
    }
}

fn number_text(number: f64) -> String {
    match number.fract() == 0.0 {
        true => format!("{number:.0}"),
        false => format!("{number:.2}"),
    }
}

/// What is left out when rows are compared, and how long a text SQL shows.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// Whether a graph was written at all.
    pub has_graph: bool,
    /// Bytes of a text that SQL shows; `None`: the answer is not SQL's.
    pub text_bytes_max: Option<usize>,
}

/// Compares a row of SLS with the same row as Postgres has it, field by field.
pub fn row(findings: &mut Findings, asked: &Asked<'_>, fields: Fields, postgres: &Row, sls: &Row) {
    findings.answers += 1;
    let id = postgres.get("id").map_or("", String::as_str);
    for (name, wanted) in postgres {
        if name == "graph" && !fields.has_graph {
            continue;
        }
        let Some(got) = sls.get(name) else {
            findings.push(asked.finding(id, name, Some(short(wanted)), None));
            continue;
        };
        match text(name, wanted, got, fields.text_bytes_max) {
            Same::Yes => {}
            Same::Cut => findings.quirk(Quirk::TextCut, 1),
            Same::No => {
                let (wanted, got) = (Some(short(wanted)), Some(short(got)));
                findings.push(asked.finding(id, name, wanted, got));
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Same {
    Yes,
    /// As far as SQL shows it.
    Cut,
    No,
}

fn text(name: &str, wanted: &str, got: &str, text_bytes_max: Option<usize>) -> Same {
    // SLS may take an empty text for none.
    if wanted == got || wanted.is_empty() && got == "null" {
        return Same::Yes;
    }
    if name == "elapsed_time"
        && let (Ok(wanted), Ok(got)) = (wanted.parse::<f64>(), got.parse::<f64>())
    {
        return if (wanted - got).abs() <= 1e-9 * wanted.abs() { Same::Yes } else { Same::No };
    }
    let mut written = Vec::new();
    // What is not JSON stays as it is.
    Transcoder::default().transcode(wanted, &mut written);
    if written == got.as_bytes() {
        return Same::Yes;
    }
    // Behind the last whole character within the limit.
    let is_cut = text_bytes_max
        .is_some_and(|max| written.len() > max && got.len() <= max && got.len() + 3 >= max);
    if is_cut && written.starts_with(got.as_bytes()) { Same::Cut } else { Same::No }
}

/// No row's content belongs into a report: long texts are told by their length.
fn short(text: &str) -> String {
    match text.len() {
        0 => "(empty)".to_owned(),
        1..=40 if !text.starts_with(['{', '[']) => text.to_owned(),
        bytes => format!("({bytes} bytes)"),
    }
}

/// Of the nodes of a run those that the shipped trace shows, by `node_execution_id`: of rows that
/// share one the last, or several that are as good.
pub fn newest_of_each(nodes: &[Row]) -> BTreeMap<&str, Vec<&Row>> {
    let rank = |row: &Row| {
        let get = |name: &str| row.get(name).cloned().unwrap_or_default();
        (get("finished_at"), get("status") != "retry")
    };
    let mut newest: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in nodes {
        let id = row.get("node_execution_id").map_or("", String::as_str);
        let best = newest.entry(id).or_default();
        match best.first().map(|first| rank(row).cmp(&rank(first))) {
            None | Some(std::cmp::Ordering::Equal) => best.push(row),
            Some(std::cmp::Ordering::Greater) => *best = vec![row],
            Some(std::cmp::Ordering::Less) => {}
        }
    }
    newest
}

/// The ids of rows.
pub fn ids(rows: &[Row]) -> BTreeSet<&str> {
    rows.iter().filter_map(|row| row.get("id")).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dify::readers::Owner;
    use crate::pipeline::verify::parity::finding::{Question, Readers};

    fn owner() -> Owner {
        Owner { tenant: "t".to_owned(), app: "a".to_owned(), trigger: "app-run".to_owned() }
    }

    fn compared(kind: Kind, postgres: f64, sls: f64, slack: Slack) -> (u64, u64, u64) {
        let owner = owner();
        let asked =
            Asked { owner: &owner, readers: Readers::Shipped, question: Question::DailyRuns };
        let mut findings = Findings::default();
        let both = (Some(postgres), Some(sls));
        numbers(&mut findings, &asked, ("2025-01-31", "runs"), kind, both, slack);
        let own = findings.quirks.get(&Quirk::OwnLogs).copied().unwrap_or(0);
        (findings.count, findings.bounded, own)
    }

    #[test]
    fn fewer_is_always_a_difference_and_more_only_beyond_what_explains_it() {
        let purged = |purged| Slack { purged, own_logs: 0 };
        let own = |own_logs| Slack { purged: 0, own_logs };
        for (kind, postgres, sls, slack, wanted) in [
            (Kind::Rows, 5.0, 5.0, purged(0), (0, 0, 0)),
            (Kind::Rows, 5.0, 4.0, purged(9), (1, 0, 0)),
            (Kind::Rows, 5.0, 6.0, purged(0), (1, 0, 0)),
            (Kind::Rows, 5.0, 6.0, purged(1), (0, 1, 0)),
            (Kind::Rows, 5.0, 7.0, purged(1), (1, 0, 0)),
            (Kind::Rows, 5.0, 6.0, own(1), (0, 0, 1)),
            (Kind::Sum, 5.0, 10.0, purged(0), (1, 0, 0)),
            (Kind::Sum, 5.0, 10.0, own(1), (0, 0, 1)),
            (Kind::Sum, 5.0, 4.0, own(1), (1, 0, 0)),
            (Kind::Mean, 1.333_33, 1.33, purged(0), (0, 0, 0)),
            (Kind::Mean, 1.33, 1.34, purged(0), (1, 0, 0)),
        ] {
            assert_eq!(compared(kind, postgres, sls, slack), wanted, "{kind:?} {postgres} {sls}");
        }
    }

    #[test]
    fn texts_are_equal_as_python_would_write_them_and_may_be_cut_by_sql() {
        let json = r#"{"a": "\u4f60\u597d"}"#;
        assert_eq!(text("inputs", json, r#"{"a": "你好"}"#, None), Same::Yes);
        assert_eq!(text("inputs", json, r#"{"a": "你好!"}"#, None), Same::No);
        assert_eq!(text("error", "", "null", None), Same::Yes);
        assert_eq!(text("elapsed_time", "0.25", "0.250", None), Same::Yes);
        assert_eq!(text("total_tokens", "7", "7.0", None), Same::No);
        let long = "x".repeat(100);
        assert_eq!(text("inputs", &long, &long[..64], Some(64)), Same::Cut);
        assert_eq!(text("inputs", &long, &long[..60], Some(64)), Same::No);
        assert_eq!(text("inputs", &long, &long[..64], None), Same::No);
        assert_eq!(text("inputs", &long, &"y".repeat(64), Some(64)), Same::No);
    }

    #[test]
    fn of_attempts_that_share_an_execution_the_last_is_shown() {
        let node = |id: &str, execution: &str, finished: &str, status: &str| -> Row {
            [("id", id), ("node_execution_id", execution), ("finished_at", finished)]
                .into_iter()
                .chain([("status", status)])
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let nodes = [
            node("a", "x", "2025-01-01T00:00:00", "retry"),
            node("b", "x", "2025-01-01T00:00:00", "succeeded"),
            node("c", "x", "2025-01-01T00:00:00.500000", "retry"),
            node("d", "y", "2025-01-01T00:00:00", "succeeded"),
        ];
        let newest = newest_of_each(&nodes);
        let shown: Vec<_> = newest.values().map(|rows| rows[0]["id"].as_str()).collect();
        assert_eq!(shown, ["c", "d"]);
    }
}
