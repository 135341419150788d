//! The vendor's Rust SDK against the local SLS: what it sends must be served, what it reads must be
//! what was sent. Started by scripts/sdk_rust.sh; fails on the first difference.
//!
//! It reaches the local SLS through `HTTP_PROXY` alone, so every target is in absolute form. It
//! signs with V1 and has neither hash keys nor numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use aliyun_log_rust_sdk::get_cursor_models::CursorPos;
use aliyun_log_rust_sdk::{Client, Config, FromConfig};
use aliyun_log_sdk_protobuf::{Log, LogGroup};
use anyhow::{Context as _, Result, ensure};

const STORE: &str = "workflow_execution";

#[tokio::main]
async fn main() -> Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| name.to_owned());
    let config = Config::builder()
        .endpoint("http://sls.test")
        .access_key(
            variable("ALIYUN_SLS_ACCESS_KEY_ID")?,
            variable("ALIYUN_SLS_ACCESS_KEY_SECRET")?,
        )
        .build()?;
    let client = Client::from_config(config)?;
    let now_s = u32::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let project = format!("sdk-rust-{now_s}");

    ensure!(client.get_project(&project).send().await.is_err(), "a project that is not there");
    client.create_project(&project).description("made by sdk_rust").send().await?;
    client.get_project(&project).send().await?;
    client.create_logstore(&project, STORE).shard_count(2).ttl(3650).send().await?;
    let again = client.create_logstore(&project, STORE).shard_count(2).ttl(30).send().await;
    let error = again.err().context("a logstore twice")?.to_string();
    ensure!(error.contains("LogStoreAlreadyExist"), "a logstore twice: {error}");
    client.update_logstore(&project, STORE).ttl(365).send().await?;
    println!("ok  project and logstore");

    let mut sent = Vec::new();
    for number in 0..5 {
        let (text, source) = (format!("你好 {number} \n\u{1d11e}"), format!("10.0.0.{number}"));
        let mut log = Log::from_unixtime(now_s - number);
        log.add_content_kv("id", number.to_string()).add_content_kv("text", text.clone());
        let mut group = LogGroup::new();
        group.add_log(log).set_source(source.clone()).add_log_tag_kv("__batch__", "7/8");
        client.put_logs(&project, STORE).log_group(group).send().await?;
        sent.push((now_s - number, text, source));
    }
    println!("ok  put");

    let mut pulled = Vec::new();
    for shard in 0..2 {
        let cursor = async |at| {
            let got = client.get_cursor(&project, STORE, shard).cursor_pos(at).send().await?;
            anyhow::Ok(got.get_body().cursor().to_owned())
        };
        let (begin, end) = (cursor(CursorPos::Begin).await?, cursor(CursorPos::End).await?);
        let got = client
            .pull_logs(&project, STORE, shard)
            .cursor(begin)
            .end_cursor(end.clone())
            .count(100)
            .send()
            .await?
            .take_body();
        ensure!(*got.next_cursor() == end, "shard {shard}: it stops before its end");
        for group in got.into_log_group_list() {
            ensure!(group.logs().len() == 1 && group.log_tags().len() == 1, "another group");
            let log = &group.logs()[0];
            let source = group.source().clone().unwrap_or_default();
            pulled.push((*log.time(), log.contents()[1].value().clone(), source));
        }
    }
    pulled.sort();
    sent.sort();
    ensure!(pulled == sent, "pulled {pulled:?}, sent {sent:?}");
    println!("ok  cursors and pull");

    let shards = client.list_shards(&project, STORE).send().await?.take_body();
    ensure!(shards.shards().len() == 2, "two shards");
    client.delete_logstore(&project, STORE).send().await?;
    let gone = client.list_shards(&project, STORE).send().await;
    let error = gone.err().context("a deleted logstore")?.to_string();
    ensure!(error.contains("LogStoreNotExist"), "a deleted logstore: {error}");
    client.delete_project(&project).send().await?;
    println!("the Rust SDK and the local SLS agree");
    Ok(())
}
