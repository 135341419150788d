//! What can be asked about a history by days: how many logs, and of how many rows.

use serde_json::json;

use crate::queries::asking::{Row, now_s};
use crate::queries::small::{STORE, Small};

const DAY_S: i64 = 86_400;
const OURS: &str = "dify-sls-backfill";

/// UTC days, whatever SLS's time zone.
const BY_DAY: &str = "SELECT __time__ - __time__ % 86400 AS day, count(*) AS logs, \
    count(DISTINCT id) AS ids FROM log WHERE __source__ = 'dify-sls-backfill' \
    GROUP BY day ORDER BY day LIMIT 10000";

/// The last three whole days: 4, 5 and 6 logs, the second day's first twice; one of Dify's each day.
fn history() -> (Small, [i64; 3]) {
    let small = Small::without_index(&[], json!({}));
    small.index(json!({}));
    let today = now_s() - now_s() % DAY_S;
    let days = [3, 2, 1].map(|ago| today - ago * DAY_S);
    for (number, day) in days.iter().enumerate() {
        for log in 0..4 + number {
            let id = format!("{number}-{log}");
            // The first at midnight, the last a second before the next.
            let time = day + (DAY_S - 1) * i64::try_from(log).unwrap() / (3 + number as i64);
            small.put_from(OURS, &format!("L/{number}"), time, &[("id", &id), ("n", "1")]);
        }
        small.put(*day, &[("id", "live"), ("n", "1")]);
    }
    small.put_from(OURS, "L/1", days[1], &[("id", "1-0"), ("n", "1")]);
    (small, days)
}

fn counted(rows: &[Row]) -> Vec<[i64; 3]> {
    let number = |row: &Row, name: &str| row[name].parse::<i64>().unwrap();
    rows.iter().map(|row| ["day", "logs", "ids"].map(|name| number(row, name))).collect()
}

#[test]
fn logs_and_ids_of_a_source_are_counted_by_utc_day_in_any_time_zone() {
    let (small, days) = history();
    let wanted = [[days[0], 4, 4], [days[1], 6, 5], [days[2], 6, 6]];
    for zone in ["UTC", "Asia/Shanghai"] {
        small.switch(json!({"sql_time_zone": zone}));
        assert_eq!(counted(&small.sql(BY_DAY)), wanted, "{zone}");
    }
    // With the source in the search it is the same.
    let searched = BY_DAY.replace("WHERE __source__ = 'dify-sls-backfill'", "");
    let query = format!("__source__: \"{OURS}\" | {searched}");
    assert_eq!(counted(&small.asking().sql(STORE, &query)), wanted);
    let rows = small.sql(&BY_DAY.replace("count(DISTINCT id)", "approx_distinct(id)"));
    assert_eq!(counted(&rows), wanted);
    let page = BY_DAY.replace("LIMIT 10000", "LIMIT 1, 1");
    assert_eq!(counted(&small.sql(&page)), wanted[1..2]);
}

#[test]
fn date_trunc_goes_by_the_time_zone_of_sql() {
    let (small, days) = history();
    let sql = "SELECT date_trunc('day', from_unixtime(__time__)) AS day, count(*) AS logs FROM log \
               WHERE __source__ = 'dify-sls-backfill' GROUP BY day ORDER BY day";
    let rows = small.sql(sql);
    let logs: Vec<_> = rows.iter().map(|row| row["logs"].as_str()).collect();
    assert_eq!(logs, ["4", "6", "6"]);
    let first = small.sql(&format!("SELECT to_unixtime('{}') AS s LIMIT 1", rows[0]["day"]));
    assert_eq!(first[0]["s"].parse::<f64>().unwrap(), days[0] as f64);
    small.switch(json!({"sql_time_zone": "Asia/Shanghai"}));
    assert_eq!(small.sql(sql).len(), 4, "the evening is the next day there");
}

