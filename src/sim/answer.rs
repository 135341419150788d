//! What the local SLS answers: a status, headers and a body, or a refusal with one of SLS's codes.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::sim::compression::Compression;
use crate::wire::error_body::ErrorBody;

/// The body of every answer: whole in memory, or made piece by piece while it is sent. Cut, the
/// connection ends in its middle.
pub type Body = UnsyncBoxBody<Bytes, Cut>;

/// The connection is closed without an answer, or without the rest of it.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
pub struct Cut;

/// An answer without what every answer has (request id, date).
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
}

impl Answer {
    /// 200 with an empty body: how most writes are acknowledged.
    pub fn empty() -> Self {
        Self { status: 200, headers: Vec::new(), body: whole(Bytes::new()) }
    }

    /// 200 with a JSON body.
    pub fn json(value: &Value) -> Self {
        Self::bytes("application/json", Bytes::from(value.to_string()))
    }

    /// 200 with `body` as it is.
    pub fn bytes(content_type: &str, body: Bytes) -> Self {
        let mut answer = Self { body: whole(body), ..Self::empty() };
        answer.headers.push(("content-type", content_type.to_owned()));
        answer
    }

    /// 200 with `raw`, compressed; `x-log-bodyrawsize` tells its size before.
    pub fn compressible(content_type: &str, raw: Vec<u8>, compression: Compression) -> Self {
        // The SDKs take a raw size of zero for an empty body, whatever the compression.
        let compression = if raw.is_empty() { Compression::None } else { compression };
        let raw_size = raw.len().to_string();
        let answer = Self::bytes(content_type, compression.compress(raw))
            .with("x-log-bodyrawsize", raw_size);
        match compression {
            Compression::None => answer,
            _ => answer.with("x-log-compresstype", compression.name()),
        }
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn into_response(self) -> hyper::Response<Body> {
        let mut response = hyper::Response::new(self.body);
        *response.status_mut() = hyper::StatusCode::from_u16(self.status)
            .expect("a status is a constant, or was checked when the fault was set");
        for (name, value) in self.headers {
            let value = HeaderValue::from_str(&value)
                .expect("header values are numbers, cursors, dates and names");
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
        response
    }
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        let body = ErrorBody { code: refusal.code.clone(), message: refusal.message.clone() };
        let body = serde_json::to_vec(&body).expect("two strings are always JSON");
        let mut answer = Self::bytes("application/json", body.into());
        answer.status = refusal.status;
        answer
    }
}

/// A body that is in memory already.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { status: code.status(), code: format!("{code:?}"), message: message.into() }
    }

    /// The same as older documents spell it (the 2018 to 2021 states of aliyun's pages, and the
    /// constants of the Go SDK).
    #[must_use]
    pub fn in_older_spelling(mut self) -> Self {
        let code = match self.code.as_str() {
            "RequestTimeExpired" => "RequestTimeTooSkewed",
            "ProjectNotExist" => "ProjectNotExists",
            "LogStoreNotExist" => "LogstoreNotExist",
            "LogStoreAlreadyExist" => "LogstoreAlreadyExist",
            "PostBodyInvalid" if self.message == TIME_OUT_OF_RANGE => {
                self.status = 499;
                return self;
            }
            "WriteQuotaExceed" => {
                let by_bytes = self.message.contains("inflow");
                let message = if by_bytes { "Inflow Quota Exceed" } else { "Write QPS Exceed" };
                message.clone_into(&mut self.message);
                return self;
            }
            _ => return self,
        };
        code.clone_into(&mut self.code);
        self
    }
}

/// What `PostBodyInvalid` says of logs that are too old or too new.
pub const TIME_OUT_OF_RANGE: &str = "The post data time is out of range";

