//! Where an SLS project is reached: the forms that Dify's `ALIYUN_SLS_ENDPOINT` may have.

use std::net::IpAddr;

/// A project's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and port, without a slash at the end.
    pub base_url: String,
    /// The Host header; it names the project.
    pub host_header: String,
    /// From the endpoint's name (`cn-hangzhou`); `None` when it has none, as an IP address.
    pub region: Option<String>,
    /// Whether it is this machine.
    pub is_loopback: bool,
    /// Host, and port where it is not the scheme's own, without what tells only by which network it
    /// is reached (`-intranet`, `-share`): the same for the same service.
    pub service: String,
}

/// The text is not an endpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not an SLS endpoint\n\
     hint: it looks like cn-hangzhou.log.aliyuncs.com, with or without https:// in front"
)]
pub struct NotAnEndpoint(String);

impl Endpoint {
    /// Understands `cn-hangzhou.log.aliyuncs.com`, `https://…`, `http://…`, `…-intranet…`, and an
    /// IP address or `localhost` with a port. TLS unless the text says `http://` or it is loopback.
    pub fn parse(text: &str, project: &str) -> Result<Self, NotAnEndpoint> {
        let not_an_endpoint = || NotAnEndpoint(text.to_owned());
        let (scheme, rest) = match text.trim().split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some(_) => return Err(not_an_endpoint()),
            None => (None, text.trim()),
        };
        let authority = rest.trim_end_matches('/');
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => {
                (host, Some(port.parse::<u16>().map_err(|_| not_an_endpoint())?))
            }
            _ => (authority, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(not_an_endpoint());
        }
        let ip = host.parse::<IpAddr>().ok();
        let is_loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        let scheme = scheme.unwrap_or(if is_loopback { "http" } else { "https" });
        let as_text = |port: Option<u16>| port.map(|port| format!(":{port}")).unwrap_or_default();
        let service_port = as_text(port.filter(|port| !matches!(port, 80 | 443)));
        let port = as_text(port);
        // A name of the form project.127.0.0.1 is no valid host in a URL.
        let url_host = match ip {
            None if !is_loopback => format!("{project}.{host}"),
            _ => host.to_owned(),
        };
        Ok(Self {
            base_url: format!("{scheme}://{url_host}{port}"),
            host_header: format!("{project}.{host}{port}"),
            region: region(host).filter(|_| ip.is_none()),
            is_loopback,
            service: format!("{}{service_port}", service(host)),
        })
    }

    /// Whether anybody on the way can read what is sent.
    pub fn is_in_clear(&self) -> bool {
        !self.is_loopback && self.base_url.starts_with("http://")
    }
}

/// `cn-hangzhou.log.aliyuncs.com` from `cn-hangzhou-intranet.log.aliyuncs.com`.
fn service(host: &str) -> String {
    if host == "localhost" {
        return "127.0.0.1".to_owned();
    }
    let host = host.to_ascii_lowercase();
    let (first, rest) = host.split_once('.').unwrap_or((&host, ""));
    let network = ["-intranet", "-share"].into_iter().find_map(|end| first.strip_suffix(end));
    match network {
        Some(region) if !region.is_empty() => format!("{region}.{rest}"),
        _ => host,
    }
}

/// `cn-hangzhou` from `cn-hangzhou-intranet.log.aliyuncs.com`.
fn region(host: &str) -> Option<String> {
    let (region, _) =
        host.split_once(".log.aliyuncs.com").or(host.split_once(".sls.aliyuncs.com"))?;
    let region = region.strip_suffix("-intranet").unwrap_or(region);
    let region = region.strip_suffix("-share").unwrap_or(region);
    (!region.is_empty() && !region.contains('.')).then(|| region.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let cases = [
            ("cn-hangzhou.log.aliyuncs.com", "https://p.cn-hangzhou.log.aliyuncs.com"),
            ("https://cn-hangzhou.log.aliyuncs.com/", "https://p.cn-hangzhou.log.aliyuncs.com"),
            ("http://cn-hangzhou.log.aliyuncs.com", "http://p.cn-hangzhou.log.aliyuncs.com"),
            (
                "cn-hangzhou-intranet.log.aliyuncs.com",
                "https://p.cn-hangzhou-intranet.log.aliyuncs.com",
            ),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("https://127.0.0.1:8080", "https://127.0.0.1:8080"),
            ("10.1.2.3:8080", "https://10.1.2.3:8080"),
            ("http://10.1.2.3", "http://10.1.2.3"),
            ("localhost:1", "http://localhost:1"),
        ];
        for (text, url) in cases {
            assert_eq!(Endpoint::parse(text, "p").unwrap().base_url, url, "{text}");
        }
        for text in ["", "ftp://x", "a b", "x:99999", "http://", "user@host", "a/b", "[::1]:80"] {
            assert!(Endpoint::parse(text, "p").is_err(), "{text}");
        }
    }

    #[test]
    fn the_project_of_an_ip_address_is_only_in_the_host_header() {
        let endpoint = Endpoint::parse("http://127.0.0.1:8080", "dify-logs").unwrap();
        assert_eq!(endpoint.host_header, "dify-logs.127.0.0.1:8080");
        assert!(endpoint.is_loopback);
        assert_eq!(endpoint.region, None);
    }

    #[test]
    fn the_same_service_has_one_name_whatever_leads_to_it() {
        let service = |text| Endpoint::parse(text, "p").unwrap().service;
        for text in [
            "cn-hangzhou.log.aliyuncs.com",
            "https://cn-hangzhou-intranet.log.aliyuncs.com/",
            "http://CN-Hangzhou-share.log.aliyuncs.com:80",
        ] {
            assert_eq!(service(text), "cn-hangzhou.log.aliyuncs.com", "{text}");
        }
        assert_eq!(service("localhost:8100"), service("http://127.0.0.1:8100"));
        assert_ne!(service("127.0.0.1:8100"), service("127.0.0.1:8101"));
        assert_ne!(service("cn-beijing.log.aliyuncs.com"), service("cn-hangzhou.log.aliyuncs.com"));
    }

    #[test]
    fn only_this_machine_is_reached_in_clear_without_a_word() {
        let is_in_clear = |text| Endpoint::parse(text, "p").unwrap().is_in_clear();
        assert!(is_in_clear("http://cn-hangzhou-intranet.log.aliyuncs.com"));
        assert!(is_in_clear("http://10.0.0.1"));
        assert!(!is_in_clear("10.0.0.1") && !is_in_clear("http://127.0.0.1:8100"));
    }

    #[test]
    fn the_region_is_in_the_name() {
        for (text, region) in [
            ("cn-hangzhou.log.aliyuncs.com", Some("cn-hangzhou")),
            ("https://cn-hangzhou-intranet.log.aliyuncs.com", Some("cn-hangzhou")),
            ("ap-southeast-1.log.aliyuncs.com", Some("ap-southeast-1")),
            ("logs.example.com", None),
        ] {
            assert_eq!(Endpoint::parse(text, "p").unwrap().region.as_deref(), region, "{text}");
        }
    }
}
