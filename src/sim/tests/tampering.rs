//! Damage that is ordered: what PullLogs, searches and SQL see of it.

use super::*;
use crate::wire::log_group::LogGroupView;

/// The route to shard 0, where everything here is stored.
const ROUTE: &str = "/logstores/runs/shards/route?key=00000000000000000000000000000000";

/// A group of one batch with logs of these ids.
fn batch(name: &str, ids: &[&str]) -> Vec<u8> {
    let mut writer = LogGroupWriter::default();
    for id in ids {
        writer.begin_log(100, 0);
        writer.field("id", id.as_bytes());
        writer.field("text", format!("of {id}").as_bytes());
        writer.end_log();
    }
    writer.finish(Some(""), Some("backfill"), &[("__batch__", name)]);
    writer.bytes().to_vec()
}

impl Sim {
    /// With batches `x` of logs a and b, and `y` of logs c and d, and an index.
    async fn with_batches() -> Self {
        let sim = Self::with_logstore(SignatureVersion::V4).await;
        sim.fill().await;
        sim
    }

    async fn fill(&self) {
        let key = json!({"type": "text", "doc_value": true});
        let index = json!({"keys": {"id": key, "text": key, "__tag__:__batch__": key}}).to_string();
        let got = self.send("POST", "/logstores/runs/index", &[], index.as_bytes()).await;
        assert_eq!(got.status, 200);
        for (name, ids) in [("x", ["a", "b"]), ("y", ["c", "d"])] {
            assert_eq!(self.put(ROUTE, &batch(name, &ids)).await.status, 200);
        }
    }

    /// How many logs an order met.
    async fn tamper(&self, change: Value) -> u64 {
        let order = json!({"project": "dify", "logstore": "runs", "change": change}).to_string();
        let answer = self.control("POST", "/tamper", &order).await;
        serde_json::from_str::<Value>(&answer).unwrap()["logs"].as_u64().unwrap()
    }

    /// Every log that can be pulled: batch, id, text (`-` if there is none) and time.
    async fn pulled(&self) -> Vec<String> {
        let mut logs = Vec::new();
        for raw in self.groups(0).await {
            let group = LogGroupView::parse(&raw).unwrap();
            let batch = String::from_utf8_lossy(group.tag("__batch__").unwrap()).into_owned();
            for log in &group.logs {
                let field = |key: &str| {
                    let found = log.contents.iter().find(|(name, _)| *name == key.as_bytes());
                    found.map_or("-".into(), |(_, value)| String::from_utf8_lossy(value))
                };
                let (id, text) = (field("id"), field("text"));
                logs.push(format!("{batch} {id} {text} {}", log.time.unwrap()));
            }
        }
        logs
    }

    /// The same of every log that a search finds.
    async fn found(&self) -> Vec<String> {
        let logs = self.get("/logstores/runs?type=log&from=0&to=1000&query=*").await.json();
        let shown = |log: &Value| {
            let field = |key: &str| log[key].as_str().unwrap_or("-").to_owned();
            let (batch, id) = (field("__tag__:__batch__"), field("id"));
            format!("{batch} {id} {} {}", field("text"), field("__time__"))
        };
        logs.as_array().unwrap().iter().map(shown).collect()
    }

    /// The same of every log that SQL sees.
    async fn selected(&self) -> Vec<String> {
        let sql = "* | SELECT \"__tag__:__batch__\" || ' ' || id || ' ' || coalesce(text, '-') || ' ' \
                   || cast(__time__ AS varchar) AS log ORDER BY __time__";
        let body = json!({"from": 0, "to": 1000, "query": sql}).to_string();
        let got = self.send("POST", "/logstores/runs/logs", &[], body.as_bytes()).await.json();
        let rows = got["data"].as_array().unwrap_or_else(|| panic!("{got}")).clone();
        rows.iter().map(|row| row["log"].as_str().unwrap().to_owned()).collect()
    }

    /// Fails unless all three see these logs.
    async fn sees(&self, wanted: &[&str]) {
        let sorted = |mut logs: Vec<String>| {
            logs.sort();
            logs
        };
        assert_eq!(sorted(self.pulled().await), wanted, "pulled");
        assert_eq!(sorted(self.found().await), wanted, "found");
        assert_eq!(sorted(self.selected().await), wanted, "selected");
    }
}

