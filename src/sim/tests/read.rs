//! Cursors and PullLogs, as a client meets them.

use super::*;

const ROUTE: &str = "/logstores/runs/shards/route?key=00000000000000000000000000000000";

#[tokio::test]
async fn what_was_put_comes_back_byte_for_byte() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let sim = Sim::with_logstore(version).await;
        let groups: Vec<_> = (0..5).map(|n| group(n, &[("n", &n.to_string())])).collect();
        for raw in &groups {
            let got = sim.put(LB, raw).await;
            assert_eq!((got.status, got.body.len()), (200, 0));
            for header in ["x-log-requestid", "date", "x-log-time"] {
                assert!(!got.header(header).is_empty(), "{header}");
            }
        }
        let expected =
            |shard: usize| groups.iter().skip(shard).step_by(2).cloned().collect::<Vec<_>>();
        assert_eq!(sim.groups(0).await, expected(0), "{version:?}");
        assert_eq!(sim.groups(1).await, expected(1));

        // Page by page, uncompressed, up to an end.
        let (begin, end) = (sim.cursor(0, "begin").await, sim.cursor(0, "end").await);
        let page = |cursor: &str, end_name: &str| {
            format!("/logstores/runs/shards/0?type=log&cursor={cursor}&count=2&{end_name}={end}")
        };
        let got = sim.get(&page(&begin, "end_cursor")).await;
        assert_eq!(got.header("x-log-count"), "2");
        assert_eq!(got.header("x-log-compresstype"), "");
        assert_eq!(split_list(&got.body).unwrap(), [&groups[0], &groups[2]]);
        let got = sim.get(&page(got.header("x-log-cursor"), "endCursor")).await;
        assert_eq!(got.header("x-log-count"), "1");
        assert_eq!(got.header("x-log-cursor"), end);
        let got = sim.get(&page(&end, "end_cursor")).await;
        assert_eq!((got.header("x-log-count"), got.body.len()), ("0", 0));
        assert_eq!(got.header("x-log-cursor"), end);
    }
}

#[tokio::test]
async fn head_gives_the_next_cursor_alone() {
    let sim = Sim::with_logstore(SignatureVersion::V1).await;
    sim.put(ROUTE, &group(1, &[])).await;
    let (begin, end) = (sim.cursor(0, "begin").await, sim.cursor(0, "end").await);
    let pull = format!("/logstores/runs/shards/0?type=log&count=10&cursor={begin}");
    let got = sim.send("HEAD", &pull, &[], b"").await;
    assert_eq!((got.status, got.header("x-log-cursor"), got.body.len()), (200, &end[..], 0));
}

/// Pulling goes by the time of receipt, whatever the times of the logs.
#[tokio::test]
async fn what_is_over_its_ttl_cannot_be_pulled_any_more() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let set_ttl = async |days: u32| {
        let body = json!({"logstoreName": "runs", "ttl": days}).to_string();
        assert_eq!(sim.send("PUT", "/logstores/runs", &[], body.as_bytes()).await.status, 200);
    };
    assert_eq!(sim.put(ROUTE, &group(1, &[("a", "old")])).await.status, 200);
    let old = sim.cursor(0, "begin").await;
    set_ttl(1).await;
    assert_eq!(sim.groups(0).await.len(), 1);
    let day_s = 86_400;
    sim.switch(json!({"clock_offset_s": day_s + 10})).await;
    sim.skew_s.store(day_s + 10, Ordering::Relaxed);
    assert_eq!(sim.put(ROUTE, &group(1, &[("a", "new")])).await.status, 200);
    assert_eq!(sim.groups(0).await, [group(1, &[("a", "new")])]);
    let pull = format!("/logstores/runs/shards/0?type=log&count=10&cursor={old}");
    assert_eq!(sim.get(&pull).await.error().1, "InvalidCursor");
    set_ttl(3650).await;
    assert_eq!(sim.groups(0).await.len(), 2, "for ever");
}
