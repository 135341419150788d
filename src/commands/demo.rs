//! `demo`: the whole way of a backfill on this machine, with the commands that an operator types.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, bytes, count};
use crate::commands::setup::{PostgresSettings, SlsSettings, client};
use crate::demo::finished::{finished, finished_with_their_run};
use crate::demo::settings::{HistorySettings, Profile};
use crate::demo::{Connection, create_tables, fill};
use crate::ledger::Ledger;
use crate::pg::pool::PoolSize;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::secret::Secret;
use crate::sls::client::Client;
use crate::sls::endpoint::Endpoint;
use crate::wire::log_group::{LogGroupView, split_list};
use crate::wire::sign::{Credentials, SignatureVersion};

const PROJECT: &str = "dify-logs";
const REGION: &str = "cn-hangzhou";
const ACCESS_KEY_ID: &str = "demo";
const ACCESS_KEY_SECRET: &str = "demo-secret";
const SECURITY_TOKEN: &str = "demo-token";

/// The key of the local SLS, over whatever the operator's settings say.
const KEY: [(&str, &str); 3] = [
    ("ALIYUN_SLS_ACCESS_KEY_ID", ACCESS_KEY_ID),
    ("ALIYUN_SLS_ACCESS_KEY_SECRET", ACCESS_KEY_SECRET),
    ("ALIYUN_SLS_SECURITY_TOKEN", SECURITY_TOKEN),
];

/// `run` reads rows that finished at least so long ago.
const SETTLE_S: i64 = 3600;

/// What `demo` needs to know.
pub struct DemoSettings {
    pub postgres: PostgresSettings,
    /// Node executions to make.
    pub rows: u64,
    pub seed: u64,
    pub days: u32,
    /// Rows as benchmarks want them: node executions of 4 KB, without the long tail of megabytes.
    pub for_measuring: bool,
    pub fill_only: bool,
    /// Where the settings of Postgres come from, for the processes that the demo starts.
    pub env_files: Vec<PathBuf>,
}

/// Fills the database and shows the way; touches no database that holds anything of Dify's.
pub async fn demo(settings: &DemoSettings) -> Result<Exit, Ended> {
    let conn = settings.postgres.source.connect_once().await.context("connect to Postgres");
    let conn = &mut conn.or_exit(Exit::Preflight)?;
    let now = current_time();
    make_history(conn, settings, now).await?;
    if settings.fill_only {
        return Ok(Exit::Done);
    }
    let mut simulator = Simulator::start().await?;
    let ended = show(conn, settings, &simulator.address, now).await;
    let _ = simulator.child.kill().await;
    ended
}

async fn make_history(
    conn: &mut Connection,
    settings: &DemoSettings,
    now: Timestamp,
) -> Result<(), Ended> {
    if !create_tables(conn).await? {
        let error = anyhow::anyhow!(
            "this database has tables of Dify's already, and the demo only fills tables that it \
             has created\nnothing was written\nhint: use an empty database"
        );
        return Err(Ended { exit: Exit::Preflight, error });
    }
    say(&format!(
        "Creating {} node executions as Dify 1.12 leaves them (--rows, --seed) …",
        count(settings.rows)
    ));
    let history = HistorySettings {
        node_rows: settings.rows,
        seed: settings.seed,
        now,
        days: settings.days,
        profile: if settings.for_measuring { Profile::Bench } else { Profile::Mixed },
    };
    let begun = Instant::now();
    let made = fill(conn, &history, |_| {}).await?;
    say(&format!(
        "{} workflow runs and {} node executions, {} of text, in {:.1} s",
        count(made.runs),
        count(made.node_executions),
        bytes(made.bytes),
        begun.elapsed().as_secs_f64(),
    ));
    Ok(())
}

