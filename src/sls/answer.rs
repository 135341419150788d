//! What an answer means for what to do next.

use crate::wire::error_body::ErrorBody;

/// What to do after a call that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAction {
    /// SLS refused for now (a quota); nothing was done. Wait, then the same again.
    Later,
    /// No connection came about: nothing was sent. Wait, then the same again.
    NotSent,
    /// SLS refused because the signature is too old; nothing was done. The same, signed anew.
    SignAnew,
    /// Done or not done, nobody knows: no answer, an answer that is not from SLS, a server error.
    Unknown,
    /// SLS has seen this number, or a higher one, on this lane: the number is used up.
    NumberUsed,
    /// SLS will never take this content.
    Never,
    /// The call cannot succeed before a person acts: credentials, project, time, an odd request.
    Stop,
}

const NOT_FROM_SLS: &str = "that is not from SLS (no x-log-requestid)";

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub next: NextAction,
    /// SLS's error code; empty when there was none.
    pub code: String,
    /// For a person.
    pub what: String,
}

impl Failure {
    /// No answer arrived, or none that is from SLS.
    pub fn unknown(what: impl Into<String>) -> Self {
        Self { next: NextAction::Unknown, code: String::new(), what: what.into() }
    }

    /// Whether SLS refused a PutLogs because of the logs' times.
    pub fn is_out_of_range(&self) -> bool {
        self.is("PostBodyInvalid") && self.what.contains("out of range")
    }

    /// Whether SLS has certainly not done what it was asked for. Of a code that is not known for that
    /// nobody can say.
    pub fn is_refusal(&self) -> bool {
        REFUSALS.iter().any(|code| self.is(code))
            || CONTENT_CODES.iter().any(|code| self.is(code))
            || self.code.to_ascii_lowercase().ends_with("quotaexceed")
    }

    /// Whether something answered that is not SLS: a proxy, a web server.
    pub fn is_not_from_sls(&self) -> bool {
        self.what.contains(NOT_FROM_SLS)
    }

    /// Whether SLS says that it knows no such project or logstore. The documents spell these codes
    /// with an s at the end, too.
    pub fn is_about_absence(&self) -> bool {
        let code = self.code.to_ascii_lowercase();
        matches!(code.trim_end_matches('s'), "projectnotexist" | "logstorenotexist")
    }

    /// Whether this is SLS's error `code`, whatever its case.
    pub fn is(&self, code: &str) -> bool {
        self.code.eq_ignore_ascii_case(code)
    }
}

/// An answer's parts that decide.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub status: u16,
    /// `x-log-requestid`. SLS sends it always: an answer without it is not from SLS.
    pub request_id: Option<&'a str>,
    pub body: &'a [u8],
}

/// `Ok` for a success that is certainly SLS's own.
pub fn classify(answer: Answer<'_>) -> Result<(), Failure> {
    let Some(request_id) = answer.request_id else {
        return Err(Failure::unknown(format!(
            "an answer with status {} {NOT_FROM_SLS}",
            answer.status
        )));
    };
    if answer.status == 200 {
        return Ok(());
    }
    let Some(error) = ErrorBody::parse(answer.body) else {
        return Err(Failure::unknown(format!(
            "an answer with status {} that is no SLS error (request {request_id})",
            answer.status
        )));
    };
    Err(Failure {
        next: next(answer.status, &error),
        what: format!(
            "{}: {} (status {}, request {request_id})",
            error.code, error.message, answer.status
        ),
        code: error.code,
    })
}

/// Codes that SLS answers before it looks at what is asked for.
const REFUSALS: [&str; 11] = [
    "SignatureNotMatch",
    "Unauthorized",
    "InvalidAccessKeyId",
    "SecurityTokenExpired",
    "SecurityTokenInvalid",
    "RequestTimeExpired",
    "RequestTimeTooSkewed",
    "ProjectNotExist",
    "LogStoreNotExist",
    "ParameterInvalid",
    "InvalidAPIVersion",
];

/// Codes about the content of a PutLogs request.
const CONTENT_CODES: [&str; 6] = [
    "PostBodyInvalid",
    "PostBodyTooLarge",
    "PostBodyUncompressError",
    "InvalidEncoding",
    "InvalidKey",
    "InvalidTimestamp",
];

