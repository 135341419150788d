//! Decides whether a request may be served: version, key, date, digest of the body, signature.
//!
//! Signatures are made again from what was received and compared, as SLS does.

use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::sim::answer::{Code, Refusal};
use crate::sim::http::Request;
use crate::wire::sign::{self, Credentials, SignedParts};

/// Against which time the date of a signature is checked.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Unix time.
    pub now_s: i64,
    /// How far the date may be from it.
    pub life_s: u64,
}

/// Refuses `request` unless `credentials` signed it, at a time that `clock` lets pass.
pub fn verify(request: &Request, credentials: &Credentials, clock: Clock) -> Result<(), Refusal> {
    match request.header("x-log-apiversion") {
        None => return refuse(Code::MissingAPIVersion, "x-log-apiversion is required"),
        Some("0.6.0" | "0.4.0") => {}
        Some(_) => return refuse(Code::InvalidAPIVersion, "only versions 0.4.0 and 0.6.0 exist"),
    }
    let Some(authorization) = request.header("authorization") else {
        return refuse(Code::MissAccessKeyId, "the Authorization header is required");
    };
    if let Some(rest) = authorization.strip_prefix("LOG ") {
        verify_v1(request, credentials, rest, clock)
    } else if let Some(rest) = authorization.strip_prefix("SLS4-HMAC-SHA256 ") {
        verify_v4(request, credentials, rest, clock)
    } else {
        refuse(Code::Unauthorized, "the Authorization header is neither LOG nor SLS4-HMAC-SHA256")
    }
}

/// `authorization` is `{key id}:{signature}`.
fn verify_v1(
    request: &Request,
    credentials: &Credentials,
    authorization: &str,
    clock: Clock,
) -> Result<(), Refusal> {
    match request.header("x-log-signaturemethod") {
        None => return refuse(Code::MissingSignatureMethod, "x-log-signaturemethod is required"),
        Some("hmac-sha1") => {}
        Some(_) => return refuse(Code::InvalidSignatureMethod, "only hmac-sha1 is supported"),
    }
    // x-log-date is an unsigned override of Date (the Python SDK sends both, and equal).
    let Some(date) = request.header("x-log-date").or_else(|| request.header("date")) else {
        return refuse(Code::MissingDate, "the Date header is required");
    };
    let Some(date_s) = sign::parse_http_date(date) else {
        return refuse(Code::InvalidDateFormat, "the date must look as RFC 822 asks");
    };
    check_skew(date_s, clock)?;
    let (key_id, signature) = authorization.split_once(':').unwrap_or((authorization, ""));
    check_identity(request, credentials, key_id)?;
    let md5 = request.header("content-md5").unwrap_or_default();
    let md5_is_right = match request.body.is_empty() {
        true => md5.is_empty(),
        false => md5.eq_ignore_ascii_case(&hex::encode_upper(Md5::digest(&request.body))),
    };
    if !md5_is_right {
        return refuse(Code::SignatureNotMatch, "Content-MD5 is not that of the body");
    }
    check_signature(signature, &sign::v1_signature(&credentials.access_key_secret, &parts(request)))
}

/// `authorization` is `Credential={key id}/{scope},Signature={signature}`.
fn verify_v4(
    request: &Request,
    credentials: &Credentials,
    authorization: &str,
    clock: Clock,
) -> Result<(), Refusal> {
    let Some((key_id, scope, signature)) = split_v4(authorization) else {
        return refuse(Code::Unauthorized, "malformed SLS4-HMAC-SHA256 authorization");
    };
    let Some(date) = request.header("x-log-date") else {
        return refuse(Code::MissingDate, "x-log-date is required");
    };
    let Some(date_s) = sign::parse_v4_date(date) else {
        return refuse(Code::InvalidDateFormat, "x-log-date must look like 20060102T150405Z");
    };
    check_skew(date_s, clock)?;
    check_identity(request, credentials, key_id)?;
    let region = scope.split('/').nth(1).unwrap_or_default();
    if region.is_empty() || scope != sign::v4_scope(date, region) {
        return refuse(
            Code::SignatureNotMatch,
            "the credential's scope is not that of the request",
        );
    }
    let digest = hex::encode(Sha256::digest(&request.body));
    if request.header("x-log-content-sha256") != Some(&digest) {
        return refuse(Code::SignatureNotMatch, "x-log-content-sha256 is not that of the body");
    }
    let secret = &credentials.access_key_secret;
    check_signature(signature, &sign::v4_signature(secret, region, date, &parts(request)))
}

/// Key id, scope and signature of a V4 Authorization header.
fn split_v4(authorization: &str) -> Option<(&str, &str, &str)> {
    let (credential, signature) = authorization.split_once(',')?;
    let (key_id, scope) = credential.trim().strip_prefix("Credential=")?.split_once('/')?;
    Some((key_id, scope, signature.trim().strip_prefix("Signature=")?))
}

fn check_skew(date_s: i64, clock: Clock) -> Result<(), Refusal> {
    let Clock { now_s, life_s } = clock;
    if date_s.abs_diff(now_s) <= life_s {
        return Ok(());
    }
    let message = format!("the request's time {date_s} is over {life_s} s from {now_s}");
    refuse(Code::RequestTimeExpired, message)
}