async fn show(
    conn: &mut Connection,
    settings: &DemoSettings,
    address: &str,
    now: Timestamp,
) -> Result<Exit, Ended> {
    let environment = [
        ("ALIYUN_SLS_ENDPOINT", format!("http://{address}")),
        ("ALIYUN_SLS_REGION", REGION.to_owned()),
        ("ALIYUN_SLS_PROJECT_NAME", PROJECT.to_owned()),
    ];
    let tool = Tool { environment: &environment, env_files: &settings.env_files };
    say("ALIYUN_SLS_* names the local SLS. First, create what Dify creates when it starts:");
    tool.succeed(&["init"]).await?;
    say("What would a run send? A dry run has no way to write:");
    tool.succeed(&["run", "--dry-run"]).await?;
    say("Now the run itself. It is killed half-way:");
    kill_in_the_middle(&tool, settings).await?;
    say("The same command continues, and finds out what became of the batches in doubt:");
    tool.succeed(&["run"]).await?;
    say("And once more: nothing is left to do.");
    tool.succeed(&["run"]).await?;
    say(
        "Does SLS hold every finished row exactly once? Reading everything back and counting ids …",
    );
    let client = client(&SlsSettings {
        endpoint: Endpoint::parse(&format!("http://{address}"), PROJECT)
            .context("read the local address")?,
        region: REGION.to_owned(),
        project: PROJECT.to_owned(),
        credentials: Credentials {
            access_key_id: ACCESS_KEY_ID.to_owned(),
            access_key_secret: Secret::new(ACCESS_KEY_SECRET),
            security_token: Some(Secret::new(SECURITY_TOKEN)),
        },
        signature: SignatureVersion::V4,
        deadline: Duration::from_secs(60),
        ca_certificates: Vec::new(),
    })?;
    for table in Table::ALL {
        // A row may become old enough between the beginning of the demo and its last run.
        let wanted = finished(conn, table, now.plus_s(-SETTLE_S)).await?;
        let allowed = finished(conn, table, current_time().plus_s(-SETTLE_S)).await?;
        let found = ids_in_sls(&client, table.logstore()).await?;
        compare(table, &wanted, &allowed, &found)?;
    }
    say("All of it is in SLS once. Is it still, byte for byte?");
    tool.succeed(&["verify", "--level", "content"]).await?;
    purge_and_restore(conn, &tool, &client).await?;
    Ok(Exit::Done)
}

/// What Dify's console asks for its overview: how many runs ended how.
const DIFYS_QUESTION: &str = "SELECT status, COUNT(DISTINCT id) AS runs FROM workflow_execution \
     WHERE finished_at IS NOT NULL GROUP BY status ORDER BY status";

/// The rows leave Postgres, Dify's question keeps its answer, and the rows come back.
async fn purge_and_restore(
    conn: &mut Connection,
    tool: &Tool<'_>,
    client: &Client,
) -> anyhow::Result<()> {
    let before = answers(client).await?;
    say(&format!("Dify asks SLS: {DIFYS_QUESTION}"));
    before.iter().for_each(|answer| output::line(answer));
    say("What could leave Postgres now? A plan writes nothing:");
    tool.succeed(&["purge", "--older-than", "1h"]).await?;
    say("Every batch is pulled back once more, and each row compared under lock, before it goes:");
    tool.succeed(&["purge", "--older-than", "1h", "--execute", "--yes", "--vacuum"]).await?;
    let end = current_time();
    for table in Table::ALL {
        let left = finished_with_their_run(conn, table, end.plus_s(-2 * SETTLE_S)).await?;
        output::line(&format!(
            "{table}: {} rows left in Postgres that had finished, and their run with them",
            count(left.len() as u64)
        ));
        anyhow::ensure!(left.is_empty(), "rows of {table} that are proved were not purged");
    }
    say("Dify asks again:");
    let after = answers(client).await?;
    after.iter().for_each(|answer| output::line(answer));
    anyhow::ensure!(before == after, "SLS answers otherwise after the purge");
    say("And back, because somebody changed their mind:");
    tool.succeed(&["restore", "--since", "2000-01-01", "--execute"]).await?;
    say("Rows and logs are compared once more, and a run finds nothing to send again:");
    tool.succeed(&["verify", "--level", "content"]).await?;
    tool.succeed(&["run"]).await
}

async fn answers(client: &Client) -> anyhow::Result<Vec<String>> {
    let logstore = Table::Runs.logstore();
    let answer =
        client.sql(logstore, 0, client.now() + 1, &format!("* | {DIFYS_QUESTION}")).await?;
    anyhow::ensure!(answer.is_complete, "SLS has not answered completely");
    Ok(answer.rows.iter().map(|row| format!("    {}: {}", row["status"], row["runs"])).collect())
}

/// The tool itself, as a process of its own.
struct Tool<'a> {
    environment: &'a [(&'static str, String)],
    env_files: &'a [PathBuf],
}

