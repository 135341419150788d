//! An error in words: the chain of its causes, each said once.

/// The error and its causes, joined by colons. Some libraries repeat a cause in the text of the
/// error above it; such a cause is left out.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !last.is_empty() && last.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
        last = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("permission denied")
            .context("the database says: permission denied")
            .context("make the schema");
        let text = error_text(&error);
        assert_eq!(text, "make the schema: the database says: permission denied");
    }
}