fn next(status: u16, error: &ErrorBody) -> NextAction {
    if error.is("InvalidSequenceId") {
        return NextAction::NumberUsed;
    }
    if error.is("RequestTimeExpired") || error.is("RequestTimeTooSkewed") {
        return NextAction::SignAnew;
    }
    // All quota codes end so: WriteQuotaExceed, ShardWriteQuotaExceed, ReadQuotaExceed, …
    // ProjectQuotaExceed (400) is about creating things and does not pass by waiting.
    if status == 403 && error.code.to_ascii_lowercase().ends_with("quotaexceed") {
        return NextAction::Later;
    }
    // SLS gave up waiting: for the request's rest, or for its own answer.
    let is_timeout = status == 408 || error.is("RequestTimeout");
    if status >= 500 || is_timeout {
        return NextAction::Unknown;
    }
    let is_content = CONTENT_CODES.iter().any(|code| error.is(code));
    if is_content && !error.message.contains("out of range") {
        NextAction::Never
    } else {
        NextAction::Stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str, message: &str) -> NextAction {
        let body = serde_json::to_vec(&ErrorBody { code: code.into(), message: message.into() });
        let body = body.unwrap();
        classify(Answer { status, request_id: Some("r"), body: &body }).unwrap_err().next
    }

    #[test]
    fn answers_are_told_apart_by_what_to_do_next() {
        assert_eq!(of(403, "WriteQuotaExceed", "qps"), NextAction::Later);
        assert_eq!(of(403, "ShardWriteQuotaExceed", ""), NextAction::Later);
        assert_eq!(of(403, "ShardReadQuotaExceed", ""), NextAction::Later);
        assert_eq!(of(400, "ProjectQuotaExceed", ""), NextAction::Stop);
        assert_eq!(of(400, "RequestTimeExpired", ""), NextAction::SignAnew);
        assert_eq!(of(400, "RequestTimeTooSkewed", ""), NextAction::SignAnew);
        assert_eq!(of(400, "InvalidSequenceId", ""), NextAction::NumberUsed);
        assert_eq!(
            of(400, "PostBodyInvalid", "Protobuffer content cannot be parsed."),
            NextAction::Never
        );
        assert_eq!(
            of(400, "PostBodyInvalid", "The post data time is out of range"),
            NextAction::Stop
        );
        assert_eq!(of(400, "PostBodyTooLarge", ""), NextAction::Never);
        assert_eq!(of(401, "SignatureNotMatch", ""), NextAction::Stop);
        assert_eq!(of(403, "Unauthorized", ""), NextAction::Stop);
        assert_eq!(of(404, "LogStoreNotExist", ""), NextAction::Stop);
        assert_eq!(of(500, "InternalServerError", ""), NextAction::Unknown);
        assert_eq!(of(503, "ServerBusy", ""), NextAction::Unknown);
        assert_eq!(of(408, "RequestTimeout", ""), NextAction::Unknown);
        assert_eq!(of(400, "RequestTimeout", ""), NextAction::Unknown);
    }

    #[test]
    fn an_unknown_code_proves_nothing() {
        let failure = |code: &str| Failure {
            next: NextAction::Stop,
            code: code.to_owned(),
            what: String::new(),
        };
        assert!(failure("unauthorized").is_refusal());
        assert!(failure("PostBodyInvalid").is_refusal());
        assert!(!failure("RequestTimeout").is_refusal());
        assert!(!failure("").is_refusal());
    }

    #[test]
    fn absence_is_told_in_several_spellings() {
        let failure = |code: &str| Failure { code: code.to_owned(), ..Failure::unknown("") };
        for code in ["ProjectNotExist", "ProjectNotExists", "LogStoreNotExist", "LogstoreNotExist"]
        {
            assert!(failure(code).is_about_absence(), "{code}");
        }
        for code in ["IndexConfigNotExist", "ShardNotExist", "Unauthorized", ""] {
            assert!(!failure(code).is_about_absence(), "{code}");
        }
    }

    #[test]
    fn only_an_answer_of_sls_is_a_success() {
        let answer = |status, request_id, body| classify(Answer { status, request_id, body });
        assert_eq!(answer(200, Some("r"), b"".as_slice()), Ok(()));
        for (status, request_id, body) in [
            (200, None, b"".as_slice()),
            (200, None, b"<html>welcome</html>".as_slice()),
            (302, None, b"".as_slice()),
            (403, None, br#"{"errorCode":"WriteQuotaExceed"}"#.as_slice()),
            (403, Some("r"), b"<html>".as_slice()),
            (502, Some("r"), b"".as_slice()),
        ] {
            let failure = answer(status, request_id, body).unwrap_err();
            assert_eq!(failure.next, NextAction::Unknown);
            assert_eq!(failure.is_not_from_sls(), request_id.is_none());
        }
    }
}
