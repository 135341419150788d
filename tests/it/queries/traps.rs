//! Where SLS's answers are not what one expects, and the switches for what nobody knows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, poll};
use crate::queries::asking::{Row, now_s};
use crate::queries::small::{STORE, Small};

#[test]
fn sql_sees_the_beginning_of_a_text_and_search_all_of_it() {
    let small = Small::new(&[]);
    let text = format!("{} end", "你".repeat(1000));
    small.put(now_s() - 9, &[("id", "a"), ("text", &text)]);
    // 2,048 bytes, less what would be a part of a character.
    assert_eq!(small.column("SELECT text"), ["你".repeat(682)]);
    assert_eq!(small.asking().search(STORE, "text: end")[0]["text"], text);
    let path = format!("/logstores/{STORE}/index");
    let key = json!({"type": "text", "doc_value": true});
    small.admin("PUT", &path, json!({"keys": {"text": key}, "max_text_len": 16384}));
    assert_eq!(small.column("SELECT text"), [text]);
    assert!(small.refused("* | SELECT id FROM log").ends_with(
        "line 1:8: Column 'id' cannot be resolved;please add the column in the index attribute"
    ));
}

#[test]
fn a_missing_field_is_the_text_null_and_comes_last() {
    let small = Small::new(&[]);
    small.put(now_s() - 9, &[("id", "none")]);
    small.put(now_s() - 8, &[("id", "two"), ("n", "2")]);
    small.put(now_s() - 7, &[("id", "one"), ("n", "1"), ("text", "")]);
    small.put(now_s() - 6, &[("id", "odd"), ("n", "a lot"), ("other", "x")]);
    assert_eq!(small.column("SELECT id ORDER BY n, id"), ["one", "two", "none", "odd"]);
    assert_eq!(small.column("SELECT id ORDER BY n DESC, id"), ["two", "one", "none", "odd"]);
    assert_eq!(small.column("SELECT n FROM log ORDER BY n"), ["1", "2", "null", "null"]);
    assert_eq!(small.column("SELECT count(*) WHERE n IS NULL"), ["2"]);
    let rows = small.sql("SELECT * FROM workflow_execution ORDER BY n");
    assert_eq!((&*rows[0]["text"], &*rows[1]["text"]), ("", "null"));
    assert!(rows.iter().all(|row| row["__source__"] == "dify" && !row.contains_key("other")));
    assert_eq!(small.column("SELECT count(*) FROM log WHERE text IS NOT NULL"), ["1"]);
    small.switch(json!({"empty_text": "null"}));
    assert_eq!(small.column("SELECT count(*) FROM log WHERE text IS NOT NULL"), ["0"]);
    assert_eq!(small.sql("SELECT * ORDER BY n")[0]["text"], "null");
    // A search gives what was stored.
    assert_eq!(small.asking().search(STORE, "id: one")[0]["text"], "");
    assert!(!small.asking().search(STORE, "id: two")[0].contains_key("text"));
}

#[test]
fn without_a_limit_there_are_a_hundred_rows() {
    let small = Small::new(&[]);
    for n in 0..120 {
        small.put(now_s() - 200 + n, &[("id", &format!("run-{n}")), ("n", &n.to_string())]);
    }
    assert_eq!(small.sql("SELECT id").len(), 100);
    assert_eq!(small.sql("SELECT id FROM log LIMIT 110").len(), 110);
    assert_eq!(small.column("SELECT count(*) AS c, 1 AS d"), ["120"]);
    assert_eq!(small.column("SELECT n ORDER BY n LIMIT 117, 10"), ["117", "118", "119"]);
    assert_eq!(small.found("*").len(), 100);
    let offset = "* | SELECT n FROM log ORDER BY n LIMIT 2 OFFSET 117";
    assert!(small.refused(offset).contains("mismatched input 'OFFSET'"));
    small.switch(json!({"limit_offset": "accept"}));
    assert_eq!(small.asking().sql(STORE, offset).len(), 2);
    let body = json!({"query": "* | SELECT n", "offset": 1});
    let message = small.asking().get_logs_v3(STORE, body).refused();
    assert!(message.contains("please use limit x,y"), "{message}");
}

