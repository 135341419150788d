//! `simulate`: the local SLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output;
use crate::sim;
use crate::sim::fault::Fault;
use crate::sim::service::{Service, Settings};
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
    /// The folder where everything is kept; without one, only memory keeps it.
    pub data: Option<PathBuf>,
    /// Where every request is written down.
    pub request_log: Option<PathBuf>,
    /// May listen where other machines reach it.
    pub guards_nothing: bool,
}

/// Serves until SIGINT or SIGTERM.
pub async fn simulate(settings: SimulateSettings) -> Result<Exit, Ended> {
    let listen = settings.listen;
    if !listen.ip().is_loopback() && !settings.guards_nothing {
        let error = anyhow::anyhow!(
            "{listen} is not this machine alone, and anybody who reaches the local SLS can read, \
             change and break all of it\n\
             hint: --listen 127.0.0.1:{}, or --i-know-this-guards-nothing",
            listen.port()
        );
        return Err(Ended { exit: Exit::Usage, error });
    }
    let listener = TcpListener::bind(listen).await;
    let listener =
        listener.with_context(|| format!("listen on {listen}")).or_exit(Exit::Preflight)?;
    let address = listener.local_addr().context("find out the port")?;
    let kept = match (&settings.data, settings.count_only) {
        (Some(folder), _) => format!("kept in {}", folder.display()),
        (None, true) => "counted, not stored".to_owned(),
        (None, false) => "kept in memory only".to_owned(),
    };
    let service = Service::new(Settings {
        credentials: settings.credentials,
        shards_default: settings.shards,
        count_only: settings.count_only,
        switches: settings.switches,
        faults: settings.faults,
        data: settings.data,
        request_log: settings.request_log,
    });
    let service = service.or_exit(Exit::Preflight)?;
    output::line(&format!("listening on {address}"));
    tracing::info!(
        "a local SLS: projects, logstores, indexes, shards (split, merge), PutLogs with seqid, \
         cursors, PullLogs, search, SQL, signatures V1 and V4; what is written is {kept}"
    );
    tracing::info!(
        "not imitated: automatic splitting, PullLogs with a query, x-log-mode, who may do what, and \
         SLS's own pace; what SLS may do either way is a switch: http://{address}/_sim/switches"
    );
    sim::serve(listener, service, interrupted()).await?;
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
