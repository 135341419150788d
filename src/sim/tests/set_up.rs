//! Who is served, and what sets things up.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn only_the_signer_is_served() {
    for version in [SignatureVersion::V1, SignatureVersion::V4] {
        let mut sim = Sim::with_logstore(version).await;
        for (skew_s, wanted) in [(-1000, 400), (1000, 400), (-800, 200), (800, 200)] {
            sim.skew_s.store(skew_s, Ordering::Relaxed);
            let got = sim.get("/logstores/runs").await;
            assert_eq!(got.status, wanted, "{skew_s}");
            if wanted == 400 {
                assert_eq!(got.error().1, "RequestTimeExpired");
            }
        }
        sim.skew_s.store(0, Ordering::Relaxed);
        sim.credentials.access_key_secret = Secret::new("wrong");
        let got = sim.put(LB, &group(1, &[])).await;
        assert_eq!(got.error(), (401, "SignatureNotMatch".to_owned()));
        sim.credentials = credentials();
        sim.credentials.access_key_id = "other".to_owned();
        let got = sim.get("/logstores/runs").await;
        assert_eq!(got.error(), (401, "InvalidAccessKeyId".to_owned()));
        sim.credentials = credentials();
        sim.credentials.security_token = None;
        assert_eq!(sim.get("/logstores/runs").await.error(), (401, "Unauthorized".to_owned()));
        sim.credentials = credentials();
        assert_eq!(sim.groups(0).await, Vec::<Vec<u8>>::new());
    }
}

#[tokio::test]
async fn things_are_set_up_and_looked_at() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    assert_eq!(sim.get("/").await.json()["projectName"], "dify");
    // The Rust SDK cannot read a project without it.
    assert_eq!(sim.get("/").await.json()["dataRedundancyType"], "LRS");
    let project = json!({"projectName": "dify"}).to_string();
    let got = sim.send("POST", "/", &[], project.as_bytes()).await;
    assert_eq!(got.error(), (400, "ProjectAlreadyExist".to_owned()));
    // x-log-project goes before the Host.
    let got = sim.send("GET", "/", &[("x-log-project", "elsewhere")], b"").await;
    assert_eq!(got.error(), (404, "ProjectNotExist".to_owned()));

    assert_eq!(sim.get("/logstores").await.json()["logstores"], json!(["runs"]));
    let settings = json!({"logstoreName": "runs", "ttl": 7}).to_string();
    let got = sim.send("POST", "/logstores", &[], settings.as_bytes()).await;
    assert_eq!(got.error(), (400, "LogStoreAlreadyExist".to_owned()));
    assert_eq!(sim.send("PUT", "/logstores/runs", &[], settings.as_bytes()).await.status, 200);
    assert_eq!(sim.get("/logstores/runs").await.json()["ttl"], 7);
    let shards = sim.get("/logstores/runs/shards").await.json();
    assert_eq!(shards[1]["shardID"], 1);
    assert_eq!(shards[1]["inclusiveBeginKey"], "80000000000000000000000000000000");

    let path = "/logstores/runs/index";
    let no_index = (400, "IndexConfigNotExist".to_owned());
    assert_eq!(sim.get(path).await.error(), no_index);
    let index =
        json!({"keys": {"b": {"type": "text"}, "a": {"type": "long"}}, "max_text_len": 16384});
    let index = index.to_string();
    assert_eq!(sim.send("POST", path, &[], index.as_bytes()).await.status, 200);
    let got = sim.send("POST", path, &[], index.as_bytes()).await;
    assert_eq!(got.error(), (400, "IndexAlreadyExist".to_owned()));
    assert_eq!(sim.get(path).await.body, index);
    assert_eq!(sim.send("PUT", path, &[], br#"{"line":{}}"#).await.status, 200);
    assert_eq!(sim.get(path).await.body, r#"{"line":{}}"#);
    assert_eq!(sim.send("DELETE", path, &[], b"").await.status, 200);
    assert_eq!(sim.get(path).await.error(), no_index);

    assert_eq!(sim.send("DELETE", "/logstores/runs", &[], b"").await.status, 200);
    let got = sim.get("/logstores/runs").await;
    assert_eq!(got.error(), (404, "LogStoreNotExist".to_owned()));
    assert_eq!(sim.get("/nothing").await.error(), (404, "UnsupportedOperation".to_owned()));
}

#[tokio::test]
async fn what_is_made_again_says_when() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let times = async || {
        let (logstore, project) = (sim.get("/logstores/runs").await, sim.get("/").await);
        let (logstore, project) = (logstore.json(), project.json());
        let project = project["createTime"].as_str().unwrap().parse::<i64>().unwrap();
        let time = |name: &str| logstore[name].as_i64().unwrap();
        (time("createTime"), time("lastModifyTime"), project)
    };
    let (first, modified, project) = times().await;
    assert!((first - Moment::now(0).unix_s()).abs() <= 5, "{first}");
    assert_eq!((first, first - project < 5), (modified, true));
    let settings = json!({"logstoreName": "runs", "ttl": 7}).to_string();
    sim.switch(json!({"create_time_offset_s": 100})).await;
    assert_eq!(sim.send("PUT", "/logstores/runs", &[], settings.as_bytes()).await.status, 200);
    let (same, modified, _) = times().await;
    assert_eq!((same, modified >= first + 100), (first, true));
    assert_eq!(sim.send("DELETE", "/logstores/runs", &[], b"").await.status, 200);
    assert_eq!(sim.send("POST", "/logstores", &[], settings.as_bytes()).await.status, 200);
    let (again, modified, same) = times().await;
    assert_eq!((again >= first + 100, modified, same), (true, again, project));
    assert_eq!(sim.send("DELETE", "/", &[], b"").await.status, 200);
    sim.make_logstore().await;
    assert!(times().await.2 >= project + 100);
}

/// What the Rust and Python SDKs send through HTTP_PROXY.
#[tokio::test]
async fn a_target_in_absolute_form_is_served() {
    let sim = Sim::with_logstore(SignatureVersion::V4).await;
    let headers: Vec<_> = [("Host", "dify.sls.test"), ("x-log-apiversion", "0.6.0")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let parts =
        SignedParts { method: "GET", path: "/logstores", query: &[], headers: &headers, body: b"" };
    let mut request = "GET http://dify.sls.test/logstores HTTP/1.1\r\n".to_owned();
    for (name, value) in
        sign(sim.version, &sim.credentials, "cn-test", Moment::now(0).unix_s(), &parts)
    {
        request += &format!("{name}: {value}\r\n");
    }
    request += "Connection: close\r\n\r\n";
    let mut stream = TcpStream::connect(sim.base.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#"["runs"]"#), "{answer}");
}
