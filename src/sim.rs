//! The local SLS: serves the part of SLS's HTTP interface that this program uses, from memory.
//!
//! ```text
//! connection → http: Request → service: fault? → auth → route
//!                                │         → put · pull · search · soft_delete · admin → store
//!                                └→ /_sim/…: control · tamper └→ sql
//! ```
//!
//! It checks requests as strictly as SLS is documented to: signatures, dates, sizes, encodings and
//! idempotent writes. It keeps everything in memory, and on disk too if it is told where.

pub mod admin;
pub mod answer;
pub mod auth;
pub mod clock;
pub mod compression;
pub mod consumer_groups;
pub mod control;
pub mod fault;
pub mod http;
pub mod journal;
pub mod pull;
pub mod put;
pub mod request_log;
pub mod route;
pub mod search;
pub mod service;
pub mod soft_delete;
pub mod sql;
pub mod sql_time;
pub mod store;
pub mod switch;
pub mod sync;
pub mod tamper;

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::sim::answer::{Body, Cut};
use crate::sim::http::{ReadError, Request};
use crate::sim::service::Service;

/// Serves until `shutdown` resolves; then open connections are cut.
///
/// Fails if the listener does.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let service = Arc::new(service);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(Arc::clone(&service), stream));
                    }
                    // The client was gone before it was served.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error).context("accept a connection"),
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(service: Arc<Service>, stream: TcpStream) {
    // An answer is two small writes; without this the second may wait for the client's ACK.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection went away");
        return;
    }
    let handler = service_fn(|request| serve_request(Arc::clone(&service), request));
    let connection = hyper::server::conn::http1::Builder::new();
    if let Err(error) = connection.serve_connection(TokioIo::new(stream), handler).await {
        tracing::debug!(%error, "the connection ended");
    }
}

async fn serve_request(
    service: Arc<Service>,
    incoming: hyper::Request<Incoming>,
) -> Result<hyper::Response<Body>, Cut> {
    let request = match Request::read(incoming).await {
        Ok(request) => Ok(request),
        Err(ReadError::Refused(refusal)) => Err(refusal),
        Err(ReadError::Broken(error)) => {
            tracing::debug!(%error, "a request broke off");
            return Err(Cut);
        }
    };
    service.serve(request).await
}

#[cfg(test)]
mod tests;
