//! The command line: flags and environment in, checked settings out, exit codes back.

pub mod args;
pub mod environment;
pub mod logging;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::args::{Cli, Command};
use crate::cli::environment::Environment;
use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::run_and_purge::run_and_purge;
use crate::commands::{
    audit, doctor, init, plan, purge, repair, report, restore, run, status, verify,
};
use crate::error_text::error_text;
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::shutdown::{ShutdownTrigger, channel};

/// Reads the command line, runs the command, and reports how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = Environment::read(&cli.global.env_files);
    let screen =
        logging::start(&cli.global, environment.as_ref().is_ok_and(Environment::wants_echo));
    // Twice the processors: while some threads convert rows, others answer Postgres and SLS.
    let threads = 2 * std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(dispatch(cli, screen, environment));
            // What still runs is not waited for: the ledger knows all that matters.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(anyhow::Error::from(error).context("start the runtime").into()),
    };
    match ended {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(Ended { exit, error }) => {
            tracing::error!("{}", error_text(&error));
            ExitCode::from(exit as u8)
        }
    }
}

async fn dispatch(
    cli: Cli,
    screen: Screen,
    environment: anyhow::Result<Environment>,
) -> Result<Exit, Ended> {
    let environment = environment.or_exit(Exit::Usage)?;
    tracing::debug!("dify-sls-backfill {}", env!("SLS_BACKFILL_VERSION"));
    for warning in &environment.warnings {
        tracing::warn!("{warning}");
    }
    let format = cli.global.format();
    match cli.command {
        Command::Init(args) => init::init(&args.settings(&environment).or_exit(Exit::Usage)?).await,
        Command::Run(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            match args.stages(&environment, format).or_exit(Exit::Usage)? {
                Some(stages) => run_and_purge(&stages, &screen, shutdown).await,
                None => run::run(&settings, &screen, shutdown).await,
            }
        }
        Command::Doctor(args) => {
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            doctor::doctor(&args.settings(&environment, format), shutdown).await
        }
        Command::Plan(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            plan::plan(&settings, &shutdown).await
        }
        Command::Verify(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            verify::run(&settings, &screen, shutdown).await
        }
        Command::Repair(args) => {
            repair::run(&args.settings(&environment, format).or_exit(Exit::Usage)?).await
        }
        Command::Audit(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            audit::run(&settings, shutdown).await
        }
        Command::Purge(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            purge::purge(&settings, &screen, shutdown).await
        }
        Command::Restore(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            let (stopper, shutdown) = channel();
            listen_for_signals(stopper, screen.clone())?;
            restore::restore(&settings, shutdown).await
        }
        Command::Report(args) => {
            report::report(&args.settings(&environment, format).or_exit(Exit::Usage)?).await
        }
        Command::Status(args) => {
            let settings = args.settings(&environment, format).or_exit(Exit::Usage)?;
            status::status(&settings).await
        }
        #[cfg(feature = "simulator")]
        Command::Simulate(args) => {
            let settings = args.settings(&environment).or_exit(Exit::Usage)?;
            crate::commands::simulate::simulate(settings).await
        }
        #[cfg(feature = "simulator")]
        Command::Demo(args) => {
            let files = &cli.global.env_files;
            let settings = args.settings(&environment, files).or_exit(Exit::Usage)?;
            crate::commands::demo::demo(&settings).await
        }
    }
}

/// The first SIGINT or SIGTERM asks to stop, the second ends the process at once: that is as safe,
/// it only leaves more to find out for the next run.
fn listen_for_signals(stopper: ShutdownTrigger, screen: Screen) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked {
                tracing::warn!(
                    "stopped at once; the next run finds out what became of requests in flight"
                );
                screen.clear();
                std::process::exit(Exit::Unfinished as i32);
            }
            asked = true;
            tracing::warn!("stopping: what is in flight is finished first (again: at once)");
            stopper.stop();
        }
    });
    Ok(())
}