#[test]
fn an_incomplete_answer_is_a_part_and_the_next_is_whole() {
    let small = Small::new(&["incomplete_every=2"]);
    small.put_some(6);
    let query = json!({"query": "* | SELECT count(*) AS c, min(n) AS first"});
    let ask = |body: &Value| {
        let answer = small.asking().get_logs_v3(STORE, body.clone());
        let progress = answer.body["meta"]["progress"].as_str().unwrap().to_owned();
        (progress, answer.rows())
    };
    let count = |(progress, rows): (String, Vec<Row>)| (progress, rows[0]["c"].clone());
    assert_eq!(count(ask(&query)), ("Complete".into(), "6".into()));
    assert_eq!(count(ask(&query)), ("Incomplete".into(), "3".into()));
    assert_eq!(count(ask(&query)), ("Complete".into(), "6".into()));
    let (progress, rows) = ask(&json!({"query": "n >= 1"}));
    assert_eq!((progress.as_str(), rows.len()), ("Incomplete", 3));
    let answer = small.asking().get_logs_v1(STORE, &[("query", "*")]);
    assert_eq!(answer.header("x-log-progress"), "Complete");
    let answer = small.asking().get_logs_v1(STORE, &[("query", "*"), ("type", "histogram")]);
    assert_eq!(
        (answer.header("x-log-progress"), answer.header("x-log-count")),
        ("Incomplete", "3")
    );
    assert_eq!(answer.body[0]["progress"], "Incomplete");
}

#[test]
fn what_was_written_before_the_index_is_not_found() {
    let small = Small::without_index(&[], json!({}));
    small.put(now_s() - 9, &[("id", "before")]);
    let answer = small.asking().get_logs_v3(STORE, json!({"query": "* | SELECT 1"}));
    assert_eq!((answer.status, &answer.body["errorCode"]), (400, &json!("IndexConfigNotExist")));
    small.index(json!({}));
    small.put(now_s() - 8, &[("id", "after")]);
    assert_eq!(small.found("*"), ["after"]);
    assert_eq!(small.column("SELECT id"), ["after"]);
    assert_eq!(small.sls.logs(STORE).len(), 2);
}

#[test]
fn the_index_takes_its_time_for_old_logs() {
    let small = Small::new(&["index_delay_ms=400"]);
    let begin = Instant::now();
    small.put(now_s() - 86_400, &[("id", "old")]);
    small.put(now_s() - 9, &[("id", "new")]);
    assert_eq!(small.found("*"), ["new"]);
    assert_eq!(small.column("SELECT id"), ["new"]);
    poll("the old log to be found", DEADLINE, || {
        (small.found("*") == ["old", "new"]).then_some(())
    });
    assert!(begin.elapsed() >= Duration::from_millis(400));
    assert_eq!(small.column("SELECT id ORDER BY __time__"), ["old", "new"]);
    small.switch(json!({"index_delay_recent_ms": 3_600_000}));
    assert_eq!(small.found("*"), ["old"]);
}

#[test]
fn logs_older_than_the_ttl_are_stored_but_not_found() {
    let small = Small::without_index(&[], json!({"ttl": 7}));
    small.index(json!({}));
    small.put(now_s() - 8 * 86_400, &[("id", "old")]);
    small.put(now_s() - 6 * 86_400, &[("id", "young")]);
    assert_eq!(
        (small.found("*"), small.column("SELECT id")),
        (vec!["young".into()], vec!["young".into()])
    );
    assert_eq!(small.sls.logs(STORE).len(), 2);
    let settings = json!({"logstoreName": STORE, "ttl": 30});
    small.admin("PUT", &format!("/logstores/{STORE}"), settings);
    assert_eq!(small.found("*"), ["old", "young"]);
}