const ALL: [&str; 4] = ["x a of a 100", "x b of b 100", "y c of c 100", "y d of d 100"];

#[tokio::test]
async fn every_change_is_seen_by_pulls_searches_and_sql() {
    let [a, b, c, d] = ALL;
    let log = |id: &str| json!({"id": id});
    for (change, logs, wanted) in [
        (json!({"drop_log": log("b")}), 1, vec![a, c, d]),
        (json!({"drop_batch": "x"}), 2, vec![c, d]),
        (json!({"double_log": log("c")}), 1, vec![a, b, c, c, d]),
        (json!({"double_batch": "y"}), 2, vec![a, b, c, c, d, d]),
        (json!({"swap_logs": [log("a"), log("d")]}), 2, {
            vec!["x b of b 100", "x d of d 100", "y a of a 100", "y c of c 100"]
        }),
        (json!({"swap_logs": [log("a"), log("b")]}), 2, vec![a, b, c, d]),
        (json!({"set_time": {"log": log("a"), "time": 77}}), 1, vec!["x a of a 77", b, c, d]),
        (
            json!({"remove_field": {"log": log("c"), "field": "text"}}),
            1,
            vec![a, b, "y c - 100", d],
        ),
        (
            json!({"set_field": {"log": log("c"), "field": "text", "value": "new"}}),
            1,
            vec![a, b, "y c new 100", d],
        ),
        (json!({"flip_byte": {"log": log("d"), "field": "text", "at": 0}}), 1, {
            vec![a, b, c, "y d nf d 100"]
        }),
    ] {
        let sim = Sim::with_batches().await;
        sim.sees(&ALL).await;
        assert_eq!(sim.tamper(change.clone()).await, logs, "{change}");
        sim.sees(&wanted).await;
    }
}

#[tokio::test]
async fn cursors_stay_when_groups_are_lost() {
    let sim = Sim::with_batches().await;
    let (begin, end) = (sim.cursor(0, "begin").await, sim.cursor(0, "end").await);
    assert_eq!(sim.tamper(json!({"drop_batch": "x"})).await, 2);
    assert_eq!(
        [sim.cursor(0, "begin").await, sim.cursor(0, "end").await],
        [begin.clone(), end.clone()]
    );
    let pull = format!("/logstores/runs/shards/0?type=log&count=1&cursor={begin}");
    let got = sim.get(&pull).await;
    assert_eq!(split_list(&got.body).unwrap(), [batch("y", &["c", "d"])]);
    assert_eq!((got.header("x-log-count"), got.header("x-log-cursor")), ("1", &end[..]));
    for id in ["c", "d"] {
        sim.tamper(json!({"drop_log": {"id": id}})).await;
    }
    let got = sim.get(&pull).await;
    assert_eq!((got.header("x-log-count"), got.header("x-log-cursor")), ("0", &end[..]));
    assert!(sim.control("GET", "/logs/dify/runs", "").await.is_empty());
}

#[tokio::test]
async fn one_of_several_logs_is_meant_by_its_batch_or_its_number() {
    let sim = Sim::with_batches().await;
    sim.put(ROUTE, &batch("z", &["a"])).await;
    sim.tamper(json!({"double_log": {"id": "a"}})).await;
    let set = async |which: Value, value: &str| {
        let change = json!({"set_field": {"log": which, "field": "text", "value": value}});
        sim.tamper(change).await;
    };
    set(json!({"id": "a", "batch": "z"}), "by batch").await;
    set(json!({"id": "a", "nth": 3}), "by number").await;
    set(json!({"id": "a", "batch": "x", "nth": 1}), "by both").await;
    let [_, b, c, d] = ALL;
    sim.sees(&["x a by both 100", "x a by number 100", b, c, d, "z a by batch 100"]).await;
}

