//! What is kept on disk, and the request log.

use super::*;

const ROUTE: &str = "/logstores/runs/shards/route?key=ffffffffffffffffffffffffffffffff&seqid=";

/// Everything a client can see of what is stored.
async fn seen(sim: &Sim) -> (Value, Value, Value, Value, String) {
    let shards = sim.get("/logstores/runs/shards").await.json();
    let logs = sim.control("GET", "/logs/dify/runs", "").await;
    let settings = sim.get("/logstores/runs").await.json();
    (
        sim.get("/").await.json(),
        shards,
        settings,
        sim.get("/logstores/runs/index").await.json(),
        logs,
    )
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_another_start() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let data = Some(folder.path().to_owned());
        Sim::start_with(SignatureVersion::V4, Settings { data, ..settings() }).await
    };
    let before = {
        let sim = start().await;
        // Else everything is made within a second.
        sim.switch(json!({"create_time_offset_s": -5000})).await;
        sim.make_logstore().await;
        sim.switch(json!({"split_groups_ms": 1, "shard_writes_per_s": 1})).await;
        // Without a hash key, and some refused by the quota: the turns are not the groups.
        for n in 0..6 {
            sim.put(LB, &group(n, &[("turn", "x")])).await;
        }
        sim.switch(json!({"shard_writes_per_s": 0, "number_recorded": "before_quota"})).await;
        let got = sim.put(&format!("{ROUTE}7"), &group(7, &[])).await;
        assert_eq!(got.error().1, "ShardWriteQuotaExceed");
        sim.switch(json!({"shard_writes_per_s": null})).await;
        let split = "/logstores/runs/shards/1?action=split";
        assert_eq!(sim.send("POST", split, &[], b"").await.status, 200);
        assert_eq!(sim.put(&format!("{ROUTE}8"), &group(8, &[])).await.status, 200);
        let index = br#"{"line": {}}"#;
        assert_eq!(sim.send("POST", "/logstores/runs/index", &[], index).await.status, 200);
        let ttl = json!({"logstoreName": "runs", "ttl": 77}).to_string();
        let got = sim.send("PUT", "/logstores/runs", &[], ttl.as_bytes()).await;
        assert_eq!(got.status, 200);
        assert_eq!(sim.put(LB, b"bad").await.error().1, "PostBodyInvalid");
        seen(&sim).await
    };
    // The first one ends with its task, a moment after it was told.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while crate::sim::journal::Journal::open(folder.path(), |_| Ok(())).is_err() {
        assert!(std::time::Instant::now() < deadline, "the journal stays in use");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sim = start().await;
    assert_eq!(seen(&sim).await, before);
    for number in [7, 8] {
        let got = sim.put(&format!("{ROUTE}{number}"), &group(9, &[])).await;
        assert_eq!(got.error().1, "InvalidSequenceId", "{number}");
    }
    assert_eq!(sim.put(&format!("{ROUTE}9"), &group(9, &[])).await.status, 200);
}

#[tokio::test]
async fn every_request_is_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("requests");
    let request_log = Some(path.clone());
    let settings = Settings { request_log, ..settings() };
    let sim = Sim::start_with(SignatureVersion::V4, settings).await;
    sim.make_logstore().await;
    sim.control("POST", "/faults", r#"{"kind":"put","action":"cut_after"}"#).await;
    assert!(sim.try_put(LB, &group(1, &[])).await.is_err());
    let got = sim.put(LB, b"bad").await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["target"].as_str().unwrap().trim_end_matches('?'), &line["status"]))
        .collect();
    let (ok, bad) = (&json!(200), &json!(400));
    assert_eq!(told, [("/", ok), ("/logstores", ok), (LB, &Value::Null), (LB, bad)]);
    assert_eq!(lines[2]["fault"], "\"cut_after\"");
    assert_eq!(lines[3]["request_id"], got.header("x-log-requestid"));
    assert_eq!((&lines[3]["method"], &lines[3]["project"]), (&json!("POST"), &json!("dify")));
}