#[test]
fn soft_delete_hides_logs_from_queries_and_not_from_pulls() {
    let small = Small::without_index(&[], json!({"enableModify": true}));
    small.index(json!({}));
    small.put_some(5);
    let path = format!("/logstores/{STORE}/deletelogtasks");
    let task = json!({"from": 0, "to": now_s(), "query": "n in [2 3]", "type": "logs"});
    let made = small.asking().send("POST", &path, &[], &task.to_string());
    let id = made.body["taskId"].as_str().unwrap().to_owned();
    let told = small.asking().send("GET", &format!("{path}/{id}"), &[], "");
    assert_eq!(told.body["progress"], 100);
    assert_eq!(small.asking().send("GET", &path, &[], "").body["total"], 1);
    assert_eq!(small.found("*"), ["e", "d", "a"]);
    assert_eq!(small.column("SELECT id ORDER BY id"), ["a", "d", "e"]);
    let histogram = small.asking().get_logs_v1(STORE, &[("type", "histogram"), ("query", "*")]);
    assert_eq!(histogram.body[0]["count"], 3);
    let again = json!({"from": 0, "to": now_s(), "query": "n > 1"});
    let path = format!("/logstores/{STORE}/deletelogs");
    let answer = small.asking().send("POST", &path, &[], &again.to_string());
    assert_eq!(answer.body["affectedRows"], 2, "those that were hidden are not found again");
    assert_eq!(small.column("SELECT id"), ["a"]);

    let shard = format!("/logstores/{STORE}/shards/0");
    let begin = small.asking().send("GET", &shard, &[("type", "cursor"), ("from", "begin")], "");
    let cursor = begin.body["cursor"].as_str().unwrap();
    let pull = [("type", "log"), ("cursor", cursor), ("count", "1000")];
    assert_eq!(small.asking().send("GET", &shard, &pull, "").header("x-log-count"), "5");

    small.switch(json!({"soft_delete": "off"}));
    let answer = small.asking().send("POST", &path, &[], &again.to_string());
    assert_eq!(answer.status, 404);
    assert_eq!(small.column("SELECT id"), ["a"]);
}

fn row_ids(small: &Small, query: &str) -> Vec<(String, String)> {
    let found = small.asking().search(STORE, query);
    found.iter().map(|row| (row["id"].clone(), row["__rowid__"].clone())).collect()
}