#[tokio::test]
async fn an_order_that_nothing_fits_changes_nothing() {
    let sim = Sim::with_batches().await;
    let log = json!({"id": "a"});
    for change in [
        json!({"drop_log": {"id": "e"}}),
        json!({"drop_log": {"id": "a", "nth": 2}}),
        json!({"drop_log": {"id": "a", "batch": "y"}}),
        json!({"drop_log": {"id": "a", "number": 1}}),
        json!({"drop_batch": "z"}),
        json!({"double_batch": "z"}),
        json!({"swap_logs": [log, {"id": "e"}]}),
        json!({"swap_logs": [log]}),
        json!({"remove_field": {"log": log, "field": "none"}}),
        json!({"flip_byte": {"log": log, "field": "text", "at": 99}}),
        json!({"expire": {}}),
        json!({"explode": log}),
    ] {
        let order = json!({"project": "dify", "logstore": "runs", "change": change});
        let url = format!("{}/_sim/tamper", sim.base);
        let answer = sim.http.post(url).body(order.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{change}");
        assert!(answer.text().await.unwrap().contains("ParameterInvalid"), "{change}");
    }
    sim.sees(&ALL).await;
}

#[tokio::test]
async fn what_is_deleted_stays_deleted_when_its_group_loses_a_log() {
    let sim = Sim::with_batches().await;
    let task = json!({"from": 0, "to": 1000, "query": "id: d"}).to_string();
    let got = sim.send("POST", "/logstores/runs/deletelogtasks", &[], task.as_bytes()).await;
    assert_eq!(got.status, 200);
    sim.tamper(json!({"drop_log": {"id": "c"}})).await;
    assert_eq!(sim.found().await, &ALL[..2]);
    assert_eq!(sim.pulled().await, [ALL[0], ALL[1], ALL[3]]);
}

/// PullLogs goes by the time of receipt, searches by the logs' own times too.
#[tokio::test]
async fn logs_expire_on_order() {
    let sim = Sim::with_batches().await;
    sim.tamper(json!({"set_time": {"log": {"id": "a"}, "time": 99}})).await;
    sim.tamper(json!({"expire": {"log_time_before": 100}})).await;
    assert_eq!(sim.pulled().await.len(), 4);
    assert_eq!(
        (sim.found().await, sim.selected().await.len()),
        (ALL[1..].iter().map(|log| (*log).to_owned()).collect(), 3)
    );
    let (begin, now_s) = (sim.cursor(0, "begin").await, Moment::now(0).unix_s());
    sim.tamper(json!({"expire": {"received_before": now_s - 60}})).await;
    assert_eq!(sim.pulled().await.len(), 4, "they came later");
    sim.tamper(json!({"expire": {"received_before": now_s + 60}})).await;
    sim.sees(&[]).await;
    let pull = format!("/logstores/runs/shards/0?type=log&count=1&cursor={begin}");
    assert_eq!(sim.get(&pull).await.error().1, "InvalidCursor");
    assert_eq!(sim.put(ROUTE, &batch("z", &["e"])).await.status, 200);
    sim.tamper(json!({"expire": {"received_before": 0}})).await;
    sim.sees(&[]).await;
    sim.switch(json!({"clock_offset_s": 120})).await;
    sim.skew_s.store(120, Ordering::Relaxed);
    assert_eq!(sim.put(ROUTE, &batch("z", &["e"])).await.status, 200);
    sim.sees(&["z e of e 100"]).await;
}

#[tokio::test]
async fn damage_survives_another_start() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let data = Some(folder.path().to_owned());
        Sim::start_with(SignatureVersion::V4, Settings { data, ..settings() }).await
    };
    let wanted = ["x b of b 100", "y c of c 100", "y c of c 100", "y d of d 100", "y d of d 100"];
    {
        let sim = start().await;
        sim.make_logstore().await;
        sim.fill().await;
        sim.tamper(json!({"drop_log": {"id": "a"}})).await;
        sim.tamper(json!({"double_batch": "y"})).await;
        sim.sees(&wanted).await;
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while crate::sim::journal::Journal::open(folder.path(), |_| Ok(())).is_err() {
        assert!(std::time::Instant::now() < deadline, "the journal stays in use");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start().await.sees(&wanted).await;
}
