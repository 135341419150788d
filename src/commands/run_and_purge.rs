//! `run --purge`: migrates, proves and purges in one command, for cron.
//!
//! Each stage takes only what the one before has proved: the verification pulls every batch back and
//! lists what differs, and the purge proves each batch once more before it deletes its rows. So one
//! batch that differs keeps its own rows, and no others.

use crate::commands::exit::{Ended, Exit};
use crate::commands::purge;
use crate::commands::purge::settings::PurgeSettings;
use crate::commands::run;
use crate::commands::run_settings::RunSettings;
use crate::commands::verify::{self, VerifySettings};
use crate::pipeline::progress::screen::Screen;
use crate::pipeline::shutdown::Shutdown;

/// The settings of the three stages.
pub struct Stages {
    pub run: RunSettings,
    pub verify: VerifySettings,
    pub purge: PurgeSettings,
}

/// Runs the stages one after the other; ends with the first exit code that is not 0.
pub async fn run_and_purge(
    stages: &Stages,
    screen: &Screen,
    shutdown: Shutdown,
) -> Result<Exit, Ended> {
    let ran = run::run(&stages.run, screen, shutdown.clone()).await?;
    if shutdown.is_asked() || !matches!(ran, Exit::Done | Exit::Refused) {
        tracing::warn!("nothing was purged: the run did not end well");
        return Ok(ran);
    }
    let verified = verify::run(&stages.verify, screen, shutdown.clone()).await?;
    if shutdown.is_asked() || !matches!(verified, Exit::Done | Exit::Difference) {
        tracing::warn!("nothing was purged: the verification did not end");
        return Ok(verified);
    }
    let purged = purge::purge(&stages.purge, screen, shutdown).await?;
    let worst = [verified, purged, ran].into_iter().find(|exit| *exit != Exit::Done);
    Ok(worst.unwrap_or(Exit::Done))
}
