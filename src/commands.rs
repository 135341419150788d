//! One file a subcommand: wires the parts below and prints the outcome.

pub mod audit;
#[cfg(feature = "simulator")]
pub mod demo;
pub mod difference;
pub mod doctor;
pub mod dry_run;
pub mod exit;
pub mod init;
pub mod output;
pub mod purge;
pub mod rejects;
pub mod repair;
pub mod restore;
pub mod retention;
pub mod run;
pub mod run_and_purge;
pub mod run_settings;
pub mod setup;
pub mod shards;
#[cfg(feature = "simulator")]
pub mod simulate;
pub mod status;
pub mod verify;
