//! The numbers that Dify shows of an app: counts by status, and its charts by day.

use std::collections::{BTreeMap, BTreeSet};

use crate::dify::readers::{self, Daily, Owner, newest};
use crate::pipeline::verify::parity::asking::{Asking, Side};
use crate::pipeline::verify::parity::finding::{Asked, Findings, Question, Quirk, Readers};
use crate::pipeline::verify::parity::judge::{self, Kind, Row, Slack};
use crate::record::day::{DAY_S, Day};
use crate::record::timestamp::Timestamp;
use crate::source::twins::{DayBy, TwinDay, TwinOwner};

/// Dify asks for charts with a begin and an end; without LIMIT SLS gives 100 rows at most.
const DAYS_MAX: i64 = 90;

/// The zone in which the newest readers are asked for days; the shipped ones know no other.
const ZONE: &str = "UTC";

/// What is known beforehand about an owner.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Purged rows of all apps, by day of finishing.
    pub purged: BTreeMap<Day, u64>,
    /// Whether the logs' own times are those of sending: then the shipped charts cannot be right.
    pub is_ingest: bool,
}

/// The runs of an owner on both sides, by day of finishing, for the sum over all apps.
#[derive(Debug, Clone, Default)]
pub struct DailyRuns {
    pub postgres: BTreeMap<String, u64>,
    pub sls: BTreeMap<String, u64>,
    pub own_logs: BTreeMap<String, u64>,
}

/// Asks for all numbers of an owner.
pub async fn compare(
    asking: &Asking<'_>,
    side: &Side,
    owner: &Owner,
    twin: &TwinOwner,
    context: &Context,
    findings: &mut Findings,
) -> anyhow::Result<DailyRuns> {
    let own_logs = asking.own_logs(findings, side, owner).await?;
    if !own_logs.is_empty() {
        // Where Dify has written, too, a sum may be larger; what is there twice is looked for.
        let asked = Asked { owner, readers: Readers::Shipped, question: Question::TokenCost };
        for (id, logs) in asking.doubled(findings, side, owner).await? {
            findings.push(asked.finding(&id, "logs", Some("1".to_owned()), Some(logs.to_string())));
        }
    }
    statuses(asking, side, owner, twin, &own_logs, context, findings).await?;
    let extent = asking.extent(findings, side, owner).await?;
    let finished = asking.source.twin_days(&side.shown, twin, DayBy::Finished).await?;
    let created = asking.source.twin_days(&side.shown, twin, DayBy::Created).await?;
    let charts = Charts { asking, side, owner, own_logs, context };
    let mut sls = BTreeMap::new();
    if !context.is_ingest {
        sls = charts.shipped(&finished, extent, findings).await?;
    }
    charts.newest(&created, extent, findings).await?;
    let postgres = finished.into_iter().map(|(day, numbers)| (day, numbers.runs)).collect();
    Ok(DailyRuns { postgres, sls, own_logs: charts.own_logs })
}

async fn statuses(
    asking: &Asking<'_>,
    side: &Side,
    owner: &Owner,
    twin: &TwinOwner,
    own_logs: &BTreeMap<String, u64>,
    context: &Context,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let postgres = asking.source.twin_statuses(&side.shown, twin).await?;
    let slack = Slack { purged: context.purged.values().sum(), own_logs: own_logs.values().sum() };
    for (readers, sql) in [
        (Readers::Shipped, readers::count_by_status(owner)),
        (Readers::Newest, newest::count_by_status(owner)),
    ] {
        let Some(rows) = asking.sql(findings, side, &sql).await? else { continue };
        let asked = Asked { owner, readers, question: Question::CountsByStatus };
        let sls = column(&rows, "status", "count");
        let places: BTreeSet<&String> = postgres.keys().chain(sls.keys()).collect();
        for place in places {
            let both = (postgres.get(place).map(|rows| *rows as f64), sls.get(place).copied());
            judge::numbers(findings, &asked, (place, "count"), Kind::Rows, both, slack);
        }
    }
    let Some(rows) = asking.sql(findings, side, &readers::count_running(owner)).await? else {
        return Ok(());
    };
    let running = rows.first().and_then(|row| row.get("count")?.parse::<f64>().ok());
    if running.is_some_and(|running| running > 0.0) && !own_logs.is_empty() {
        findings.quirk(Quirk::RunningCount, 1);
    } else {
        let asked = Asked { owner, readers: Readers::Shipped, question: Question::RunningRuns };
        let both = (Some(0.0), running);
        judge::numbers(findings, &asked, ("running", "count"), Kind::Rows, both, Slack::default());
    }
    Ok(())
}

