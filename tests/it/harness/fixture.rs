//! A database and a local SLS that belong together, with the tool's environment for both.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::simulator::{PROJECT, Simulator};
use crate::harness::tool::Tool;

pub(crate) const TABLES: [(&str, &str); 2] = [
    ("workflow_runs", "workflow_execution"),
    ("workflow_node_executions", "workflow_node_execution"),
];

/// What "finished" means, in the words of the database; the tool has its own.
const FINISHED: &str = "finished_at < (now() AT TIME ZONE 'UTC') - interval '1 hour' AND status IN \
    ('succeeded', 'failed', 'stopped', 'partial-succeeded', 'exception', 'retry')";

/// An id for whatever does not matter.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) sls: Simulator,
}

impl Fixture {
    /// A database of that shape, empty, and a local SLS on which `init` was run.
    pub(crate) fn new(shape: &str) -> Self {
        Self::of(Database::of_shape(shape))
    }

    /// That database, which has Dify's tables, and a local SLS on which `init` was run.
    pub(crate) fn of(database: Database) -> Self {
        let fixture = Self { database, sls: Simulator::start() };
        // Rows of tests may be of any age.
        fixture.tool("init --ttl-days 3650").run().exits(0);
        fixture.set_proven(true);
        fixture
    }

    /// A database of that shape and a local SLS, both empty: no `init` was run.
    pub(crate) fn of_nothing(shape: &str) -> Self {
        Self { database: Database::of_shape(shape), sls: Simulator::start() }
    }

    /// Whether the ledger takes SLS to refuse a repeated number.
    pub(crate) fn set_proven(&self, proven: bool) {
        let port = self.sls.port;
        let sql = format!(
            "UPDATE sls_backfill.ledger SET seqid_proven = {proven}, seqid_probed_at = now(), \
             seqid_of = '{PROJECT} at http://127.0.0.1:{port}'"
        );
        self.database.psql(&sql);
    }

    /// The tool with `arguments`, divided at spaces, in this world.
    pub(crate) fn tool(&self, arguments: &str) -> Tool {
        Tool::new(arguments.split(' ')).envs(self.database.env()).envs(self.sls.env())
    }

    /// Fills both tables with `runs` runs of four nodes each, of the last `days` days, in any
    /// shape: some fail, one in fifty runs never ends, one in ten nodes is a single step.
    pub(crate) fn fill(&self, runs: u32, days: u32) {
        let has = |table: &str, column: &str| {
            let sql = format!(
                "SELECT count(*) FROM information_schema.columns WHERE table_name = '{table}' \
                 AND column_name = '{column}'"
            );
            self.database.psql(&sql).trim() == "1"
        };
        let (sequence, number) = match has("workflow_runs", "sequence_number") {
            true => (", sequence_number", ", i"),
            false => ("", ""),
        };
        self.database.psql(&format!(
            "INSERT INTO workflow_runs (id, tenant_id, app_id, workflow_id, type, triggered_from, \
             version, graph, inputs, status, outputs, error, elapsed_time, total_tokens, \
             total_steps, created_by_role, created_by, created_at, finished_at{sequence}) \
             SELECT md5('run' || i)::uuid, md5('t' || i % 3)::uuid, md5('a' || i % 5)::uuid, \
             md5('w')::uuid, 'workflow', 'app-run', 'draft', '{{\"nodes\": []}}', \
             '{{\"q\": \"\\u4f60\\u597d ' || i || '\"}}', \
             CASE WHEN i % 50 = 0 THEN 'running' WHEN i % 9 = 0 THEN 'failed' \
               ELSE 'succeeded' END, '{{\"a\": ' || i || '}}', \
             CASE WHEN i % 9 = 0 THEN 'boom' END, 1.5, i, 4, 'end_user', md5('u')::uuid, at, \
             CASE WHEN i % 50 > 0 THEN at + interval '1.5 seconds' END{number} \
             FROM (SELECT i, date_trunc('second', now() AT TIME ZONE 'UTC') - interval '2 hours' \
               - i * interval '{days} days' / {runs} AS at FROM generate_series(1, {runs}) i) s"
        ));
        self.database.psql(
            "INSERT INTO workflow_node_executions (id, tenant_id, app_id, workflow_id, \
             triggered_from, workflow_run_id, \"index\", predecessor_node_id, node_id, node_type, \
             title, inputs, process_data, outputs, status, error, elapsed_time, \
             execution_metadata, created_at, created_by_role, created_by, finished_at) \
             SELECT md5(r.id::text || n)::uuid, tenant_id, app_id, workflow_id, \
             CASE WHEN s.single THEN 'single-step' ELSE 'workflow-run' END, \
             CASE WHEN NOT s.single THEN r.id END, n, NULL, 'n' || n, 'llm', 'LLM', inputs, NULL, \
             outputs, CASE status WHEN 'succeeded' THEN 'succeeded' WHEN 'failed' THEN 'exception' \
             ELSE 'running' END, error, 0.25, '{\"total_tokens\": 3}', created_at, \
             created_by_role, created_by, finished_at \
             FROM workflow_runs r CROSS JOIN generate_series(1, 4) n, \
             LATERAL (SELECT abs(hashtext(r.id::text || n)) % 10 = 0 AS single) s",
        );
        self.database.psql("ANALYZE workflow_runs, workflow_node_executions");
    }