/// SLS's error codes, named exactly as they stand in an error body.
///
/// From aliyun's PutLogs and "Common error codes" pages and the SDKs' constants. Not from there:
/// `UnsupportedOperation` (what this simulator does not imitate), the status of
/// `InvalidSequenceId`, which no page gives, and that too many consumer groups are a
/// `ProjectQuotaExceed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    ConsumerGroupAlreadyExist,
    ConsumerGroupNotExist,
    IndexAlreadyExist,
    IndexConfigNotExist,
    IndexInfoInvalid,
    InternalServerError,
    InvalidAPIVersion,
    InvalidAccessKeyId,
    InvalidBodyRawSize,
    InvalidCompressType,
    InvalidContentType,
    InvalidCursor,
    InvalidDateFormat,
    InvalidEncoding,
    InvalidKey,
    InvalidSequenceId,
    InvalidSignatureMethod,
    InvalidTimestamp,
    JsonInfoInvalid,
    LogStoreAlreadyExist,
    LogStoreInfoInvalid,
    LogStoreNotExist,
    LogStoreWithoutShard,
    MissAccessKeyId,
    MissingAPIVersion,
    MissingBodyRawSize,
    MissingContentLength,
    MissingContentType,
    MissingDate,
    MissingHost,
    MissingSignatureMethod,
    ParameterInvalid,
    PostBodyInvalid,
    PostBodyTooLarge,
    PostBodyUncompressError,
    ProjectAlreadyExist,
    ProjectNotExist,
    ProjectQuotaExceed,
    ReadQuotaExceed,
    RequestTimeExpired,
    ShardNotExist,
    ShardReadQuotaExceed,
    ShardWriteQuotaExceed,
    SignatureNotMatch,
    Unauthorized,
    UnsupportedOperation,
    WriteQuotaExceed,
}

impl Code {
    fn status(self) -> u16 {
        match self {
            Self::InvalidAccessKeyId | Self::SignatureNotMatch | Self::Unauthorized => 401,
            Self::ReadQuotaExceed
            | Self::ShardReadQuotaExceed
            | Self::ShardWriteQuotaExceed
            | Self::WriteQuotaExceed => 403,
            Self::ConsumerGroupNotExist
            | Self::LogStoreNotExist
            | Self::ProjectNotExist
            | Self::UnsupportedOperation => 404,
            Self::MissingContentLength => 411,
            Self::InvalidContentType => 415,
            Self::InternalServerError => 500,
            _ => 400,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_sls_error_body() {
        let refusal = Refusal::new(Code::InvalidAPIVersion, "only 0.6.0");
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "InvalidAPIVersion"));
        assert_eq!(Refusal::new(Code::SignatureNotMatch, "").status, 401);
        assert_eq!(Refusal::new(Code::LogStoreNotExist, "").status, 404);
        assert_eq!(Answer::from(&refusal).into_response().status(), 400);
        assert_eq!(Refusal::new(Code::ShardWriteQuotaExceed, "").status, 403);
    }

    #[test]
    fn older_documents_spell_some_things_differently() {
        for (code, message, wanted) in [
            (Code::RequestTimeExpired, "", (400, "RequestTimeTooSkewed", "")),
            (Code::ProjectNotExist, "", (404, "ProjectNotExists", "")),
            (Code::LogStoreNotExist, "", (404, "LogstoreNotExist", "")),
            (Code::PostBodyInvalid, TIME_OUT_OF_RANGE, (499, "PostBodyInvalid", TIME_OUT_OF_RANGE)),
            (Code::PostBodyInvalid, "other", (400, "PostBodyInvalid", "other")),
            (
                Code::WriteQuotaExceed,
                "x: inflow: 1",
                (403, "WriteQuotaExceed", "Inflow Quota Exceed"),
            ),
            (Code::WriteQuotaExceed, "x: qps: 1", (403, "WriteQuotaExceed", "Write QPS Exceed")),
        ] {
            let old = Refusal::new(code, message).in_older_spelling();
            assert_eq!((old.status, old.code.as_str(), old.message.as_str()), wanted);
        }
    }
}