/// The charts of one owner.
struct Charts<'a> {
    asking: &'a Asking<'a>,
    side: &'a Side,
    owner: &'a Owner,
    own_logs: BTreeMap<String, u64>,
    context: &'a Context,
}

impl Charts<'_> {
    /// Gives the runs of each day that SLS shows.
    async fn shipped(
        &self,
        postgres: &BTreeMap<String, TwinDay>,
        extent: Option<(i64, i64)>,
        findings: &mut Findings,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let windows = windows(postgres, extent, (self.side.from, self.side.to));
        let mut runs = BTreeMap::new();
        for (question, daily) in [
            (Question::DailyRuns, Some(Daily::Runs)),
            (Question::DailyTerminals, Some(Daily::Terminals)),
            (Question::TokenCost, Some(Daily::Tokens)),
            (Question::AverageInteractions, None),
        ] {
            let name = daily.map_or("interactions", Daily::column);
            let (mut sls, mut is_known) = (BTreeMap::new(), true);
            for (from, to) in &windows {
                let filter = format!(
                    " AND __time__ >= to_unixtime(from_iso8601_timestamp('{}')) \
                     AND __time__ < to_unixtime(from_iso8601_timestamp('{}'))",
                    iso(*from),
                    iso(*to)
                );
                let sql = match daily {
                    Some(daily) => readers::daily(self.owner, daily, &filter),
                    None => readers::average_interactions(self.owner),
                };
                // Where a statement has no times, those of the request stand in for them.
                let window = (*from, *to);
                let query = format!("* | {sql}");
                match self.asking.ask(findings, self.side, window, &query).await? {
                    Some(rows) => sls.extend(column(&rows, "date", name)),
                    None => is_known = false,
                }
            }
            if !is_known {
                continue;
            }
            if question == Question::DailyRuns {
                runs = sls.iter().map(|(day, number)| (day.clone(), *number as u64)).collect();
            }
            let asked = Asked { owner: self.owner, readers: Readers::Shipped, question };
            self.days(&asked, name, postgres, &sls, false, findings);
        }
        Ok(runs)
    }

    async fn newest(
        &self,
        postgres: &BTreeMap<String, TwinDay>,
        extent: Option<(i64, i64)>,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        // Days of beginning: a run may have begun long before it finished, and before the window.
        let windows = windows(postgres, extent, (i64::MIN, self.side.to));
        for (question, daily) in [
            (Question::DailyRuns, newest::Daily::Runs),
            (Question::DailyTerminals, newest::Daily::Terminals),
            (Question::TokenCost, newest::Daily::Tokens),
            (Question::AverageInteractions, newest::Daily::Interactions),
        ] {
            let (mut sls, mut is_known) = (BTreeMap::new(), true);
            for (from, to) in &windows {
                let created_at = newest::CREATED_AT;
                let bounds = format!("{created_at} >= {from}.0 AND {created_at} < {to}.0");
                let sql = newest::daily(&newest::with_day(self.owner, ZONE, &bounds), daily);
                match self.asking.sql(findings, self.side, &sql).await? {
                    Some(rows) => sls.extend(column(&rows, "date", daily.column())),
                    None => is_known = false,
                }
            }
            if is_known {
                let asked = Asked { owner: self.owner, readers: Readers::Newest, question };
                self.days(&asked, daily.column(), postgres, &sls, true, findings);
            }
        }
        Ok(())
    }

    fn days(
        &self,
        asked: &Asked<'_>,
        name: &str,
        postgres: &BTreeMap<String, TwinDay>,
        sls: &BTreeMap<String, f64>,
        is_by_creation: bool,
        findings: &mut Findings,
    ) {
        let all_purged: u64 = self.context.purged.values().sum();
        let all_own: u64 = self.own_logs.values().sum();
        let places: BTreeSet<&String> = postgres.keys().chain(sls.keys()).collect();
        for place in places {
            let (kind, number): (_, fn(&TwinDay) -> f64) = match asked.question {
                Question::DailyRuns => (Kind::Rows, |day| day.runs as f64),
                Question::DailyTerminals => (Kind::Sum, |day| day.users as f64),
                Question::TokenCost => (Kind::Sum, |day| day.tokens as f64),
                _ => (Kind::Mean, |day| day.runs as f64 / day.users.max(1) as f64),
            };
            // Purged rows are known by the day on which they finished.
            let slack = match is_by_creation {
                true => Slack { purged: all_purged, own_logs: all_own },
                false => Slack {
                    purged: Day::parse(place)
                        .and_then(|day| self.context.purged.get(&day).copied())
                        .unwrap_or(0),
                    own_logs: self.own_logs.get(place).copied().unwrap_or(0),
                },
            };
            let both = (postgres.get(place).map(number), sls.get(place).copied());
            judge::numbers(findings, asked, (place, name), kind, both, slack);
        }
    }
}

