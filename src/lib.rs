//! Moves Dify's workflow history from Postgres to Aliyun SLS.
//!
//! The map, from the top down; a module names only modules below its line, and none of its own
//! line (`tests/it/layers.rs` checks that):
//!
//! ```text
//! cli                              flags and environment → checked settings; exit codes
//! commands                         one file a subcommand
//! pipeline                         rows → logs → batches → lanes → ledger
//! source  dify  sls  ledger        Postgres reads · row → log · SLS's HTTP interface · the ledger
//! pg                               how both databases are reached
//! record  wire                     row types · SLS's bytes
//! secret  error_text             a text that prints as *** · an error in words
//! ```
//!
//! Beside it stand `sim`, the local SLS, and `demo`, which makes history; only their subcommands
//! name them.

pub mod cli;
pub mod commands;
#[cfg(feature = "simulator")]
pub mod demo;
pub mod dify;
pub mod error_text;
pub mod ledger;
pub mod pg;
pub mod pipeline;
pub mod record;
pub mod secret;
#[cfg(feature = "simulator")]
pub mod sim;
pub mod sls;
pub mod source;
pub mod wire;
