//! `doctor`: is everything ready? It checks, and changes nothing unless it is asked to probe.

pub mod check;
pub mod postgres;
pub mod sls;

use anyhow::Context as _;
use serde_json::json;

use crate::commands::doctor::check::{Check, State};
use crate::commands::doctor::postgres::{check_ledger, check_seqid, check_source};
use crate::commands::doctor::sls::check_sls;
use crate::commands::exit::{Ended, Exit};
use crate::commands::output::{self, Format};
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::ledger::Ledger;
use crate::ledger::stop::Seqid;
use crate::pipeline::guard::probe::{LOGSTORE, Probed, probe};
use crate::pipeline::shutdown::Shutdown;

/// What `doctor` needs to know; what is wrong with it is a finding, too.
pub struct DoctorSettings {
    pub postgres: anyhow::Result<PostgresSettings>,
    pub sls: anyhow::Result<SlsSettings>,
    /// Test whether SLS refuses repeated sequence numbers, and record the result in the ledger.
    pub probe: bool,
    pub allow_fsync_off: bool,
    pub format: Format,
}

/// Checks everything, prints what was found, and says whether `run` would work.
pub async fn doctor(settings: &DoctorSettings, mut shutdown: Shutdown) -> Result<Exit, Ended> {
    let mut checks = Vec::new();
    let mut shapes = Vec::new();
    let mut standing = None;
    let mut clocks = None;
    match &settings.postgres {
        Ok(postgres) => {
            let source = check_source(&postgres.source, &mut checks, &mut shapes).await;
            clocks = source.as_ref().map(|(source, _)| source.server.now);
            let identity = source.map(|(_, identity)| identity);
            let fsync_off = settings.allow_fsync_off;
            standing = check_ledger(&postgres.ledger, fsync_off, identity, &mut checks).await;
            if let (Some(standing), Ok(sls)) = (&standing, &settings.sls) {
                checks.push(check_seqid(standing, &sls.place()));
            }
        }
        Err(error) => checks.push(Check::error("settings of Postgres", error)),
    }
    match &settings.sls {
        Ok(sls) => check_sls(sls, &shapes, standing.as_ref(), clocks, &mut checks).await,
        Err(error) => checks.push(Check::error("settings of SLS", error)),
    }
    let is_ready = |checks: &[Check]| !checks.iter().any(|check| check.state == State::Fail);
    if let (true, Ok(postgres), Ok(sls)) = (settings.probe, &settings.postgres, &settings.sls) {
        let check = match is_ready(&checks) {
            true => try_out(settings, postgres, sls, &mut shutdown).await,
            false => Check::warn("seqid", "not tested", "fix what failed first"),
        };
        checks.retain(|other| other.name != check.name);
        checks.push(check);
    }
    print(&checks, is_ready(&checks), settings.format);
    Ok(if is_ready(&checks) { Exit::Done } else { Exit::Preflight })
}

/// Probes, and writes what was seen into the ledger.
async fn try_out(
    settings: &DoctorSettings,
    postgres: &PostgresSettings,
    sls: &SlsSettings,
    shutdown: &mut Shutdown,
) -> Check {
    let name = "seqid";
    let tried = async {
        let client = setup::client(sls)?;
        let ledger = Ledger::open(&postgres.ledger, 1, settings.allow_fsync_off).await?;
        ledger.bind(&sls.project, &sls.endpoint.service).await?;
        tracing::info!(
            "testing on logstore {LOGSTORE} whether SLS refuses repeated sequence numbers"
        );
        let probed = probe(&client, shutdown).await;
        if let Probed::Shown(seqid) = probed {
            ledger.probed(&sls.place(), seqid).await.context("write down the result")?;
        }
        anyhow::Ok(probed)
    };
    match tried.await {
        Ok(Probed::Shown(Seqid::Proven)) => {
            Check::ok(name, "proven: SLS refuses a sequence number that it has stored")
        }
        Ok(Probed::Shown(Seqid::Ignored)) => Check::warn(
            name,
            "not proven: SLS stores a repeated sequence number",
            "nothing is lost or stored twice; a batch in doubt waits 18 min before it is sent again",
        ),
        Ok(Probed::Unclear(why)) => Check::warn(
            name,
            format!("not known: {why}"),
            "the access key needs log:CreateLogStore and log:DeleteLogStore for the probe; without \
             it a batch in doubt waits 18 min before it is sent again",
        ),
        Err(error) => Check::error(name, &error),
    }
}

fn print(checks: &[Check], is_ready: bool, format: Format) {
    if format == Format::Json {
        let json = json!({"schema_version": 1, "ready": is_ready, "checks": checks});
        output::line(&json.to_string());
        return;
    }
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for Check { name, state, found, hint } in checks {
        let word = match state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let mut lines = found.lines();
        output::line(&format!("{word}  {name:<width$}  {}", lines.next().unwrap_or_default()));
        let indent = " ".repeat(width + 8);
        for line in lines {
            output::line(&format!("{indent}{line}"));
        }
        for line in hint.iter().flat_map(|hint| hint.lines()) {
            output::line(&format!("{indent}hint: {}", line.trim_start_matches("hint: ")));
        }
    }
    output::line(if is_ready { "everything is ready" } else { "not ready: fix what failed" });
}
