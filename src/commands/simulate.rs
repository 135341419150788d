//! `simulate`: the local SLS.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output;
use crate::sim;
use crate::sim::fault::Fault;
use crate::sim::switch::Switches;
use crate::wire::sign::Credentials;

/// What `simulate` needs to know.
pub struct SimulateSettings {
    pub listen: SocketAddr,
    /// Whom it lets in.
    pub credentials: Credentials,
    /// Shards of a logstore that is made without saying how many; at least 1.
    pub shards: u32,
    /// Check and count what is written, and store nothing.
    pub count_only: bool,
    /// How it behaves where SLS's behaviour is not known or not sure.
    pub switches: Switches,
    /// What goes wrong from the start.
    pub faults: Vec<Fault>,
}

/// Serves until SIGINT or SIGTERM.
pub async fn simulate(settings: SimulateSettings) -> Result<Exit, Ended> {
    let listen = settings.listen;
    if !listen.ip().is_loopback() {
        let error = anyhow::anyhow!(
            "{listen} is not this machine alone: the local SLS guards nothing\n\
             hint: --listen 127.0.0.1:{}",
            listen.port()
        );
        return Err(Ended { exit: Exit::Usage, error });
    }
    let listener = TcpListener::bind(listen).await;
    let listener =
        listener.with_context(|| format!("listen on {listen}")).or_exit(Exit::Preflight)?;
    let address = listener.local_addr().context("find out the port")?;
    output::line(&format!("listening on {address}"));
    let count_only = settings.count_only;
    tracing::info!(
        "a local SLS: PutLogs with seqid, shards, cursors, PullLogs, simple searches, signatures V1 \
         and V4{}",
        if count_only { "; it counts and stores nothing" } else { "; kept in memory only" },
    );
    tracing::info!(
        "not imitated: SQL, TTL, consumer groups; switches and faults: /_sim/switches, /_sim/faults"
    );
    let settings = sim::Settings {
        credentials: settings.credentials,
        shards_default: settings.shards,
        count_only,
        switches: settings.switches,
        faults: settings.faults,
    };
    sim::serve(listener, settings, interrupted()).await?;
    Ok(Exit::Done)
}

/// The switches as `file` (JSON) and then each of `settings` (`name=value`) set them.
pub fn read_switches(file: Option<&Path>, settings: &[String]) -> anyhow::Result<Switches> {
    let mut switches = Switches::default();
    if let Some(file) = file {
        let read = || {
            let text = std::fs::read_to_string(file)?;
            switches.changed(serde_json::from_str(&text)?).map_err(anyhow::Error::msg)
        };
        switches = read().with_context(|| format!("read switches from {}", file.display()))?;
    }
    for setting in settings {
        switches = switches
            .with(setting)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("--switch {setting}"))?;
    }
    Ok(switches)
}

/// The faults in `file`, a line of JSON each.
pub fn read_faults(file: &Path) -> anyhow::Result<Vec<Fault>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read faults from {}", file.display()))?;
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = serde_json::from_str(line);
        let place = || format!("read a fault from {}, line {}", file.display(), index + 1);
        faults.push(fault.with_context(place)?);
    }
    Ok(faults)
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
