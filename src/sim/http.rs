//! From a connection's bytes to a [`Request`] that the rest of the simulator can check.
//!
//! A signature covers the path as it was sent and the query values decoded, so both are kept.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Body as _, Incoming};

use crate::sim::answer::{Code, Refusal};
use crate::sim::compression::Compression;

/// The largest body that is read at all. PutLogs allows 10 MB uncompressed; more is read only to
/// answer it in SLS's words instead of cutting the connection.
pub const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A request, read to its end.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query as they were sent, not decoded.
    pub target: String,
    /// The path as it was sent, not decoded.
    pub path: String,
    /// The path's parts, decoded.
    pub segments: Vec<String>,
    /// The query's pairs, decoded, in their order.
    pub query: Vec<(String, String)>,
    /// Names in lower case. Bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// Why a request could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The connection broke.
    Broken(hyper::Error),
    Refused(Refusal),
}

impl Request {
    /// Reads `incoming` to its end. Absolute-form targets are taken like any other.
    pub async fn read(incoming: hyper::Request<Incoming>) -> Result<Self, ReadError> {
        let (parts, body) = incoming.into_parts();
        let body = read_body(body).await?;
        let mut headers: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| {
                (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect();
        if let Some(authority) = parts.uri.authority()
            && !parts.headers.contains_key(hyper::header::HOST)
        {
            headers.push(("host".to_owned(), authority.to_string()));
        }
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        Self::new(parts.method, target, headers, body).map_err(ReadError::Refused)
    }

    /// A request for `target`, a path and perhaps a query, both encoded. Names of `headers` are in
    /// lower case.
    ///
    /// Fails if the encoding is malformed.
    pub fn new(
        method: Method,
        target: &str,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Self, Refusal> {
        let invalid =
            |what: &str| Refusal::new(Code::ParameterInvalid, format!("malformed {what}"));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = decode_path(path).ok_or_else(|| invalid("path"))?;
        let query = decode_query(query).ok_or_else(|| invalid("query string"))?;
        let (path, target) = (path.to_owned(), target.to_owned());
        Ok(Self { method, target, path, segments, query, headers, body })
    }

    /// The value of header `name`, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of query parameter `name`.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The project: named by `x-log-project`, or the Host up to its first dot.
    pub fn project(&self) -> Result<&str, Refusal> {
        if let Some(project) = self.header("x-log-project") {
            return Ok(project);
        }
        let host = self
            .header("host")
            .ok_or_else(|| Refusal::new(Code::MissingHost, "Host does not exist in the header"))?;
        let host = host.split(':').next().unwrap_or(host);
        Ok(host.split('.').next().unwrap_or(host))
    }

    /// The compression that the client would like best.
    pub fn accepted_compression(&self) -> Compression {
        Compression::accepted(self.header("accept-encoding").unwrap_or_default())
    }
}

/// Reads a body with at most one copy: none if it came in one piece.
async fn read_body(mut body: Incoming) -> Result<Bytes, ReadError> {
    let refused = |code, message: String| ReadError::Refused(Refusal::new(code, message));
    let Some(size) = body.size_hint().exact() else {
        return Err(refused(Code::MissingContentLength, "Content-Length is required".to_owned()));
    };
    if size > BODY_BYTES_MAX {
        return Err(refused(
            Code::PostBodyTooLarge,
            format!("the body has {size} bytes, more than {BODY_BYTES_MAX}"),
        ));
    }
    let size = usize::try_from(size).expect("it is at most BODY_BYTES_MAX");
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(ReadError::Broken)?.into_data() else { continue };
        if piece.len() == size {
            return Ok(piece);
        }
        if joined.is_empty() {
            joined.reserve(size);
        }
        joined.extend_from_slice(&piece);
    }
    Ok(joined.freeze())
}

/// The decoded parts of a path; a slash at its end counts for nothing.
fn decode_path(path: &str) -> Option<Vec<String>> {
    path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect()
}

/// The decoded pairs of a query string.
fn decode_query(query: &str) -> Option<Vec<(String, String)>> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key, true)?, decode(value, true)?))
        })
        .collect()
}

/// Undoes percent-encoding; `None` if it is malformed or not UTF-8.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let (code, after) = rest.split_at_checked(2)?;
                rest = after;
                bytes.extend(hex::decode(code).ok()?);
            }
            b'+' if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
impl Request {
    /// A GET of `target` with `headers`, for tests of what checks requests.
    pub fn for_test(target: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Self {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self::new(Method::GET, target, headers, Bytes::from_static(body)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_project_comes_from_the_host_or_its_own_header() {
        for (headers, project) in [
            (vec![("host", "dify.cn-hangzhou.log.aliyuncs.com")], Some("dify")),
            (vec![("host", "dify.127.0.0.1:8080")], Some("dify")),
            (vec![("host", "localhost:8080")], Some("localhost")),
            (vec![("host", "127.0.0.1:1"), ("x-log-project", "dify")], Some("dify")),
            (vec![], None),
        ] {
            let request = Request::for_test("/", &headers, b"");
            assert_eq!(request.project().ok(), project, "{headers:?}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = decode_query("cursor=MTc%3D&query=a+b%2Bc&topic=&flag").unwrap();
        let pairs: Vec<_> = query.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let wanted = [("cursor", "MTc="), ("query", "a b+c"), ("topic", ""), ("flag", "")];
        assert_eq!(pairs, wanted);
        assert_eq!(decode_query("a=%4"), None);
        assert_eq!(decode_query("a=%zz"), None);
        assert_eq!(decode_query("a=%FF"), None);
        assert_eq!(
            decode_path("/logstores/a+b%20c/"),
            Some(vec!["logstores".into(), "a+b c".into()])
        );
    }

    proptest! {
        #[test]
        fn no_target_panics(text in "[a-z%&=+/0-9\u{e9}]{0,40}") {
            let _ = decode_query(&text);
            let _ = decode_path(&text);
        }

        #[test]
        fn what_a_client_encodes_is_decoded(value in ".{0,20}") {
            let encoded = crate::wire::sign::percent(&value);
            prop_assert_eq!(decode(&encoded, true), Some(value));
        }
    }
}
