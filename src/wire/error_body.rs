//! SLS's error answers: `{"errorCode": "…", "errorMessage": "…"}`.

use serde::{Deserialize, Serialize};

/// What SLS says when it refuses. Codes are compared without case: the documents spell some of
/// them in two ways (`ProjectNotExist`, `LogStoreNotExist` and `LogstoreNotExist`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    #[serde(rename = "errorCode")]
    pub code: String,
    #[serde(rename = "errorMessage", default)]
    pub message: String,
}

impl ErrorBody {
    /// Reads an answer's body; `None` when it is not one of SLS's error bodies.
    pub fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Whether this is the error `code`, whatever its case.
    pub fn is(&self, code: &str) -> bool {
        self.code.eq_ignore_ascii_case(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_error_bodies_are_read() {
        let body =
            br#"{"errorCode":"LogStoreNotExist","errorMessage":"logstore x does not exist"}"#;
        let error = ErrorBody::parse(body).unwrap();
        assert!(error.is("LogstoreNotExist"));
        assert!(!error.is("ProjectNotExist"));
        assert_eq!(ErrorBody::parse(b"<html>504</html>"), None);
        assert_eq!(ErrorBody::parse(b"{}"), None);
    }
}
