//! A migrated history and the two sides that are asked about it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dify_sls_backfill::demo;
use dify_sls_backfill::demo::settings::HistorySettings;
use dify_sls_backfill::dify::readers::Owner;
use dify_sls_backfill::secret::Secret;
use dify_sls_backfill::wire::sign::{Credentials, SignatureVersion, SignedParts, percent, sign};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::simulator::{PROJECT, Simulator};

pub(crate) const RUNS: &str = "workflow_execution";
pub(crate) const NODES: &str = "workflow_node_execution";

/// What SQL sees of a text at most: the index that `init` makes says so.
pub(crate) const TEXT_BYTES_MAX: usize = 16_384;

/// A row of an answer: values as texts, NULL as `null`.
pub(crate) type Row = BTreeMap<String, String>;

/// How the rows of the tables look as logs, by what is written about Dify's writer.
const VIEWS: &str = r#"
CREATE FUNCTION iso(t timestamp) RETURNS text LANGUAGE sql AS $$
    SELECT to_char(t, 'YYYY-MM-DD"T"HH24:MI:SS') || CASE
        WHEN extract(microseconds FROM t)::bigint % 1000000 = 0 THEN '' ELSE to_char(t, '.US') END
$$;
CREATE FUNCTION role(r text) RETURNS text LANGUAGE sql AS $$
    SELECT replace(r, 'end-user', 'end_user') $$;
CREATE VIEW run_log AS SELECT
    id::text, tenant_id::text, app_id::text, workflow_id::text, triggered_from, type, version,
    coalesce(graph, '{}') AS graph, coalesce(inputs, '{}') AS inputs,
    coalesce(outputs, '{}') AS outputs, status, coalesce(error, '') AS error_message, total_tokens,
    coalesce(total_steps, 0) AS total_steps, coalesce(exceptions_count, 0) AS exceptions_count,
    role(created_by_role) AS created_by_role, created_by::text, iso(created_at) AS started_at,
    iso(finished_at) AS finished_at, created_at AS begun, finished_at AS ended
  FROM workflow_runs WHERE finished_at IS NOT NULL
    AND status IN ('succeeded', 'failed', 'stopped', 'partial-succeeded');
CREATE VIEW node_log AS SELECT
    id::text, tenant_id::text, app_id::text, workflow_id::text, triggered_from,
    coalesce(workflow_run_id::text, '') AS workflow_run_id, "index",
    coalesce(predecessor_node_id, '') AS predecessor_node_id,
    coalesce(node_execution_id, id::text) AS node_execution_id, node_id, node_type, title,
    coalesce(inputs, '{}') AS inputs, coalesce(process_data, '{}') AS process_data,
    coalesce(outputs, '{}') AS outputs, status, coalesce(error, '') AS error, elapsed_time,
    coalesce(execution_metadata, '{}') AS execution_metadata, iso(created_at) AS created_at,
    role(created_by_role) AS created_by_role, created_by::text, iso(finished_at) AS finished_at,
    created_at AS begun, finished_at AS ended
  FROM workflow_node_executions WHERE finished_at IS NOT NULL
    AND status IN ('succeeded', 'failed', 'stopped', 'exception', 'retry');
"#;

/// A history in Postgres and, migrated, in the local SLS, and whom it is about.
pub(crate) struct Migrated {
    pub(crate) fixture: Fixture,
    /// The app with the most runs.
    pub(crate) tenant: String,
    pub(crate) app: String,
    /// How most of its runs were started.
    pub(crate) trigger: String,
}

