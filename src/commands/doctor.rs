//! `doctor`: is everything fit? Looks, and changes nothing unless it is asked to probe.

pub mod postgres;
pub mod sls;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;

use crate::commands::doctor::postgres::{check_ledger, check_source};
use crate::commands::doctor::sls::check_sls;
use crate::commands::exit::{Ended, Exit};
use crate::commands::output::{self, Format};
use crate::commands::setup::{self, PostgresSettings, SlsSettings};
use crate::error_text::error_text;
use crate::ledger::Ledger;
use crate::ledger::stop::Seqid;
use crate::pipeline::guard::probe::{LOGSTORE, Probed, probe};
use crate::pipeline::shutdown::Shutdown;

/// What `doctor` needs to know; what is wrong with it is a finding, too.
pub struct DoctorSettings {
    pub postgres: anyhow::Result<PostgresSettings>,
    pub sls: anyhow::Result<SlsSettings>,
    /// Try out whether SLS keeps numbers, and write the result into the ledger.
    pub probe: bool,
    pub allow_fsync_off: bool,
    pub format: Format,
}

/// How a thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// `run` works, but somebody should know.
    Warn,
    /// `run` would fail, or what it does would be of no use.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, found: found.into(), hint: None }
    }

    pub fn warn(name: &str, found: impl Into<String>, hint: &str) -> Self {
        let hint = Some(hint.to_owned());
        Self { state: State::Warn, hint, ..Self::ok(name, found) }
    }

    pub fn fail(name: &str, found: impl Into<String>, hint: &str) -> Self {
        Self { state: State::Fail, ..Self::warn(name, found, hint) }
    }

    /// An error, whose last lines may be a hint.
    pub fn error(name: &str, error: &anyhow::Error) -> Self {
        let text = error_text(error);
        let (found, hint) = match text.split_once("\nhint: ") {
            Some((found, hint)) => (found, Some(hint.to_owned())),
            None => (text.as_str(), None),
        };
        Self { state: State::Fail, hint, ..Self::ok(name, found) }
    }
}

/// Looks at everything, prints what was found, and says whether `run` may go.
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
            standing = check_ledger(settings, &postgres.ledger, identity, &mut checks).await;
        }
        Err(error) => checks.push(Check::error("settings of Postgres", error)),
    }
    match &settings.sls {
        Ok(sls) => check_sls(sls, &shapes, standing.as_ref(), clocks, &mut checks).await,
        Err(error) => checks.push(Check::error("settings of SLS", error)),
    }
    let is_fit = |checks: &[Check]| !checks.iter().any(|check| check.state == State::Fail);
    if let (true, Ok(postgres), Ok(sls)) = (settings.probe, &settings.postgres, &settings.sls) {
        let check = match is_fit(&checks) {
            true => try_out(settings, postgres, sls, &mut shutdown).await,
            false => Check::warn("seqid", "not tried out", "mend what has failed first"),
        };
        checks.retain(|other| other.name != check.name);
        checks.push(check);
    }
    print(&checks, is_fit(&checks), settings.format);
    Ok(if is_fit(&checks) { Exit::Done } else { Exit::Preflight })
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
        tracing::info!("trying out on logstore {LOGSTORE} whether SLS keeps numbers");
        let probed = probe(&client, shutdown).await;
        if let Probed::Shown(seqid) = probed {
            ledger.probed(&sls.place(), seqid).await.context("write down the result")?;
        }
        anyhow::Ok(probed)
    };
    match tried.await {
        Ok(Probed::Shown(Seqid::Proven)) => {
            Check::ok(name, "proven: SLS refuses a number that it has stored")
        }
        Ok(Probed::Shown(Seqid::Ignored)) => Check::warn(
            name,
            "not proven: SLS stores a repeated number",
            "nothing is lost or doubled; a batch without an answer waits 18 min before it is sent \
             again",
        ),
        Ok(Probed::Unclear(why)) => Check::warn(
            name,
            format!("not known: {why}"),
            "the access key needs log:CreateLogStore and log:DeleteLogStore for the probe; without \
             it a batch without an answer waits 18 min before it is sent again",
        ),
        Err(error) => Check::error(name, &error),
    }
}

fn print(checks: &[Check], is_fit: bool, format: Format) {
    if format == Format::Json {
        let json = json!({"schema_version": 1, "fit": is_fit, "checks": checks});
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
    output::line(if is_fit { "everything is fit" } else { "not fit: mend what has failed" });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_of_an_error_is_the_hint_of_its_check() {
        let error = anyhow::anyhow!("no answer\nhint: check the port").context("connect");
        let check = Check::error("source", &error);
        assert_eq!((check.found.as_str(), check.state), ("connect: no answer", State::Fail));
        assert_eq!(check.hint.as_deref(), Some("check the port"));
        assert_eq!(Check::error("source", &anyhow::anyhow!("no")).hint, None);
    }
}
