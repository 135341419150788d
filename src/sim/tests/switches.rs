//! Switches, as a client meets them.

use super::*;

const ROUTE: &str = "/logstores/runs/shards/route?key=ffffffffffffffffffffffffffffffff&seqid=";

impl Sim {
    pub(super) async fn switch(&self, change: Value) {
        self.control("PATCH", "/switches", &change.to_string()).await;
    }

    /// PutLogs with number `number`; gives its error code, if any.
    async fn numbered(&self, number: u64) -> String {
        let got = self.put(&format!("{ROUTE}{number}"), &group(1, &[("a", "b")])).await;
        if got.status == 200 { String::new() } else { got.error().1 }
    }
}

#[tokio::test]
async fn switches_change_while_it_runs() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    sim.switch(json!({"seqid": "ignored"})).await;
    assert_eq!([sim.numbered(1).await, sim.numbered(1).await], ["", ""]);
    sim.switch(json!({"seqid": null})).await;
    assert_eq!([sim.numbered(1).await, sim.numbered(1).await], ["", "InvalidSequenceId"]);
    let switches: Value = serde_json::from_str(&sim.control("GET", "/switches", "").await).unwrap();
    assert_eq!((&switches["seqid"], &switches["logs_max"]), (&json!("honoured"), &json!(40_960)));
}

#[tokio::test]
async fn its_clock_can_be_apart_from_ours() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let sim = Sim::with_logstore(version).await;
        for offset_s in [-1000, 1000] {
            sim.switch(json!({"clock_offset_s": offset_s})).await;
            let got = sim.get("/logstores").await;
            assert_eq!(got.error().1, "RequestTimeExpired");
            let said_s: i64 = got.header("x-log-time").parse().unwrap();
            let now_s = Moment::now(0).unix_s();
            assert!((said_s - now_s - offset_s).abs() <= 5, "{said_s} {now_s}");
            let date_s = crate::wire::sign::parse_http_date(got.header("date")).unwrap();
            assert_eq!(date_s, said_s);
            // Who signs by its clock is served, and stored at its time.
            sim.skew_s.store(offset_s, Ordering::Relaxed);
            assert_eq!(sim.put(LB, &group(1, &[])).await.status, 200);
            sim.skew_s.store(0, Ordering::Relaxed);
        }
        sim.switch(json!({"clock_offset_s": 0})).await;
        let begin = sim.cursor(0, "begin").await;
        let target = format!("/logstores/runs/shards/0?type=cursor_time&cursor={begin}");
        let received_s = sim.get(&target).await.json()["cursor_time"].as_i64().unwrap();
        assert!((received_s - Moment::now(0).unix_s() + 1000).abs() <= 5, "{received_s}");
        sim.switch(json!({"signature_life_s": 60})).await;
        sim.skew_s.store(-70, Ordering::Relaxed);
        assert_eq!(sim.get("/logstores").await.error().1, "RequestTimeExpired");
    }
}

#[tokio::test]
async fn what_lags_is_acknowledged_but_cannot_be_pulled_yet() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    sim.switch(json!({"receive_lag_ms": 600})).await;
    let begin = sim.cursor(1, "end").await;
    let start = std::time::Instant::now();
    assert_eq!([sim.numbered(1).await, sim.numbered(1).await], ["", "InvalidSequenceId"]);
    let (end, pulled) = (sim.cursor(1, "end").await, sim.groups(1).await);
    if start.elapsed() < Duration::from_millis(600) {
        assert_eq!((end, pulled.len()), (begin.clone(), 0));
    }
    while sim.cursor(1, "end").await == begin {
        assert!(start.elapsed() < Duration::from_secs(10), "never shown");
    }
    assert!(start.elapsed() >= Duration::from_millis(600));
    assert_eq!(sim.groups(1).await.len(), 1);
}

