//! One check of the doctor: what was found, and what to do about it.

use serde::Serialize;

use crate::error_text::error_text;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// `run` works, but somebody should know.
    Warn,
    /// `run` would fail, or what it does would be of no use.
    Fail,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, found: found.into(), hint: None }
    }

    pub fn warn(name: &str, found: impl Into<String>, hint: &str) -> Self {
        let hint = Some(hint.to_owned());
        Self { state: State::Warn, hint, ..Self::ok(name, found) }
    }

    pub fn fail(name: &str, found: impl Into<String>, hint: &str) -> Self {
        Self { state: State::Fail, ..Self::warn(name, found, hint) }
    }

    /// An error, whose last lines may be a hint.
    pub fn error(name: &str, error: &anyhow::Error) -> Self {
        let text = error_text(error);
        let (found, hint) = match text.split_once("\nhint: ") {
            Some((found, hint)) => (found, Some(hint.to_owned())),
            None => (text.as_str(), None),
        };
        Self { state: State::Fail, hint, ..Self::ok(name, found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_of_an_error_is_the_hint_of_its_check() {
        let error = anyhow::anyhow!("no answer\nhint: check the port").context("connect");
        let check = Check::error("source", &error);
        assert_eq!((check.found.as_str(), check.state), ("connect: no answer", State::Fail));
        assert_eq!(check.hint.as_deref(), Some("check the port"));
        assert_eq!(Check::error("source", &anyhow::anyhow!("no")).hint, None);
    }
}
