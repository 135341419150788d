//! Faults, as a client meets them.

use super::*;

const ROUTE: &str = "/logstores/runs/shards/route?key=ffffffffffffffffffffffffffffffff&seqid=1";

impl Sim {
    async fn order(&self, fault: Value) {
        self.control("POST", "/faults", &fault.to_string()).await;
    }

    /// Waits until as many requests are held, or stored late, as `wanted` says.
    async fn until(&self, name: &str, wanted: u64) {
        for _ in 0..1000 {
            let faults: Value =
                serde_json::from_str(&self.control("GET", "/faults", "").await).unwrap();
            if faults[name] == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is not {wanted} within ten seconds");
    }

    /// All groups of both shards, in the order of their bytes.
    async fn stored(&self) -> Vec<Vec<u8>> {
        let mut stored = self.groups(0).await;
        stored.extend(self.groups(1).await);
        stored.sort();
        stored
    }
}

#[tokio::test]
async fn faults_hit_the_request_they_were_ordered_for() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    let raw = |n| group(n, &[]);
    sim.order(json!({"kind": "put", "nth": 2, "action": "cut_before"})).await;
    sim.order(json!({"kind": "put", "nth": 3, "action": "cut_after"})).await;
    assert_eq!(sim.put(LB, &raw(1)).await.status, 200);
    assert!(sim.try_put(LB, &raw(2)).await.is_err());
    assert!(sim.try_put(LB, &raw(3)).await.is_err());
    assert_eq!(sim.stats().await["put_ok"], 2);

    let refusal = json!({"status": 403, "code": "WriteQuotaExceed", "message": "slower"});
    sim.order(json!({"kind": "put", "times": 2, "action": {"refuse": refusal}})).await;
    for _ in 0..2 {
        assert_eq!(sim.put(LB, &raw(4)).await.error(), (403, "WriteQuotaExceed".to_owned()));
    }
    sim.order(json!({"kind": "any", "action": "html"})).await;
    let got = sim.put(LB, &raw(5)).await;
    assert_eq!((got.status, got.header("x-log-requestid")), (200, ""));
    assert!(got.body.starts_with(b"<html>"));
    sim.order(json!({"kind": "put", "action": "no_request_id"})).await;
    let got = sim.put(LB, &raw(6)).await;
    assert_eq!((got.status, got.header("x-log-requestid")), (200, ""));
    sim.order(json!({"kind": "put", "action": {"delay_ms": 50}})).await;
    let start = std::time::Instant::now();
    assert_eq!(sim.put(LB, &raw(7)).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(50));
    sim.order(json!({"kind": "any", "times": 100, "action": "cut_before"})).await;
    sim.control("DELETE", "/faults", "").await;

    assert_eq!(sim.stored().await, [raw(1), raw(3), raw(6), raw(7)]);
    let lines = sim.control("GET", "/logs/dify/runs", "").await;
    let logs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(logs.len(), 4);
    assert_eq!(logs[0]["tags"], json!({"__batch__": "7/8"}));
    assert_eq!(logs[0]["source"], "backfill");
}

#[tokio::test]
async fn an_answer_can_break_off_in_its_middle() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    sim.order(json!({"kind": "put", "action": "cut_middle"})).await;
    assert!(sim.try_put(ROUTE, &group(1, &[])).await.is_err());
    assert_eq!(sim.stored().await.len(), 1, "it took effect");
    sim.order(json!({"kind": "shards", "action": "cut_middle"})).await;
    assert!(sim.try_send("GET", "/logstores/runs/shards", &[], b"").await.is_err());
    assert_eq!(sim.get("/logstores/runs/shards").await.status, 200);
}

#[tokio::test]
async fn a_request_is_stored_after_its_error() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let answer = json!({"status": 503, "code": "ServerBusy", "message": "later"});
    let late = json!({"after_ms": 300, "answer": answer});
    sim.order(json!({"kind": "put", "action": {"store_late_ms": late}})).await;
    let got = sim.put(ROUTE, &group(1, &[])).await;
    assert_eq!(got.error(), (503, "ServerBusy".to_owned()));
    sim.until("late", 1).await;
    assert!(sim.stored().await.is_empty());
    sim.until("late", 0).await;
    assert_eq!(sim.stored().await.len(), 1);
    assert_eq!(sim.put(ROUTE, &group(1, &[])).await.error().1, "InvalidSequenceId");

    let late = json!({"after_ms": 1, "answer": "cut"});
    sim.order(json!({"kind": "put", "action": {"store_late_ms": late}})).await;
    assert!(sim.try_put(LB, &group(2, &[])).await.is_err());
    sim.until("late", 0).await;
    assert_eq!(sim.stored().await.len(), 2);
}