fn delete(small: &Small, body: &Value) -> (u16, String, u64) {
    let path = format!("/logstores/{STORE}/deletelogs");
    let answer = small.asking().send("POST", &path, &[], &body.to_string());
    let affected = answer.header("x-log-affectedrows").to_owned();
    (answer.status, affected, answer.body["affectedRows"].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn a_log_is_deleted_by_its_row_id_where_logs_can_be_modified() {
    let small = Small::without_index(&[], json!({"enableModify": true}));
    small.index(json!({}));
    let time = now_s() - 60;
    for id in ["a", "b", "b", "c"] {
        small.put(time, &[("id", id)]);
    }
    let rows = row_ids(&small, "id: b");
    assert_eq!((rows.len(), rows[0].1 == rows[1].1), (2, false));
    let of = |row_id: &str| json!({"from": time, "to": time + 1, "rowId": row_id});
    let elsewhen = json!({"from": time + 1, "to": time + 9, "rowId": rows[1].1});
    assert_eq!(delete(&small, &elsewhen), (200, "0".to_owned(), 0));
    assert_eq!(delete(&small, &of(&rows[1].1)), (200, "1".to_owned(), 1));
    assert_eq!(delete(&small, &of(&rows[1].1)), (200, "0".to_owned(), 0), "it is gone");
    assert_eq!(row_ids(&small, "id: b"), rows[..1]);
    assert_eq!(small.column("SELECT id ORDER BY id"), ["a", "b", "c"]);
    // With both, the row id counts.
    let mut both = of(&row_ids(&small, "id: a")[0].1);
    both["query"] = json!("id: c");
    assert_eq!(delete(&small, &both), (200, "1".to_owned(), 1));
    assert_eq!(small.found("*"), ["b", "c"]);
    for body in [
        json!({"from": time, "to": time + 1}),
        json!({"from": time, "to": time, "rowId": rows[0].1}),
        json!({"from": time, "rowId": rows[0].1}),
        json!({"from": time, "to": time + 1, "rowId": "?"}),
        json!({"from": time, "to": time + 1, "query": "* | SELECT 1"}),
    ] {
        assert_eq!(delete(&small, &body).0, 400, "{body}");
    }
    assert_eq!(small.found("*"), ["b", "c"]);
    let (stored, settings) = (small.sls.logs(STORE), json!({"enableModify": false}));
    assert_eq!(stored.len(), 4, "what is pulled does not change");
    let answer =
        small.asking().send("PUT", &format!("/logstores/{STORE}"), &[], &settings.to_string());
    assert_eq!(answer.status, 400, "once and for all");

    let plain = Small::new(&[]);
    plain.put_some(1);
    assert!(!plain.asking().search(STORE, "*")[0].contains_key("__rowid__"));
    let body = json!({"from": 0, "to": now_s(), "rowId": "0|0|0"});
    assert_eq!(delete(&plain, &body).0, 400);
}

#[test]
fn a_logstore_of_mode_query_has_no_sql() {
    let small = Small::without_index(&[], json!({"mode": "query"}));
    small.index(json!({}));
    small.put_some(1);
    assert_eq!(small.found("*"), ["a"]);
    assert!(small.refused("* | SELECT id").contains("mode query"));
}

/// Statements 1, 5 and 6 of Dify's readers on what its writer leaves: a log for each state.
#[test]
fn of_a_live_runs_logs_the_newest_is_read() {
    let small = Small::without_index(&[], json!({}));
    let text = json!({"type": "text", "doc_value": true});
    let long = json!({"type": "long", "doc_value": true});
    let keys = json!({"id": text, "status": text, "finished_at": text, "created_at": text,
        "total_tokens": long, "log_version": long});
    small.index(json!({"keys": keys}));
    let live = |id: &str, version: &str, status: &str, finished_at: &str| {
        let fields = [("id", id), ("log_version", version), ("status", status)];
        let more = [("finished_at", finished_at), ("total_tokens", "5")];
        small.put(now_s() - 9, &[&fields[..], &more[..]].concat());
    };
    live("r1", "1790000000000000001", "running", "");
    live("r1", "1790000000000000002", "succeeded", "2026-01-01T00:00:01");
    live("r2", "1790000000000000003", "running", "");
    let window = |filter: &str| {
        format!(
            "SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY log_version DESC) AS rn \
             FROM workflow_execution {filter}"
        )
    };
    let list = format!(
        "SELECT id, status FROM ({}) t WHERE rn = 1 ORDER BY created_at DESC LIMIT 21",
        window("")
    );
    let states: Vec<_> =
        small.sql(&list).iter().map(|row| format!("{} {}", row["id"], row["status"])).collect();
    assert_eq!(states, ["r1 succeeded", "r2 running"]);
    // It counts every run that was ever running.
    let running = format!(
        "SELECT COUNT(*) as count FROM ({}) t WHERE rn = 1",
        window("WHERE status='running'")
    );
    assert_eq!(small.column(&running), ["2"]);
    // An empty text is a finish time, unless SLS takes it for NULL.
    let tokens =
        "SELECT SUM(total_tokens) as s FROM workflow_execution WHERE finished_at IS NOT NULL";
    assert_eq!(small.column(tokens), ["15"]);
    small.switch(json!({"empty_text": "null"}));
    assert_eq!(small.column(tokens), ["5"]);
}

#[test]
fn both_versions_of_getlogs_answer_alike() {
    let small = Small::new(&[]);
    small.put_some(3);
    let query = "n > 1 | SELECT id, n, n / 2.0 AS half FROM log\nORDER BY n DESC";
    let flat = small.asking().get_logs_v1(STORE, &[("query", query), ("line", "100")]);
    let wanted =
        json!([{"id": "c", "n": "3", "half": "1.5"}, {"id": "b", "n": "2", "half": "1.0"}]);
    assert_eq!(flat.body, wanted);
    assert_eq!((flat.header("x-log-count"), flat.header("x-log-has-sql")), ("2", "true"));
    assert_eq!(flat.header("x-log-where-query"), "n > 1");
    let meta = small.asking().get_logs_v3(STORE, json!({"query": query}));
    assert_eq!(meta.body["data"], wanted);
    assert_eq!(meta.body["meta"]["keys"], json!(["id", "n", "half"]));
    assert_eq!(meta.body["meta"]["columnTypes"], json!(["varchar", "bigint", "double"]));
    for name in ["line", "lines"] {
        let answer = small.asking().get_logs_v3(STORE, json!({"query": "*", name: 2}));
        assert_eq!(answer.rows().len(), 2);
    }
}

#[test]
fn a_statement_can_have_parts_with_names() {
    let small = Small::new(&[]);
    // 2026-01-01 20:00:00 UTC and the hours behind.
    for (n, id) in ["a", "b", "a", "c"].iter().enumerate() {
        let hour = 3600 * i64::try_from(n).unwrap();
        small.put(1_767_297_600 + hour, &[("id", id), ("n", &n.to_string())]);
    }
    let sql = "WITH latest AS (
            SELECT *, ROW_NUMBER() OVER (PARTITION BY \"id\" ORDER BY n DESC) AS rank FROM log
        ), hours AS (
            SELECT date_trunc('hour', from_unixtime(__time__)) AS hour, id FROM latest
            WHERE rank = 1 AND COALESCE(NULLIF(id, 'c'), 'none') <> 'none'
        )
        SELECT hour, date_format(hour, '%H:%i') AS short, COUNT(*) FROM hours
        GROUP BY hour ORDER BY hour DESC LIMIT 0, 10";
    let row = |hour: &str, short: &str| -> Row {
        [("hour", hour), ("short", short), ("_col2", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    };
    let wanted = [row("2026-01-01 22:00:00.000", "22:00"), row("2026-01-01 21:00:00.000", "21:00")];
    assert_eq!(small.sql(sql), wanted);
}

#[test]
fn sql_can_stand_alone_unless_it_is_switched_off() {
    let small = Small::new(&[]);
    small.put_some(2);
    let sql = "SELECT approx_distinct(id) AS c FROM \"workflow_execution\" WHERE __time__ > 0";
    assert_eq!(small.asking().sql(STORE, sql)[0]["c"], "2");
    small.switch(json!({"plain_sql": "refuse"}));
    assert_eq!(small.refused(sql), "sql query must follow search query,please read syntax doc");
}

#[test]
fn days_are_those_of_the_time_zone_of_sql() {
    let small = Small::new(&[]);
    // 2026-01-01 20:00:00 UTC.
    small.put(1_767_297_600, &[("id", "a")]);
    let days = "SELECT DATE(from_unixtime(__time__)) AS date GROUP BY date";
    assert_eq!(small.column(days), ["2026-01-01"]);
    small.switch(json!({"sql_time_zone": "Asia/Shanghai"}));
    assert_eq!(small.column(days), ["2026-01-02"]);
    let start = "SELECT to_unixtime(from_iso8601_timestamp('2026-01-02T04:00:00')) AS s";
    assert_eq!(small.column(start), ["1767297600.0"]);
}

#[test]
fn what_cannot_be_read_is_refused_in_slss_words() {
    let small = Small::new(&[]);
    small.put_some(1);
    for (query, words) in [
        ("* | SELECT id\nFROM log WHERE \"a\" = 1", "line 2:16: Column 'a' cannot be resolved; it"),
        ("* | SELECT id FROM elsewhere", "LogStore (elsewhere) is not found"),
        ("* | SELECT unheard_of(id)", "line 1:8: Function unheard_of not registered"),
        ("* | SELECT id FROM", "ErrorType:SyntaxError.ErrorPosition,line:1,column:"),
        ("* | SELECT from_iso8601_timestamp('')", "Invalid format: \"\""),
        ("* | DROP TABLE log", "mismatched input 'DROP'"),
        ("other: x", "key (other) is not config as key value config"),
        ("id:", "ErrorType:QueryParseError.ErrorMessage:syntax error"),
    ] {
        let message = small.refused(query);
        assert!(message.contains(words), "{query}: {message}");
    }
    let histogram = [("type", "histogram"), ("query", "* | SELECT 1")];
    small.asking().get_logs_v1(STORE, &histogram).refused();
    let empty = json!({"query": "*", "from": 9, "to": 9});
    small.asking().get_logs_v3(STORE, empty).refused();
}

#[test]
fn the_table_of_sql_grows_with_the_logstore_and_changes_with_the_index() {
    let small = Small::new(&[]);
    for n in 1..=3 {
        small.put(now_s() - 9, &[("id", "a"), ("n", &n.to_string())]);
        assert_eq!(small.column("SELECT sum(n) AS s"), [(n * (n + 1) / 2).to_string()]);
        assert_eq!(
            small.asking().sql(STORE, "n > 1 | SELECT count(*) AS c")[0]["c"],
            (n - 1).to_string()
        );
    }
    let path = format!("/logstores/{STORE}/index");
    let json_key = json!({"type": "json", "doc_value": true, "json_keys": {
        "a.b": {"type": "long", "doc_value": true}}});
    small.admin("PUT", &path, json!({"keys": {"text": json_key}}));
    small.put(now_s() - 9, &[("text", "{\"a\": {\"b\": 7}}")]);
    assert_eq!(small.column("SELECT \"text.a.b\" ORDER BY 1"), ["7", "null", "null", "null"]);
    small.admin("DELETE", &path, json!({}));
    small.index(json!({}));
    assert_eq!(small.column("SELECT count(*) AS c"), ["0"]);
    small.put_some(1);
    assert_eq!(small.column("SELECT count(*) AS c"), ["1"]);
}