impl Tool<'_> {
    fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        output::line(&format!("\n$ dify-sls-backfill {}", arguments.join(" ")));
        own_command()?
            .args(arguments)
            .args(self.env_files.iter().flat_map(|file| [Path::new("--env-file"), file]))
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .kill_on_drop(true)
            .spawn()
            .context("start the tool")
    }

    async fn succeed(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = self.spawn(arguments)?.wait().await.context("wait for the tool")?;
        anyhow::ensure!(status.success(), "it ended with {status}, which a demo should not");
        Ok(())
    }
}

/// Kills a run as soon as half of the node executions are in the ledger.
async fn kill_in_the_middle(tool: &Tool<'_>, settings: &DemoSettings) -> anyhow::Result<()> {
    let mut run = tool.spawn(&["run"])?;
    let ledger = Ledger::open(&settings.postgres.ledger, PoolSize::few(1), true).await?;
    loop {
        if let Some(status) = run.try_wait().context("look at the run")? {
            say(&format!("It ended before it could be killed ({status}); use more --rows."));
            return Ok(());
        }
        if ledger.account(Table::NodeExecutions).await?.live > settings.rows / 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pid = run.id().context("the run has a process id")?;
    output::line(&format!("$ kill -9 {pid}"));
    run.kill().await.context("kill the run")
}

/// How often each id is in the logstore.
async fn ids_in_sls(client: &Client, logstore: &str) -> anyhow::Result<HashMap<Uuid, u32>> {
    let mut ids: HashMap<Uuid, u32> = HashMap::new();
    for shard in client.shards(logstore).await? {
        let mut cursor = client.cursor(logstore, shard.id, "begin").await?;
        loop {
            let pulled = client.pull(logstore, shard.id, &cursor, 4).await?;
            if pulled.next_cursor == cursor {
                break;
            }
            for group in split_list(&pulled.raw)? {
                for log in LogGroupView::parse(group)?.logs {
                    let id = log.contents.iter().find(|(key, _)| *key == b"id");
                    let id = id.and_then(|(_, value)| Uuid::try_parse_ascii(value).ok());
                    *ids.entry(id.context("a log without an id")?).or_default() += 1;
                }
            }
            cursor = pulled.next_cursor;
        }
    }
    Ok(ids)
}

fn compare(
    table: Table,
    wanted: &[Uuid],
    allowed: &[Uuid],
    found: &HashMap<Uuid, u32>,
) -> anyhow::Result<()> {
    let missing = wanted.iter().filter(|id| !found.contains_key(*id)).count();
    let doubled = found.values().filter(|times| **times > 1).count();
    let allowed: HashSet<_> = allowed.iter().collect();
    let odd = found.keys().filter(|id| !allowed.contains(id)).count();
    output::line(&format!(
        "{table}: {} finished in Postgres, {} in SLS, {missing} missing, {doubled} stored twice, \
         {odd} that should not be there",
        count(wanted.len() as u64),
        count(found.len() as u64),
    ));
    anyhow::ensure!(missing + doubled + odd == 0, "{table} is not in SLS as it should be");
    Ok(())
}

fn current_time() -> Timestamp {
    Timestamp::from_unix_us(jiff::Timestamp::now().as_microsecond())
}

/// The local SLS, as a process of its own.
struct Simulator {
    child: Child,
    address: String,
}

impl Simulator {
    async fn start() -> anyhow::Result<Self> {
        output::line("\n$ dify-sls-backfill simulate --listen 127.0.0.1:0 &");
        let mut child = own_command()?
            .args(["--quiet", "simulate", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the local SLS")?;
        let stdout = child.stdout.take().context("read what the local SLS says")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = lines.next_line().await?.unwrap_or_default();
        output::line(&line);
        let address = line.strip_prefix("listening on ").context("the local SLS did not start")?;
        Ok(Self { child, address: address.to_owned() })
    }
}

/// This program, with the key of the local SLS.
fn own_command() -> anyhow::Result<Command> {
    let own = std::env::current_exe().context("find the own binary")?;
    let mut command = Command::new(own);
    for (name, value) in KEY {
        command.env(name, value).env_remove(format!("{name}_FILE"));
    }
    Ok(command)
}

fn say(text: &str) {
    output::line(&format!("\n# {text}"));
}