/// A column of numbers, by the key of each row.
fn column(rows: &[Row], key: &str, name: &str) -> BTreeMap<String, f64> {
    let pair = |row: &Row| Some((row.get(key)?.clone(), row.get(name)?.parse().ok()?));
    rows.iter().filter_map(pair).collect()
}

/// Stretches of whole days that hold all days of both sides, within bounds.
fn windows(
    postgres: &BTreeMap<String, TwinDay>,
    extent: Option<(i64, i64)>,
    (from, to): (i64, i64),
) -> Vec<(i64, i64)> {
    let mut days: Vec<Day> = postgres.keys().filter_map(|day| Day::parse(day)).collect();
    for at in extent.iter().flat_map(|(first, last)| [*first, *last]) {
        days.push(Day::of_unix_s(at));
    }
    let (Some(first), Some(last)) = (days.iter().min(), days.iter().max()) else {
        return Vec::new();
    };
    let (mut at, end) = (first.unix_s().max(from), last.next().unix_s().min(to));
    let mut windows = Vec::new();
    while at < end {
        let next = (Day::of_unix_s(at).unix_s() + DAYS_MAX * DAY_S).min(end);
        windows.push((at, next));
        at = next;
    }
    windows
}

/// As Dify prints the bounds of a chart.
fn iso(unix_s: i64) -> String {
    let text = Timestamp::from_unix_s(unix_s).to_string();
    text.trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_day_of_both_sides_and_no_more_than_sls_gives() {
        let day = |text: &str| (text.to_owned(), TwinDay::default());
        let postgres = BTreeMap::from([day("2025-01-02"), day("2025-07-01")]);
        let at = |text: &str| Day::parse(text).unwrap().unix_s();
        let extent = Some((at("2025-01-01") + 5, at("2025-06-01")));
        let windows = windows(&postgres, extent, (0, i64::MAX));
        assert_eq!(windows.first().unwrap().0, at("2025-01-01"));
        assert_eq!(windows.last().unwrap().1, at("2025-07-02"));
        for pair in windows.windows(2) {
            assert_eq!(pair[0].1, pair[1].0);
        }
        assert!(windows.iter().all(|(from, to)| to - from <= DAYS_MAX * DAY_S));
        assert_eq!(super::windows(&BTreeMap::new(), None, (0, 9)), []);
    }
}
