//! A database of a test's own, with Dify's tables in the shape of any of its versions.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::{Connection as _, PgConnection};

use crate::harness::cluster::{Cluster, PASSWORD, USER};
use crate::harness::session::{self, Sessions};
use crate::harness::{DEADLINE, poll};

/// A new database, dropped with its value.
pub(crate) struct Database {
    cluster: Arc<Cluster>,
    sessions: Sessions,
    pub(crate) name: String,
}

impl Database {
    /// An empty database in the shared cluster.
    pub(crate) fn fresh() -> Self {
        Self::fresh_in(&Cluster::shared())
    }

    /// A database in the shared cluster with the tables of a version of Dify, as [`Self::shape`]
    /// makes them. They are made once and copied, which is faster.
    pub(crate) fn of_shape(shape: &str) -> Self {
        static MADE: Mutex<BTreeMap<String, Arc<Database>>> = Mutex::new(BTreeMap::new());
        let made = {
            let mut all = MADE.lock().unwrap_or_else(PoisonError::into_inner);
            let made = all.entry(shape.to_owned());
            made.or_insert_with(|| Arc::new(Self::fresh().shape(shape))).clone()
        };
        made.copy()
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
        self.sessions.close();
        Self::made_in(&self.cluster, &format!("TEMPLATE {}", self.name))
    }

    fn made_in(cluster: &Arc<Cluster>, options: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("dify_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        cluster.sessions.run(&format!("CREATE DATABASE {name} {options}")).unwrap();
        Self { cluster: cluster.clone(), sessions: Sessions::new(cluster.port, &name), name }
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
        self.try_psql(sql).unwrap_or_else(|error| panic!("{error}\nin: {sql:.2000}"))
    }

    /// Runs `sql` in the database of this name in another cluster, a replica of this one's.
    #[track_caller]
    pub(crate) fn psql_on(&self, replica: &Cluster, sql: &str) -> String {
        Sessions::new(replica.port, &self.name)
            .run(sql)
            .unwrap_or_else(|error| panic!("{error}\nin: {sql:.2000}"))
    }

    /// As [`Self::psql`]; an error is what Postgres said.
    pub(crate) fn try_psql(&self, sql: &str) -> Result<String, String> {
        self.sessions.run(sql)
    }
}

/// An advisory lock of Postgres, held until it is dropped.
pub(crate) struct HeldLock {
    session: Option<PgConnection>,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let session = self.session.take();
        session::wait(async move {
            if let Some(mut session) = session {
                // The end of the session would come a moment later.
                let freed = sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut session);
                if let Err(error) = freed.await {
                    eprintln!("free an advisory lock: {error}");
                }
                let _ = session.close().await;
            }
        });
    }
}

impl Database {
    /// Takes an advisory lock in a session of its own.
    #[track_caller]
    pub(crate) fn hold_lock(&self, key: i64) -> HeldLock {
        let mut session = self.sessions.open();
        let session = session::wait(async move {
            let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(key);
            lock.execute(&mut session).await.map(|_| session)
        });
        HeldLock { session: Some(session.unwrap()) }
    }

    /// Locks a row in a session of its own, as Dify does while it works on it.
    #[track_caller]
    pub(crate) fn hold_row(&self, table: &str, id: &str) -> HeldLock {
        let sql = format!("BEGIN; SELECT id FROM {table} WHERE id = '{id}' FOR UPDATE");
        let mut session = self.sessions.open();
        let session = session::wait(async move {
            let lock = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
            lock.execute(&mut session).await.map(|_| session)
        });
        HeldLock { session: Some(session.unwrap()) }
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
        poll(sql, DEADLINE, || (self.psql(sql).trim() == wanted).then_some(()));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        if let Err(error) = self.cluster.sessions.run(&drop) {
            eprintln!("{drop}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::harness::cluster::binary;

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
