//! A small fake of Dify's LogStore writer: a `running` log when a row begins, a terminal one when it
//! has finished, one log a request, without tags and topic.

use dify_sls_backfill::wire::log_group::LogGroupWriter;
use serde_json::{Map, Value};

use crate::harness::fixture::Fixture;

/// The address of Dify's worker: the SDK writes it as the logs' source.
const SOURCE: &str = "172.18.0.9";

const RUN_LOG: &str = "json_build_object('id', id, 'log_version', '0', 'tenant_id', tenant_id, \
    'app_id', app_id, 'workflow_id', workflow_id, 'triggered_from', triggered_from, 'type', type, \
    'version', version, 'graph', graph, 'inputs', inputs::jsonb::text, \
    'outputs', outputs::jsonb::text, 'status', status, 'error_message', coalesce(error, ''), \
    'total_tokens', total_tokens::text, 'total_steps', total_steps::text, \
    'exceptions_count', coalesce(exceptions_count, 0)::text, 'created_by_role', created_by_role, \
    'created_by', created_by, 'started_at', created_at, 'finished_at', to_char(finished_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'))";

const NODE_LOG: &str = "json_build_object('id', id, 'log_version', '0', 'tenant_id', tenant_id, \
    'app_id', app_id, 'workflow_id', workflow_id, 'triggered_from', triggered_from, \
    'workflow_run_id', coalesce(workflow_run_id::text, ''), 'index', \"index\"::text, \
    'predecessor_node_id', '', 'node_execution_id', id, 'node_id', node_id, \
    'node_type', node_type, 'title', title, 'inputs', inputs::jsonb::text, 'process_data', '{}', \
    'outputs', outputs::jsonb::text, 'status', status, 'error', coalesce(error, ''), \
    'elapsed_time', elapsed_time::text, 'execution_metadata', execution_metadata::jsonb::text, \
    'created_at', created_at, 'created_by_role', created_by_role, 'created_by', created_by, \
    'finished_at', to_char(finished_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US'))";

/// A row of Dify's, as its writer logs it when it has finished.
pub(crate) struct Row {
    pub(crate) id: String,
    logstore: &'static str,
    fields: Map<String, Value>,
    began_s: u32,
    finished_s: u32,
}

/// The terminal rows of `table` for which `condition` holds.
pub(crate) fn rows(fixture: &Fixture, table: &str, condition: &str) -> Vec<Row> {
    let (logstore, log) = match table {
        "workflow_runs" | "later_workflow_runs" => ("workflow_execution", RUN_LOG),
        _ => ("workflow_node_execution", NODE_LOG),
    };
    let seconds = |column: &str| format!("floor(extract(epoch FROM {column}))::int8");
    let sql = format!(
        "SELECT json_build_array({log}, {}, {}) FROM {table} \
         WHERE status <> 'running' AND {condition} ORDER BY created_at, id",
        seconds("created_at"),
        seconds("finished_at")
    );
    let line = |line: &str| {
        let (fields, began_s, finished_s): (Map<String, Value>, u32, u32) =
            serde_json::from_str(line).unwrap();
        let id = fields["id"].as_str().unwrap().to_owned();
        Row { id, logstore, fields, began_s, finished_s }
    };
    fixture.database.psql(&sql).lines().map(line).collect()
}

impl Row {
    /// Writes the log of its beginning.
    pub(crate) fn begin(&self, fixture: &Fixture) {
        self.put(fixture, self.began_s, Some("running"));
    }

    /// Writes its terminal log.
    pub(crate) fn finish(&self, fixture: &Fixture) {
        self.put(fixture, self.finished_s, None);
    }

    /// When it finished, Unix seconds.
    pub(crate) fn finished_s(&self) -> u32 {
        self.finished_s
    }

    /// Writes its terminal log with another log time, Unix seconds.
    pub(crate) fn finish_at(&self, fixture: &Fixture, time_s: u32) {
        self.put(fixture, time_s, None);
    }

    fn put(&self, fixture: &Fixture, time_s: u32, status: Option<&str>) {
        let mut group = LogGroupWriter::default();
        group.begin_log(time_s, 0);
        for (key, value) in &self.fields {
            let value = match (key.as_str(), status) {
                ("log_version", _) => format!("{time_s}000000000"),
                ("status", Some(status)) => status.to_owned(),
                ("finished_at", Some(_)) => String::new(),
                _ => value.as_str().unwrap_or("{}").to_owned(),
            };
            group.field(key, value.as_bytes());
        }
        group.end_log();
        group.finish(Some(""), Some(SOURCE), &[]);
        fixture.sls.put(self.logstore, group.bytes());
    }
}