impl Migrated {
    /// The one that tests running at the same time share: they only read.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Migrated>> = Mutex::new(Weak::new());
        // The test that failed to make it has said why.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Self::new());
            *shared = Arc::downgrade(&made);
            made
        })
    }

    fn new() -> Self {
        let database = Database::of_shape("dify-1.12");
        let settings = HistorySettings { node_rows: 4_000, ..HistorySettings::default() };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut conn = PgConnection::connect(&database.url()).await.unwrap();
            demo::fill(&mut conn, &settings, |_| {}).await.unwrap();
        });
        let fixture = Fixture { database, sls: Simulator::start() };
        // For ever: the history has fixed times, which grow old.
        fixture.tool("init").env("ALIYUN_SLS_LOGSTORE_TTL", "3650").run().exits(0);
        fixture.tool("run").run().exits(0);
        fixture.holds_every_finished_row_once();
        fixture.database.psql(VIEWS);
        let one = |sql: &str| fixture.database.psql(sql);
        let most = "SELECT {} FROM run_log GROUP BY 1, 2, 3 ORDER BY count(*) DESC LIMIT 1";
        let whose = one(&most.replace("{}", "tenant_id, app_id, triggered_from"));
        let [tenant, app, trigger]: [String; 3] =
            whose.split('|').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        Self { fixture, tenant, app, trigger }
    }

    /// What SLS gives for `sql` as Dify's SDK mode sends it: `query | sql`, from 0 to now.
    #[track_caller]
    pub(crate) fn sls(&self, logstore: &str, query: &str, sql: &str) -> Vec<Row> {
        Asking(&self.fixture.sls).sql(logstore, &format!("{query} | {sql}"))
    }

    /// What SLS gives for `sql` alone, as Dify's PG mode sends it.
    #[track_caller]
    pub(crate) fn sls_plain(&self, logstore: &str, sql: &str) -> Vec<Row> {
        Asking(&self.fixture.sls).sql(logstore, sql)
    }

    /// What GetLogs gives without SQL, as Dify's SDK mode asks: 100 logs, the oldest first.
    #[track_caller]
    pub(crate) fn search(&self, logstore: &str, query: &str) -> Vec<Row> {
        Asking(&self.fixture.sls).search(logstore, query)
    }

    /// What Postgres gives for the twin of a statement.
    #[track_caller]
    pub(crate) fn twin(&self, sql: &str) -> Vec<Row> {
        let rows = self.fixture.database.psql(&format!(
            "SET datestyle = ISO; SELECT coalesce(json_agg(t), '[]') FROM ({sql}) t"
        ));
        let rows: Vec<BTreeMap<String, Value>> = serde_json::from_str(&rows).unwrap();
        rows.into_iter().map(texts).collect()
    }

    /// One value from Postgres.
    #[track_caller]
    pub(crate) fn value(&self, sql: &str) -> String {
        self.fixture.database.psql(sql)
    }

    /// The same as Dify's readers are asked with.
    pub(crate) fn owner(&self) -> Owner {
        let Self { tenant, app, trigger, .. } = self;
        Owner { tenant: tenant.clone(), app: app.clone(), trigger: trigger.clone() }
    }

    /// The condition on tenant and app that most statements have.
    pub(crate) fn of_app(&self) -> String {
        format!("tenant_id='{}' AND app_id='{}'", self.tenant, self.app)
    }

    /// The same with the trigger.
    pub(crate) fn of_trigger(&self) -> String {
        format!("{} AND triggered_from='{}'", self.of_app(), self.trigger)
    }
}

fn texts(row: BTreeMap<String, Value>) -> Row {
    let text = |value| match value {
        Value::String(text) => text,
        value => value.to_string(),
    };
    row.into_iter().map(|(name, value)| (name, text(value))).collect()
}

/// Asks a local SLS as an SDK does: signed, over HTTP.
pub(crate) struct Asking<'a>(pub(crate) &'a Simulator);

/// An answer: its status, its head as it was sent, and its body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.next().map_or("", |(_, value)| value)
    }

    /// The rows of GetLogs, version 2 or 3.
    #[track_caller]
    pub(crate) fn rows(self) -> Vec<Row> {
        assert_eq!(self.status, 200, "{}", self.body);
        let rows: Vec<BTreeMap<String, Value>> =
            serde_json::from_value(self.body["data"].clone()).unwrap();
        assert!(rows.iter().flat_map(BTreeMap::values).all(Value::is_string), "{rows:?}");
        assert_eq!(self.body["meta"]["count"], rows.len());
        rows.into_iter().map(texts).collect()
    }

    /// Fails unless it is a refusal with `ParameterInvalid`; gives its message.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!((self.status, &self.body["errorCode"]), (400, &json!("ParameterInvalid")));
        self.body["errorMessage"].as_str().unwrap().to_owned()
    }
}

