//! The integration tests: the built binary against real Postgres and the simulator.
//!
//! This file is their table of contents. `harness` is what the others stand on.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[cfg(feature = "simulator")]
mod age;
#[cfg(feature = "simulator")]
mod bad_input;
#[cfg(feature = "simulator")]
mod connections;
#[cfg(feature = "simulator")]
mod dify_writer;
#[cfg(feature = "simulator")]
mod docs;
#[cfg(feature = "simulator")]
mod epochs;
#[cfg(feature = "simulator")]
mod failover;
#[cfg(feature = "simulator")]
mod faults;
mod harness;
#[cfg(feature = "simulator")]
mod help;
#[cfg(feature = "simulator")]
mod history;
#[cfg(feature = "simulator")]
mod init;
mod layers;
#[cfg(feature = "simulator")]
mod ledger;
#[cfg(feature = "simulator")]
mod live_writer;
#[cfg(feature = "simulator")]
mod moved;
#[cfg(feature = "simulator")]
mod odd_rows;
#[cfg(feature = "simulator")]
mod pace;
#[cfg(feature = "simulator")]
mod page;
#[cfg(feature = "simulator")]
mod plan;
#[cfg(feature = "simulator")]
mod postgres;
#[cfg(feature = "simulator")]
mod probe;
#[cfg(feature = "simulator")]
mod progress;
#[cfg(feature = "simulator")]
mod purge;
#[cfg(feature = "simulator")]
mod queries;
#[cfg(feature = "simulator")]
mod reading;
#[cfg(feature = "simulator")]
mod resume;
#[cfg(feature = "simulator")]
mod run;
#[cfg(feature = "simulator")]
mod service;
#[cfg(feature = "simulator")]
mod settings;
#[cfg(feature = "simulator")]
mod shapes;
#[cfg(feature = "simulator")]
mod storm;
#[cfg(feature = "simulator")]
mod trust;
#[cfg(feature = "simulator")]
mod verify;
