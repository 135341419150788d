//! Request signatures V1 (HMAC-SHA1) and V4 (HMAC-SHA256), as the vendor's SDKs make them.
//!
//! Both sign `x-log-*` and `x-acs-*` headers; V4 also `content-type` and `host`. V4's Authorization
//! header does not name the signed headers, so the server derives the set by the same rule.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::secret::Secret;

/// Which way a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureVersion {
    V1,
    V4,
}

/// Who signs.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub access_key_id: String,
    pub access_key_secret: Secret,
    /// The token of temporary (STS) credentials.
    pub security_token: Option<Secret>,
}

/// The parts of a request that a signature covers. Header names in any case; query values decoded.
#[derive(Debug, Clone, Copy)]
pub struct SignedParts<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a [(String, String)],
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
}

/// Adds what `version` needs to `headers`, the Authorization header included.
///
/// `unix_s` is the signature's date: SLS refuses a request more than 15 minutes away from it.
/// `region` (`cn-hangzhou`) counts for V4 only.
pub fn sign(
    version: SignatureVersion,
    credentials: &Credentials,
    region: &str,
    unix_s: i64,
    request: &SignedParts<'_>,
) -> Vec<(String, String)> {
    let mut headers = request.headers.to_vec();
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
    if let Some(token) = &credentials.security_token {
        add("x-acs-security-token", token.expose().to_owned());
    }
    match version {
        SignatureVersion::V1 => {
            add("x-log-signaturemethod", "hmac-sha1".to_owned());
            add("Date", http_date(unix_s));
            if !request.body.is_empty() {
                add("Content-MD5", hex::encode_upper(Md5::digest(request.body)));
            }
        }
        SignatureVersion::V4 => {
            add("x-log-content-sha256", hex::encode(Sha256::digest(request.body)));
            add("x-log-date", v4_date(unix_s));
        }
    }
    let id = &credentials.access_key_id;
    let secret = &credentials.access_key_secret;
    let parts = SignedParts { headers: &headers, ..*request };
    let authorization = match version {
        SignatureVersion::V1 => format!("LOG {id}:{}", v1_signature(secret, &parts)),
        SignatureVersion::V4 => {
            let date = v4_date(unix_s);
            let scope = v4_scope(&date, region);
            let signature = v4_signature(secret, region, &date, &parts);
            format!("SLS4-HMAC-SHA256 Credential={id}/{scope},Signature={signature}")
        }
    };
    headers.push(("Authorization".to_owned(), authorization));
    headers
}

/// The V1 signature of a request whose headers are complete but for Authorization.
pub fn v1_signature(secret: &Secret, request: &SignedParts<'_>) -> String {
    let header = |name| find(request.headers, name).unwrap_or_default();
    let mut text = format!(
        "{}\n{}\n{}\n{}\n",
        request.method,
        header("content-md5"),
        header("content-type"),
        header("date"),
    );
    // The SDKs add x-log-date to a V1 request after they have signed it.
    for (name, value) in signed_headers(request.headers, |name| name != "x-log-date") {
        text += &format!("{name}:{value}\n");
    }
    text += request.path;
    let mut query: Vec<_> = request.query.iter().collect();
    query.sort();
    for (index, (key, value)) in query.iter().enumerate() {
        text += if index == 0 { "?" } else { "&" };
        text += &format!("{key}={value}");
    }
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// The V4 signature of a request whose headers are complete but for Authorization.
///
/// `date` is the value of `x-log-date`, as [`v4_date`] writes it.
pub fn v4_signature(
    secret: &Secret,
    region: &str,
    date: &str,
    request: &SignedParts<'_>,
) -> String {
    let mut canonical = format!("{}\n{}\n", request.method, request.path);
    let mut query: Vec<_> = request.query.iter().map(|(k, v)| (percent(k), percent(v))).collect();
    query.sort();
    let query: Vec<_> = query
        .into_iter()
        .map(|(key, value)| if value.is_empty() { key } else { format!("{key}={value}") })
        .collect();
    canonical += &query.join("&");
    canonical += "\n";
    let mut headers = signed_headers(request.headers, |_| true);
    for name in ["content-type", "host"] {
        headers
            .extend(find(request.headers, name).map(|value| (name.to_owned(), value.to_owned())));
    }
    headers.sort();
    for (name, value) in &headers {
        canonical += &format!("{name}:{}\n", value.trim());
    }
    canonical += "\n";
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    canonical += &names.join(";");
    canonical += "\n";
    canonical += &hex::encode(Sha256::digest(request.body));

    let text = format!(
        "SLS4-HMAC-SHA256\n{date}\n{}\n{}",
        v4_scope(date, region),
        hex::encode(Sha256::digest(canonical.as_bytes())),
    );
    let mut key = format!("aliyun_v4{}", secret.expose()).into_bytes();
    for part in [v4_day(date), region, "sls", "aliyun_v4_request"] {
        key = hmac_sha256(&key, part);
    }
    hex::encode(hmac_sha256(&key, &text))
}

/// The scope that a V4 credential names: `{day}/{region}/sls/aliyun_v4_request`.
pub fn v4_scope(date: &str, region: &str) -> String {
    format!("{}/{region}/sls/aliyun_v4_request", v4_day(date))
}

/// A time as V4 writes it: `20261122T030405Z`.
pub fn v4_date(unix_s: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_s).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The Unix time of a V4 date; `None` when it is not one.
pub fn parse_v4_date(date: &str) -> Option<i64> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// A time as HTTP's Date header and V1 write it: `Sun, 22 Nov 2026 03:04:05 GMT`.
pub fn http_date(unix_s: i64) -> String {
    let since_epoch = std::time::Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + since_epoch)
}