    /// Inserts a row: `values` on top of those of an ordinary row that has finished long ago.
    pub(crate) fn insert(&self, table: &str, values: Value) {
        let own = match table {
            "workflow_runs" => json!({
                "type": "workflow", "triggered_from": "app-run", "version": "draft",
                "total_tokens": 7, "total_steps": 2, "exceptions_count": 0,
            }),
            _ => json!({
                "triggered_from": "workflow-run", "index": 1, "node_id": "n1", "node_type": "llm",
                "title": "LLM",
            }),
        };
        let common = json!({
            "id": NOBODY, "tenant_id": NOBODY, "app_id": NOBODY, "workflow_id": NOBODY,
            "created_by": NOBODY, "created_by_role": "account", "status": "succeeded",
            "elapsed_time": 0.5, "inputs": "{}", "outputs": "{\"a\": 1}",
            "created_at": "2024-05-06 07:08:09", "finished_at": "2024-05-06 07:08:10.25",
        });
        let mut row = serde_json::Map::new();
        for part in [common, own, values] {
            row.extend(part.as_object().expect("values come as an object").clone());
        }
        self.database.psql(&format!(
            "INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, $row${}$row$)",
            Value::from(row)
        ));
    }

    /// As if whatever was sent had been sent an hour ago: nothing of it is on its way any more.
    pub(crate) fn sent_an_hour_ago(&self) {
        self.database.psql(
            "UPDATE sls_backfill.batch SET signed_at = signed_at - interval '1 hour', \
             stored_at = stored_at - interval '1 hour', intended_at = intended_at - interval '1 hour'",
        );
    }

    /// Why rows of `table` are held now, by id.
    pub(crate) fn held(&self, table: &str) -> BTreeMap<String, String> {
        let sql = format!(
            "SELECT row_id, reason FROM sls_backfill.hold \
             WHERE table_name = '{table}' AND state = 'open'"
        );
        let rows = self.database.psql(&sql);
        let pair = |line: &str| line.split_once('|').map(|(id, why)| (id.into(), why.into()));
        rows.lines().filter_map(pair).collect()
    }

    /// Every answer to PutLogs takes that long from now on.
    pub(crate) fn slow_down(&self, delay_ms: u32) {
        let action = json!({"delay_ms": delay_ms});
        let always = json!({"kind": "put", "nth": 1, "times": 1_000_000, "action": action});
        self.sls.post("/_sim/faults", &always);
    }

    /// Splits every shard of both logstores that takes writes.
    pub(crate) fn split_shards(&self) {
        for (_, logstore) in TABLES {
            let path = format!("/logstores/{logstore}/shards");
            let shards: Value =
                serde_json::from_str(&self.sls.call("GET", &path, &[], "")).unwrap();
            for shard in shards.as_array().unwrap() {
                if shard["status"] == "readwrite" {
                    let number = |name: &str| {
                        u128::from_str_radix(shard[name].as_str().unwrap(), 16).unwrap()
                    };
                    let (begin, end) = (number("inclusiveBeginKey"), number("exclusiveEndKey"));
                    let middle = format!("{:032x}", begin + (end - begin) / 2);
                    let path = format!("{path}/{}", shard["shardID"]);
                    self.sls.call("POST", &path, &[("action", "split"), ("key", &middle)], "");
                }
            }
        }
    }

    /// Deletes a logstore with all that is in it.
    pub(crate) fn delete_logstore(&self, logstore: &str) {
        self.sls.call("DELETE", &format!("/logstores/{logstore}"), &[], "");
    }

    /// The ids of the finished rows of `table`, in order, as Postgres knows them.
    pub(crate) fn finished(&self, table: &str) -> Vec<String> {
        let sql = format!("SELECT id FROM {table} WHERE {FINISHED} ORDER BY id");
        self.database.psql(&sql).lines().map(str::to_owned).collect()
    }

    /// The ids of the logs of `logstore`, in order, each as often as it is there.
    pub(crate) fn stored(&self, logstore: &str) -> Vec<String> {
        let logs = self.sls.logs(logstore);
        let mut ids: Vec<_> = logs.iter().map(|log| log.field("id").to_owned()).collect();
        ids.sort_unstable();
        ids
    }

    /// Fails unless SLS holds every finished row once, and nothing else, and every row that was
    /// seen is accounted for.
    #[track_caller]
    pub(crate) fn holds_every_finished_row_once(&self) {
        for (table, logstore) in TABLES {
            let (finished, stored) = (self.finished(table), self.stored(logstore));
            assert!(!finished.is_empty(), "{table} has no finished row: the test tests nothing");
            let mut times: BTreeMap<&str, i32> = BTreeMap::new();
            finished.iter().for_each(|id| *times.entry(id).or_default() += 1);
            stored.iter().for_each(|id| *times.entry(id).or_default() -= 1);
            times.retain(|_, times| *times != 0);
            assert!(times.is_empty(), "{table}: 1 is missing, less than 0 is too many: {times:?}");
        }
        self.tool("status").run().exits(0);
    }
}
