//! `simulate`: the local SLS.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output;
use crate::sim;

/// What `simulate` needs to know.
pub struct SimulateSettings {
    pub listen: SocketAddr,
    pub sim: sim::Settings,
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
    let count_only = settings.sim.count_only;
    tracing::info!(
        "a local SLS: PutLogs with seqid, shards, cursors, PullLogs, simple searches, signatures V1 \
         and V4{}",
        if count_only { "; it counts and stores nothing" } else { "; kept in memory only" },
    );
    tracing::info!("not imitated: SQL, quotas, TTL, splitting and merging of shards");
    sim::serve(listener, settings.sim, interrupted()).await?;
    Ok(Exit::Done)
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
