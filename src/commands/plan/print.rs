//! The plan as a person reads it, in 80 columns, and as JSON.

use std::time::Duration;

use indicatif::HumanDuration;
use serde_json::{Value, json};

use crate::commands::output::{self, Format, bytes, count};
use crate::commands::plan::outlook::{Outlook, TableOutlook};
use crate::commands::plan::settings::PlanSettings;
use crate::commands::shards;
use crate::commands::status::held_line;
use crate::pipeline::plan::forecast::Forecast;
use crate::pipeline::plan::prices::{Cost, Prices};
use crate::pipeline::plan::tally::DaySum;
use crate::record::day::Day;

/// So many bars a chart has at most: more days are put together.
const BARS_MAX: usize = 31;

/// So long is the longest bar.
const BAR_WIDTH: f64 = 36.0;

pub(in crate::commands::plan) fn print(outlook: &Outlook, settings: &PlanSettings) {
    if settings.run.format == Format::Json {
        output::line(&as_json(outlook, settings).to_string());
        return;
    }
    let how = match outlook.is_exact {
        true => "every row was looked at".to_owned(),
        false => {
            let rows: u64 = outlook.tables.iter().map(|table| table.seen.looked_at).sum();
            format!("estimated from {} rows; --exact looks at every one", count(rows))
        }
    };
    output::line(&format!("plan of a run: {how}"));
    for table in &outlook.tables {
        table_lines(table, &settings.prices).iter().for_each(|line| output::line(line));
    }
    let total = total(outlook, &settings.prices);
    for line in total_lines(&total, outlook, &settings.prices) {
        output::line(&line);
    }
}

/// All tables together.
pub(in crate::commands::plan) struct Total {
    pub(in crate::commands::plan) seconds: f64,
    pub(in crate::commands::plan) cost: Cost,
}

pub(in crate::commands::plan) fn total(outlook: &Outlook, prices: &Prices) -> Total {
    let mut total = Total { seconds: 0.0, cost: Cost::default() };
    for table in &outlook.tables {
        total.seconds += table.forecast().seconds;
        let cost = table.cost(prices);
        total.cost.write_traffic += cost.write_traffic;
        total.cost.index_traffic += cost.index_traffic;
        total.cost.requests += cost.requests;
        total.cost.storage_per_month += cost.storage_per_month;
    }
    total
}

fn whole(number: f64) -> u64 {
    number.round().max(0.0) as u64
}

fn duration(seconds: f64) -> String {
    HumanDuration(Duration::from_secs_f64(seconds.clamp(1.0, 1e9).round())).to_string()
}

fn table_lines(table: &TableOutlook, prices: &Prices) -> Vec<String> {
    let tally = &table.seen.tally;
    let rows = |number: f64| count(whole(number));
    let held: f64 = tally.held.values().sum();
    let mut lines = vec![
        String::new(),
        format!(
            "{}: {} rows = {} to send + {} held + {} already",
            table.table,
            rows(tally.seen),
            rows(tally.live),
            rows(held),
            rows(tally.already)
        ),
    ];
    for (reason, number) in &tally.held {
        lines.push(format!("    {}", held_line(reason.name(), whole(*number))));
    }
    let forecast = table.forecast();
    lines.extend([
        format!(
            "  bytes       {} before compression, {} compressed",
            bytes(whole(table.seen.raw_bytes)),
            bytes(whole(table.seen.body_bytes))
        ),
        format!("  requests    {} batches, each one PutLogs", rows(table.batches)),
        format!("  time        {}", duration(forecast.seconds)),
        format!("  limited by  {}", forecast.limit.words()),
    ]);
    let more = table.with_more_shards();
    for (count, Forecast { seconds, limit }) in &more {
        if more.len() > 1 {
            let what = format!("{count} shards");
            lines.push(format!("    {what:<12} {:<14} {}", duration(*seconds), limit.words()));
        }
    }
    if let Some((twice, _)) = more.get(1) {
        lines.push(format!("    more shards: {}", shards::command(*twice)));
    }
    lines.push(format!(
        "  purgeable   {} rows, about {} of {} on disk",
        rows(tally.purgeable),
        bytes(whole(table.purgeable_bytes())),
        bytes(table.total_bytes)
    ));
    match table.ttl_days {
        Some(days) => lines.push(format!(
            "  kept        {}; {} rows are older",
            match days {
                3650.. => "for ever".to_owned(),
                days => format!("{days} days"),
            },
            rows(table.expired())
        )),
        None => lines.push("  kept        not known: there is no such logstore yet".to_owned()),
    }
    let cost = table.cost(prices);
    lines.push(format!(
        "  cost        {:.2} {} once, {:.2} a month to keep",
        cost.once(),
        prices.currency,
        cost.storage_per_month
    ));
    let bars = bars(tally.days.iter().map(|(day, sum)| (*day, *sum)).collect());
    lines.extend(chart(&bars));
    lines
}

