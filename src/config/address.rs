//! Addresses, endpoints, origins and host names as settings and requests write them. Nothing is resolved here.

use std::net::{IpAddr, Ipv6Addr};

use super::ConfigError;

/// Parses an entry of `--allowed-origins`; returns it as browsers send it.
pub(crate) fn parse_origin(text: &str) -> Result<String, String> {
    let wrong = || "an origin must be http://HOST[:PORT] or https://HOST[:PORT], without a path".to_owned();
    let origin = text.trim().to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
    let default_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return Err(wrong()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are between brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
    if !is_host || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(wrong());
    }
    Ok(match port {
        Some(port) if port != default_port => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

/// Parses an entry of `--allowed-hosts`; returns it in lower case, without a dot at its end.
pub(crate) fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim();
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_valid = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_valid {
        Ok(host.to_ascii_lowercase())
    } else {
        Err("a host must be a name, without a port or path".to_owned())
    }
}

/// Parses `--otlp-endpoint`; returns the URL that traces are sent to.
pub(crate) fn parse_otlp_endpoint(text: &str) -> Result<String, String> {
    let wrong = || "it must be http://HOST[:PORT][/PATH], such as http://127.0.0.1:4318".to_owned();
    let mut url = reqwest::Url::parse(text.trim()).map_err(|_| wrong())?;
    let has_more = url.query().is_some() || url.fragment().is_some() || url.password().is_some();
    if url.scheme() != "http" || !url.has_host() || has_more || !url.username().is_empty() {
        return Err(wrong());
    }
    if url.path() == "/" {
        url.set_path("/v1/traces");
    }
    Ok(url.into())
}

/// Parses an item of `--join`.
pub(crate) fn parse_member(text: &str) -> Result<String, String> {
    let addr = text.trim();
    check_address("a node to join", addr).map_err(|_| "a node to join must be HOST:PORT, such as 127.0.0.1:21001")?;
    Ok(addr.to_owned())
}

/// Checks that an address is `HOST:PORT`. An IPv6 address must be in brackets.
///
/// # Errors
///
/// If it is not; the message begins with `name`.
pub fn check_address(name: &str, addr: &str) -> Result<(), ConfigError> {
    let valid = |host: &str, port: &str| {
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<Ipv6Addr>().is_ok(),
            // 253 bytes is the longest name of a host (RFC 1035).
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
            }
        };
        is_host && is_number && port.parse::<u16>().is_ok()
    };
    if addr.rsplit_once(':').is_some_and(|(host, port)| valid(host, port)) {
        Ok(())
    } else {
        // Debug formatting, so that a control character cannot reach a terminal.
        Err(ConfigError(format!("{name} must be HOST:PORT, such as 127.0.0.1:21001, got {addr:?}")))
    }
}

/// The address of a node in a list of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST:PORT`.
    pub addr: String,
    /// Whether the scheme is `https`; `None` if there is no scheme.
    pub is_tls: Option<bool>,
}

/// Parses an entry of a list of endpoints, `HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`; `None` if it is empty.
///
/// # Errors
///
/// If it is none of these.
pub fn parse_endpoint(text: &str) -> Result<Option<Endpoint>, String> {
    let addr = text.trim();
    if addr.is_empty() {
        return Ok(None);
    }
    let (addr, is_tls) = match addr.split_once("://") {
        None => (addr, None),
        Some((scheme, addr)) if scheme.eq_ignore_ascii_case("http") => (addr, Some(false)),
        Some((scheme, addr)) if scheme.eq_ignore_ascii_case("https") => (addr, Some(true)),
        Some(_) => return Err("an endpoint must be HOST:PORT, http://HOST:PORT or https://HOST:PORT".to_owned()),
    };
    let addr = addr.strip_suffix('/').unwrap_or(addr);
    check_address("the endpoint", addr).map_err(|_| "an endpoint must be HOST:PORT, such as 127.0.0.1:21001")?;
    Ok(Some(Endpoint { addr: addr.to_owned(), is_tls }))
}

/// Checks that an address is `HOST:PORT` and one that another node can dial.
///
/// # Errors
///
/// If it is not, if its port is 0, or if its host is the unspecified address.
pub fn check_dialable(name: &str, addr: &str) -> Result<(), ConfigError> {
    check_address(name, addr)?;
    let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port == Some(0) || is_unspecified(addr) {
        return Err(ConfigError(format!("{name} must be an address that other nodes can dial, got {addr}")));
    }
    Ok(())
}

/// Whether the host of `HOST:PORT` is the unspecified address, in any spelling that a resolver accepts.
///
/// In addition to `0.0.0.0` and `[::]` these are the old forms of IPv4 addresses, of one to four numbers, each decimal,
/// octal or hexadecimal (`0`, `0x0`, `000.0`), and an IPv4 address within an IPv6 one.
pub fn is_unspecified(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    if let Some(host) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return host.parse::<Ipv6Addr>().is_ok_and(|ip| is_unspecified_ip(ip.into()));
    }
    let is_zero = |number: &str| {
        let digits = number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")).unwrap_or(number);
        digits.bytes().all(|digit| digit == b'0') && !number.is_empty()
    };
    // A name may end with a dot, and some resolvers accept an address that does.
    let numbers = host.strip_suffix('.').unwrap_or(host).split('.');
    numbers.clone().count() <= 4 && numbers.into_iter().all(is_zero)
}

