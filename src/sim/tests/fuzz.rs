//! Anything at all, through the whole service without sockets: it answers, and never panics.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::sim::answer::Refusal;
use crate::sim::http::Request;

/// What stands in real requests, so that the dice get past the first checks.
const PIECES: &[&str] = &[
    "/",
    "logstores",
    "runs",
    "shards",
    "0",
    "1",
    "99",
    "lb",
    "route",
    "index",
    "logs",
    "?",
    "&",
    "=",
    "type",
    "log",
    "cursor",
    "cursor_time",
    "histogram",
    "from",
    "to",
    "begin",
    "end",
    "key",
    "ffffffffffffffffffffffffffffffff",
    "seqid",
    "18446744073709551615",
    "-1",
    "count",
    "1000",
    "action",
    "split",
    "merge",
    "%",
    "%00",
    "%ff",
    "query",
    "*",
    "|",
    "MTc=",
    "interval",
    "consumergroups",
    "deletelogs",
    "line",
    "offset",
    "reverse",
    "\u{e9}",
];

const PATHS: &[&str] = &[
    "/logstores/runs/shards/lb",
    "/logstores/runs/shards/route?key=ffffffffffffffffffffffffffffffff&seqid=1",
    "/logstores/runs/shards/0?type=log&count=1",
    "/logstores/runs/shards/0?type=cursor",
    "/logstores/runs/shards/0?action=split",
    "/logstores/runs/shards/0?action=merge",
    "/logstores/runs?type=log&from=0&to=9",
    "/logstores/runs?type=histogram&from=0&to=9",
    "/logstores/runs/logs",
    "/logstores/runs/index",
    "/logstores",
    "/logstores/runs",
    "/",
];

const HEADERS: &[&str] = &[
    "x-log-bodyrawsize",
    "x-log-compresstype",
    "content-type",
    "host",
    "x-log-project",
    "date",
    "x-log-date",
    "accept-encoding",
    "x-log-mode",
    "x-log-apiversion",
    "authorization",
    "x-log-signaturemethod",
    "content-md5",
    "x-acs-security-token",
];

const VALUES: &[&str] = &[
    "lz4",
    "zstd",
    "deflate",
    "application/x-protobuf",
    "application/json",
    "0",
    "4",
    "10485760",
    "18446744073709551615",
    "-1",
    "",
    "dify",
    "dify.x:1",
    "LOG a:b",
    "0.6.0",
    "SLS4-HMAC-SHA256 Credential=a/20200101/b/sls/aliyun_v4_request,Signature=c",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "99991231T235959Z",
    "hmac-sha1",
];

const JSON: &[&str] = &[
    r#"{"projectName":"other"}"#,
    r#"{"logstoreName":"x1x","ttl":1,"shardCount":100}"#,
    r#"{"logstoreName":7,"ttl":-1}"#,
    r#"{"line":{},"keys":{"a":{"type":"text","token":[" "]}}}"#,
    r#"{"keys":{"a":7,"b":[]}}"#,
    r#"{"from":0,"to":9,"query":"a: b and not c | select 1"}"#,
    r#"{"from":-9223372036854775808,"to":9223372036854775807,"query":"*","line":100}"#,
    "[[[[",
];

const CONTROL: &[&str] = &[
    r#"{"kind":"put","action":"hold"}"#,
    r#"{"kind":"any","probability":1e-300,"action":{"delay_ms":0}}"#,
    r#"{"receive_lag_ms":3600000,"split_groups_ms":3600000}"#,
    r#"{"clock_offset_s":-315360000}"#,
    "{}",
    "null",
];

type Parts = (&'static str, String, Vec<(String, String)>, Vec<u8>, bool);

fn target() -> impl Strategy<Value = String> {
    let wild = proptest::collection::vec(select(PIECES), 0..12)
        .prop_map(|pieces| format!("/{}", pieces.concat()));
    let near = (select(PATHS), select(PIECES), select(PIECES)).prop_map(|(path, key, value)| {
        let mark = if path.contains('?') { '&' } else { '?' };
        format!("{path}{mark}{key}={value}")
    });
    prop_oneof![wild, near]
}

fn parts() -> impl Strategy<Value = Parts> {
    let method = select(&["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "X"][..]);
    let name = select(HEADERS).prop_map(str::to_owned);
    let value = prop_oneof![select(VALUES).prop_map(str::to_owned), "[ -~\u{e9}]{0,20}"];
    let headers = proptest::collection::vec((name, value), 0..5);
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        select(JSON).prop_map(|json| json.as_bytes().to_vec()),
        Just(group(1, &[("a", "b")])),
    ];
    (method, target(), headers, body, any::<bool>())
}

/// A request, signed or not.
fn request((method, target, headers, body, signed): Parts) -> Result<Request, Refusal> {
    let plain: Vec<_> = [("host", "dify.x"), ("x-log-apiversion", "0.6.0")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .filter(|(name, _)| !headers.iter().any(|(other, _)| other == name))
        .chain(headers.iter().cloned())
        .collect();
    let mut request = Request::new(method.parse().unwrap(), &target, plain.clone(), body.into())?;
    if signed {
        let parts = SignedParts {
            method,
            path: &request.path,
            query: &request.query,
            headers: &plain,
            body: &request.body,
        };
        let now_s = Moment::now(0).unix_s();
        let signed = sign(SignatureVersion::V4, &credentials(), "cn-test", now_s, &parts);
        request.headers =
            signed.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
    }
    Ok(request)
}

fn post(target: &str, body: &str) -> Parts {
    ("POST", target.to_owned(), Vec::new(), body.as_bytes().to_vec(), true)
}

/// Lets a new service with a logstore do `what`.
fn with_service<F: Future<Output = ()>>(what: impl FnOnce(Arc<Service>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let service = Arc::new(Service::new(settings()).unwrap());
        for (target, body) in [
            ("/", r#"{"projectName":"dify"}"#),
            ("/logstores", r#"{"logstoreName":"runs","ttl":7}"#),
            ("/logstores/runs/index", r#"{"keys":{"a":{"type":"text","token":[" "]}}}"#),
        ] {
            let response = Arc::clone(&service).serve(request(post(target, body))).await.unwrap();
            assert_eq!(response.status(), 200, "{target}");
        }
        what(service).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_request_panics(requests in proptest::collection::vec(parts(), 1..20)) {
        with_service(async |service| {
            for parts in requests {
                let told = format!("{parts:?}");
                let response = Arc::clone(&service).serve(request(parts)).await.unwrap();
                assert!(response.headers().contains_key("x-log-requestid"), "{told}");
                assert!(response.status().as_u16() < 500, "{told}: {}", response.status());
            }
        });
    }

    /// A curious user types them by hand.
    #[test]
    fn no_control_call_panics(
        method in select(&["GET", "POST", "PATCH", "DELETE"][..]),
        path in select(&["faults", "switches", "release", "logs/a/b", "logs/dify/runs", "x"][..]),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..50),
            select(CONTROL).prop_map(|json| json.as_bytes().to_vec()),
        ],
    ) {
        with_service(async |service| {
            let target = format!("/_sim/{path}");
            let call = Request::new(method.parse().unwrap(), &target, Vec::new(), body.into());
            let response = Arc::clone(&service).serve(call).await.unwrap();
            assert!(response.status().as_u16() < 500);
            let get = ("GET", "/".to_owned(), Vec::new(), Vec::new(), true);
            assert!(Arc::clone(&service).serve(request(get)).await.is_ok());
        });
    }
}
