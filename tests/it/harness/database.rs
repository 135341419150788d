//! A database of a test's own, with Dify's tables in the shape of any of its versions.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::harness::cluster::{Cluster, PASSWORD, USER, binary};
use crate::harness::poll;

/// A new database, dropped with its value.
pub(crate) struct Database {
    cluster: Arc<Cluster>,
    pub(crate) name: String,
}

impl Database {
    /// An empty database in the shared cluster.
    pub(crate) fn fresh() -> Self {
        Self::fresh_in(&Cluster::shared())
    }

    /// An empty database in `cluster`.
    pub(crate) fn fresh_in(cluster: &Arc<Cluster>) -> Self {
        Self::made_in(cluster, "")
    }

    /// An empty database whose texts are any bytes.
    pub(crate) fn fresh_in_sql_ascii() -> Self {
        let any_bytes = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
        Self::made_in(&Cluster::shared(), any_bytes)
    }

    /// A copy of this one, with everything in it; nobody may be connected to this one.
    pub(crate) fn copy(&self) -> Self {
        Self::made_in(&self.cluster, &format!("TEMPLATE {}", self.name))
    }

    fn made_in(cluster: &Arc<Cluster>, options: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("dify_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let database = Self { cluster: cluster.clone(), name };
        let create = format!("CREATE DATABASE {} {options}", database.name);
        psql_in(cluster.port, "postgres", &create).unwrap();
        database
    }

    /// Makes the tables as a version of Dify has them; `shape` is a file of tests/data/ddl without
    /// its ending, such as `dify-1.12`.
    pub(crate) fn shape(self, shape: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/ddl");
        let path = folder.join(format!("{shape}.sql"));
        let ddl = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        self.psql(&ddl);
        self
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{}", self.cluster.port, self.name)
    }

    /// The environment under which Dify, and so the tool, reaches this database.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("DB_TYPE", "postgresql".into()),
            ("DB_HOST", "127.0.0.1".into()),
            ("DB_PORT", self.cluster.port.to_string()),
            ("DB_USERNAME", USER.into()),
            ("DB_PASSWORD", PASSWORD.into()),
            ("DB_DATABASE", self.name.clone()),
        ]
    }

    /// Runs `sql`, statements until the first error, and gives the rows: one a line, columns
    /// between `|`, NULL as nothing.
    #[track_caller]
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("{error}in: {sql:.2000}"))
    }

    /// Runs `sql` in the database of this name in another cluster, a replica of this one's.
    #[track_caller]
    pub(crate) fn psql_on(&self, replica: &Cluster, sql: &str) -> String {
        psql_in(replica.port, &self.name, sql)
            .unwrap_or_else(|error| panic!("{error}in: {sql:.2000}"))
    }

    /// As [`Self::psql`]; an error is what psql wrote about it.
    pub(crate) fn try_psql(&self, sql: &str) -> Result<String, String> {
        psql_in(self.cluster.port, &self.name, sql)
    }
}

/// An advisory lock of Postgres, held until it is dropped.
pub(crate) struct HeldLock<'a> {
    database: &'a Database,
    key: i64,
    session: Child,
}

impl Drop for HeldLock<'_> {
    fn drop(&mut self) {
        // A server that sleeps does not see that its client has gone.
        let end = format!("SELECT pg_terminate_backend(pid) {}", granted(self.key));
        if let Err(error) = self.database.try_psql(&end) {
            eprintln!("{error}");
        }
        let _ = self.session.wait();
    }
}

fn granted(key: i64) -> String {
    format!("FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = {key}")
}

impl Database {
    /// Takes an advisory lock in a session of its own.
    #[track_caller]
    pub(crate) fn hold_lock(&self, key: i64) -> HeldLock<'_> {
        let sql = format!("SELECT pg_advisory_lock({key}), pg_sleep(600)");
        let session = psql_command(self.cluster.port, &self.name, &sql)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let held = HeldLock { database: self, key, session };
        self.wait_until(&format!("SELECT count(*) {}", granted(key)), "1");
        held
    }

    /// Waits until a session waits for an advisory lock.
    #[track_caller]
    pub(crate) fn wait_for_a_waiting_lock(&self) {
        let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' \
                       AND NOT granted";
        self.wait_until(waiting, "t");
    }

    /// Waits until `sql` gives `wanted`.
    #[track_caller]
    pub(crate) fn wait_until(&self, sql: &str, wanted: &str) {
        poll(sql, Duration::from_secs(30), || (self.psql(sql).trim() == wanted).then_some(()));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        if let Err(error) = psql_in(self.cluster.port, "postgres", &drop) {
            eprintln!("{error}");
        }
    }
}

fn psql_command(port: u16, database: &str, sql: &str) -> Command {
    let mut command = Command::new(binary("psql"));
    command
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
        .args(["-p", &port.to_string(), "-U", USER, "-d", database, "-c", sql])
        .env("PGPASSWORD", PASSWORD)
        .env("PGOPTIONS", "--client-min-messages=warning");
    command
}

fn psql_in(port: u16, database: &str, sql: &str) -> Result<String, String> {
    let output = psql_command(port, database, sql)
        .output()
        .map_err(|error| format!("start psql: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";

    #[test]
    fn every_database_is_empty_and_its_own() {
        let one = Database::fresh();
        let other = Database::fresh();
        one.psql("CREATE TABLE here (n int); INSERT INTO here VALUES (1), (NULL)");
        assert_eq!(one.psql("SELECT n, n IS NULL FROM here ORDER BY 1"), "1|f\n|t");
        assert_eq!(other.psql(TABLES), "0");
        let error = other.try_psql("SELECT 1; SELECT * FROM here").unwrap_err();
        assert!(error.contains(r#"relation "here" does not exist"#), "{error}");
        let name = other.name.clone();
        drop(other);
        let gone = one.psql(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"));
        assert_eq!(gone, "0");
    }

    #[test]
    fn every_shape_loads() {
        for (shape, run_columns, node_columns) in [
            ("dify-0.6", 20, 22),
            ("dify-0.15", 21, 23),
            ("dify-1.10", 20, 23),
            ("dify-1.12", 20, 23),
            ("dify-newest", 22, 26),
        ] {
            let database = Database::fresh().shape(shape);
            let columns = database.psql(
                "SELECT count(*) FILTER (WHERE table_name = 'workflow_runs'),
                        count(*) FILTER (WHERE table_name = 'workflow_node_executions')
                 FROM information_schema.columns WHERE table_schema = 'public'",
            );
            assert_eq!(columns, format!("{run_columns}|{node_columns}"), "{shape}");
        }
    }

    #[test]
    fn url_and_environment_lead_to_the_database() {
        let database = Database::fresh();
        let names = ["DB_HOST", "DB_PORT", "DB_USERNAME", "DB_PASSWORD", "DB_DATABASE"];
        let value = |name| {
            let env = database.env();
            env.into_iter().find(|(key, _)| *key == name).unwrap().1
        };
        let [host, port, user, password, name] = names.map(value);
        assert_eq!(database.url(), format!("postgres://{user}:{password}@{host}:{port}/{name}"));
        let output = Command::new(binary("psql"))
            .args(["-XAt", "-c", "SELECT current_database()", &database.url()])
            .output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap().trim(), database.name);
    }

    #[test]
    fn the_password_is_needed() {
        let database = Database::fresh();
        let url = database.url().replace(PASSWORD, "wrong");
        let output = Command::new(binary("psql")).args(["-X", "-c", "SELECT 1", &url]).output();
        let stderr = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(stderr.contains("password authentication failed"), "{stderr}");
    }
}