/// Whether an IP address is the unspecified one, of IPv4, IPv6, or IPv4 within IPv6.
pub fn is_unspecified_ip(ip: IpAddr) -> bool {
    ip.to_canonical().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// Every spelling of the unspecified address is detected, and no other address is taken for it.
    #[test]
    fn unspecified_addresses() {
        for host in [
            "0",
            "00",
            "0x0",
            "0X00",
            "0x",
            "0.0",
            "0.0.0",
            "0.0.0.0",
            "0.0.0.0.",
            "000.0.0.0",
            "0x0.0.00.0",
            "[::]",
            "[0:0:0:0:0:0:0:0]",
            "[0::0]",
            "[::0.0.0.0]",
            "[::ffff:0.0.0.0]",
            "[::ffff:0:0]",
        ] {
            let addr = format!("{host}:21001");
            assert!(is_unspecified(&addr), "{addr}");
            assert!(check_address("it", &addr).is_ok(), "{addr}");
            assert!(check_dialable("it", &addr).is_err(), "{addr}");
            let mut config = Config::new(1, addr.clone());
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains("--advertise-addr"), "{addr}: {message}");
            config.advertise_addr = Some("127.0.0.1:21001".to_owned());
            assert_eq!(config.validate(), Ok(()), "{addr}");
        }
        for host in [
            "1",
            "0x1",
            "0.1",
            "127.0.0.1",
            "0.0.0.1",
            "10.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "zero",
            "0.example",
            "x0",
            "0-0",
            "0x0x0",
            "0.0.0.0.0",
            "o",
        ] {
            let addr = format!("{host}:21001");
            assert!(!is_unspecified(&addr), "{addr}");
            assert_eq!(check_dialable("it", &addr), Ok(()), "{addr}");
        }
    }

    /// `HOST:PORT` is accepted, and nothing else.
    #[test]
    fn addresses() {
        for good in ["127.0.0.1:21001", "[::1]:80", "node-1.example:65535", "localhost:1"] {
            assert_eq!(check_address("it", good), Ok(()), "{good}");
        }
        let too_long = format!("{}:80", "h".repeat(254));
        assert!(check_address("it", &too_long).is_err());
        for bad in [
            "h:+80",
            "[]:80",
            "[1]:80",
            "%:80",
            "[fe80::1%eth0]:80",
            "",
            ":",
            "host",
            "host:",
            ":80",
            "host:65536",
            "host:-1",
            "::1:80",
            "a b:80",
            "http://a:80",
            "a/b:80",
            "a\n:80",
        ] {
            assert!(check_address("it", bad).is_err(), "{bad:?}");
        }
    }

    /// An endpoint may have spaces around it, a scheme before it and a slash at its end; other forms are rejected.
    #[test]
    fn endpoints() {
        for (text, parsed, is_tls) in [
            ("127.0.0.1:1", "127.0.0.1:1", None),
            (" host:1\t", "host:1", None),
            ("http://host:1", "host:1", Some(false)),
            (" HTTP://[::1]:80/ ", "[::1]:80", Some(false)),
            ("https://host:1", "host:1", Some(true)),
            ("HTTPS://host:1/", "host:1", Some(true)),
            ("host:1/", "host:1", None),
        ] {
            let parsed = Endpoint { addr: parsed.to_owned(), is_tls };
            assert_eq!(parse_endpoint(text), Ok(Some(parsed)), "{text:?}");
        }
        for empty in ["", " ", "\t"] {
            assert_eq!(parse_endpoint(empty), Ok(None), "{empty:?}");
        }
        for (bad, why) in [
            ("host", "HOST:PORT"),
            ("http://", "HOST:PORT"),
            ("http://host", "HOST:PORT"),
            ("http://host:1/v1", "HOST:PORT"),
            ("host:1//", "HOST:PORT"),
            ("host :1", "HOST:PORT"),
            ("https://", "HOST:PORT"),
            ("ftp://host:1", "or https://HOST:PORT"),
        ] {
            let message = parse_endpoint(bad).unwrap_err();
            assert!(message.contains(why), "{bad:?}: {message}");
        }
    }

    /// Origins and hosts that no header could match are rejected.
    #[test]
    fn origins_and_hosts() {
        for (good, parsed) in [
            ("https://A.example", "https://a.example"),
            ("https://a.example:443", "https://a.example"),
            ("https://a.example:8443", "https://a.example:8443"),
            (" http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(parse_origin(good).as_deref(), Ok(parsed));
        }
        for bad in [
            "a.example",
            "https://",
            "http://:80",
            "http://a:x",
            "ftp://a",
            "https://a.example/",
            "*",
            "null",
            "https://a b",
        ] {
            assert!(parse_origin(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_host("Proxy.Example.").as_deref(), Ok("proxy.example"));
        for bad in ["", "a.example:80", "https://a", "*"] {
            assert!(parse_host(bad).is_err(), "{bad:?}");
        }
    }
}