impl Asking<'_> {
    #[track_caller]
    pub(crate) fn sql(&self, logstore: &str, query: &str) -> Vec<Row> {
        let answer = self.get_logs_v3(logstore, json!({"query": query}));
        assert_eq!(answer.body["meta"]["hasSQL"], true, "{}", answer.body);
        answer.rows()
    }

    #[track_caller]
    pub(crate) fn search(&self, logstore: &str, query: &str) -> Vec<Row> {
        let body = json!({"query": query, "line": 100, "offset": 0, "reverse": false});
        self.get_logs_v3(logstore, body).rows()
    }

    /// `POST …/logs`, from 0 to now unless `body` says otherwise.
    pub(crate) fn get_logs_v3(&self, logstore: &str, body: Value) -> Answer {
        let mut whole = json!({"from": 0, "to": now_s() + 1});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        self.send("POST", &format!("/logstores/{logstore}/logs"), &[], &whole.to_string())
    }

    /// `GET …?type=log`, or another type.
    pub(crate) fn get_logs_v1(&self, logstore: &str, params: &[(&str, &str)]) -> Answer {
        let to = (now_s() + 1).to_string();
        let mut all = vec![("type", "log"), ("from", "0"), ("to", to.as_str())];
        all.retain(|(name, _)| params.iter().all(|(other, _)| other != name));
        all.extend_from_slice(params);
        self.send("GET", &format!("/logstores/{logstore}"), &all, "")
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.send_bytes(
            method,
            path,
            query,
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        )
    }

    pub(crate) fn send_bytes(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let env: BTreeMap<_, _> = self.0.env().into_iter().collect();
        let credentials = Credentials {
            access_key_id: env["ALIYUN_SLS_ACCESS_KEY_ID"].clone(),
            access_key_secret: Secret::new(&env["ALIYUN_SLS_ACCESS_KEY_SECRET"]),
            security_token: None,
        };
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let query = owned(query);
        let host = format!("{PROJECT}.sls.test");
        let mut headers = owned(headers);
        headers.extend(owned(&[("Host", &host), ("x-log-apiversion", "0.6.0")]));
        headers.push(("x-log-bodyrawsize".to_owned(), body.len().to_string()));
        let parts = SignedParts { method, path, query: &query, headers: &headers, body };
        let signed = sign(SignatureVersion::V4, &credentials, "cn-hangzhou", now_s(), &parts);
        let pairs: Vec<_> =
            query.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
        let mut request = format!("{method} {path}?{} HTTP/1.0\r\n", pairs.join("&"));
        for (name, value) in signed {
            if !name.eq_ignore_ascii_case("content-length") {
                request += &format!("{name}: {value}\r\n");
            }
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(("127.0.0.1", self.0.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let split = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..split].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_slice(&answer[split + 4..]).unwrap_or_default();
        Answer { status, head, body }
    }
}

pub(crate) fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Fails unless both have the same rows in the same order, in the twin's columns.
#[track_caller]
pub(crate) fn same_rows(sls: &[Row], twin: &[Row]) {
    assert!(!twin.is_empty(), "Postgres has no row: the test tests nothing");
    let ids = |rows: &[Row]| -> Vec<_> { rows.iter().map(|row| row.get("id").cloned()).collect() };
    assert_eq!(ids(sls), ids(twin));
    assert_eq!(sls.len(), twin.len(), "{sls:?}\n{twin:?}");
    for (sls, twin) in sls.iter().zip(twin) {
        for (name, wanted) in twin {
            let got = sls.get(name).unwrap_or_else(|| panic!("SLS has no {name}: {sls:?}"));
            assert!(is_same(got, wanted), "{name}: SLS {got:?}, Postgres {wanted:?}\n{sls:?}");
        }
    }
}

/// The same with rows in any order.
#[track_caller]
pub(crate) fn same_set(mut sls: Vec<Row>, mut twin: Vec<Row>) {
    sls.sort_by(|a, b| a.get("id").cmp(&b.get("id")));
    twin.sort_by(|a, b| a.get("id").cmp(&b.get("id")));
    same_rows(&sls, &twin);
}

/// Equal as texts, as numbers or as JSON (Postgres holds it with `\u` escapes); or cut by SQL.
fn is_same(got: &str, wanted: &str) -> bool {
    if got == wanted {
        return true;
    }
    if let (Ok(got), Ok(wanted)) = (got.parse::<f64>(), wanted.parse::<f64>()) {
        return (got - wanted).abs() <= 1e-9 * wanted.abs();
    }
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    if let (Some(got), Some(wanted)) = (json(got), json(wanted)) {
        return got == wanted;
    }
    // Behind the last whole character within the limit.
    (TEXT_BYTES_MAX - 3..=TEXT_BYTES_MAX).contains(&got.len()) && wanted.len() > TEXT_BYTES_MAX
}