#[test]
fn a_tag_is_a_column_where_the_index_says_so() {
    let (small, _) = history();
    let sql = "SELECT count(*) AS logs FROM log WHERE \"__tag__:__batch__\" = 'L/1'";
    let message = small.refused(&format!("* | {sql}"));
    assert!(message.contains("Column '__tag__:__batch__' cannot be resolved"), "{message}");
    let search = format!("__tag__:__batch__: \"L/1\" | {}", "SELECT count(*) AS logs");
    assert_eq!(small.asking().sql(STORE, &search)[0]["logs"], "6", "search needs no key for it");
    let text = json!({"type": "text", "doc_value": true});
    let keys = json!({"id": text, "__tag__:__batch__": text});
    small.admin("PUT", &format!("/logstores/{STORE}/index"), json!({"keys": keys}));
    assert_eq!(small.column(sql), ["6"]);
    let by_batch = "SELECT \"__tag__:__batch__\" AS b, count(*) AS logs, count(DISTINCT id) AS ids \
                    FROM log WHERE __source__ <> 'dify' GROUP BY 1 ORDER BY 1";
    let rows = small.sql(by_batch);
    let rows: Vec<_> = rows.iter().map(|row| [&*row["b"], &row["logs"], &row["ids"]]).collect();
    assert_eq!(rows, [["L/0", "4", "4"], ["L/1", "6", "5"], ["L/2", "6", "6"]]);
}

/// How far an answer is all of it, and the logs that it counts.
/// The end is the same each time: without one it is the present second, and with it another query.
fn asked(small: &Small, query: &str, from: i64) -> (String, u64) {
    let body = json!({"query": query, "from": from, "to": 2_000_000_000});
    let answer = small.asking().get_logs_v3(STORE, body);
    let progress = answer.body["meta"]["progress"].as_str().unwrap().to_owned();
    let logs = answer.rows()[0]["logs"].parse().unwrap();
    (progress, logs)
}

#[test]
fn an_answer_is_incomplete_so_many_times_for_each_query() {
    let (small, _) = history();
    small.switch(json!({"incomplete_times": 2}));
    let (all, some) = ("* | SELECT count(*) AS logs", "id: live | SELECT count(*) AS logs");
    let part = |logs| ("Incomplete".to_owned(), logs);
    let whole = |logs| ("Complete".to_owned(), logs);
    assert_eq!(asked(&small, all, 0), part(9));
    assert_eq!(asked(&small, some, 0), part(1));
    assert_eq!(asked(&small, all, 0), part(9));
    assert_eq!(asked(&small, all, 0), whole(19));
    assert_eq!(asked(&small, all, 1), part(9), "other times are another query");
    assert_eq!(asked(&small, some, 0), part(1));
    assert_eq!(asked(&small, some, 0), whole(3));
    assert_eq!(asked(&small, all, 0), whole(19));
    let answer = || small.asking().get_logs_v1(STORE, &[("query", "n > 0"), ("to", "2000000000")]);
    let progress: Vec<_> = (0..3).map(|_| answer().header("x-log-progress").to_owned()).collect();
    assert_eq!(progress, ["Incomplete", "Incomplete", "Complete"]);
}

#[test]
fn sql_over_too_many_logs_stays_incomplete_and_a_shorter_range_is_whole() {
    let (small, days) = history();
    small.switch(json!({"sql_logs_max": 7}));
    let all = "* | SELECT count(*) AS logs";
    for _ in 0..3 {
        assert_eq!(asked(&small, all, 0), ("Incomplete".to_owned(), 7));
    }
    assert_eq!(asked(&small, all, days[2]), ("Complete".to_owned(), 7));
    assert_eq!(small.found("*").len(), 19, "of SQL alone");
}

#[test]
fn columns_that_are_neither_grouped_nor_aggregated_are_refused() {
    let (small, _) = history();
    for (sql, words) in [
        ("SELECT id, n, count(*) FROM log GROUP BY id", "line 1:12: 'n' must be an aggregate"),
        ("SELECT id, count(*)", "line 1:8: 'id' must be an aggregate"),
        ("SELECT * FROM log GROUP BY id", "'*' must be an aggregate"),
    ] {
        let message = small.refused(&format!("* | {sql}"));
        assert!(message.contains(words), "{sql}: {message}");
    }
    assert_eq!(small.sql("SELECT id, max(n) AS n, count(*) FROM log GROUP BY id").len(), 16);
}
