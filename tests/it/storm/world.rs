//! The world of a storm: Postgres, the local SLS, the processes of the tool, and rows that come,
//! change, finish and vanish. Whatever is done and said in it is written down.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::cluster::{Cluster, binary};
use crate::harness::database::Database;
use crate::harness::fixture::{Fixture, TABLES};
use crate::harness::simulator::Simulator;
use crate::harness::tool::{Outcome, Running};
use crate::storm::plan::{Act, Disturbance, Plan};

/// How long a command may take, with all that is done to it.
const DEADLINE: Duration = Duration::from_secs(180);

pub(crate) struct World {
    pub(crate) fixture: Fixture,
    cluster: Option<Arc<Cluster>>,
    plan: Plan,
    /// Where everything is written down.
    pub(crate) folder: PathBuf,
    begun: Instant,
    disturbed: u32,
}

/// Where a storm leaves what it has written down.
pub(crate) fn folder(seed: u64) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("storm").join(seed.to_string())
}

impl World {
    pub(crate) fn of(plan: &Plan) -> Self {
        let folder = folder(plan.seed);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("plan.txt"), format!("{plan:#?}\n")).unwrap();
        let cluster = plan.restarts.then(|| Arc::new(Cluster::start(&[])));
        let database = match &cluster {
            Some(cluster) => Database::fresh_in(cluster).shape(plan.shape),
            None => Database::of_shape(plan.shape),
        };
        let fixture = Fixture { database, sls: start_sls(0, &folder) };
        fixture.sls.switch(&plan.switches);
        fixture.tool("init --ttl-days 3650").run().exits(0);
        fixture.set_proven(plan.proven);
        fixture.fill(plan.runs, plan.days);
        fixture.database.psql(
            "CREATE SCHEMA storm; CREATE TABLE storm.row (table_name text, id uuid); \
             CREATE TABLE storm.vanished (table_name text, id uuid); \
             CREATE TABLE storm.changed (id uuid); \
             INSERT INTO storm.row SELECT 'workflow_runs', id FROM workflow_runs \
             UNION ALL SELECT 'workflow_node_executions', id FROM workflow_node_executions",
        );
        let plan = plan.clone();
        Self { fixture, cluster, plan, folder, begun: Instant::now(), disturbed: 0 }
    }

    /// Writes a line down, with the time.
    pub(crate) fn note(&self, text: &str) {
        let path = self.folder.join("acts.log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(log, "{:8.3} {text}", self.begun.elapsed().as_secs_f64()).unwrap();
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> Outcome {
        let outcome = self.fixture.tool(command).deadline(DEADLINE).run();
        self.tell(&outcome);
        outcome
    }

    /// Does what an act says. Its commands may end as they like, but not with a panic, nor unread.
    pub(crate) fn act(&mut self, act: &Act) {
        self.note(&format!("act: {:?}", act.commands));
        let spawn = |command: &String| self.fixture.tool(command).deadline(DEADLINE).spawn();
        let mut running: Vec<Running> = act.commands.iter().map(spawn).collect();
        let mut ended = Vec::new();
        for (after_ms, disturbance) in &act.disturbances {
            std::thread::sleep(Duration::from_millis(*after_ms));
            self.note(&format!("{disturbance:?}"));
            self.disturb(disturbance, &mut running, &mut ended);
        }
        while running.iter_mut().any(|running| !running.has_ended()) {
            // Else a held request would wait for its client's patience.
            self.fixture.sls.release();
            std::thread::sleep(Duration::from_millis(200));
            if running.iter_mut().any(Running::is_late) {
                break;
            }
        }
        self.fixture.sls.forget_faults();
        ended.extend(running.into_iter().map(Running::wait));
        for outcome in &ended {
            self.tell(outcome);
            assert!(!outcome.stderr.contains("panicked at"), "{outcome}");
            assert!(
                outcome.status.code() != Some(2),
                "the storm cannot say what it wants: {outcome}"
            );
        }
    }

    fn tell(&self, outcome: &Outcome) {
        self.note(&outcome.to_string());
    }

    fn disturb(
        &mut self,
        disturbance: &Disturbance,
        running: &mut Vec<Running>,
        ended: &mut Vec<Outcome>,
    ) {
        self.disturbed += 1;
        let Self { fixture, cluster, .. } = self;
        match disturbance {
            Disturbance::Kill if !running.is_empty() => ended.push(running.remove(0).kill()),
            Disturbance::Interrupt => {
                running.iter_mut().filter_map(Running::alive).for_each(|it| it.signal("INT"));
            }
            Disturbance::Sleep { ms } => {
                if let Some(first) = running.iter_mut().find_map(Running::alive) {
                    first.signal("STOP");
                    std::thread::sleep(Duration::from_millis(*ms));
                    first.signal("CONT");
                }
            }
            Disturbance::Kill => {}
            Disturbance::KillSls => {
                let port = fixture.sls.port;
                fixture.sls.signal("KILL");
                // Until it is dead, its port and its files are its own.
                std::thread::sleep(Duration::from_millis(50));
                fixture.sls = start_sls(port, &self.folder);
                fixture.sls.switch(&self.plan.switches);
            }
            Disturbance::SlsSleeps { ms } => {
                fixture.sls.signal("STOP");
                std::thread::sleep(Duration::from_millis(*ms));
                fixture.sls.signal("CONT");
            }
            Disturbance::RestartPostgres => {
                if let Some(cluster) = cluster {
                    cluster.restart();
                }
            }
            Disturbance::CutConnections => {
                self.sql(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid()",
                );
            }
            Disturbance::Split => {
                // Else the faults that are meant for the tool would meet the storm's own requests.
                fixture.sls.forget_faults();
                fixture.sls.release();
                fixture.split_shards();
            }
            Disturbance::Fault(fault) => fixture.sls.order(fault),
            Disturbance::RowsChange { one_in } => self.rows_change(*one_in),
            Disturbance::RowsVanish { one_in } => self.rows_vanish(*one_in),
            Disturbance::RowsFinish => {
                for (table, _) in TABLES {
                    self.sql(&format!(
                        "UPDATE {table} SET status = 'succeeded', \
                         finished_at = created_at + interval '2 seconds' WHERE status = 'running'"
                    ));
                }
            }
            Disturbance::RowsCome { rows } => self.rows_come(*rows),
        }
    }

    /// Which rows a disturbance of this storm hits.
    fn hits(&self, one_in: u32) -> String {
        let Self { disturbed, plan, .. } = self;
        format!("abs(hashtext(id::text || '{} {disturbed}')) % {one_in} = 0", plan.seed)
    }

    fn rows_change(&self, one_in: u32) {
        let (hits, nth) = (self.hits(one_in), self.disturbed);
        for (table, _) in TABLES {
            self.sql(&format!(
                "WITH changed AS (UPDATE {table} SET outputs = '{{\"changed\": {nth}}}' \
                 WHERE {hits} RETURNING id) INSERT INTO storm.changed SELECT id FROM changed"
            ));
        }
    }

    fn rows_vanish(&self, one_in: u32) {
        let hits = self.hits(one_in);
        for (table, _) in TABLES {
            self.sql(&format!(
                "WITH gone AS (DELETE FROM {table} WHERE {hits} RETURNING id) \
                 INSERT INTO storm.vanished SELECT '{table}', id FROM gone"
            ));
        }
    }

    fn rows_come(&self, rows: u32) {
        let name = format!("{} {}", self.plan.seed, self.disturbed);
        for nth in 0..rows {
            let sql = format!(
                "SELECT md5('{name} {nth}')::uuid, at, at + interval '3 seconds' FROM (SELECT \
                 date_trunc('second', now() AT TIME ZONE 'UTC') \
                 - interval '{} minutes' AS at) AS t",
                120 + nth * 60
            );
            let row = self.sql(&sql);
            let [id, created_at, finished_at] =
                row.trim().split('|').collect::<Vec<_>>().try_into().unwrap();
            let values = json!({"id": id, "created_at": created_at, "finished_at": finished_at});
            self.fixture.insert("workflow_runs", values);
            self.sql(&format!("INSERT INTO storm.row VALUES ('workflow_runs', '{id}')"));
        }
    }

    /// Runs SQL, once more where a lock or a restart was in its way.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.fixture.database.try_psql(sql) {
                Ok(rows) => return rows,
                Err(error) => assert!(Instant::now() < deadline, "{error}\nin: {sql}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Leaves the ledger behind.
    pub(crate) fn dump(&self) {
        let path = self.folder.join("ledger.sql");
        let dump = Command::new(binary("pg_dump"))
            .args(["--schema=sls_backfill", "--data-only", "--inserts", "-f"])
            .arg(&path)
            .arg(self.fixture.database.url())
            .output();
        if let Ok(dump) = dump
            && !dump.status.success()
        {
            self.note(&format!("no dump: {}", String::from_utf8_lossy(&dump.stderr)));
        }
    }
}

/// Its data outlive it, and every request is written down.
fn start_sls(port: u16, folder: &Path) -> Simulator {
    let (data, log) = (folder.join("sls"), folder.join("requests.jsonl"));
    let [data, log] = [&data, &log].map(|path| path.to_str().expect("paths are text"));
    Simulator::start_on(port, &["--data", data, "--request-log", log])
}
