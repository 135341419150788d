//! A result as a page: one file that needs no network, for screens of any width, light and dark,
//! and for paper.
//!
//! A page is made of the same JSON that `--output json` prints ([`mod@sections`]), so that both say the
//! same. However much there is to tell, a page stays small: tables are cut, with the total beside.

pub mod chart;
pub mod markup;
pub mod sections;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use crate::commands::page::markup::{Head, page};
use crate::commands::page::sections::sections;

/// A page that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageWish {
    pub path: PathBuf,
    /// The command as it was typed, without secrets.
    pub command: String,
    /// Where Postgres and SLS are, and what else was set, without secrets.
    pub settings: Vec<(String, String)>,
}

/// Writes the page of a result, if one was asked for.
pub fn write(
    wish: Option<&PageWish>,
    title: &str,
    result: impl FnOnce() -> Value,
) -> anyhow::Result<()> {
    let Some(wish) = wish else { return Ok(()) };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let head = Head { title, command: &wish.command, now: &now, settings: &wish.settings };
    replace(&wish.path, &page(&head, &sections(&result())))?;
    tracing::info!("the page is in {}", wish.path.display());
    Ok(())
}

/// Whoever reads the file while it is written sees the old one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let context = || format!("write {}", path.display());
    let name = path.file_name().with_context(context)?;
    let mut beside = name.to_owned();
    beside.push(".new");
    let beside = path.with_file_name(beside);
    std::fs::write(&beside, text).with_context(context)?;
    std::fs::rename(&beside, path).with_context(context)
}
