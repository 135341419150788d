//! `init`: what it makes, what it completes, and what it leaves alone.

use std::time::Duration;

use dify_sls_backfill::secret::Secret;
use dify_sls_backfill::sls::admin::NewLogstore;
use dify_sls_backfill::sls::client::{Client, ClientSettings};
use dify_sls_backfill::sls::endpoint::Endpoint;
use dify_sls_backfill::wire::sign::{Credentials, SignatureVersion};
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::simulator::{PROJECT, Simulator};

/// A database and a local SLS, and nothing done yet.
fn untouched(shape: &str) -> Fixture {
    Fixture { database: Database::of_shape(shape), sls: Simulator::start() }
}

/// What another client of the same project sees and does.
struct Other {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Other {
    fn of(fixture: &Fixture) -> Self {
        let env = fixture.sls.env();
        let get = |name| env.iter().find(|(key, _)| *key == name).unwrap().1.clone();
        let client = Client::new(ClientSettings {
            endpoint: Endpoint::parse(&get("ALIYUN_SLS_ENDPOINT"), PROJECT).unwrap(),
            region: get("ALIYUN_SLS_REGION"),
            credentials: Credentials {
                access_key_id: get("ALIYUN_SLS_ACCESS_KEY_ID"),
                access_key_secret: Secret::new(get("ALIYUN_SLS_ACCESS_KEY_SECRET")),
                security_token: None,
            },
            signature: SignatureVersion::V4,
            deadline: Duration::from_secs(10),
            ca_certificates: Vec::new(),
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { client, runtime }
    }

    fn index(&self, logstore: &str) -> Value {
        self.runtime.block_on(self.client.index(logstore)).unwrap().unwrap()
    }

    fn logstore(&self, logstore: &str) -> Value {
        self.runtime.block_on(self.client.logstore(logstore)).unwrap().unwrap()
    }

    /// Makes the project and both logstores with these indexes.
    fn make(&self, indexes: [&Value; 2]) {
        self.runtime.block_on(async {
            self.client.create_project(PROJECT).await.unwrap();
            for ((_, logstore), index) in TABLES.into_iter().zip(indexes) {
                let new = NewLogstore { ttl_days: 90, shards: 2, auto_split: true, shards_max: 64 };
                self.client.create_logstore(logstore, &new).await.unwrap();
                self.client.create_index(logstore, index).await.unwrap();
            }
        });
    }
}

/// The index that Dify's `_get_index_config` and the vendor's Python SDK make, for the columns that
/// the models of Dify 1.12 have.
fn made_by_dify(database: &Database, table: &str) -> Value {
    // `DEFAULT_TOKEN_LIST`, with the quotation mark twice.
    let tokens = ",| |\"|\"|;|=|(|)|[|]|{|}|?|@|&|<|>|/|:|\n|\t".split('|').collect::<Vec<_>>();
    let text = json!({"type": "text", "token": tokens, "caseSensitive": false, "chn": true,
                      "doc_value": true});
    let columns = database.psql(&format!(
        "SELECT column_name, data_type FROM information_schema.columns \
         WHERE table_name = '{table}' ORDER BY ordinal_position"
    ));
    let mut keys = serde_json::Map::new();
    for line in columns.lines() {
        let (name, kind) = line.split_once('|').unwrap();
        let key = match kind {
            "integer" | "bigint" => json!({"type": "long", "doc_value": true}),
            "double precision" => json!({"type": "double", "doc_value": true}),
            _ => text.clone(),
        };
        keys.insert(name.to_owned(), key);
    }
    keys.insert("log_version".to_owned(), json!({"type": "long", "doc_value": true}));
    if table == "workflow_runs" {
        keys.insert("error_message".to_owned(), text.clone());
        keys.insert("started_at".to_owned(), text);
    }
    json!({
        "ttl": 1,
        "line": {"token": tokens, "caseSensitive": false, "chn": true},
        "keys": keys,
        "log_reduce": false,
        "scan_index": true,
    })
}

#[test]
fn what_is_missing_is_made_as_dify_makes_it() {
    let fixture = untouched("dify-1.12");
    let outcome = fixture
        .tool("init --shards 3 --auto-split false")
        .env("ALIYUN_SLS_LOGSTORE_TTL", "3650")
        .run()
        .exits(0);
    assert_eq!(
        outcome.stdout,
        "ledger    sls_backfill                ready\n\
         project   dify-logs                   created\n\
         logstore  workflow_execution          created: keeps logs for ever, 3 shards\n\
         index     workflow_execution          created: 23 keys\n\
         logstore  workflow_node_execution     created: keeps logs for ever, 3 shards\n\
         index     workflow_node_execution     created: 24 keys\n",
        "{outcome}"
    );
    let other = Other::of(&fixture);
    for (table, logstore) in TABLES {
        let settings = other.logstore(logstore);
        assert_eq!((&settings["ttl"], &settings["shardCount"]), (&json!(3650), &json!(3)));
        assert_eq!(settings["autoSplit"], false);
        let (index, by_dify) = (other.index(logstore), made_by_dify(&fixture.database, table));
        assert_eq!(index["scan_index"], true);
        assert_eq!(index["max_text_len"], 16_384);
        let keys = index["keys"].as_object().unwrap();
        assert_eq!(keys.len(), by_dify["keys"].as_object().unwrap().len());
        for (name, key) in by_dify["keys"].as_object().unwrap() {
            for property in ["type", "caseSensitive", "chn", "doc_value"] {
                assert_eq!(keys[name].get(property), key.get(property), "{name} {property}");
            }
            let mut tokens = key["token"].as_array().cloned().unwrap_or_default();
            tokens.dedup();
            assert_eq!(keys[name]["token"].as_array().cloned().unwrap_or_default(), tokens);
        }
    }
    let before = TABLES.map(|(_, logstore)| (other.index(logstore), other.logstore(logstore)));
    let again = fixture.tool("init").run().exits(0);
    assert_eq!(again.stdout.matches("unchanged").count(), 5, "{again}");
    let after = TABLES.map(|(_, logstore)| (other.index(logstore), other.logstore(logstore)));
    assert_eq!(after, before);
}

#[test]
fn an_index_made_by_dify_is_left_as_it_is() {
    let fixture = untouched("dify-1.12");
    let other = Other::of(&fixture);
    let indexes = TABLES.map(|(table, _)| made_by_dify(&fixture.database, table));
    other.make([&indexes[0], &indexes[1]]);
    fixture
        .tool("init")
        .run()
        .exits(0)
        .prints("project   dify-logs                   unchanged\n")
        .prints("logstore  workflow_execution          unchanged: keeps logs 90 days\n")
        .prints("index     workflow_execution          unchanged: 23 keys\n")
        .prints("index     workflow_node_execution     unchanged: 24 keys\n");
    assert_eq!(TABLES.map(|(_, logstore)| other.index(logstore)), indexes);
}

#[test]
fn an_index_made_by_hand_is_completed_and_keeps_what_is_its_own() {
    let fixture = untouched("dify-1.12");
    let other = Other::of(&fixture);
    let mut runs = made_by_dify(&fixture.database, "workflow_runs");
    let keys = runs["keys"].as_object_mut().unwrap();
    keys.remove("total_tokens");
    keys.insert("mine".to_owned(), json!({"type": "double"}));
    keys.insert("inputs".to_owned(), json!({"type": "json", "index_all": true}));
    keys.insert("log_version".to_owned(), json!({"type": "text"}));
    let status = keys.remove("status").unwrap();
    keys.insert("Status".to_owned(), status);
    runs["scan_index"] = json!(false);
    runs["max_text_len"] = json!(4096);
    let nodes = made_by_dify(&fixture.database, "workflow_node_executions");
    other.make([&runs, &nodes]);
    fixture
        .tool("init")
        .run()
        .exits(0)
        .prints(
            "index     workflow_execution          changed: status instead of Status, \
             total_tokens added, log_version long instead of text; 24 keys, 1 of them not Dify's; \
             scan_index is off",
        )
        .prints("index     workflow_node_execution     unchanged: 24 keys\n");
    let index = other.index("workflow_execution");
    assert_eq!((&index["scan_index"], &index["max_text_len"]), (&json!(false), &json!(4096)));
    assert_eq!(index["keys"]["mine"], json!({"type": "double"}));
    assert_eq!(index["keys"]["inputs"]["type"], "json");
    assert_eq!(index["keys"]["log_version"]["type"], "long");
    assert_eq!(index["keys"].get("Status"), None);
    fixture.tool("init").run().exits(0).prints("workflow_execution          unchanged: 24 keys");
    assert_eq!(other.index("workflow_node_execution"), nodes);
}

#[test]
fn what_sls_does_not_know_everywhere_yet_is_waited_for() {
    let fixture = untouched("dify-1.12");
    // GetProject, CreateProject and GetProject again come first.
    let absent = json!({"status": 404, "code": "ProjectNotExist", "message": "not yet"});
    let fault = json!({"kind": "any", "nth": 4, "times": 4, "action": {"refuse": absent}});
    fixture.sls.post("/_sim/faults", &fault);
    fixture
        .tool("init")
        .run()
        .exits(0)
        .tells("waiting up to 120 s until SLS knows what is new: ProjectNotExist: not yet")
        .prints("logstore  workflow_execution          created");
}

#[test]
fn six_at_once_make_it_once() {
    let fixture = untouched("dify-1.12");
    let all: Vec<_> = (0..6).map(|_| fixture.tool("init").spawn()).collect();
    for running in all {
        running.wait().exits(0);
    }
    let again = fixture.tool("init").run().exits(0);
    assert_eq!(again.stdout.matches("unchanged").count(), 5, "{again}");
}