/// Days in a row put together, so that there are not too many.
pub(in crate::commands::plan) fn bars(days: Vec<(Day, DaySum)>) -> Vec<(Day, DaySum)> {
    let (Some((first, _)), Some((last, _))) = (days.first(), days.last()) else {
        return Vec::new();
    };
    let span = last.to_postgres() - first.to_postgres() + 1;
    let width = (span as usize).div_ceil(BARS_MAX).max(1);
    let mut bars: Vec<(Day, DaySum)> = Vec::new();
    for (day, sum) in &days {
        let nth = (day.to_postgres() - first.to_postgres()) as usize / width;
        let begin = Day::from_postgres(first.to_postgres() + (nth * width) as i32);
        match bars.last_mut() {
            Some((last, bar)) if *last == begin => {
                bar.rows += sum.rows;
                bar.text_bytes += sum.text_bytes;
            }
            _ => bars.push((begin, *sum)),
        }
    }
    bars
}

fn chart(bars: &[(Day, DaySum)]) -> Vec<String> {
    let most = bars.iter().map(|(_, sum)| sum.rows).fold(0.0, f64::max);
    let line = |(day, sum): &(Day, DaySum)| {
        let width = (sum.rows / most.max(1.0) * BAR_WIDTH).ceil() as usize;
        let bar = "█".repeat(width.max(usize::from(sum.rows > 0.0)));
        let (rows, size) = (count(whole(sum.rows)), bytes(whole(sum.text_bytes)));
        format!("  {day:<10} {rows:>11} {size:>12}  {bar}")
    };
    let title = match bars.len() {
        0 => return Vec::new(),
        _ => format!("  {:<10} {:>11} {:>12}", "finished", "rows", "text"),
    };
    std::iter::once(title).chain(bars.iter().map(line)).collect()
}

fn total_lines(total: &Total, outlook: &Outlook, prices: &Prices) -> Vec<String> {
    let mut lines = vec![
        String::new(),
        format!(
            "together: {}; {:.2} {} once, {:.2} a month to keep",
            duration(total.seconds),
            total.cost.once(),
            prices.currency,
            total.cost.storage_per_month
        ),
        "  prices differ by region and contract: --prices FILE".to_owned(),
    ];
    if !outlook.has_sls {
        lines.push("  without settings of SLS, a new logstore of two shards is assumed".to_owned());
    }
    lines.push("nothing was written, neither to Postgres nor to SLS".to_owned());
    lines
}

fn text(number: f64) -> Value {
    Value::String(whole(number).to_string())
}

pub(in crate::commands::plan) fn as_json(outlook: &Outlook, settings: &PlanSettings) -> Value {
    let tables: serde_json::Map<_, _> = outlook
        .tables
        .iter()
        .map(|table| (table.table.name().to_owned(), table_json(table, &settings.prices)))
        .collect();
    let total = total(outlook, &settings.prices);
    json!({
        "schema_version": 1,
        "is_exact": outlook.is_exact,
        "tables": tables,
        "seconds": total.seconds,
        "cost": total.cost,
        "prices": settings.prices,
    })
}

fn table_json(table: &TableOutlook, prices: &Prices) -> Value {
    let tally = &table.seen.tally;
    let held: serde_json::Map<_, _> =
        tally.held.iter().map(|(reason, rows)| (reason.name().to_owned(), text(*rows))).collect();
    let day = |(day, sum): (&Day, &DaySum)| json!({"day": day, "rows": text(sum.rows), "text_bytes": text(sum.text_bytes)});
    let shards = |(shards, forecast): (u64, Forecast)| json!({"shards": shards, "seconds": forecast.seconds, "limit": forecast.limit});
    let forecast = table.forecast();
    json!({
        "since": table.since.map(|since| since.to_string()),
        "until": table.until.to_string(),
        "rows": text(tally.seen),
        "rows_to_send": text(tally.live),
        "rows_already": text(tally.already),
        "held": held,
        "raw_bytes": text(table.seen.raw_bytes),
        "body_bytes": text(table.seen.body_bytes),
        "batches": text(table.batches),
        "seconds": forecast.seconds,
        "limit": forecast.limit,
        "with_shards": table.with_more_shards().into_iter().map(shards).collect::<Vec<_>>(),
        "ttl_days": table.ttl_days,
        "rows_expired": text(table.expired()),
        "purgeable_rows": text(tally.purgeable),
        "purgeable_bytes": text(table.purgeable_bytes()),
        "table_bytes": table.total_bytes.to_string(),
        "rows_looked_at": table.seen.looked_at.to_string(),
        "cost": table.cost(prices),
        "days": tally.days.iter().map(day).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_bar_for_every_few_days_and_fits_80_columns() {
        let days: Vec<_> = (0..1000)
            .map(|nth| {
                let sum = DaySum { rows: 1e9 + f64::from(nth), text_bytes: 1e15 };
                (Day::from_postgres(9000 + nth), sum)
            })
            .collect();
        let bars = bars(days.clone());
        assert!(bars.len() <= BARS_MAX, "{}", bars.len());
        let sum = |bars: &[(Day, DaySum)]| bars.iter().map(|(_, sum)| sum.rows).sum::<f64>();
        assert_eq!(sum(&bars), sum(&days));
        for line in chart(&bars) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(chart(&[]).is_empty());
    }
}