/// The Unix time of an HTTP date; `None` when it is not one.
pub fn parse_http_date(date: &str) -> Option<i64> {
    let since_epoch = httpdate::parse_http_date(date).ok()?.duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since_epoch.ok()?.as_secs()).ok()
}

/// Percent-encodes as RFC 3986 asks: all but letters, digits and `-._~`.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn v4_day(date: &str) -> &str {
    date.get(..8).unwrap_or(date)
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The headers that every signature covers, in lower case and sorted.
fn signed_headers(
    headers: &[(String, String)],
    keep: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    let mut signed: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| name.starts_with("x-log-") || name.starts_with("x-acs-"))
        .filter(|(name, _)| !name.starts_with("x-log-meta-") && keep(name))
        .collect();
    signed.sort();
    signed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        signatures: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        name: String,
        version: String,
        access_key_id: String,
        access_key_secret: String,
        security_token: Option<String>,
        region: String,
        now: String,
        method: String,
        path: String,
        params: BTreeMap<String, String>,
        headers_before: BTreeMap<String, String>,
        headers_after: BTreeMap<String, String>,
        body: Option<String>,
    }

    #[test]
    fn signatures_are_those_of_the_vendors_sdk() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../tests/data/sls.json")).unwrap();
        assert_eq!(vectors.signatures.len(), 20);
        for vector in vectors.signatures {
            let version = match vector.version.as_str() {
                "v1" => SignatureVersion::V1,
                "v4" => SignatureVersion::V4,
                other => panic!("unknown version {other}"),
            };
            let credentials = Credentials {
                access_key_id: vector.access_key_id,
                access_key_secret: Secret::new(vector.access_key_secret),
                security_token: vector.security_token.map(Secret::new),
            };
            let now = vector.now.parse::<jiff::Timestamp>().unwrap().as_second();
            let query: Vec<_> = vector.params.into_iter().collect();
            let headers: Vec<_> = vector.headers_before.into_iter().collect();
            let body = hex::decode(vector.body.unwrap_or_default()).unwrap();
            let parts = SignedParts {
                method: &vector.method,
                path: &vector.path,
                query: &query,
                headers: &headers,
                body: &body,
            };
            let mut wanted = vector.headers_after;
            if version == SignatureVersion::V1 {
                // The SDK adds it after signing, and V1 does not need it.
                wanted.remove("x-log-date");
            }
            let signed = sign(version, &credentials, &vector.region, now, &parts);
            assert_eq!(signed.into_iter().collect::<BTreeMap<_, _>>(), wanted, "{}", vector.name);
        }
    }

    #[test]
    fn the_published_v4_example_holds() {
        // aliyun-log-go-sdk, signature_v4_test.go, TestSignV4Case2.
        let headers = [
            ("x-log-date".to_owned(), "20220808T032330Z".to_owned()),
            ("x-log-content-sha256".to_owned(), hex::encode(Sha256::digest(b"adasd= -asd zcas"))),
        ];
        let parts = SignedParts {
            method: "POST",
            path: "/logstores",
            query: &[],
            headers: &headers,
            body: b"adasd= -asd zcas",
        };
        assert_eq!(
            v4_signature(&Secret::new("zxasdasdasw2"), "cn-shanghai", "20220808T032330Z", &parts),
            "8a10a5e723cb2e75964816de660b2c16a58af8bc0261f7f0722d832468c76ce8",
        );
    }

    #[test]
    fn dates_come_back() {
        for unix_s in [0, 1_735_689_600, 4_294_967_295] {
            assert_eq!(parse_v4_date(&v4_date(unix_s)), Some(unix_s));
            assert_eq!(parse_http_date(&http_date(unix_s)), Some(unix_s));
        }
        assert_eq!(parse_v4_date("yesterday"), None);
        assert_eq!(parse_http_date("yesterday"), None);
    }
}