fn check_identity(
    request: &Request,
    credentials: &Credentials,
    key_id: &str,
) -> Result<(), Refusal> {
    if key_id != credentials.access_key_id {
        return refuse(Code::InvalidAccessKeyId, format!("the access key id {key_id} is unknown"));
    }
    let token = credentials.security_token.as_ref().map(|token| token.expose());
    if request.header("x-acs-security-token") != token {
        return refuse(Code::Unauthorized, "the security token is not that of the access key");
    }
    Ok(())
}

fn check_signature(received: &str, expected: &str) -> Result<(), Refusal> {
    if received == expected {
        return Ok(());
    }
    refuse(Code::SignatureNotMatch, format!("signature {received} does not match"))
}

fn parts(request: &Request) -> SignedParts<'_> {
    SignedParts {
        method: request.method.as_str(),
        path: &request.path,
        query: &request.query,
        headers: &request.headers,
        body: &request.body,
    }
}

fn refuse(code: Code, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::wire::sign::SignatureVersion;

    const NOW_S: i64 = 1_795_316_645;
    const CLOCK: Clock = Clock { now_s: NOW_S, life_s: 900 };

    fn credentials(token: Option<&str>) -> Credentials {
        Credentials {
            access_key_id: "id".to_owned(),
            access_key_secret: Secret::new("secret"),
            security_token: token.map(Secret::new),
        }
    }

    fn signed(version: SignatureVersion, token: Option<&str>, date_s: i64) -> Request {
        let mut request = Request::for_test(
            "/logstores/a/shards/route?key=0F&seqid=1",
            &[("host", "p.x"), ("x-log-apiversion", "0.6.0"), ("content-type", "text/plain")],
            b"the body",
        );
        let signed =
            sign::sign(version, &credentials(token), "cn-hangzhou", date_s, &parts(&request));
        request.headers =
            signed.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        request
    }

    fn code(request: &Request) -> String {
        verify(request, &credentials(None), CLOCK).err().map(|r| r.code).unwrap_or_default()
    }

    fn set(request: &mut Request, name: &str, value: Option<&str>) {
        request.headers.retain(|(n, _)| n != name);
        request.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    const BOTH: [SignatureVersion; 2] = [SignatureVersion::V1, SignatureVersion::V4];

    #[test]
    fn only_the_signer_within_fifteen_minutes_is_served() {
        for version in BOTH {
            assert_eq!(code(&signed(version, None, NOW_S)), "");
            assert_eq!(code(&signed(version, None, NOW_S - 900)), "");
            assert_eq!(code(&signed(version, None, NOW_S + 900)), "");
            assert_eq!(code(&signed(version, None, NOW_S - 901)), "RequestTimeExpired");
            assert_eq!(code(&signed(version, None, NOW_S + 901)), "RequestTimeExpired");
            assert_eq!(code(&signed(version, Some("t"), NOW_S)), "Unauthorized");
            let with_token = signed(version, Some("t"), NOW_S);
            assert_eq!(verify(&with_token, &credentials(Some("t")), CLOCK), Ok(()));
        }
    }

    #[test]
    fn any_changed_part_breaks_the_signature() {
        for version in BOTH {
            let changes: [fn(&mut Request); 6] = [
                |request| request.method = hyper::Method::POST,
                |request| request.path.push('x'),
                |request| request.query[1].1 = "2".to_owned(),
                |request| request.body = bytes::Bytes::from_static(b"another"),
                |request| set(request, "x-log-extra", Some("1")),
                |request| set(request, "content-type", Some("text/html")),
            ];
            for (index, change) in changes.into_iter().enumerate() {
                let mut request = signed(version, None, NOW_S);
                change(&mut request);
                assert_eq!(code(&request), "SignatureNotMatch", "{version:?}, change {index}");
            }
        }
    }

    #[test]
    fn what_is_missing_or_wrong_has_its_own_code() {
        let (v1, v4) = (SignatureVersion::V1, SignatureVersion::V4);
        for (version, name, value, wanted) in [
            (v1, "x-log-apiversion", None, "MissingAPIVersion"),
            (v1, "x-log-apiversion", Some("9"), "InvalidAPIVersion"),
            (v1, "authorization", None, "MissAccessKeyId"),
            (v1, "authorization", Some("Basic x"), "Unauthorized"),
            (v1, "authorization", Some("LOG other:x"), "InvalidAccessKeyId"),
            (v1, "authorization", Some("LOG id:x"), "SignatureNotMatch"),
            (v1, "x-log-signaturemethod", None, "MissingSignatureMethod"),
            (v1, "x-log-signaturemethod", Some("hmac-md5"), "InvalidSignatureMethod"),
            (v1, "date", None, "MissingDate"),
            (v1, "date", Some("today"), "InvalidDateFormat"),
            (v1, "content-md5", None, "SignatureNotMatch"),
            (v4, "authorization", Some("SLS4-HMAC-SHA256 x"), "Unauthorized"),
            (v4, "x-log-date", None, "MissingDate"),
            (v4, "x-log-date", Some("today"), "InvalidDateFormat"),
            (v4, "x-log-content-sha256", None, "SignatureNotMatch"),
            (v4, "host", Some("other.x"), "SignatureNotMatch"),
        ] {
            let mut request = signed(version, None, NOW_S);
            set(&mut request, name, value);
            assert_eq!(code(&request), wanted, "{version:?} {name} {value:?}");
        }
    }
}