/// The signature is as old as it may be on arrival, and older when the request is stored.
#[tokio::test]
async fn the_age_of_a_request_stored_late_is_checked_as_a_switch_says() {
    for checks in [false, true] {
        let sim = Sim::with_logstore(SignatureVersion::V1).await;
        sim.switch(json!({"late_store_checks_age": checks})).await;
        let late = json!({"after_ms": 200, "answer": "cut"});
        sim.order(json!({"kind": "put", "action": {"store_late_ms": late}})).await;
        assert!(sim.try_put(ROUTE, &group(1, &[])).await.is_err());
        sim.until("late", 1).await;
        sim.switch(json!({"clock_offset_s": 1000})).await;
        sim.until("late", 0).await;
        sim.switch(json!({"clock_offset_s": 0})).await;
        assert_eq!(sim.stored().await.len(), usize::from(!checks));
    }
}

#[tokio::test]
async fn a_held_request_is_served_when_it_is_released_even_if_its_client_has_gone() {
    for action in [json!("hold"), json!({"hold_before": {}}), json!({"hold_after": {}})] {
        let sim = Arc::new(Sim::with_logstore(SignatureVersion::V4).await);
        sim.order(json!({"kind": "put", "logstore": "runs", "action": action})).await;
        let client = tokio::spawn({
            let sim = Arc::clone(&sim);
            async move { sim.put(ROUTE, &group(1, &[])).await.status }
        });
        sim.until("held", 1).await;
        let stored_before = action.get("hold_after").is_some();
        assert_eq!(sim.stored().await.len(), usize::from(stored_before), "{action}");
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        sim.control("POST", "/release", "").await;
        sim.until("held", 0).await;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while sim.stored().await.len() != 1 {
            assert!(std::time::Instant::now() < deadline, "{action}: never stored");
        }
    }
}

#[tokio::test]
async fn a_held_request_can_end_without_an_answer() {
    for (name, stored) in [("hold_before", 0), ("hold_after", 1)] {
        let sim = Arc::new(Sim::with_logstore(SignatureVersion::V4).await);
        sim.order(json!({"kind": "put", "action": {name: {"then_cut": true}}})).await;
        let client = tokio::spawn({
            let sim = Arc::clone(&sim);
            async move { sim.try_put(ROUTE, &group(1, &[])).await.is_err() }
        });
        sim.until("held", 1).await;
        sim.control("POST", "/release", "").await;
        assert!(client.await.unwrap(), "{name}");
        assert_eq!(sim.stored().await.len(), stored, "{name}");
    }
}

/// A delay may outlast the signature: its age counts when the request is processed.
#[tokio::test]
async fn a_delayed_request_is_checked_when_it_is_processed() {
    let sim = Arc::new(Sim::with_logstore(SignatureVersion::V4).await);
    sim.order(json!({"kind": "put", "action": "hold"})).await;
    let client = tokio::spawn({
        let sim = Arc::clone(&sim);
        async move { sim.put(ROUTE, &group(1, &[])).await.error().1 }
    });
    sim.until("held", 1).await;
    sim.switch(json!({"clock_offset_s": 901})).await;
    sim.control("POST", "/release", "").await;
    assert_eq!(client.await.unwrap(), "RequestTimeExpired");
}

#[tokio::test]
async fn orders_can_be_looked_at() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    sim.order(json!({"kind": "put", "nth": 3, "action": "cut_before"})).await;
    assert_eq!(sim.put(LB, &group(1, &[])).await.status, 200);
    let faults: Value = serde_json::from_str(&sim.control("GET", "/faults", "").await).unwrap();
    assert_eq!(faults["waiting"], 1);
    assert_eq!(faults["orders"][0]["nth"], 2);
    assert_eq!(faults["orders"][0]["action"], "cut_before");
}