#[tokio::test]
async fn quotas_refuse_what_is_too_much() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    for (quota, wanted) in [
        ("shard_writes_per_s", "ShardWriteQuotaExceed"),
        ("shard_bytes_per_s", "ShardWriteQuotaExceed"),
        ("project_writes_per_min", "WriteQuotaExceed"),
        ("project_bytes_per_min", "WriteQuotaExceed"),
    ] {
        sim.switch(json!({quota: 0})).await;
        let got = sim.put(LB, &group(1, &[])).await;
        assert_eq!(got.error(), (403, wanted.to_owned()), "{quota}");
        sim.switch(json!({quota: null})).await;
    }
    assert_eq!(sim.put(LB, &group(1, &[])).await.status, 200);
    let begin = sim.cursor(0, "begin").await;
    let pull = format!("/logstores/runs/shards/0?type=log&count=1&cursor={begin}");
    for (quota, wanted) in [
        ("shard_reads_per_s", "ShardReadQuotaExceed"),
        ("shard_read_bytes_per_s", "ShardReadQuotaExceed"),
        ("project_reads_per_min", "ReadQuotaExceed"),
    ] {
        sim.switch(json!({quota: 0})).await;
        assert_eq!(sim.get(&pull).await.error(), (403, wanted.to_owned()), "{quota}");
        sim.switch(json!({quota: null})).await;
    }
    assert_eq!(sim.get(&pull).await.status, 200);
}

#[tokio::test]
async fn limits_spelling_and_compressions_are_switches() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let two = {
        let mut writer = LogGroupWriter::default();
        for _ in 0..2 {
            writer.begin_log(1, 0);
            writer.end_log();
        }
        writer.bytes().to_vec()
    };
    for (change, wanted) in [
        (json!({"logs_max": 1}), (400, "PostBodyTooLarge")),
        (json!({"raw_bytes_max": two.len() - 1}), (400, "PostBodyTooLarge")),
        (json!({"compression_refused": ["lz4"]}), (400, "InvalidCompressType")),
        (json!({"log_time": "refuse"}), (400, "PostBodyInvalid")),
        (json!({"log_time": "refuse", "older_spelling": true}), (499, "PostBodyInvalid")),
    ] {
        sim.switch(change.clone()).await;
        let (status, code) = sim.put(LB, &two).await.error();
        assert_eq!((status, code.as_str()), wanted, "{change}");
        let back: serde_json::Map<_, _> =
            change.as_object().unwrap().keys().map(|name| (name.clone(), Value::Null)).collect();
        sim.switch(back.into()).await;
    }
    assert_eq!(sim.put(LB, &two).await.status, 200);
    sim.switch(json!({"older_spelling": true})).await;
    assert_eq!(sim.get("/logstores/none").await.error(), (404, "LogstoreNotExist".to_owned()));
    sim.switch(json!({"log_time": "drop"})).await;
    assert_eq!(sim.put(LB, &two).await.status, 200);
    assert_eq!(sim.groups(0).await.len() + sim.groups(1).await.len(), 1, "dropped");
    assert_eq!(sim.stats().await["logs"], 2);
}

#[tokio::test]
async fn a_new_logstore_refuses_writes_for_a_while() {
    let sim = Sim::start(SignatureVersion::V4, false).await;
    sim.switch(json!({"new_logstore_wait_ms": 400})).await;
    sim.make_logstore().await;
    let start = std::time::Instant::now();
    let got = sim.put(LB, &group(1, &[])).await;
    if start.elapsed() < Duration::from_millis(300) {
        assert_eq!(got.error(), (404, "LogStoreNotExist".to_owned()));
    }
    while sim.put(LB, &group(1, &[])).await.status != 200 {
        assert!(start.elapsed() < Duration::from_secs(10), "never taken");
    }
    assert_eq!(sim.get("/logstores/runs").await.status, 200);
}

