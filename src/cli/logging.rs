//! What goes to standard error, and how it looks.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::args::{GlobalArgs, LogFormat};
use crate::pipeline::progress::screen::Screen;

/// Starts logging to standard error; gives how progress is to be shown there. `is_echo_wanted`:
/// Dify's settings ask for what `-v` does.
pub fn start(args: &GlobalArgs, is_echo_wanted: bool) -> Screen {
    let screen = screen(args);
    let level = match (args.quiet, args.verbose.max(u8::from(is_echo_wanted))) {
        (true, _) => Level::WARN,
        (false, 0) => Level::INFO,
        (false, 1) => Level::DEBUG,
        (false, _) => Level::TRACE,
    };
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // Libraries tell of their own affairs only when everything is asked for.
    let others = if args.verbose > 1 { Level::DEBUG } else { Level::WARN };
    let mut targets = Targets::new().with_default(others);
    if args.verbose < 2 {
        // It warns of cut connections, of which we tell ourselves, and what it means for the work.
        targets = targets.with_target("sqlx", Level::ERROR);
    }
    let targets = targets.with_target(env!("CARGO_CRATE_NAME"), level);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer(screen.clone()))
        .with_target(args.verbose > 1)
        .with_timer(UtcSeconds);
    let registry = tracing_subscriber::registry().with(targets);
    match args.log_format {
        LogFormat::Text => registry.with(layer.with_ansi(color)).init(),
        LogFormat::Json => registry.with(layer.json().with_ansi(false)).init(),
    }
    screen
}

/// Bars where a person watches on a terminal that can move its cursor.
fn screen(args: &GlobalArgs) -> Screen {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match args.log_format {
        _ if args.quiet => Screen::Silent,
        LogFormat::Json => Screen::Events,
        LogFormat::Text if std::io::stderr().is_terminal() && !is_dumb => Screen::with_bars(),
        LogFormat::Text => Screen::Lines,
    }
}

/// Makes a writer for each message, which `tracing` hands over in one piece.
fn writer(screen: Screen) -> impl Fn() -> Message {
    move || Message(screen.clone())
}

/// A message on its way past the bars.
struct Message(Screen);

impl std::io::Write for Message {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.message(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `2026-11-22T03:04:05Z`.
struct UtcSeconds;

impl FormatTime for UtcSeconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let now = jiff::Timestamp::now();
        write!(writer, "{}", now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}
