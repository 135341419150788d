//! The flags of `simulate`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::cli::environment::Environment;
use crate::commands::simulate::{SimulateSettings, read_faults, read_switches};

pub const EXAMPLES: &str = "\
Examples:
  dify-sls-backfill simulate                          # on http://127.0.0.1:8100
  dify-sls-backfill simulate --data /tmp/sls          # keep everything in a folder
  dify-sls-backfill simulate --switch seqid=ignored   # stores repeated sequence numbers
  curl http://127.0.0.1:8100/_sim/switches            # all switches, with their values";

#[derive(Args)]
pub struct SimulateArgs {
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8100")]
    listen: SocketAddr,
    /// Keep everything in this folder, through restarts and crashes
    #[arg(long, value_name = "DIR", conflicts_with = "count_only")]
    data: Option<PathBuf>,
    /// Shards of a logstore whose creator does not say how many
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: u32,
    /// Append every request to this file, one line of JSON each
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
    /// Check and count what is written, and store nothing: for benchmarks
    #[arg(long)]
    count_only: bool,
    /// Also listen on an address that other machines can reach, and let them read and break
    /// everything
    #[arg(long)]
    i_know_this_guards_nothing: bool,
    /// Choose a behaviour where SLS's own is not known. Can be given several times. GET
    /// /_sim/switches lists the names, PATCH /_sim/switches changes them later
    #[arg(long = "switch", value_name = "NAME=VALUE", help_heading = BEHAVIOUR)]
    switch: Vec<String>,
    /// Read switches from this file, a JSON object
    #[arg(long, value_name = "FILE", help_heading = BEHAVIOUR)]
    switches: Option<PathBuf>,
    /// Break requests as this file says: one line of JSON each, as POST /_sim/faults takes them
    #[arg(long, value_name = "FILE", help_heading = BEHAVIOUR)]
    faults: Option<PathBuf>,
}

/// A heading in `--help`.
const BEHAVIOUR: &str = "Behaviour";

impl SimulateArgs {
    pub fn settings(&self, environment: &Environment) -> anyhow::Result<SimulateSettings> {
        Ok(SimulateSettings {
            listen: self.listen,
            credentials: environment.simulator_credentials(),
            shards: self.shards,
            count_only: self.count_only,
            switches: read_switches(self.switches.as_deref(), &self.switch)?,
            faults: self.faults.as_deref().map_or(Ok(Vec::new()), read_faults)?,
            data: self.data.clone(),
            request_log: self.request_log.clone(),
            guards_nothing: self.i_know_this_guards_nothing,
        })
    }
}