#[tokio::test]
async fn shards_are_split_and_merged_and_parents_stay_readable() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let action = async |shard: u32, action: &str| {
        sim.send("POST", &format!("/logstores/runs/shards/{shard}?action={action}"), &[], b"").await
    };
    let ids = |got: &Got| -> Vec<(u64, String)> {
        let shards = got.json();
        let shards = shards.as_array().unwrap().iter();
        let status = |shard: &Value| shard["status"].as_str().unwrap().to_owned();
        shards.map(|shard| (shard["shardID"].as_u64().unwrap(), status(shard))).collect()
    };
    let (rw, ro) = ("readwrite".to_owned(), "readonly".to_owned());
    assert_eq!(sim.numbered(1).await, "");
    let got = action(1, "split&key=c0000000000000000000000000000000").await;
    assert_eq!(ids(&got), [(1, ro.clone()), (2, rw.clone()), (3, rw.clone())]);
    // The key is of shard 3 now, which knows the number.
    assert_eq!([sim.numbered(1).await, sim.numbered(2).await], ["InvalidSequenceId", ""]);
    let counts = [sim.groups(1).await.len(), sim.groups(2).await.len(), sim.groups(3).await.len()];
    assert_eq!(counts, [1, 0, 1]);
    let got = action(1, "split").await;
    assert_eq!(got.error(), (400, "ParameterInvalid".to_owned()));
    assert_eq!(action(3, "merge").await.error().1, "ParameterInvalid", "the last has no next");
    assert_eq!(action(9, "merge").await.error().1, "ShardNotExist");
    let got = action(2, "merge").await;
    assert_eq!(ids(&got), [(4, rw), (2, ro.clone()), (3, ro)]);
    sim.switch(json!({"child_forgets_numbers": true})).await;
    assert_eq!(sim.numbered(2).await, "InvalidSequenceId", "it was merged before");
    assert_eq!(action(4, "split").await.status, 200);
    assert_eq!(sim.numbered(2).await, "");
    // Without a key, only shards that can be written take turns.
    for _ in 0..3 {
        assert_eq!(sim.put(LB, &group(1, &[])).await.status, 200);
    }
    assert_eq!(sim.groups(0).await.len(), 1);
    assert_eq!(sim.get("/logstores/runs").await.json()["shardCount"], 3);
    assert_eq!(sim.get("/logstores/runs/shards").await.json().as_array().unwrap().len(), 7);
}

#[tokio::test]
async fn sixty_four_shards_are_listed_written_and_split() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let many = json!({"logstoreName": "many", "ttl": 30, "shardCount": 64}).to_string();
    assert_eq!(sim.send("POST", "/logstores", &[], many.as_bytes()).await.status, 200);
    let list = async || sim.get("/logstores/many/shards").await.json().as_array().unwrap().clone();
    let shards = list().await;
    assert_eq!(shards.len(), 64);
    for (id, pair) in shards.windows(2).enumerate() {
        assert_eq!((&pair[0]["shardID"], &pair[1]["shardID"]), (&json!(id), &json!(id + 1)));
        assert_eq!(pair[0]["exclusiveEndKey"], pair[1]["inclusiveBeginKey"]);
    }
    for shard in &shards {
        let key = shard["inclusiveBeginKey"].as_str().unwrap();
        let route = format!("/logstores/many/shards/route?key={key}&seqid=1");
        assert_eq!(sim.put(&route, &group(1, &[])).await.status, 200);
        let target = format!("/logstores/many/shards/{}?action=split", shard["shardID"]);
        assert_eq!(sim.send("POST", &target, &[], b"").await.status, 200);
        // The child that owns the key knows its number.
        assert_eq!(sim.put(&route, &group(1, &[])).await.error().1, "InvalidSequenceId");
    }
    let shards = list().await;
    let with = |status: &str| shards.iter().filter(|shard| shard["status"] == status).count();
    assert_eq!((with("readonly"), with("readwrite")), (64, 128));
    let mut answers = Vec::new();
    for id in 64..97 {
        let target = format!("/logstores/many/shards/{id}?action=split");
        answers.push(sim.send("POST", &target, &[], b"").await);
    }
    let last = answers.pop().unwrap();
    assert!(answers.iter().all(|got| got.status == 200), "up to 256");
    assert_eq!(last.error(), (400, "ProjectQuotaExceed".to_owned()));
}

#[tokio::test]
async fn a_logstore_made_again_is_empty_and_knows_no_number_and_no_cursor() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    assert_eq!([sim.numbered(1).await, sim.numbered(1).await], ["", "InvalidSequenceId"]);
    let cursor = sim.cursor(1, "end").await;
    assert_eq!(sim.send("DELETE", "/logstores/runs", &[], b"").await.status, 200);
    let settings = json!({"logstoreName": "runs", "ttl": 30}).to_string();
    let got = sim.send("POST", "/logstores", &[], settings.as_bytes()).await;
    assert_eq!(got.status, 200);
    assert!(sim.groups(1).await.is_empty());
    let pull = format!("/logstores/runs/shards/1?type=log&count=1&cursor={cursor}");
    assert_eq!(sim.get(&pull).await.error().1, "InvalidCursor");
    assert_eq!(sim.numbered(1).await, "");
    assert_eq!(sim.send("DELETE", "/", &[], b"").await.status, 200);
    assert_eq!(sim.get("/logstores").await.error().1, "ProjectNotExist");
}
